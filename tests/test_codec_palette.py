"""Palettes against numpy's unique."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.errors import CorruptionError, InvalidArgumentError
from qzc.codec.packing import slice_packed, unpack_codes
from qzc.codec.palette import find_palette, index_bits, index_width, indices, restore

Bytes = NDArray[np.uint8]


def elements(count: int, values: int, size: int, seed: int) -> Bytes:
    """`count` elements of `size` bytes, of at most `values` different ones."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (values, size), np.uint8)[rng.integers(0, values, count)].reshape(-1)


def as_numbers(data: Bytes, size: int) -> list[int]:
    raw = data.tobytes()
    return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 700),
    st.sampled_from([1, 2, 3, 4, 5, 16, 17, 200, 256, 300]),
    st.integers(1, 256),
    st.integers(0, 1000),
)
def test_palette_indices_and_back(size: int, count: int, values: int, limit: int, seed: int) -> None:
    data = elements(count, values, size, seed)
    numbers = as_numbers(data, size)
    palette = find_palette(data, size, limit)
    if len(set(numbers)) > limit:
        assert palette is None
        return
    assert palette is not None and palette.shape == (len(set(numbers)), size)
    assert as_numbers(palette.reshape(-1), size) == sorted(set(numbers))
    packed = indices(data, palette)
    width = index_width(len(palette))
    codes = unpack_codes(packed, count, width)
    assert [as_numbers(palette[code], size)[0] for code in codes] == numbers
    assert packed.tobytes() == slice_packed(packed, 0, count, width).tobytes()  # zeros behind the last index
    out = np.full(data.size, 0xAA, np.uint8)
    restore(packed, palette, out)
    assert (out == data).all()
    first = seed % count
    part = np.zeros((count - first) * size, np.uint8)
    restore(packed[first * width // 8 :], palette, part, first)
    assert (part == data[first * size :]).all()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_more_elements_than_fit_a_cache(size: int) -> None:
    data = elements(300_001, 16 if size == 1 else 250, size, size)
    palette = find_palette(data, size)
    assert palette is not None
    out = np.empty(data.size, np.uint8)
    restore(indices(data, palette), palette, out)
    assert (out == data).all()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_one_value_too_many_at_the_very_end(size: int) -> None:
    data = np.zeros((100_000, size), np.uint8)
    data[:256, 0] = np.arange(256)
    assert find_palette(data.reshape(-1), size) is not None
    data[-1, 1] = 1
    assert find_palette(data.reshape(-1), size) is None
    assert find_palette(data.reshape(-1)[: -(100_000 - 300) * size], size, 255) is None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_floats_are_told_apart_by_their_bits(dtype: Any) -> None:
    values = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, 1], np.float64).astype(dtype)
    data = np.tile(values, 50).view(np.uint8)
    palette = find_palette(data, values.itemsize)
    assert palette is not None and len(palette) == 6
    out = np.empty(data.size, np.uint8)
    restore(indices(data, palette), palette, out)
    assert (out == data).all()


def test_widths_of_indices() -> None:
    assert [index_bits(values) for values in (1, 2, 3, 4, 5, 16, 17, 256)] == [1, 1, 2, 2, 3, 4, 5, 8]
    assert [index_width(values) for values in (1, 2, 3, 4, 5, 16, 17, 256)] == [1, 1, 2, 2, 4, 4, 8, 8]


def test_tensors_without_a_palette() -> None:
    assert find_palette(np.zeros(0, np.uint8), 2) is None
    assert find_palette(np.zeros(9, np.uint8), 3) is None
    assert find_palette(np.zeros(9, np.uint8), 2) is None
    assert find_palette(np.random.default_rng(0).normal(size=10_000).view(np.uint8), 8) is None


def test_read_only_and_unaligned_memory() -> None:
    data = np.frombuffer(b"\0" + b"abcdabcdabceabcd", np.uint8, offset=1)
    palette = find_palette(data, 4)
    assert palette is not None and [bytes(value) for value in palette] == [b"abcd", b"abce"]
    packed = indices(data, palette)
    assert packed.tolist() == [0b0100]
    out = np.zeros(17, np.uint8)
    restore(packed, palette, out[1:])
    assert out[1:].tobytes() == data.tobytes()


def test_an_index_beyond_the_palette_is_corruption() -> None:
    palette = np.array([[1, 2], [3, 4], [5, 6]], np.uint8)
    out = np.zeros(8, np.uint8)
    restore(np.array([0b10_01_00_10], np.uint8), palette, out)
    assert out.tolist() == [5, 6, 1, 2, 3, 4, 5, 6]
    with pytest.raises(CorruptionError, match="an index is 3, but the palette has 3 values"):
        restore(np.array([0b11_01_00_10], np.uint8), palette, out)


def test_arguments_that_make_no_sense() -> None:
    palette, data = np.array([[1, 2]], np.uint8), np.array([1, 2, 1, 2], np.uint8)
    with pytest.raises(InvalidArgumentError, match="not in the palette"):
        indices(np.array([1, 2, 1, 3], np.uint8), palette)
    with pytest.raises(InvalidArgumentError, match="not in the palette"):
        indices(np.arange(8, dtype=np.uint8), np.array([[1, 2, 3, 4]], np.uint8))
    with pytest.raises(InvalidArgumentError, match="whole number of elements"):
        indices(data[:3], palette)
    with pytest.raises(InvalidArgumentError, match="out must be"):
        restore(np.zeros(1, np.uint8), palette, np.zeros(3, np.uint8))
    with pytest.raises(InvalidArgumentError, match="bytes hold"):
        restore(np.zeros(0, np.uint8), palette, np.zeros(4, np.uint8))
    with pytest.raises(InvalidArgumentError, match="1 to 256 values"):
        find_palette(data, 2, 257)
    with pytest.raises(InvalidArgumentError, match="1 to 256 values"):
        indices(data, np.zeros((257, 2), np.uint8))
    with pytest.raises(InvalidArgumentError, match="a palette is uint8"):
        indices(data, np.zeros((2, 3), np.uint8))
