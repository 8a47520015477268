"""The safetensors header, strictly: every length and offset is hostile until checked. Shared by .safetensors and .qzc.

The header is walked entry by entry instead of handed to `json.loads` whole, so that memory stays in proportion to its
length, whatever is nested in it, and every error can name the tensor.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, cast

from ..codec.errors import CorruptionError, InvalidArgumentError, TruncationError
from .access import naming_os_errors, open_input
from .dtypes import DTYPE_BITS

MAX_DTYPE = 64  # characters
MAX_HEADER_SIZE = 100_000_000  # the safetensors library's own limit
_MAX_ENTRY = 1 << 14  # characters of one tensor's entry: no array library has room for so many dimensions
_LIMIT = 1 << 63

_SPACES = " \t\n\r"
_SPACE = re.compile(f"[{_SPACES}]*")
_FIELDS = {"dtype", "shape", "data_offsets"}


class Readable(Protocol):
    """What the parser needs of a binary file, positioned at the start of the header."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Member:
    """One tensor of the file. `begin` and `end` are in bytes from the start of the data, `dtype` as in the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A checked header. The members are in the header's own order; `data_start` is the file offset of the data."""

    metadata: dict[str, str] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    data_start: int = 8

    def by_offset(self) -> list[Member]:
        """The members in the order of their data."""
        return sorted(self.members.values(), key=_data_order)


def read_header(source: Readable | bytes | memoryview, file_size: int, path: str) -> Header:
    """Read and check the header of a safetensors file of `file_size` bytes; `path` is for messages only.

    source: a binary file at position 0 (nothing beyond the header is read), or a buffer with at least the header.

    Raises TruncationError if the file ends before the bytes that it promises, CorruptionError for any other defect.
    """
    read = source.read if not isinstance(source, (bytes, memoryview)) else _buffer_reader(source)
    if file_size == 0:
        raise TruncationError(f"{path}: the file is empty")
    if file_size < 8:
        raise TruncationError(f"{path}: {file_size} bytes are too few for a safetensors file")
    size = int.from_bytes(read(8), "little")
    if size > MAX_HEADER_SIZE:
        raise CorruptionError(f"{path}: not a safetensors file (header length {size:,} is above {MAX_HEADER_SIZE:,})")
    raw = read(min(size, file_size - 8))
    if raw[:1] not in (b"{", b""):
        raise CorruptionError(f"{path}: not a safetensors file (the header does not begin with '{{')")
    if len(raw) < size:
        raise TruncationError(f"{path}: the file ends inside its header ({len(raw):,} of {size:,} bytes)")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptionError(f"{path}: the header is not UTF-8 (byte {8 + error.start:,})") from None
    metadata, members = _Parser(text, path).parse()
    _check_cover(members, file_size - 8 - size, path)
    return Header(metadata, members, 8 + size)


def read_file_header(path: str | os.PathLike[str]) -> Header:
    """The checked header of a safetensors (or .qzc) file, in two reads. Raises as `read_header`, and FileAccessError."""
    with naming_os_errors(path, "read"), open_input(path) as file:
        return read_header(file, os.fstat(file.fileno()).st_size, os.fspath(path))


def build_header(
    metadata: Mapping[str, str] | None, members: Iterable[Member], *, align: int = 64, reserve: int = 0
) -> bytes:
    """The bytes from the start of a file to its data: length, compact JSON in the order given, spaces.

    align: the result's size is a multiple of it. reserve: the result's least size, to fill in a header whose place was
    kept free; InvalidArgumentError if the header needs more.
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    for member in members:
        if member.name in entries or member.name == "__metadata__":
            raise InvalidArgumentError(f"two tensors have the name {member.name!r}, or it is reserved")
        offsets = [member.begin, member.end]
        entries[member.name] = {"dtype": member.dtype, "shape": list(member.shape), "data_offsets": offsets}
    try:
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError("a tensor name or metadata text is not valid Unicode") from None
    if 0 < reserve < 8 + len(text):
        raise InvalidArgumentError(f"the header needs {8 + len(text):,} bytes, {reserve:,} are reserved")
    size = -(-max(8 + len(text), reserve) // align) * align - 8
    if size > MAX_HEADER_SIZE:
        raise InvalidArgumentError(f"the header of {size:,} bytes is above the limit of {MAX_HEADER_SIZE:,}")
    return size.to_bytes(8, "little") + text.ljust(size)


class _Parser:
    """A cursor over the header's text."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path
        self.at = 0
        self.strings = json.JSONDecoder()
        self.entries = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)

    def parse(self) -> tuple[dict[str, str], dict[str, Member]]:
        metadata: dict[str, str] | None = None
        members: dict[str, Member] = {}
        self.expect("{")
        while (name := self.next_key(first=metadata is None and not members)) is not None:
            if name == "__metadata__":
                if metadata is not None:
                    self.fail("duplicate key '__metadata__'")
                metadata = self.metadata()
            elif name in members:
                self.fail(f"duplicate tensor {_shown(name)}")
            else:
                members[name] = self.member(name)
        if self.at != len(self.text):
            self.not_json("text after the end")
        return metadata or {}, members

    def metadata(self) -> dict[str, str]:
        if self.text.startswith("null", self.at):  # the library reads this as "none"
            self.at += 4
            self.skip_space()
            return {}
        if self.peek() != "{":
            self.fail("__metadata__ is not an object")
        self.expect("{")
        values: dict[str, str] = {}
        while (key := self.next_key(first=not values)) is not None:
            if key in values:
                self.fail(f"duplicate key {_shown(key)} in __metadata__")
            if self.peek() != '"':
                self.fail(f"the value of {_shown(key)} in __metadata__ is not a string")
            values[key] = self.string()
        return values

    def member(self, name: str) -> Member:
        if self.peek() != "{":
            self.fail(f"tensor {_shown(name)}: its entry is not an object")
        stop = self.text.find("}", self.at, self.at + _MAX_ENTRY) + 1
        if stop == 0:
            self.fail(f"tensor {_shown(name)}: its entry has no end within {_MAX_ENTRY:,} characters")
        text = self.text[self.at : stop]
        if "{" in text[1:]:
            self.fail(f"tensor {_shown(name)}: an object inside its entry")
        try:
            entry, _ = self.entries.raw_decode(text)  # ends at the only closing brace, or fails
        except json.JSONDecodeError as error:
            self.fail(f"tensor {_shown(name)}: its entry is not JSON ({error.msg})")
        except RecursionError:
            self.fail(f"tensor {_shown(name)}: its entry is nested too deeply")
        except ValueError as error:  # a duplicate key, NaN, an integer of thousands of digits
            self.fail(f"tensor {_shown(name)}: {str(error).partition(';')[0]}")
        self.at = stop
        self.skip_space()
        return _checked(name, entry, self.path)

    def next_key(self, first: bool) -> str | None:
        """The next key of an object, with its colon; None at the closing brace, which is consumed."""
        if self.peek() == "}":
            self.expect("}")
            return None
        if not first:
            self.expect(",")
        if self.peek() != '"':
            self.not_json("expected a name in double quotes")
        key = self.string()
        self.expect(":")
        return key

    def string(self) -> str:
        try:
            value, self.at = self.strings.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            self.at = error.pos
            self.not_json(error.msg)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                self.fail("a string holds half of a surrogate pair")
        self.skip_space()
        return cast(str, value)

    def expect(self, char: str) -> None:
        if not self.text.startswith(char, self.at):
            self.not_json(f"expected {char!r}")
        self.at += 1
        self.skip_space()

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def skip_space(self) -> None:
        if self.text[self.at : self.at + 1] not in _SPACES:
            return
        match = _SPACE.match(self.text, self.at)
        assert match is not None  # the pattern matches nothing, too
        self.at = match.end()

    def not_json(self, what: str) -> NoReturn:
        self.fail(f"the header is not JSON ({what} at character {self.at:,})")

    def fail(self, what: str) -> NoReturn:
        raise CorruptionError(f"{self.path}: {what}")


def _checked(name: str, entry: dict[str, Any], path: str) -> Member:
    """A member from its JSON entry, types and sizes checked."""

    def fail(what: str) -> NoReturn:
        raise CorruptionError(f"{path}: tensor {_shown(name)}: {what}")

    if entry.keys() != _FIELDS:
        missing = sorted(_FIELDS - entry.keys())
        fail(f"no {missing[0]}" if missing else f"unknown field {_shown(min(entry.keys() - _FIELDS))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str:
        fail("dtype is not a string")
    if len(dtype) > MAX_DTYPE or not dtype.isascii() or not dtype.isprintable():
        fail("dtype is not a plain name")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if type(numbers) is not list:
            fail(f"{what} is not a list")
        for number in numbers:
            if type(number) is not int:  # bool is an int to isinstance
                fail(f"{what} holds something that is not an integer")
            if not 0 <= number < _LIMIT:
                fail(f"{what} holds a number that is negative or above 2^63 - 1")
    if len(offsets) != 2:
        fail(f"data_offsets has {len(offsets)} numbers, not 2")
    begin, end = offsets
    if begin > end:
        fail(f"data_offsets end ({end:,}) before they begin ({begin:,})")
    bits = DTYPE_BITS.get(dtype)
    extent = elements = 1  # extent leaves out dimensions of 0: libraries multiply those that come before it
    for dim in shape:
        elements *= dim
        extent *= dim or 1
        if extent * (bits or 8) >= 8 * _LIMIT:
            fail("the product of its shape overflows")
    if bits is not None and elements * bits != 8 * (end - begin):
        fail(f"{dtype} of shape {_shown_shape(shape)} does not fill its {end - begin:,} bytes")
    return Member(name, dtype, tuple(shape), begin, end)


def _check_cover(members: Mapping[str, Member], data_size: int, path: str) -> None:
    """Without holes or overlaps, from the first byte of the data to the last."""
    at = 0
    for member in sorted(members.values(), key=_data_order):
        if member.begin != at:
            gap = member.begin - at
            what = "overlaps the tensor before it" if gap < 0 else f"a hole of {gap:,} bytes before it"
            raise CorruptionError(f"{path}: tensor {_shown(member.name)}: {what} (data offset {member.begin:,})")
        at = member.end
    if at > data_size:
        raise TruncationError(f"{path}: the file ends after {data_size:,} of {at:,} bytes of data")
    if at < data_size:
        raise CorruptionError(f"{path}: {data_size - at:,} bytes after the last tensor")


def _data_order(member: Member) -> tuple[int, int]:
    return member.begin, member.end


def _buffer_reader(buffer: bytes | memoryview) -> Any:
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        return bytes(buffer[at - size : at])

    return read


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) != len(pairs):
        raise ValueError("duplicate field")
    return entry


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _shown(name: str) -> str:
    """A name for a one-line message: escapes for control characters, bounded length."""
    return repr(name) if len(name) <= 200 else f"{name[:200]!r}..."


def _shown_shape(shape: list[int]) -> str:
    return str(shape) if len(shape) <= 16 else f"{str(shape[:16])[:-1]}, ... {len(shape)} dimensions]"
