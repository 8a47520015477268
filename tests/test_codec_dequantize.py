"""Codes to floats, bit for bit against numpy and ml_dtypes."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.dequantize import dequantize, dequantize_rows
from qzc.codec.errors import InvalidArgumentError
from qzc.codec.packing import pack_codes
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, matrix_shape

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


def make(
    args: QuantizationArgs, shape: tuple[int, ...], seed: int, exponents: tuple[int, int] = (-8, 4)
) -> QuantizedTensor:
    rng = np.random.default_rng(seed)
    rows, columns = matrix_shape(shape)
    codes = rng.integers(0, 1 << args.num_bits, rows * columns, np.uint8)
    scale_shape = args.scale_shape(shape)
    with np.errstate(over="ignore", under="ignore"):
        scale = (rng.normal(size=scale_shape) * 10.0 ** rng.integers(*exponents, scale_shape)).astype(
            DTYPES[args.scale_dtype]
        )
    zero_point = None if args.symmetric else rng.integers(0, 1 << args.num_bits, scale_shape, np.uint8)
    return QuantizedTensor(pack_codes(codes, args.storage_bits), scale, zero_point, shape, "F32", args)


def expected(tensor: QuantizedTensor) -> NDArray[np.float32]:
    rows, columns = matrix_shape(tensor.shape)
    args = tensor.args

    def spread(values: NDArray[Any]) -> NDArray[np.float32]:
        if columns == 0:
            return np.zeros((rows, 0), np.float32)
        per_group = values.astype(np.float32).reshape(-1, values.shape[-1])
        return np.broadcast_to(
            np.repeat(per_group, args.group_size or max(1, columns), axis=1)[:, :columns], (rows, columns)
        )

    zero = np.float32(args.symmetric_zero_point) if tensor.zero_point is None else spread(tensor.zero_point)
    with np.errstate(all="ignore"):
        floats: NDArray[np.float32] = (tensor.codes.reshape(rows, columns).astype(np.float32) - zero) * spread(
            tensor.scale
        )
    return floats.reshape(tensor.shape)


def assert_same_bits(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    """Equal bits, but any NaN for a NaN."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    nan = np.isnan(wanted)
    assert (np.isnan(found) == nan).all()
    assert found[~nan].tobytes() == wanted[~nan].tobytes()


@given(
    num_bits=st.integers(1, 8),
    symmetric=st.booleans(),
    strategy=st.sampled_from(["tensor", "channel", 1, 3, 32, 128]),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    shape=st.sampled_from([(), (1,), (7,), (3, 5), (4, 100), (2, 3, 45), (0, 4), (4, 0), (300, 31), (1, 9001)]),
    dtype=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 100),
)
def test_against_numpy(
    num_bits: int, symmetric: bool, strategy: Any, scale_dtype: Any, shape: tuple[int, ...], dtype: str, seed: int
) -> None:
    group = strategy if isinstance(strategy, int) else None
    kind: Any = "group" if group else strategy
    args = QuantizationArgs(num_bits, symmetric, kind, group, scale_dtype=scale_dtype)
    tensor = make(args, shape, seed)
    with np.errstate(all="ignore"):
        wanted = expected(tensor).astype(DTYPES[dtype])
    assert_same_bits(tensor.dequantize(dtype), wanted)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("exponents", [(-45, -30), (-10, -3), (0, 6), (30, 39)])
def test_rounding_of_tiny_and_huge_values(dtype: str, exponents: tuple[int, int]) -> None:
    """Subnormals, overflow to infinity, ties: whatever float32 holds."""
    tensor = make(QuantizationArgs(8, group_size=4, scale_dtype="float32"), (300, 64), 1, exponents)
    with np.errstate(all="ignore"):
        assert_same_bits(tensor.dequantize(DTYPES[dtype]), expected(tensor).astype(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_float32_pattern_of_the_upper_bits_rounds_as_in_numpy(dtype: str) -> None:
    """Code 1 of a 1-bit grid with zero point 0 is the scale itself: scales are any float32, infinities and NaN too."""
    high = np.arange(0, 1 << 32, 1 << 12, dtype=np.uint64).astype(np.uint32)
    scale = (
        np.concatenate([high + low for low in (0, 1, 0x7FF, 0x800, 0x801, 0xFFF)]).astype(np.uint32).view(np.float32)
    )
    args = QuantizationArgs(1, symmetric=False, strategy="channel", group_size=None, scale_dtype="float32")
    shape = (scale.size, 1)
    tensor = QuantizedTensor(
        np.full(-(-scale.size // 8), 255, np.uint8), scale.reshape(shape), np.zeros(shape, np.uint8), shape, "F32", args
    )
    with np.errstate(all="ignore"):
        assert_same_bits(tensor.dequantize(dtype)[:, 0], scale.astype(DTYPES[dtype]))


def test_row_ranges_from_inside_a_byte() -> None:
    for args in (
        QuantizationArgs(3, group_size=5),
        QuantizationArgs(2, False, "channel", None),
        QuantizationArgs(1, True, "tensor", None),
    ):
        tensor = make(args, (20, 13), 3)
        whole = tensor.dequantize()
        for start, stop in ((0, 20), (3, 4), (7, 7), (5, 19)):
            which = slice(None) if args.strategy == "tensor" else slice(start, stop)
            out = np.empty((stop - start, 13), np.float32)
            zero_point = None if tensor.zero_point is None else tensor.zero_point[which]
            dequantize_rows(tensor.packed, start * 13, tensor.scale[which], zero_point, args, out)
            assert (out == whole[start:stop]).all()


def test_into_a_given_array() -> None:
    tensor = make(QuantizationArgs(), (4, 200), 0)
    out = np.zeros((4, 200), np.float16)
    assert dequantize(tensor, np.float16, out) is out
    assert (out == tensor.dequantize("float16")).all() and out.any()
    read_only = np.zeros((4, 200), np.float16)
    read_only.flags.writeable = False
    for wrong in (
        np.zeros((4, 200), np.float32),
        np.zeros((200, 4), np.float16),
        np.zeros((4, 400), np.float16)[:, ::2],
        read_only,
    ):
        with pytest.raises(InvalidArgumentError, match="out must be"):
            dequantize(tensor, np.float16, wrong)


@pytest.mark.parametrize("dtype", [np.int8, "float8", ml_dtypes.float8_e4m3fn, object(), "complex64"])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot dequantize to"):
        make(QuantizationArgs(), (2, 2), 0).dequantize(dtype)


def test_rows_of_wrong_shapes_are_refused() -> None:
    tensor = make(QuantizationArgs(4, False), (4, 200), 0)
    out = np.zeros((4, 200), np.float32)
    with pytest.raises(InvalidArgumentError, match="do not hold"):
        dequantize_rows(tensor.packed, 1, tensor.scale, tensor.zero_point, tensor.args, out)
    with pytest.raises(InvalidArgumentError, match="must have shape"):
        dequantize_rows(tensor.packed, 0, tensor.scale[:3], tensor.zero_point, tensor.args, out)
    with pytest.raises(InvalidArgumentError, match="must have shape"):
        dequantize_rows(tensor.packed, 0, tensor.scale, None, tensor.args, out)
    with pytest.raises(InvalidArgumentError, match="zero point must be"):
        dequantize_rows(tensor.packed, 0, tensor.scale, tensor.scale.view(np.uint8), tensor.args, out)


def test_large_tensors_go_in_slabs() -> None:
    tensor = make(QuantizationArgs(4), (2100, 2048), 9)
    assert tensor.dequantize().tobytes() == expected(tensor).tobytes()
