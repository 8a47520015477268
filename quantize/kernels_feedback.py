"""Compiled loops of error feedback: factorize a Gram matrix, quantize column after column, carry the errors on.

Everything is IEEE float32 or float64 with one rounding per operation, and every sum has one order: results depend
neither on the platform nor on how rows are spread over threads. That is why no BLAS is called here.

Matrices of weights are transposed, `[columns, rows]`: the rows of a column lie side by side, so loops over them become
vector code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.kernels.jit import inlined, kernel

F: Any = np.float32
BLOCK = 32  # columns whose errors are carried on together; a slab of them fits a first-level cache
PANEL = 64  # columns that are factorized together
TOP = F(32767.0)  # largest code

# Adding and subtracting 1.5 * 2^23 rounds a float32 of magnitude < 2^22 to the nearest integer, ties to even.
ROUNDING = F(12582912.0)


@kernel
def factorize_panel(a: NDArray[np.float64], first: int, transposed: NDArray[np.float64]) -> bool:
    """One panel of a Cholesky factorization in place: columns `first` .. `first + PANEL` of the lower triangle.

    a f64[n, n] with all panels before subtracted. transposed f64[PANEL, n] receives the panel as rows, for
    `subtract_panel`. Returns False if the matrix is not positive definite.
    """
    n = a.shape[0]
    stop = min(first + PANEL, n)
    for j in range(first, stop):
        pivot = a[j, j]
        for k in range(first, j):
            pivot -= a[j, k] * a[j, k]
        if not pivot > 0.0:
            return False
        pivot = np.sqrt(pivot)
        a[j, j] = pivot
        for i in range(j + 1, n):
            value = a[i, j]
            for k in range(first, j):
                value -= a[i, k] * a[j, k]
            a[i, j] = value / pivot
    for k in range(first, stop):
        for i in range(stop, n):
            transposed[k - first, i] = a[i, k]
    return True


@kernel
def subtract_panel(a: NDArray[np.float64], first: int, transposed: NDArray[np.float64], begin: int, end: int) -> None:
    """Subtract a panel times its transpose from rows `begin` .. `end` (behind the panel) of the lower triangle."""
    depth = min(PANEL, a.shape[0] - first)
    start = first + depth
    whole = depth // 4 * 4
    for i in range(begin, end):
        for k in range(0, whole, 4):
            f0, f1, f2, f3 = a[i, first + k], a[i, first + k + 1], a[i, first + k + 2], a[i, first + k + 3]
            for j in range(start, i + 1):
                a[i, j] -= (f0 * transposed[k, j] + f1 * transposed[k + 1, j]) + (
                    f2 * transposed[k + 2, j] + f3 * transposed[k + 3, j]
                )
        for k in range(whole, depth):
            f0 = a[i, first + k]
            for j in range(start, i + 1):
                a[i, j] -= f0 * transposed[k, j]


@kernel
def feedback(
    weights: NDArray[np.float32],
    unit: NDArray[np.float32],
    step: NDArray[np.float32],
    worth: NDArray[np.float32],
    row_scale: NDArray[np.float32],
    codes: NDArray[np.int16],
    sums: NDArray[np.float64],
) -> None:
    """Round a slab on an unbounded grid, last column first, each error carried on to the columns before.

    weights f32[n, m] -> its errors `w - rebuilt` (in place). unit f32[n, n]: L with every column divided by its
    diagonal element. step f32[n]: grid of a column; worth f32[n]: what one code stands for when it is decoded.
    row_scale f32[m]: factor on both. codes i16[n, m]. sums f64[n, 3] gains target * value, value^2 and target^2 of each
    column, in units of row_scale, value being code * step: what is lost with any other `worth`.
    """
    n, m = weights.shape
    carried = np.zeros((n, m), np.float32)
    target, value, inverse_row = np.empty(m, np.float32), np.empty(m, np.float32), np.empty(m, np.float32)
    for r in range(m):
        inverse_row[r] = F(1.0) / row_scale[r]
    for high in range(n, 0, -BLOCK):
        low = max(0, high - BLOCK)
        for c in range(high - 1, low - 1, -1):
            error, add, out = weights[c], carried[c], codes[c]
            for r in range(m):
                target[r] = (error[r] + add[r]) * inverse_row[r]
            round_column(target, step[c], value, out)
            for r in range(m):
                error[r] -= (value[r] * worth[c]) * row_scale[r]
                value[r] *= step[c]
            add_products(target, value, sums[c])
            carry_inside(weights, unit, carried, c, low)
        carry_on(weights, unit, carried, low, high)


@inlined
def round_column(
    target: NDArray[np.float32], step: np.float32, codes: NDArray[np.float32], out: NDArray[np.int16]
) -> None:
    """The nearest codes, as floats and as integers."""
    inverse = F(1.0) / step
    for r in range(target.size):
        steps = target[r] * inverse
        steps = TOP if steps > TOP else steps
        steps = -TOP if steps < -TOP else steps
        codes[r] = (steps + ROUNDING) - ROUNDING
        out[r] = np.int16(codes[r])


@inlined
def add_products(target: NDArray[np.float32], value: NDArray[np.float32], sums: NDArray[np.float64]) -> None:
    product, power, total = 0.0, 0.0, 0.0
    for r in range(target.size):
        t, v = np.float64(target[r]), np.float64(value[r])
        product += t * v
        power += v * v
        total += t * t
    sums[0] += product
    sums[1] += power
    sums[2] += total


@inlined
def carry_inside(
    errors: NDArray[np.float32], unit: NDArray[np.float32], carried: NDArray[np.float32], c: int, low: int
) -> None:
    """Add the error of column c to columns low .. c - 1."""
    error = errors[c]
    for j in range(low, c):
        weight, add = unit[c, j], carried[j]
        for r in range(error.size):
            add[r] += weight * error[r]


@inlined
def carry_on(
    errors: NDArray[np.float32], unit: NDArray[np.float32], carried: NDArray[np.float32], low: int, high: int
) -> None:
    """Add the errors of columns low .. high - 1 to all columns before them."""
    m = errors.shape[1]
    whole = (high - low) // 4 * 4
    for j in range(low):
        add = carried[j]
        for k in range(low, low + whole, 4):
            f0, f1, f2, f3 = unit[k, j], unit[k + 1, j], unit[k + 2, j], unit[k + 3, j]
            e0, e1, e2, e3 = errors[k], errors[k + 1], errors[k + 2], errors[k + 3]
            for r in range(m):
                add[r] += (f0 * e0[r] + f1 * e1[r]) + (f2 * e2[r] + f3 * e3[r])
        for k in range(low + whole, high):
            f0, e0 = unit[k, j], errors[k]
            for r in range(m):
                add[r] += f0 * e0[r]


@kernel
def feedback_fixed(
    weights: NDArray[np.float32],
    unit: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    group: NDArray[np.int64],
    highest: np.float32,
    codes: NDArray[np.uint8],
) -> None:
    """`feedback` on the grid `(code - zero) * scale`, codes 0 .. highest.

    scale, zero f32[groups, m]; group i64[n]: that of each column. codes u8[n, m]. Where the scale is 0 the code is
    the zero.
    """
    n, m = weights.shape
    carried = np.zeros((n, m), np.float32)
    for high in range(n, 0, -BLOCK):
        low = max(0, high - BLOCK)
        for c in range(high - 1, low - 1, -1):
            error, add, out = weights[c], carried[c], codes[c]
            scales, zeros = scale[group[c]], zero[group[c]]
            for r in range(m):
                steps = F(0.0)
                if scales[r] != F(0.0):
                    steps = (error[r] + add[r]) / scales[r]
                steps += zeros[r]
                # Clipped first: rounding by addition is for magnitudes below 2^22.
                steps = highest if steps > highest else steps
                steps = F(0.0) if steps < F(0.0) else steps
                z = (steps + ROUNDING) - ROUNDING
                out[r] = np.uint8(np.int32(z))
                error[r] -= (z - zeros[r]) * scales[r]
            carry_inside(weights, unit, carried, c, low)
        carry_on(weights, unit, carried, low, high)
