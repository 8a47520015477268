"""From chunks back to a quantized tensor, or to a range of its rows: only what holds them is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .batch import CodedPlanes, Tasks, plan_tasks, run_tasks
from .code_order import code_order, run_ranges
from .errors import InvalidArgumentError
from .packing import pack_codes, unpack_codes
from .tensor import QuantizedTensor, matrix_shape, packed_nbytes


@dataclass(frozen=True)
class Decoding:
    """What has to be decoded, `run_tasks(tasks)`, and the step that makes a tensor of it afterwards."""

    tasks: list[Tasks]
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
    tasks = codes.tasks()
    scales = coded.scale if rows is None or coded.args.strategy == "tensor" else coded.scale[first:last]
    zero_points: _CodeRange | None = None
    if not coded.args.symmetric:
        start = 0 if coded.args.strategy == "tensor" else first * coded.scale.shape[1]
        buffer = np.empty(packed_nbytes(scales.size, width), np.uint8)
        zero_points = _CodeRange(coded, 1, 0, start, start + scales.size, buffer)
        tasks.append(zero_points.tasks())

    def finish() -> QuantizedTensor:
        codes.finish()
        zero_point = zero_points.codes().reshape(scales.shape) if zero_points else None
        row_class = coded.row_class[first:last] if coded.row_class is not None else None
        return QuantizedTensor(out, scales, zero_point, shape, coded.dtype, coded.args, row_class, coded.column_class)

    return Decoding(tasks, finish)


def check_chunk(coded: CodedPlanes, i: int) -> None:
    """Decode chunk `i` of a tensor into memory of its own, for the errors that this may raise."""
    size = packed_nbytes(int(coded.index.rows["codes"][i]), coded.args.storage_bits)
    out = np.empty(size, np.uint8)
    run_tasks([plan_tasks(coded, range(i, i + 1), np.array([out.ctypes.data], np.uint64), np.array([size]), (out,))])


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

    def tasks(self) -> list[Tasks]:
        return [codes.tasks() for codes in self._ranges]

    def finish(self) -> None:
        """Fill `out` from what has been decoded."""
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
        self._overhanging: list[
            tuple[NDArray[np.uint8], int]
        ] = []  # chunks that reach beyond the buffer; where they start

    def tasks(self) -> Tasks:
        chunks = self._coded.index.overlapping(self._plane, self._start, self._stop)
        rows = slice(chunks.start, chunks.stop)
        sizes = -(-self._coded.index.rows["codes"][rows].astype(np.int64) * self._width // 8)
        at = (self._coded.index.starts[rows] - self._start) * self._width // 8
        outs = (at + self._buffer.ctypes.data).astype(np.uint64)
        for i in np.flatnonzero((at < 0) | (at + sizes > len(self._buffer))).tolist():  # the first or the last, at most
            scratch = np.empty(sizes[i], np.uint8)
            outs[i] = scratch.ctypes.data
            self._overhanging.append((scratch, int(at[i])))
        alive = (self._buffer, *(scratch for scratch, _ in self._overhanging))
        return plan_tasks(self._coded, chunks, outs, sizes, alive)

    def finish(self) -> None:
        """Fill `out` from what has been decoded."""
        for scratch, at in self._overhanging:
            low, high = max(at, 0), min(at + len(scratch), len(self._buffer))
            self._buffer[low:high] = scratch[low - at : high - at]
        self._overhanging.clear()
        if self._shift:
            self._out[:] = pack_codes(self._unpacked(), self._width)
        spare = len(self._out) * 8 - self._count * self._width
        if spare:
            self._out[-1] &= np.uint8(0xFF >> spare)

    def codes(self) -> NDArray[np.uint8]:
        """What has been decoded, one code per byte: uint8 `[stop - start]`."""
        self.finish()
        return self._unpacked()

    def _unpacked(self) -> NDArray[np.uint8]:
        return unpack_codes(self._buffer, self._count, self._width, self._shift)
