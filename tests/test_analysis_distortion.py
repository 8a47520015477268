"""Distortion in pieces against the same sums over the whole tensor."""

from concurrent.futures import ThreadPoolExecutor
from math import inf, log10
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.analysis import distortion
from qzc.analysis.distortion import Distortion, weight_distortion
from qzc.codec.errors import InvalidArgumentError
from qzc.codec.tensor import QuantizationArgs
from qzc.quantize.rtn import quantize

GRIDS = [
    QuantizationArgs(4, True, "group", 24, "mse"),
    QuantizationArgs(3, False, "group", 128, "absmax"),
    QuantizationArgs(4, True, "channel", None, "absmax"),
    QuantizationArgs(1, True, "channel", None, "absmax", "float32"),
    QuantizationArgs(8, False, "tensor", None, "absmax"),
]
# Rows of an odd number of codes, rows longer than a slab, a 3-D tensor, no rows, no columns, no dimensions.
SHAPES = [(64, 48), (301, 13), (3, 3001), (4, 7, 9), (0, 8), (8, 0), (5,), ()]


def weights_of(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.asarray(np.random.default_rng(1).standard_normal(shape), np.float32)


@pytest.mark.parametrize("args", GRIDS, ids=lambda args: f"{args.strategy}{args.num_bits}")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pieces_add_up_to_the_whole(
    shape: tuple[int, ...], args: QuantizationArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distortion, "SLAB_ELEMENTS", 1000)  # so that there are pieces
    weights = weights_of(shape)
    tensor = quantize(weights, args, dtype="F32")
    error = weights.astype(np.float64) - tensor.dequantize()
    measured = weight_distortion(weights, tensor)
    assert measured.weight_energy == pytest.approx(np.sum(weights.astype(np.float64) ** 2), rel=1e-12)
    assert measured.error_energy == pytest.approx(np.sum(error**2), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_every_float_dtype(dtype: Any) -> None:
    weights: NDArray[Any] = weights_of((16, 64)).astype(dtype)
    tensor = quantize(weights, GRIDS[0], dtype="F32")
    error = weights.astype(np.float64) - tensor.dequantize()
    assert weight_distortion(weights, tensor).error_energy == pytest.approx(np.sum(error**2), rel=1e-12)


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortion, "SLAB_ELEMENTS", 4096)
    weights = weights_of((256, 256))
    tensor = quantize(weights, GRIDS[0], dtype="F32")
    with ThreadPoolExecutor(4) as pool:
        assert weight_distortion(weights, tensor, run=pool.map) == weight_distortion(weights, tensor)


def test_snr_in_decibels() -> None:
    assert Distortion(100.0, 1.0).snr_db == pytest.approx(20.0)
    assert Distortion(2.0, 1.0).snr_db == pytest.approx(10 * log10(2))
    assert Distortion(1.0, 0.0).snr_db == inf
    assert Distortion(0.0, 0.0).snr_db == inf
    assert Distortion(0.0, 1.0).snr_db == -inf
    assert Distortion(1e-300, 1e300).snr_db == pytest.approx(-6000.0)  # the quotient itself would be 0
    assert Distortion(1.0, 2.0) + Distortion(3.0, 4.0) == Distortion(4.0, 6.0)


def test_weights_on_the_grid_have_no_error() -> None:
    tensor = quantize(weights_of((8, 64)), GRIDS[0], dtype="F32")
    measured = weight_distortion(tensor.dequantize(), tensor)
    assert measured.error_energy == 0.0 and measured.snr_db == inf
    zeros = np.zeros((4, 64), np.float32)
    assert weight_distortion(zeros, quantize(zeros, GRIDS[0], dtype="F32")) == Distortion(0.0, 0.0)


def test_other_shapes_are_refused() -> None:
    tensor = quantize(weights_of((8, 8)), GRIDS[0], dtype="F32")
    with pytest.raises(InvalidArgumentError, match=r"\(8, 4\)"):
        weight_distortion(weights_of((8, 4)), tensor)
