"""Coder 8: nibbles with probabilities of 12 bits in a few lanes of rANS, for short buffers.

The 32 lanes of coder 2 and the tails that they hold take some 60 bytes for which a short buffer has no use, and where one nibble is
much more likely than all others 8 bits of probability are too few. Here a lane costs some three bytes, and a table 24.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import CorruptionError, InvalidArgumentError
from .histogram import fold_counts, nibble_counts
from .kernels.status import BAD_STREAMS, MESSAGES
from .model import FrequencyTable, parse_frequencies
from .scratch import scratch
from .task import decode_one

SYMBOLS, PRECISION = 16, 12
LANES = ((1 << 14, 4), (1 << 13, 2))  # from so many bytes of payload on: one more takes 0.06 % at most
LANE_NBYTES = 4  # of a state


def lanes_for(bits: float) -> int:
    """Number of lanes that suits a payload of so many bits: more of them decode faster."""
    return next((lanes for nbytes, lanes in LANES if bits >= 8 * nbytes), 1)


def check_lanes(nbytes: int, lanes: int) -> None:
    """Raises InvalidArgumentError for numbers of lanes that do not exist, and buffers without bytes."""
    if lanes not in (1, 2, 4) or nbytes == 0:
        raise InvalidArgumentError(f"1, 2 or 4 streams code at least one byte; got {lanes} for {nbytes}")


@dataclass(frozen=True)
class Short16Coder:
    """See `Coder` for what the functions promise."""

    id: int = 8
    name: str = "short16"
    bank: str = "short16"
    table_nbytes: int = SYMBOLS * PRECISION // 8

    def symbol_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return fold_counts(counts, 4)

    def fit(self, counts: NDArray[np.int64]) -> FrequencyTable:
        return FrequencyTable.from_counts(self.symbol_counts(counts), PRECISION)

    def default_streams(self, codes: int) -> int:
        return lanes_for(4 * codes)

    def encode(self, packed: Buffer, table: object, streams: int) -> NDArray[np.uint8]:
        source, frequencies = read_only(packed), _frequencies(table)
        check_lanes(source.size, streams)
        if nibble_counts(source)[frequencies == 0].any():
            raise InvalidArgumentError("the buffer holds a symbol of frequency 0")
        return self.encode_fitted(source, table, streams).copy()

    def encode_fitted(self, source: NDArray[np.uint8], table: object, streams: int) -> NDArray[np.uint8]:
        from .kernels.lanes import encode_lanes

        memory = scratch(LANE_NBYTES * streams + 4 * source.size)
        nbytes = encode_lanes(source, streams, _frequencies(table), PRECISION, memory)
        return memory[memory.size - nbytes :]

    def decode(self, payload: Buffer, table: object, out: NDArray[np.uint8], streams: int) -> None:
        if streams < 0:
            raise CorruptionError(f"{self.name}: {MESSAGES[BAD_STREAMS]}")
        status = decode_one(self.id, read_only(payload), _frequencies(table), streams, out)
        if status:
            raise CorruptionError(f"{self.name}: {MESSAGES[status]}")

    def table_from_bytes(self, row: bytes) -> FrequencyTable:
        return FrequencyTable.from_bytes(row, SYMBOLS, PRECISION)

    def parse_bank(self, bank: Buffer) -> NDArray[np.uint16]:
        return parse_frequencies(bank, SYMBOLS, PRECISION)


def _frequencies(table: object) -> NDArray[np.uint16]:
    if not isinstance(table, FrequencyTable) or (table.frequencies.size, table.precision) != (SYMBOLS, PRECISION):
        raise InvalidArgumentError("coder short16 needs a frequency table of 16 symbols and 12 bits of precision")
    return table.frequencies


SHORT16 = Short16Coder()
