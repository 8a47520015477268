"""Coder 6: bytes of few likely values as nibbles, which coder 2 codes; the rare others are stored as they are.

The exponents of weights and the codes of coarse grids take some 20 values, of which 15 make up 99.9 %. A byte then costs
one symbol of the fast coder, and no look-up in a table of 16 KB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ans import ANS16, check_streams, encoded_bound
from .buffers import Buffer, read_only
from .errors import CorruptionError, InvalidArgumentError
from .escape_table import NBYTES, EscapeTable, parse_tables
from .histogram import byte_counts
from .kernels.status import BAD_STREAMS, MESSAGES
from .scratch import scratch
from .task import decode_one

HEADER = 4  # bytes: the number of escaped ones


@dataclass(frozen=True)
class Escape16Coder:
    """See `Coder` for what the functions promise."""

    id: int = 6
    name: str = "escape16"
    bank: str = "escape16"
    table_nbytes: int = NBYTES

    def symbol_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return counts

    def fit(self, counts: NDArray[np.int64]) -> EscapeTable:
        return EscapeTable.from_counts(counts)

    def default_streams(self, codes: int) -> int:
        return ANS16.default_streams(codes)

    def encode(self, packed: Buffer, table: object, streams: int) -> NDArray[np.uint8]:
        source = read_only(packed)
        check_streams(-(-source.size // 2), streams)
        if self._table(table).cost_bits(byte_counts(source)) == float("inf"):
            raise InvalidArgumentError("the buffer holds a byte without a symbol, and the table has no escape")
        return self.encode_fitted(source, table, streams).copy()

    def encode_fitted(self, source: NDArray[np.uint8], table: object, streams: int) -> NDArray[np.uint8]:
        from .kernels.select import ans_kernels, to_nibbles

        n, half, row = source.size, -(-source.size // 2), self._table(table).row
        memory = scratch(n + half + HEADER + n + encoded_bound(half, streams))
        escaped, nibbles, target = memory[:n], memory[n : n + half], memory[n + half :]
        count = to_nibbles()(source, row, nibbles, escaped)
        size = ans_kernels().encode_ans16(read_only(nibbles), streams, row[:16], target)
        payload = target[target.size - size - count - HEADER :]
        payload[:HEADER] = np.frombuffer(count.to_bytes(HEADER, "little"), np.uint8)
        payload[HEADER : HEADER + count] = escaped[:count]
        return payload

    def decode(self, payload: Buffer, table: object, out: NDArray[np.uint8], streams: int) -> None:
        if streams < 0:
            raise CorruptionError(f"{self.name}: {MESSAGES[BAD_STREAMS]}")
        status = decode_one(self.id, read_only(payload), self._table(table).row, streams, out)
        if status:
            raise CorruptionError(f"{self.name}: {MESSAGES[status]}")

    def table_from_bytes(self, row: bytes) -> EscapeTable:
        return EscapeTable.from_bytes(row)

    def parse_bank(self, bank: Buffer) -> NDArray[np.uint16]:
        return parse_tables(bank)

    def _table(self, table: object) -> EscapeTable:
        if not isinstance(table, EscapeTable):
            raise InvalidArgumentError(f"coder {self.name} needs a table with escapes")
        return table


ESCAPE16 = Escape16Coder()
