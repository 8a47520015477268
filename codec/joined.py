"""Tensors that are decoded and joined piece by piece: the planes of a piece stay in cache, only the result goes to memory.

A piece ends where a chunk of every coded plane does. Its chunks are compared with their checksums and decoded into memory that
the thread uses again and again, those that are not coded stay where they are in the file, and the join reads both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .batch import AHEAD, OUT, CodedFile, Part, chunk_error
from .kernels.select import join_escaped
from .kernels.status import WRONG_CHECKSUM
from .records import JOB_NBYTES, Records, kernel_fields
from .run_map import RunMap
from .scratch import scratch
from .small_records import SMALL_NBYTES
from .task import TASK

PIECE_CODES = 1 << 17  # elements of a piece, at least: what is done for each in Python should not count
MAX_PIECE_CODES = 1 << 20  # of a chunk: the planes of larger ones would not stay in cache
GROUP_NBYTES = 1 << 21  # of elements that are decoded together: what they need stays in cache

Jobs = Callable[[], list[Callable[[], None]]]


class JoinedTensor(NamedTuple):
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
    alike: dict[tuple[int, Records], list[JoinedTensor]] = {}
    for tensor in tensors:
        alike.setdefault((id(tensor.file), tensor.records), []).append(tensor)
    damaged: dict[int, list[tuple[int, int]]] = {}
    work = [_Pieces(group, damaged.setdefault(file, [])) for (file, _), group in alike.items()]
    for _ in run(_call, [job for pieces in work for job in pieces.jobs(run is map)]):
        pass
    for pieces in work:
        pieces.check()
    return [tensor for pieces in work for tensor in pieces.refused]


class _Pieces:
    """Pieces of tensors of a file that have the same records; those of `refused` tensors cannot be cut. See `cut_pieces`."""

    def __init__(self, tensors: Sequence[JoinedTensor], damaged: list[tuple[int, int]]) -> None:
        from .kernels.pieces import cut_pieces

        file, records = self._file, self._records = tensors[0].file, tensors[0].records
        self._tensors, self._damaged = tensors, damaged
        fields = np.array([(b, c, w) for (b, c), w in zip(records.fields, records.widths, strict=True)], np.int64)
        rows = np.empty((len(tensors), len(fields) + 3), np.int64)
        rows[:, 0] = [tensor.out.size // records.nbytes for tensor in tensors]
        rows[:, 1] = [tensor.out.__array_interface__["data"][0] for tensor in tensors]
        rows[:, 2:] = file.index.planes[np.array([[t.first] for t in tensors]) + np.arange(len(fields) + 1)]
        limits = np.array([PIECE_CODES, MAX_PIECE_CODES, GROUP_NBYTES])
        fuses = _apart(records) is not None and join_escaped() is not None
        tasks, joins, compared, places, inside, others, calls, groups, refused, self._room = cut_pieces(
            rows, fields, file.chunk_table, fuses, limits
        )
        self._groups, self._calls, self._others = groups.tolist(), calls.tolist(), others.tolist()
        self._chunks, self._compared, self._joins = tasks[:, 1], compared, joins.view(np.uint64)
        self._places, self._inside = places.view(np.uint64), inside.view(np.uint64)
        self._to_compare = file.to_compare[compared]
        self._tasks = file.tasks[self._chunks]
        self._tasks[:, OUT] = tasks[:, 2]
        self._tasks[:, AHEAD] = self._to_compare.ctypes.data + tasks[:, 4] * self._to_compare.strides[0]
        self._tasks[:, AHEAD + 1] = tasks[:, 5]
        self._escaped, self._same = np.zeros(len(joins), np.uint64), np.zeros(len(compared), np.int64)
        self._status = np.zeros(len(tasks), np.int64)
        self.refused = [tensors[t] for t in np.flatnonzero(refused).tolist()]

    def jobs(self, together: bool) -> list[Callable[[], None]]:
        """Independent calls that decode all pieces."""
        groups = self._groups
        step = max(1, len(groups) if together else -(-JOB_NBYTES // GROUP_NBYTES))
        return [partial(self._do, groups[i : i + step]) for i in range(0, len(groups), step)]

    def check(self) -> None:
        """Raises CorruptionError for the first damaged chunk of the file."""
        if self._damaged:
            # What a coder says of bytes that have another checksum than they should does not matter.
            raise chunk_error(self._file, *min(self._damaged, key=lambda found: (found[0], found[1] != WRONG_CHECKSUM)))

    def _do(self, groups: list[list[int]]) -> None:
        from .kernels.pieces import ALIGNMENT, compare, only_nibbles
        from .kernels.records import join_words
        from .kernels.select import batch_kernels
        from .kernels.xxh3 import xxh3_address

        kernels, fields, rotate = batch_kernels(), kernel_fields(self._records), self._records.rotate
        fused, apart, size = join_escaped(), bool(_apart(self._records)), self._records.nbytes
        memory, xxh3, verify = scratch(self._room + ALIGNMENT), xxh3_address(), self._file.verify
        base = np.uint64(-(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT)
        # Rows of these calls: tasks, joins, chunks to compare, places.
        (a, b), (c, d), (e, f), (g, h) = ((groups[0][2 * k], groups[-1][2 * k + 1]) for k in range(4))
        places = self._places
        places[g:h] += self._inside[g:h] * base
        self._tasks[a:b, OUT] += base
        tasks, status = self._tasks.view(TASK).reshape(-1), self._status
        if c < d:
            only_nibbles(tasks, self._joins[c:d], self._escaped[c:d])
        for _, _, c, d, e, f, _, _, other, last_other, call, last_call in groups:
            for coder, a, b in self._calls[call:last_call]:
                kernels[coder](tasks[a:b], status[a:b])
            if verify:
                compare(self._to_compare[e:f], self._same[e:f], xxh3)
            if fused is not None and c < d:
                fused(tasks, status, self._joins[c:d], self._escaped[c:d], places, apart, size, rotate)
            for piece, tensor, start, stop in self._others[other:last_other]:
                out = self._tensors[tensor].out[start * size : stop * size]
                join_words(fields, places[piece], out, 0, stop - start, rotate)
        for chunks, found, k in (self._compared, self._same, 2), (self._chunks, status, 0):
            first, stop = groups[0][2 * k], groups[-1][2 * k + 1]
            for i in np.flatnonzero(found[first:stop]).tolist():
                self._damaged.append((int(chunks[first + i]), int(found[first + i])))


def _apart(records: Records) -> bool | None:
    """Whether the bytes below the highest one of a float are planes of their own, or one; None if they are neither, or no float."""
    if records.nbytes not in (2, 4):
        return None
    return {((8, 1),) * records.nbytes: True, ((8, records.nbytes - 1), (8, 1)): False}.get(records.fields)


def _call(job: Callable[[], Any]) -> None:
    job()
