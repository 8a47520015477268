"""Compiled steps of rounding to the nearest grid point: range and scale of a segment, search for a better scale, codes.

A *segment* is a run of weights that share a scale: a group, a row, or (in the `tensor` strategy) a whole slab.
All arithmetic on weights is IEEE float32 with one rounding per operation and no reassociation, sums run in an order
that depends on nothing but the segment: the same codes come out on every platform and with any number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..codec.kernels.jit import inlined, kernel

F = np.float32

OK, NOT_FINITE, SCALE_OVERFLOW = 0, 1, 2  # what `quantize_segments` and `absmax_scale` return

FLOAT16, BFLOAT16, FLOAT32 = 0, 1, 2  # scale dtypes

# `levels`, which levels a grid has beside 0: those that a zero point of its own leads to; as many below as above; on symmetric
# grids all that its bits can tell apart, which is one more below.
SHIFTED, BALANCED, ALL = 0, 1, 2

CANDIDATES = 16  # scales tried together: their errors are the lanes of a vector register
BLOCK = 1024  # weights whose errors are added up in float32 before they join a float64 sum

# Adding and subtracting 1.5 * 2^23 rounds a float32 of magnitude < 2^22 to the nearest integer, ties to even. Unlike a
# call of rint, compilers make vector code of it. No weight is more than 2^16 steps of a scale that is tried.
ROUNDING = F(12582912.0)

STATE = 6  # numbers in the state of a search:
ERROR, SCALE, ZERO = 0, 1, 2  # the best so far
ANCHOR, ANCHOR_ZERO = 3, 4  # the best of the coarse round
LAST = 5  # the best scale of the last probe


@kernel
def extremes(bits: NDArray[np.int32]) -> tuple[int, int]:
    """(min(w, 0), max(w, 0)) of float32 weights, seen and returned as bit patterns. NaN counts as beyond infinity.

    Floats order like their bit patterns: positive ones as signed numbers; negative ones as unsigned, larger is lower.
    Integer maxima, unlike those of floats, may be taken in any order, so they become vector code.
    """
    high = np.int32(0)
    low = np.uint32(0x80000000)
    for i in range(bits.size):
        high = max(high, bits[i])
        low = max(low, np.uint32(bits[i]))
    return int(low), int(high)


@kernel
def absmax_scale(low: int, high: int, num_bits: int, levels: int, scale_dtype: int) -> tuple[int, np.float32, int]:
    """(status, scale, zero point) of the grid that just covers weights of these `extremes`. Scale 0 if all are 0."""
    if low >= 0xFF800000 or high >= 0x7F800000:
        return NOT_FINITE, F(0.0), 0
    minimum, maximum = -_from_bits(low & 0x7FFFFFFF), _from_bits(high)
    top = F(_top(num_bits, levels))
    if levels != SHIFTED:
        largest = max(maximum, -minimum)
        if num_bits == 1:
            exact = largest
        elif levels == ALL:
            exact = largest / (top + F(0.5))
        else:
            exact = largest / top
        zero = 1 << (num_bits - 1)
    else:
        largest = maximum - minimum
        exact = largest / top
        zero = 0
    if largest == 0:
        return OK, F(0.0), zero
    scale = round_scale(exact, scale_dtype)
    if scale == np.inf:
        return SCALE_OVERFLOW, scale, zero
    if levels == SHIFTED:
        zero = int(_nearest(-minimum / scale, F(0.0), top))
    return OK, scale, zero


@kernel
def round_scale(value: np.float32, scale_dtype: int) -> np.float32:
    """`value` > 0 to the nearest number of the scale dtype, ties to even; infinity if too large, never down to 0."""
    bits = _to_bits(value)
    if scale_dtype == FLOAT32:
        return _from_bits(max(bits, 1))
    if scale_dtype == BFLOAT16:
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0x7FFF0000
        return _from_bits(max(bits, 0x10000))
    if value < F(2.0**-14):  # subnormal in float16: a multiple of 2^-24, which is the last place of numbers from 0.5 on
        return max((value + F(0.5)) - F(0.5), F(2.0**-24))
    bits = (bits + 0x0FFF + ((bits >> 13) & 1)) & 0x7FFFE000
    return _from_bits(bits) if bits < 0x47800000 else F(np.inf)  # 2^16


@kernel
def search_steps(levels: int) -> int:
    """Number of probes of a search."""
    return 8 if levels == SHIFTED else 3


@kernel
def begin_search(scale: np.float32, zero: int, state: NDArray[np.float64]) -> None:
    """Start a search of the scale with least squared error from the absmax grid."""
    state[ERROR] = np.inf
    state[SCALE] = scale
    state[ZERO] = zero


@kernel
def probe(
    step: int, num_bits: int, levels: int, scale_dtype: int, state: NDArray[np.float64], tried: NDArray[np.float32]
) -> int:
    """Fill in the scales that step `step` tries; returns the zero point to try them with, or -1 to skip the step.

    The coarse round goes down from the absmax scale by factors of 3/4; the second spreads 16 scales evenly over +-26 %
    of the best, the third over +-3 %. The error has a local minimum every few per cent, or per mille with many levels:
    so this is a net, not a descent. Asymmetric grids go through the coarse round twice, with the zero point of the
    absmax grid and with the middle one (clipping a lone outlier leads there); the finer rounds then try three zero
    points around the better one.
    """
    coarse_steps = 2 if levels == SHIFTED else 1
    if step == 0:
        state[ANCHOR], state[ANCHOR_ZERO] = state[SCALE], state[ZERO]
    elif step == coarse_steps:
        state[ANCHOR], state[ANCHOR_ZERO] = state[SCALE], state[ZERO]
    middle = 1 << (num_bits - 1)
    if step < coarse_steps:
        stage = 0
        zero = int(state[ANCHOR_ZERO]) if step == 0 else middle
        if step == 1 and state[ANCHOR_ZERO] == middle:
            return -1
    elif levels != SHIFTED:
        stage, zero = step, middle
    else:
        stage, zero = 1 + step % 2, int(state[ANCHOR_ZERO]) + step // 2 - 2
        if zero < 0 or zero >= 1 << num_bits:
            return -1
    centre = state[LAST] if stage == 2 else state[ANCHOR]
    factor = 1.0
    for i in range(CANDIDATES):
        if stage == 1:
            factor = 1.0 + (15 - 2 * i) * (9.0 / 512.0)
        elif stage == 2:
            factor = 1.0 + (15 - 2 * i) * (1.0 / 512.0)
        tried[i] = round_scale(F(centre * factor), scale_dtype)
        if stage == 0:
            factor *= 0.75
    return zero


@kernel
def squared_errors(
    weights: NDArray[np.float32],
    scales: NDArray[np.float32],
    num_bits: int,
    levels: int,
    zero: int,
    errors: NDArray[np.float64],
) -> None:
    """errors[i] = sum of squared differences between the weights and their grid points, in steps of scales[i]."""
    lowest, highest = _lowest_highest(num_bits, levels, zero)
    n = scales.size
    sums = np.empty(n, np.float32)
    for k in range(n):
        errors[k] = 0.0
    for first in range(0, weights.size, BLOCK):
        block = weights[first : first + BLOCK]
        for k in range(n):
            sums[k] = 0.0
        quads = block.size // 4 * 4
        # The inner loop runs over scales, with four weights at a time: vector code whose order of additions is fixed.
        for i in range(0, quads, 4):
            w0, w1, w2, w3 = block[i], block[i + 1], block[i + 2], block[i + 3]
            for k in range(n):
                scale = scales[k]
                e0 = _error(w0 / scale, lowest, highest)
                e1 = _error(w1 / scale, lowest, highest)
                e2 = _error(w2 / scale, lowest, highest)
                e3 = _error(w3 / scale, lowest, highest)
                sums[k] += e0 * e0 + e1 * e1 + e2 * e2 + e3 * e3
        for i in range(quads, block.size):
            for k in range(n):
                e0 = _error(block[i] / scales[k], lowest, highest)
                sums[k] += e0 * e0
        for k in range(n):
            errors[k] += sums[k]


@kernel
def learn(zero: int, tried: NDArray[np.float32], errors: NDArray[np.float64], state: NDArray[np.float64]) -> None:
    """Take in the errors of the scales of a probe. Of two scales with the same error the larger one is better."""
    last = np.inf
    for i in range(tried.size):
        scale = np.float64(tried[i])
        if scale == np.inf:
            continue
        error = errors[i] * (scale * scale)
        if error < last or (error == last and scale > state[LAST]):
            last = error
            state[LAST] = scale
        if error < state[ERROR] or (error == state[ERROR] and scale > state[SCALE]):
            state[ERROR] = error
            state[SCALE] = scale
            state[ZERO] = zero


@kernel
def magnitude(weights: NDArray[np.float32]) -> float:
    """Sum of |w| in float64."""
    total = 0.0
    for i in range(weights.size):
        total += abs(weights[i])
    return total


@kernel
def write_codes(
    weights: NDArray[np.float32], scale: np.float32, zero: int, num_bits: int, levels: int, codes: NDArray[np.uint8]
) -> None:
    """codes[i] = clip(rint(w / scale) + zero); for one symmetric bit the sign. `zero` (1 for one bit) if scale is 0."""
    if levels != SHIFTED and num_bits == 1:
        for i in range(weights.size):
            codes[i] = 1 if weights[i] >= F(0.0) else 0
    elif scale == 0.0:
        for i in range(weights.size):
            codes[i] = zero
    else:
        lowest, highest = _lowest_highest(num_bits, levels, zero)
        offset = np.int32(zero)
        for i in range(weights.size):
            codes[i] = np.uint8(np.int32(_nearest(weights[i] / scale, lowest, highest)) + offset)


@inlined
def _lowest_highest(num_bits: int, levels: int, zero: int) -> tuple[np.float32, np.float32]:
    """Lowest and highest code minus zero point."""
    top = _top(num_bits, levels)
    if levels == SHIFTED:
        return F(-zero), F(top - zero)
    return F(-top - 1 if levels == ALL else -top), F(top)


@inlined
def _top(num_bits: int, levels: int) -> int:
    return (1 << num_bits) - 1 if levels == SHIFTED else (1 << (num_bits - 1)) - 1


@inlined
def _nearest(steps: np.float32, lowest: np.float32, highest: np.float32) -> np.float32:
    rounded = (steps + ROUNDING) - ROUNDING
    rounded = lowest if rounded < lowest else rounded
    return highest if rounded > highest else rounded


@inlined
def _error(steps: np.float32, lowest: np.float32, highest: np.float32) -> np.float32:
    return steps - _nearest(steps, lowest, highest)


@inlined
def _to_bits(value: np.float32) -> int:
    return int(F(value).view(np.int32))


@inlined
def _from_bits(bits: int) -> np.float32:
    return np.int32(bits).view(np.float32)


# Inside a kernel the same functions, compiled as parts of it.
_extremes, _absmax_scale, _begin_search = inlined(extremes), inlined(absmax_scale), inlined(begin_search)
_search_steps, _probe, _squared_errors = inlined(search_steps), inlined(probe), inlined(squared_errors)
_learn, _magnitude, _write_codes = inlined(learn), inlined(magnitude), inlined(write_codes)


@kernel
def quantize_segments(
    weights: NDArray[np.float32],
    bits: NDArray[np.int32],
    columns: int,
    segment: int,
    num_bits: int,
    levels: int,
    mse: bool,
    scale_dtype: int,
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8],
    codes: NDArray[np.uint8],
) -> int:
    """Quantize rows of `columns` weights, each cut into segments of `segment` weights (the last one may be shorter).

    weights f32[rows * columns], bits the same as i32 -> scales f32[rows * segments], zero_points u8 likewise (asymmetric only), codes u8, one
    per weight. Returns OK, or NOT_FINITE or SCALE_OVERFLOW at the first segment that has no scale.
    """
    state = np.empty(STATE, np.float64)
    tried = np.empty(CANDIDATES, np.float32)
    errors = np.empty(CANDIDATES, np.float64)
    k = 0
    for row in range(0, weights.size, columns):
        for first in range(row, row + columns, segment):
            stop = min(first + segment, row + columns)
            low, high = _extremes(bits[first:stop])
            status, scale, zero = _absmax_scale(low, high, num_bits, levels, scale_dtype)
            if status == OK and mse and scale > 0.0:
                if levels != SHIFTED and num_bits == 1:
                    scale = round_scale(F(2.0 * _magnitude(weights[first:stop]) / (stop - first)), scale_dtype)
                    if scale == np.inf:
                        status = SCALE_OVERFLOW
                else:
                    _begin_search(scale, zero, state)
                    for step in range(_search_steps(levels)):
                        zero = _probe(step, num_bits, levels, scale_dtype, state, tried)
                        if zero >= 0:
                            _squared_errors(weights[first:stop], tried, num_bits, levels, zero, errors)
                            _learn(zero, tried, errors, state)
                    scale, zero = F(state[SCALE]), int(state[ZERO])
            if status != OK:
                return status
            scales[k] = scale
            if levels == SHIFTED:
                zero_points[k] = zero
            k += 1
            _write_codes(weights[first:stop], scale, zero, num_bits, levels, codes[first:stop])
    return OK
