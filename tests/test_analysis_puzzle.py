"""Coder efficiency, bits at equal SNR, and the random control."""

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qzc.analysis.control import LAWS, Law, bound, draw, fans
from qzc.analysis.efficiency import efficiency, huffman_bits
from qzc.analysis.entropy import shannon_entropy
from qzc.analysis.equal_snr import RatePoint, bits_at, equal_snr
from qzc.codec.errors import InvalidArgumentError


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60))
def test_huffman_is_that_of_a_heap(counts: list[int]) -> None:
    heap = [c for c in counts if c]
    total, length = sum(heap), 0
    if len(heap) == 1:
        assert huffman_bits(np.array(counts)) == 1.0
        return
    heapq.heapify(heap)
    while len(heap) > 1:
        weight = heapq.heappop(heap) + heapq.heappop(heap)
        length += weight
        heapq.heappush(heap, weight)
    assert huffman_bits(np.array(counts)) == (length / total if total else 0.0)


def test_huffman_stays_within_a_bit() -> None:
    counts = np.array([1000, 1, 1, 1])
    assert 0.0 < huffman_bits(counts) - shannon_entropy(counts) < 1.0
    assert huffman_bits(np.array([1, 1, 2, 4])) == pytest.approx(1.75)
    assert huffman_bits(np.zeros(4, np.int64)) == 0.0
    with pytest.raises(InvalidArgumentError, match="negative"):
        huffman_bits(np.array([3, -1]))


def test_efficiency_ends() -> None:
    assert efficiency(4.0, 3.5, 4.0) == 0.0
    assert efficiency(3.5, 3.5, 4.0) == 1.0
    assert efficiency(3.75, 3.5, 4.0) == pytest.approx(0.5)
    assert efficiency(4.5, 3.5, 4.0) == -1.0
    assert efficiency(4.0, 4.0, 4.0) is None


CURVE = [RatePoint(7.0, 2.0), RatePoint(13.0, 3.0), RatePoint(19.0, 4.0)]


def test_bits_between_points_are_on_the_line() -> None:
    assert bits_at(CURVE, 13.0) == 3.0
    assert bits_at(CURVE, 16.0) == pytest.approx(3.5)
    assert bits_at(list(reversed(CURVE)), 8.5) == pytest.approx(2.25)
    assert bits_at(CURVE, 6.9) is None and bits_at(CURVE, 19.1) is None and bits_at([], 5.0) is None


def test_the_cheapest_place_counts() -> None:
    """A curve that falls back: more bits, lower SNR."""
    assert bits_at([RatePoint(10.0, 2.0), RatePoint(8.0, 3.0), RatePoint(12.0, 4.0)], 9.0) == pytest.approx(2.5)


def test_equal_snr_reads_all_curves_at_the_reference() -> None:
    better = [RatePoint(p.snr_db, p.bits - 0.2) for p in CURVE[:2]]
    levels = equal_snr({"group": CURVE, "step": better}, "group")
    assert [level.snr_db for level in levels] == [7.0, 13.0, 19.0]
    assert levels[1].bits == {"group": 3.0, "step": 2.8} and levels[1].best == "step"
    assert levels[2].bits["step"] is None and levels[2].best == "group"
    with pytest.raises(InvalidArgumentError, match="no curve 'x'"):
        equal_snr({"group": CURVE}, "x")


def test_fans() -> None:
    assert fans([64, 32]) == (32, 64)
    assert fans([64, 32, 3, 3]) == (288, 576)
    assert fans([7]) == (7, 7) and fans([]) == (1, 1) and fans([0, 5]) == (5, 1)


@pytest.mark.parametrize("law", LAWS)
def test_draws_are_reproducible_and_spread_as_said(law: Law) -> None:
    weights = draw(law, [100, 400], 40_000, 0.02, np.dtype(np.float32), seed=5)
    assert weights.dtype == np.float32
    assert (weights == draw(law, [100, 400], 40_000, 0.02, np.dtype(np.float32), seed=5)).all()
    assert (weights != draw(law, [100, 400], 40_000, 0.02, np.dtype(np.float32), seed=6)).any()
    size = bound(law, [100, 400], 0.02)
    spread = size if law == "gaussian" else size / np.sqrt(3)
    assert float(weights.std()) == pytest.approx(spread, rel=0.02)
    if law != "gaussian":
        assert float(np.abs(weights).max()) <= size


def test_draws_never_change() -> None:
    """Seeds are part of published figures."""
    kaiming = draw("kaiming", [4, 4], 3, 1.0, np.dtype(np.float64), seed=1)
    assert kaiming.tolist() == pytest.approx(
        [-0.08297799529742598, 0.22032449344215808, -0.4998856251826551], abs=1e-15
    )
    assert draw("gaussian", [4, 4], 2, 1.0, np.dtype(np.float64), seed=1).tolist() == pytest.approx(
        [1.6243453636632417, -0.6117564136500754], abs=1e-15
    )


def test_all_mantissa_bits_of_a_draw_are_in_use() -> None:
    weights = draw("kaiming", [64, 64], 4096, 1.0, np.dtype(np.float32), seed=0)
    low = np.bincount(weights.view(np.uint32) & 1, minlength=2)
    assert shannon_entropy(low) > 0.999


def test_unknown_law() -> None:
    with pytest.raises(InvalidArgumentError, match="unknown law"):
        bound("cauchy", [2, 2], 1.0)  # type: ignore[arg-type]
