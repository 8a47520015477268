"""What may be quantized: dtypes, memory layouts, sizes; threads and slabs; and what is refused, in which words."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, Strategy
from qzc.quantize import NonFiniteError, quantize, rtn

GROUP = QuantizationArgs(4, True, "group", 16, "mse")
TENSOR = QuantizationArgs(3, False, "tensor", None, "mse")


def same(a: QuantizedTensor, b: QuantizedTensor) -> None:
    np.testing.assert_array_equal(a.packed, b.packed)
    np.testing.assert_array_equal(a.scale, b.scale)
    assert (a.zero_point is None) == (b.zero_point is None)
    if a.zero_point is not None and b.zero_point is not None:
        np.testing.assert_array_equal(a.zero_point, b.zero_point)


def normal(*shape: int) -> NDArray[np.float32]:
    return (np.random.default_rng(5).standard_normal(shape) * 0.04).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", ">f4", ">f2", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("args", [GROUP, TENSOR])
def test_dtypes(dtype: str, args: QuantizationArgs) -> None:
    """Every dtype is taken for the float32 numbers that it represents; float64 is rounded to them."""
    w = normal(6, 40).astype(getattr(ml_dtypes, dtype, dtype))
    result = quantize(w, args, "X")
    same(result, quantize(w.astype(np.float32), args, "F32"))
    assert result.dtype == "X"


def test_float64_is_rounded_once() -> None:
    """1 + 2^-24 + 2^-60 rounds up to 1 + 2^-23 in float32, and by way of a shorter format it would not."""
    w = np.array([[1 + 2**-24 + 2**-50, 1.0]])
    scale = quantize(w, QuantizationArgs(1, True, "channel", None, "absmax", "float32"), "F64").scale
    assert scale[0, 0] == np.float32(1 + 2**-23)


def test_memory_layouts(tmp_path: Path) -> None:
    w = normal(8, 24)
    want = quantize(w, GROUP, "F32")
    same(quantize(np.asfortranarray(w), GROUP, "F32"), want)
    same(quantize(np.repeat(w, 2, axis=1)[:, ::2], GROUP, "F32"), want)
    raw = np.zeros(w.nbytes + 1, np.uint8)
    raw[1:] = w.reshape(-1).view(np.uint8)
    same(quantize(raw[1:].view(np.float32).reshape(w.shape), GROUP, "F32"), want)
    w.tofile(tmp_path / "w")
    mapped = np.memmap(tmp_path / "w", np.float32, "r", shape=w.shape)
    same(quantize(mapped, GROUP, "F32"), want)
    assert mapped.flags.writeable is False
    w.flags.writeable = False
    same(quantize(w, GROUP, "F32"), want)


def test_the_input_is_left_alone() -> None:
    w = normal(4, 20)
    before = w.copy()
    quantize(w, GROUP, "F32")
    quantize(w, TENSOR, "F32")
    np.testing.assert_array_equal(w, before)
    assert w.flags.writeable


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 4)])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_elements(shape: tuple[int, ...], strategy: Strategy, symmetric: bool) -> None:
    args = QuantizationArgs(4, symmetric, strategy, 16 if strategy == "group" else None)
    result = quantize(np.zeros(shape, np.float32), args, "F32")
    assert result.packed.size == 0
    assert result.scale.shape == args.scale_shape(shape)
    assert not result.scale.any()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(("strategy", "group_size"), [("tensor", None), ("channel", None), ("group", 8)])
def test_slabs_and_threads(
    bits: int, strategy: Strategy, group_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 1 to 37 weights, so that codes of neighbouring rows share bytes; slabs of a few rows, in any order."""
    for columns, method, symmetric in product((1, 3, 36, 37), ("absmax", "mse"), (True, False)):
        w = normal(43, columns)
        args = QuantizationArgs(bits, symmetric, strategy, group_size, method)  # type: ignore[arg-type]
        monkeypatch.setattr(rtn, "SLAB", 1 << 18)
        whole = quantize(w, args, "F32")
        monkeypatch.setattr(rtn, "SLAB", 60)
        slabs = quantize(w, args, "F32")
        with ThreadPoolExecutor(4) as pool:
            same(quantize(w, args, "F32", run=pool.map), slabs)
        if strategy != "tensor" or method == "absmax":  # the sums of a search are those of the slabs
            same(slabs, whole)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a float64 tensor never more than a slab is converted at a time."""
    sizes = []
    convert = rtn.float32_weights

    def spy(tensor: NDArray[Any], rows: slice) -> NDArray[np.float32]:
        weights = convert(tensor, rows)
        sizes.append(weights.size)
        return weights

    monkeypatch.setattr(rtn, "float32_weights", spy)
    quantize(np.zeros((3000, 301)), QuantizationArgs(4, True, "channel", None), "F64")
    assert sum(sizes) == 3000 * 301
    assert max(sizes) <= rtn.SLAB


@pytest.mark.parametrize("args", [GROUP, TENSOR])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_not_finite(args: QuantizationArgs, bad: float, dtype: str) -> None:
    w = normal(2, 5, 8)
    w[1, 2, 3] = w[1, 4, 7] = bad
    with pytest.raises(
        NonFiniteError, match=r"^layer\.w has 2 of 80 weights .* the first at \[1, 2, 3\]; .*--nonfinite"
    ):
        quantize(w.astype(getattr(ml_dtypes, dtype, dtype)), args, "F32", name="layer.w")


def test_float64_beyond_float32() -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinite in float32"):
        quantize(np.array([[1e39, 1.0]]), GROUP, "F64")


def test_not_finite_scalar() -> None:
    with pytest.raises(NonFiniteError, match=r"1 of 1 .* at \[\]"):
        quantize(np.array(np.nan, np.float32), TENSOR, "F32")


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
@pytest.mark.parametrize(
    ("weight", "bits", "symmetric", "method", "scale_dtype", "remedy"),
    [
        (7 * 65520.0, 4, True, "absmax", "float16", "use --scale-dtype bfloat16 or float32, or exclude"),
        (7 * 65520.0, 4, True, "mse", "float16", "use --scale-dtype bfloat16 or float32, or exclude"),
        (4e4, 1, True, "mse", "float16", "use --scale-dtype bfloat16 or float32, or exclude"),
        (3.4e38, 2, True, "absmax", "bfloat16", "use --scale-dtype float32, or exclude"),
        (3e38, 4, False, "absmax", "float32", "float32; use exclude|float32; exclude"),
    ],
)
def test_scale_out_of_range(
    weight: float, bits: int, symmetric: bool, method: Any, scale_dtype: Any, remedy: str, strategy: Strategy
) -> None:
    args = QuantizationArgs(bits, symmetric, strategy, None, method, scale_dtype)
    with pytest.raises(InvalidArgumentError, match=remedy) as caught:
        quantize(np.array([[weight, -weight]], np.float32), args, "F32", name="big")
    assert not isinstance(caught.value, NonFiniteError)
    assert "big has weights up to" in str(caught.value)


def test_largest_float16_scale_fits() -> None:
    """65519.99 rounds down to 65504, the largest float16."""
    w = np.array([[7 * 65519.0]], np.float32)
    assert quantize(w, QuantizationArgs(4, True, "channel", None, "absmax"), "F32").scale[0, 0] == 65504


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "uint8", "complex64"])
def test_not_floating_point(dtype: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^ids is {dtype}; only floating-point"):
        quantize(np.zeros((2, 2), dtype), GROUP, "I64", name="ids")


def test_import_is_light() -> None:
    """Planning needs this package, and must not wait for a compiler to load."""
    code = "import qzc.quantize, sys; assert 'numba' not in sys.modules and 'ml_dtypes' not in sys.modules"
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
