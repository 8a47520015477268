"""Frequency tables and code lengths: valid, optimal, and the same bytes in and out."""

import heapq
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.huffman_code import CodeLengths
from qzc.codec.model import FrequencyTable


def ideal_bits(counts: NDArray[np.int64], frequencies: NDArray[np.uint16]) -> float:
    used = counts > 0
    p = frequencies[used] / frequencies.sum(dtype=np.int64)
    return float(-(counts[used] * np.log2(p)).sum())


def best_bits(counts: NDArray[np.int64], total: int) -> float:
    """The least cost of all tables, by dynamic programming over symbols and slots."""
    used = counts[counts > 0]
    costs = -np.log2(np.arange(1, total) / total)
    best = np.full(total + 1, np.inf)
    best[0] = 0.0
    for n in used:
        extended = np.full(total + 1, np.inf)
        for f in range(1, total):
            extended[f:] = np.minimum(extended[f:], best[: total + 1 - f] + n * costs[f - 1])
        best = extended
    return float(best[total])


@given(st.lists(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 10**7)), min_size=16, max_size=16))
def test_normalisation_is_optimal(values: list[int]) -> None:
    counts = np.array(values, np.int64)
    if np.count_nonzero(counts) == 0:
        counts[5] = 1
    table = FrequencyTable.from_counts(counts, 8)
    assert int(table.frequencies.sum()) == 256 and table.frequencies.max() <= 255
    assert (table.frequencies[counts > 0] >= 1).all()
    found = ideal_bits(counts, table.frequencies)
    assert table.cost_bits(counts) == pytest.approx(found, rel=1e-12, abs=2.0**-20 * int(counts.sum()))
    if np.count_nonzero(counts) > 1:
        assert (table.frequencies[counts == 0] == 0).all()
        assert found <= best_bits(counts, 256) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_normalisation_of_bytes_cannot_be_improved_by_moving_a_slot(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = (rng.pareto(0.5, 256) * (rng.random(256) < 0.2 + seed / 6)).astype(np.int64)
    counts[:2] += 1
    f = FrequencyTable.from_counts(counts, 12).frequencies
    used = np.flatnonzero(counts)
    assert int(f.sum(dtype=np.int64)) == 4096 and (f[used] >= 1).all() and f[counts == 0].sum() == 0
    gain = max(int(counts[s]) * np.log2(1 + 1 / int(f[s])) for s in used)
    loss = min(int(counts[s]) * np.log2(1 + 1 / (int(f[s]) - 1)) for s in used if f[s] > 1)
    assert gain <= loss * (1 + 1e-12)


@pytest.mark.parametrize(("symbols", "precision"), [(16, 8), (256, 12)])
def test_one_counted_symbol(symbols: int, precision: int) -> None:
    for symbol in (0, 1, symbols - 1):
        counts = np.zeros(symbols, np.int64)
        counts[symbol] = 10**12
        table = FrequencyTable.from_counts(counts, precision)
        assert table.frequencies[symbol] == 2**precision - 1 and np.count_nonzero(table.frequencies) == 2
        assert 0 < table.cost_bits(counts) < 0.006 * counts.sum()


@pytest.mark.parametrize("counts", [[10**15, 1], [2**55, 2**55 - 1], [1] * 16, [1, 10**14] * 8])
def test_lopsided_and_huge_counts(counts: list[int]) -> None:
    padded = np.array(counts + [0] * (16 - len(counts)), np.int64)
    f = FrequencyTable.from_counts(padded, 8).frequencies
    assert f.sum() == 256 and (f[padded > 0] >= 1).all() and f.max() <= 255


def test_tables_are_reproducible() -> None:
    """Exact frequencies for given counts: they may not depend on the platform's logarithm."""
    counts = np.array([1, 3, 9, 40, 120, 400, 900, 1500, 1800, 1400, 800, 300, 100, 30, 6, 0])
    found = FrequencyTable.from_counts(counts, 8).frequencies
    assert found.tolist() == [1, 1, 1, 1, 4, 14, 31, 51, 62, 48, 27, 10, 3, 1, 1, 0]


def test_counts_that_make_no_table() -> None:
    for counts in (np.zeros(16, np.int64), np.array([3, -1] + [0] * 14)):
        with pytest.raises(InvalidArgumentError, match="needs counts"):
            FrequencyTable.from_counts(counts, 8)
    with pytest.raises(InvalidArgumentError, match="needs counts"):
        CodeLengths.from_counts(np.zeros(256, np.int64))


@pytest.mark.parametrize(
    ("frequencies", "precision"), [([256] + [0] * 15, 8), ([128] * 3 + [0] * 13, 8), ([128, 128], 8), ([16] * 256, 8)]
)
def test_invalid_frequency_tables(frequencies: list[int], precision: int) -> None:
    with pytest.raises(InvalidArgumentError):
        FrequencyTable(np.array(frequencies, np.uint16), precision)


def test_a_table_cannot_be_changed() -> None:
    table = FrequencyTable.from_counts(np.arange(16), 8)
    with pytest.raises(ValueError, match="read-only"):
        table.frequencies[0] = 1
    assert table.starts.tolist() == [0, *np.cumsum(table.frequencies)[:-1].tolist()]


def test_cost_of_a_symbol_that_cannot_be_coded() -> None:
    table = FrequencyTable.from_counts(np.array([1, 1] + [0] * 14), 8)
    code = CodeLengths.from_counts(np.array([1, 1] + [0] * 254))
    assert table.cost_bits(np.array([4, 4] + [0] * 14)) == 8 and code.cost_bits(np.array([4, 4] + [0] * 254)) == 8
    assert table.cost_bits(np.ones(16, np.int64)) == float("inf")
    assert code.cost_bits(np.ones(256, np.int64)) == float("inf")


@given(st.lists(st.integers(0, 1000), min_size=256, max_size=256), st.sampled_from([16, 256]))
def test_table_rows_round_trip(values: list[int], symbols: int) -> None:
    counts = np.array(values[:symbols], np.int64)
    counts[3] += 1
    table = FrequencyTable.from_counts(counts, 8 if symbols == 16 else 12)
    row = table.to_bytes()
    assert len(row) == {16: 16, 256: 384}[symbols]
    assert FrequencyTable.from_bytes(row, symbols).frequencies.tolist() == table.frequencies.tolist()


def test_golden_table_rows() -> None:
    counts = np.zeros(256, np.int64)
    counts[[0, 1, 255]] = 1, 2, 5
    assert FrequencyTable.from_counts(counts, 12).to_bytes() == bytes([0x00, 0x02, 0x40]) + bytes(379) + b"\0\xa0"
    assert CodeLengths.from_counts(counts).to_bytes() == b"\x22" + bytes(126) + b"\x10"


# ---------------------------------------------------------------------------------------------------------------------
# Huffman


def huffman_bits(counts: NDArray[np.int64]) -> int:
    """Size of the best code without a limit: the sum of the inner nodes of Huffman's tree."""
    heap = [int(n) for n in counts if n]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        node = heapq.heappop(heap) + heapq.heappop(heap)
        total += node
        heapq.heappush(heap, node)
    return total


def limited_bits(counts: NDArray[np.int64], limit: int) -> float:
    """Size of the best code of at most `limit` bits, by dynamic programming over symbols and code space."""
    space = 1 << limit
    best = np.full(space + 1, np.inf)
    best[0] = 0
    for n in counts[counts > 0]:
        extended = np.full(space + 1, np.inf)
        for length in range(1, limit + 1):
            span = space >> length
            extended[span:] = np.minimum(extended[span:], best[:-span] + n * length)
        best = extended
    return float(best.min())


@given(st.lists(st.integers(0, 50), min_size=2, max_size=256))
def test_codes_are_optimal_where_the_limit_does_not_bind(values: list[int]) -> None:
    counts = np.zeros(256, np.int64)
    counts[: len(values)] = values
    counts[:2] += 1
    code = CodeLengths.from_counts(counts)
    if code.lengths.max() < 11:
        assert code.cost_bits(counts) == huffman_bits(counts)
    assert code.cost_bits(counts) >= huffman_bits(counts)


@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 10**9)), min_size=2, max_size=24), st.integers(8, 11))
def test_codes_are_optimal_within_the_limit(values: list[int], limit: int) -> None:
    counts = np.zeros(256, np.int64)
    counts[7 : 7 + len(values)] = values
    counts[7:9] += 1
    code = CodeLengths.from_counts(counts, limit)
    assert code.lengths.max() <= limit
    assert code.cost_bits(counts) == limited_bits(counts, limit)


def test_the_limit_binds_on_fibonacci_counts() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 24:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    counts = np.array(fibonacci + [0] * 232)
    code = CodeLengths.from_counts(counts)
    assert code.lengths.max() == 11
    assert huffman_bits(counts) < code.cost_bits(counts) == limited_bits(counts, 11)


@given(st.lists(st.integers(0, 10**6), min_size=256, max_size=256), st.integers(1, 256))
def test_codes_are_canonical_and_complete(values: list[int], used: int) -> None:
    counts = np.array(values[:used] + [0] * (256 - used))
    counts[0] += 1
    code = CodeLengths.from_counts(counts)
    lengths = {s: int(code.lengths[s]) for s in range(256) if code.lengths[s]}
    assert set(lengths) == set(np.flatnonzero(counts).tolist())
    if len(lengths) > 1:
        assert sum(Fraction(1, 2**n) for n in lengths.values()) == 1
    else:
        assert lengths == {0: 1}
    words = {s: format(int(code.codes[s]) >> 8, f"0{n}b")[::-1] for s, n in lengths.items()}
    assert all(int(code.codes[s]) & 255 == n for s, n in lengths.items())
    ordered = sorted(words, key=lambda s: (lengths[s], s))
    assert all(words[a] < words[b] and not words[b].startswith(words[a]) for a, b in pairwise(ordered))
    for window in range(0, 2**11, 37):
        bits = format(window, "011b")[::-1]
        hits = [s for s, word in words.items() if bits.startswith(word)]
        entry = int(code.windows[window])
        assert hits == ([entry >> 8] if entry & 255 else [])
    assert CodeLengths.from_bytes(code.to_bytes()).lengths.tolist() == code.lengths.tolist()


@pytest.mark.parametrize("lengths", [[1] * 3, [1, 12], [2, 2], [0], [2], [1, 2]])
def test_invalid_code_lengths(lengths: list[int]) -> None:
    with pytest.raises(InvalidArgumentError):
        CodeLengths(np.array(lengths + [0] * (256 - len(lengths)), np.uint8))
