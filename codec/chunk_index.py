"""The chunk index of a tensor, checked against everything that is known before a byte is decoded (SPEC section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import CHUNK_DTYPE
from .coder import CODERS
from .errors import CorruptionError, UnsupportedError
from .raw import RAW

CHUNK_START = 16  # chunks start at multiples of this in the file,
PAYLOAD_START = 64  # and the first of a tensor at one of this
MAX_CHUNK_CODES = 1 << 24  # so that a small file cannot ask for much memory at once


@dataclass(frozen=True)
class ChunkIndex:
    """Rows of CHUNK_DTYPE in file order; `starts[i]` is the position of chunk i's first code within its plane."""

    rows: NDArray[Any]
    starts: NDArray[np.int64]

    def plane(self, plane: int) -> range:
        """The chunks of a plane, as a range of row numbers."""
        first, last = np.searchsorted(self.rows["plane"], [plane, plane + 1])
        return range(int(first), int(last))

    def overlapping(self, plane: int, start: int, stop: int) -> range:
        """The chunks of a plane that hold codes of `start .. stop - 1`."""
        chunks = self.plane(plane)
        if start >= stop or not chunks:
            return range(0)
        starts = self.starts[chunks.start : chunks.stop]
        first = int(np.searchsorted(starts, start, "right")) - 1
        last = int(np.searchsorted(starts, stop, "left"))
        return range(chunks.start + first, chunks.start + last)


def read_chunk_index(
    data: bytes | memoryview,
    runs: Sequence[Sequence[int]],
    storage_bits: int,
    *,
    payload_start: int,
    payload_nbytes: int,
    bank_sizes: Mapping[str, int],
    where: str,
) -> ChunkIndex:
    """Read and check an index.

    data: 32 bytes per chunk. runs: for plane 0 and plane 1 the number of codes in each run. payload_start,
    payload_nbytes: where the payload lies in the file. bank_sizes: name of a bank -> number of its tables. where: the
    beginning of every message. Raises CorruptionError, and UnsupportedError for an unknown coder.
    """
    rows = np.frombuffer(data, CHUNK_DTYPE)
    if rows["reserved"].any():
        raise CorruptionError(f"{where}: chunk {_first(rows['reserved'] != 0)} has a reserved byte that is not 0")
    used = set(rows["coder"].tolist())
    if not used <= CODERS.keys():
        i = _first(~np.isin(rows["coder"], list(CODERS)))
        raise UnsupportedError(f"{where}: chunk {i} uses coder {rows['coder'][i]}; this qzc knows {_known_coders()}")
    starts = _check_counts(rows, runs, storage_bits, where)
    _check_offsets(rows, payload_start, payload_nbytes, where)
    _check_coders(rows, used, storage_bits, bank_sizes, where)
    return ChunkIndex(rows, starts)


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.argmax(mask))


def _known_coders() -> str:
    return ", ".join(f"{id} ({coder.name})" for id, coder in CODERS.items())


def _check_counts(
    rows: NDArray[Any], runs: Sequence[Sequence[int]], storage_bits: int, where: str
) -> NDArray[np.int64]:
    codes, planes = rows["codes"].astype(np.int64), rows["plane"]
    if (planes > 1).any() or (planes[1:] < planes[:-1]).any():
        raise CorruptionError(f"{where}: chunks are not listed by plane")
    bad = (codes < 1) | (codes > MAX_CHUNK_CODES)
    if bad.any():
        raise CorruptionError(
            f"{where}: chunk {_first(bad)} holds {codes[_first(bad)]} codes, 1 to {MAX_CHUNK_CODES} may be"
        )
    starts = np.zeros(len(rows), np.int64)
    per_byte = 8 // storage_bits
    split = len(rows) - int(np.count_nonzero(planes))
    for plane, (first, last) in enumerate(((0, split), (split, len(rows)))):
        stops, ends = codes[first:last].cumsum(), np.cumsum(runs[plane], dtype=np.int64)
        have, want = (int(x[-1]) if len(x) else 0 for x in (stops, ends))
        if have != want:
            raise CorruptionError(f"{where}: chunks of plane {plane} hold {have} codes, the shape asks for {want}")
        ragged = codes[first:last] % per_byte != 0
        if len(ends) > 1:
            ends_run = np.isin(stops, ends)
            if int(ends_run.sum()) != len(ends):
                raise CorruptionError(f"{where}: a chunk of plane {plane} runs across classes")
            ragged &= ~ends_run
        else:
            ragged[-1:] = False
        if ragged.any():
            raise CorruptionError(f"{where}: chunk {int(first) + _first(ragged)} ends inside a byte")
        starts[first:last] = stops - codes[first:last]
    return starts


def _check_offsets(rows: NDArray[Any], payload_start: int, payload_nbytes: int, where: str) -> None:
    offsets, nbytes = rows["offset"], rows["nbytes"].astype(np.int64)
    outside = (offsets > payload_nbytes) | (nbytes > payload_nbytes)
    if outside.any():
        raise CorruptionError(f"{where}: chunk {_first(outside)} lies outside the payload")
    starts = offsets.astype(np.int64) + payload_start  # nothing here reaches 2**63
    # A chunk starts at the first aligned place behind the one before it, so neither holes nor overlaps are possible.
    nexts = -(-(starts + nbytes) // CHUNK_START) * CHUNK_START
    expected = np.empty(len(rows), np.int64)
    expected[:1] = -(-payload_start // PAYLOAD_START) * PAYLOAD_START
    expected[1:] = nexts[:-1]
    wrong = starts != expected
    if wrong.any():
        i = _first(wrong)
        right = expected[i] - payload_start
        raise CorruptionError(f"{where}: chunk {i} starts at payload offset {offsets[i]}, not at {right}")
    end = int(nexts[-1]) if len(rows) else payload_start
    if end - payload_start != payload_nbytes:
        raise CorruptionError(f"{where}: chunks end at payload byte {end - payload_start} of {payload_nbytes}")


def _check_coders(
    rows: NDArray[Any], used: set[int], storage_bits: int, bank_sizes: Mapping[str, int], where: str
) -> None:
    buffers, nbytes = -(-rows["codes"].astype(np.int64) * storage_bits // 8), rows["nbytes"]
    wrong = (nbytes == 0) | (nbytes > buffers) | ((rows["coder"] == RAW.id) & (nbytes != buffers))
    if wrong.any():
        i = _first(wrong)
        raise CorruptionError(f"{where}: chunk {i} has {nbytes[i]} bytes for {buffers[i]} bytes of codes")
    for id in sorted(used):
        coder, mine = CODERS[id], rows["coder"] == id
        tables = bank_sizes.get(coder.bank, 0) if coder.table_nbytes else 1
        outside = mine & (rows["table"] >= tables)
        if outside.any():
            i = _first(outside)
            raise CorruptionError(f"{where}: chunk {i} names table {rows['table'][i]} of {tables} ({coder.name})")
        streams = mine & ((rows["streams"] == 0) if coder.default_streams(1) else (rows["streams"] != 0))
        if streams.any():
            i = _first(streams)
            raise CorruptionError(f"{where}: chunk {i} ({coder.name}) has {rows['streams'][i]} streams")
