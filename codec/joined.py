"""Tensors that are decoded and joined piece by piece: the planes of a piece stay in cache, only the result goes to memory.

A piece ends where a chunk of every coded plane does. Its chunks are compared with their checksums and decoded into memory that
the thread uses again and again, those that are not coded stay where they are in the file, and the join reads both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ans import ANS16
from .batch import AHEAD, OUT, CodedFile, Part, chunk_error
from .escape16 import ESCAPE16
from .kernels.select import join_escaped
from .kernels.status import WRONG_CHECKSUM
from .raw import RAW
from .records import JOB_NBYTES, Records, kernel_fields
from .run_map import RunMap
from .scratch import scratch
from .small_records import SMALL_NBYTES
from .task import TASK

PIECE_CODES = 1 << 17  # elements of a piece, at least: what is done for each in Python should not count
MAX_PIECE_CODES = 1 << 20  # of a chunk: the planes of larger ones would not stay in cache
_ALIGNMENT = 64
GROUP_NBYTES = 1 << 21  # of elements that are decoded together: what they need stays in cache

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
class _Group:
    """Pieces that are decoded together. hashes: of chunks whose checksums are to be compared. tasks, joins, places: of these.

    calls: (coder, first task, behind the last one). others: the pieces that are not joined from nibbles: the number of its
    places, how many elements it has, and where they go.
    """

    hashes: tuple[int, int]
    tasks: tuple[int, int]
    joins: tuple[int, int]
    places: tuple[int, int]
    calls: list[tuple[int, int, int]]
    others: list[tuple[int, int, NDArray[np.uint8]]]


class _Pieces:
    """Pieces of tensors of a file that have the same records.

    places: for each piece the addresses of what becomes the fields, from that of the thread's memory on where `inside` is 1.
    rows: for each task its coder, its chunk, where in the thread's memory it is decoded to, and if that is coder 6, of which only
    the nibbles are decoded before the join, the number of this (else -1), and the first of the chunks, and their number, of
    which the join reads the bytes. joins: see `join_escaped`.
    """

    def __init__(self, file: CodedFile, records: Records, damaged: list[tuple[int, int]]) -> None:
        self._file, self._records, self._damaged = file, records, damaged
        self._fields = [
            (bits, count, width) for (bits, count), width in zip(records.fields, records.widths, strict=True)
        ]
        self._fuses = _apart(records) is not None and join_escaped() is not None
        self._begins, self._ends = file.sources
        self._coders, self._starts, self._sizes = file.lists
        self._base = file.data.ctypes.data
        self._groups: list[_Group] = []
        self._hashes: list[int] = []
        self._places: list[int] = []
        self._inside: list[int] = []
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._joins: list[tuple[int, int, int, int]] = []
        self._pieces = self._room = self._nbytes = self._offset = 0
        self._begin_group()

    def add(self, tensor: JoinedTensor) -> bool:
        """Cut a tensor into pieces. Returns whether that is possible."""
        bounds = self._file.index.planes[tensor.first : tensor.first + len(self._fields) + 1].tolist()
        stored = [
            bits == 8 and not any(self._coders[a:b]) and self._begins[a + 1 : b] == self._ends[a : b - 1]
            for (bits, _, _), a, b in zip(self._fields, bounds, bounds[1:], strict=False)
        ]
        size, out, top = self._records.nbytes, tensor.out.ctypes.data, len(self._fields) - 1
        coders, hashes, places, inside = self._coders, self._hashes, self._places, self._inside
        cuts, groups = self._cut(stored, bounds, tensor.out.size // size)
        reached = bounds[:-1]  # of stored planes the first chunk that no piece compares yet
        for (start, stop), (c, d) in zip(pairwise(cuts), pairwise(groups), strict=True):
            offset, compared, new = self._offset, len(hashes), self._new
            fuses = self._fuses and d - c == 1 and not stored[top] and coders[bounds[top] + c] == ESCAPE16.id
            for f, (bits, count, width) in enumerate(self._fields):
                first = bounds[f]
                if stored[f]:
                    end, last = reached[f], bounds[f + 1]
                    while end < last and self._starts[end] < stop * count:
                        end += 1
                    hashes += range(reached[f], end)
                    reached[f] = end
                    places.append(self._base + self._begins[first] + start * count)
                    inside.append(0)
                    continue
                begin, end = first + c, first + d
                alone = d - c == 1 and coders[begin] == RAW.id
                if alone and bits == width and (stop - start) * count * width % 8 == 0:
                    places.append(self._base + self._begins[begin])
                    inside.append(0)
                    hashes.append(begin)
                    continue
                places.append(offset)
                inside.append(1)
                if fuses and f == top:
                    new.append((ANS16.id, begin, offset, len(self._joins), compared, len(hashes) - compared))
                    offset += self._sizes[begin]
                else:
                    for chunk in range(begin, end):
                        new.append((coders[chunk], chunk, offset, -1, 0, 0))
                        offset += self._sizes[chunk]
                hashes += range(begin, end)
                offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
            if fuses:
                self._joins.append((0, self._pieces, out + start * size, stop - start))
            else:
                self._others.append((self._pieces, stop - start, tensor.out[start * size : stop * size]))
            self._pieces += 1
            self._offset = offset
            self._nbytes += (stop - start) * size
            if self._nbytes >= GROUP_NBYTES:
                self._end_group()
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

    def _begin_group(self) -> None:
        """nbytes, offset: of the pieces so far, and of the thread's memory. new: their tasks."""
        self._firsts = len(self._hashes), len(self._rows), len(self._joins), self._pieces
        self._nbytes, self._offset = 0, 0
        self._new: list[tuple[int, int, int, int, int, int]] = []
        self._others: list[tuple[int, int, NDArray[np.uint8]]] = []

    def _end_group(self) -> None:
        calls: list[tuple[int, int, int]] = []
        self._new.sort()
        number = len(self._rows)
        for coder, same in groupby(self._new, itemgetter(0)):
            first, number = number, number + sum(1 for _ in same)
            calls.append((coder, first, number))
        self._rows += self._new
        stops = len(self._hashes), len(self._rows), len(self._joins), self._pieces
        hashes, tasks, joins, places = zip(self._firsts, stops, strict=True)
        self._groups.append(_Group(hashes, tasks, joins, places, calls, self._others))
        self._room = max(self._room, self._offset)
        self._begin_group()

    def jobs(self, together: bool) -> list[Callable[[], None]]:
        """Independent calls that decode all pieces."""
        if self._nbytes:
            self._end_group()
        if not self._groups:
            return []
        rows = np.array(self._rows, np.int64).reshape(-1, 6)
        self._chunks = rows[:, 1]
        self._tasks = self._file.tasks[self._chunks]
        self._tasks[:, OUT] = rows[:, 2]
        self._status = np.zeros(len(rows), np.int64)
        shape = self._pieces, len(self._fields)
        self._addresses = np.array(self._places, np.uint64).reshape(shape)
        self._from_memory = np.array(self._inside, np.uint64).reshape(shape)
        self._join_rows = np.array(self._joins, np.uint64).reshape(-1, 4)
        nibbles = np.flatnonzero(rows[:, 3] >= 0)
        self._join_rows[rows[nibbles, 3], 0] = nibbles
        self._escaped = np.zeros(len(self._joins), np.uint64)
        self._compared = np.array(self._hashes, np.int64)
        self._to_compare = self._file.to_compare[self._compared]
        self._tasks[:, AHEAD] = self._to_compare.ctypes.data + rows[:, 4] * self._to_compare.strides[0]
        self._tasks[:, AHEAD + 1] = rows[:, 5]
        self._same = np.zeros(len(self._hashes), np.int64)
        step = len(self._groups) if together else -(-JOB_NBYTES // GROUP_NBYTES)
        return [partial(self._do, self._groups[i : i + step]) for i in range(0, len(self._groups), step)]

    def check(self) -> None:
        """Raises CorruptionError for the first damaged chunk of the file."""
        if self._damaged:
            # What a coder says of bytes that have another checksum than they should does not matter.
            raise chunk_error(self._file, *min(self._damaged, key=lambda found: (found[0], found[1] != WRONG_CHECKSUM)))

    def _do(self, groups: list[_Group]) -> None:
        from .kernels.pieces import compare, only_nibbles
        from .kernels.records import join_words
        from .kernels.select import batch_kernels
        from .kernels.xxh3 import xxh3_address

        kernels, fields, rotate = batch_kernels(), kernel_fields(self._records), self._records.rotate
        fused, apart, size = join_escaped(), bool(_apart(self._records)), self._records.nbytes
        xxh3, places, status, same = xxh3_address(), self._addresses, self._status, self._same
        memory = scratch(self._room + _ALIGNMENT)
        base = np.uint64(-(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT)
        first, last = groups[0], groups[-1]
        mine = slice(first.places[0], last.places[1])
        places[mine] += self._from_memory[mine] * base
        mine = slice(first.tasks[0], last.tasks[1])
        self._tasks[mine, OUT] += base
        tasks, joins, escaped = self._tasks.view(TASK).reshape(-1), self._join_rows, self._escaped
        mine = slice(first.joins[0], last.joins[1])
        if len(joins[mine]):
            only_nibbles(tasks, joins[mine], escaped[mine])
        for group in groups:
            for coder, a, b in group.calls:
                kernels[coder](tasks[a:b], status[a:b])
            a, b = group.hashes
            if self._file.verify:
                compare(self._to_compare[a:b], same[a:b], xxh3)
            a, b = group.joins
            if fused is not None and a < b:
                fused(tasks, status, joins[a:b], escaped[a:b], places, apart, size, rotate)
            for number, count, out in group.others:
                join_words(fields, places[number], out, 0, count, rotate)
        for chunks, found, (a, b) in (
            (self._compared, same, (first.hashes[0], last.hashes[1])),
            (self._chunks, status, (first.tasks[0], last.tasks[1])),
        ):
            for i in np.flatnonzero(found[a:b]).tolist():
                self._damaged.append((int(chunks[a + i]), int(found[a + i])))


def _apart(records: Records) -> bool | None:
    """Whether the bytes below the highest one of a float are planes of their own, or one; None if they are neither, or no float."""
    if records.nbytes not in (2, 4):
        return None
    return {((8, 1),) * records.nbytes: True, ((8, records.nbytes - 1), (8, 1)): False}.get(records.fields)


def _call(job: Callable[[], Any]) -> None:
    job()
