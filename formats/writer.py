"""Writes a `.qzc` file in one pass over the tensors; the header goes last, into space reserved for it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import xxhash

from ..codec.chunk_index import CHUNK_START, PAYLOAD_START
from ..codec.chunks import CHUNK_CODES, CHUNK_DTYPE, EncodedChunk
from ..codec.coder import CODERS
from ..codec.errors import InvalidArgumentError
from ..codec.planes import MAX_CHUNK_CODES, SPLIT, Plane, byte_planes, grid_planes
from ..codec.rate_chunks import rate_plane
from ..codec.records import BYTES
from ..codec.tensor import matrix_shape, packed_nbytes
from .dtypes import bits_of
from .header import Member, build_header
from .profile import (
    BANK_ROW_NBYTES,
    CHECKSUMS,
    CHUNKS,
    CLASSES,
    OFFSETS,
    QUANTIZED_DTYPES,
    REST,
    VECTORS,
    CodedTensor,
    Profile,
    bank_member,
    is_reserved,
    part,
)

if TYPE_CHECKING:
    from ..codec.planes import EncodedTensor
    from ..codec.tensor import QuantizedTensor
    from .rate_entry import RateSide

MAX_RUNS = 512
WHATS = ("payload", "row_class", "column_class")


@dataclass(frozen=True)
class UncodedTensor:
    """A tensor that is stored as it is. dtype in safetensors' names, nbytes of its data."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """What a file of `nbytes` bytes is made of; the parts add up to `nbytes`."""

    nbytes: int
    header: int
    checksums: int
    tables: int
    classes: int
    """The table bank of coder 7."""
    vectors: int
    source: int
    uncoded: dict[str, int]
    coded: dict[str, dict[str, int]]
    """For each coded tensor the bytes of its payload, its row_class and column_class, and its rows of the chunk index."""
    entries: dict[str, int]
    """For each coded tensor the bytes that the header has about it; they are part of `header`."""


class Writer:
    """Takes the tensors in the order of `names` and writes them to a seekable stream that is empty.

    profile: the coded tensors, ties and metadata; how scales are split is found while writing. uncoded: the other tensors.
    chunk_codes: the target chunk size of the coded tensors, 1 to 2^23; class_maps: names of those that have class maps.
    side: what tensors on unbounded grids share; given exactly if there are any.
    Raises InvalidArgumentError for names that the format reserves, dtypes that it cannot restore, and a header above the
    limit of safetensors.
    """

    def __init__(
        self,
        stream: BinaryIO,
        profile: Profile,
        uncoded: dict[str, UncodedTensor],
        *,
        chunk_codes: int = CHUNK_CODES,
        class_maps: Sequence[str] = (),
        side: RateSide | None = None,
    ) -> None:
        for name in (*profile.coded, *profile.ties, *uncoded):
            if is_reserved(name):
                raise InvalidArgumentError(f"tensor name {name!r} is reserved by the .qzc format; rename the tensor")
        for name, tensor in profile.coded.items():
            if tensor.is_quantized and tensor.dtype not in QUANTIZED_DTYPES:
                known = ", ".join(QUANTIZED_DTYPES)
                raise InvalidArgumentError(f"quantized tensor {name!r} has dtype {tensor.dtype!r}, not one of {known}")
        if not 1 <= chunk_codes <= MAX_CHUNK_CODES // 2:
            raise InvalidArgumentError(f"chunk_codes is {chunk_codes}; it may be 1 to {MAX_CHUNK_CODES // 2}")
        self._stream, self._profile, self._uncoded, self._side = stream, profile, uncoded, side
        order = sorted(uncoded, key=lambda name: (-bits_of(uncoded[name].dtype, default=1), name))
        self.names = (*order, *sorted(profile.coded))
        self._next = 0
        self._members: dict[str, Member] = {}
        self._checksums: list[int] = []
        self._coded: dict[str, CodedTensor] = {}
        self._rows: list[Any] = []
        self._counts: dict[str, int] = {}
        self._banks: dict[str, dict[bytes, int]] = {coder: {} for coder in BANK_ROW_NBYTES}
        self._reserved = self._header_bound(chunk_codes, class_maps)
        self._at = self._reserved  # position in the file
        stream.write(bytes(self._reserved))

    def write_uncoded(self, name: str, pieces: Iterable[Any]) -> None:
        """Write a tensor that is not coded; `pieces` are bytes-like and must add up to its `nbytes`."""
        self._turn(name)
        tensor = self._uncoded[name]
        begin, hasher = self._at, xxhash.xxh3_64()
        for piece in pieces:
            self._write(piece)
            hasher.update(piece)
        if self._at - begin != tensor.nbytes:
            raise InvalidArgumentError(f"tensor {name!r}: {self._at - begin} bytes given, {tensor.nbytes} announced")
        self._end_member(name, tensor.dtype, tensor.shape, begin, hasher.intdigest())

    def write_quantized(self, name: str, encoded: EncodedTensor, tensor: QuantizedTensor) -> None:
        """Write the chunks of a quantized tensor with the class maps of `tensor`."""
        self._write_chunks(name, encoded, None)
        for what, classes in (("row_class", tensor.row_class), ("column_class", tensor.column_class)):
            if classes is not None:
                self._member(part(name, what), "U8", classes.shape, classes)

    def write_rate(self, name: str, chunks: Sequence[EncodedChunk], wide: bool | None = None) -> None:
        """Write the chunks of a tensor on an unbounded grid. wide: whether its levels need 16 bits, if that is not what
        the profile says: the profile may say so of a tensor whose codes were not yet known."""
        self._turn(name)
        coded = self._profile.coded[name]
        if coded.rate is not None and wide is not None:
            coded = replace(coded, rate=replace(coded.rate, wide=wide))
        self._coded[name] = coded
        self._write_payload(name, chunks)

    def write_lossless(self, name: str, encoded: EncodedTensor, base: int | None = None) -> None:
        """Write the chunks of a lossless tensor. base: XXH3-64 of the tensor that its deltas refer to, if there are any."""
        self._write_chunks(name, encoded, base)

    def _write_chunks(self, name: str, encoded: EncodedTensor, base: int | None) -> None:
        self._turn(name)
        self._coded[name] = replace(self._profile.coded[name], records=encoded.records, base=base)
        self._write_payload(name, encoded.all_chunks())

    def _write_payload(self, name: str, chunks: Sequence[EncodedChunk]) -> None:
        begin = self._at
        if chunks:
            self._pad(PAYLOAD_START)
        for chunk in chunks:
            table = self._table(chunk)
            row = (len(chunk.payload), chunk.codes, table, chunk.coder, chunk.streams, chunk.delta, 0, chunk.checksum)
            self._rows.append(row)
            self._write(chunk.payload)
            self._pad(CHUNK_START)
        self._counts[name] = len(chunks)
        self._end_member(part(name, "payload"), "U8", (self._at - begin,), begin, 0)

    def finish(self, rest: bytes | None = None, offsets: Mapping[str, int] | None = None) -> Layout:
        """Write index, banks, checksums and header; returns what the file is made of. The stream is left open.

        rest, offsets: for a profile with a source file, its bytes that belong to no tensor, and where all tensors lie in it,
        second names included.
        """
        if self._next != len(self.names):
            raise InvalidArgumentError(f"tensor {self.names[self._next]!r} was announced and not written")
        if self._rows:
            rows = np.array(self._rows, CHUNK_DTYPE)
            self._member(CHUNKS, "U8", (len(rows), CHUNK_DTYPE.itemsize), rows)
        for coder, bank in self._banks.items():
            if bank:
                self._member(bank_member(coder), "U8", (len(bank), BANK_ROW_NBYTES[coder]), b"".join(bank))
        if self._side is not None:
            self._member(CLASSES, "U8", (len(self._side.bank),), self._side.bank)
            if _has_vectors(self._side):
                self._member(VECTORS, "U8", (len(self._side.vectors),), self._side.vectors)
        if self._profile.source_file is not None:
            if rest is None or offsets is None:
                raise InvalidArgumentError("a source file can be restored only with all its bytes")
            packed = zlib.compress(rest, 9)
            self._member(REST, "U8", (len(packed),), packed)
            places = np.array([offsets[name] for name in sorted((*self.names, *self._profile.ties))], "<u8")
            self._member(OFFSETS, "U8", (len(places), 8), places)
        begin = self._at
        # The order of the rows: by offset; members without data first, by name.
        members = [*self._members.values()]
        order = sorted(range(len(members)), key=lambda i: (members[i].begin, members[i].end, members[i].name))
        size = 8 * (len(members) + 2)
        end = begin + size
        members.append(Member(CHECKSUMS, "U8", (len(members) + 2, 8), begin - self._reserved, end - self._reserved))
        deltas = any(tensor.base is not None for tensor in self._coded.values())
        profile = replace(self._profile, coded=self._coded, base=self._profile.base if deltas else {})
        header = build_header(profile.to_metadata(), members, reserve=self._reserved)
        checksums = np.array([*(self._checksums[i] for i in order), xxhash.xxh3_64_intdigest(header)], "<u8").tobytes()
        self._write(checksums + np.array([xxhash.xxh3_64_intdigest(checksums)], "<u8").tobytes())
        self._stream.seek(0)
        self._stream.write(header)
        self._stream.seek(end)
        return self._layout(end, size)

    def _layout(self, nbytes: int, checksums: int) -> Layout:
        sizes = {name: member.end - member.begin for name, member in self._members.items()}
        coded = {
            name: {what: sizes[part(name, what)] for what in WHATS if part(name, what) in sizes} for name in self._coded
        }
        for name, count in self._counts.items():
            coded[name]["index"] = count * CHUNK_DTYPE.itemsize
        return Layout(
            nbytes=nbytes,
            header=self._reserved,
            checksums=checksums,
            tables=sum(sizes.get(bank_member(coder), 0) for coder in BANK_ROW_NBYTES),
            classes=sizes.get(CLASSES, 0),
            vectors=sizes.get(VECTORS, 0),
            source=sizes.get(REST, 0) + sizes.get(OFFSETS, 0),
            uncoded={name: sizes[name] for name in self._uncoded},
            coded=coded,
            entries={name: self._entry_nbytes(name) for name in self._coded},
        )

    def _entry_nbytes(self, name: str) -> int:
        parts = [self._members[m] for m in (part(name, what) for what in WHATS) if m in self._members]
        members = len(build_header(None, parts, align=1)) - len(build_header(None, [], align=1))
        alone = replace(self._profile, coded={}, ties={}, source_metadata=None, source_file=None, base={})
        texts = (replace(alone, coded=coded).to_metadata()["qzc.coded"] for coded in ({name: self._coded[name]}, {}))
        entry, empty = (len(json.dumps(text, ensure_ascii=False).encode()) for text in texts)
        return members + entry - empty + 1

    def _turn(self, name: str) -> None:
        if self._next == len(self.names) or self.names[self._next] != name:
            expected = self.names[self._next] if self._next < len(self.names) else "nothing more"
            raise InvalidArgumentError(f"tensor {name!r} given, {expected!r} expected: keep the order of Writer.names")
        self._next += 1

    def _table(self, chunk: EncodedChunk) -> int:
        if not chunk.table:
            return 0
        bank = self._banks[CODERS[chunk.coder].bank]
        return bank.setdefault(bytes(chunk.table), len(bank))

    def _write(self, data: Any) -> None:
        self._at += self._stream.write(data) if len(memoryview(data)) else 0

    def _pad(self, alignment: int) -> None:
        self._write(bytes(-self._at % alignment))

    def _member(self, name: str, dtype: str, shape: tuple[int, ...], data: Any) -> None:
        begin, raw = self._at, data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
        self._write(raw)
        self._end_member(name, dtype, shape, begin, xxhash.xxh3_64_intdigest(raw))

    def _end_member(self, name: str, dtype: str, shape: tuple[int, ...], begin: int, checksum: int) -> None:
        self._members[name] = Member(name, dtype, shape, begin - self._reserved, self._at - self._reserved)
        self._checksums.append(checksum)

    def _header_bound(self, chunk_codes: int, class_maps: Sequence[str]) -> int:
        """A size that the header cannot exceed: every offset and count taken at the most that this plan allows."""
        parts: list[tuple[str, str, tuple[int, ...], int]] = []
        for name, tensor in self._uncoded.items():
            parts.append((name, tensor.dtype, tensor.shape, tensor.nbytes))
        chunks = 0
        likely: dict[str, CodedTensor] = {}
        for name, coded in self._profile.coded.items():
            likely[name], planes = _most(coded, bool(self._profile.base))
            # Chunks are at least half the target, but for the ends of runs.
            count = sum(2 * (plane.count // chunk_codes) + 1 for plane in planes)
            if name in class_maps:
                count += MAX_RUNS
                rows, columns = matrix_shape(coded.shape)
                parts.append((part(name, "row_class"), "U8", (rows,), rows))
                parts.append((part(name, "column_class"), "U8", (columns,), columns))
            bound = sum(packed_nbytes(plane.count, plane.width) for plane in planes)
            bound += (CHUNK_START + 1) * count + PAYLOAD_START
            parts.append((part(name, "payload"), "U8", (bound,), bound))
            chunks += count
        if self._side is not None:
            parts.append((CLASSES, "U8", (len(self._side.bank),), len(self._side.bank)))
            parts.append((VECTORS, "U8", (len(self._side.vectors),), len(self._side.vectors)))
        parts.append((CHUNKS, "U8", (chunks, CHUNK_DTYPE.itemsize), chunks * CHUNK_DTYPE.itemsize))
        for coder, nbytes in BANK_ROW_NBYTES.items():
            parts.append((bank_member(coder), "U8", (chunks, nbytes), nbytes * chunks))
        if self._profile.source_file is not None:
            parts.append((REST, "U8", (1 << 32,), 1 << 32))
            count = len(self.names) + len(self._profile.ties)
            parts.append((OFFSETS, "U8", (count, 8), 8 * count))
        parts.append((CHECKSUMS, "U8", (len(parts) + 2, 8), 8 * (len(parts) + 2)))
        top = sum(p[3] for p in parts)
        members = [Member(name, dtype, shape, top, top) for name, dtype, shape, _ in parts]
        return len(build_header(replace(self._profile, coded=likely).to_metadata(), members, reserve=0))


def _has_vectors(side: RateSide) -> bool:
    return any(number is not None for entry in side.entries.values() for number in entry.vectors)


def _most(coded: CodedTensor, delta: bool) -> tuple[CodedTensor, tuple[Plane, ...]]:
    """A coded tensor as it takes the most room in the header, and its planes: some is found only when it is coded."""
    if coded.rate:
        return coded, (rate_plane(coded.shape, coded.rate.wide),)
    if coded.args is None:
        by_bytes = byte_planes(coded.nbytes, BYTES)
        planes = byte_planes(coded.nbytes, coded.records, coded.palette, coded.group)
        return replace(coded, base=0) if delta else coded, (*planes, *by_bytes * 8) if delta else planes
    split = SPLIT[coded.args.scale_dtype]
    return replace(coded, records=split), grid_planes(coded.shape, coded.args, split, None, None)
