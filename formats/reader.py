"""Reads a `.qzc` file: lists it from the header, decodes only the chunks that are asked for, survives any bytes."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..codec.batch import CodedPlanes, run_tasks
from ..codec.chunk_index import PAYLOAD_START, read_chunk_index
from ..codec.chunks import CHUNK_DTYPE
from ..codec.code_order import run_sizes
from ..codec.coder import CODERS
from ..codec.decoding import Decoding, check_chunk, decoding
from ..codec.errors import CorruptionError, InvalidArgumentError, UnsupportedError
from ..codec.tensor import QuantizationArgs, QuantizedTensor, matrix_shape
from .access import naming_os_errors, open_input, read_ahead, release_pages
from .dtypes import numpy_dtype
from .header import Member, read_header
from .profile import BANK_ROW_NBYTES, CHECKSUMS, SCALE_DTYPES, CodedTensor, Profile, bank_member, is_reserved, part

if TYPE_CHECKING:
    from ..codec.run_map import RunMap

MAX_DIMENSIONS = 64  # NumPy's limit
PARTS = ("payload", "chunks", "scale", "row_class", "column_class")


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of a tensor. `stored` maps each part (payload, chunks, scale ..; data) to its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    args: QuantizationArgs | None
    stored: dict[str, int]
    tied_to: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file; 0 for a second name of another tensor."""
        return 0 if self.tied_to else sum(self.stored.values())


class Reader:
    """An open `.qzc` file. Header, metadata and their checksums are checked at once, all else when it is read.

    Raises FileAccessError, CorruptionError (TruncationError), UnsupportedError. Safe to use from several threads.
    """

    def __init__(self, source: str | Path | BinaryIO) -> None:
        self.path = str(source if isinstance(source, str | Path) else getattr(source, "name", "file"))
        self._buffer = _map(source, self.path)
        try:
            self.file_size = len(self._buffer)
            self._view: memoryview | None = memoryview(self._buffer)
            self._verified: set[str] = set()
            self._banks: dict[str, NDArray[np.uint16]] = {}
            header = read_header(self._view, self.file_size, self.path)
            self._members, self._data_start = header.members, header.data_start
            self.profile = Profile.from_metadata(header.metadata, self.path)
            if self._data_start % PAYLOAD_START:
                raise CorruptionError(f"{self.path}: the header is not padded to a multiple of {PAYLOAD_START} bytes")
            self._checksums = self._read_checksums(self._view)
            self._check_members()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------ what there is
    def keys(self) -> list[str]:
        """Names of all tensors, second names included, sorted."""
        uncoded = (name for name in self._members if self.is_uncoded(name))
        return sorted((*uncoded, *self.profile.coded, *self.profile.ties))

    def is_uncoded(self, name: str) -> bool:
        """Whether a tensor is stored under this name, as it is. False for the members that belong to the format."""
        return name in self._members and not is_reserved(name)

    def info(self, name: str) -> TensorInfo:
        """From the header alone. Raises InvalidArgumentError for an unknown name."""
        target = self.resolve(name)
        tied_to = target if target != name else None
        if target in self.profile.coded:
            coded = self.profile.coded[target]
            stored = {p: self._members[part(target, p)].nbytes for p in PARTS if part(target, p) in self._members}
            return TensorInfo(name, coded.dtype, coded.shape, coded.args, stored, tied_to)
        member = self._members[target]
        return TensorInfo(name, member.dtype, member.shape, None, {"data": member.nbytes}, tied_to)

    def resolve(self, name: str) -> str:
        """The name under which a tensor is stored. Raises InvalidArgumentError for an unknown name."""
        target = self.profile.ties.get(name, name)
        if target not in self.profile.coded and not self.is_uncoded(target):
            raise InvalidArgumentError(f"{self.path}: no tensor named {name!r}; `qzc ls` shows the names")
        return target

    @property
    def overhead(self) -> dict[str, int]:
        """Bytes that belong to no tensor: header, table banks, checksums. With all `stored` they make the file."""
        tables = sum(self._members[m].nbytes for m in map(bank_member, BANK_ROW_NBYTES) if m in self._members)
        return {"header": self._data_start, "tables": tables, "checksums": self._members[CHECKSUMS].nbytes}

    # ------------------------------------------------------------------------------------------ reading
    def uncoded(self, name: str) -> NDArray[Any]:
        """A read-only view of a tensor that is stored as it is, its checksum compared.

        Has the tensor's dtype and shape; dtypes unknown to numpy give uint8 [bytes].
        """
        member, data = self._members[self._stored(name, coded=False)], self.raw(name)
        dtype = numpy_dtype(member.dtype)
        if dtype is None:
            return data
        if len(member.shape) > MAX_DIMENSIONS:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} has {len(member.shape)} dimensions; NumPy has at most {MAX_DIMENSIONS}"
            )
        return data.view(dtype).reshape(member.shape)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor that is stored as it is: a read-only view, uint8 [bytes], its checksum compared."""
        return np.frombuffer(self._checked(self._stored(name, coded=False)), np.uint8)

    def quantized(self, name: str, rows: slice | None = None, run: RunMap = map) -> QuantizedTensor:
        """Decode a coded tensor, or a range of its rows (dimension 0), reading only the chunks that hold them."""
        decoding = self.decoding(name, rows)
        run_tasks(decoding.tasks, run)
        return decoding.finish()

    def decoding(self, name: str, rows: slice | None = None, out: NDArray[np.uint8] | None = None) -> Decoding:
        """The tasks that decode a coded tensor into fresh memory, or into `out` (uint8 [packed bytes])."""
        planes = self.planes(name)
        return decoding(planes, None if rows is None else self.row_range(name, rows), out)

    def row_range(self, name: str, rows: slice) -> tuple[int, int]:
        """Start and stop of a slice of dimension 0. Raises InvalidArgumentError for steps and 0-d tensors."""
        shape = self.info(name).shape
        if not shape:
            raise InvalidArgumentError(f"{self.path}: tensor {name!r} has no dimensions, so no rows")
        start, stop, step = rows.indices(shape[0])
        if step != 1:
            raise InvalidArgumentError("a range of rows must have step 1")
        return start, max(start, stop)

    def planes(self, name: str, *, verify: bool = True) -> CodedPlanes:
        """A coded tensor ready for decoding: its chunk index checked, its scale and class maps read."""
        name = self._stored(name, coded=True)
        coded, payload = self.profile.coded[name], self._members[part(name, "payload")]
        rows, columns = matrix_shape(coded.shape)
        row_class, column_class = self._classes(name, "row_class"), self._classes(name, "column_class")
        scale = self._members[part(name, "scale")]
        where = f"{self.path}: tensor {name!r}"
        zero_points = prod(scale.shape)
        index = read_chunk_index(
            self._checked(part(name, "chunks")),
            [
                run_sizes(rows, columns, row_class, column_class),
                [zero_points] if zero_points and not coded.args.symmetric else [],
            ],
            coded.args.storage_bits,
            payload_start=self._data_start + payload.begin,
            payload_nbytes=payload.nbytes,
            bank_sizes={bank: self._bank_rows(bank) for bank in BANK_ROW_NBYTES},
            where=where,
        )
        return CodedPlanes(
            shape=coded.shape,
            dtype=coded.dtype,
            args=coded.args,
            scale=np.frombuffer(bytes(self._checked(scale.name)), numpy_dtype(scale.dtype)).reshape(scale.shape),
            index=index,
            payload=np.frombuffer(self._view_of(payload), np.uint8),
            bank=self._bank,
            row_class=row_class,
            column_class=column_class,
            where=where,
            verify=verify,
        )

    def check(self, name: str) -> None:
        """Check the checksum of an uncoded tensor, or that the unused payload bytes of a coded one are 0."""
        name = self.resolve(name)
        if name not in self.profile.coded:
            self._checked(name)
            return
        planes, at = self.planes(name), 0
        for row in planes.index.rows:
            self._check_gap(planes, at, int(row["offset"]))
            at = int(row["offset"]) + int(row["nbytes"])
        self._check_gap(planes, at, len(planes.payload))

    def check_chunks(self, name: str, run: RunMap = map) -> int:
        """Decode each chunk of a coded tensor and keep none; returns how many there are.

        That takes memory for a chunk per thread only, where a few bytes may stand for a tensor of terabytes.
        """
        planes = self.planes(name)
        for _ in run(partial(check_chunk, planes), range(len(planes.index.rows))):
            pass
        return len(planes.index.rows)

    def prefetch(self) -> None:
        """Have the payloads of all coded tensors read in the background, for they are about to be decoded."""
        for name in self.profile.coded:
            member = self._members[part(name, "payload")]
            if isinstance(self._buffer, mmap.mmap):
                read_ahead(self._buffer, self._data_start + member.begin, self._data_start + member.end)

    def release(self, name: str) -> None:
        """Give the memory behind a tensor that has been read back to the system; reading it again reads the file again."""
        target = self.resolve(name)
        members = (self._members.get(part(target, p)) for p in PARTS) if target in self.profile.coded else ()
        for member in (*members, self._members.get(target)):
            if member and isinstance(self._buffer, mmap.mmap):
                release_pages(self._buffer, self._data_start + member.begin, self._data_start + member.end)

    def check_tables(self) -> None:
        """Check the table banks: checksums, and that every table is a valid one."""
        for coder in CODERS.values():
            self._bank(coder.id)

    # ------------------------------------------------------------------------------------------ parts
    def _stored(self, name: str, *, coded: bool) -> str:
        target = self.resolve(name)
        if (target in self.profile.coded) != coded:
            raise InvalidArgumentError(f"{self.path}: tensor {name!r} is {'not ' if coded else ''}quantized")
        return target

    def _check_gap(self, planes: CodedPlanes, start: int, stop: int) -> None:
        if np.any(planes.payload[start:stop]):
            raise CorruptionError(
                f"{planes.where}: payload bytes {start} to {stop - 1} belong to no chunk and are not 0"
            )

    def _view_of(self, member: Member) -> memoryview:
        if self._view is None:
            raise InvalidArgumentError(f"{self.path}: the file is closed")
        return self._view[self._data_start + member.begin : self._data_start + member.end]

    def _checked(self, name: str) -> memoryview:
        """The bytes of a member, its checksum compared the first time."""
        data = self._view_of(self._members[name])
        if name not in self._verified:
            if xxhash.xxh3_64_intdigest(data) != self._checksums[name]:
                begin = self._data_start + self._members[name].begin
                raise CorruptionError(
                    f"{self.path}: checksum mismatch in {name!r} (file bytes {begin} to {begin + len(data) - 1})"
                )
            self._verified.add(name)
        return data

    def _classes(self, name: str, what: str) -> NDArray[np.uint8] | None:
        member = part(name, what)
        return np.frombuffer(bytes(self._checked(member)), np.uint8) if member in self._members else None

    def _bank_rows(self, bank: str) -> int:
        member = self._members.get(bank_member(bank))
        return member.shape[0] if member else 0

    def _bank(self, coder: int) -> NDArray[np.uint16]:
        """The tables of a coder as its kernels take them; parsed the first time."""
        bank = CODERS[coder].bank
        if bank not in self._banks:
            name = bank_member(bank)
            try:
                self._banks[bank] = CODERS[coder].parse_bank(self._checked(name) if name in self._members else b"")
            except CorruptionError as error:
                raise CorruptionError(
                    error.args[0] if name in str(error) else f"{self.path}: {name}, {error}"
                ) from None
        return self._banks[bank]

    # ------------------------------------------------------------------------------------------ opening
    def _read_checksums(self, view: memoryview) -> dict[str, int]:
        member = self._members.get(CHECKSUMS)
        others = [m for m in self._members.values() if m.name != CHECKSUMS]
        if member is None or member.dtype != "U8" or member.shape != (len(others) + 2, 8):
            raise CorruptionError(f"{self.path}: {CHECKSUMS} is missing or has the wrong size")
        if any(other.begin >= member.end for other in others):
            raise CorruptionError(f"{self.path}: {CHECKSUMS} is not the last member")
        data = self._view_of(member)
        values = np.frombuffer(data, "<u8").tolist()
        if xxhash.xxh3_64_intdigest(data[:-8]) != values[-1]:
            begin = self.file_size - len(data)
            raise CorruptionError(f"{self.path}: the checksums themselves are damaged (file bytes from {begin})")
        if xxhash.xxh3_64_intdigest(view[: self._data_start]) != values[-2]:
            stop = self._data_start - 1
            raise CorruptionError(f"{self.path}: checksum mismatch in the header (file bytes 0 to {stop})")
        others.sort(key=lambda m: (m.begin, m.end, m.name))
        checksums = {m.name: value for m, value in zip(others, values, strict=False)}
        if any(checksums.get(part(name, "payload")) for name in self.profile.coded):
            raise CorruptionError(f"{self.path}: a payload has a checksum besides those of its chunks")
        return checksums

    def _check_members(self) -> None:
        """Every member belongs to something, and has the dtype and shape that the profile implies."""
        for name in (*self.profile.coded, *self.profile.ties):
            if is_reserved(name):
                raise CorruptionError(f"{self.path}: the tensor name {name!r} is reserved")
        expected: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        for name, coded in self.profile.coded.items():
            self._check_coded(name, coded, expected)
        for coder, nbytes in BANK_ROW_NBYTES.items():
            expected[bank_member(coder)] = ("U8", (None, nbytes))
        for member in self._members.values():
            if member.name == CHECKSUMS or self.is_uncoded(member.name):
                continue
            dtype, shape = expected.get(member.name, ("", ()))
            if not dtype:
                raise CorruptionError(f"{self.path}: member {member.name!r} belongs to no tensor")
            fits = len(shape) == len(member.shape) and all(
                want in (None, d) for want, d in zip(shape, member.shape, strict=False)
            )
            if member.dtype != dtype or not fits:
                raise CorruptionError(
                    f"{self.path}: member {member.name!r} is {member.dtype}{list(member.shape)}, not"
                    f" {dtype}[{', '.join('any' if want is None else str(want) for want in shape)}]"
                )
        for name, target in self.profile.ties.items():
            if name in self._members or name in self.profile.coded:
                raise CorruptionError(f"{self.path}: tensor {name!r} is both stored and tied to {target!r}")
            if target not in self.profile.coded and not self.is_uncoded(target):
                raise CorruptionError(f"{self.path}: tensor {name!r} is tied to {target!r}, which is not stored")

    def _check_coded(
        self, name: str, coded: CodedTensor, expected: dict[str, tuple[str, tuple[int | None, ...]]]
    ) -> None:
        rows, columns = matrix_shape(coded.shape)
        mine: dict[str, tuple[str, tuple[int | None, ...]]] = {
            "payload": ("U8", (None,)),
            "chunks": ("U8", (None, CHUNK_DTYPE.itemsize)),
            "scale": (SCALE_DTYPES[coded.args.scale_dtype], coded.args.scale_shape(coded.shape)),
            "row_class": ("U8", (rows,)),
            "column_class": ("U8", (columns,)),
        }
        if name in self._members:
            raise CorruptionError(f"{self.path}: tensor {name!r} is both coded and stored uncoded")
        for what in ("payload", "chunks", "scale"):
            if part(name, what) not in self._members:
                raise CorruptionError(f"{self.path}: coded tensor {name!r} has no {what}")
        expected.update({part(name, what): value for what, value in mine.items()})

    def close(self) -> None:
        """Give the file back. Arrays that `uncoded` returned keep its pages alive until they are gone."""
        self._view = None
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _map(source: str | Path | BinaryIO, path: str) -> mmap.mmap | bytes:
    if isinstance(source, str | Path):
        with open_input(source) as file:
            return _map(file, path)
    with naming_os_errors(path, "read"):
        size = source.seek(0, 2)
        return mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
