"""Coder 6: round trips, the slow reference, tables, both sets of kernels, hostile bytes between guard pages."""

import os
import struct
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec import escape_run as runs
from qzc.codec.buffers import read_only
from qzc.codec.chunks import decode_chunk, encode_run
from qzc.codec.coder import CODERS
from qzc.codec.errors import CorruptionError, InvalidArgumentError
from qzc.codec.escape16 import ESCAPE16
from qzc.codec.escape_run import about_counts, escape_tables, memory_bound, run_counts
from qzc.codec.escape_table import EscapeTable, parse_tables
from qzc.codec.histogram import byte_counts
from qzc.codec.kernels import batch, escape16, select
from qzc.codec.kernels.bits import BLOCK, block_of_sample
from qzc.codec.kernels.escape_run import SAMPLED
from qzc.codec.kernels.select import ans_kernels, batch_kernels, to_nibbles, vector_kernels
from qzc.codec.kernels.status import OK
from qzc.codec.kernels.xxh3 import xxh3_address
from qzc.codec.model import FrequencyTable
from qzc.codec.task import TASK
from tests import reference_coders, reference_encoder
from tests.test_kernels_avx2 import AVX2, Guarded, fills, hostile

Bytes = NDArray[np.uint8]
SIZES = (1, 2, 3, 31, 32, 33, 63, 64, 65, 66, 127, 128, 129, 130, 131, 191, 192, 193, 255, 256, 257, 320, 1001, 9998)
EXPONENTS = np.exp(-np.abs(np.arange(-20, 20)) / 2)  # 40 values, of which 15 make up 97 %


@pytest.fixture(params=["auto", "portable"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything that asks for it holds for the kernels of this machine and for the portable ones."""
    caches = (ans_kernels, batch_kernels, to_nibbles, select.escape_run, runs._kernels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QZC_KERNELS", request.param)
        for cache in caches:
            cache.cache_clear()
        yield request.param
    for cache in caches:
        cache.cache_clear()


def exponents(rng: np.random.Generator, size: int, spread: bool = False) -> Bytes:
    """Bytes like the exponents of weights: neighbours, or anywhere."""
    picks = rng.choice(EXPONENTS.size, size, p=EXPONENTS / EXPONENTS.sum())
    return (rng.permutation(256)[picks] if spread else picks + 90).astype(np.uint8)


def escape_table(frequencies: list[int], values: list[int]) -> EscapeTable:
    """frequencies: of the values, then of the escape."""
    row = [*frequencies[:-1], *[0] * (16 - len(frequencies)), frequencies[-1], *values, *[0] * (16 - len(values))]
    return EscapeTable.from_bytes(bytes(row))


def reference_decode(payload: bytes, table: EscapeTable, streams: int, size: int) -> bytes | None:
    """The payload by the words of SPEC, None if it is refused."""
    row = list(table.to_bytes())
    if len(payload) < 4 or len(payload) < 4 + struct.unpack_from("<I", payload)[0]:
        return None
    count = struct.unpack_from("<I", payload)[0]
    escaped = list(payload[4 : 4 + count])
    try:
        packed = reference_coders.decode_ans(payload[4 + count :], row[:16], 2, streams, -(-size // 2), "")
    except ValueError:
        return None
    symbols = [symbol for byte in packed for symbol in (byte & 15, byte >> 4)]
    if any(symbols[size:]) or symbols.count(15) != count:
        return None
    return bytes(row[16 + symbol] if symbol < 15 else escaped.pop(0) for symbol in symbols[:size])


def reference_encode(data: bytes, table: EscapeTable, streams: int) -> bytes:
    values = table.values.tolist()
    symbols = [values.index(byte) if byte in values else 15 for byte in data] + [0]
    escaped = bytes(byte for byte in data if byte not in values)
    packed = bytes(symbols[i] | symbols[i + 1] << 4 for i in range(0, len(data), 2))
    nibbles = reference_encoder.encode_ans(packed, table.frequencies.tolist(), 2, streams)
    return struct.pack("<I", len(escaped)) + escaped + nibbles


def decodes(payload: bytes, table: EscapeTable, size: int, streams: int) -> bytes | None:
    out = np.full(size + 128, 0x5A, np.uint8)
    try:
        ESCAPE16.decode(payload, table, out[64:-64], streams)
        result = out[64:-64].tobytes()
    except CorruptionError:
        result = None
    assert (out[:64] == 0x5A).all() and (out[-64:] == 0x5A).all()
    return result


def assert_round_trip(data: Bytes, table: EscapeTable, streams: int) -> None:
    payload = ESCAPE16.encode(data, table, streams).tobytes()
    assert payload == reference_encode(data.tobytes(), table, streams)
    assert decodes(payload, EscapeTable.from_bytes(table.to_bytes()), data.size, streams) == data.tobytes()
    assert reference_decode(payload, table, streams, data.size) == data.tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("size", SIZES)
def test_round_trip_at_every_edge(size: int, kernels: str) -> None:
    rng = np.random.default_rng(size)
    for data in (exponents(rng, size), exponents(rng, size, spread=True), rng.integers(0, 256, size).astype(np.uint8)):
        for streams in (1, 3):
            if fills(-(-size // 2), streams):
                assert_round_trip(data, ESCAPE16.fit(byte_counts(data)), streams)


@pytest.mark.parametrize("size", [1, 2, 65, 130, 1001, 9999])
def test_none_all_and_one(size: int, kernels: str) -> None:
    rng = np.random.default_rng(size)
    table = escape_table([100, 56, 100], [7, 200])
    for data in (np.full(size, 7), np.full(size, 9), rng.choice([7, 200], size), rng.choice([0, 15, 255], size)):
        assert_round_trip(data.astype(np.uint8), table, 1)
    assert_round_trip(np.full(size, 200, np.uint8), ESCAPE16.fit(byte_counts(np.full(size, 200, np.uint8))), 1)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 1500),
    symbols=st.sampled_from([1, 2, 14, 15, 16, 17, 40, 256]),
    skew=st.floats(0.0, 2.0),
    streams=st.integers(1, 5),
)
def test_round_trip_and_reference(seed: int, size: int, symbols: int, skew: float, streams: int) -> None:
    rng = np.random.default_rng(seed)
    weights = np.exp(-skew * np.arange(symbols))
    data = rng.permutation(256)[rng.choice(symbols, size, p=weights / weights.sum())].astype(np.uint8)
    assert_round_trip(data, ESCAPE16.fit(byte_counts(data)), streams if fills(-(-size // 2), streams) else 1)


def test_as_a_chunk(kernels: str) -> None:
    assert CODERS[6] is ESCAPE16
    data = exponents(np.random.default_rng(5), 300_001)
    table = ESCAPE16.fit(byte_counts(data))
    payload = ESCAPE16.encode(data, table, 4)
    out = np.zeros_like(data)
    decode_chunk(6, 4, 0, payload, table.to_bytes(), out, check=False)
    assert np.array_equal(out, data)
    cost = table.cost_bits(byte_counts(data)) / 8
    assert cost < payload.size < cost + 500  # nothing but the states and the number of escapes on top
    with pytest.raises(CorruptionError, match="32 bytes"):
        decode_chunk(6, 4, 0, payload, table.to_bytes()[:-1], out, check=False)


def test_golden_bytes(kernels: str) -> None:
    data = np.tile(np.array([100, 101, 100, 7], np.uint8), 17)[:67]
    table = ESCAPE16.fit(byte_counts(data))
    assert table.to_bytes().hex() == "3d8241" + "00" * 13 + "076465" + "00" * 13
    table = escape_table([130, 64, 62], [100, 101])
    payload = ESCAPE16.encode(data, table, 1).tobytes()
    assert payload.hex() == "10000000" + "07" * 16 + "00" * 16 + "10f0" * 16 + "10" + "00" * 31


def test_what_cannot_be_encoded() -> None:
    table, data = escape_table([128, 128, 0], [1, 2]), np.array([1, 2, 3], np.uint8)
    with pytest.raises(InvalidArgumentError, match="no escape"):
        ESCAPE16.encode(data, table, 1)
    with pytest.raises(InvalidArgumentError, match="streams"):
        ESCAPE16.encode(data[:2], table, 2)
    with pytest.raises(InvalidArgumentError, match="table with escapes"):
        ESCAPE16.encode(data[:2], FrequencyTable.from_counts(np.arange(16), 8), 1)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def plain_cost(counts: NDArray[np.int64], values: list[int]) -> float:
    """What the best table with symbols for just these values costs."""
    own = counts[np.sort(values)]
    symbols = np.concatenate([own, np.zeros(15 - own.size, np.int64), [counts.sum() - own.sum()]])
    return FrequencyTable.from_counts(symbols, 8).cost_bits(symbols) + 8 * int(symbols[15])


@pytest.mark.parametrize("seed", range(20))
def test_fit_finds_the_best_set_of_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = np.zeros(256, np.int64)
    places = rng.choice(256, 6, replace=False)
    counts[places] = rng.integers(1, 4 ** rng.integers(1, 8, 6) + 1)
    table = EscapeTable.from_counts(counts)
    best = min(plain_cost(counts, list(some)) for k in range(1, 7) for some in combinations(places.tolist(), k))
    assert table.cost_bits(counts) == pytest.approx(best, rel=1e-12)
    assert plain_cost(counts, table.values.tolist()) == table.cost_bits(counts)


@pytest.mark.parametrize("seed", range(10))
def test_fit_of_many_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = np.bincount(exponents(rng, 100_000, spread=True), minlength=256)
    counts[rng.integers(0, 256, 60)] += rng.integers(0, 40, 60)
    table = EscapeTable.from_counts(counts)
    order = np.argsort(-counts, kind="stable")
    assert table.cost_bits(counts) == min(plain_cost(counts, order[:k].tolist()) for k in range(1, 16))
    assert table.values.tolist() == sorted(order[: table.values.size].tolist())
    parse_tables(table.to_bytes())


def test_fit_takes_the_lower_of_equally_frequent_values() -> None:
    counts = np.zeros(256, np.int64)
    counts[50:80] = 10
    assert EscapeTable.from_counts(counts).values.tolist() == list(range(50, 65))
    counts[:] = 0
    counts[9] = 5
    assert EscapeTable.from_counts(counts).to_bytes().hex() == "ff" + "00" * 14 + "01" + "09" + "00" * 15
    counts[0] = 5
    table = EscapeTable.from_counts(counts)
    assert table.values.tolist() == [0, 9] and table.frequencies.tolist() == [128, 128] + [0] * 14
    counts[1] = 1
    assert table.cost_bits(counts) == float("inf")
    with pytest.raises(InvalidArgumentError, match="at least one"):
        EscapeTable.from_counts(np.zeros(256, np.int64))


GOOD = [200, 50, *[0] * 13, 6, 3, 90, *[0] * 14]


def row_with(*changes: tuple[int, int]) -> bytes:
    row = list(GOOD)
    for place, value in changes:
        row[place] = value
    return bytes(row)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (row_with((0, 201)), "256"),
        (row_with((0, 0)), "256"),
        (bytes(32), "256"),
        (row_with((0, 0), (15, 206)), "in front"),
        (row_with((1, 0), (2, 50), (17, 0), (18, 90)), "in front"),
        (row_with((31, 1)), "not used"),
        (row_with((18, 91)), "not used"),
        (row_with((1, 0), (15, 56)), "not used"),
        (row_with((17, 3)), "ascend"),
        (row_with((17, 2)), "ascend"),
        (row_with((17, 0)), "ascend"),
        (row_with((16, 0), (17, 0)), "ascend"),
    ],
)
def test_invalid_tables(row: bytes, why: str) -> None:
    assert parse_tables(bytes(GOOD)).tolist() == [GOOD]
    with pytest.raises(CorruptionError, match=why):
        EscapeTable.from_bytes(row)
    with pytest.raises(CorruptionError, match=f"table 2: .*{why}"):
        ESCAPE16.parse_bank(bytes(GOOD) * 2 + row + bytes(32))


def test_size_of_tables() -> None:
    assert parse_tables(b"").shape == (0, 32)
    for size in (0, 31, 33, 64):
        with pytest.raises(CorruptionError, match="32 bytes"):
            EscapeTable.from_bytes((bytes(GOOD) * 2)[:size])


# ---------------------------------------------------------------------------------------------------------------------
# Hostile bytes


def sample(size: int, streams: int = 1) -> tuple[Bytes, EscapeTable, bytes]:
    data = exponents(np.random.default_rng(size), size)
    table = ESCAPE16.fit(byte_counts(data))
    return data, table, ESCAPE16.encode(data, table, streams).tobytes()


@pytest.mark.parametrize("size", [9, 130, 701])
def test_every_truncation_is_refused(size: int, kernels: str) -> None:
    data, table, payload = sample(size)
    assert decodes(payload, table, size, 1) == data.tobytes()
    for end in range(len(payload)):
        assert decodes(payload[:end], table, size, 1) is None
    for extra in (b"\0", b"\0\0", b"\1\2\3\4"):
        assert decodes(payload + extra, table, size, 1) is None


def test_flipped_bits_end_as_in_the_reference(kernels: str) -> None:
    rng = np.random.default_rng(1)
    refused = 0
    for size in (5, 71, 333, 700):
        _, table, payload = sample(size)
        for bit in rng.integers(0, 8 * len(payload), 150):
            damaged = bytearray(payload)
            damaged[bit // 8] ^= 1 << bit % 8
            found = decodes(bytes(damaged), table, size, 1)
            assert found == reference_decode(bytes(damaged), table, 1, size)
            refused += found is None
    assert refused > 100


def test_the_number_of_escapes_must_be_right(kernels: str) -> None:
    for size in (300, 9999):
        _, table, payload = sample(size)
        (count,) = struct.unpack_from("<I", payload)
        assert 2 <= count < size
        nibbles = payload[4 + count :]
        for other in (0, 1, count - 1, count + 1, count + 64):
            escaped = (payload[4 : 4 + count] + bytes(64))[:other]
            assert decodes(struct.pack("<I", other) + escaped + nibbles, table, size, 1) is None
        for other in (size, len(payload) - 4, len(payload) - 3, 1 << 31, (1 << 32) - 1):
            assert decodes(struct.pack("<I", other) + payload[4:], table, size, 1) is None


def test_escapes_in_the_last_odd_byte(kernels: str) -> None:
    table = escape_table([128, 64, 64], [1, 2])
    data = np.array([1, 2, 1, 2, 9], np.uint8)
    payload = ESCAPE16.encode(data, table, 1).tobytes()
    assert decodes(payload, table, 5, 1) == data.tobytes()
    assert decodes(bytes(4) + payload[5:], table, 5, 1) is None  # its byte is missing
    for place, bit in ((5 + 16 + 2, 0x10), (5 + 16 + 2, 0xF0), (5 + 16 + 3, 1)):  # behind the last nibble
        damaged = bytearray(payload)
        damaged[place] |= bit
        assert decodes(bytes(damaged), table, 5, 1) is None


def test_tails_can_hold_symbols_without_a_value(kernels: str) -> None:
    table = escape_table([128, 128, 0], [5, 6])
    payload = bytearray(ESCAPE16.encode(np.array([5, 6, 6, 5], np.uint8), table, 1).tobytes())
    assert payload[4 + 16] == 0x10
    payload[4 + 16] = 0x72
    assert decodes(bytes(payload), table, 4, 1) == bytes([0, 0, 6, 5]) == reference_decode(bytes(payload), table, 1, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels


def vector() -> Callable[..., int]:
    if not AVX2 or not vector_kernels():
        pytest.skip("no vector kernels here")
    from qzc.codec.kernels import escape16_avx2

    return escape16_avx2.to_nibbles


def status_of(kernel: Callable[..., None], payload: Bytes, row: NDArray[np.uint16], streams: int, out: Bytes) -> int:
    task, status = np.zeros(1, TASK), np.zeros(1, np.int64)
    task[0] = (payload.ctypes.data, payload.size, streams, row.ctypes.data, out.ctypes.data, out.size, *6 * (0,))
    kernel(task, status)
    return int(status[0])


def rows(rng: np.random.Generator) -> Iterator[NDArray[np.uint16]]:
    """Tables with values in one group of 16, in two, in as many as there are values, and few."""
    for values in (
        range(48, 63),
        range(120, 135),
        range(0, 240, 16),
        range(15, 255, 17),
        [0],
        [255],
        [0, 255],
        [7, 31],
    ):
        shares = rng.multinomial(256 - len(values) - 1, np.full(len(values) + 1, 1 / (len(values) + 1))) + 1
        yield escape_table(shares.tolist(), list(values)).row


def test_both_sets_of_kernels_find_the_same_symbols() -> None:
    to_nibbles_avx2 = vector()
    rng = np.random.default_rng(8)
    for row in rows(rng):
        for size in (*range(1, 70), *range(126, 133), 191, 192, 193, 5000):
            values = row[16 : 16 + np.count_nonzero(row[:15])]
            some = rng.choice(values, size)
            for share in (0.0, 0.02, 1.0):
                data = read_only(np.where(rng.random(size) < share, rng.integers(0, 256, size), some).astype(np.uint8))
                found = []
                for kernel in (escape16.to_nibbles, to_nibbles_avx2):
                    packed, escaped = np.zeros(-(-size // 2), np.uint8), np.zeros(size, np.uint8)
                    count = kernel(data, row, packed, escaped)
                    found.append((count, packed.tobytes(), escaped[:count].tobytes()))
                assert found[0] == found[1], (row, size, share)


@pytest.mark.parametrize("size", [1, 32767, 32768, 100_001, 262_144])
def test_counts_of_few_and_of_many_values(size: int, kernels: str) -> None:
    rng = np.random.default_rng(size)
    surprise = np.full(size, 9, np.uint8)
    surprise[size // 2 : size // 2 + 3000] = rng.integers(0, 256, surprise[size // 2 : size // 2 + 3000].size)
    narrow = np.where(rng.random(size) < 0.99, rng.integers(60, 75, size), exponents(rng, size)).astype(np.uint8)
    for data in (narrow, exponents(rng, size, spread=True), surprise, rng.integers(0, 256, size).astype(np.uint8)):
        bounds = np.array([0, size // 3, size] if size > 2 else [0, size])
        expected = [np.bincount(data[a:b], minlength=256).tolist() for a, b in pairwise(bounds.tolist())]
        assert run_counts(read_only(data), bounds, map).tolist() == expected


@pytest.mark.parametrize("size", [SAMPLED, 200_001, 500_000])
def test_counts_from_a_sample_make_tables_that_are_as_good(size: int, kernels: str) -> None:
    data, bounds = read_only(exponents(np.random.default_rng(size), size)), np.array([0, 999, size])
    exact = run_counts(data, np.array([0, size]), map)[0]
    (about,), all_of_them = about_counts(data, np.array([0, size]), map)
    assert exact.sum() == size and not np.array_equal(exact, about) and about.sum() == size // BLOCK // 4 * 4 * BLOCK
    assert not all_of_them
    assert np.array_equal(about_counts(data, bounds, map)[0][0], run_counts(data, bounds, map)[0])  # a small one
    cost, rows = escape_tables(exact[None])
    loss = EscapeTable.from_bytes(escape_tables(about[None])[1][0].astype(np.uint8).tobytes()).cost_bits(exact)
    assert cost <= loss + 8 * rows.shape[1] < cost * 1.0005


def test_what_cannot_be_told_from_noise_is_noise(kernels: str) -> None:
    data = read_only(np.random.default_rng(1).integers(0, 256, 2 * SAMPLED, np.uint8))
    (counts,), exact = about_counts(data, np.array([0, data.size]), map)
    assert not exact and counts.tolist() == [data.size // 256] * 256
    few = read_only((data & 127).astype(np.uint8))  # as even, but no noise
    (counts,), exact = about_counts(few, np.array([0, data.size]), map)
    assert exact and np.array_equal(counts, np.bincount(few, minlength=256))


@pytest.mark.parametrize("kind", ["even", "one", "waves"])
def test_what_is_too_even_or_worth_few_bits_is_counted(kind: str, kernels: str) -> None:
    """Forty values; one of forty nearly always; all values, some half as likely as others: no sample may make a table of those."""
    rng, size = np.random.default_rng(3), 2 * SAMPLED
    waves = 1 + np.cos(np.arange(256) / 40) / 2
    many = rng.integers(0, 40, size) if kind != "waves" else rng.choice(256, size, p=waves / waves.sum())
    data = read_only(np.where(rng.random(size) < (kind == "one") * 0.9, 7, many).astype(np.uint8))
    (counts,), exact = about_counts(data, np.array([0, size]), map)
    assert exact and np.array_equal(counts, np.bincount(data, minlength=256))


@pytest.mark.parametrize("values", [1, 2, 15, 30])
def test_a_sample_does_not_hide_what_a_chunk_holds(values: int, kernels: str) -> None:
    """Rare bytes where no sample looks, among one value, a few, as many as have symbols, and more."""
    size, rng = 3 * SAMPLED, np.random.default_rng(values)
    data = (
        rng.integers(0, values, size).astype(np.uint8)
        if values < 30
        else rng.geometric(0.4, size).clip(1, 30).astype(np.uint8)
    )
    place: Any = block_of_sample
    taken = {place.py_func(i, 2) for i in range(size // BLOCK // 4)}
    hidden = [block for block in range(size // BLOCK) if block not in taken]
    data[np.array(hidden[::9]) * BLOCK + 5] = 200
    (counts,), exact = about_counts(read_only(data), np.array([0, size]), map)
    assert (counts[200] > 0) == exact == (values < 30)
    for extra in (0.05, 0.0):  # coder 6, and one whose table must hold every byte
        (chunk,) = encode_run(data, size, 8, "ans", size, verify=True, extra=extra)
        out = np.empty(size, np.uint8)
        decode_chunk(chunk.coder, chunk.streams, chunk.checksum, chunk.payload, chunk.table, out)
        assert np.array_equal(out, data)
        assert (chunk.coder == ESCAPE16.id) == (extra > 0) or values < 30
    assert escape_tables(counts[None])[1][0, 15] > 0 or values < 30


@pytest.mark.parametrize("seed", range(4))
def test_tables_of_a_run(seed: int) -> None:
    """Own or shared, as one by one: what `EscapeTable.from_counts` finds, and no choice of tables is cheaper."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([60, 700, 20_000]))
    chunks = [exponents(rng, size, spread=bool(spread)) for spread in rng.integers(0, 2, 3)]
    counts = np.array([np.bincount(chunk, minlength=256) for chunk in chunks])
    bits, rows = escape_tables(counts)
    own, shared = [*map(EscapeTable.from_counts, counts)], EscapeTable.from_counts(counts.sum(axis=0))
    best = sum(table.cost_bits(row) + 256 for table, row in zip(own, counts, strict=True))
    for with_shared in range(1, 4):
        for takes in combinations(range(3), with_shared):
            tables = [shared if i in takes else own[i] for i in range(3)]
            cost = sum(table.cost_bits(row) for table, row in zip(tables, counts, strict=True)) + 256 * (
                4 - with_shared
            )
            best = min(best, cost)
    assert bits == best
    taken = {row.tobytes() for row in rows}
    assert taken <= {table.row.tobytes() for table in (*own, shared)}
    assert bits == sum(EscapeTable(row).cost_bits(n) for row, n in zip(rows, counts, strict=True)) + 256 * len(taken)


def damaged(rng: np.random.Generator, payload: Bytes, streams: int, row: NDArray[np.uint16]) -> Iterator[Bytes]:
    """Variations of a payload: most are corrupt."""
    count = int(payload[:4].view("<u4")[0])
    yield payload
    for bad in hostile(rng, payload[4 + count :], streams, row[:16].copy()):
        yield np.concatenate([payload[: 4 + count], bad])
    for other in (0, count - 1, count + 1, payload.size - 4, payload.size, 1 << 31):
        head = np.frombuffer(struct.pack("<I", other & 0xFFFFFFFF), np.uint8)
        yield np.concatenate([head, payload[4:]])
        yield np.concatenate(
            [head, rng.integers(0, 256, min(max(other, 0), 10_000)).astype(np.uint8), payload[4 + count :]]
        )
    for end in (0, 1, 3, 4, 4 + count, int(rng.integers(payload.size))):
        yield payload[:end]
    yield np.concatenate([payload[:4], rng.integers(0, 256, payload.size - 4).astype(np.uint8)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no mprotect")
@pytest.mark.parametrize("at_end", [False, True])
def test_no_access_out_of_bounds(at_end: bool) -> None:
    """Between pages that must not be touched: one byte too far kills the process."""
    to_nibbles_avx2 = vector()
    rng = np.random.default_rng(at_end)
    rejected = accepted = 0
    for size in (1, 2, 63, 64, 65, 127, 128, 129, 130, 300, 1000, 4097, 9999):
        for streams in (1, 2, 4):
            if not fills(-(-size // 2), streams):
                continue
            data = exponents(rng, size, spread=bool(rng.integers(2)))
            all_escaped = escape_table([1, 255], [255])  # far more escaped bytes than nibbles that say so
            source, packed, escaped = Guarded(size, at_end), Guarded(-(-size // 2), at_end), Guarded(size, at_end)
            out, expected = Guarded(size, at_end), np.zeros(size, np.uint8)
            source.array[:] = data
            for table in (ESCAPE16.fit(byte_counts(data)), all_escaped):
                to_nibbles_avx2(read_only(source.array), table.row, packed.array, escaped.array)
                good = ESCAPE16.encode(data, table, streams)
                for number, payload in enumerate(damaged(rng, good, streams, table.row)):
                    view = Guarded(payload.size, at_end)
                    view.array[:] = payload
                    status = status_of(batch_kernels()[6], view.array, table.row, streams, out.array)
                    wanted = status_of(batch.decode_escape16, payload, table.row, streams, expected)
                    assert (status == OK) == (wanted == OK), (size, streams, number)
                    assert status != OK or np.array_equal(out.array, expected), (size, streams, number)
                    accepted += status == OK
                    rejected += status != OK
    assert accepted > 30 and rejected > 500


@pytest.mark.parametrize("share", [0.3, 0.97])
def test_both_sets_of_kernels_code_runs_alike(share: float) -> None:
    """As single chunks are coded: chunks of odd sizes, one without variety, one that would grow; likely bytes and rare ones."""
    vector()
    from qzc.codec.kernels import escape_run, escape_run_avx2

    rng = np.random.default_rng(5)
    sizes = [262_144, 1, 999, 5000, 300_001, 64]
    likely = [np.where(rng.random(n) < share, 7, exponents(rng, n)).astype(np.uint8) for n in sizes]
    likely[3][:] = 9
    likely[5][:] = np.arange(64)
    data = read_only(np.concatenate(likely))
    bounds = np.cumsum([0, *sizes])
    counts = run_counts(data, bounds, map)
    coded = np.count_nonzero(counts, axis=1) > 1
    rows = np.zeros((len(sizes), 32), np.uint16)
    rows[coded] = escape_tables(counts[coded])[1]
    streams = np.array([ESCAPE16.default_streams(n) for n in sizes])
    memory, found = np.empty(memory_bound(max(sizes), 4), np.uint8), []
    for module in (escape_run, escape_run_avx2):
        room, nbytes = np.zeros(data.size, np.uint8), np.zeros(len(sizes), np.int64)
        checksums = np.zeros(len(sizes), np.uint64)
        module.encode(data, bounds, streams, rows, memory, room, nbytes, checksums, xxh3_address())
        found.append([room[b - n : b].tobytes() for b, n in zip(bounds[1:], nbytes, strict=True)])
        assert all(checksums[i] == xxhash.xxh3_64_intdigest(found[-1][i]) for i in np.flatnonzero(nbytes))
    assert found[0] == found[1]
    assert [not payload for payload in found[0]] == [False, True, False, True, False, True]
    for i in (0, 2, 4):
        table = EscapeTable.from_bytes(rows[i].astype(np.uint8).tobytes())
        assert ESCAPE16.encode(data[bounds[i] : bounds[i + 1]], table, int(streams[i])).tobytes() == found[0][i]
    assert (rows[0, :16].max() > 181) == (share > 0.9)  # both vector encoders
