"""Frequency tables: which symbol is how likely, in exact integers. They know nothing of how a coder uses them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import CorruptionError, InvalidArgumentError

PRECISION = {16: 8, 256: 12}  # number of symbols -> bits of precision
KINDS = ((16, 8), (16, 12), *((256, bits) for bits in range(8, 16)))  # symbols, bits of precision: tables of the format
LN2 = 0.6931471805599453
UNITS = 1 << 20  # costs are sums of integers of this many units per bit: the same on every machine


@dataclass(frozen=True, eq=False)
class FrequencyTable:
    """Frequencies of 16 or 256 symbols: symbol s has probability `frequencies[s] / 2**precision`.

    frequencies: uint16 `[16]` (precision 8 or 12) or `[256]` (precision 8 .. 15), read-only. Their sum is 2**precision and each is
    smaller than that. A symbol of frequency 0 cannot be coded.
    Raises InvalidArgumentError for others.
    """

    frequencies: NDArray[np.uint16]
    precision: int

    def __post_init__(self) -> None:
        f = np.array(self.frequencies, np.uint16)
        if f.ndim != 1 or (f.size, self.precision) not in KINDS:
            raise InvalidArgumentError(f"no frequency table has shape {f.shape} and {self.precision} bits of precision")
        total = 1 << self.precision
        if int(f.sum(dtype=np.int64)) != total or int(f.max()) == total:
            raise InvalidArgumentError(f"frequencies must add up to {total}, each of them smaller; got {f.tolist()}")
        f.flags.writeable = False
        object.__setattr__(self, "frequencies", f)

    @cached_property
    def starts(self) -> NDArray[np.uint16]:
        """Sums of the frequencies of all smaller symbols: uint16, read-only."""
        starts = (np.cumsum(self.frequencies, dtype=np.int64) - self.frequencies).astype(np.uint16)
        starts.flags.writeable = False
        return starts

    @classmethod
    def trusted(cls, frequencies: NDArray[np.uint16], precision: int) -> FrequencyTable:
        """The table of a read-only array that has just been made to be one: nothing is checked or copied."""
        table = object.__new__(cls)
        object.__setattr__(table, "frequencies", frequencies)
        object.__setattr__(table, "precision", precision)
        return table

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64], precision: int) -> FrequencyTable:
        """The table that codes these counts (int64 `[16]` or `[256]`) in the fewest bits.

        Every counted symbol gets a frequency of at least 1, others get 0. If just one symbol is counted, another one
        has to take the frequency 1. Raises InvalidArgumentError if nothing is counted.
        """
        from .kernels.normalize import normalize

        used = np.flatnonzero(counts)
        if used.size == 0 or counts.min() < 0:
            raise InvalidArgumentError("a frequency table needs counts, and at least one that is not zero")
        frequencies = np.zeros(counts.size, np.int64)
        if used.size == 1:
            frequencies[used[0]] = (1 << precision) - 1
            frequencies[0 if used[0] else 1] = 1
        else:
            normalize(counts.astype(np.int64), log_steps(precision), frequencies)
        narrow = frequencies.astype(np.uint16)
        narrow.flags.writeable = False
        return cls.trusted(narrow, precision)

    def cost_bits(self, counts: NDArray[np.int64]) -> float:
        """Bits that an ideal coder spends on these counts with this table; inf if it cannot code a counted symbol."""
        if counts[self.frequencies == 0].any():
            return float("inf")
        return int((counts * cost_units(self.precision)[self.frequencies]).sum()) / UNITS

    def to_bytes(self) -> bytes:
        """The row of a table bank: frequencies of 8 bits, or of 12 bits, two in three bytes."""
        if self.precision == 8:
            return self.frequencies.astype(np.uint8).tobytes()
        pairs = self.frequencies.astype(np.uint32).reshape(-1, 2)
        words = pairs[:, 0] | pairs[:, 1] << 12
        return words.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, symbols: int, precision: int | None = None) -> FrequencyTable:
        """Read a row of a table bank for 16 or 256 symbols. Raises CorruptionError for any but a valid table."""
        precision = precision or PRECISION[symbols]
        if len(data) != symbols * precision // 8:
            want = symbols * precision // 8
            raise CorruptionError(f"a frequency table of {symbols} symbols has {want} bytes, got {len(data)}")
        return cls(parse_frequencies(data, symbols, precision)[0], precision)


def parse_frequencies(bank: Buffer, symbols: int, precision: int | None = None) -> NDArray[np.uint16]:
    """The rows of a table bank for 16 or 256 symbols, as uint16 `[rows, symbols]`.

    Raises CorruptionError naming the first row that is not a valid table.
    """
    precision = precision or PRECISION[symbols]
    rows = read_only(bank).reshape(-1, symbols * precision // 8)
    if precision == 8:
        frequencies = rows.astype(np.uint16)
    else:
        low, middle, high = np.moveaxis(rows.reshape(len(rows), symbols // 2, 3).astype(np.uint16), 2, 0)
        frequencies = np.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], axis=2).reshape(len(rows), symbols)
    totals = frequencies.sum(axis=1, dtype=np.int64)
    wrong = np.flatnonzero(totals != 1 << precision)
    if len(wrong):
        total = totals[wrong[0]]
        raise CorruptionError(f"table {wrong[0]}: the frequencies of a table add up to {total}, not {1 << precision}")
    return frequencies


@cache
def log_steps(precision: int) -> NDArray[np.float64]:
    """ln((f + 1) / f) for f = 0 .. 2**precision - 1 (inf for 0), from + - * / alone.

    The C library's logarithm differs between platforms in the last bit, and tables must not: files are reproducible.
    """
    f = np.arange(1 << precision, dtype=np.float64)
    z = 1.0 / (2.0 * f + 1.0)  # ln((f + 1) / f) = 2 artanh(z) = 2 (z + z^3 / 3 + z^5 / 5 + ..), z <= 1/3 for f >= 1
    square, power, total = z * z, z.copy(), z.copy()
    for n in range(3, 41, 2):
        power = power * square
        total = total + power / n
    steps: NDArray[np.float64] = 2.0 * total
    steps[0] = np.inf
    return steps


@cache
def cost_units(precision: int) -> NDArray[np.int64]:
    """-log2(f / 2**precision) in units of 1 / UNITS bit, for f = 0 .. 2**precision - 1 (0 for f = 0)."""
    logs = np.concatenate([[0.0, 0.0], np.cumsum(log_steps(precision)[1:])])  # ln(f) at f, 0 at 0
    cost = precision - logs / (logs[2])
    units: NDArray[np.int64] = np.rint(cost * UNITS).astype(np.int64)[:-1]
    units[0] = 0
    return units


@cache
def log_units() -> NDArray[np.int64]:
    """log2(n) in units of 1 / UNITS bit, for n = 0 .. 4095 (0 for n = 0)."""
    logs: NDArray[np.int64] = 12 * UNITS - cost_units(12)
    logs[0] = 0
    return logs


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Bits that these counts (int64, below 2^31) are worth with a model that knows them exactly."""
    used = np.append(counts[counts > 0], counts.sum())
    exponents = np.frexp(used)[1].astype(np.int64) - 1
    z = (used - (1 << exponents)) / (used + (1 << exponents))  # ln(m) = 2 artanh((m - 1) / (m + 1)), 1 <= m < 2
    square, power, total = z * z, z.copy(), z.copy()
    for n in range(3, 41, 2):
        power = power * square
        total = total + power / n
    logs = exponents * UNITS + np.rint(total * (2.0 * UNITS / LN2)).astype(np.int64)
    return int(used[-1] * logs[-1] - (used[:-1] * logs[:-1]).sum()) / UNITS
