"""Coder 5: bytes near 128 as two nibbles each, the high one coded by coder 2, the low one as it is.

What 8-bit codes have to gain lies in their high nibbles: the low ones of a bell curve that is many codes wide are all but
equally likely (0.2 % is lost). In return a byte takes one symbol of the fast coder instead of a look-up in a table of 16 KB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ans import ANS16, check_streams, encoded_bound, frequencies_of
from .buffers import Buffer, read_only
from .errors import CorruptionError, InvalidArgumentError
from .histogram import byte_counts
from .kernels.status import BAD_STREAMS, MESSAGES
from .model import FrequencyTable
from .scratch import scratch
from .task import decode_one

RAW_BITS = 4  # of each byte, which no table makes cheaper
SHIFT = 8  # added to a byte, so that the peak at 128 falls into the middle of a high nibble


@dataclass(frozen=True)
class Split8Coder:
    """See `Coder` for what the functions promise."""

    id: int = 5
    name: str = "split8"
    bank: str = ANS16.bank
    table_nbytes: int = ANS16.table_nbytes

    def symbol_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        high: NDArray[np.int64] = np.concatenate((counts[-SHIFT:], counts[:-SHIFT])).reshape(16, 16).sum(axis=1)
        return high

    def fit(self, counts: NDArray[np.int64]) -> FrequencyTable:
        return FrequencyTable.from_counts(self.symbol_counts(counts), 8)

    def default_streams(self, codes: int) -> int:
        return ANS16.default_streams(codes)

    def encode(self, packed: Buffer, table: object, streams: int) -> NDArray[np.uint8]:
        source, frequencies = read_only(packed), frequencies_of(table, 16, self.name)
        check_streams(-(-source.size // 2), streams)
        if self.symbol_counts(byte_counts(source))[frequencies == 0].any():
            raise InvalidArgumentError("the buffer holds a symbol of frequency 0")
        return self.encode_fitted(source, table, streams).copy()

    def encode_fitted(self, source: NDArray[np.uint8], table: object, streams: int) -> NDArray[np.uint8]:
        from .kernels import split8
        from .kernels.select import ans_kernels

        half = -(-source.size // 2)
        low, high = np.empty(half, np.uint8), np.empty(half, np.uint8)
        split8.split(source, low, high)
        memory = scratch(half + encoded_bound(half, streams))
        nbytes = ans_kernels().encode_ans16(
            read_only(high), streams, frequencies_of(table, 16, self.name), memory[half:]
        )
        payload = memory[memory.size - nbytes - half :]
        payload[:half] = low
        return payload

    def decode(self, payload: Buffer, table: object, out: NDArray[np.uint8], streams: int) -> None:
        if streams < 0:
            raise CorruptionError(f"{self.name}: {MESSAGES[BAD_STREAMS]}")
        status = decode_one(self.id, read_only(payload), frequencies_of(table, 16, self.name), streams, out)
        if status:
            raise CorruptionError(f"{self.name}: {MESSAGES[status]}")

    def parse_bank(self, bank: Buffer) -> NDArray[np.uint16]:
        return ANS16.parse_bank(bank)

    def table_from_bytes(self, row: bytes) -> FrequencyTable:
        return ANS16.table_from_bytes(row)


SPLIT8 = Split8Coder()
