"""Bits at equal quality: curves of (SNR, bits) per grid, read at the same SNR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..codec.errors import InvalidArgumentError


@dataclass(frozen=True)
class RatePoint:
    """One precision of a grid. snr_db: weight SNR. bits: bits per weight, everything counted."""

    snr_db: float
    bits: float


@dataclass(frozen=True)
class EqualSnr:
    """Bits per weight of every grid at one SNR; None where its curve does not reach there."""

    snr_db: float
    bits: Mapping[str, float | None]

    @property
    def best(self) -> str | None:
        """The grid that needs the fewest bits."""
        known = {name: bits for name, bits in self.bits.items() if bits is not None}
        return min(known, key=lambda name: known[name]) if known else None


def bits_at(curve: Sequence[RatePoint], snr_db: float) -> float | None:
    """Bits per weight at `snr_db`, linear between neighbours; None outside the curve: nothing is extrapolated.

    Linear is right in principle: at high rate SNR grows by 6.02 dB a bit. Points may be in any order. Where a curve
    passes an SNR more than once, the fewest bits count.

    >>> bits_at([RatePoint(10.0, 2.0), RatePoint(16.0, 3.0)], 13.0)
    2.5
    """
    points = sorted(curve, key=lambda point: (point.bits, -point.snr_db))
    found: list[float] = [point.bits for point in points if point.snr_db == snr_db]
    for low, high in pairwise(points):
        if min(low.snr_db, high.snr_db) < snr_db < max(low.snr_db, high.snr_db):
            share = (snr_db - low.snr_db) / (high.snr_db - low.snr_db)
            found.append(low.bits + share * (high.bits - low.bits))
    return min(found, default=None)


def equal_snr(curves: Mapping[str, Sequence[RatePoint]], reference: str) -> tuple[EqualSnr, ...]:
    """All curves read at the SNR of each point of one of them, in ascending order.

    Raises InvalidArgumentError for a reference that is no curve.
    """
    if reference not in curves:
        raise InvalidArgumentError(f"no curve {reference!r}; there are {', '.join(curves)}")
    levels = sorted({point.snr_db for point in curves[reference]})
    return tuple(EqualSnr(snr, {name: bits_at(curve, snr) for name, curve in curves.items()}) for snr in levels)
