"""Reference decoder of the .qzc format, written from docs/SPEC.md alone.

It shares no code with the package and prefers plain to fast: the sections below are the sections of the document, in
its order, and each broken *must* raises a ValueError that names the section and the field. It is the oracle for the
real reader, so keep it free of anything that is in there. Sections 1, 2 and 7 are in `reference_header`, 5 and 6 in
`reference_coders`.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.reference_coders import decode_payload, read_table
from tests.reference_header import (
    BANK_WIDTHS,
    CHUNKS,
    CLASSES,
    OFFSETS,
    REST,
    Entry,
    Lossless,
    Member,
    Profile,
    Quantized,
    Rated,
    Records,
    a_digest,
    an_int,
    check_checksums,
    check_names,
    is_reserved,
    matrix,
    must,
    read_header,
    read_metadata,
    xxh3,
)
from tests.reference_rate import decode_rows, grid_of, levels_of, read_class_bank, read_vectors, weights_of


@dataclass(frozen=True)
class Decoded:
    """A tensor of the file: the four arrays for a quantized one, levels and weights for one at a rate, else `raw`."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes | None = None  # little-endian, row-major
    codes: NDArray[np.uint8] | None = None  # of `shape`
    zero_point: NDArray[np.float32] | None = None  # of the scale shape
    scale: NDArray[np.float32] | None = None  # of the scale shape
    dequantized: NDArray[np.float32] | None = None  # of `shape`
    levels: NDArray[np.int64] | None = None  # of `shape`


class BaseMissing(Exception):
    """A tensor is coded against a base that was not given, or against another one."""


def decode_file(data: bytes, base: Mapping[str, bytes] | None = None) -> dict[str, Decoded]:
    """All tensors of a .qzc file by name, ties included. base: the bytes of the base's tensors.

    Raises ValueError if the bytes break any rule of the format, BaseMissing, and nothing else as long as there is memory.
    """
    return decode_with_source(data, base)[0]


def restore_source(data: bytes, base: Mapping[str, bytes] | None = None) -> bytes:
    """The file that a .qzc file was made from. Raises what `decode_file` does, ValueError also if there is none in it."""
    tensors, source = decode_with_source(data, base)
    if source is None:
        raise ValueError("section 8: the file does not hold its source")
    return restore(source, tensors)  # section 8


def decode_with_source(data: bytes, base: Mapping[str, bytes] | None) -> tuple[dict[str, Decoded], Source | None]:
    start, members, metadata = read_header(data)  # section 1
    check_checksums(data, start, members)  # section 7
    profile = read_metadata(metadata)  # section 2
    check_names(members, profile)
    banks = read_banks(members)  # section 6
    tensors = {
        name: Decoded(member.dtype, member.shape, raw=member.data)
        for name, member in members.items()
        if not is_reserved(name)
    }
    planes = {name: planes_of(name, entry, profile, members) for name, entry in profile.entries.items()}  # 3
    chunks = read_chunks(members, start, profile.entries, planes, banks)  # section 4
    source = read_source(profile, members)  # section 8
    tensors |= decode_rated(profile, members, chunks)
    for name, entry in profile.entries.items():
        if isinstance(entry, Rated):
            continue
        codes = [
            decode_plane(plane, chunks[name][number], banks, f"{name!r} plane {number}")
            for number, plane in enumerate(planes[name])
        ]
        if isinstance(entry, Quantized):
            with np.errstate(all="ignore"):  # scales of infinity and NaN are not against the rules
                tensors[name] = dequantized(entry, codes, profile, class_maps(name, entry, members))
        else:
            raw = lossless_bytes(name, entry, codes, profile, chunks[name], base or {})
            tensors[name] = Decoded(entry.dtype, entry.shape, raw=raw)
    return tensors | {name: tensors[target] for name, target in profile.ties.items()}, source


# ---------------------------------------------------------------------------------------------------------------------
# 3. Tensors: from codes to values


def read_class(members: dict[str, Member], name: str, size: int) -> bytes | None:
    if name not in members:
        return None
    must(members[name].is_bytes(size), f"section 3, {name!r}", "dtype or shape")
    return members[name].data


ClassMaps = tuple[bytes | None, bytes | None]


def class_maps(name: str, entry: Quantized, members: dict[str, Member]) -> ClassMaps:
    rows, columns = matrix(entry.shape)
    return read_class(members, f"{name}.qzc.row_class", rows), read_class(members, f"{name}.qzc.column_class", columns)


def run_sizes(rows: int, columns: int, row_class: bytes | None, column_class: bytes | None) -> list[int]:
    """How many codes each class has, without looking at each of them: there may be more than fit into memory."""
    row_counts = Counter({0: rows}) if row_class is None else Counter(row_class)
    column_counts = Counter({0: columns}) if column_class is None else Counter(column_class)
    sizes: Counter[int] = Counter()
    for row, r in row_counts.items():
        for column, c in column_counts.items():
            sizes[row + column] += r * c
    return [sizes[key] for key in sorted(sizes) if sizes[key]]


def code_order(rows: int, columns: int, row_class: object, column_class: object) -> list[list[int]]:
    """The runs of the codes: for each class that occurs, the row-major positions of its codes."""
    if row_class is None and column_class is None:
        return [list(range(rows * columns))] if rows * columns else []
    row_classes = [0] * rows if row_class is None else [int(c) for c in np.asarray(row_class)]
    column_classes = [0] * columns if column_class is None else [int(c) for c in np.asarray(column_class)]
    runs: dict[int, list[int]] = {}
    for r in range(rows):
        for c in range(columns):
            runs.setdefault(row_classes[r] + column_classes[c], []).append(r * columns + c)
    return [runs[key] for key in sorted(runs)]


def dequantized(entry: Quantized, codes: list[list[int]], profile: Profile, maps: ClassMaps) -> Decoded:
    grid, (rows, columns) = profile.grids[entry.grid], matrix(entry.shape)
    scale_shape = grid.scale_shape(entry.shape)
    flat = np.zeros(rows * columns, np.uint8)
    order = code_order(rows, columns, *(None if each is None else list(each) for each in maps))
    flat[[position for run in order for position in run]] = codes[0]
    zero_point = np.full(scale_shape, 0.5 if grid.num_bits == 1 else 2 ** (grid.num_bits - 1), np.float32)
    if not grid.symmetric:
        zero_point = np.array(codes[1], np.float32).reshape(scale_shape)
    fields = codes[1:] if grid.symmetric else codes[2:]
    scale = as_float32(join(fields, profile.records[entry.scale]), grid.scale_dtype).reshape(scale_shape)

    weights = np.zeros((rows, columns), np.float32)
    if weights.size:
        r, c = np.arange(rows)[:, None], np.arange(columns)[None, :]
        owner = {"tensor": (0 * r + 0 * c,), "channel": (r, 0 * c), "group": (r, c // grid.group_size)}[grid.strategy]
        weights = (flat.reshape(rows, columns).astype(np.float32) - zero_point[owner]) * scale[owner]
    shape = entry.shape
    return Decoded(entry.dtype, shape, None, flat.reshape(shape), zero_point, scale, weights.reshape(shape))


def as_float32(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f4").astype(np.float32)


def join(planes: Sequence[Sequence[int]], records: Records) -> bytes:
    """The bytes whose records have these codes."""
    size, (_, first) = records.nbytes, records.fields[0]
    found, places = [], records.places()
    for i in range(len(planes[0]) // first):
        value = 0
        for (_, count), field, codes in zip(records.fields, places, planes, strict=True):
            for at, code in zip(field, codes[i * count : (i + 1) * count], strict=True):
                value |= sum((code >> bit & 1) << place for bit, place in enumerate(at))
        if records.rotate:
            value = value >> 1 | (value & 1) << 8 * size - 1
        found.append(value.to_bytes(size, "little"))
    if records.unit == 0:
        return b"".join(found)
    spans = [found[i : i + records.lanes] for i in range(0, len(found), records.lanes)]
    units = range(0, size, records.unit)
    return b"".join(record[at : at + records.unit] for span in spans for at in units for record in span)


def split(data: bytes, records: Records) -> list[list[int]]:
    """The codes of the records of these bytes, by field: the inverse of `join`."""
    size, planes, places = records.nbytes, [list[int]() for _ in records.fields], records.places()
    for start in range(0, len(data), records.span):
        for lane in range(records.lanes):
            record = data[start : start + size]
            if records.unit:
                at = range(start + lane * records.unit, start + records.span, records.lanes * records.unit)
                record = b"".join(data[i : i + records.unit] for i in at)
            value = int.from_bytes(record, "little")
            if records.rotate:
                value = (value << 1 | value >> 8 * size - 1) & (1 << 8 * size) - 1
            for field, codes in zip(places, planes, strict=True):
                codes += [sum((value >> place & 1) << bit for bit, place in enumerate(at)) for at in field]
    return planes


def lossless_bytes(
    name: str,
    entry: Lossless,
    codes: list[list[int]],
    profile: Profile,
    chunks: list[list[list[Chunk]]],
    base: Mapping[str, bytes],
) -> bytes:
    records = profile.records[entry.records]
    if entry.palette is not None:
        size = records.nbytes
        must(max(codes[0], default=0) < entry.palette, f"section 3, {name!r} palette", "a number of no value")
        if entry.group is not None:
            return scaled(codes, entry.dtype, entry.group)
        return b"".join(bytes(codes[1][size * i : size * i + size]) for i in codes[0])
    if entry.base is not None:
        theirs = base.get(name)
        if theirs is None or len(theirs) != entry.nbytes or xxh3(theirs) != entry.base:
            raise BaseMissing(f"section 4, {name!r} base: not given, or another one")
        for plane, other, runs, (bits, _) in zip(codes, split(theirs, records), chunks, records.fields, strict=True):
            undo_delta(plane, other, runs, bits)
    return join(codes, records)


SCALES = Records([(8, 1)] * 4, rotate=True, unit=0, lanes=1)


def scaled(codes: list[list[int]], dtype: str, group: int) -> bytes:
    """Records that are values times scales."""
    values = np.frombuffer(bytes(codes[1]), "<f4")
    scales = np.frombuffer(join(codes[2:], SCALES), "<f4")
    with np.errstate(all="ignore"):
        exact = np.array([values[code] * scales[i // group] for i, code in enumerate(codes[0])], "<f4")
        bits = exact.view("<u4").astype(np.uint64)
        found = {
            "F32": bits.astype("<u4"),
            "F16": exact.astype("<f2").view("<u2"),
            "BF16": ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2"),
        }[dtype]
    found[np.isnan(exact)] = {"F32": 0x7FC00000, "F16": 0x7E00, "BF16": 0x7FC0}[dtype]
    return found.tobytes()


def decode_rated(
    profile: Profile, members: dict[str, Member], chunks: dict[str, list[list[list[Chunk]]]]
) -> dict[str, Decoded]:
    entries = {name: entry for name, entry in profile.entries.items() if isinstance(entry, Rated)}
    if not entries:
        return {}
    bank = read_class_bank(members[CLASSES])  # section 6
    vectors = read_vectors(entries, members, bank)
    found = {}
    for name, entry in entries.items():
        grid, (_, columns) = grid_of(entry, vectors, bank), matrix(entry.shape)
        codes: list[int] = []
        for number, chunk in enumerate(chunk for runs in chunks[name] for run in runs for chunk in run):
            where, row = f"{name!r} chunk {number}", chunk.row
            rows = range(len(codes) // columns, (len(codes) + row.codes) // columns)
            if row.coder == 7:
                codes += decode_rows(chunk.data, row.streams, grid, rows, f"section 5, {where}")
                continue
            width = 2 if entry.wide else 1
            data = decode_payload(chunk.data, row.coder, [], 0, row.codes * width, f"section 5, {where}")
            codes += np.frombuffer(data, f"<i{width}").tolist()
        levels = levels_of(codes, columns, entry, f"section 3, {name!r}")
        weights = weights_of(levels, grid).reshape(entry.shape)
        found[name] = Decoded(entry.dtype, entry.shape, levels=levels.reshape(entry.shape), dequantized=weights)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# 4. Chunks


@dataclass(frozen=True)
class Plane:
    bits: int
    runs: list[int]  # the number of codes in each

    @property
    def width(self) -> int:
        return next(width for width in (1, 2, 4, 8, 16) if width >= self.bits)


@dataclass(frozen=True)
class Row:
    nbytes: int
    codes: int
    table: int
    coder: int
    streams: int
    delta: int
    reserved: int
    checksum: int


@dataclass(frozen=True)
class Chunk:
    row: Row
    data: bytes


def planes_of(name: str, entry: Entry, profile: Profile, members: dict[str, Member]) -> list[Plane]:
    def one_run(bits: int, codes: int) -> Plane:
        return Plane(bits, [codes] if codes else [])

    if isinstance(entry, Quantized):
        grid, (rows, columns) = profile.grids[entry.grid], matrix(entry.shape)
        scales = math.prod(grid.scale_shape(entry.shape))
        planes = [Plane(grid.num_bits, run_sizes(rows, columns, *class_maps(name, entry, members)))]
        if not grid.symmetric:
            planes.append(one_run(grid.num_bits, scales))
        return planes + [one_run(bits, count * scales) for bits, count in profile.records[entry.scale].fields]
    if isinstance(entry, Rated):
        return [one_run(16 if entry.wide else 8, math.prod(entry.shape))]
    records = profile.records[entry.records]
    count = entry.nbytes // records.nbytes
    if entry.palette is not None:
        bits = max(1, (entry.palette - 1).bit_length())
        if entry.group is not None:
            scales = -(-count // entry.group)
            return [one_run(bits, count), one_run(8, entry.palette * 4), *(one_run(8, scales) for _ in range(4))]
        return [one_run(bits, count), one_run(8, entry.palette * records.nbytes)]
    return [one_run(bits, codes * count) for bits, codes in records.fields]


def read_chunks(
    members: dict[str, Member],
    start: int,
    entries: dict[str, Entry],
    planes: dict[str, list[Plane]],
    banks: dict[int, list[list[int]]],
) -> dict[str, list[list[list[Chunk]]]]:
    """The chunks of each tensor, plane and run, checked but not decoded."""
    where, data = "section 4, qzc.chunks", b""
    if CHUNKS in members:
        must(members[CHUNKS].is_bytes(-1, 24), where, "dtype or shape")
        data = members[CHUNKS].data
    left = iter([Row(*fields) for fields in struct.iter_unpack("<IIIBBBBQ", data)])
    found = {}
    for name, entry in entries.items():
        has_base = isinstance(entry, Lossless) and entry.base is not None
        unit = entry.restart * matrix(entry.shape)[1] if isinstance(entry, Rated) else 0
        rows = []
        for number, plane in enumerate(planes[name]):
            here = f"section 4, {name!r} plane {number} run"
            rows.append(
                [cut_run(n, plane.width, left, banks, has_base, unit, f"{here} {r}") for r, n in enumerate(plane.runs)]
            )
        payload = members[f"{name}.qzc.payload"]
        flat = [row for runs in rows for run in runs for row in run]
        pieces = iter(cut_payload(payload, start, flat, f"section 4, {name!r} payload"))
        found[name] = [[[Chunk(row, next(pieces)) for row in run] for run in runs] for runs in rows]
    must(next(left, None) is None, where, "rows left over")
    return found


def cut_run(
    size: int,
    width: int,
    left: Iterator[Row],
    banks: dict[int, list[list[int]]],
    has_base: bool,
    unit: int,
    where: str,
) -> list[Row]:
    """The rows of one run of `size` codes: as many as it takes. unit: at whose multiples chunks must begin, or 0."""
    rows: list[Row] = []
    done = 0
    while done < size:
        row = next(left, None)
        if row is None:
            raise ValueError(f"{where}: the index has too few rows")
        here = f"{where} chunk {len(rows)}"
        must(1 <= row.codes <= 2**24, f"{here} codes", f"{row.codes} is not in 1 .. 2^24")
        must(row.coder <= 9, f"{here} coder", f"unknown {row.coder}")
        must(row.coder in (0, 1, 7) if unit else row.coder != 7, f"{here} coder", f"{row.coder} in this tensor")
        must(not unit or done % unit == 0, f"{here} codes", "begins where no chunk may")
        must((row.streams >= 1) == (row.coder in (2, 3, 5, 6, 7, 8, 9)), f"{here} streams", str(row.streams))
        bank = banks[2 if row.coder == 5 else row.coder] if row.coder in (2, 3, 4, 5, 6, 8) else [[]]
        must(row.table < len(bank), f"{here} table", f"row {row.table} of {len(bank)}")
        must(row.delta <= (2 if has_base else 0), f"{here} delta", str(row.delta))
        must(row.reserved == 0, f"{here} reserved", "must be 0")
        done += row.codes
        must(done <= size, f"{here} codes", "the chunk crosses the end of its run")
        must(done == size or row.codes * width % 8 == 0, f"{here} codes", "not a multiple of 8 / w")
        nbytes = -(-row.codes * width // 8)
        must(1 <= row.nbytes <= nbytes, f"{here} nbytes", f"{row.nbytes} is not in 1 .. {nbytes}")
        rows.append(row)
    return rows


def cut_payload(payload: Member, start: int, rows: list[Row], where: str) -> list[bytes]:
    """The bytes of each chunk, and nothing but short runs of zeros between them."""
    must(payload.is_bytes(-1), where, "dtype or shape")
    must(bool(rows) or not payload.data, where, "no chunks, but not empty")
    found, position, alignment = [], start + payload.begin, 64  # positions in the file
    data = {"begin": position, "end": position + len(payload.data)}

    def zeros(first: int, stop: int, here: str) -> None:
        must(stop <= data["end"], f"{here} nbytes", "ends outside the payload")
        must(not any(payload.data[first - data["begin"] : stop - data["begin"]]), f"{here} gap", "not zero")

    for number, row in enumerate(rows):
        here = f"{where} chunk {number}"
        begin = position + -position % alignment
        zeros(position, begin, here)
        position, alignment = begin + row.nbytes, 16
        must(position <= data["end"], f"{here} nbytes", "ends outside the payload")
        chunk = payload.data[begin - data["begin"] : position - data["begin"]]
        must(xxh3(chunk) == row.checksum, f"{here} checksum", "bad")
        found.append(chunk)
    if rows:
        zeros(position, position + -position % 16, where)
        must(position + -position % 16 == data["end"], where, "bytes behind the last chunk")
    return found


def decode_plane(plane: Plane, runs: list[list[Chunk]], banks: dict[int, list[list[int]]], name: str) -> list[int]:
    """The codes of all runs, before any base is applied."""
    codes: list[int] = []
    width = plane.width
    for number, chunk in enumerate(chunk for run in runs for chunk in run):
        row, where = chunk.row, f"{name} chunk {number}"
        bank = banks.get(2 if row.coder == 5 else row.coder, [[]])
        nbytes = -(-row.codes * width // 8)
        buffer = decode_payload(chunk.data, row.coder, bank[row.table], row.streams, nbytes, f"section 5, {where}")
        values = [byte >> shift & (1 << width) - 1 for byte in buffer for shift in range(0, 8, width)]
        must(not any(values[row.codes :]), f"section 4, {where} codes", "unused bits of the last byte are not zero")
        del values[row.codes :]
        must(max(values) < 2**plane.bits, f"section 4, {where} codes", f"above 2^{plane.bits} - 1")
        codes += values
    return codes


def undo_delta(codes: list[int], base: list[int], runs: list[list[Chunk]], bits: int) -> None:
    position = 0
    for chunk in (chunk for run in runs for chunk in run):
        for i in range(position, position + chunk.row.codes):
            if chunk.row.delta == 1:
                codes[i] ^= base[i]
            if chunk.row.delta == 2:
                codes[i] = (codes[i] + base[i]) % 2**bits
        position += chunk.row.codes


# ---------------------------------------------------------------------------------------------------------------------
# 6. Table banks


def read_banks(members: dict[str, Member]) -> dict[int, list[list[int]]]:
    """Coder -> rows, each as `read_table` gives it."""
    banks: dict[int, list[list[int]]] = {}
    for coder, (name, width) in zip((2, 3, 4, 6, 8), BANK_WIDTHS.items(), strict=True):
        banks[coder] = []
        if name not in members:
            continue
        member, where = members[name], f"section 6, {name}"
        must(member.is_bytes(-1, width), where, "dtype or shape")
        for row in range(member.shape[0]):
            banks[coder].append(read_table(coder, member.data[row * width : (row + 1) * width], f"{where} row {row}"))
    return banks


# ---------------------------------------------------------------------------------------------------------------------
# 8. The source file


@dataclass(frozen=True)
class Source:
    nbytes: int
    xxh3: int
    offsets: dict[str, int]  # of each tensor, ties included
    rest: bytes


def read_source(profile: Profile, members: dict[str, Member]) -> Source | None:
    where, value = "section 8, source", profile.source_file
    present = {REST in members, OFFSETS in members, value is not None}
    must(len(present) == 1, where, "not all of its parts are there")
    if value is None:
        return None
    must({"kind", "nbytes", "xxh3"} <= set(value), f"{where} file", "lacks a key")
    must(value["kind"] in ("safetensors", "gguf"), f"{where} file kind", "unknown")
    nbytes = an_int(value["nbytes"], f"{where} file nbytes", 0, 2**48 - 1)
    digest = a_digest(value["xxh3"], f"{where} file xxh3")
    sizes: dict[str, int] = {name: len(member.data) for name, member in members.items() if not is_reserved(name)}
    for name, entry in profile.entries.items():
        if isinstance(entry, Quantized | Rated):
            raise ValueError(f"{where}: {name!r} is quantized")
        sizes[name] = entry.nbytes
    sizes |= {name: sizes[target] for name, target in profile.ties.items()}

    names = sorted(sizes, key=str.encode)
    must(members[OFFSETS].is_bytes(len(names), 8), f"{where} offsets", "dtype or shape")
    offsets = dict(zip(names, struct.unpack(f"<{len(names)}Q", members[OFFSETS].data), strict=True))
    position = 0
    for name in sorted(names, key=lambda name: (offsets[name], sizes[name])):
        must(offsets[name] + sizes[name] <= nbytes, f"{where} offsets", f"{name!r} lies outside")
        must(position <= offsets[name], f"{where} offsets", f"{name!r} begins inside another tensor")
        position = offsets[name] + sizes[name]

    must(members[REST].is_bytes(-1), f"{where} rest", "dtype or shape")
    data, stream = members[REST].data, zlib.decompressobj()
    size = nbytes - sum(sizes.values())
    must(size <= 1032 * len(data), f"{where} rest", f"too short for {size} bytes")
    try:
        rest = stream.decompress(data, size + 1)  # 0 would be no limit
    except zlib.error as error:
        raise ValueError(f"{where} rest: {error}") from None
    must(stream.eof and not stream.unused_data, f"{where} rest", "not one whole stream")
    must(len(rest) == size, f"{where} rest", f"{len(rest)} bytes instead of {size}")
    return Source(nbytes, digest, offsets, rest)


def restore(source: Source, tensors: dict[str, Decoded]) -> bytes:
    found, rest = bytearray(), source.rest
    for name in sorted(source.offsets, key=lambda name: source.offsets[name]):
        raw = tensors[name].raw
        if raw:
            gap = source.offsets[name] - len(found)
            found += rest[:gap] + raw
            rest = rest[gap:]
    found += rest
    must(len(found) == source.nbytes and xxh3(bytes(found)) == source.xxh3, "section 8, source", "another file")
    return bytes(found)
