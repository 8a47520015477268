"""Reference reader of what a .qzc file says of itself: sections 1, 2 and 7 of docs/SPEC.md, and the objects of section 3.

See `reference_decoder` for its rules.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash


def must(condition: bool, where: str, message: str) -> None:
    if not condition:
        raise ValueError(f"{where}: {message}")


# ---------------------------------------------------------------------------------------------------------------------
# 1. File: a profile of safetensors

MAX_HEADER = 100_000_000
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
CODED_MEMBERS = ("payload", "row_class", "column_class")
BANK_WIDTHS = {
    "qzc.tables.ans16": 16,
    "qzc.tables.ans256": 384,
    "qzc.tables.huffman": 128,
    "qzc.tables.escape16": 32,
    "qzc.tables.short16": 24,
}
CLASSES, VECTORS = "qzc.tables.classes", "qzc.vectors"
VECTOR_KINDS = ("column_log", "row_log", "column_class", "row_class")
CHUNKS, CHECKSUMS, REST, OFFSETS = "qzc.chunks", "qzc.checksums", "qzc.source.rest", "qzc.source.offsets"


@dataclass(frozen=True)
class Member:
    dtype: str
    shape: tuple[int, ...]
    begin: int  # from the start of the data
    data: bytes

    def is_bytes(self, *shape: int) -> bool:
        """Whether it is U8 of a shape; -1 stands for any size."""
        return (
            self.dtype == "U8"
            and len(self.shape) == len(shape)
            and all(wanted in (-1, size) for wanted, size in zip(shape, self.shape, strict=True))
        )


def read_header(data: bytes) -> tuple[int, dict[str, Member], dict[str, str]]:
    """(start of the data, the members in the order of the data, `__metadata__`)."""
    where = "section 1, header"
    must(len(data) >= 8, "section 1, header_size", "the file ends inside it")
    header_size = int.from_bytes(data[:8], "little")
    start = 8 + header_size
    must(header_size <= MAX_HEADER, "section 1, header_size", f"{header_size} is too large")
    must(start <= len(data), "section 1, header_size", "the file ends inside the header")
    must(start % 64 == 0, "section 1, header_size", "8 + header_size is not a multiple of 64")
    try:
        text = data[8:start].decode("utf-8").rstrip(" ")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {error}") from None
    must(text[:1] == "{" and text[-1:] == "}", where, "not an object padded with spaces")
    header = an_object(parse_json(text, where), where)

    metadata = strings(header.pop("__metadata__", None), "section 1, __metadata__")
    found: list[tuple[int, int, str, Member]] = []
    for name, value in header.items():
        where = f"section 1, member {name!r}"
        fields = an_object(value, where)
        must(set(fields) == {"dtype", "shape", "data_offsets"}, where, "keys")
        dtype = a_dtype(fields["dtype"], where)
        shape = a_shape(fields["shape"], where)
        offsets = a_list(fields["data_offsets"], where)
        must(len(offsets) == 2, where, "data_offsets")
        begin, end = (an_int(offset, where, 0, len(data) - start) for offset in offsets)
        if dtype in DTYPE_BITS:  # members of other dtypes may have any length
            must(8 * (end - begin) == math.prod(shape) * DTYPE_BITS[dtype], where, "data_offsets do not fit the shape")
        found.append((begin, end, name, Member(dtype, shape, begin, data[start + begin : start + end])))

    # The order of section 7: by start; members without data first, by name.
    found.sort(key=lambda item: (item[0], item[1] > item[0], item[2]))
    position = 0
    for begin, end, name, _ in found:
        must(begin == position, f"section 1, member {name!r}", f"begins at {begin}, not {position}: a hole or overlap")
        position = end
    must(start + position == len(data), "section 1, data", "bytes after the last member")
    members = {name: member for _, _, name, member in found}
    must(bool(found) and found[-1][2] == CHECKSUMS, "section 1, qzc.checksums", "must be the last member in the data")
    return start, members, metadata


def is_reserved(name: str) -> bool:
    return ".qzc." in name or name.startswith("qzc.") or name.endswith(".qzc") or name in ("qzc", "__metadata__")


def parse_json(text: str, where: str) -> object:
    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        must(len(result) == len(pairs), where, "duplicate key")
        return result

    def no_constant(constant: str) -> object:
        raise ValueError(f"{where}: {constant} is not JSON")

    try:
        value: object = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # refuses half a surrogate pair: escapes can make one
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply") from None
    except (json.JSONDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"{where}: {error}") from None
    return value


def an_object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object")
    return value


def a_list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: not an array")
    return value


def a_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: not a string")
    return value


def a_dtype(value: object, where: str) -> str:
    text = a_text(value, where)
    must(re.fullmatch(r"[ -~]{0,64}", text) is not None, f"{where} dtype", "not up to 64 printable characters")
    return text


def an_int(value: object, where: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: not an integer")
    must(low <= value <= high, where, f"{value} is not in {low} .. {high}")
    return value


def a_bool(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where}: not true or false")
    return value


def a_digest(value: object, where: str) -> int:
    text = a_text(value, where)
    must(re.fullmatch(r"[0-9a-f]{16}", text, re.ASCII) is not None, where, "not 16 hex digits")
    return int(text, 16)


def a_shape(value: object, where: str) -> tuple[int, ...]:
    return tuple(an_int(size, where, 0, 2**63 - 1) for size in a_list(value, where))


def strings(value: object, where: str) -> dict[str, str]:
    return {key: a_text(text, where) for key, text in an_object(value, where).items()}


# ---------------------------------------------------------------------------------------------------------------------
# 2. Metadata


@dataclass(frozen=True)
class Quantized:
    dtype: str
    shape: tuple[int, ...]
    grid: int
    scale: int


@dataclass(frozen=True)
class Lossless:
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    records: int
    palette: int | None
    base: int | None
    group: int | None


@dataclass(frozen=True)
class Rated:
    dtype: str
    shape: tuple[int, ...]
    step: np.float32
    offset: int
    states: int
    restart: int
    wide: bool
    vectors: dict[str, int | None]  # by kind, in the order of VECTOR_KINDS


Entry = Quantized | Lossless | Rated


@dataclass(frozen=True)
class Profile:
    entries: dict[str, Entry]  # in the order of their names
    grids: list[Grid]
    records: list[Records]
    ties: dict[str, str]
    source_file: dict[str, object] | None


def read_metadata(metadata: dict[str, str]) -> Profile:
    must(metadata.get("format") == "qzc", "section 2, format", "not qzc")
    must(metadata.get("qzc.version") == "0.2", "section 2, qzc.version", "not 0.2")
    for key in ("qzc.writer", "qzc.coded"):
        must(key in metadata, f"section 2, {key}", "is missing")

    def load(key: str, empty: str) -> object:
        return parse_json(metadata.get(key, empty), f"section 2, {key}")

    grids = [read_grid(value) for value in a_list(load("qzc.grids", "[]"), "section 2, qzc.grids")]
    records = [read_records(value) for value in a_list(load("qzc.records", "[]"), "section 2, qzc.records")]
    coded = an_object(load("qzc.coded", "{}"), "section 2, qzc.coded")
    entries = {
        name: read_entry(coded[name], grids, records, f"section 2, qzc.coded {name!r}")
        for name in sorted(coded, key=str.encode)
    }
    ties = strings(load("qzc.ties", "{}"), "section 2, qzc.ties")
    strings(load("qzc.source", "{}"), "section 2, qzc.source")
    strings(load("qzc.base", "{}"), "section 2, qzc.base")
    has_base = any(isinstance(entry, Lossless) and entry.base is not None for entry in entries.values())
    must(
        has_base == ("qzc.base" in metadata),
        "section 2, qzc.base",
        "is there without a tensor that has one, or missing",
    )
    source = None
    if "qzc.source_file" in metadata:
        source = an_object(load("qzc.source_file", ""), "section 2, qzc.source_file")
    return Profile(entries, grids, records, ties, source)


def read_entry(value: object, grids: Sequence[Grid], records: Sequence[Records], where: str) -> Entry:
    entry = an_object(value, where)
    must({"dtype", "shape"} <= set(entry), where, "lacks a key")
    dtype, shape = a_dtype(entry["dtype"], where), a_shape(entry["shape"], where)
    must(len(shape) <= 64, f"{where} shape", "more than 64 dimensions")
    must(math.prod(size or 1 for size in shape) < 2**48, f"{where} shape", "too large")
    must(len({"grid", "records", "rate"} & set(entry)) == 1, where, "has not one of grid, records and rate")
    if "rate" in entry:
        must(not {"scale", "nbytes", "palette", "group", "base"} & set(entry), where, "has a key of other tensors")
        must(dtype in ("F64", "F32", "F16", "BF16"), where, f"quantized, but of dtype {dtype!r}")
        return read_rate(dtype, shape, an_object(entry["rate"], f"{where} rate"), f"{where} rate")
    if "grid" in entry:
        must("scale" in entry, where, "lacks a key")
        must(not {"nbytes", "palette", "group", "base"} & set(entry), where, "has a key of lossless tensors")
        must(dtype in ("F64", "F32", "F16", "BF16"), where, f"quantized, but of dtype {dtype!r}")
        grid = an_int(entry["grid"], f"{where} grid", 0, len(grids) - 1)
        scale = an_int(entry["scale"], f"{where} scale", 0, len(records) - 1)
        size = DTYPE_BITS[grids[grid].scale_dtype] // 8
        must(records[scale].nbytes == size, f"{where} scale", "records of another size")
        must(not records[scale].unit, f"{where} scale", "interleaved records")
        must(records[scale].gather is None, f"{where} scale", "gathered records")
        return Quantized(dtype, shape, grid, scale)

    must("scale" not in entry, where, "has a key of quantized tensors")
    number = an_int(entry["records"], f"{where} records", 0, len(records) - 1)
    bits = math.prod(shape) * DTYPE_BITS.get(dtype, 1)
    implied = dtype in DTYPE_BITS and bits % 8 == 0
    must(("nbytes" in entry) != implied, f"{where} nbytes", f"is there or missing with dtype {dtype!r}")
    nbytes = an_int(bits // 8 if implied else entry["nbytes"], f"{where} nbytes", 0, 2**48 - 1)
    must(nbytes % records[number].span == 0, f"{where} records", f"{nbytes} bytes are not a whole number of them")
    palette = an_int(entry["palette"], f"{where} palette", 1, 256) if "palette" in entry else None
    must(palette is None or records[number].holds_values, f"{where} palette", "of records with fields")
    base = a_digest(entry["base"], f"{where} base") if "base" in entry else None
    must(palette is None or base is None, f"{where} palette", "together with a base")
    group = an_int(entry["group"], f"{where} group", 16, 2**31 - 1) if "group" in entry else None
    must(group is None or palette is not None, f"{where} group", "without a palette")
    own_size = 8 * records[number].nbytes == DTYPE_BITS.get(dtype)
    must(group is None or (dtype in ("F32", "F16", "BF16") and own_size), f"{where} group", f"of dtype {dtype!r}")
    return Lossless(dtype, shape, nbytes, number, palette, base, group)


def read_rate(dtype: str, shape: tuple[int, ...], rate: dict[str, object], where: str) -> Rated:
    text = a_text(rate.get("step"), f"{where} step")
    must(re.fullmatch(r"[0-9a-f]{8}", text, re.ASCII) is not None, f"{where} step", "not 8 hex digits")
    step = np.uint32(int(text, 16)).view(np.float32)
    must(bool(0 < step < math.inf), f"{where} step", "not positive and finite")
    must(("states" in rate) == ("restart" in rate), where, "states without restart, or the other way round")
    states, restart = 0, 1
    if "states" in rate:
        states = an_int(rate["states"], f"{where} states", 4, 256)
        must(states.bit_count() == 1, f"{where} states", "no power of 2")
        restart = an_int(rate["restart"], f"{where} restart", 1, 2**31 - 1)
    must(rate.get("wide", True) is True, f"{where} wide", "not true")
    offset = an_int(rate.get("offset"), f"{where} offset", 0, 255)
    vectors = {
        kind: an_int(rate[kind], f"{where} {kind}", 0, 2**31 - 1) if kind in rate else None for kind in VECTOR_KINDS
    }
    return Rated(dtype, shape, step, offset, states, restart, "wide" in rate, vectors)


def check_names(members: dict[str, Member], profile: Profile) -> None:
    stored = {name for name in members if not is_reserved(name)}
    for name in profile.entries:
        must(name not in stored, "section 2, qzc.coded", f"{name!r} is stored uncoded, too")
        must(f"{name}.qzc.payload" in members, "section 2, qzc.coded", f"{name!r} has no payload")
    stored |= set(profile.entries)
    for name in (*profile.entries, *profile.ties):
        must(not is_reserved(name), "section 1, names", f"{name!r} is reserved")
    for name, target in profile.ties.items():
        must(target in stored, "section 2, qzc.ties", f"{name!r} is tied to {target!r}, which is not stored")
        must(name not in stored, "section 2, qzc.ties", f"{name!r} is stored and tied")
    rated = any(isinstance(entry, Rated) for entry in profile.entries.values())
    must((CLASSES in members) == rated, f"section 1, {CLASSES}", "is there without use, or missing")
    must(rated or VECTORS not in members, f"section 1, {VECTORS}", "is there without use, or missing")
    files = (*BANK_WIDTHS, CLASSES, VECTORS, CHUNKS, CHECKSUMS, REST, OFFSETS)
    for name in members:
        if is_reserved(name) and name not in files:
            owner, _, kind = name.rpartition(".qzc.")
            must(
                owner in profile.entries and kind in CODED_MEMBERS,
                "section 2, qzc.coded",
                f"{name!r} belongs to no tensor",
            )
            of_codes = kind == "payload" or isinstance(profile.entries[owner], Quantized)
            must(of_codes, "section 1, members", f"{name!r} belongs to a lossless tensor")


# ---------------------------------------------------------------------------------------------------------------------
# 3. Tensors: from codes to values. Here only what `__metadata__` says of it

SCALE_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class Grid:
    num_bits: int
    symmetric: bool
    strategy: str
    group_size: int
    scale_dtype: str

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows, columns = matrix(shape)
        return {"tensor": (1,), "channel": (rows, 1), "group": (rows, -(-columns // self.group_size))}[self.strategy]


@dataclass(frozen=True)
class Records:
    fields: list[tuple[int, int]]  # (bits, count)
    rotate: bool
    unit: int
    lanes: int
    gather: list[list[list[int]]] | None = None

    @property
    def nbytes(self) -> int:
        return sum(bits * count for bits, count in self.fields) // 8

    @property
    def span(self) -> int:
        return self.lanes * self.nbytes

    @property
    def holds_values(self) -> bool:
        """Whether they are whole values for a palette to list."""
        size = self.nbytes
        return (
            self.fields == [(8, size)]
            and size in (1, 2, 4, 8)
            and not self.rotate
            and self.lanes == 1
            and self.unit == 0
            and self.gather is None
        )

    def places(self) -> list[list[list[int]]]:
        """For each code of each field the bits of the record that it has, the lowest first."""
        if self.gather is None:
            bits = iter(range(8 * self.nbytes))
            return [[[next(bits) for _ in range(width)] for _ in range(count)] for width, count in self.fields]
        return [
            [
                [
                    offset + sum(map(math.prod, zip(digits, strides, strict=True))) + bit
                    for width, offset, *strides in parts
                    for bit in range(width)
                ]
                for digits in itertools.product(*map(range, counts))
            ]
            for counts, *parts in self.gather
        ]


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def read_grid(value: object) -> Grid:
    where = "section 3, grid"
    fields = an_object(value, where)
    keys = {"num_bits", "symmetric", "strategy", "group_size", "scale_method", "scale_dtype"}
    must(keys <= set(fields), where, "lacks a key")
    num_bits = an_int(fields["num_bits"], f"{where} num_bits", 1, 8)
    symmetric = a_bool(fields["symmetric"], f"{where} symmetric")
    strategy, group_size = a_text(fields["strategy"], where), 1
    must(strategy in ("tensor", "channel", "group"), f"{where} strategy", f"unknown {strategy!r}")
    if strategy == "group":
        group_size = an_int(fields["group_size"], f"{where} group_size", 1, 2**31 - 1)
    else:
        must(fields["group_size"] is None, f"{where} group_size", f"not null, but strategy is {strategy!r}")
    a_text(fields["scale_method"], f"{where} scale_method")
    scale_dtype = a_text(fields["scale_dtype"], where)
    must(scale_dtype in SCALE_DTYPES, f"{where} scale_dtype", f"unknown {scale_dtype!r}")
    return Grid(num_bits, symmetric, strategy, group_size, SCALE_DTYPES[scale_dtype])


def read_records(value: object) -> Records:
    where = "section 3, records"
    keys = an_object(value, where)
    must({"fields", "rotate", "interleave"} <= set(keys), where, "lacks a key")
    fields = []
    for pair in a_list(keys["fields"], f"{where} fields"):
        numbers = a_list(pair, f"{where} fields")
        must(len(numbers) == 2, f"{where} fields", "not a pair")
        fields.append((an_int(numbers[0], f"{where} bits", 1, 8), an_int(numbers[1], f"{where} count", 1, 8 * 65536)))
    must(1 <= len(fields) <= 64, f"{where} fields", f"{len(fields)} of them")
    size = sum(bits * count for bits, count in fields)
    must(size % 8 == 0 and size <= 8 * 65536, f"{where} fields", f"{size} bits")
    rotate = a_bool(keys["rotate"], f"{where} rotate")
    must(not rotate or size in (8, 16, 32, 64), f"{where} rotate", f"a record of {size} bits")
    unit, lanes = 0, 1
    if keys["interleave"] is not None:
        interleave = a_list(keys["interleave"], f"{where} interleave")
        must(len(interleave) == 2, f"{where} interleave", "not a pair")
        unit = an_int(interleave[0], f"{where} unit", 1, 65536)
        lanes = an_int(interleave[1], f"{where} lanes", 1, 2**24)
        must(size // 8 % unit == 0, f"{where} unit", "does not divide the record")
    if "gather" not in keys:
        return Records(fields, rotate, unit, lanes)
    must(not rotate and unit == 0 and size <= 8 * 1024, f"{where} gather", "not for such records")
    gather = [read_walk(walk, size) for walk in a_list(keys["gather"], f"{where} gather")]
    must(len(gather) == len(fields), f"{where} gather", f"{len(gather)} fields instead of {len(fields)}")
    for (bits, count), (counts, *parts) in zip(fields, gather, strict=True):
        must(math.prod(counts) == count, f"{where} gather", f"not {count} codes")
        must(sum(part[0] for part in parts) == bits, f"{where} gather", f"not {bits} bits")
    records = Records(fields, rotate, unit, lanes, gather)
    found = sorted(bit for field in records.places() for code in field for bit in code)
    must(found == list(range(size)), f"{where} gather", "not each bit once")
    return records


def read_walk(value: object, size: int) -> list[list[int]]:
    """Counts and parts of a field of a gathered record of `size` bits."""
    where = "section 3, records gather"
    walk = [a_list(numbers, where) for numbers in a_list(value, where)]
    must(len(walk) > 0, where, "no counts")
    counts = [an_int(count, f"{where} count", 1, size) for count in walk[0]]
    must(len(counts) <= 4, where, f"{len(counts)} counts")
    parts = []
    for numbers in walk[1:]:
        must(len(numbers) == 2 + len(counts), where, f"a part of {len(numbers)} numbers")
        parts.append([an_int(numbers[0], f"{where} bits", 1, 8)])
        parts[-1] += [an_int(number, f"{where} offset or stride", 0, size) for number in numbers[1:]]
    return [counts, *parts]


# ---------------------------------------------------------------------------------------------------------------------
# 7. Checksums


def xxh3(data: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(data))


def check_checksums(data: bytes, start: int, members: dict[str, Member]) -> None:
    member, where = members[CHECKSUMS], f"section 7, {CHECKSUMS}"
    must(member.is_bytes(len(members) + 1, 8), where, "dtype or shape")
    rows = struct.unpack(f"<{len(members) + 1}Q", member.data)
    must(rows[-1] == xxh3(member.data[:-8]), where, "the last row does not fit the rows before")
    must(rows[-2] == xxh3(data[:start]), where, "header")
    others = [item for item in members.items() if item[0] != CHECKSUMS]
    for (name, other), row in zip(others, rows[:-2], strict=True):
        expected = 0 if name.endswith(".qzc.payload") else xxh3(other.data)
        must(row == expected, where, f"{name!r}")
