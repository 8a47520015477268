"""Packed buffers and counts, against one-line definitions."""

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.buffers import read_only
from qzc.codec.errors import InvalidArgumentError
from qzc.codec.histogram import byte_counts, code_counts, nibble_counts
from qzc.codec.packing import pack_codes, slice_packed, unpack_codes
from qzc.codec.tensor import packed_nbytes

WIDTHS = (1, 2, 4, 8)


def slow_pack(codes: NDArray[np.uint8], width: int) -> bytes:
    bits = sum(int(code) << i * width for i, code in enumerate(codes))
    return bits.to_bytes(packed_nbytes(codes.size, width), "little")


def slow_nibble_counts(buffer: NDArray[np.uint8]) -> list[int]:
    nibbles = np.concatenate([buffer & 15, buffer >> 4])
    return [int((nibbles == value).sum()) for value in range(16)]


@st.composite
def codes_and_width(draw: st.DrawFn) -> tuple[NDArray[np.uint8], int]:
    width = draw(st.sampled_from(WIDTHS))
    size = draw(st.integers(0, 300))
    return np.random.default_rng(draw(st.integers(0, 1000))).integers(0, 1 << width, size, np.uint8), width


@given(codes_and_width(), st.data())
def test_pack_unpack_slice_count(sample: tuple[NDArray[np.uint8], int], data: st.DataObject) -> None:
    codes, width = sample
    packed = pack_codes(codes, width)
    assert packed.tobytes() == slow_pack(codes, width)
    start = data.draw(st.integers(0, codes.size))
    count = data.draw(st.integers(0, codes.size - start))
    part = codes[start : start + count]
    assert unpack_codes(packed, count, width, start).tolist() == part.tolist()
    assert slice_packed(packed, start, count, width).tobytes() == slow_pack(part, width)
    assert code_counts(packed, count, width).tolist() == np.bincount(codes[:count], minlength=1 << width).tolist()
    assert byte_counts(packed).tolist() == np.bincount(packed, minlength=256).tolist()
    assert nibble_counts(packed).tolist() == slow_nibble_counts(packed)


@pytest.mark.parametrize("width", WIDTHS)
def test_large_buffers_take_the_vector_loops(width: int) -> None:
    codes = np.random.default_rng(width).integers(0, 1 << width, 100_003, np.uint8)
    packed = pack_codes(codes.reshape(1, -1), width)
    assert (unpack_codes(packed, codes.size, width) == codes).all()
    assert (unpack_codes(packed, codes.size - 5, width, 5) == codes[5:]).all()
    assert (code_counts(packed, codes.size, width) == np.bincount(codes, minlength=1 << width)).all()


def test_samples_are_pieces_from_the_first_to_the_last_byte() -> None:
    from qzc.codec.kernels.bits import sample_bytes

    buffer = read_only(np.random.default_rng(0).integers(0, 256, 1000, np.uint8))
    for pieces, size, expected in (
        (1, 1000, buffer),
        (1, 10, buffer[:10]),
        (2, 7, np.concatenate([buffer[:7], buffer[-7:]])),
        (4, 100, np.concatenate([buffer[i : i + 100] for i in (0, 300, 600, 900)])),
    ):
        counts = np.ones(256, np.int64)
        sample_bytes(buffer, pieces, size, counts)
        assert (counts - 1).tolist() == np.bincount(expected, minlength=256).tolist()


def test_unpack_into_a_given_array() -> None:
    out = np.zeros((2, 2), np.uint8)
    assert unpack_codes(bytes([0x21, 0x43]), 4, 4, out=out) is out
    assert out.tolist() == [[1, 2], [3, 4]]
    wrong: Any
    for wrong in (np.zeros(3, np.uint8), np.zeros(4, np.int8), np.zeros(8, np.uint8)[::2]):
        with pytest.raises(InvalidArgumentError, match="out must be"):
            unpack_codes(bytes(2), 4, 4, out=wrong)


@pytest.mark.parametrize(("count", "start"), [(5, 0), (4, 1), (-1, 0), (1, -1), (0, 5), (1 << 62, 0)])
def test_reading_beyond_the_buffer_is_refused(count: int, start: int) -> None:
    packed = np.zeros(2, np.uint8)
    with pytest.raises(InvalidArgumentError):
        unpack_codes(packed, count, 4, start)
    with pytest.raises(InvalidArgumentError):
        slice_packed(packed, start, count, 4)
    if start == 0:
        with pytest.raises(InvalidArgumentError):
            code_counts(packed, count, 4)


def test_codes_that_do_not_fit() -> None:
    for width in (1, 2, 4):
        with pytest.raises(InvalidArgumentError, match=f"does not fit {width} bits: the largest is {1 << width}"):
            pack_codes(np.array([0, 1 << width, 1], np.uint8), width)
    with pytest.raises(InvalidArgumentError, match="must be uint8"):
        pack_codes(cast(Any, np.zeros(3, np.int64)), 4)
    with pytest.raises(InvalidArgumentError, match="storage_bits is 3"):
        pack_codes(np.zeros(3, np.uint8), 3)


def test_strided_codes_are_packed_in_order() -> None:
    codes = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert pack_codes(codes.T, 4).tobytes() == slow_pack(codes.T.reshape(-1), 4)
