"""Compiled loops over the codes of a tensor: rounding, and how often each code occurs in each class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..codec.kernels.jit import kernel
from .kernels_feedback import ROUNDING, TOP

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
    rows, which takes half the time of float64, and rounds off less than the weights themselves are rounded. 1.4 cycles for a weight.
    """
    rows, columns = weights.shape
    inverse = np.empty(columns, np.float32)
    for c in range(columns):
        inverse[c] = np.float32(1.0) / step[c]
    few = np.empty((3, columns), np.float32)
    for first in range(0, rows, FEW):
        end = min(first + FEW, rows)
        few[:] = 0
        for r in range(first, end):
            inverse_row = np.float32(1.0) / row_scale[r]
            row, out = weights[r], codes[r]
            for c in range(columns):
                target = row[c] * inverse_row
                steps = target * inverse[c]
                steps = TOP if steps > TOP else steps
                steps = -TOP if steps < -TOP else steps
                z = (steps + ROUNDING) - ROUNDING
                value = z * step[c]
                out[c] = np.int16(z)
                few[0, c] += target * value
                few[1, c] += value * value
                few[2, c] += target * target
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
