"""Hostile bytes: a decoder returns or raises CorruptionError, stays inside its arrays, and always ends."""

import contextlib
import ctypes
import mmap
import struct
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.chunks import decode_chunk
from qzc.codec.coder import CODERS, Coder, Table
from qzc.codec.errors import CorruptionError, UnsupportedError
from qzc.codec.escape_table import EscapeTable
from qzc.codec.histogram import byte_counts
from qzc.codec.huffman_code import CodeLengths
from qzc.codec.kernels.select import ans_kernels, batch_kernels
from qzc.codec.model import FrequencyTable
from tests import reference_coders

CODED = [coder for coder in CODERS.values() if coder.id > 1]
ANS16, HUFFMAN, SPLIT8, SHORT16, SHORT256 = CODERS[2], CODERS[4], CODERS[5], CODERS[8], CODERS[9]
GUARD = 64


@pytest.fixture(params=["auto", "portable"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QZC_KERNELS", request.param)
        ans_kernels.cache_clear()
        batch_kernels.cache_clear()
        yield request.param
    ans_kernels.cache_clear()
    batch_kernels.cache_clear()


def sample(coder: Coder, size: int, seed: int = 0) -> tuple[NDArray[np.uint8], Table, int, bytes]:
    rng = np.random.default_rng(seed)
    nibbles = np.clip(np.rint(rng.normal(8, 1.7, (2, size))), 0, 15).astype(np.uint8)
    data = nibbles[0] | nibbles[1] << 4
    table = coder.fit(byte_counts(data))
    assert table is not None
    streams = 0 if not coder.default_streams(1) else 1 + (size > 300)
    return data, table, streams, coder.encode(data, table, streams).tobytes()


def decodes(coder: Coder, payload: bytes, table: Table | None, size: int, streams: int) -> bytes | None:
    """What the payload decodes to, None if it is refused. Checks that nothing around `out` was written."""
    guarded = np.full(size + 2 * GUARD, 0x5A, np.uint8)
    try:
        coder.decode(payload, table, guarded[GUARD : GUARD + size], streams)
        result = guarded[GUARD : GUARD + size].tobytes()
    except CorruptionError:
        result = None
    assert (guarded[:GUARD] == 0x5A).all() and (guarded[GUARD + size :] == 0x5A).all()
    return result


def reference_decodes(coder: Coder, payload: bytes, table: Table, size: int, streams: int) -> bytes | None:
    try:
        if isinstance(table, CodeLengths):
            return reference_coders.decode_huffman(payload, table.lengths.tolist(), size, "")
        if streams < 1:
            return None
        if coder in (SHORT16, SHORT256):
            row = table.frequencies.tolist() if coder is SHORT16 else []
            return reference_coders.decode_payload(payload, coder.id, row, streams, size, "")
        if isinstance(table, EscapeTable):
            return reference_coders.decode_escape(payload, table.row.tolist(), streams, size, "")
        if coder is SPLIT8:
            return reference_coders.decode_split(payload, table.frequencies.tolist(), streams, size, "")
        return reference_coders.decode_ans(payload, table.frequencies.tolist(), coder.id, streams, size, "")
    except ValueError:
        return None


@pytest.mark.parametrize("coder", CODED, ids=lambda coder: coder.name)
@pytest.mark.parametrize("size", [7, 64, 700])
def test_every_truncation_is_refused(coder: Coder, size: int) -> None:
    data, table, streams, payload = sample(coder, size)
    assert decodes(coder, payload, table, size, streams) == data.tobytes()
    for end in range(len(payload)):
        found = decodes(coder, payload[:end], table, size, streams)
        if found is not None:  # one lane takes what its encoder makes of other codes, and nothing else
            assert coder in (SHORT16, SHORT256) and streams == 1
            assert coder.encode(found, table, streams).tobytes() == payload[:end]
    for extra in (b"\0", b"\0\0", b"\1\2\3\4"):
        assert decodes(coder, payload + extra, table, size, streams) is None


@pytest.mark.parametrize("coder", CODED, ids=lambda coder: coder.name)
def test_flipped_bits_end_as_in_the_reference(coder: Coder) -> None:
    rng = np.random.default_rng(1)
    refused = 0
    for size in (5, 70, 333):
        _, table, streams, payload = sample(coder, size)
        for bit in rng.choice(8 * len(payload), 150, replace=len(payload) < 19):
            damaged = bytearray(payload)
            damaged[bit // 8] ^= 1 << bit % 8
            found = decodes(coder, bytes(damaged), table, size, streams)
            assert found == reference_decodes(coder, bytes(damaged), table, size, streams)
            refused += found is None
    assert refused > 100  # headers, states and sizes do not forgive


@pytest.mark.parametrize("coder", CODED, ids=lambda coder: coder.name)
def test_thousands_of_random_damages(coder: Coder) -> None:
    """Blocks overwritten at random, in large chunks that take the vector and unrolled paths."""
    rng = np.random.default_rng(2)
    size = 20_000
    _, table, streams, payload = sample(coder, size)
    for _ in range(1500):
        damaged = np.frombuffer(payload, np.uint8).copy()
        at, length = rng.integers(0, damaged.size), rng.integers(1, 200)
        damaged[at : at + length] = rng.integers(0, 256, damaged[at : at + length].size)
        decodes(coder, damaged.tobytes(), table, size, streams)


@pytest.fixture
def fenced() -> Callable[[int], NDArray[np.uint8]]:
    """Makes arrays that end where memory ends: reading or writing one byte more kills the process."""
    libc = ctypes.CDLL(None, use_errno=True)

    def make(size: int) -> NDArray[np.uint8]:
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = np.frombuffer(mmap.mmap(-1, room + mmap.PAGESIZE), np.uint8)
        assert libc.mprotect(ctypes.c_void_p(memory.ctypes.data + room), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        return memory[room - size : room]

    return make


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects a page of memory with a Linux call")
@pytest.mark.parametrize("coder", CODED, ids=lambda coder: coder.name)
def test_nothing_is_read_or_written_behind_the_arrays(coder: Coder, fenced: Callable[[int], NDArray[np.uint8]]) -> None:
    rng = np.random.default_rng(4)
    for size in (1, 64, 65, 4000, 70_000):
        data, table, streams, payload = sample(coder, size)
        if streams and size == 70_000:
            streams = 4
            payload = coder.encode(data, table, 4).tobytes()
        source, out, original = fenced(len(payload)), fenced(size), fenced(size)
        original[:] = data
        assert coder.encode(original, table, streams).tobytes() == payload
        source[:] = np.frombuffer(payload, np.uint8)
        coder.decode(source, table, out, streams)
        assert (out == data).all()
        for _ in range(300):
            at, length = rng.integers(0, source.size), rng.integers(1, 300)
            kept = source.copy()
            source[at : at + length] = rng.integers(0, 256, source[at : at + length].size)
            with contextlib.suppress(CorruptionError):
                coder.decode(source, table, out, streams)
            source[:] = kept


@pytest.mark.parametrize("coder", CODED, ids=lambda coder: coder.name)
def test_noise_and_wrong_sizes(coder: Coder) -> None:
    rng = np.random.default_rng(3)
    _, table, streams, payload = sample(coder, 700)
    for size in (1, 10, 64, 65, 699, 701, 5000, 1_000_000):
        assert decodes(coder, payload, table, size, streams) is None
    for length in (0, 1, 39, 40, 41, 79, 80, 81, 163, 164, 165, 500, 4000):
        assert decodes(coder, rng.bytes(length), table, 700, streams) is None
    for other in (0, 3, 4, 5, 255, 256, 1 << 31, -1, -(1 << 40)):
        if streams:
            assert decodes(coder, payload, table, 700, other) is None


@pytest.mark.parametrize("words", [0, 1, 2**31, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("stream", [0, 1])
def test_hostile_word_counts(words: int, stream: int) -> None:
    data, table, _, _ = sample(ANS16, 700)
    payload = ANS16.encode(data, table, 3).tobytes()
    sizes = list(struct.unpack_from("<2I", payload))
    sizes[stream] = words
    assert decodes(ANS16, struct.pack("<2I", *sizes) + payload[8:], table, 700, 3) is None


@pytest.mark.parametrize("coder", [ANS16, CODERS[3], SPLIT8], ids=lambda coder: coder.name)
@pytest.mark.parametrize("lengths", [b"\0" * 16, b"\xff" * 16, b"\xff" * 8 + b"\0" * 8])
def test_hostile_lengths_of_states(coder: Coder, lengths: bytes) -> None:
    """More or fewer bits than there are: what follows is taken for something else, and must not fit."""
    _, table, streams, payload = sample(coder, 700)
    at = (350 if coder is SPLIT8 else 0) + 4 * (streams - 1)
    damaged = payload[:at] + lengths + payload[at + 16 :]
    assert decodes(coder, damaged, table, 700, streams) is None
    assert decodes(coder, damaged[: at + 100], table, 700, streams) is None


def test_words_moved_from_one_stream_to_another() -> None:
    """The sizes fill the payload, so the streams themselves have to notice."""
    for coder in (ANS16, CODERS[3], HUFFMAN, SPLIT8):
        _, table, streams, payload = sample(coder, 700)
        count, at = 10 if coder is HUFFMAN else streams - 1, 350 if coder is SPLIT8 else 0
        sizes = list(struct.unpack_from(f"<{count}I", payload, at))
        for delta in (1, 5, -1, -sizes[0]):
            moved = [sizes[0] + delta, *sizes[1:]]
            if coder is HUFFMAN:
                moved[1] -= delta
            damaged = payload[:at] + struct.pack(f"<{count}I", *moved) + payload[at + 4 * count :]
            assert decodes(coder, damaged, table, 700, streams) is None


def test_huffman_stream_of_zero_length_sizes() -> None:
    _, table, _, payload = sample(HUFFMAN, 700)
    for sizes in ((len(payload) - 40, *[0] * 9), (*[0] * 9, len(payload) - 40)):
        assert decodes(HUFFMAN, struct.pack("<10I", *sizes) + payload[40:], table, 700, 0) is None


def test_one_symbol_huffman_code_refuses_the_other_bit() -> None:
    table = HUFFMAN.fit(byte_counts(b"\7" * 30))
    payload = HUFFMAN.encode(b"\7" * 5000, table, 0).tobytes()
    assert decodes(HUFFMAN, payload, table, 5000, 0) == b"\7" * 5000
    for position in range(40, len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 0x10
        assert decodes(HUFFMAN, bytes(damaged), table, 5000, 0) is None


def test_unused_bits_must_be_zero() -> None:
    table = HUFFMAN.fit(byte_counts(bytes(range(4))))
    payload = bytearray(HUFFMAN.encode(bytes(range(4)), table, 0).tobytes())
    payload[-1] |= 0x80
    assert decodes(HUFFMAN, bytes(payload), table, 4, 0) is None
    data, ans_table, _, encoded = sample(ANS16, 33)
    assert decodes(ANS16, encoded, ans_table, 33, 1) == data.tobytes()
    damaged = bytearray(encoded)
    damaged[16 + 2 * 16 + 1] = 1  # lane 16 holds tail bytes 32 and 33; there is no byte 33
    assert decodes(ANS16, bytes(damaged), ans_table, 33, 1) is None
    data, split_table, _, encoded = sample(SPLIT8, 33)
    assert decodes(SPLIT8, encoded, split_table, 33, 1) == data.tobytes()
    for place in (16, 17 + 16 + 2 * 8):  # the last low nibble, and the last high one, in lane 8 of the states
        damaged = bytearray(encoded)
        damaged[place] |= 0x10
        assert decodes(SPLIT8, bytes(damaged), split_table, 33, 1) is None


@pytest.mark.parametrize("size", [66, 67, 68, 70, 90, 700])
def test_unused_bits_of_states_must_be_zero(size: int) -> None:
    data, table, _, _ = sample(ANS16, size)
    payload = ANS16.encode(data, table, 1).tobytes()
    assert decodes(ANS16, payload, table, size, 1) == data.tobytes()
    bits = sum((byte & 15) + (byte >> 4) for byte in payload[:16])
    assert bits % 16
    for bit in range(bits, -(-bits // 16) * 16):
        damaged = bytearray(payload)
        damaged[80 + bit // 8] ^= 1 << bit % 8
        assert decodes(ANS16, bytes(damaged), table, size, 1) is None


@pytest.mark.parametrize(
    "row",
    [
        bytes(16),
        bytes([255] * 16),
        bytes([128, 127] + [0] * 14),
        bytes([128, 128] + [0] * 13),
        bytes([128, 128] + [0] * 15),
        b"",
    ],
)
def test_invalid_ans16_tables(row: bytes) -> None:
    with pytest.raises(CorruptionError):
        FrequencyTable.from_bytes(row, 16)


@pytest.mark.parametrize("row", [bytes(384), b"\xff" * 384, bytes(383), b"", b"\0\0\1" + bytes(381)])
def test_invalid_ans256_tables(row: bytes) -> None:
    with pytest.raises(CorruptionError):
        FrequencyTable.from_bytes(row, 256)


@pytest.mark.parametrize(
    "row",
    [
        bytes(128),
        b"\x11" * 128,
        b"\xcc" * 128,
        b"\x02" + bytes(127),
        b"\x21" + bytes(127),
        b"\x11\x01" + bytes(126),
        bytes(127),
        b"",
    ],
)
def test_invalid_huffman_tables(row: bytes) -> None:
    with pytest.raises(CorruptionError):
        CodeLengths.from_bytes(row)


def test_decode_chunk_names_what_is_wrong() -> None:
    out = np.zeros(3, np.uint8)
    with pytest.raises(CorruptionError, match="checksum"):
        decode_chunk(0, 0, 1, b"abc", b"", out)
    decode_chunk(0, 0, 1, b"abc", b"", out, check=False)
    assert out.tobytes() == b"abc"
    with pytest.raises(UnsupportedError, match="unknown coder 10"):
        decode_chunk(10, 0, 0, b"abc", b"", out, check=False)
    with pytest.raises(CorruptionError, match="no streams"):
        decode_chunk(0, 1, 0, b"abc", b"", out, check=False)
    with pytest.raises(CorruptionError, match="raw chunk of 3 bytes has a payload of 2"):
        decode_chunk(0, 0, 0, b"ab", b"", out, check=False)
    with pytest.raises(CorruptionError, match="constant chunk"):
        decode_chunk(1, 0, 0, b"ab", b"", out, check=False)
    with pytest.raises(CorruptionError, match="no table"):
        decode_chunk(0, 0, 0, b"abc", b"x", out, check=False)
    with pytest.raises(CorruptionError, match="frequency table"):
        decode_chunk(2, 1, 0, b"abc", b"x", out, check=False)
    with pytest.raises(CorruptionError, match="ends inside its header"):
        decode_chunk(2, 1, 0, b"abc", bytes([128, 128] + [0] * 14), out, check=False)
    with pytest.raises(CorruptionError, match="without codes"):
        decode_chunk(0, 0, 0, b"", b"", out[:0], check=False)
