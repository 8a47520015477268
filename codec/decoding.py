"""From chunks back to a quantized tensor, or to a range of its rows: only what holds them is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunk_index import ChunkIndex
from .chunks import decode_chunk
from .code_order import code_order, run_ranges
from .code_range import range_problem
from .errors import CorruptionError, InvalidArgumentError
from .packing import pack_codes, unpack_codes
from .tensor import QuantizationArgs, QuantizedTensor, matrix_shape, packed_nbytes


@dataclass(frozen=True)
class CodedPlanes:
    """All that is needed to decode a tensor but its memory.

    payload: uint8 `[n]`. table: (coder id, table number) -> the row of that coder's bank. where: the beginning of error messages.
    verify: compare the checksum of each chunk that is decoded.
    """

    shape: tuple[int, ...]
    dtype: str
    args: QuantizationArgs
    scale: NDArray[Any]
    index: ChunkIndex
    payload: NDArray[np.uint8]
    table: Callable[[int, int], bytes]
    row_class: NDArray[np.uint8] | None
    column_class: NDArray[np.uint8] | None
    where: str
    verify: bool = True


@dataclass(frozen=True)
class Decoding:
    """Independent jobs, to be run in any order and by any thread, and the step that makes a tensor of their results."""

    jobs: list[Callable[[], None]]
    finish: Callable[[], QuantizedTensor]


def decoding(coded: CodedPlanes, rows: tuple[int, int] | None = None, out: NDArray[np.uint8] | None = None) -> Decoding:
    """Plan the decoding of a tensor, or of its rows `start .. stop - 1`, into `out` (uint8 [packed bytes]) if given.

    Only chunks that hold codes of these rows are read.
    """
    n_rows, columns = matrix_shape(coded.shape)
    first, last = (0, n_rows) if rows is None else rows
    shape = coded.shape if rows is None else (last - first, *coded.shape[1:])
    count, width = (last - first) * columns, coded.args.storage_bits
    if out is None:
        out = np.empty(packed_nbytes(count, width), np.uint8)
    elif out.dtype != np.uint8 or out.shape != (packed_nbytes(count, width),) or not out.flags.carray:
        raise InvalidArgumentError(f"out must be a writable, contiguous uint8[{packed_nbytes(count, width)}]")
    codes = _Codes(coded, first, last, out)
    jobs = codes.jobs()
    scales = coded.scale if rows is None or coded.args.strategy == "tensor" else coded.scale[first:last]
    zero_points: _CodeRange | None = None
    if not coded.args.symmetric:
        start = 0 if coded.args.strategy == "tensor" else first * coded.scale.shape[1]
        buffer = np.empty(packed_nbytes(scales.size, width), np.uint8)
        zero_points = _CodeRange(coded, 1, 0, start, start + scales.size, buffer)
        jobs += zero_points.jobs()

    def finish() -> QuantizedTensor:
        codes.finish()
        zero_point = zero_points.codes().reshape(scales.shape) if zero_points else None
        row_class = coded.row_class[first:last] if coded.row_class is not None else None
        return QuantizedTensor(out, scales, zero_point, shape, coded.dtype, coded.args, row_class, coded.column_class)

    return Decoding(jobs, finish)


def decode_indexed(coded: CodedPlanes, i: int, out: NDArray[np.uint8]) -> None:
    """Decode chunk `i` of a tensor into `out`, uint8 [packed bytes of the chunk]; errors name tensor, chunk and bytes."""
    row = coded.index.rows[i]
    start, coder = int(row["offset"]), int(row["coder"])
    payload = coded.payload[start : start + int(row["nbytes"])]
    table = coded.table(coder, int(row["table"]))
    try:
        decode_chunk(coder, int(row["streams"]), int(row["checksum"]), payload, table, out, check=coded.verify)
        problem = range_problem(out, int(row["codes"]), coded.args)
        if problem:
            raise CorruptionError(problem)
    except CorruptionError as error:
        place = f"chunk {i} (payload bytes {start:,} to {start + len(payload) - 1:,})"
        raise CorruptionError(f"{coded.where}, {place}: {error}") from None


def check_chunk(coded: CodedPlanes, i: int) -> None:
    """Decode chunk `i` of a tensor into memory of its own, for the errors that this may raise."""
    decode_indexed(
        coded, i, np.empty(packed_nbytes(int(coded.index.rows["codes"][i]), coded.args.storage_bits), np.uint8)
    )


class _Codes:
    """The codes of rows `first .. last - 1` of a tensor into `out`, whatever their order in the file."""

    def __init__(self, coded: CodedPlanes, first: int, last: int, out: NDArray[np.uint8]) -> None:
        rows, columns = matrix_shape(coded.shape)
        self._coded, self._first, self._last, self._out = coded, first, last, out
        self._sorted = coded.row_class is not None or coded.column_class is not None
        self._ranges = [
            _CodeRange(coded, 0, run, start, stop, self._buffer(stop - start) if self._sorted else out)
            for run, start, stop in run_ranges(rows, columns, coded.row_class, coded.column_class, first, last)
        ]

    def _buffer(self, count: int) -> NDArray[np.uint8]:
        return np.empty(packed_nbytes(count, self._coded.args.storage_bits), np.uint8)

    def jobs(self) -> list[Callable[[], None]]:
        return [job for codes in self._ranges for job in codes.jobs()]

    def finish(self) -> None:
        """Fill `out` from what the jobs have decoded."""
        if not self._sorted:
            for codes in self._ranges:
                codes.finish()
            return
        columns, row_class = matrix_shape(self._coded.shape)[1], self._coded.row_class
        some_rows = None if row_class is None else row_class[self._first : self._last]
        order = code_order(self._last - self._first, columns, some_rows, self._coded.column_class)
        if order is None:
            return
        by_place = np.empty(len(order), np.uint8)
        by_place[order] = np.concatenate([codes.codes() for codes in self._ranges])
        self._out[:] = pack_codes(by_place, self._coded.args.storage_bits)


class _CodeRange:
    """Codes `start .. stop - 1` of a plane into `out`, packed. All are of the run that starts at `run`."""

    def __init__(self, coded: CodedPlanes, plane: int, run: int, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        self._coded, self._plane, self._out = coded, plane, out
        self._width, self._count = coded.args.storage_bits, stop - start
        # Chunks of a run begin on whole bytes; a range that does not is decoded from the byte it begins in, and shifted.
        self._shift = (start - run) % (8 // self._width) if self._count else 0
        self._start, self._stop = start - self._shift, stop
        self._buffer = np.empty(packed_nbytes(stop - self._start, self._width), np.uint8) if self._shift else out

    def jobs(self) -> list[Callable[[], None]]:
        chunks = self._coded.index.overlapping(self._plane, self._start, self._stop)
        return [partial(self._decode, i) for i in chunks]

    def finish(self) -> None:
        """Fill `out` from what the jobs have decoded."""
        if self._shift:
            self._out[:] = pack_codes(self.codes(), self._width)
        spare = len(self._out) * 8 - self._count * self._width
        if spare:
            self._out[-1] &= np.uint8(0xFF >> spare)

    def codes(self) -> NDArray[np.uint8]:
        """What the jobs have decoded, one code per byte: uint8 `[stop - start]`."""
        return unpack_codes(self._buffer, self._count, self._width, self._shift)

    def _decode(self, i: int) -> None:
        codes, first = int(self._coded.index.rows["codes"][i]), int(self._coded.index.starts[i])
        nbytes = packed_nbytes(codes, self._width)
        at = (first - self._start) * self._width // 8
        if at >= 0 and at + nbytes <= len(self._buffer):
            decode_indexed(self._coded, i, self._buffer[at : at + nbytes])
            return
        scratch = np.empty(nbytes, np.uint8)
        decode_indexed(self._coded, i, scratch)
        low, high = max(at, 0), min(at + nbytes, len(self._buffer))
        self._buffer[low:high] = scratch[low - at : high - at]
