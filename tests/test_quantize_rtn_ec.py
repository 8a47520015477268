"""Unbounded grids without feedback, and how codes become weights again: exact float32 arithmetic."""

import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.rate_tensor import EIGHTHS, RateTensor, log_scale, reconstruct
from qzc.quantize.diag import diag
from qzc.quantize.rtn import NonFiniteError
from qzc.quantize.rtn_ec import rtn_ec
from qzc.quantize.unbounded import quantize_design

F = np.float32


def weights(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal((rows, columns)) * 0.05, np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 13), (600, 130), (4, 3, 5), (40,), ()])
@pytest.mark.parametrize("step", [0.003, 0.05, 1.0])
def test_codes_are_the_nearest(shape: tuple[int, ...], step: float) -> None:
    w = weights(1, max(1, math.prod(shape))).reshape(shape)
    tensor = quantize_design(rtn_ec(w, "F32"), step, None).tensor
    assert tensor.shape == shape
    expected = np.rint(w.reshape(tensor.codes.shape) * (F(1) / F(step)))
    np.testing.assert_array_equal(tensor.codes, expected)
    np.testing.assert_array_equal(reconstruct(tensor), expected.astype(F) * F(step))


def test_codes_that_int16_cannot_hold_are_clipped() -> None:
    w = np.array([[1.0, -1.0, 3e38, -3e38]], F)
    tensor = quantize_design(rtn_ec(w, "F32"), 1e-3, None).tensor
    assert tensor.codes.tolist() == [[1000, -1000, 32767, -32767]]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types(dtype: type) -> None:
    w: NDArray[Any] = weights(20, 30).astype(dtype)
    tensor = quantize_design(rtn_ec(w, "X"), 0.01, None).tensor
    same = quantize_design(rtn_ec(w.astype(F), "X"), 0.01, None).tensor
    np.testing.assert_array_equal(tensor.codes, same.codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    w = weights(5, 6)
    w[3, 2] = bad
    with pytest.raises(NonFiniteError, match="blk"):
        rtn_ec(w, "F32", name="blk")


def test_integers_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="floating-point"):
        rtn_ec(np.zeros((3, 3), np.int32), "I32")


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_constant_tensors(value: float) -> None:
    tensor = quantize_design(rtn_ec(np.full((30, 20), value, F), "F32"), 0.1, None).tensor
    assert (tensor.codes == round(value * 10)).all()


def test_nothing_depends_on_how_rows_are_spread() -> None:
    w = weights(1500, 40)
    backwards = lambda f, items: list(reversed([f(i) for i in reversed(list(items))]))  # noqa: E731
    one, two = (quantize_design(rtn_ec(w, "F32"), 0.02, None, run=run) for run in (map, backwards))
    np.testing.assert_array_equal(one.tensor.codes, two.tensor.codes)
    np.testing.assert_array_equal(one.products, two.products)


def test_classes_follow_the_size_of_rows_and_columns() -> None:
    w = weights(400, 300)
    w[:100] *= 4
    w[:, :50] /= 2
    design = rtn_ec(w, "F32")
    assert design.row_class is not None and design.column_class is not None
    assert design.row_class[:100].mean() - design.row_class[100:].mean() == pytest.approx(16, abs=1)  # two octaves
    assert design.column_class[:50].mean() - design.column_class[50:].mean() == pytest.approx(-8, abs=1)


def test_constants_are_powers_of_two_rounded_once() -> None:
    np.testing.assert_array_equal(EIGHTHS, np.exp2(np.arange(8) / 8).astype(F))
    logs = np.arange(-128, 128).astype(np.int8)
    np.testing.assert_allclose(log_scale(logs, 256), np.exp2(logs / 8.0), rtol=1e-7)
    assert log_scale(np.array([-16, 24], np.int8), 2).tolist() == [0.25, 8.0]


def test_reconstruction_rounds_once_per_product() -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(-300, 300, (9, 11)).astype(np.int16)
    tensor = RateTensor(
        codes,
        F(0.0123),
        (9, 11),
        "F32",
        column_log=rng.integers(-40, 40, 11).astype(np.int8),
        row_log=rng.integers(-40, 40, 9).astype(np.int8),
        gain=rng.integers(90, 140, 11).astype(np.uint8),
    )
    assert tensor.column_log is not None and tensor.row_log is not None and tensor.gain is not None
    for r in range(9):
        for c in range(11):
            k, m = int(tensor.column_log[c]), int(tensor.row_log[r])
            scale = F(F(0.0123) * F(EIGHTHS[k & 7] * F(2.0 ** (k >> 3))))
            scale = F(scale * F(int(tensor.gain[c]) / 128))
            expected = F(F(F(int(codes[r, c])) * scale) * F(EIGHTHS[m & 7] * F(2.0 ** (m >> 3))))
            assert reconstruct(tensor)[r, c] == expected


@pytest.mark.parametrize(
    "change",
    [
        {"codes": np.zeros((3, 4), np.int32)},
        {"codes": np.zeros((3, 5), np.int16)},
        {"codes": np.zeros(12, np.int16)},
        {"step": F(0)},
        {"step": F(np.nan)},
        {"step": F(np.inf)},
        {"column_log": np.zeros(3, np.int8)},
        {"row_class": np.zeros(3, np.int16)},
        {"gain": np.zeros(3, np.uint8)},
        {"class_offset": 256},
        {"states": 7},
        {"restart": 0},
    ],
)
def test_tensors_that_make_no_sense(change: dict[str, object]) -> None:
    good = RateTensor(np.zeros((3, 4), np.int16), F(1), (3, 4), "F32")
    with pytest.raises(InvalidArgumentError):
        replace(good, **change)  # type: ignore[arg-type]


def test_diag_gives_steps_that_fall_with_power() -> None:
    power = np.array([1.0, 4.0, 16.0, 0.0] * 8)
    design = diag(weights(50, 32), "F32", power, damping=1e-6)
    assert design.column_log is not None
    log = design.column_log.reshape(8, 4)
    assert (log[:, 0] - log[:, 1] == 8).all() and (
        log[:, 1] - log[:, 2] == 8
    ).all()  # an octave for four times the power
    assert (log[:, 3] > log[:, 0]).all()  # dead inputs get the coarsest step


def test_diag_with_dead_inputs_only() -> None:
    design = diag(weights(5, 4), "F32", np.zeros(4))
    assert quantize_design(design, 0.01, None).tensor.codes.any()


@pytest.mark.parametrize("power", [np.ones(3), np.array([1, 1, 1, np.nan]), np.array([1, 1, 1, -1.0])])
def test_diag_refuses_powers_that_make_no_sense(power: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidArgumentError):
        diag(weights(5, 4), "F32", power)


@pytest.mark.parametrize("exponent", [-70, -50, 50, 70])
@pytest.mark.parametrize("dead", [False, True])
def test_sums_of_weights_whose_squares_float32_cannot_hold(exponent: int, dead: bool) -> None:
    w = weights(70, 30)
    w[:, 7] *= not dead
    plain = quantize_design(rtn_ec(w, "F32"), 0.25, None)
    other = quantize_design(rtn_ec(np.ldexp(w, exponent), "F32"), np.ldexp(0.25, exponent), None)
    np.testing.assert_array_equal(other.tensor.codes, plain.tensor.codes)
    np.testing.assert_allclose(np.ldexp(other.products, -2 * exponent), plain.products, rtol=1e-5)
    np.testing.assert_allclose(np.ldexp(other.powers, -2 * exponent), plain.powers, rtol=1e-5)
    assert np.ldexp(other.loss, -2 * exponent) == pytest.approx(plain.loss, rel=1e-3)


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_sizes_of_rows_and_columns(rows: int, columns: int) -> None:
    from qzc.quantize import kernels_rate

    rng = np.random.default_rng(rows * columns)
    w = (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-30, 30, (rows, 1))).astype(np.float32)
    w.flags.writeable = False
    across, down = (np.exp2(rng.integers(-9, 9, n) / 8).astype(np.float32) for n in (columns, rows))
    sizes, sums = np.zeros(rows), np.ones(columns)
    kernels_rate.row_sizes(w, across, sizes)
    kernels_rate.add_column_sizes(w, down, sums)
    size = np.abs(w.astype(np.float64))
    np.testing.assert_allclose(sizes, (size / across).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(sums - 1, (size / down[:, None]).sum(axis=0), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_none_are_found_anywhere(bad: float) -> None:
    for at in ((0, 0), (3, 6), (4, 4)):
        w = np.full((5, 7), -3e38, np.float32)
        rtn_ec(w, "F32")
        w[at] = bad
        with pytest.raises(NonFiniteError):
            rtn_ec(w, "F32")
