"""Entropy against independent computations."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qzc.analysis.entropy import level_bits, shannon_entropy
from qzc.codec.errors import InvalidArgumentError

COUNTS = st.lists(st.integers(0, 2**40), max_size=256)


def exact_entropy(counts: list[int]) -> float:
    """The definition in 50 decimal digits."""
    with localcontext() as context:
        context.prec = 50
        total = Decimal(sum(counts))
        bits = Decimal(0)
        for count in counts:
            if count:
                p = count / total
                bits -= p * p.ln() / Decimal(2).ln()
        return float(bits)


@given(COUNTS)
def test_equals_the_definition(counts: list[int]) -> None:
    assert shannon_entropy(np.array(counts, np.int64)) == pytest.approx(exact_entropy(counts), abs=1e-9)


@given(COUNTS.filter(any))
def test_equals_scipy(counts: list[int]) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    assert shannon_entropy(np.array(counts, np.int64)) == pytest.approx(scipy_stats.entropy(counts, base=2), abs=1e-9)


@pytest.mark.parametrize(
    ("counts", "bits"),
    [
        ([], 0.0),
        ([0, 0], 0.0),  # no symbols at all
        ([7], 0.0),
        ([0, 5, 0], 0.0),  # one symbol costs nothing
        ([1, 1], 1.0),
        ([1] * 256, 8.0),
        ([2, 1, 1], 1.5),
        ([[2, 1], [1, 0]], 1.5),  # the shape does not matter
    ],
)
def test_known_values(counts: list[int], bits: float) -> None:
    assert shannon_entropy(np.array(counts, np.int64)) == bits


def test_zero_is_not_negative() -> None:
    assert math.copysign(1.0, shannon_entropy(np.array([9, 0]))) == 1.0


def test_unsigned_counts_do_not_wrap() -> None:
    # 2**31 + 2**31 in uint32 would be 0.
    assert shannon_entropy(np.array([2**31, 2**31], np.uint32)) == 1.0


def test_negative_counts_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="-1"):
        shannon_entropy(np.array([3, -1]))


def test_level_bits() -> None:
    assert [level_bits(n) for n in (1, 2, 16, 256)] == [0.0, 1.0, 4.0, 8.0]
    assert level_bits(3) == pytest.approx(1.584962500721156, abs=1e-12)
    with pytest.raises(InvalidArgumentError, match="at least one level"):
        level_bits(0)
