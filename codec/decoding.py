"""From chunks back to tensors, or to ranges of their rows: only what holds them is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import palette as palettes
from . import scaled_palette
from .batch import CodedFile, CodeRange, Part, StoredPlane, Tasks, WholePlane, is_stored, plan_tasks, run_tasks
from .code_order import Classes, code_order, run_ranges
from .delta import restore
from .dequantize import float_dtype
from .errors import CorruptionError, InvalidArgumentError
from .joined import JoinedTensor, run_joined
from .packing import pack_codes, slice_packed, unpack_codes
from .pages import empty, shared_pages
from .planes import Plane, byte_planes, grid_planes
from .records import Records, is_plain, join, join_jobs, split
from .run_map import RunMap
from .scaled_palette import SCALES
from .tensor import QuantizationArgs, QuantizedTensor, matrix_shape, packed_nbytes


class CodedGrid(NamedTuple):
    """A quantized tensor in a file. first: the number of its first plane. scale: how its scales are split."""

    file: CodedFile
    first: int
    shape: tuple[int, ...]
    dtype: str
    args: QuantizationArgs
    scale: Records
    row_class: Classes = None
    column_class: Classes = None

    @property
    def planes(self) -> tuple[Plane, ...]:
        return grid_planes(self.shape, self.args, self.scale, self.row_class, self.column_class)


class CodedBytes(NamedTuple):
    """A lossless tensor of `nbytes` bytes in a file. first: the number of its first plane; palette: how many values it has;
    group: how many of its elements, of `dtype`, share a scale that the values are multiplied by (0: there are no scales).

    base: gives the bytes of the tensor that its deltas refer to. where: what messages begin with.
    """

    file: CodedFile
    first: int
    nbytes: int
    records: Records
    palette: int
    base: Callable[[], NDArray[np.uint8]] | None
    where: str
    group: int = 0
    dtype: str = ""

    @property
    def planes(self) -> tuple[Plane, ...]:
        return byte_planes(self.nbytes, self.records, self.palette, self.group)


class Decoding(NamedTuple):
    """What has to be decoded; the independent calls that are due afterwards; and what there is then.

    joined: a tensor that is decoded beside that, without parts and jobs of its own.
    """

    parts: Sequence[Part]
    jobs: Callable[[], list[Callable[[], None]]]
    finish: Callable[[], Any]
    joined: JoinedTensor | None = None


def decode(decodings: Iterable[Decoding], run: RunMap = map) -> list[Any]:
    """Carry out decodings as one parallel job over all chunks. Raises CorruptionError."""
    with shared_pages():
        pending = list(decodings)  # where they are planned here, their memory is that of the pieces
        apart = [tensor.apart() for tensor in run_joined([d.joined for d in pending if d.joined is not None], run)]
        work = [*((decoding.parts, decoding.jobs) for decoding in pending), *apart]
        run_tasks(plan_tasks([part for parts, _ in work for part in parts]), run)
        for _ in run(_call, [job for _, jobs in work for job in jobs()]):
            pass
        return [decoding.finish() for decoding in pending]


def check_chunk(file: CodedFile, chunk: int, values: int = 0) -> None:
    """Decode one chunk of a file, for the errors that this may raise. values: how many its palette has, if it has one."""
    out = np.empty(int(file.index.sizes[chunk]), np.uint8)
    tasks = file.tasks[chunk : chunk + 1].copy()
    tasks[:, 4] = out.ctypes.data
    run_tasks([Tasks(file, np.array([chunk]), tasks, (out,))])
    width, count = int(file.index.widths[chunk]), int(file.index.rows["codes"][chunk])
    if values and int(unpack_codes(out, count, width).max()) >= values:
        raise CorruptionError(f"{file.index.describe(chunk)}: a code is larger than the palette")


# ---------------------------------------------------------------------------------------------- quantized
def grid_decoding(
    coded: CodedGrid, rows: tuple[int, int] | None = None, out: NDArray[np.uint8] | None = None
) -> Decoding:
    """Plan the decoding of a tensor, or of its rows `start .. stop - 1`, into `out` (uint8 [packed bytes]) if given.

    Only chunks that hold codes of these rows are read. What is there in the end is a QuantizedTensor.
    """
    n_rows, columns = matrix_shape(coded.shape)
    first, last = (0, n_rows) if rows is None else rows
    shape = coded.shape if rows is None else (last - first, *coded.shape[1:])
    count, width, args = (last - first) * columns, coded.args.storage_bits, coded.args
    out = _buffer(out, packed_nbytes(count, width))
    codes = _Codes(coded, first, last, out)
    scale_shape = args.scale_shape(shape)
    scales = prod(scale_shape)
    start = 0 if args.strategy == "tensor" else first * scale_shape[1]
    whole = scales == prod(args.scale_shape(coded.shape))
    zero_points: CodeRange | None = None
    number = coded.first + 1
    if not args.symmetric:
        zero_points = CodeRange(
            coded.file, number, width, 0, start, start + scales, np.empty(packed_nbytes(scales, width), np.uint8)
        )
        number += 1
    fields = _fields(coded.file, number, coded.scale, start, start + scales, whole)
    scale_bytes = empty(scales * coded.scale.nbytes)

    def finish() -> QuantizedTensor:
        codes.finish()
        join([field.finish() for field in fields], coded.scale, scale_bytes)
        scale = scale_bytes.view(float_dtype(args.scale_dtype)).reshape(scale_shape)
        zero_point = zero_points.codes().reshape(scale_shape) if zero_points else None
        row_class = coded.row_class[first:last] if coded.row_class is not None else None
        return QuantizedTensor(out, scale, zero_point, shape, coded.dtype, args, row_class, coded.column_class)

    parts: list[Part] = [*codes.parts, *([zero_points] if zero_points else []), *fields]
    return Decoding(parts, list, finish)


class _Codes:
    """The codes of rows `first .. last - 1` of a tensor into `out`, whatever their order in the file."""

    def __init__(self, coded: CodedGrid, first: int, last: int, out: NDArray[np.uint8]) -> None:
        rows, columns = matrix_shape(coded.shape)
        self._coded, self._first, self._last, self._out = coded, first, last, out
        self._sorted = coded.row_class is not None or coded.column_class is not None
        self.parts: list[CodeRange | WholePlane]
        if not self._sorted and last - first == rows:
            self.parts = [WholePlane(coded.file, coded.first, out)]
            return
        width = coded.args.storage_bits
        self._ranges = [
            CodeRange(coded.file, coded.first, width, run, start, stop, self._buffer(stop - start))
            for run, start, stop in run_ranges(rows, columns, coded.row_class, coded.column_class, first, last)
        ]
        self.parts = [*self._ranges]

    def _buffer(self, count: int) -> NDArray[np.uint8]:
        return np.empty(packed_nbytes(count, self._coded.args.storage_bits), np.uint8) if self._sorted else self._out

    def finish(self) -> None:
        """Fill `out` from what has been decoded."""
        if not self._sorted:
            for part in self.parts:
                part.finish()
            return
        columns, row_class = matrix_shape(self._coded.shape)[1], self._coded.row_class
        some_rows = None if row_class is None else row_class[self._first : self._last]
        order = code_order(self._last - self._first, columns, some_rows, self._coded.column_class)
        if order is None:
            return
        by_place = np.empty(len(order), np.uint8)
        by_place[order] = np.concatenate([codes.codes() for codes in self._ranges])
        self._out[:] = pack_codes(by_place, self._coded.args.storage_bits)


# ---------------------------------------------------------------------------------------------- lossless
def bytes_decoding(
    coded: CodedBytes, span: tuple[int, int] | None = None, out: NDArray[np.uint8] | None = None
) -> Decoding:
    """Plan the decoding of a tensor, or of its bytes `start .. stop - 1`, into `out` (uint8 [bytes]) if given.

    What is there in the end are the bytes, uint8 [n].
    """
    start, stop = (0, coded.nbytes) if span is None else span
    step = coded.records.span
    # Whole records; and all of them where the codes of a base would have to be cut, too.
    low, high = (0, coded.nbytes) if coded.base else (start // step * step, -(-stop // step) * step)
    exact = (low, high) == (start, stop)
    result = _buffer(out, stop - start)
    buffer = result if exact else empty(high - low)
    first, last = low // coded.records.nbytes, high // coded.records.nbytes
    whole = last - first == coded.nbytes // coded.records.nbytes

    def finish() -> NDArray[np.uint8]:
        if not exact:
            result[:] = buffer[start - low : stop - low]
        return result

    if coded.palette:
        return Decoding(*_palette_parts(coded, first, last, buffer), finish)
    if coded.base is None and is_plain(coded.records):
        plane = _field(coded.file, coded.first, coded.records, 0, first, last, whole, buffer)
        return Decoding([plane], lambda: [partial(_finish, plane)], finish)
    if whole and coded.base is None and coded.records.are_words:
        apart = partial(_field_parts, coded, first, last, buffer, whole)
        return Decoding((), list, finish, JoinedTensor(coded.file, coded.first, coded.records, buffer, apart))
    return Decoding(*_field_parts(coded, first, last, buffer, whole), finish)


def _field_parts(
    coded: CodedBytes, first: int, last: int, buffer: NDArray[np.uint8], whole: bool
) -> tuple[list[Part], Callable[[], list[Callable[[], None]]]]:
    fields = _fields(coded.file, coded.first, coded.records, first, last, whole)

    def jobs() -> list[Callable[[], None]]:
        planes = [field.finish() for field in fields]
        if coded.base is not None:
            planes = _add_base(coded, planes, coded.base())
        return join_jobs(planes, coded.records, buffer)

    return fields, jobs


def _palette_parts(
    coded: CodedBytes, first: int, last: int, buffer: NDArray[np.uint8]
) -> tuple[list[Part], Callable[[], list[Callable[[], None]]]]:
    indices, values = coded.planes[:2]
    packed = empty(packed_nbytes(last - first, indices.width))
    numbers = CodeRange(coded.file, coded.first, indices.width, 0, first, last, packed)
    palette = np.empty(values.count, np.uint8)
    whole = WholePlane(coded.file, coded.first + 1, palette)
    groups = (first // coded.group, -(-last // coded.group)) if coded.group else (0, 0)
    scales = _fields(coded.file, coded.first + 2, SCALES, *groups, False) if coded.group else []

    def scaled_jobs() -> list[Callable[[], None]]:
        numbers.finish()
        scale_bytes = np.empty((groups[1] - groups[0]) * 4, np.uint8)
        join([scale.finish() for scale in scales], SCALES, scale_bytes)
        floats, own = (part.view("<f4").astype(np.float32) for part in (palette, scale_bytes))
        return scaled_palette.restore_jobs(packed, floats, own, coded.dtype, coded.group, buffer, first, coded.where)

    def jobs() -> list[Callable[[], None]]:
        numbers.finish()
        if last > first and int(unpack_codes(packed, last - first, indices.width).max()) >= coded.palette:
            raise CorruptionError(f"{coded.where}: a code is larger than the palette")
        palettes.restore(packed, palette.reshape(coded.palette, -1), buffer)
        return []

    return [numbers, whole, *scales], scaled_jobs if coded.group else jobs


def _add_base(coded: CodedBytes, planes: list[NDArray[np.uint8]], base: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    if base.size != coded.nbytes:
        raise InvalidArgumentError(f"{coded.where}: the tensor of the base has {base.size} bytes, not {coded.nbytes}")
    index = coded.file.index
    for number, (plane, packed, theirs) in enumerate(
        zip(coded.planes, planes, split(base, coded.records), strict=True), coded.first
    ):
        for chunk in index.plane(number):
            delta, start, count = (
                int(x) for x in (index.rows["delta"][chunk], index.starts[chunk], index.rows["codes"][chunk])
            )
            if delta:
                place = slice(start * plane.width // 8, packed_nbytes(start + count, plane.width))
                ours = slice_packed(packed, start, count, plane.width)
                packed[place] = restore(ours, slice_packed(theirs, start, count, plane.width), plane.bits, count, delta)
    return planes


def _fields(file: CodedFile, first: int, records: Records, start: int, stop: int, whole: bool) -> list[Part]:
    """Records `start .. stop - 1`: a part for each field, whose planes are counted from `first` on."""
    parts: list[Part] = []
    for f, ((_, count), width) in enumerate(zip(records.fields, records.widths, strict=True)):
        if whole and is_stored(file, first + f):
            parts.append(StoredPlane(file, first + f))
            continue
        out = empty(packed_nbytes((stop - start) * count, width))
        parts.append(_field(file, first + f, records, f, start, stop, whole, out))
    return parts


def _field(
    file: CodedFile,
    number: int,
    records: Records,
    field: int,
    start: int,
    stop: int,
    whole: bool,
    out: NDArray[np.uint8],
) -> Part:
    """Field `field` of records `start .. stop - 1`, which is plane `number`, into `out`. whole: these are all records."""
    if whole:
        return WholePlane(file, number, out)
    count, width = records.fields[field][1], records.widths[field]
    return CodeRange(file, number, width, 0, start * count, stop * count, out)


def _buffer(out: NDArray[np.uint8] | None, nbytes: int) -> NDArray[np.uint8]:
    if out is None:
        return empty(nbytes)
    if out.dtype != np.uint8 or out.shape != (nbytes,) or not out.flags.carray:
        raise InvalidArgumentError(f"out must be a writable, contiguous uint8[{nbytes}]")
    return out


def _finish(part: Part) -> None:
    part.finish()


def _call(job: Callable[[], None]) -> None:
    job()
