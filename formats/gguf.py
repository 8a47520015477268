"""GGUF files: tensors as read-only views of a memory map, with how they split into planes."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError, TruncationError
from ..codec.records import Records
from .access import naming_os_errors, open_input, release_pages
from .dtypes import numpy_dtype
from .gguf_blocks import block_records
from .gguf_header import read_gguf_header
from .header import Header, Member

_PIECE = 1 << 24  # bytes that are hashed at a time


class GgufFile:
    """An open GGUF file. The arrays it gives are read-only views of the file; they stay valid after `close`.

    Raises FileAccessError, CorruptionError (TruncationError), UnsupportedError (also where the gguf package is missing).
    Reading is safe from several threads. A file must not shrink while it is open.
    """

    kind: Literal["gguf"] = "gguf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._map, self._header = _open(self.path)
        self._file: NDArray[np.uint8] | None = np.frombuffer(self._map, np.uint8)
        self._nbytes = len(self._map)

    @property
    def header(self) -> Header:
        """The checked header: members by name with their offsets."""
        return self._header

    @property
    def metadata(self) -> dict[str, str]:
        """Empty: the metadata of GGUF is numbers and vocabularies more than text. It is part of `rest`."""
        return self._header.metadata

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return self._nbytes

    def keys(self) -> list[str]:
        """The names of all tensors, in the order of the header."""
        return list(self._header.members)

    def info(self, name: str) -> Member:
        """Dtype ("F32", "GGUF_Q4_0"), shape in elements, offsets from `header.data_start`.

        Raises InvalidArgumentError for an unknown name.
        """
        try:
            return self._header.members[name]
        except KeyError:
            raise InvalidArgumentError(f"{self.path}: no tensor named {name!r}; `qzc ls` shows the names") from None

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor: a read-only uint8 view `[nbytes]`."""
        member, start = self.info(name), self._header.data_start
        return self.whole()[start + member.begin : start + member.end]

    def array(self, name: str) -> NDArray[Any]:
        """A tensor as a read-only view of its shape; quantized ones as bytes, uint8 `[nbytes]`."""
        member = self.info(name)
        dtype = numpy_dtype(member.dtype)
        return self.raw(name) if dtype is None else self.raw(name).view(dtype).reshape(member.shape)

    def offset(self, name: str) -> int:
        """Where the bytes of a tensor begin in the file."""
        return self._header.data_start + self.info(name).begin

    def rest(self) -> bytes:
        """All bytes of the file that belong to no tensor, in their order: its header, padding, what follows the last one."""
        data, start, at = self.whole(), self._header.data_start, 0
        pieces: list[bytes] = []
        for member in self._header.by_offset():
            if member.nbytes:
                pieces.append(data[at : start + member.begin].tobytes())
                at = start + member.end
        return b"".join([*pieces, data[at:].tobytes()])

    def xxh3(self) -> int:
        """XXH3-64 of the whole file."""
        hasher = xxhash.xxh3_64()
        for begin in range(0, self._nbytes, _PIECE):
            hasher.update(self.whole()[begin : begin + _PIECE])
            release_pages(self._map, begin, min(begin + _PIECE, self._nbytes))
        return hasher.intdigest()

    def whole(self) -> NDArray[np.uint8]:
        """The bytes of the file: a read-only uint8 view `[nbytes]`."""
        if self._file is None:
            raise InvalidArgumentError(f"{self.path}: the file is closed")
        return self._file

    def records(self, name: str) -> tuple[Records, ...]:
        """How the bytes of a tensor split into planes of codes; it is always a whole number of these records."""
        member = self.info(name)
        return (block_records(member.dtype, member.nbytes),)

    def release(self, name: str) -> None:
        """Give the memory of a tensor that has been read back to the system; reading it again reads the file again."""
        member, start = self.info(name), self._header.data_start
        if self._file is not None:
            release_pages(self._map, start + member.begin, start + member.end)

    def close(self) -> None:
        """Close the file. Idempotent. Arrays that are still in use keep the map alive until they are gone."""
        self._file = None
        with suppress(BufferError):
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: str) -> tuple[mmap.mmap, Header]:
    with naming_os_errors(path, "read"), open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise TruncationError(f"{path}: the file is empty")
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    with memoryview(mapped) as data:
        return mapped, read_gguf_header(data, path)
