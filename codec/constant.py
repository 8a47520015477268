"""Coder 1: a buffer whose bytes are all the same, as one byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import CorruptionError, InvalidArgumentError


@dataclass(frozen=True)
class ConstantCoder:
    """See `Coder` for what the functions promise."""

    id: int = 1
    name: str = "constant"
    bank: str = ""
    table_nbytes: int = 0

    def symbol_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return counts

    def fit(self, counts: NDArray[np.int64]) -> None:
        return None

    def default_streams(self, codes: int) -> int:
        return 0

    def encode(self, packed: Buffer, table: object, streams: int) -> NDArray[np.uint8]:
        source = read_only(packed)
        if source.size == 0 or (source != source[0]).any():
            raise InvalidArgumentError("the constant coder takes buffers whose bytes are all the same")
        return source[:1].copy()

    def encode_fitted(self, source: NDArray[np.uint8], table: object, streams: int) -> NDArray[np.uint8]:
        return self.encode(source, table, streams)

    def decode(self, payload: Buffer, table: object, out: NDArray[np.uint8], streams: int) -> None:
        source = read_only(payload)
        if source.size != 1:
            raise CorruptionError(f"a constant chunk has a payload of 1 byte, got {source.size}")
        out.fill(source[0])

    def parse_bank(self, bank: Buffer) -> NDArray[np.uint16]:
        return np.empty((0, 0), np.uint16)

    def table_from_bytes(self, row: bytes) -> None:
        if row:
            raise CorruptionError("constant chunks have no table")


CONSTANT = ConstantCoder()
