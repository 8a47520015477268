"""Coders 2 and 3: interleaved rANS over nibbles (8-bit probabilities) and over bytes (12-bit probabilities)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import CorruptionError, InvalidArgumentError
from .histogram import byte_counts, fold_counts, nibble_counts
from .kernels.status import BAD_STREAMS, MESSAGES
from .model import PRECISION, FrequencyTable, parse_frequencies
from .scratch import scratch
from .task import decode_one

LANES = 32
HEADER = 4 + 16 + 64 + 60  # bytes per stream, at most: number of words, initial states
STREAMS = 4  # as many as a vector kernel decodes at once, in a third of the time that one after another takes
SMALL_CODES = 1 << 17  # chunks with fewer codes have one stream: each costs 20 to 60 bytes, 0.1 % of what they have


@dataclass(frozen=True)
class AnsCoder:
    """See `Coder` for what the functions promise. symbols: 16 or 256."""

    id: int
    name: str
    symbols: int
    table_nbytes: int

    @property
    def bank(self) -> str:
        return self.name

    def symbol_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return fold_counts(counts, 4) if self.symbols == 16 else counts

    def fit(self, counts: NDArray[np.int64]) -> FrequencyTable:
        return FrequencyTable.from_counts(self.symbol_counts(counts), PRECISION[self.symbols])

    def default_streams(self, codes: int) -> int:
        return STREAMS if codes >= SMALL_CODES else 1

    def encode(self, packed: Buffer, table: object, streams: int) -> NDArray[np.uint8]:
        source, frequencies = read_only(packed), frequencies_of(table, self.symbols, self.name)
        check_streams(source.size, streams)
        counts = nibble_counts(source) if self.symbols == 16 else byte_counts(source)
        if counts[frequencies == 0].any():
            raise InvalidArgumentError("the buffer holds a symbol of frequency 0")
        return self.encode_fitted(source, table, streams).copy()

    def encode_fitted(self, source: NDArray[np.uint8], table: object, streams: int) -> NDArray[np.uint8]:
        from .kernels.select import ans_kernels

        kernels, frequencies = ans_kernels(), frequencies_of(table, self.symbols, self.name)
        encode = kernels.encode_ans16 if self.symbols == 16 else kernels.encode_ans256
        memory = scratch(encoded_bound(source.size, streams))
        nbytes = encode(source, streams, frequencies, memory)
        return memory[memory.size - nbytes :]

    def decode(self, payload: Buffer, table: object, out: NDArray[np.uint8], streams: int) -> None:
        if streams < 0:
            raise CorruptionError(f"{self.name}: {MESSAGES[BAD_STREAMS]}")
        status = decode_one(self.id, read_only(payload), frequencies_of(table, self.symbols, self.name), streams, out)
        if status:
            raise CorruptionError(f"{self.name}: {MESSAGES[status]}")

    def parse_bank(self, bank: Buffer) -> NDArray[np.uint16]:
        return parse_frequencies(bank, self.symbols)

    def table_from_bytes(self, row: bytes) -> FrequencyTable:
        return FrequencyTable.from_bytes(row, self.symbols)


def frequencies_of(table: object, symbols: int, coder: str) -> NDArray[np.uint16]:
    """The frequencies of a table of `symbols` symbols. Raises InvalidArgumentError for anything else."""
    if not isinstance(table, FrequencyTable) or table.frequencies.size != symbols:
        raise InvalidArgumentError(f"coder {coder} needs a frequency table of {symbols} symbols")
    return table.frequencies


def check_streams(nbytes: int, streams: int) -> None:
    """Raises InvalidArgumentError if one of the streams of a buffer would not cover a byte."""
    share = -(-nbytes // (LANES * max(1, streams))) * LANES
    if not 1 <= streams <= 255 or (streams - 1) * share >= nbytes:
        raise InvalidArgumentError(f"{nbytes} bytes do not fill {streams} streams")


def encoded_bound(nbytes: int, streams: int) -> int:
    """Size of the scratch that an encoding kernel fills from its end: one word per byte, and room to write ahead."""
    return HEADER * streams + 2 * nbytes + 64 * streams


ANS16 = AnsCoder(id=2, name="ans16", symbols=16, table_nbytes=16)
ANS256 = AnsCoder(id=3, name="ans256", symbols=256, table_nbytes=384)
