"""Large chunks of nibbles, whose tables come from a sample: what it misses is coded as well, by all kernels alike."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec import nibbles
from qzc.codec.chunks import EncodedChunk, decode_chunk, encode_run, plan_chunks
from qzc.codec.histogram import nibble_counts
from qzc.codec.kernels import bits
from qzc.codec.kernels.bits import BLOCK, ENDING, SAMPLED, SAMPLED_LESS
from qzc.codec.kernels.select import batch_kernels, nibble_run, vector_kernels
from qzc.codec.model import FrequencyTable
from qzc.threads import thread_map

CODES = 3 << 18
block_of_sample = bits.block_of_sample.py_func  # type: ignore[attr-defined]


@pytest.fixture(params=["auto", "portable"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    caches: tuple[Any, ...] = (nibble_run, batch_kernels, nibbles._kernels)
    monkeypatch.setenv("QZC_KERNELS", request.param)
    for cached in caches:
        cached.cache_clear()
    yield request.param
    for cached in caches:
        cached.cache_clear()


@cache
def sampled() -> NDArray[np.bool_]:
    """Which bytes of a chunk of 2^18 codes are looked at, but for the last ones."""
    blocks = np.zeros((1 << 17) // BLOCK, bool)
    blocks[[block_of_sample(i, 3) for i in range(blocks.size // 8)]] = True
    assert blocks.sum() == blocks.size // 8
    return np.repeat(blocks, BLOCK)


def packed_run(seed: int, low: int = 4, high: int = 11, spread: float = 1.5) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    codes = np.clip(np.rint(rng.normal(7.5, spread, CODES)), low, high).astype(np.uint8)
    return (codes[::2] | codes[1::2] << 4).astype(np.uint8)


def decoded(chunks: list[EncodedChunk], packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = np.zeros_like(packed)
    ends = np.cumsum([0, *(-(-chunk.codes // 2) for chunk in chunks)]).tolist()
    for chunk, (a, b) in zip(chunks, pairwise(ends), strict=True):
        decode_chunk(chunk.coder, chunk.streams, chunk.checksum, chunk.payload, chunk.table, out[a:b])
    return out


@pytest.mark.parametrize("shift", [0, 2, 3])
def test_each_part_of_a_row_comes_up(shift: int) -> None:
    for row in (2, 3, 4, 6, 8, 12, 16, 24, 32, 64):
        places = np.array([block_of_sample(i, shift) % row for i in range(1024 * row >> shift)])
        found = np.bincount(places, minlength=row)
        assert found.min() > 0.9 * found.mean() and found.max() < 1.1 * found.mean(), row


@pytest.mark.parametrize("where", ["outside", "inside", "end", "several", "first"])
def test_a_nibble_that_the_sample_misses(kernels: str, where: str) -> None:
    packed = packed_run(1)
    outside = np.flatnonzero(~sampled()[: (1 << 17) - ENDING])
    places = {
        "outside": [(1 << 17) + int(outside[777])],
        "inside": [int(np.flatnonzero(sampled())[5])],
        "end": [(1 << 17) - 66],
        "several": [int(outside[1]), (1 << 18) + int(outside[9000])],
        "first": [int(outside[0])],
    }[where]
    packed[places] = 0xF7
    chunks = encode_run(packed, CODES, 4, "ans", verify=False)
    assert np.array_equal(decoded(chunks, packed), packed)
    assert [chunk.coder for chunk in chunks] == [2, 2, 2]
    for i, chunk in enumerate(chunks):
        if where in ("outside", "several", "first") and any(place >> 17 == i for place in places):
            exact = FrequencyTable.from_counts(nibble_counts(packed[i << 17 : (i + 1) << 17]), 8)
            assert chunk.table == exact.to_bytes()  # all have been counted after all


def test_a_chunk_of_which_the_sample_sees_one_nibble(kernels: str) -> None:
    packed = np.full(CODES // 2, 0x77, np.uint8)
    packed[np.flatnonzero(~sampled()[:-ENDING])[[5, 999]]] = 0x67, 0x97
    chunks = encode_run(packed, CODES, 4, "ans", verify=False)
    assert np.array_equal(decoded(chunks, packed), packed)
    assert [chunk.coder for chunk in chunks[1:]] == [1, 1]


def test_all_kernels_and_threads_make_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    if not vector_kernels():
        pytest.skip("no vector kernels here")
    packed = packed_run(3)
    packed[int(np.flatnonzero(~sampled())[4321])] = 0x0F
    found = []
    for choice in ("auto", "portable"):
        monkeypatch.setenv("QZC_KERNELS", choice)
        nibble_run.cache_clear()
        nibbles._kernels.cache_clear()
        for threads in (1, 2, 3):
            with thread_map(threads) as run:
                found.append(encode_run(packed, CODES, 4, "ans", run=run, verify=False))
    nibble_run.cache_clear()
    nibbles._kernels.cache_clear()
    assert all(chunks == found[0] for chunks in found)


@pytest.mark.parametrize("least", [SAMPLED, SAMPLED_LESS])
def test_a_sample_costs_next_to_nothing(least: int) -> None:
    packed = packed_run(4, 0, 15, 2.5)
    size = exact = 0.0
    plan = plan_chunks(CODES, 4, 2 * least)
    assert all(least <= (b - a) // 2 < 2 * least for a, b in plan[:-1])
    for chunk, (a, b) in zip(encode_run(packed, CODES, 4, "ans", 2 * least), plan, strict=True):
        counts = nibble_counts(packed[a // 2 : b // 2])
        size += FrequencyTable.from_bytes(chunk.table, 16).cost_bits(counts)
        exact += FrequencyTable.from_counts(counts, 8).cost_bits(counts)
    assert 1 <= size / exact < 1.0001
