"""Compiled loops of dependent quantization: two grids, a state that says which is used next, and the search for codes.

The state walks down a column. Its lowest bit is the *set*: code k stands for the level 2 k in set 0 and 2 k - sign(k)
in set 1; the parity of k moves the state. Each set alone is a grid of twice the step, together they are one of
the step: the path adds the choice between them without spending a bit on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.kernels.jit import inlined, kernel
from .kernels_feedback import BLOCK, add_products, carry_inside, carry_on

F: Any = np.float32
I: Any = np.int64  # noqa: E741
TOP = 16383.0  # largest code: levels fit 16 bits
PRICES = 129  # prices by magnitude of the code; the last one is for all larger ones


@kernel
def feedback_trellis(
    weights: NDArray[np.float32],
    unit: NDArray[np.float32],
    step: NDArray[np.float32],
    worth: NDArray[np.float32],
    row_scale: NDArray[np.float32],
    before: NDArray[np.int64],
    flip: int,
    prices: NDArray[np.float64],
    row_table: NDArray[np.int64],
    column_table: NDArray[np.int64],
    codes: NDArray[np.int16],
    sums: NDArray[np.float64],
) -> None:
    """`kernels_feedback.feedback` with the best path through a trellis in place of the nearest code.

    unit: may be f32[0, 0]: then nothing is carried on. before i64[states]: the state from which an even code leads to
    this one; an odd code leads there from that state XOR `flip`. prices f64[tables, 2, PRICES]: what a code of this
    table, set and magnitude costs, in squared steps. row_table i64[m], column_table i64[n]: their sum, clipped, is
    the table. value = level * step.
    """
    n, m = weights.shape
    carried = np.zeros((n, m), np.float32)
    target, value, inverse_row = np.empty(m, np.float32), np.empty(m, np.float32), np.empty(m, np.float32)
    candidates, choices = np.empty((m, 4), np.int16), np.empty((m, before.size), np.uint8)
    for r in range(m):
        inverse_row[r] = F(1.0) / row_scale[r]
    for high in range(n, 0, -BLOCK):
        low = max(0, high - BLOCK)
        for c in range(high - 1, low - 1, -1):
            error, add, out = weights[c], carried[c], codes[c]
            for r in range(m):
                target[r] = (error[r] + add[r]) * inverse_row[r]
            best_path(target, step[c], before, flip, prices, row_table, column_table[c], candidates, choices, out)
            levels_of(out, before, flip, value)
            for r in range(m):
                error[r] -= (value[r] * worth[c]) * row_scale[r]
                value[r] *= step[c]
            add_products(target, value, sums[c])
            if unit.shape[0]:
                carry_inside(weights, unit, carried, c, low)
        if unit.shape[0]:
            carry_on(weights, unit, carried, low, high)


@kernel
def best_path(
    target: NDArray[np.float32],
    step: np.float32,
    before: NDArray[np.int64],
    flip: int,
    prices: NDArray[np.float64],
    row_table: NDArray[np.int64],
    column_table: int,
    candidates: NDArray[np.int16],
    choices: NDArray[np.uint8],
    out: NDArray[np.int16],
) -> None:
    """Codes i16[m] whose path from state 0 has the least sum of squared errors (in steps) and prices.

    candidates i16[m, 4], choices u8[m, states]: scratch. Of equal paths the one with the even code wins.
    """
    states = before.size
    half = states // 2
    last = prices.shape[0] - 1
    cost, fresh = np.full(states, np.inf), np.empty(states, np.float64)
    cost[0] = 0.0
    inverse = 1.0 / np.float64(step)
    for r in range(target.size):
        x = np.float64(target[r]) * inverse
        table = min(max(row_table[r] + column_table, 0), last)
        e00, candidates[r, 0] = candidate(x, 0, 0, prices[table, 0])
        e01, candidates[r, 1] = candidate(x, 0, 1, prices[table, 0])
        e10, candidates[r, 2] = candidate(x, 1, 0, prices[table, 1])
        e11, candidates[r, 3] = candidate(x, 1, 1, prices[table, 1])
        # The states that set 0 leads to are the lower half.
        for t in range(half):
            even, odd = cost[before[t]] + e00, cost[before[t] ^ flip] + e01
            choices[r, t] = odd < even
            fresh[t] = odd if odd < even else even
        for t in range(half, states):
            even, odd = cost[before[t]] + e10, cost[before[t] ^ flip] + e11
            choices[r, t] = odd < even
            fresh[t] = odd if odd < even else even
        cost, fresh = fresh, cost
    state = np.argmin(cost)
    for r in range(target.size - 1, -1, -1):
        odd_code = I(choices[r, state])
        state = before[state] ^ (flip * odd_code)
        out[r] = candidates[r, 2 * (state & 1) + odd_code]


@inlined
def candidate(x: float, which: int, parity: int, prices: NDArray[np.float64]) -> tuple[Any, Any]:
    """(cost, code) of the better of the nearest code of this set and parity and the next one towards zero."""
    magnitude = abs(x)
    near = parity + 2.0 * max(0.0, np.rint(((magnitude + which) * 0.5 - parity) * 0.5))
    near = min(near, TOP - 1 + parity)
    k = I(near)
    error = magnitude - (2.0 * near - (which if k > 0 else 0))
    best = error * error + prices[min(k, PRICES - 1)]
    if k >= 2:
        lower = k - 2
        error = magnitude - (2.0 * lower - (which if lower > 0 else 0))
        cost = error * error + prices[min(lower, PRICES - 1)]
        if cost < best:
            best, k = cost, lower
    return best, (k if x >= 0.0 else -k)


@inlined
def levels_of(codes: NDArray[np.int16], before: NDArray[np.int64], flip: int, levels: NDArray[np.float32]) -> None:
    """The levels of a column of codes, from state 0."""
    after = np.empty((before.size, 2), np.int64)
    for t in range(before.size):
        after[before[t], 0] = t
        after[before[t] ^ flip, 1] = t
    state = 0
    for r in range(codes.size):
        k = I(codes[r])
        levels[r] = level(k, state & 1)
        state = after[state, k & 1]


@inlined
def level(k: int, which: int) -> int:
    """2 k in set 0, 2 k - sign(k) in set 1."""
    return 2 * k - which * ((1 if k > 0 else 0) - (1 if k < 0 else 0))
