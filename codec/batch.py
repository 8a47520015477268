"""Chunks of any number of tensors, decoded in a few calls: no Python runs between one chunk and the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from .chunk_index import ChunkIndex
from .coder import CODERS
from .errors import CorruptionError
from .kernels.status import CODE_TOO_LARGE, MESSAGES, OK, WRONG_CHECKSUM
from .run_map import RunMap
from .task import TASK
from .tensor import QuantizationArgs

PIECE_NBYTES = 1 << 19
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
    """Chunks of one tensor to decode: their numbers in its index, int64 `[k]`, and TASK `[k]`.

    alive: the arrays whose addresses the tasks hold.
    """

    coded: CodedPlanes
    chunks: NDArray[np.int64]
    tasks: NDArray[Any]
    alive: tuple[object, ...]


def plan_tasks(
    coded: CodedPlanes, chunks: range, outs: NDArray[np.uint64], sizes: NDArray[np.int64], alive: tuple[object, ...]
) -> Tasks:
    """Tasks that decode `chunks` to the addresses `outs`, each of `sizes` bytes within an array of `alive`."""
    rows, width = coded.index.rows[chunks.start : chunks.stop], coded.args.storage_bits
    tasks = np.zeros(len(rows), TASK)
    if not len(rows):
        return Tasks(coded, np.zeros(0, np.int64), tasks, ())
    tasks["payload"] = rows["offset"] + np.uint64(coded.payload.ctypes.data)
    tasks["nbytes"], tasks["streams"], tasks["out"], tasks["size"] = rows["nbytes"], rows["streams"], outs, sizes
    tasks["unused"] = sum(((1 << width) - (1 << coded.args.num_bits)) << shift for shift in range(0, 8, width))
    tasks["spare"] = sizes * 8 - rows["codes"].astype(np.int64) * width
    banks = []
    for coder in set(rows["coder"].tolist()):
        if CODERS[coder].table_nbytes:
            bank, mine = coded.bank(coder), rows["coder"] == coder
            banks.append(bank)
            tasks["table"][mine] = bank.ctypes.data + rows["table"][mine].astype(np.uint64) * np.uint64(bank.strides[0])
    return Tasks(coded, np.arange(chunks.start, chunks.stop), tasks, (*alive, *banks))


def run_tasks(work: Sequence[Tasks], run: RunMap = map) -> None:
    """Decode all chunks, in pieces that `run` may spread over threads.

    Raises CorruptionError for the first chunk, in the order given, that has a wrong checksum or does not decode.
    """
    work = [tasks for tasks in work if len(tasks.chunks)]
    if not work:
        return
    counts = [len(tasks.chunks) for tasks in work]
    owners, places = np.repeat(np.arange(len(work)), counts), np.concatenate([np.arange(count) for count in counts])
    batch = np.concatenate([tasks.tasks for tasks in work])
    coders = np.concatenate([tasks.coded.index.rows["coder"][tasks.chunks] for tasks in work])
    pieces: list[tuple[int, NDArray[np.int64]]] = []
    for coder in np.unique(coders).tolist():
        mine = np.flatnonzero(coders == coder)
        number = np.cumsum(batch["size"][mine]) // np.uint64(PIECE_NBYTES)
        pieces += [(coder, piece) for piece in np.split(mine, np.flatnonzero(np.diff(number)) + 1)]
    status = np.zeros(len(batch), np.int64)

    def decode(piece: tuple[int, NDArray[np.int64]]) -> None:
        coder, rows = piece
        status[rows] = _decode(coder, batch[rows], [(work[owners[row]], int(places[row])) for row in rows])

    for _ in run(decode, pieces):
        pass
    bad = np.flatnonzero(status != OK)
    if len(bad):
        raise _error(work[owners[bad[0]]], int(places[bad[0]]), int(status[bad[0]]))


def _decode(coder: int, tasks: NDArray[Any], sources: list[tuple[Tasks, int]]) -> NDArray[np.int64]:
    from .kernels.select import batch_kernels

    status = np.zeros(len(tasks), np.int64)
    for i, (of, place) in enumerate(sources):
        if of.coded.verify and not _intact(of, place):
            status[i] = WRONG_CHECKSUM
    if not status.any():  # else the damage is known, and the rest is not needed
        batch_kernels()[coder](tasks, status)
    return status


def _intact(tasks: Tasks, place: int) -> bool:
    row = tasks.coded.index.rows[tasks.chunks[place]]
    start = int(row["offset"])
    payload = tasks.coded.payload[start : start + int(row["nbytes"])]
    return xxhash.xxh3_64_intdigest(payload) == int(row["checksum"])


def _error(tasks: Tasks, place: int, status: int) -> CorruptionError:
    chunk = int(tasks.chunks[place])
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
