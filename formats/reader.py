"""Reads a `.qzc` file: lists it from the header, decodes only the chunks that are asked for, survives any bytes."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from ..codec.batch import CodedFile, WholePlane, plan_tasks, run_tasks
from ..codec.coder import CODERS
from ..codec.decoding import Decoding, bytes_decoding, check_chunk, decode, grid_decoding
from ..codec.errors import CorruptionError, InvalidArgumentError, UnsupportedError
from ..codec.planes import Plane
from ..codec.rate_chunks import check_rate_chunk, rate_decoding
from ..codec.rate_tensor import LevelTensor
from ..codec.tensor import QuantizationArgs, QuantizedTensor, packed_nbytes
from .access import read_ahead, release_pages
from .coded_tensors import Base, CodedTensors
from .dtypes import numpy_dtype
from .member_file import MemberFile
from .profile import BANK_ROW_NBYTES, CHECKSUMS, CHUNKS, CLASSES, OFFSETS, REST, VECTORS, bank_member, is_reserved, part
from .rate_entry import RateEntry
from .source_rest import read_source_rest

if TYPE_CHECKING:
    from ..codec.run_map import RunMap

MAX_DIMENSIONS = 64  # NumPy's limit
PARTS = ("payload", "row_class", "column_class")


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of a tensor.

    args: its grid, None if it has none; rate: its unbounded grid. stored: the bytes of each part (payload, row_class ..; data). coding:
    "quantized", "lossless" (entropy-coded bit for bit) or "plain" (as it is). delta: whether it needs a base.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    args: QuantizationArgs | None
    stored: dict[str, int]
    coding: str = "plain"
    delta: bool = False
    tied_to: str | None = None
    rate: RateEntry | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether it has a grid of either kind."""
        return self.args is not None or self.rate is not None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file; 0 for a second name of another tensor."""
        return 0 if self.tied_to else sum(self.stored.values())


class Reader:
    """An open `.qzc` file. Header, metadata and their checksums are checked at once, all else when it is read.

    base: gives the bytes of the tensors that deltas refer to; without it tensors that have a base cannot be read.
    Raises FileAccessError, CorruptionError (TruncationError), UnsupportedError. Safe to use from several threads.
    """

    def __init__(self, source: str | Path | BinaryIO, base: Base | None = None) -> None:
        self._file = MemberFile(source)
        self._parts = CodedTensors(self._file, base)
        self.path, self.file_size, self.profile = self._file.path, self._file.file_size, self._file.profile
        self._members, self._data_start = self._file.members, self._file.data_start
        self._uncoded = {name for name in self._members if not is_reserved(name)}

    # ------------------------------------------------------------------------------------------ what there is
    def keys(self) -> list[str]:
        """Names of all tensors, second names included, sorted."""
        return sorted((*self._uncoded, *self.profile.coded, *self.profile.ties))

    def is_uncoded(self, name: str) -> bool:
        """Whether a tensor is stored under this name, as it is. False for the members that belong to the format."""
        return name in self._uncoded

    def info(self, name: str) -> TensorInfo:
        """From the header alone. Raises InvalidArgumentError for an unknown name."""
        target = self.resolve(name)
        tied_to = target if target != name else None
        if target in self.profile.coded:
            coded = self.profile.coded[target]
            stored = {p: self._members[part(target, p)].nbytes for p in PARTS if part(target, p) in self._members}
            coding = "quantized" if coded.is_quantized else "lossless"
            delta = coded.base is not None
            return TensorInfo(name, coded.dtype, coded.shape, coded.args, stored, coding, delta, tied_to, coded.rate)
        member = self._members[target]
        return TensorInfo(name, member.dtype, member.shape, None, {"data": member.nbytes}, tied_to=tied_to)

    def resolve(self, name: str) -> str:
        """The name under which a tensor is stored. Raises InvalidArgumentError for an unknown name."""
        target = self.profile.ties.get(name, name)
        if target not in self.profile.coded and not self.is_uncoded(target):
            raise InvalidArgumentError(f"{self.path}: no tensor named {name!r}; `qzc ls` shows the names")
        return target

    @property
    def overhead(self) -> dict[str, int]:
        """Bytes that belong to no tensor: header, chunk index, table banks .. With all `stored` they make the file."""
        nbytes = self._file.nbytes
        groups = {
            "header": self._data_start,
            "index": nbytes(CHUNKS),
            "tables": sum(nbytes(bank_member(bank)) for bank in BANK_ROW_NBYTES) + nbytes(CLASSES),
            "checksums": nbytes(CHECKSUMS),
        }
        groups["vectors"] = nbytes(VECTORS)
        groups["source"] = nbytes(REST) + nbytes(OFFSETS)
        return {what: n for what, n in groups.items() if n or what not in ("vectors", "source")}

    # ------------------------------------------------------------------------------------------ reading
    def array(self, name: str, rows: slice | None = None, run: RunMap = map) -> NDArray[Any]:
        """A tensor that is not quantized: a read-only view of the file where it is stored as it is, else fresh memory.

        Has the tensor's dtype and shape; dtypes unknown to numpy give uint8 [bytes]. rows: a range of dimension 0.
        """
        array: NDArray[Any] = decode([self.array_decoding(name, rows)], run)[0]
        return array

    def array_decoding(self, name: str, rows: slice | None = None) -> Decoding:
        """What `array` has to do for a tensor that is not quantized."""
        target = self._stored(name, quantized=False)
        source = self.profile.coded.get(target) or self._members[target]
        dtype, shape = numpy_dtype(source.dtype), source.shape
        span = None
        if len(shape) > MAX_DIMENSIONS and dtype is not None:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} has {len(shape)} dimensions; NumPy has at most {MAX_DIMENSIONS}"
            )
        if rows is not None:
            if dtype is None:
                raise InvalidArgumentError(f"tensor {name!r} has dtype {source.dtype}: its rows cannot be cut")
            start, stop = self.row_range(name, rows)
            row = self.tensor_nbytes(name) // shape[0] if shape[0] else 0
            span, shape = (start * row, stop * row), (stop - start, *shape[1:])

        def view(data: NDArray[np.uint8]) -> NDArray[Any]:
            return data if dtype is None else data.view(dtype).reshape(shape)

        if target not in self.profile.coded:
            data = np.frombuffer(self._file.checked(target), np.uint8)
            array = view(data if span is None else data[span[0] : span[1]])
            return Decoding((), list, lambda: array)
        decoding = bytes_decoding(self._parts.coded_bytes(target), span)
        return Decoding(decoding.parts, decoding.jobs, lambda: view(decoding.finish()), decoding.joined)

    def raw(self, name: str, run: RunMap = map) -> NDArray[np.uint8]:
        """The bytes of a tensor that is not quantized, uint8 [bytes], checked: a view of the file where it has them."""
        target = self._stored(name, quantized=False)
        if target in self.profile.coded:
            data: NDArray[np.uint8] = decode([bytes_decoding(self._parts.coded_bytes(target))], run)[0]
            return data
        return np.frombuffer(self._file.checked(target), np.uint8)

    def tensor_nbytes(self, name: str) -> int:
        """Bytes of a tensor that is not quantized, decoded."""
        target = self._stored(name, quantized=False)
        coded = self.profile.coded.get(target)
        return coded.nbytes if coded else self._members[target].nbytes

    def quantized(self, name: str, rows: slice | None = None, run: RunMap = map) -> QuantizedTensor:
        """Decode a quantized tensor, or a range of its rows (dimension 0), reading only the chunks that hold them."""
        tensor: QuantizedTensor = decode([self.decoding(name, rows)], run)[0]
        return tensor

    def leveled(self, name: str, rows: slice | None = None, run: RunMap = map) -> LevelTensor:
        """Decode a tensor on an unbounded grid, or a range of its rows, reading only the chunks that hold them."""
        tensor: LevelTensor = decode([self.level_decoding(name, rows)], run)[0]
        return tensor

    def level_decoding(self, name: str, rows: slice | None = None) -> Decoding:
        """What it takes to decode a tensor on an unbounded grid."""
        target = self.resolve(name)
        if target not in self.profile.coded or not self.profile.coded[target].rate:
            raise InvalidArgumentError(f"{self.path}: tensor {name!r} has no unbounded grid")
        return rate_decoding(self._parts.coded_rate(target), None if rows is None else self.row_range(name, rows))

    def decoding(self, name: str, rows: slice | None = None, out: NDArray[np.uint8] | None = None) -> Decoding:
        """What it takes to decode a quantized tensor into fresh memory, or into `out` (uint8 [packed bytes])."""
        span = None if rows is None else self.row_range(name, rows)
        return grid_decoding(self._parts.coded_grid(self._stored(name, quantized=True)), span, out)

    def row_range(self, name: str, rows: slice) -> tuple[int, int]:
        """Start and stop of a slice of dimension 0. Raises InvalidArgumentError for steps and 0-d tensors."""
        shape = self.info(name).shape
        if not shape:
            raise InvalidArgumentError(f"{self.path}: tensor {name!r} has no dimensions, so no rows")
        start, stop, step = rows.indices(shape[0])
        if step != 1:
            raise InvalidArgumentError("a range of rows must have step 1")
        return start, max(start, stop)

    def chunks(self, name: str) -> tuple[range, tuple[Plane, ...], int]:
        """The chunks of a coded tensor in `index`, its planes, and the number of its first plane there."""
        target = self.resolve(name)
        if target not in self.profile.coded:
            raise InvalidArgumentError(f"{self.path}: tensor {name!r} is not coded")
        number, first = self._parts.numbers[target]
        bounds = self.coded_file.index.tensors
        return range(int(bounds[number]), int(bounds[number + 1])), self.coded_file.index.extents[number].planes, first

    def plane(self, number: int, run: RunMap = map) -> tuple[NDArray[np.uint8], int, int]:
        """The codes of a plane as the file has them (deltas not undone): packed, bits of each there, and their number."""
        planes = [plane for extent in self.coded_file.index.extents for plane in extent.planes]
        plane = planes[number]
        out = np.empty(packed_nbytes(plane.count, plane.width), np.uint8)
        run_tasks(plan_tasks([WholePlane(self.coded_file, number, out)]), run)
        return out, plane.width, plane.count

    @property
    def coded_file(self) -> CodedFile:
        """All chunks, their index checked."""
        return self._parts.coded_file

    def check(self, name: str) -> None:
        """Check the checksum of a tensor that is stored as it is, or that the unused payload bytes of another are 0."""
        target = self.resolve(name)
        if target not in self.profile.coded:
            self._file.checked(target)
            return
        for what in ("row_class", "column_class"):
            self._parts.classes(target, what)
        payload, (chunks, _, _) = self._members[part(target, "payload")], self.chunks(target)
        index, at = self.coded_file.index, self._data_start + payload.begin
        ends = (index.offsets + index.rows["nbytes"])[chunks.start : chunks.stop].tolist()
        for start, end in zip(index.offsets[chunks.start : chunks.stop].tolist(), ends, strict=True):
            self._check_gap(target, at, start)
            at = end
        self._check_gap(target, at, self._data_start + payload.end)

    def check_chunks(self, name: str, run: RunMap = map) -> int:
        """Decode each chunk of a coded tensor and keep none; returns how many there are.

        That takes memory for a chunk per thread only, where a few bytes may stand for a tensor of terabytes.
        """
        chunks, _, first = self.chunks(name)
        if self.profile.coded[self.resolve(name)].rate:
            coded = self._parts.coded_rate(self.resolve(name))
            for _ in run(partial(check_rate_chunk, coded), chunks):
                pass
            return len(chunks)
        palette = self.profile.coded[self.resolve(name)].palette
        numbers = self.coded_file.index.plane(first) if palette else range(0)

        def check(chunk: int) -> None:
            check_chunk(self.coded_file, chunk, palette if chunk in numbers else 0)

        for _ in run(check, chunks):
            pass
        return len(chunks)

    def source_file(self) -> tuple[bytes, dict[str, int]]:
        """Of the file that this one was packed from: all bytes that belong to no tensor, and where the tensors begin in it.

        Raises InvalidArgumentError if this file does not know, CorruptionError.
        """
        source = self.profile.source_file
        if source is None:
            raise InvalidArgumentError(
                f"{self.path}: does not hold what it takes to restore the file it was packed from"
            )
        return read_source_rest(self._file, source, {name: self.tensor_nbytes(name) for name in self.keys()})

    def prefetch(self) -> None:
        """Have the payloads of all coded tensors read in the background, for they are about to be decoded."""
        for name in self.profile.coded:
            member = self._members[part(name, "payload")]
            if isinstance(self._file.buffer, mmap.mmap):
                read_ahead(self._file.buffer, self._data_start + member.begin, self._data_start + member.end)

    def release(self, name: str) -> None:
        """Give the memory behind a tensor that has been read back to the system; reading it again reads the file again."""
        target = self.resolve(name)
        members = (self._members.get(part(target, p)) for p in PARTS) if target in self.profile.coded else ()
        for member in (*members, self._members.get(target)):
            if member and isinstance(self._file.buffer, mmap.mmap):
                release_pages(self._file.buffer, self._data_start + member.begin, self._data_start + member.end)

    def check_tables(self) -> None:
        """Check the table banks: checksums, and that every table is a valid one."""
        for coder in CODERS.values():
            self._parts.bank(coder.id)
        if CLASSES in self._members:
            self._parts.vectors  # noqa: B018

    # ------------------------------------------------------------------------------------------ parts
    def _stored(self, name: str, *, quantized: bool) -> str:
        target = name if name in self._uncoded else self.resolve(name)
        coded = self.profile.coded.get(target)
        if coded is not None and coded.rate and quantized:
            raise InvalidArgumentError(f"{self.path}: tensor {name!r} has an unbounded grid, and so no packed codes")
        if (coded is not None and coded.is_quantized) != quantized:
            raise InvalidArgumentError(f"{self.path}: tensor {name!r} is {'not ' if quantized else ''}quantized")
        return target

    def _check_gap(self, name: str, start: int, stop: int) -> None:
        if any(self._file.view[start:stop]):
            raise CorruptionError(
                f"{self.path}: tensor {name!r}: file bytes {start} to {stop - 1} belong to no chunk and are not 0"
            )

    # ------------------------------------------------------------------------------------------ opening
    def close(self) -> None:
        """Give the file back. Arrays that `array` and `raw` returned keep its pages alive until they are gone."""
        self._file.close()
        self._parts.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
