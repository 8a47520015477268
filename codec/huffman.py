"""Coder 4: canonical Huffman over bytes in ten bit streams. Plain integer code: the fast one without vector units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import CorruptionError, InvalidArgumentError
from .histogram import byte_counts
from .huffman_code import LIMIT, CodeLengths
from .kernels.status import MESSAGES
from .scratch import scratch
from .task import decode_one


@dataclass(frozen=True)
class HuffmanCoder:
    """See `Coder` for what the functions promise."""

    id: int = 4
    name: str = "huffman"
    bank: str = "huffman"
    table_nbytes: int = 128

    def symbol_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return counts

    def fit(self, counts: NDArray[np.int64]) -> CodeLengths:
        return CodeLengths.from_counts(counts)

    def default_streams(self, codes: int) -> int:
        return 0  # the format has ten, always

    def encode(self, packed: Buffer, table: object, streams: int) -> NDArray[np.uint8]:
        source = read_only(packed)
        if byte_counts(source)[_code(table).lengths == 0].any():
            raise InvalidArgumentError("the buffer holds a byte without a code")
        return self.encode_fitted(source, table, streams).copy()

    def encode_fitted(self, source: NDArray[np.uint8], table: object, streams: int) -> NDArray[np.uint8]:
        from .kernels import huffman as kernels

        memory = scratch(kernels.encoded_bound(source.size))
        return memory[: kernels.encode(source, _code(table).codes, memory)]

    def decode(self, payload: Buffer, table: object, out: NDArray[np.uint8], streams: int) -> None:
        status = decode_one(self.id, read_only(payload), _code(table).windows, streams, out)
        if status:
            raise CorruptionError(f"{self.name}: {MESSAGES[status]}")

    def parse_bank(self, bank: Buffer) -> NDArray[np.uint16]:
        rows = read_only(bank).reshape(-1, self.table_nbytes)
        parsed = np.empty((len(rows), 1 << LIMIT), np.uint16)
        for i, row in enumerate(rows):
            try:
                parsed[i] = CodeLengths.from_bytes(row.tobytes()).windows
            except CorruptionError as error:
                raise CorruptionError(f"table {i}: {error}") from None
        return parsed

    def table_from_bytes(self, row: bytes) -> CodeLengths:
        return CodeLengths.from_bytes(row)


def _code(table: object) -> CodeLengths:
    if not isinstance(table, CodeLengths):
        raise InvalidArgumentError("coder huffman needs a table of code lengths")
    return table


HUFFMAN = HuffmanCoder()
