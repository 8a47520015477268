"""Tensors that are decoded and joined piece by piece: the planes of a piece stay in cache, only the result goes to memory.

A piece ends where a chunk of every coded plane does. Its chunks are compared with their checksums and decoded into memory that
the thread uses again and again, those that are not coded stay where they are in the file, and the join reads both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from .ans import ANS16
from .batch import OUT, CodedFile, Part, chunk_error
from .escape16 import ESCAPE16, HEADER
from .kernels.select import join_escaped
from .kernels.status import HEADER_TRUNCATED, WRONG_CHECKSUM
from .raw import RAW
from .records import JOB_NBYTES, Records, kernel_fields
from .run_map import RunMap
from .scratch import scratch
from .small_records import SMALL_NBYTES
from .task import TASK

PIECE_CODES = 1 << 17  # elements of a piece, at least: what is done for each in Python should not count
MAX_PIECE_CODES = 1 << 20  # of a chunk: the planes of larger ones would not stay in cache
_ALIGNMENT = 64
_PAYLOAD, _NBYTES, _TABLE, _SIZE = (
    TASK.names.index(name) if TASK.names else 0 for name in ("payload", "nbytes", "table", "size")
)

Jobs = Callable[[], list[Callable[[], None]]]


@dataclass(frozen=True)
class JoinedTensor:
    """A whole lossless tensor to be decoded into `out` (uint8 `[n]`). first: the number of its first plane.

    apart: parts and jobs that do the same plane by plane.
    """

    file: CodedFile
    first: int
    records: Records
    out: NDArray[np.uint8]
    apart: Callable[[], tuple[Sequence[Part], Jobs]]


def run_joined(tensors: Sequence[JoinedTensor], run: RunMap = map) -> list[JoinedTensor]:
    """Decode tensors, in pieces that `run` may spread over threads. Returns those that have to be decoded plane by plane.

    Raises CorruptionError for the first chunk of a file that has a wrong checksum or does not decode.
    """
    if sum(tensor.out.size for tensor in tensors) <= SMALL_NBYTES:
        return list(tensors)  # not worth waiting for a compiler
    left: list[JoinedTensor] = []
    groups: dict[tuple[int, Records], _Pieces] = {}
    damaged: dict[int, list[tuple[int, int]]] = {}
    for tensor in tensors:
        key = id(tensor.file), tensor.records
        if key not in groups:
            groups[key] = _Pieces(tensor.file, tensor.records, damaged.setdefault(key[0], []))
        if not groups[key].add(tensor):
            left.append(tensor)
    jobs = [job for pieces in groups.values() for job in pieces.jobs(run is map)]
    for _ in run(_call, jobs):
        pass
    for pieces in groups.values():
        pieces.check()
    return left


@dataclass(slots=True)
class _Piece:
    """Some elements of a tensor. out, begin, end: where they go. hashes: chunks whose checksums are to be compared.

    tasks: their numbers. calls: (coder, first task, behind the last one). escaped: the task of coder 6 of which only the
    nibbles are decoded before the join, -1 if there is none.
    """

    count: int
    out: NDArray[np.uint8]
    begin: int
    end: int
    hashes: list[int]
    tasks: range
    calls: list[tuple[int, int, int]]
    escaped: int


class _Pieces:
    """Pieces of tensors of a file that have the same records.

    places: for each piece the addresses of what becomes the fields, from that of the thread's memory on where `inside` is 1.
    chunks, offsets: for each task its chunk, and where in the thread's memory it is decoded to.
    """

    def __init__(self, file: CodedFile, records: Records, damaged: list[tuple[int, int]]) -> None:
        self._file, self._records, self._damaged = file, records, damaged
        self._fields = [
            (bits, count, width) for (bits, count), width in zip(records.fields, records.widths, strict=True)
        ]
        self._fuses = _apart(records) is not None and join_escaped() is not None
        self._begins, self._ends, self._checksums = file.sources
        self._coders, self._starts, self._sizes = file.lists
        self._base = file.data.ctypes.data
        self._pieces: list[_Piece] = []
        self._places: list[int] = []
        self._inside: list[int] = []
        self._chunks: list[int] = []
        self._offsets: list[int] = []
        self._room = 0

    def add(self, tensor: JoinedTensor) -> bool:
        """Cut a tensor into pieces. Returns whether that is possible."""
        bounds = self._file.index.planes[tensor.first : tensor.first + len(self._fields) + 1].tolist()
        stored = [
            bits == 8 and not any(self._coders[a:b]) and self._begins[a + 1 : b] == self._ends[a : b - 1]
            for (bits, _, _), a, b in zip(self._fields, bounds, bounds[1:], strict=False)
        ]
        size = self._records.nbytes
        cuts, groups = self._cut(stored, bounds, tensor.out.size // size)
        reached = bounds[:-1]  # of stored planes the first chunk that no piece compares yet
        for (start, stop), (c, d) in zip(pairwise(cuts), pairwise(groups), strict=True):
            piece = _Piece(stop - start, tensor.out, start * size, stop * size, [], range(0), [], -1)
            tasks: list[tuple[int, int, int]] = []  # coder, chunk, offset
            offset = 0
            for f, (bits, count, width) in enumerate(self._fields):
                first = bounds[f]
                if stored[f]:
                    begin = end = reached[f]
                    while end < bounds[f + 1] and self._starts[end] < stop * count:
                        end += 1
                    reached[f] = end
                    place = self._begins[first] + start * count
                else:
                    begin, end = first + c, first + d
                    place = self._begins[begin]
                piece.hashes += range(begin, end)
                alone = d - c == 1 and self._coders[begin] == RAW.id if not stored[f] else True
                if alone and bits == width and piece.count * count * width % 8 == 0:
                    self._places.append(self._base + place)
                    self._inside.append(0)
                    continue
                self._places.append(offset)
                self._inside.append(1)
                for chunk in range(begin, end):
                    tasks.append((self._coders[chunk], chunk, offset))
                    offset += self._sizes[chunk]
                offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
            self._room = max(self._room, offset)
            self._add_calls(piece, tasks, bounds[-2] + c if self._fuses and d - c == 1 and not stored[-1] else -1)
            self._pieces.append(piece)
        return bool(cuts)

    def _cut(self, stored: list[bool], bounds: list[int], elements: int) -> tuple[list[int], list[int]]:
        """The elements at which pieces begin, and their number; of every coded plane the number of the chunk that begins there.

        Nothing if the chunks of coded planes do not begin at the same elements, or are too large.
        """
        coded = [f for f, is_stored in enumerate(stored) if not is_stored]
        if not coded or not elements:
            cuts = [*range(0, elements, 2 * PIECE_CODES), elements]
            return cuts, [0] * len(cuts)
        count = self._fields[coded[0]][1]
        starts, *others = (self._starts[bounds[f] : bounds[f + 1]] for f in coded)
        if any(self._fields[f][1] != count for f in coded) or any(other != starts for other in others):
            return [], []
        cuts, groups = [0], [0]
        for number, start in enumerate(starts[1:], 1):
            if start - cuts[-1] * count >= PIECE_CODES * count and start % count == 0:
                cuts.append(start // count)
                groups.append(number)
        cuts.append(elements)
        groups.append(len(starts))
        return ([], []) if max(b - a for a, b in pairwise(cuts)) > MAX_PIECE_CODES else (cuts, groups)

    def _add_calls(self, piece: _Piece, tasks: list[tuple[int, int, int]], highest: int) -> None:
        """highest: the chunk of the highest byte, if it may be joined from nibbles."""
        piece.tasks = range(len(self._chunks), len(self._chunks) + len(tasks))
        if len(tasks) > 1:
            tasks.sort()
        for coder, chunk, offset in tasks:
            number = len(self._chunks)
            if chunk == highest and coder == ESCAPE16.id:
                coder, piece.escaped = ANS16.id, number
            if piece.calls and piece.calls[-1][0] == coder:
                piece.calls[-1] = coder, piece.calls[-1][1], number + 1
            else:
                piece.calls.append((coder, number, number + 1))
            self._chunks.append(chunk)
            self._offsets.append(offset)

    def jobs(self, together: bool) -> list[Callable[[], None]]:
        """Independent calls that decode all pieces."""
        if not self._pieces:
            return []
        self._tasks = self._file.tasks[np.array(self._chunks, np.int64)]
        self._tasks[:, OUT] = self._offsets
        shape = -1, len(self._fields)
        self._addresses = np.array(self._places, np.uint64).reshape(shape)
        self._from_memory = np.array(self._inside, np.uint64).reshape(shape)
        firsts, nbytes = [0], 0
        for p, piece in enumerate(self._pieces):
            if nbytes >= JOB_NBYTES and not together:
                firsts.append(p)
                nbytes = 0
            nbytes += piece.end - piece.begin
        return [partial(self._do, a, b) for a, b in pairwise([*firsts, len(self._pieces)])]

    def check(self) -> None:
        """Raises CorruptionError for the first damaged chunk of the file."""
        if self._damaged:
            raise chunk_error(self._file, *min(self._damaged))

    def _do(self, first: int, stop: int) -> None:
        from .kernels.records import join_words
        from .kernels.select import batch_kernels

        kernels, fields, rotate = batch_kernels(), kernel_fields(self._records), self._records.rotate
        fused, apart, size = join_escaped(), bool(_apart(self._records)), self._records.nbytes
        memory = scratch(self._room + _ALIGNMENT)
        base = np.uint64(-(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT)
        addresses = self._addresses[first:stop] + self._from_memory[first:stop] * base
        low, high = self._pieces[first].tasks.start, self._pieces[stop - 1].tasks.stop
        numbers, status = self._tasks[low:high], np.zeros(high - low, np.int64)
        numbers[:, OUT] += base
        escapes = self._only_nibbles(
            [piece.escaped for piece in self._pieces[first:stop] if piece.escaped >= 0], numbers, low
        )
        tasks, rows = numbers.view(TASK).reshape(-1), numbers.tolist()
        for piece, places in zip(self._pieces[first:stop], addresses, strict=True):
            if not self._same(piece.hashes):
                continue
            escaped = piece.escaped - low
            number = escapes.get(piece.escaped, 0)
            if number < 0:
                status[escaped] = HEADER_TRUNCATED
                continue
            for coder, a, b in piece.calls:
                kernels[coder](tasks[a - low : b - low], status[a - low : b - low])
            out = piece.out[piece.begin : piece.end]
            if piece.escaped < 0:
                join_words(fields, places, out, 0, piece.count, rotate)
            elif not status[escaped]:
                assert fused is not None
                row = rows[escaped]
                bytes_at = row[_PAYLOAD] - number  # the escaped ones are in front of the nibbles
                status[escaped] = fused(row[_TABLE], row[OUT], bytes_at, number, places, apart, out, size, rotate)
        for task in np.flatnonzero(status).tolist():
            self._damaged.append((self._chunks[low + task], int(status[task])))

    def _only_nibbles(self, escaped: list[int], tasks: NDArray[np.uint64], low: int) -> dict[int, int]:
        """Make tasks of coder 6 some of coder 2; returns how many bytes are escaped in each, -1 if there are not as many.

        escaped: their numbers; `tasks` begin with task `low`.
        """
        view, escapes, skipped = self._file.data.data, {}, []
        for number in escaped:
            begin, end = self._begins[self._chunks[number]], self._ends[self._chunks[number]]
            count = int.from_bytes(view[begin : begin + HEADER], "little")
            fits = begin + HEADER + count <= end
            escapes[number] = count if fits else -1
            skipped.append(HEADER + count if fits else 0)
        rows, nbytes = np.array(escaped, np.int64) - low, np.array(skipped, np.uint64)
        tasks[rows, _PAYLOAD] += nbytes
        tasks[rows, _NBYTES] -= nbytes
        tasks[rows, _SIZE] = (tasks[rows, _SIZE] + np.uint64(1)) >> np.uint64(1)
        return escapes

    def _same(self, chunks: list[int]) -> bool:
        """Whether the bytes of chunks have their checksums."""
        if not self._file.verify:
            return True
        view, same = self._file.data.data, True
        for chunk in chunks:
            if xxh3_64_intdigest(view[self._begins[chunk] : self._ends[chunk]]) != self._checksums[chunk]:
                self._damaged.append((chunk, WRONG_CHECKSUM))
                same = False
        return same


def _apart(records: Records) -> bool | None:
    """Whether the bytes below the highest one of a float are planes of their own, or one; None if they are neither, or no float."""
    if records.nbytes not in (2, 4):
        return None
    return {((8, 1),) * records.nbytes: True, ((8, records.nbytes - 1), (8, 1)): False}.get(records.fields)


def _call(job: Callable[[], Any]) -> None:
    job()
