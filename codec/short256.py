"""Coder 9: bytes in a few lanes of rANS, the table in the payload and as short as it can be, for short buffers.

The 384 bytes of a table of coder 3 are more than a percent of a matrix of 100 x 200; here they are some 30 to 100. Coders 5 and 6
have small tables too, but states and tails for which a short buffer has no use, and what they round off is beyond 0.2 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import CorruptionError, InvalidArgumentError
from .histogram import byte_counts
from .kernels.status import BAD_STREAMS, MESSAGES
from .model import FrequencyTable
from .raw import RAW
from .scratch import scratch
from .short16 import LANE_NBYTES, check_lanes, lanes_for
from .task import decode_one

SYMBOLS = 256
PRECISIONS = range(8, 15)  # bits; the format has 15 too


@dataclass(frozen=True)
class Short256Coder:
    """See `Coder` for what the functions promise. It has no table bank: a table is for its encoder alone."""

    id: int = 9
    name: str = "short256"
    bank: str = ""
    table_nbytes: int = 0

    def symbol_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return counts

    def fit(self, counts: NDArray[np.int64]) -> FrequencyTable:
        return fit_within(counts, np.inf)

    def default_streams(self, codes: int) -> int:
        return lanes_for(8 * codes)

    def encode(self, packed: Buffer, table: object, streams: int) -> NDArray[np.uint8]:
        source = read_only(packed)
        check_lanes(source.size, streams)
        if byte_counts(source)[_table(table).frequencies == 0].any():
            raise InvalidArgumentError("the buffer holds a symbol of frequency 0")
        return self.encode_fitted(source, table, streams).copy()

    def encode_fitted(self, source: NDArray[np.uint8], table: object, streams: int) -> NDArray[np.uint8]:
        from .kernels.lanes import encode_lanes

        fitted = _table(table)
        head = written(fitted)
        memory = scratch(head.size + LANE_NBYTES * streams + 2 * source.size)
        nbytes = encode_lanes(source, streams, fitted.frequencies, fitted.precision, memory[head.size :])
        payload = memory[memory.size - nbytes - head.size :]
        payload[: head.size] = head
        return payload

    def decode(self, payload: Buffer, table: object, out: NDArray[np.uint8], streams: int) -> None:
        if streams < 0:
            raise CorruptionError(f"{self.name}: {MESSAGES[BAD_STREAMS]}")
        status = decode_one(self.id, read_only(payload), np.zeros(0, np.uint16), streams, out)
        if status:
            raise CorruptionError(f"{self.name}: {MESSAGES[status]}")

    def table_from_bytes(self, row: bytes) -> None:
        RAW.table_from_bytes(row)

    def parse_bank(self, bank: Buffer) -> NDArray[np.uint16]:
        return RAW.parse_bank(bank)


def fit_within(counts: NDArray[np.int64], most: float) -> FrequencyTable:
    """The table for counts of bytes (int64 `[256]`, not all 0) that makes table and payload the smallest.

    Of those with which an ideal coder takes at most `most` bits; if there are none, the one of the highest precision.
    """
    used = int(np.count_nonzero(counts))
    best, smallest = None, np.inf
    for precision in PRECISIONS:
        if 1 << precision < 2 * used and precision != PRECISIONS[-1]:
            continue
        table = FrequencyTable.from_counts(counts, precision)
        payload = table.cost_bits(counts)
        if payload > most and precision != PRECISIONS[-1]:
            continue
        bits = payload + 8 * written(table).size
        if bits >= smallest:
            break  # what finer probabilities save falls by a factor of four from one to the next, tables only grow
        best, smallest = table, bits
    assert best is not None
    return best


def written(table: FrequencyTable) -> NDArray[np.uint8]:
    """The table as a payload begins with it."""
    from .kernels.short256 import TABLE_NBYTES, write_table

    head = np.empty(TABLE_NBYTES, np.uint8)
    return head[: write_table(table.frequencies, table.precision, head)]


def table_nbytes(payload: Buffer) -> int:
    """Size of the table that a payload begins with. Raises CorruptionError if it is damaged."""
    from .kernels.short256 import read_table

    precision, nbytes = read_table(read_only(payload), np.zeros(SYMBOLS, np.uint16))
    if not precision:
        raise CorruptionError("short256: the table that the payload begins with is damaged")
    return int(nbytes)


def _table(table: object) -> FrequencyTable:
    if not isinstance(table, FrequencyTable) or table.frequencies.size != SYMBOLS:
        raise InvalidArgumentError("coder short256 needs a frequency table of 256 symbols")
    return table


SHORT256 = Short256Coder()
