"""A `.qzc` file as bytes: mapped, its header and structure checked at once, its members when they are read."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from ..codec.chunk_index import PAYLOAD_START
from ..codec.errors import CorruptionError, InvalidArgumentError
from .access import naming_os_errors, open_input
from .header import Member, read_header
from .members import check_members
from .profile import CHECKSUMS, Profile, part


class MemberFile:
    """An open file. members: by name, with offsets from `data_start`. Raises FileAccessError, CorruptionError
    (TruncationError), UnsupportedError. Safe to use from several threads.
    """

    def __init__(self, source: str | Path | BinaryIO) -> None:
        self.path = str(source if isinstance(source, str | Path) else getattr(source, "name", "file"))
        self.buffer = _map(source, self.path)
        try:
            self.file_size = len(self.buffer)
            self._view: memoryview | None = memoryview(self.buffer)
            self._verified: set[str] = set()
            header = read_header(self._view, self.file_size, self.path)
            self.members, self.data_start = header.members, header.data_start
            self.profile = Profile.from_metadata(header.metadata, self.path)
            if self.data_start % PAYLOAD_START:
                raise CorruptionError(f"{self.path}: the header is not padded to a multiple of {PAYLOAD_START} bytes")
            self._checksums = self._read_checksums(self._view)
            check_members(self.members, self.profile, self.path)
        except BaseException:
            self.close()
            raise

    @property
    def view(self) -> memoryview:
        """All bytes of the file. Raises InvalidArgumentError once it is closed."""
        if self._view is None:
            raise InvalidArgumentError(f"{self.path}: the file is closed")
        return self._view

    def nbytes(self, name: str) -> int:
        """Bytes of a member; 0 if there is none of this name."""
        return self.members[name].nbytes if name in self.members else 0

    def checked(self, name: str) -> memoryview:
        """The bytes of a member, its checksum compared the first time."""
        data = self._view_of(self.members[name])
        if name not in self._verified:
            if xxhash.xxh3_64_intdigest(data) != self._checksums[name]:
                begin = self.data_start + self.members[name].begin
                raise CorruptionError(
                    f"{self.path}: checksum mismatch in {name!r} (file bytes {begin} to {begin + len(data) - 1})"
                )
            self._verified.add(name)
        return data

    def close(self) -> None:
        """Give the file back. Arrays that look into it keep its pages alive until they are gone."""
        self._view = None
        self.buffer = b""

    def _view_of(self, member: Member) -> memoryview:
        return self.view[self.data_start + member.begin : self.data_start + member.end]

    def _read_checksums(self, view: memoryview) -> dict[str, int]:
        member = self.members.get(CHECKSUMS)
        others = [m for m in self.members.values() if m.name != CHECKSUMS]
        if member is None or member.dtype != "U8" or member.shape != (len(others) + 2, 8):
            raise CorruptionError(f"{self.path}: {CHECKSUMS} is missing or has the wrong size")
        if any(other.begin >= member.end for other in others):
            raise CorruptionError(f"{self.path}: {CHECKSUMS} is not the last member")
        data = self._view_of(member)
        values = np.frombuffer(data, "<u8").tolist()
        if xxhash.xxh3_64_intdigest(data[:-8]) != values[-1]:
            begin = self.file_size - len(data)
            raise CorruptionError(f"{self.path}: the checksums themselves are damaged (file bytes from {begin})")
        if xxhash.xxh3_64_intdigest(view[: self.data_start]) != values[-2]:
            stop = self.data_start - 1
            raise CorruptionError(f"{self.path}: checksum mismatch in the header (file bytes 0 to {stop})")
        others.sort(key=lambda m: (m.begin, m.end, m.name))
        checksums = {m.name: value for m, value in zip(others, values, strict=False)}
        if any(checksums.get(part(name, "payload")) for name in self.profile.coded):
            raise CorruptionError(f"{self.path}: a payload has a checksum besides those of its chunks")
        return checksums


def _map(source: str | Path | BinaryIO, path: str) -> mmap.mmap | bytes:
    if isinstance(source, str | Path):
        with open_input(source) as file:
            return _map(file, path)
    with naming_os_errors(path, "read"):
        size = source.seek(0, 2)
        return mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
