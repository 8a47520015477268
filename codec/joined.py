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
_PAYLOAD, _NBYTES, _TABLE, _SIZE = (TASK.names.index(name) if TASK.names else 0 for name in ("payload", "nbytes", "table", "size"))

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


class _Pieces:
    """Pieces of tensors of a file that have the same records; item p of each list is of piece p.

    counts: elements. outs: where they go. hashes: chunks whose checksums are to be compared. places: addresses of what becomes each
    field, from that of the thread's memory on where `inside` is 1. calls: (coder, first task, behind the last one). escaped: the
    number of the task of coder 6 whose bytes are made while the piece is joined, or -1: only its nibbles are decoded before.
    """

    def __init__(self, file: CodedFile, records: Records, damaged: list[tuple[int, int]]) -> None:
        self._file, self._records, self._damaged = file, records, damaged
        self._planes = len(records.fields)
        self._counts: list[int] = []
        self._outs: list[tuple[NDArray[np.uint8], int, int]] = []
        self._hashes: list[list[int]] = []
        self._places: list[int] = []
        self._inside: list[int] = []
        self._calls: list[list[tuple[int, int, int]]] = []
        self._escaped: list[int] = []
        self._fused = _apart(records) is not None and join_escaped() is not None
        self._chunks: list[int] = []
        self._offsets: list[int] = []  # of what is decoded, in the thread's memory
        self._room = 0

    def add(self, tensor: JoinedTensor) -> bool:
        """Cut a tensor into pieces. Returns whether that is possible."""
        file, records, index = self._file, self._records, self._file.index
        begins, ends, _ = file.sources
        base = file.data.ctypes.data
        bounds = index.planes[tensor.first : tensor.first + self._planes + 1].tolist()
        coders, starts, sizes = file.lists
        elements = tensor.out.size // records.nbytes
        coded: list[int] = []
        for f, (a, b) in enumerate(pairwise(bounds)):
            whole = records.fields[f][0] == 8 and not any(coders[a:b]) and begins[a + 1 : b] == ends[a : b - 1]
            if not whole:
                coded.append(f)
        cuts, groups = self._cut(coded, bounds, starts, elements)
        if not cuts:
            return False
        next_stored = {f: bounds[f] for f in range(self._planes) if f not in coded}
        for p, (start, stop) in enumerate(pairwise(cuts)):
            hashes: list[int] = []
            tasks: list[tuple[int, int, int]] = []
            offset = 0
            for f, ((bits, count), width) in enumerate(zip(records.fields, records.widths, strict=True)):
                a, b = bounds[f], bounds[f + 1]
                if f in next_stored:
                    at = next_stored[f]
                    while at < b and starts[at] < stop * count:
                        hashes.append(at)
                        at += 1
                    next_stored[f] = at
                    self._places.append(base + begins[a] + start * count)
                    self._inside.append(0)
                    continue
                c, d = a + groups[p], a + groups[p + 1]
                hashes += range(c, d)
                if d - c == 1 and coders[c] == RAW.id and bits == width and (stop - start) * count * width % 8 == 0:
                    self._places.append(base + begins[c])
                    self._inside.append(0)
                    continue
                self._places.append(offset)
                self._inside.append(1)
                for chunk in range(c, d):
                    tasks.append((coders[chunk], chunk, offset))
                    offset += sizes[chunk]
                offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
            if len(tasks) > 1:
                tasks.sort()
            self._room = max(self._room, offset)
            calls: list[tuple[int, int, int]] = []
            last = bounds[-2] + groups[p] if self._fused and coded and coded[-1] == self._planes - 1 else -1
            escaped = -1
            for coder, chunk, place in tasks:
                number = len(self._chunks)
                if chunk == last and groups[p + 1] - groups[p] == 1 and coder == ESCAPE16.id:
                    coder, escaped = ANS16.id, number
                if calls and calls[-1][0] == coder:
                    calls[-1] = coder, calls[-1][1], number + 1
                else:
                    calls.append((coder, number, number + 1))
                self._chunks.append(chunk)
                self._offsets.append(place)
            self._calls.append(calls)
            self._escaped.append(escaped)
            self._hashes.append(hashes)
            self._counts.append(stop - start)
            self._outs.append((tensor.out, start * records.nbytes, stop * records.nbytes))
        return True

    def _cut(
        self, coded: list[int], bounds: list[int], starts: list[int], elements: int
    ) -> tuple[list[int], list[int]]:
        """The elements at which pieces begin, and `elements`; by how many chunks of every coded plane each comes behind the first."""
        if not coded or not elements:
            return [*range(0, elements, 2 * PIECE_CODES), elements], []
        first = coded[0]
        count = self._records.fields[first][1]
        places = starts[bounds[first] : bounds[first + 1]]
        for f in coded[1:]:
            if self._records.fields[f][1] != count or starts[bounds[f] : bounds[f + 1]] != places:
                return [], []
        cuts, groups = [0], [0]
        for number, start in enumerate([*places[1:], elements * count], 1):
            element, rest = divmod(start, count)
            if (element - cuts[-1] >= PIECE_CODES and not rest) or number == len(places):
                cuts.append(element)
                groups.append(number)
        return ([], []) if max(b - a for a, b in pairwise(cuts)) > MAX_PIECE_CODES else (cuts, groups)

    def jobs(self, together: bool) -> list[Callable[[], None]]:
        """Independent calls that decode all pieces."""
        if not self._counts:
            return []
        self._file.tasks  # noqa: B018  # not in several threads at once
        self._tasks = self._file.tasks[np.array(self._chunks, np.int64)]
        self._tasks[:, OUT] = self._offsets
        shape = -1, self._planes
        self._addresses = np.array(self._places, np.uint64).reshape(shape)
        self._from_memory = np.array(self._inside, np.uint64).reshape(shape)
        firsts, nbytes = [0], 0
        for p, count in enumerate(self._counts):
            if nbytes >= JOB_NBYTES and not together:
                firsts.append(p)
                nbytes = 0
            nbytes += count * self._records.nbytes
        return [partial(self._do, a, b) for a, b in pairwise([*firsts, len(self._counts)])]

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
        at = np.uint64(-(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT)
        addresses = self._addresses[first:stop] + self._from_memory[first:stop] * at
        calls = self._calls[first:stop]
        used = [number for call in calls for _, *numbers in call for number in numbers]
        low, high = (min(used), max(used)) if used else (0, 0)
        numbers = self._tasks[low:high]
        numbers[:, OUT] += at
        tasks, status = numbers.view(TASK).reshape(-1), np.zeros(high - low, np.int64)
        for p in range(first, stop):
            if not self._same(self._hashes[p]):
                continue
            escaped = self._escaped[p]
            if escaped >= 0:
                escapes = self._only_nibbles(escaped, numbers[escaped - low])
                if escapes < 0:
                    status[escaped - low] = HEADER_TRUNCATED
                    continue
            for coder, a, b in calls[p - first]:
                kernels[coder](tasks[a - low : b - low], status[a - low : b - low])
            out, begin, end = self._outs[p]
            if escaped < 0:
                join_words(fields, addresses[p - first], out[begin:end], 0, self._counts[p], rotate)
            elif not status[escaped - low]:
                assert fused is not None
                row = numbers[escaped - low]
                begins = row[_PAYLOAD] - np.uint64(escapes), row[OUT]
                status[escaped - low] = fused(
                    row[_TABLE], begins[1], begins[0], escapes, addresses[p - first], apart, out[begin:end], size, rotate
                )
        for number in np.flatnonzero(status).tolist():
            self._damaged.append((self._chunks[low + number], int(status[number])))

    def _only_nibbles(self, number: int, task: NDArray[np.uint64]) -> int:
        """Make a task of coder 6 one of coder 2; returns how many bytes are escaped, -1 if there are not as many."""
        view, (begins, ends, _) = self._file.data.data, self._file.sources
        start, end = begins[self._chunks[number]], ends[self._chunks[number]]
        escapes = int.from_bytes(view[start : start + HEADER], "little")
        if start + HEADER + escapes > end:
            return -1
        task[_PAYLOAD] += np.uint64(HEADER + escapes)
        task[_NBYTES] -= np.uint64(HEADER + escapes)
        task[_SIZE] = (task[_SIZE] + np.uint64(1)) // np.uint64(2)
        return escapes

    def _same(self, chunks: list[int]) -> bool:
        """Whether the bytes of chunks have their checksums."""
        if not self._file.verify:
            return True
        view, (begins, ends, checksums) = self._file.data.data, self._file.sources
        damaged = [
            (chunk, WRONG_CHECKSUM)
            for chunk in chunks
            if xxh3_64_intdigest(view[begins[chunk] : ends[chunk]]) != checksums[chunk]
        ]
        self._damaged += damaged
        return not damaged


def _apart(records: Records) -> bool | None:
    """Whether the bytes below the highest one of a float are planes of their own, or one; None if they are neither, or no float."""
    if records.nbytes not in (2, 4):
        return None
    return {((8, 1),) * records.nbytes: True, ((8, records.nbytes - 1), (8, 1)): False}.get(records.fields)


def _call(job: Callable[[], Any]) -> None:
    job()
