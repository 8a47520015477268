"""Coder 8: nibbles with probabilities of 12 bits in two lanes of rANS, for short buffers.

The 32 lanes of coder 2 and the tails that they hold take some 60 bytes for which a short buffer has no use, and where one nibble is
much more likely than all others 8 bits of probability are too few. Here states take 8 bytes and a table 24.
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
HEADER = 8  # bytes: two states


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
        return 0

    def encode(self, packed: Buffer, table: object, streams: int) -> NDArray[np.uint8]:
        source, frequencies = read_only(packed), _frequencies(table)
        if streams or source.size == 0:
            raise InvalidArgumentError(f"{self.name} has no streams, and codes at least one byte")
        if nibble_counts(source)[frequencies == 0].any():
            raise InvalidArgumentError("the buffer holds a symbol of frequency 0")
        return self.encode_fitted(source, table, streams).copy()

    def encode_fitted(self, source: NDArray[np.uint8], table: object, streams: int) -> NDArray[np.uint8]:
        from .kernels.short16 import encode_short16

        memory = scratch(HEADER + 4 * source.size)
        nbytes = encode_short16(source, _frequencies(table), memory)
        return memory[memory.size - nbytes :]

    def decode(self, payload: Buffer, table: object, out: NDArray[np.uint8], streams: int) -> None:
        if streams:
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
