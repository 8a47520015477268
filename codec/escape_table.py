"""Tables of coder 6: which bytes have a symbol of their own, and how likely each symbol is, the escape among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import CorruptionError, InvalidArgumentError
from .model import UNITS, cost_units, log_steps

NBYTES = 32
SYMBOLS = 15  # and the escape
BYTE_BITS = 8  # of an escaped byte, behind the escape
PRECISION = 8


@dataclass(frozen=True, eq=False)
class EscapeTable:
    """Up to 15 bytes with symbols of their own; symbol 15 is the escape, behind which any byte can follow.

    row: a row of the table bank as kernels take it, uint16 `[32]`, read-only: 16 frequencies that add up to 256, the values
    of symbols 0..14, and a 0. Symbols of frequency > 0 come first, in ascending order of their values; the others have
    the value 0. Made by `from_counts` or `from_bytes`.
    """

    row: NDArray[np.uint16]

    @property
    def frequencies(self) -> NDArray[np.uint16]:
        """Of the 16 symbols: uint16 `[16]`, read-only."""
        return self.row[:16]

    @property
    def values(self) -> NDArray[np.uint8]:
        """The bytes with symbols of their own, ascending: uint8 `[1 .. 15]`."""
        return self.row[16 : 16 + np.count_nonzero(self.row[:SYMBOLS])].astype(np.uint8)

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64]) -> EscapeTable:
        """The table that codes these counts of bytes (int64 `[256]`) in the fewest bits, escaped bytes included.

        Bytes with symbols of their own are the most frequent ones, of equally frequent ones the lower. A rare byte
        takes 1/256 of the code space with a symbol and next to nothing without one: so there may be fewer than 15, also
        where more bytes occur. Raises InvalidArgumentError if nothing is counted.
        """
        from .kernels.escape16 import fit

        if counts.min() < 0 or not counts.any():
            raise InvalidArgumentError("a frequency table needs counts, and at least one that is not zero")
        order = np.argsort(-counts, kind="stable")[:SYMBOLS]
        row = np.zeros(NBYTES, np.uint16)
        fit(counts, order, log_steps(PRECISION), cost_units(PRECISION), row)
        return cls._of(row)

    def cost_bits(self, counts: NDArray[np.int64]) -> float:
        """Bits that an ideal coder spends on these counts of bytes (int64 `[256]`), escaped bytes included.

        inf if a counted byte has no symbol and neither has the escape.
        """
        units, values = cost_units(PRECISION), self.values
        own = counts[values]
        escaped = int(counts.sum() - own.sum())
        escape = int(self.row[SYMBOLS])
        if escaped and not escape:
            return float("inf")
        cost = int((own * units[self.row[: values.size]]).sum()) + escaped * (int(units[escape]) + BYTE_BITS * UNITS)
        return cost / UNITS

    def to_bytes(self) -> bytes:
        """The row of the table bank: 32 bytes."""
        return self.row.astype(np.uint8).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> EscapeTable:
        """Read a row of the table bank. Raises CorruptionError for any but a valid table."""
        if len(data) != NBYTES:
            raise CorruptionError(f"a frequency table with escapes has {NBYTES} bytes, got {len(data)}")
        return cls._of(parse_tables(data)[0])

    @classmethod
    def _of(cls, row: NDArray[np.uint16]) -> EscapeTable:
        row.flags.writeable = False
        return cls(row)


def parse_tables(bank: Buffer) -> NDArray[np.uint16]:
    """The rows of a table bank, as uint16 `[rows, 32]`. Raises CorruptionError naming the first row that is not valid."""
    rows: NDArray[np.uint16] = read_only(bank).reshape(-1, NBYTES).astype(np.uint16)
    used, values = rows[:, :SYMBOLS] > 0, rows[:, 16:31]
    defects = {
        "its frequencies do not add up to 256": rows[:, :16].sum(axis=1, dtype=np.int64) != 256,
        "a symbol of frequency 0 is in front of others": np.any(used[:, 1:] > used[:, :-1], axis=1),
        "a byte that is not used is not 0": np.any((values > 0) & ~used, axis=1) | (rows[:, 31] != 0),
        "its values do not ascend": np.any(used[:, 1:] & (values[:, 1:] <= values[:, :-1]), axis=1),
    }
    wrong = np.any([*defects.values()], axis=0)
    if np.any(wrong):
        first = int(np.argmax(wrong))
        raise CorruptionError(f"table {first}: {next(why for why, rows in defects.items() if rows[first])}")
    return rows
