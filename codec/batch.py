"""Chunks of any number of tensors, decoded in a few calls: no Python runs between one chunk and the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from .chunk_index import ChunkIndex
from .coder import CODERS
from .errors import CorruptionError
from .kernels.status import CODE_TOO_LARGE, MESSAGES, OK, WRONG_CHECKSUM
from .raw import RAW
from .run_map import RunMap
from .task import TASK
from .tensor import packed_nbytes

PIECE_NBYTES = 1 << 22
"""Decoded bytes of one call of several threads, at most: enough to make calls cheap."""

_ALONE = 16  # times as many for one thread: between calls it can be interrupted
_LAST = 6  # A piece is at most a part of this number of what is left, so that threads end at about the same time.

_SIZE, OUT, _XXH3, AHEAD = (TASK.names.index(name) if TASK.names else 0 for name in ("size", "out", "xxh3", "ahead"))


class CodedFile:
    """The chunks of a file: its bytes (uint8 `[file size]`), the index that says where they are, and the table banks.

    bank: coder id -> its tables as kernels take them, `Coder.parse_bank`. verify: compare the checksum of each chunk that is
    decoded.
    """

    def __init__(
        self,
        data: NDArray[np.uint8],
        index: ChunkIndex,
        bank: Callable[[int], NDArray[np.uint16]],
        verify: bool = True,
    ) -> None:
        self.data, self.index, self.verify = data, index, verify
        self._bank = bank
        self._banks: list[NDArray[np.uint16]] = []  # the tasks hold their addresses

    @cached_property
    def tasks(self) -> NDArray[np.uint64]:
        """One TASK for each chunk, uint64 `[chunks, 12]`, but for the address to decode to; payloads are not compared."""
        index, rows = self.index, self.index.rows
        numbers = np.zeros((len(rows), TASK.itemsize // 8), np.uint64)
        tasks, coders = numbers.view(TASK).reshape(-1), rows["coder"]
        tasks["payload"] = index.offsets.astype(np.uint64) + np.uint64(self.data.ctypes.data)
        tasks["nbytes"], tasks["streams"], tasks["size"] = rows["nbytes"], rows["streams"], index.sizes
        tasks["unused"] = _UNUSED[np.minimum(index.bits, 8)]
        tasks["checksum"] = rows["checksum"]
        tasks["spare"] = index.sizes * 8 - rows["codes"].astype(np.int64) * index.widths
        for coder in set(coders.tolist()):
            if coder in CODERS and CODERS[coder].table_nbytes:
                bank, mine = self._bank(coder), coders == coder
                self._banks.append(bank)
                row = np.uint64(bank.strides[0])
                tasks["table"][mine] = bank.ctypes.data + rows["table"][mine].astype(np.uint64) * row
        return numbers

    @cached_property
    def to_compare(self) -> NDArray[np.uint64]:
        """Of each chunk the address of its bytes, their number and their checksum, uint64 `[chunks, 3]`."""
        columns = [self.index.offsets + self.data.ctypes.data, self.index.rows["nbytes"], self.index.rows["checksum"]]
        return np.stack([column.astype(np.uint64) for column in columns], 1)

    @cached_property
    def chunk_table(self) -> NDArray[np.int64]:
        """Of each chunk what `kernels.pieces` has to know, int64 `[chunks, 5]`."""
        rows, begins = self.index.rows, self.index.offsets + self.data.ctypes.data
        columns = rows["coder"], self.index.starts, self.index.sizes, begins, begins + rows["nbytes"]
        return np.stack([column.astype(np.int64) for column in columns], 1)


# For codes of 0 .. 8 bits the bits of a packed byte that none of them may have set.
_UNUSED = np.array(
    [
        0,
        *(
            sum(((1 << w) - (1 << b)) << s for s in range(0, 8, w))
            for b, w in zip(range(1, 9), (1, 2, 4, 4, 8, 8, 8, 8), strict=True)
        ),
    ],
    np.uint64,
)


class CodeRange:
    """Codes `start .. stop - 1` of a plane, to be decoded into `out` (uint8, packed). All are of the run that begins at `run`.

    number: that of the plane in the index of `file`. `plan_tasks` and `run_tasks` decode, `finish` completes `out`.
    """

    def __init__(
        self, file: CodedFile, number: int, width: int, run: int, start: int, stop: int, out: NDArray[np.uint8]
    ) -> None:
        self.file, self.number, self._width, self._count = file, number, width, stop - start
        # Chunks of a run begin on whole bytes; a range that does not is decoded from the byte it begins in, and shifted.
        self._shift = (start - run) % (8 // width) if self._count else 0
        self._start, self._stop = start - self._shift, stop
        self.out = out
        self.buffer = np.empty(packed_nbytes(stop - self._start, width), np.uint8) if self._shift else out
        self._overhanging: list[tuple[NDArray[np.uint8], int]] = []  # chunks that reach out of the buffer; their places

    def tasks(self) -> tuple[NDArray[np.int64], NDArray[np.uint64], tuple[object, ...]]:
        """The chunks that hold these codes, where they are to be decoded to, and the arrays that are there."""
        index = self.file.index
        chunks = index.overlapping(self.number, self._start, self._stop)
        rows = slice(chunks.start, chunks.stop)
        sizes, at = index.sizes[rows], (index.starts[rows] - self._start) * self._width // 8
        outs = (at + self.buffer.ctypes.data).astype(np.uint64)
        for i in np.flatnonzero((at < 0) | (at + sizes > len(self.buffer))).tolist():  # the first or the last, at most
            scratch = np.empty(sizes[i], np.uint8)
            outs[i] = scratch.ctypes.data
            self._overhanging.append((scratch, int(at[i])))
        alive = (self.buffer, *(scratch for scratch, _ in self._overhanging))
        return np.arange(chunks.start, chunks.stop), outs, alive

    def finish(self) -> NDArray[np.uint8]:
        """Complete `out` when its chunks have been decoded, and return it."""
        from .packing import pack_codes

        for scratch, at in self._overhanging:
            low, high = max(at, 0), min(at + len(scratch), len(self.buffer))
            self.buffer[low:high] = scratch[low - at : high - at]
        self._overhanging.clear()
        if self._shift:
            self.out[:] = pack_codes(self._unpacked(), self._width)
        spare = len(self.out) * 8 - self._count * self._width
        if spare:
            self.out[-1] &= np.uint8(0xFF >> spare)
        return self.out

    def codes(self) -> NDArray[np.uint8]:
        """What has been decoded, one code per byte: uint8 `[stop - start]`."""
        self.finish()
        return self._unpacked()

    def _unpacked(self) -> NDArray[np.uint8]:
        from .packing import unpack_codes

        return unpack_codes(self.buffer, self._count, self._width, self._shift)


class WholePlane:
    """All codes of a plane of one run, to be decoded into `out` (uint8, packed)."""

    def __init__(self, file: CodedFile, number: int, out: NDArray[np.uint8]) -> None:
        self.file, self.number, self.out = file, number, out

    def finish(self) -> NDArray[np.uint8]:
        """`out`, when its chunks have been decoded."""
        return self.out


class StoredPlane:
    """All codes of a plane of one run of bytes whose chunks are not coded and lie one behind the other: nothing to decode.

    `plan_tasks` and `run_tasks` compare the checksums.
    """

    def __init__(self, file: CodedFile, number: int) -> None:
        self.file, self.number = file, number
        chunks, index = file.index.plane(number), file.index
        start = int(index.offsets[chunks.start]) if chunks else 0
        self.out = file.data[start : start + int(index.sizes[chunks.start : chunks.stop].sum())]

    def finish(self) -> NDArray[np.uint8]:
        """A view of the file, when its checksums have been compared."""
        return self.out


def is_stored(file: CodedFile, number: int) -> bool:
    """Whether `StoredPlane` can stand for a plane."""
    index, chunks = file.index, file.index.plane(number)
    mine = slice(chunks.start, chunks.stop)
    ends = index.offsets[mine] + index.sizes[mine]
    together = (index.offsets[mine][1:] == ends[:-1]).all()
    rows = index.rows[mine]
    return bool(
        together and (rows["coder"] == RAW.id).all() and (index.bits[mine] == 8).all() and not rows["delta"].any()
    )


Part: TypeAlias = CodeRange | WholePlane | StoredPlane


@dataclass(frozen=True)
class Tasks:
    """Chunks of one file to decode. chunks: their numbers. tasks: uint64 `[count, 12]`, one TASK for each.

    alive: the arrays whose addresses the tasks hold. stored: chunks of which only the checksum is of interest.
    """

    file: CodedFile
    chunks: NDArray[np.int64]
    tasks: NDArray[np.uint64]
    alive: tuple[object, ...]
    stored: tuple[int, ...] = ()


def plan_tasks(parts: Sequence[Part]) -> list[Tasks]:
    """What has to be decoded, file by file."""
    by_file: dict[int, list[Part]] = {}
    for part in parts:
        by_file.setdefault(id(part.file), []).append(part)
    return [_plan_file(group[0].file, group) for group in by_file.values()]


def _plan_file(file: CodedFile, parts: Sequence[Part]) -> Tasks:
    index = file.index
    alive: list[object] = []
    whole = [part for part in parts if isinstance(part, WholePlane)]
    numbers = np.array([part.number for part in whole], np.int64)
    firsts, stops = index.planes[numbers], index.planes[numbers + 1]
    counts = stops - firsts
    chunks = np.repeat(firsts - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
    bases = np.array([part.out.__array_interface__["data"][0] for part in whole], np.int64)
    outs = (np.repeat(bases, counts) + (index.starts[chunks] * index.widths[chunks] >> 3)).astype(np.uint64)
    alive += [part.out for part in whole]
    for part in parts:
        if isinstance(part, CodeRange):
            more_chunks, more_outs, more_alive = part.tasks()
            chunks, outs = np.concatenate([chunks, more_chunks]), np.concatenate([outs, more_outs])
            alive += more_alive
    tasks = file.tasks[chunks]
    tasks[:, OUT] = outs
    stored = tuple(i for part in parts if isinstance(part, StoredPlane) for i in file.index.plane(part.number))
    return Tasks(file, chunks, tasks, (*alive, file), stored)


def run_tasks(work: Sequence[Tasks], run: RunMap = map) -> None:
    """Decode all chunks, in pieces that `run` may spread over threads.

    Raises CorruptionError for the first chunk, in the order given, that has a wrong checksum or does not decode.
    """
    for tasks in work:
        if len(tasks.stored) and tasks.file.verify:
            _check_stored(tasks.file, tasks.stored, run)
        if len(tasks.chunks):
            _run(tasks, run)


def _check_stored(file: CodedFile, chunks: tuple[int, ...], run: RunMap) -> None:
    view, offsets, rows = file.data.data, file.index.offsets, file.index.rows

    def differs(chunk: int) -> bool:
        start = int(offsets[chunk])
        return xxh3_64_intdigest(view[start : start + int(rows["nbytes"][chunk])]) != int(rows["checksum"][chunk])

    for chunk, wrong in zip(chunks, run(differs, chunks), strict=True):
        if wrong:
            raise chunk_error(file, chunk, WRONG_CHECKSUM)


def _run(work: Tasks, run: RunMap) -> None:
    from .kernels.select import batch_kernels
    from .kernels.xxh3 import xxh3_address

    kernels, coders = batch_kernels(), work.file.index.rows["coder"][work.chunks]
    if coders.tobytes().count(coders[0]) == len(coders):
        order, batch = None, work.tasks.copy()
    else:
        order = np.argsort(coders, kind="stable")  # chunks of one coder side by side
        coders, batch = coders[order], work.tasks[order]
    batch[:, _XXH3] = xxh3_address() if work.file.verify else 0
    tasks, status = batch.view(TASK).reshape(-1), np.zeros(len(batch), np.int64)

    def decode(piece: tuple[int, int, int]) -> None:
        coder, start, stop = piece
        kernels[coder](tasks[start:stop], status[start:stop])

    for _ in run(decode, _pieces(coders.tolist(), batch[:, _SIZE].tolist(), run)):
        pass
    if np.count_nonzero(status):
        if order is not None:
            status[order] = status.copy()
        first = int(np.flatnonzero(status != OK)[0])
        raise chunk_error(work.file, int(work.chunks[first]), int(status[first]))


def _pieces(coders: list[int], sizes: list[int], run: RunMap) -> list[tuple[int, int, int]]:
    """What is decoded in one call: (coder, first task, behind the last one)."""
    pieces: list[tuple[int, int, int]] = []
    left = sum(sizes)
    limit, last = (_ALONE * PIECE_NBYTES, 1) if run is map else (PIECE_NBYTES, _LAST)
    start, nbytes, most = 0, 0, min(limit, left // last)
    for i, (coder, size) in enumerate(zip(coders, sizes, strict=True)):
        if i > start and (coder != coders[start] or nbytes + size > most):
            pieces.append((coders[start], start, i))
            left -= nbytes
            start, nbytes, most = i, 0, min(limit, left // last)
        nbytes += size
    return [*pieces, (coders[start], start, len(coders))]


def chunk_error(file: CodedFile, chunk: int, status: int) -> CorruptionError:
    what = MESSAGES[status]
    if status == CODE_TOO_LARGE:
        what = f"a code is larger than {(1 << int(file.index.bits[chunk])) - 1}"
    elif status < CODE_TOO_LARGE:  # what the coder itself found
        what = f"{CODERS[int(file.index.rows['coder'][chunk])].name}: {what}"
    return CorruptionError(f"{file.index.describe(chunk)}: {what}")
