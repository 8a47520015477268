"""Rounding to nearest against a slow reference written from docs/quantization.md, and against values worked by hand."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.tensor import QuantizationArgs, ScaleMethod, Strategy, matrix_shape
from qzc.quantize import quantize

F = np.float32
SMALLEST = {"float16": F(2.0**-24), "bfloat16": F(2.0**-133), "float32": F(2.0**-149)}
STRATEGIES: list[tuple[Strategy, int | None]] = [("tensor", None), ("channel", None), ("group", 32), ("group", 5)]
METHODS: list[ScaleMethod] = ["absmax", "mse"]

Found = tuple[float, float, int]
"""Error, minus the scale, and zero point: the least of several is the one to take; of equal errors the larger scale."""


def stored(value: Any, scale_dtype: str) -> np.float32:
    """A positive number as the scale that represents it."""
    dtype = ml_dtypes.bfloat16 if scale_dtype == "bfloat16" else scale_dtype
    return max(F(F(value).astype(dtype)), SMALLEST[scale_dtype])


def errors(w: NDArray[np.float32], scales: NDArray[np.float32], low: int, high: int) -> NDArray[np.float64]:
    """Squared error of each scale: in steps, four weights at a time in float32, 1024 at a time in float64."""
    total = np.zeros(len(scales))
    for first in range(0, len(w), 1024):
        block = w[first : first + 1024]
        steps = block[:, None] / scales
        square = (steps - np.clip(np.rint(steps), F(low), F(high))) ** 2
        part = np.zeros(len(scales), F)
        whole = len(block) // 4 * 4
        for i in range(0, whole, 4):
            part += ((square[i] + square[i + 1]) + square[i + 2]) + square[i + 3]
        for i in range(whole, len(block)):
            part += square[i]
        total += part
    return total * scales.astype(np.float64) ** 2


def search(
    w: NDArray[np.float32], scale: np.float32, zero: int, args: QuantizationArgs, all_levels: bool
) -> tuple[np.float32, int]:
    top = 2**args.num_bits - 1
    middle = 2 ** (args.num_bits - 1)

    def tried(centre: float, factors: list[float], zero: int) -> Found:
        scales = np.array([stored(centre * f, args.scale_dtype) for f in factors], F)
        low, high = ((0 if all_levels else 1) - middle, middle - 1) if args.symmetric else (-zero, top - zero)
        found = zip(errors(w, scales, low, high), scales, strict=True)
        return min((float(e), -float(s), zero) for e, s in found if np.isfinite(s))

    wide = [1 + (15 - 2 * i) * 9 / 512 for i in range(16)]
    fine = [1 + (15 - 2 * i) / 512 for i in range(16)]
    coarse = [
        tried(float(scale), [0.75**i for i in range(16)], z)
        for z in dict.fromkeys([zero] if args.symmetric else [zero, middle])
    ]
    _, minus_anchor, anchor_zero = min(coarse, key=lambda f: f[:2])
    best = [min(coarse, key=lambda f: f[:2])]
    for z in [anchor_zero] if args.symmetric else range(max(anchor_zero - 1, 0), min(anchor_zero + 1, top) + 1):
        second = tried(-minus_anchor, wide, z)
        best += [second, tried(-second[1], fine, z)]
    _, minus_scale, zero = min(best, key=lambda f: f[:2])
    return F(-minus_scale), zero


def segment_grid(w: NDArray[np.float32], args: QuantizationArgs, all_levels: bool) -> tuple[np.float32, int]:
    """Scale and zero point of weights that share them."""
    top: float = 2**args.num_bits - 1
    if args.symmetric:
        top = 2 ** (args.num_bits - 1) - (0.5 if all_levels else 1)
    low, high = min(w.min(), F(0)), max(w.max(), F(0))
    middle = 2 ** (args.num_bits - 1)
    if low == high:
        return F(0), middle if args.symmetric else 0
    if args.symmetric and args.num_bits == 1:
        mean = 2 * sum(abs(float(x)) for x in w) / len(w)
        return stored(max(-low, high) if args.scale_method == "absmax" else mean, args.scale_dtype), 1
    scale = stored((max(-low, high) if args.symmetric else high - low) / F(top), args.scale_dtype)
    zero = middle if args.symmetric else int(np.clip(np.rint(-low / scale), 0, top))
    return (scale, zero) if args.scale_method == "absmax" else search(w, scale, zero, args, all_levels)


def segments(args: QuantizationArgs, rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Start and stop, in row-major order, of the weights of each scale."""
    if args.strategy == "tensor":
        yield 0, rows * columns
        return
    for row in range(rows):
        for first in range(0, columns, args.group_size or columns):
            yield row * columns + first, row * columns + min(first + (args.group_size or columns), columns)


def check(w: NDArray[Any], args: QuantizationArgs, all_levels: bool = False) -> None:
    """Codes, scales and zero points of `quantize` are those of the definition."""
    result = quantize(w, args, "F32", all_levels=all_levels)
    flat = w.astype(F).ravel()
    codes, scales, zeros = result.codes.ravel(), result.scale.astype(F).ravel(), result.zero_point
    assert (result.shape, result.dtype, result.args) == (w.shape, "F32", args)
    top = 2**args.num_bits - 1
    for k, (first, stop) in enumerate(segments(args, *matrix_shape(w.shape))):
        part = flat[first:stop]
        scale, zero = segment_grid(part, args, all_levels)
        assert scales[k] == scale, (k, part)
        if zeros is not None:
            assert zeros.ravel()[k] == zero
        if args.symmetric and args.num_bits == 1:
            want = (part >= 0).astype(np.uint8)
        elif scale == 0:
            want = np.full(len(part), zero, np.uint8)
        else:
            want = np.clip(np.rint(part / scale) + F(zero), 1 if args.symmetric and not all_levels else 0, top).astype(
                np.uint8
            )
        np.testing.assert_array_equal(codes[first:stop], want)


def args_for(
    bits: int, strategy: tuple[Strategy, int | None], symmetric: bool, method: ScaleMethod
) -> QuantizationArgs:
    return QuantizationArgs(bits, symmetric, *strategy, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_reference(bits: int, symmetric: bool, method: ScaleMethod) -> None:
    w = (np.random.default_rng(bits).standard_t(4, (7, 45)) * 0.05).astype(F)
    for strategy in STRATEGIES:
        for all_levels in (False, True):
            check(w, args_for(bits, strategy, symmetric, method), all_levels)


@given(
    st.sampled_from([(1, 1), (1, 7), (9, 1), (5, 3), (3, 33), (2, 3, 5), (3, 2, 2, 3), (11,), ()]),
    st.integers(1, 8),
    st.sampled_from(STRATEGIES),
    st.booleans(),
    st.sampled_from(METHODS),
    st.sampled_from(["float16", "bfloat16", "float32"]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e-42, 1e-9, 1.0, 1e3]),
)
@settings(max_examples=150)
def test_any_shape(
    shape: tuple[int, ...],
    bits: int,
    strategy: tuple[Strategy, int | None],
    symmetric: bool,
    method: ScaleMethod,
    scale_dtype: Any,
    seed: int,
    magnitude: float,
) -> None:
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal(shape) * magnitude + rng.choice([0.0, 2.0]) * magnitude).astype(F)
    w = np.where(rng.random(shape) < 0.1, F(-0.0), w)
    check(w, replace(args_for(bits, strategy, symmetric, method), scale_dtype=scale_dtype))


SPECIAL = {
    "zeros": np.zeros((2, 9), F),
    "minus zero": np.full((2, 9), -0.0, F),
    "constant": np.full((2, 9), 0.37, F),
    "negative constant": np.full((2, 9), -0.37, F),
    "one row of zeros": np.array([[0.0] * 5, [1.0, -2.0, 3.0, -4.0, 5.0]], F),
    "outlier": np.array([[0.01, -0.02, 0.03, 1e4, -0.01]], F),
    "subnormal": np.array([[1e-45, -3e-45, 7e-45, 0.0]], F),
    "between subnormal and float16": np.array([[1e-8, -3e-8, 5e-9, 1e-10]], F),
    "largest finite scales": np.array([[2.0, -6e4, 3e4]], F),
}


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_special_values(special: str, scale_dtype: Any) -> None:
    for bits, strategy, symmetric, method in product((1, 2, 4, 8), STRATEGIES[:3], (True, False), METHODS):
        if bits == 1 and special == "largest finite scales":
            continue  # 1.2e5 does not fit float16: test_quantize_inputs
        check(SPECIAL[special], replace(args_for(bits, strategy, symmetric, method), scale_dtype=scale_dtype))


def test_huge_weights() -> None:
    w = np.array([[3.4e38, -1e38, 2e38], [1e-38, 1e-40, -1e-38]], F)
    for scale_dtype in ("bfloat16", "float32"):
        for method in METHODS:
            check(w, QuantizationArgs(4, True, "channel", None, method, scale_dtype))


@pytest.mark.parametrize(
    ("bits", "symmetric", "method", "weights", "scale", "zero", "codes"),
    [
        # max|w| = 3 and 3 positive levels: scale 1; halves go to the even neighbour, and code 0 is never used.
        (3, True, "absmax", [-3.0, -2.5, -1.5, -0.5, 0.5, 1.5, 3.0], 1.0, None, [1, 2, 2, 4, 4, 6, 7]),
        # Range -1 .. 2 in 3 steps: scale 1, zero point 1.
        (2, False, "absmax", [-1.0, 0.0, 0.5, 1.5, 2.0], 1.0, 1, [0, 1, 1, 3, 3]),
        # The range always holds 0: 0 .. 3, not 2 .. 3.
        (2, False, "absmax", [2.0, 3.0], 1.0, 0, [2, 3]),
        (2, False, "absmax", [-2.0, -3.0], 1.0, 3, [1, 0]),
        # One bit: the levels are -scale/2 and scale/2. Both zeros count as positive.
        (1, True, "absmax", [-1.0, -0.25, -0.0, 0.0, 0.5], 1.0, None, [0, 0, 1, 1, 1]),
        (1, True, "mse", [-1.0, 2.0, 3.0], 4.0, None, [0, 1, 1]),
        # Rounded to float16, 0.1 / 7 is 0.01428222...: 0.1 is 7.0017 steps and stays on the last level.
        (4, True, "absmax", [0.1, -0.1, 0.0], 0.0142822265625, None, [15, 1, 8]),
        # An outlier is clipped if that pays: 1 .. 7 exactly with scale 1, at an error of 0.5 in 7.5.
        (4, True, "mse", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5, -1.0, -2.0, -3.0] * 9, 1.0, None, None),
        # Zeros: the code of the zero point, and 1 for one bit.
        (4, True, "mse", [0.0, -0.0], 0.0, None, [8, 8]),
        (8, False, "mse", [0.0, -0.0], 0.0, 0, [0, 0]),
        (1, True, "mse", [0.0, -0.0], 0.0, None, [1, 1]),
        # The scale would be 2^-26 / 7 and round to 0 in float16: it becomes 2^-24, the smallest there is.
        (4, True, "absmax", [2.0**-26], 2.0**-24, None, [8]),
        # max|w| / 7 = 2^-24 * 3/7 would round to 0 as well, and 3/2 of 2^-24 to 2: a tie, to even.
        (4, True, "absmax", [3 * 2.0**-24, 1.5 * 2.0**-24], 2.0**-24, None, [11, 10]),
    ],
)
def test_by_hand(
    bits: int,
    symmetric: bool,
    method: ScaleMethod,
    weights: list[float],
    scale: float,
    zero: int | None,
    codes: list[int] | None,
) -> None:
    result = quantize(np.array([weights], F), QuantizationArgs(bits, symmetric, "channel", None, method), "F32")
    if codes is None:
        assert result.scale[0, 0] == pytest.approx(scale, abs=0.03)
        assert result.codes.ravel()[6] == 15
    else:
        assert float(result.scale[0, 0]) == scale
        assert result.codes.ravel().tolist() == codes
    assert (None if result.zero_point is None else int(result.zero_point[0, 0])) == zero


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_error_is_at_most_half_a_step(bits: int, symmetric: bool) -> None:
    """On absmax grids no weight is clipped by more than the rounding of the scale."""
    w = np.random.default_rng(3).standard_normal((20, 64)).astype(F)
    args = QuantizationArgs(bits, symmetric, "channel", None, "absmax", "float32")
    result = quantize(w, args, "F32")
    # The zero point of an asymmetric grid is rounded too: that shifts the range by up to half a step.
    assert np.all(np.abs(result.dequantize() - w) <= result.scale * (0.5001 if symmetric else 1.0001))
