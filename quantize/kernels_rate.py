"""Compiled loops over a tensor: how large its weights are, rounding, and how often each code occurs in each class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..codec.kernels.jit import inlined, kernel
from .kernels_feedback import ROUNDING, TOP

LANES = 32  # partial sums of a row
FEW = 32  # rows whose products are added up in float32
SMALL, LARGE = np.float32(1e-30), np.float32(1e30)
ESCAPE = 0  # the symbol of codes beyond +-127; code k is symbol k + 128


@kernel
def count_classes(
    codes: NDArray[np.int16],
    row_class: NDArray[np.int64],
    column_class: NDArray[np.int64],
    after: NDArray[np.uint8],
    restart: int,
    counts: NDArray[np.int64],
) -> None:
    """Add the codes i16[rows, columns] to counts i64[classes, 2, 256] by class, set and symbol.

    The class is row_class + column_class, clipped. after u8[states, 2]: the trellis; a single state for a plain grid.
    Its states begin at 0 in every row that is a multiple of `restart`.
    """
    rows, columns = codes.shape
    last = counts.shape[0] - 1
    state = np.zeros(columns, np.uint8)
    for r in range(rows):
        if r % restart == 0:
            state[:] = 0
        for c in range(columns):
            k = np.int64(codes[r, c])
            table = min(max(row_class[r] + column_class[c], 0), last)
            symbol = k + 128 if -127 <= k <= 127 else ESCAPE
            counts[table, state[c] & 1, symbol] += 1
            state[c] = after[state[c], k & 1]


@kernel
def row_sizes(weights: NDArray[np.float32], scale: NDArray[np.float32], sizes: NDArray[np.float64]) -> None:
    """sizes[r] = mean of |w| / scale over the columns. weights f32[rows, columns], scale f32[columns]."""
    rows, columns = weights.shape
    inverse = np.empty(columns, np.float64)
    for c in range(columns):
        inverse[c] = 1.0 / np.float64(scale[c])
    partial = np.empty(LANES, np.float64)
    whole = columns // LANES * LANES
    for r in range(rows):
        row = weights[r]
        partial[:] = 0.0
        for first in range(0, whole, LANES):
            for k in range(LANES):  # vector code whose order of additions is fixed
                partial[k] += np.float64(abs(row[first + k])) * inverse[first + k]
        total = 0.0
        for c in range(whole, columns):
            total += np.float64(abs(row[c])) * inverse[c]
        for k in range(LANES):
            total += partial[k]
        sizes[r] = total / columns


@kernel
def add_column_sizes(weights: NDArray[np.float32], scale: NDArray[np.float32], sums: NDArray[np.float64]) -> None:
    """sums[c] += sum of |w| / scale over the rows. weights f32[rows, columns], scale f32[rows]."""
    rows, columns = weights.shape
    fours = rows // 4 * 4
    for r in range(0, fours, 4):
        u0, u1 = 1.0 / np.float64(scale[r]), 1.0 / np.float64(scale[r + 1])
        u2, u3 = 1.0 / np.float64(scale[r + 2]), 1.0 / np.float64(scale[r + 3])
        w0, w1, w2, w3 = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
        for c in range(columns):
            sums[c] += (np.float64(abs(w0[c])) * u0 + np.float64(abs(w1[c])) * u1) + (
                np.float64(abs(w2[c])) * u2 + np.float64(abs(w3[c])) * u3
            )
    for r in range(fours, rows):
        u0, w0 = 1.0 / np.float64(scale[r]), weights[r]
        for c in range(columns):
            sums[c] += np.float64(abs(w0[c])) * u0


@kernel
def round_rows(
    weights: NDArray[np.float32],
    step: NDArray[np.float32],
    row_scale: NDArray[np.float32],
    codes: NDArray[np.int16],
    sums: NDArray[np.float64],
) -> None:
    """codes i16[rows, columns] = the nearest on an unbounded grid, without feedback.

    weights f32[rows, columns], step f32[columns], row_scale f32[rows], a factor on the step. sums f64[3, columns]
    gains weight * value, value^2 and weight^2 of each column, in units of row_scale, value being code * step: in float32 over a few
    rows, which takes half the time of float64, and rounds off less than the weights themselves are rounded. Four rows at a time, so
    that sums are loaded and stored once for four weights: 0.9 cycles for each, what memory takes to give and take them.
    """
    rows, columns = weights.shape
    inverse = np.empty(columns, np.float32)
    for c in range(columns):
        inverse[c] = np.float32(1.0) / step[c]
    few = np.empty((3, columns), np.float32)
    for first in range(0, rows, FEW):
        end = min(first + FEW, rows)
        fours = first + (end - first) // 4 * 4
        few[:] = 0
        for r in range(first, fours, 4):
            u0, u1 = np.float32(1.0) / row_scale[r], np.float32(1.0) / row_scale[r + 1]
            u2, u3 = np.float32(1.0) / row_scale[r + 2], np.float32(1.0) / row_scale[r + 3]
            w0, w1, w2, w3 = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
            out0, out1, out2, out3 = codes[r], codes[r + 1], codes[r + 2], codes[r + 3]
            for c in range(columns):
                s, i = step[c], inverse[c]
                t0, t1, t2, t3 = w0[c] * u0, w1[c] * u1, w2[c] * u2, w3[c] * u3
                z0, z1, z2, z3 = _nearest(t0 * i), _nearest(t1 * i), _nearest(t2 * i), _nearest(t3 * i)
                out0[c], out1[c], out2[c], out3[c] = np.int16(z0), np.int16(z1), np.int16(z2), np.int16(z3)
                v0, v1, v2, v3 = z0 * s, z1 * s, z2 * s, z3 * s
                few[0, c] = (((few[0, c] + t0 * v0) + t1 * v1) + t2 * v2) + t3 * v3
                few[1, c] = (((few[1, c] + v0 * v0) + v1 * v1) + v2 * v2) + v3 * v3
                few[2, c] = (((few[2, c] + t0 * t0) + t1 * t1) + t2 * t2) + t3 * t3
        for r in range(fours, end):
            u0, w0, out0 = np.float32(1.0) / row_scale[r], weights[r], codes[r]
            for c in range(columns):
                t0 = w0[c] * u0
                z0 = _nearest(t0 * inverse[c])
                out0[c] = np.int16(z0)
                v0 = z0 * step[c]
                few[0, c] += t0 * v0
                few[1, c] += v0 * v0
                few[2, c] += t0 * t0
        held = True  # whether float32 can hold the products
        for c in range(columns):
            held &= SMALL < few[2, c] < LARGE
        if held:
            for k in range(3):
                for c in range(columns):
                    sums[k, c] += np.float64(few[k, c])
            continue
        for r in range(first, end):
            inverse_row = np.float32(1.0) / row_scale[r]
            for c in range(columns):
                t = np.float64(weights[r, c] * inverse_row)
                v = np.float64(np.float32(codes[r, c]) * step[c])
                sums[0, c] += t * v
                sums[1, c] += v * v
                sums[2, c] += t * t


@inlined
def _nearest(steps: np.float32) -> np.float32:
    steps = TOP if steps > TOP else steps
    steps = -TOP if steps < -TOP else steps
    nearest: np.float32 = (steps + ROUNDING) - ROUNDING
    return nearest
