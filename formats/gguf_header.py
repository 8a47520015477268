"""The header of a GGUF file, strictly: every length, count and offset is hostile until checked.

The `gguf` package knows the types of tensors and how large their blocks are. Its reader is not used: it makes several arrays
for every string of a vocabulary (10 s and 700 MB for 128,000 tokens with their merges), runs through any count that a file
claims, and looks for neither overlaps nor the end of the file.
"""

from __future__ import annotations

from math import prod
from struct import calcsize, unpack_from
from typing import Any, NoReturn

from ..codec.errors import CorruptionError, TruncationError, UnsupportedError
from .dtypes import DTYPE_BITS
from .header import Header, Member

MAGIC = b"GGUF"

_MAX_HEADER = 1 << 27  # bytes; the largest vocabularies take a tenth
_MAX_DEPTH = 4  # of arrays of arrays
_MAX_DIMENSIONS = 64  # NumPy's limit; ggml has 4
_LIMIT = 1 << 63

# Value types of the metadata: those of a fixed size, in bytes, and the two others.
_VALUE_NBYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9


def read_gguf_header(data: memoryview, path: str) -> Header:
    """The tensors of a GGUF file of version 2 or 3, in the order of its header; `path` is for messages only.

    data: the whole file (a map of it: only the header is read). Offsets of the members count from `data_start`; dtypes are
    those of safetensors where these exist ("F32", "BF16"), else "GGUF_" and the type's name ("GGUF_Q4_0"); shapes are NumPy's,
    in elements. The metadata is checked and left out.

    Raises TruncationError if the file ends before what it promises, CorruptionError for other defects, UnsupportedError
    for other versions, big-endian files, unknown types of tensors, and where the gguf package is not installed.
    """
    return _Parser(data, path).parse()


class _Parser:
    """A cursor over the file."""

    def __init__(self, data: memoryview, path: str) -> None:
        self.data = data
        self.path = path
        self.at = 0
        self.stop = min(len(data), _MAX_HEADER)
        self.alignment = 32

    def parse(self) -> Header:
        if bytes(self.data[:4]) != MAGIC[: len(self.data)]:
            self.fail(f"not a GGUF file (it does not begin with {MAGIC.decode()!r})")
        self.at = 4
        self.version()
        count, values = self.take("<QQ")
        keys: set[str] = set()
        for _ in range(values):  # ends at the end of the header, whatever the count
            key = self.string("a key")
            if key in keys:
                self.fail(f"duplicate key {_shown(key)}")
            keys.add(key)
            self.value(key)
        types = _tensor_types()
        entries: dict[str, Member] = {}
        for _ in range(count):
            member = self.tensor(types)
            if member.name in entries:
                self.fail(f"duplicate tensor {_shown(member.name)}")
            entries[member.name] = member
        start = -(-self.at // self.alignment) * self.alignment
        self.check_cover(entries, start)
        return Header({}, entries, min(start, len(self.data)))

    def version(self) -> None:
        (version,) = self.take("<I")
        if version & 0xFFFF == 0:
            raise UnsupportedError(f"{self.path}: a big-endian GGUF file; only little-endian ones can be read")
        if version not in (2, 3):
            raise UnsupportedError(f"{self.path}: GGUF version {version}; versions 2 and 3 can be read")

    def value(self, key: str) -> None:
        (kind,) = self.take("<I")
        if key != "general.alignment":
            self.skip_values(key, kind, 1, 0)
            return
        if kind != _UINT32:
            self.fail("general.alignment is not a 32-bit unsigned integer")
        (self.alignment,) = self.take("<I")
        if self.alignment.bit_count() != 1:
            self.fail(f"general.alignment is {self.alignment:,}, not a power of two")

    def skip_values(self, key: str, kind: int, count: int, depth: int) -> None:
        if nbytes := _VALUE_NBYTES.get(kind):
            self.skip(nbytes * count)
        elif kind == _STRING:
            self.skip_strings(count)
        elif kind != _ARRAY:
            self.fail(f"the value of {_shown(key)} is of the unknown type {kind}")
        elif depth == _MAX_DEPTH:
            self.fail(f"the value of {_shown(key)} is nested deeper than {_MAX_DEPTH} arrays")
        else:
            for _ in range(count):
                inner, length = self.take("<IQ")
                self.skip_values(key, inner, length, depth + 1)

    def skip_strings(self, count: int) -> None:
        at, last, data = self.at, self.stop - 8, self.data
        for _ in range(count):
            if at > last:
                self.at = at
                self.skip(8)  # says what is missing
            at += 8 + int.from_bytes(data[at : at + 8], "little")
        self.at = at
        self.skip(0)

    def tensor(self, types: dict[int, tuple[str, int, int]]) -> Member:
        name = self.string("the name of a tensor")
        shown = f"tensor {_shown(name)}"
        (dimensions,) = self.take("<I")
        if dimensions > _MAX_DIMENSIONS:
            self.fail(f"{shown} has {dimensions:,} dimensions")
        shape = tuple(reversed(self.take(f"<{dimensions}Q")))
        kind, begin = self.take("<IQ")
        if kind not in types:
            raise UnsupportedError(
                f"{self.path}: {shown} is of type {kind}, unknown to the gguf package installed here"
            )
        dtype, elements, nbytes = types[kind]
        if elements > 1 and (not shape or shape[-1] % elements):
            self.fail(f"{shown}: its rows are not whole blocks of {elements} elements ({dtype}, shape {list(shape)})")
        size = prod(shape) // elements * nbytes
        if prod(max(1, length) for length in shape) >= _LIMIT or begin + size >= _LIMIT:
            self.fail(f"{shown} is impossibly large (shape {list(shape)}, offset {begin:,})")
        return Member(name, dtype, shape, begin, begin + size)

    def check_cover(self, members: dict[str, Member], start: int) -> None:
        """No two tensors share a byte, and all of them lie inside the file."""
        last: Member | None = None
        for member in sorted(members.values(), key=lambda member: (member.begin, member.end)):
            if start + member.end > len(self.data):
                missing = f"tensor {_shown(member.name)} ends at byte {start + member.end:,}"
                raise TruncationError(
                    f"{self.path}: {missing}, the file has {len(self.data):,}; download or copy it again"
                )
            if member.nbytes:
                if last is not None and member.begin < last.end:
                    self.fail(f"tensors {_shown(last.name)} and {_shown(member.name)} overlap")
                last = member

    def string(self, what: str) -> str:
        (length,) = self.take("<Q")
        begin = self.at
        self.skip(length)
        try:
            return str(self.data[begin : self.at], "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8 (byte {begin:,})")

    def take(self, layout: str) -> tuple[Any, ...]:
        begin = self.at
        self.skip(calcsize(layout))
        return unpack_from(layout, self.data, begin)

    def skip(self, nbytes: int) -> None:
        self.at += nbytes
        if self.at > len(self.data):
            raise TruncationError(f"{self.path}: the file ends inside its header (at {len(self.data):,} bytes)")
        if self.at > self.stop:
            self.fail(f"the header is longer than {_MAX_HEADER:,} bytes")

    def fail(self, what: str) -> NoReturn:
        raise CorruptionError(f"{self.path}: {what}")


def _tensor_types() -> dict[int, tuple[str, int, int]]:
    """By number: name of the dtype, elements of a block, bytes of a block."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError:
        raise UnsupportedError("GGUF files need the gguf package: pip install 'qzc[gguf]'") from None
    names = {kind: kind.name if kind.name in DTYPE_BITS else f"GGUF_{kind.name}" for kind in GGML_QUANT_SIZES}
    return {int(kind): (names[kind], *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:97] + "...")
