"""Coder 0: the packed buffer as it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import CorruptionError


@dataclass(frozen=True)
class RawCoder:
    """See `Coder` for what the functions promise."""

    id: int = 0
    name: str = "raw"
    bank: str = ""
    table_nbytes: int = 0

    def symbol_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return counts

    def fit(self, counts: NDArray[np.int64]) -> None:
        return None

    def default_streams(self, codes: int) -> int:
        return 0

    def encode(self, packed: Buffer, table: object, streams: int) -> NDArray[np.uint8]:
        return read_only(packed).copy()

    def encode_fitted(self, source: NDArray[np.uint8], table: object, streams: int) -> NDArray[np.uint8]:
        return self.encode(source, table, streams)

    def decode(self, payload: Buffer, table: object, out: NDArray[np.uint8], streams: int) -> None:
        source = read_only(payload)
        if source.size != out.size:
            raise CorruptionError(f"a raw chunk of {out.size} bytes has a payload of {source.size}")
        out.reshape(-1)[:] = source

    def parse_bank(self, bank: Buffer) -> NDArray[np.uint16]:
        return np.empty((0, 0), np.uint16)

    def table_from_bytes(self, row: bytes) -> None:
        if row:
            raise CorruptionError("raw chunks have no table")


RAW = RawCoder()
