"""safetensors files: read through a memory map, so that any dtype passes and nothing is copied; written in one stream."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError, UnsupportedError
from ..codec.records import Records
from .access import naming_os_errors, open_input, release_pages
from .atomic import atomic_writer
from .dtypes import DTYPE_RANK, numpy_dtype
from .header import Header, Member, build_header, read_header

_MAX_DIMENSIONS = 64  # NumPy's limit


class SafetensorsFile:
    """An open safetensors file. The arrays it gives are read-only views of the file; they stay valid after `close`.

    Raises FileAccessError, CorruptionError (TruncationError). Reading is safe from several threads.
    A file must not shrink while it is open: the operating system kills a process that reads beyond the end of a map.
    """

    kind: Literal["safetensors"] = "safetensors"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._map, header = _open(self.path)
        self._data: NDArray[np.uint8] | None = np.frombuffer(self._map, np.uint8)[header.data_start :]
        self._nbytes = len(self._map)
        self._header = header

    @property
    def header(self) -> Header:
        """The checked header: members by name with their offsets."""
        return self._header

    @property
    def metadata(self) -> dict[str, str]:
        """The `__metadata__` of the file; empty if it has none."""
        return self._header.metadata

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return self._nbytes

    def keys(self) -> list[str]:
        """The names of all tensors, in the order of the header."""
        return list(self._header.members)

    def info(self, name: str) -> Member:
        """Dtype, shape and size of a tensor, from the header alone. Raises InvalidArgumentError for an unknown name."""
        try:
            return self._header.members[name]
        except KeyError:
            raise InvalidArgumentError(f"{self.path}: no tensor named {name!r}; `qzc ls` shows the names") from None

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor: a read-only uint8 view `[nbytes]`."""
        member = self.info(name)
        if self._data is None:
            raise InvalidArgumentError(f"{self.path}: the file is closed")
        return self._data[member.begin : member.end]

    def array(self, name: str) -> NDArray[Any]:
        """A tensor as a read-only view of its shape; BF16 and F8 in the dtypes of ml_dtypes.

        Where NumPy has no such dtype (F4, F6, unknown ones) the bytes, uint8 `[nbytes]`. The view need not be aligned:
        the file decides where a tensor starts. Raises UnsupportedError for more than 64 dimensions.
        """
        member, dtype = self.info(name), numpy_dtype(self.info(name).dtype)
        if dtype is None:
            return self.raw(name)
        if len(member.shape) > _MAX_DIMENSIONS:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} has {len(member.shape)} dimensions; NumPy has at most {_MAX_DIMENSIONS}"
            )
        return self.raw(name).view(dtype).reshape(member.shape)

    def records(self, name: str) -> tuple[Records, ...]:
        """None: the format knows numbers only, whatever they may be made of."""
        return ()

    def offset(self, name: str) -> int:
        """Where the bytes of a tensor begin in the file."""
        return self._header.data_start + self.info(name).begin

    def rest(self) -> bytes:
        """All bytes of the file that belong to no tensor: its header."""
        return self._map[: self._header.data_start]

    def xxh3(self) -> int:
        """XXH3-64 of the whole file."""
        hasher = xxhash.xxh3_64()
        for start in range(0, self._nbytes, 1 << 24):
            hasher.update(self._map[start : start + (1 << 24)])
            release_pages(self._map, start, min(start + (1 << 24), self._nbytes))
        return hasher.intdigest()

    def release(self, name: str) -> None:
        """Give the memory of a tensor that has been read back to the system; reading it again reads the file again."""
        member = self.info(name)
        if self._data is not None:
            release_pages(self._map, self._header.data_start + member.begin, self._header.data_start + member.end)

    def close(self) -> None:
        """Close the file. Idempotent. Arrays that are still in use keep the map alive until they are gone."""
        self._data = None
        with suppress(BufferError):
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def library_order(tensors: Iterable[tuple[str, str]]) -> list[str]:
    """Names of `(name, dtype)` pairs in the order in which the safetensors library writes: widest dtype first, then name.

    So every tensor is aligned to its element size. Tensors of unknown dtype come last.
    """
    return [name for name, _ in sorted(tensors, key=lambda item: (-DTYPE_RANK.get(item[1], -1), item[0]))]


def place(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> list[Member]:
    """Members for `(name, dtype, shape, nbytes)`, one after another from offset 0, in the order given."""
    members: list[Member] = []
    at = 0
    for name, dtype, shape, nbytes in tensors:
        members.append(Member(name, dtype, tuple(shape), at, at + nbytes))
        at += nbytes
    return members


def write_safetensors(
    path: str | os.PathLike[str],
    members: Sequence[Member],
    pieces: Iterable[Any],
    metadata: dict[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> int:
    """Write a safetensors file atomically, in one pass; returns its size in bytes.

    members: in the order of the header; their offsets say where each tensor lies (`place` computes them).
    pieces: bytes-likes (uint8 arrays; see `dtypes.file_bytes`) that together are the data, in the order of the *offsets*.

    In `library_order`, and with at most one key of metadata (the library shuffles them), the bytes are the library's.
    Raises InvalidArgumentError if the pieces do not add up or the members leave holes, FileAccessError as `atomic_writer`.
    """
    with atomic_writer(path, overwrite) as stream:
        return write_safetensors_to(stream, members, pieces, metadata)


def write_safetensors_to(
    stream: BinaryIO, members: Sequence[Member], pieces: Iterable[Any], metadata: dict[str, str] | None = None
) -> int:
    """`write_safetensors` to a stream that is open for writing; nothing is read back and nothing is sought."""
    expected = 0
    for member in sorted(members, key=lambda member: (member.begin, member.end)):
        if member.begin != expected:
            raise InvalidArgumentError(f"tensor {member.name!r} starts at {member.begin:,}, not at {expected:,}")
        expected = member.end
    header = build_header(metadata, members, align=8)  # 8 is what the library aligns to
    stream.write(header)
    written = 0
    for piece in pieces:
        nbytes = memoryview(piece).nbytes
        written += nbytes
        if written > expected:
            raise InvalidArgumentError(f"more data than the {expected:,} bytes that were announced")
        if nbytes:
            stream.write(piece)
    if written != expected:
        raise InvalidArgumentError(f"{written:,} bytes of data, {expected:,} were announced")
    return len(header) + written


def pieces_of(data: NDArray[np.uint8], nbytes: int = 1 << 24) -> Iterator[NDArray[np.uint8]]:
    """`data` in consecutive views of at most `nbytes` bytes, for writing a mapped tensor without holding all of it."""
    for start in range(0, len(data), nbytes):
        yield data[start : start + nbytes]


def _open(path: str) -> tuple[mmap.mmap, Header]:
    with naming_os_errors(path, "read"), open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = read_header(file, size, path)
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), header
