"""Chunks of any number of tensors, decoded in a few calls: no Python runs between one chunk and the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from .chunk_index import ChunkIndex
from .coder import CODERS
from .errors import CorruptionError
from .kernels.status import CODE_TOO_LARGE, MESSAGES, OK, WRONG_CHECKSUM
from .run_map import RunMap
from .task import TASK
from .tensor import QuantizationArgs

PIECE_NBYTES = 1 << 20
"""Decoded bytes of one call: enough to make calls cheap, little enough to share a small model between threads."""


@dataclass(frozen=True)
class CodedPlanes:
    """All that is needed to decode a tensor but its memory.

    payload: uint8 `[n]`. bank: coder id -> its tables as kernels take them, `Coder.parse_bank`. where: the beginning of
    error messages. verify: compare the checksum of each chunk that is decoded.
    """

    shape: tuple[int, ...]
    dtype: str
    args: QuantizationArgs
    scale: NDArray[Any]
    index: ChunkIndex
    payload: NDArray[np.uint8]
    bank: Callable[[int], NDArray[np.uint16]]
    row_class: NDArray[np.uint8] | None
    column_class: NDArray[np.uint8] | None
    where: str
    verify: bool = True


@dataclass(frozen=True)
class Tasks:
    """Chunks of one tensor to decode: `count` of them, from number `first` of its index on, and their tasks.

    tasks: uint64 `[count, 8]`, TASK as plain numbers, which numpy copies much faster.

    coders: uint8 `[count]`. payloads: their bytes. alive: the arrays whose addresses the tasks hold.
    """

    coded: CodedPlanes
    first: int
    tasks: NDArray[np.uint64]
    coders: NDArray[np.uint8]
    payloads: list[memoryview]
    alive: tuple[object, ...]

    @property
    def count(self) -> int:
        return len(self.tasks)

    @property
    def checksums(self) -> list[int] | list[None]:
        """Expected XXH3-64 of each payload; None where it need not be compared."""
        if not self.coded.verify:
            return [None] * self.count
        rows: list[int] = self.coded.index.rows["checksum"][self.first : self.first + self.count].tolist()
        return rows


def plan_tasks(
    coded: CodedPlanes, chunks: range, outs: NDArray[np.uint64], sizes: NDArray[np.int64], alive: tuple[object, ...]
) -> Tasks:
    """Tasks that decode `chunks` to the addresses `outs`, each of `sizes` bytes within an array of `alive`."""
    rows, width = coded.index.rows[chunks.start : chunks.stop], coded.args.storage_bits
    numbers = np.zeros((len(rows), TASK.itemsize // 8), np.uint64)
    tasks = numbers.view(TASK)[:, 0]
    offsets, coders = rows["offset"], rows["coder"]
    tasks["payload"] = offsets + np.uint64(coded.payload.ctypes.data)
    tasks["nbytes"], tasks["streams"], tasks["out"], tasks["size"] = rows["nbytes"], rows["streams"], outs, sizes
    tasks["unused"] = sum(((1 << width) - (1 << coded.args.num_bits)) << shift for shift in range(0, 8, width))
    tasks["spare"] = sizes * 8 - rows["codes"].astype(np.int64) * width
    banks = []
    for coder in set(coders.tolist()):
        if CODERS[coder].table_nbytes:
            bank, mine = coded.bank(coder), coders == coder
            banks.append(bank)
            tasks["table"][mine] = bank.ctypes.data + rows["table"][mine].astype(np.uint64) * np.uint64(bank.strides[0])
    view, ends = memoryview(coded.payload), (offsets + rows["nbytes"]).tolist()
    payloads = [view[start:end] for start, end in zip(offsets.tolist(), ends, strict=True)]
    return Tasks(coded, chunks.start, numbers, coders, payloads, (*alive, *banks))


def run_tasks(work: Sequence[Tasks], run: RunMap = map) -> None:
    """Decode all chunks, in pieces that `run` may spread over threads.

    Raises CorruptionError for the first chunk, in the order given, that has a wrong checksum or does not decode.
    """
    work = [tasks for tasks in work if tasks.count]
    if not work:
        return
    batch = np.concatenate([tasks.tasks for tasks in work])
    coders = np.concatenate([tasks.coders for tasks in work])
    sources = [source for tasks in work for source in zip(tasks.payloads, tasks.checksums, strict=True)]
    order = None
    if (coders != coders[0]).any():  # chunks of one coder side by side
        order = np.argsort(coders, kind="stable")
        batch, coders, sources = batch[order], coders[order], [sources[i] for i in order.tolist()]
    tasks = batch.view(TASK)[:, 0]
    status = np.zeros(len(batch), np.int64)

    def decode(piece: tuple[int, int, int]) -> None:
        coder, start, stop = piece
        _decode(coder, tasks[start:stop], sources[start:stop], status[start:stop])

    for _ in run(decode, _pieces(coders.tolist(), tasks["size"].tolist())):
        pass
    if status.any():
        if order is not None:
            status[order] = status.copy()
        first = int(np.flatnonzero(status != OK)[0])
        raise _error(work, first, int(status[first]))


def _pieces(coders: list[int], sizes: list[int]) -> list[tuple[int, int, int]]:
    """What is decoded in one call: (coder, first task, behind the last one), of about PIECE_NBYTES."""
    pieces: list[tuple[int, int, int]] = []
    start = nbytes = 0
    for i, (coder, size) in enumerate(zip(coders, sizes, strict=True)):
        if i > start and (coder != coders[start] or nbytes + size > PIECE_NBYTES):
            pieces.append((coders[start], start, i))
            start, nbytes = i, 0
        nbytes += size
    return [*pieces, (coders[start], start, len(coders))]


def _decode(
    coder: int, tasks: NDArray[Any], sources: list[tuple[memoryview, int | None]], status: NDArray[np.int64]
) -> None:
    from .kernels.select import batch_kernels

    damaged = [
        i for i, (payload, want) in enumerate(sources) if want is not None and xxh3_64_intdigest(payload) != want
    ]
    if damaged:  # the rest is not needed
        status[damaged] = WRONG_CHECKSUM
    else:
        batch_kernels()[coder](tasks, status)


def _error(work: Sequence[Tasks], number: int, status: int) -> CorruptionError:
    """The error for one of all chunks of `work`, counted through."""
    for tasks in work:
        if number < tasks.count:
            break
        number -= tasks.count
    chunk = tasks.first + number
    row = tasks.coded.index.rows[chunk]
    start, coder = int(row["offset"]), CODERS[int(row["coder"])]
    what = MESSAGES[status]
    if status == CODE_TOO_LARGE:
        what = f"a code is larger than {(1 << tasks.coded.args.num_bits) - 1}"
    elif status < CODE_TOO_LARGE:  # what the coder itself found
        what = f"{coder.name}: {what}"
    return CorruptionError(
        f"{tasks.coded.where}, chunk {chunk} (payload bytes {start:,} to {start + int(row['nbytes']) - 1:,}): {what}"
    )
