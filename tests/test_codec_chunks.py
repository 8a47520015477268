"""Chunks: how runs are cut, which coder and table each chunk gets, and that it all decodes."""

import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.ans import ANS16
from qzc.codec.buffers import read_only
from qzc.codec.choose_tables import choose_tables
from qzc.codec.chunks import (
    CHUNK_DTYPE,
    EXTRA,
    SHORT_BYTES,
    SHORT_NBYTES,
    EncodedChunk,
    decode_chunk,
    encode_run,
    plan_chunks,
)
from qzc.codec.coder import CODERS
from qzc.codec.errors import InvalidArgumentError, VerificationError
from qzc.codec.histogram import byte_counts
from qzc.codec.kernels.select import ans_kernels
from qzc.codec.model import entropy_bits
from qzc.codec.nibbles import _kernels, nibble_tables
from qzc.codec.packing import pack_codes
from qzc.codec.short256 import table_nbytes
from qzc.codec.tensor import packed_nbytes


def normal_codes(seed: int, size: int, bits: int, spread: float) -> NDArray[np.uint8]:
    codes = np.rint(np.random.default_rng(seed).normal((1 << bits) / 2, spread, size))
    return np.clip(codes, 0, (1 << bits) - 1).astype(np.uint8)


def decoded(chunks: list[EncodedChunk], width: int) -> bytes:
    parts = []
    for chunk in chunks:
        out = np.zeros(packed_nbytes(chunk.codes, width), np.uint8)
        decode_chunk(chunk.coder, chunk.streams, chunk.checksum, chunk.payload, chunk.table, out)
        parts.append(out.tobytes())
    return b"".join(parts)


def total_nbytes(chunks: list[EncodedChunk]) -> int:
    return sum(len(c.payload) for c in chunks) + sum(map(len, {c.table for c in chunks}))


def test_a_chunk_row_has_the_layout_of_the_format() -> None:
    row = np.array([(1, 2, 3, 4, 5, 6, 0, 7)], CHUNK_DTYPE)
    assert row.tobytes() == struct.pack("<IIIBBBBQ", 1, 2, 3, 4, 5, 6, 0, 7)
    assert CHUNK_DTYPE.names == ("nbytes", "codes", "table", "coder", "streams", "delta", "reserved", "checksum")


@given(st.integers(0, 10**7), st.sampled_from([1, 2, 4, 8]), st.integers(1, 10**6))
def test_plans_cover_the_run(codes: int, width: int, target: int) -> None:
    plan = plan_chunks(codes, width, target)
    assert [b for _, b in plan[:-1]] == [a for a, _ in plan[1:]]
    assert (plan[0][0], plan[-1][1]) == (0, codes) if plan else codes == 0
    sizes = [b - a for a, b in plan]
    assert all(0 < size <= 1.5 * max(target, 512) for size in sizes)
    assert all(size % 256 == 0 for size in sizes[:-1])
    assert all(a == b for a, b in pairwise(sizes[:-1]))


def test_plans_are_balanced() -> None:
    assert plan_chunks(0, 4) == []
    assert plan_chunks(1, 4) == [(0, 1)]
    assert [b - a for a, b in plan_chunks(1_000_000, 4, 1 << 18)] == [250112] * 3 + [249664]
    for wrong in (0, -1, 1 << 31):
        with pytest.raises(InvalidArgumentError, match="chunk_codes"):
            plan_chunks(10, 4, wrong)


@given(
    seed=st.integers(0, 1000),
    size=st.integers(0, 6000),
    bits=st.integers(1, 8),
    spread=st.floats(0.01, 4.0),
    choice=st.sampled_from(["ans", "huffman", "raw"]),
    target=st.sampled_from([1, 600, 2000, 1 << 18]),
)
def test_runs_decode_and_never_grow(seed: int, size: int, bits: int, spread: float, choice: str, target: int) -> None:
    width = 1 << (bits - 1).bit_length()
    codes = normal_codes(seed, size, bits, spread)
    packed = pack_codes(codes, width)
    chunks = encode_run(packed, size, width, choice, target)
    assert [c.codes for c in chunks] == [b - a for a, b in plan_chunks(size, width, target)]
    assert decoded(chunks, width) == packed.tobytes()
    assert total_nbytes(chunks) <= packed.size
    for chunk in chunks:
        assert 1 <= len(chunk.payload) <= packed_nbytes(chunk.codes, width)
        assert chunk.checksum == xxhash.xxh3_64_intdigest(chunk.payload)
        assert bool(chunk.table) == (chunk.coder not in (0, 1, 9)) and bool(chunk.streams) == (
            chunk.coder not in (0, 1, 4)
        )
        assert chunk.coder in {"ans": (0, 1, 2, 3, 5, 6, 8, 9), "huffman": (0, 1, 4), "raw": (0,)}[choice]


@pytest.mark.parametrize("choice", ["ans", "huffman"])
def test_fallbacks(choice: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 4096, np.uint8)
    constant = np.full(4096, 0x77, np.uint8)
    good = pack_codes(normal_codes(0, 8192, 4, 1.5), 4)
    chunks = encode_run(np.concatenate([noise, constant, good]), 3 * 8192, 4, choice, 8192)
    assert [c.coder for c in chunks] == [0, 1, {"ans": 2, "huffman": 4}[choice]]
    assert bytes(chunks[0].payload) == noise.tobytes() and bytes(chunks[1].payload) == b"\x77"


@pytest.mark.parametrize(("bits", "coder"), [(2, 2), (4, 2), (6, 3), (8, 5)])
def test_small_chunks_have_one_stream(bits: int, coder: int) -> None:
    width = 1 << (bits - 1).bit_length()
    for size, streams in ((1000, 1), (131_071, 1), (131_072, 4), (400_000, 4)):
        packed = pack_codes(normal_codes(1, size, bits, 0.15 * (1 << bits)), width)
        (chunk,) = encode_run(packed, size, width, "ans", 1 << 20)
        if chunk.coder not in (8, 9):
            assert (chunk.streams, chunk.coder) == (streams, coder)
        assert (chunk.coder == 8) == (coder == 2 and packed.size < SHORT_NBYTES)
        if size > 1000:
            assert (chunk.coder == 9) == (coder != 2 and packed.size < SHORT_BYTES)


def test_chunks_of_one_distribution_share_a_table() -> None:
    packed = pack_codes(normal_codes(2, 20_000, 8, 20.0), 8)
    for choice in ("ans", "huffman"):
        assert len({c.table for c in encode_run(packed, 20_000, 8, choice, 2000)}) == 1


def test_chunks_of_different_distributions_get_tables_of_their_own() -> None:
    parts = [normal_codes(i, 20_480, 4, 0.4 + i) for i in range(3)]
    packed = pack_codes(np.concatenate(parts), 4)
    for choice in ("ans", "huffman"):
        assert len({c.table for c in encode_run(packed, 61_440, 4, choice, 20_480)}) == 3


def test_an_odd_chunk_gets_a_table_while_the_others_share() -> None:
    parts = [normal_codes(i, 8192, 8, 2.0 if i == 4 else 30.0) for i in range(12)]
    chunks = encode_run(np.concatenate(parts), 12 * 8192, 8, "ans", 8192)
    tables = [c.table for c in chunks]
    assert len(set(tables)) == 2 and tables.count(tables[4]) == 1


def test_nibbles_are_coded_by_pairs_where_that_pays() -> None:
    """One nibble at 97 %: 8 bits of probability cannot say how rare the others are."""
    rng = np.random.default_rng(5)
    codes = np.where(rng.random(400_000) < 0.97, 8, rng.geometric(0.5, 400_000).clip(0, 15)).astype(np.uint8)
    packed = pack_codes(codes, 4)
    chunks = encode_run(packed, codes.size, 4, "ans")
    assert {c.coder for c in chunks} == {3}
    assert decoded(chunks, 4) == packed.tobytes()


@pytest.mark.parametrize(("spread", "coders"), [(40.0, {5}), (38.0, {5}), (30.0, {3}), (4.0, {3})])
def test_bytes_are_split_where_that_costs_little(spread: float, coders: set[int]) -> None:
    """The narrower the peak, the more the low nibbles would have to gain from coding."""
    packed = normal_codes(6, 400_000, 8, spread)
    chunks = encode_run(packed, packed.size, 8, "ans")
    assert {c.coder for c in chunks} == coders
    assert decoded(chunks, 8) == packed.tobytes()


@pytest.mark.parametrize("size", [4096, 20_000, 100_000])
@pytest.mark.parametrize("spread", [2.0, 6.0, 16.0, 40.0])
def test_short_runs_of_bytes_keep_to_the_entropy(spread: float, size: int) -> None:
    """All but the table, which is short. What decodes faster may take EXTRA more, with its table."""
    packed = normal_codes(7, size, 8, spread)
    (chunk,) = encode_run(packed, size, 8, "ans")
    table = table_nbytes(chunk.payload) if chunk.coder == 9 else len(chunk.table)
    assert total_nbytes([chunk]) - table <= 1.002 * entropy_bits(np.bincount(packed)) / 8
    assert table <= 30 + np.count_nonzero(np.bincount(packed))
    assert chunk.coder == 9 or (spread, size) == (40.0, 100_000)


@pytest.mark.parametrize("size", [50, 300, 1000, 4000])
@pytest.mark.parametrize("spread", [2.0, 6.0, 16.0, 24.0])
def test_very_short_runs_of_bytes_take_the_least(spread: float, size: int) -> None:
    packed = normal_codes(7, size, 8, spread)
    counts = np.bincount(packed, minlength=256)
    (chunk,) = encode_run(packed, size, 8, "ans")
    sizes = [size]
    for coder in (CODERS[id] for id in (3, 5, 6, 9)):
        sizes.append(coder.encode(packed, coder.fit(counts), 1).size + coder.table_nbytes)
    assert total_nbytes([chunk]) <= min(sizes) / (1 - EXTRA) + 2  # its last bytes are an estimate


def test_nibbles_that_are_worth_little_are_coded_exactly() -> None:
    """Between short16 for all and ans16 for all: 8 bits of probability cost 0.6 % here."""
    codes = normal_codes(7, 100_000, 3, 0.55)
    (chunk,) = encode_run(pack_codes(codes, 4), codes.size, 4, "ans")
    assert chunk.coder == 8
    assert len(chunk.payload) <= 1.002 * entropy_bits(np.bincount(codes)) / 8


@pytest.mark.parametrize("spread", [24.0, 28.0, 32.0, 36.0, 40.0, 44.0])
@pytest.mark.parametrize("size", [140_000, 300_000])
def test_splitting_costs_no_more_than_is_allowed(spread: float, size: int) -> None:
    packed = normal_codes(8, size, 8, spread)
    counts = np.bincount(packed)
    entropy = size * np.log2(size) / 8 - float((counts * np.log2(np.maximum(counts, 1))).sum()) / 8
    (found,) = encode_run(packed, size, 8, "ans", 1 << 20)
    sizes = {}
    for extra in (-1.0, 1.0):  # where it is smaller, always
        (chunk,) = encode_run(packed, size, 8, "ans", 1 << 20, extra=extra)
        sizes[extra] = total_nbytes([chunk])
    if found.coder == 5:
        assert total_nbytes([found]) <= max(sizes[-1.0], 1.0015 * entropy) + 30 * found.streams  # for their states
    else:
        assert sizes[1.0] > max(sizes[-1.0], 1.0015 * entropy)


def repeated(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each code twice: the pairs in the bytes are worth half of what their nibbles are."""
    return np.repeat(codes, 2)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("target", [8192, 81_920])
def test_nibble_tables_are_those_of_the_exact_counts(bits: int, target: int) -> None:
    """By counting all bytes, as the other coders do: own and shared tables, in chunks larger than a sample and smaller."""
    width = 1 << (bits - 1).bit_length()
    parts = [normal_codes(i, 81_920, bits, 0.25 * (1 << bits) / (1 + i % 3 / 8)) for i in range(9)]
    for codes in (
        np.concatenate(parts),
        normal_codes(0, 9 * 81_920, bits, 0.25 * (1 << bits)),
        normal_codes(1, 5000, bits, 1.0),
    ):
        packed = pack_codes(codes, width)
        plan = plan_chunks(codes.size, width, target)
        buffers = [read_only(packed[a * width // 8 : packed_nbytes(b, width)]) for a, b in plan]
        bounds = np.cumsum([0, *(buffer.size for buffer in buffers)])
        tables = nibble_tables(read_only(packed), bounds, map)
        coder, expected = choose_tables(ANS16, list(map(byte_counts, buffers)), map, EXTRA)
        assert coder is ANS16
        assert tables is not None
        rows = [row.astype(np.uint8).tobytes() for row in tables]
        assert rows == [table.to_bytes() if table else bytes(16) for table in expected]


@pytest.mark.parametrize("target", [8192, 1 << 18])
def test_pairs_that_pay_are_noticed(target: int) -> None:
    codes = repeated(normal_codes(3, 400_000, 4, 2.0))
    packed = pack_codes(codes, 4)
    bounds = np.array([0, *(-(-b // 2) for _, b in plan_chunks(codes.size, 4, target))])
    assert nibble_tables(read_only(packed), bounds, map) is None
    assert {c.coder for c in encode_run(packed, codes.size, 4, "ans", target)} == {3}


def test_a_sample_does_not_hide_that_a_chunk_varies() -> None:
    packed = np.full(131_072, 0x88, np.uint8)
    packed[5000] = 0x89
    (chunk,) = encode_run(packed, 262_144, 4, "ans")
    assert chunk.coder == 2 and decoded([chunk], 4) == packed.tobytes()
    packed[5000] = 0x88
    (chunk,) = encode_run(packed, 262_144, 4, "ans")
    assert (chunk.coder, bytes(chunk.payload)) == (1, b"\x88")


def test_the_result_does_not_depend_on_threads() -> None:
    packed = pack_codes(normal_codes(4, 300_001, 4, 2.0), 4)
    alone = encode_run(packed, 300_001, 4, "ans", 20_000)
    with ThreadPoolExecutor(4) as pool:
        assert encode_run(packed, 300_001, 4, "ans", 20_000, pool.map) == alone
    assert len(alone) == 15


def test_kernels_release_the_gil() -> None:
    packed = np.tile(pack_codes(normal_codes(4, 4_000_000, 4, 2.0), 4), 16)
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.0005):
            ticks += 1

    encode_run(packed[:1000], 2000, 4, "ans")
    thread = threading.Thread(target=tick)
    thread.start()
    encode_run(packed, 64_000_000, 4, "ans", 1 << 23)
    done.set()
    thread.join()
    assert ticks >= 2


@pytest.mark.parametrize(("bits", "coder"), [(4, "ans16"), (6, "ans256")])
def test_what_does_not_decode_is_reported(bits: int, coder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    width = 1 << (bits - 1).bit_length()
    packed = pack_codes(normal_codes(4, 50_000, bits, 0.15 * (1 << bits)), width)
    monkeypatch.setattr("qzc.codec.chunks.SHORT_NBYTES", 0)
    right = ans_kernels()
    nibbles = _kernels()

    def wrong(source: NDArray[np.uint8], *others: Any) -> int:
        nbytes = right.encode_ans256(source, *others)
        others[-1][-1] ^= 4
        return nbytes

    def wrong_run(*arguments: Any) -> None:
        nibbles.encode(*arguments)
        room, _, checksums, _ = arguments[-4:]
        room[-1] ^= 4
        checksums[0] = xxhash.xxh3_64_intdigest(room[-int(arguments[-3][0]) :])

    monkeypatch.setattr("qzc.codec.kernels.select.ans_kernels", lambda: right._replace(encode_ans256=wrong))
    monkeypatch.setattr("qzc.codec.nibbles._kernels", lambda: nibbles._replace(encode=wrong_run))
    assert encode_run(packed, 50_000, width, "ans", verify=False)
    with pytest.raises(VerificationError, match=rf"a chunk of 50000 codes does not decode .* \({coder}\)"):
        encode_run(packed, 50_000, width, "ans")


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match="do not fill a buffer"):
        encode_run(np.zeros(3, np.uint8), 7, 4, "ans")
    with pytest.raises(InvalidArgumentError, match="unknown coder"):
        encode_run(np.zeros(3, np.uint8), 6, 4, "gzip")
    with pytest.raises(InvalidArgumentError, match="C-contiguous"):
        decode_chunk(1, 0, 0, b"a", b"", np.zeros(8, np.uint8)[::2], check=False)
