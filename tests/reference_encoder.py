"""Writer of random valid .qzc files, written from docs/SPEC.md alone: slow, and far more varied than the real one.

It uses what the format allows and the real writer does not: any mix of coders, tables, streams and chunk sizes, any
code lengths, class maps, records, deltas, every dtype, other orders of the members. It shares no code with the package or
with the reference decoder, except for the record of the expected values.
"""

import itertools
import json
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np
import xxhash
from numpy.typing import NDArray

from tests.gathers import Walk, fields_of, random_walks
from tests.reference_decoder import Decoded

NAMES = ("weight", "a.weight", "a b/c", "ключ", "0", "\u00e9\"'\\", "layers.10.mlp", "x" * 70, "\n", "\U0001f600", "")
PLAIN_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
SCALE_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
TABLES = {
    2: ("qzc.tables.ans16", 16),
    3: ("qzc.tables.ans256", 384),
    4: ("qzc.tables.huffman", 128),
    6: ("qzc.tables.escape16", 32),
    8: ("qzc.tables.short16", 24),
}

# The tables of coders 2, 3, 4, 6 and 8: frequencies or code lengths of all symbols, for coder 6 then the bytes they stand for.
# Coder 5 uses those of coder 2.
Banks = dict[int, list[list[int]]]
# What JSON calls an object: a grid, a record object, an entry.
Object = dict[str, object]


class Member(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Chunk(NamedTuple):
    codes: int
    coder: int
    streams: int
    table: int
    payload: bytes
    delta: int = 0


class Coded(NamedTuple):
    """A coded tensor on its way into a file; `maps` holds the class map members."""

    name: str
    entry: Object
    chunks: list[Chunk]
    maps: list[Member]


class Records(NamedTuple):
    """A record object. unit: 0 without interleave."""

    fields: list[tuple[int, int]]
    rotate: bool = False
    unit: int = 0
    lanes: int = 1
    gather: list[Walk] | None = None

    @property
    def nbytes(self) -> int:
        return sum(bits * count for bits, count in self.fields) // 8

    def to_json(self) -> Object:
        interleave = [self.unit, self.lanes] if self.unit else None
        found: Object = {
            "fields": [list(field) for field in self.fields],
            "rotate": self.rotate,
            "interleave": interleave,
        }
        return found if self.gather is None else {**found, "gather": self.gather}


class File(NamedTuple):
    """A random file, what it decodes to, ties included, the bytes of the base's tensors, and the source if it is in it."""

    data: bytes
    expected: dict[str, Decoded]
    base: dict[str, bytes]
    source: bytes | None


class Shared(NamedTuple):
    """What the tensors of a file have in common, as it grows."""

    grids: list[Object]
    records: list[Records]
    banks: Banks
    base: dict[str, bytes]


def random_file(rng: np.random.Generator, *, any_order: bool = False) -> File:
    """With `any_order` the members are shuffled, as readers must not rely on their order."""
    names = [str(name) for name in rng.permutation(NAMES)]
    expected: dict[str, Decoded] = {}
    plain = [random_plain(rng, names.pop()) for _ in range(rng.integers(0, 4))]
    expected |= {member.name: Decoded(member.dtype, member.shape, member.data) for member in plain}
    shared = Shared([], [], no_tables(), {})
    coded = []
    lossless = rng.random() < 0.4  # then the source can be restored
    for _ in range(rng.integers(0, 4)):
        make = random_lossless if lossless or rng.random() < 0.3 else random_quantized
        tensor, expected[tensor.name] = make(rng, names.pop(), shared)
        coded.append(tensor)
    ties = {names.pop(): str(rng.choice(list(expected))) for _ in range(rng.integers(0, 3)) if expected}
    expected |= {name: expected[target] for name, target in ties.items()}

    metadata = {"format": "qzc", "qzc.version": "0.2", "qzc.writer": "reference", "unknown key": "is ignored"}
    metadata["qzc.coded"] = json.dumps({tensor.name: tensor.entry for tensor in coded}, ensure_ascii=False)
    if shared.grids:
        metadata["qzc.grids"] = json.dumps(shared.grids)
    if shared.records:
        metadata["qzc.records"] = json.dumps([records.to_json() for records in shared.records])
    if ties:
        metadata["qzc.ties"] = json.dumps(ties)
    if shared.base:
        metadata["qzc.base"] = json.dumps({"name": "a base"})
    if rng.random() < 0.5:
        metadata["qzc.source"] = json.dumps({"format": "pt"})
    extra: list[Member] = []
    source = None
    if lossless and rng.random() < 0.7:
        source, described, extra = random_source(rng, expected)
        metadata["qzc.source_file"] = json.dumps(described)
    members = lay_out(plain, coded, shared.banks, extra, rng if any_order else None)
    return File(seal(metadata, members), expected, shared.base, source)


# ---------------------------------------------------------------------------------------------------------------------
# The file around the tensors (sections 1, 4, 7 and 8)


def no_tables() -> Banks:
    return {coder: [] for coder in TABLES}


def lay_out(
    plain: list[Member],
    coded: list[Coded],
    banks: Banks,
    extra: Sequence[Member] = (),
    shuffle: np.random.Generator | None = None,
) -> list[Member]:
    """All members but the checksums, in the order of section 1 or any other."""
    members = sorted(plain, key=lambda member: (-PLAIN_BITS[member.dtype], member.name))
    chunks: dict[str, list[Chunk]] = {}
    index = b""
    for tensor in sorted(coded):
        chunks[f"{tensor.name}.qzc.payload"] = tensor.chunks
        members.append(Member(f"{tensor.name}.qzc.payload", "U8", (0,), b""))
        members += tensor.maps
        index += b"".join(index_row(chunk) for chunk in tensor.chunks)
    if index:
        members.append(Member("qzc.chunks", "U8", (len(index) // 24, 24), index))
    for coder, (name, width) in TABLES.items():
        if banks[coder]:
            rows = b"".join(table_row(coder, table) for table in banks[coder])
            members.append(Member(name, "U8", (len(banks[coder]), width), rows))
    members += extra
    if shuffle is not None:
        # numpy would make an array of the members, hence the indirection.
        members = [members[int(i)] for i in shuffle.permutation(len(members))]

    begin = 0
    for number, member in enumerate(members):
        if member.name in chunks:  # its size depends on where it begins
            payload = join_chunks(chunks[member.name], begin)
            members[number] = member._replace(shape=(len(payload),), data=payload)
        begin += len(members[number].data)
    return members


def index_row(chunk: Chunk) -> bytes:
    fields = (chunk.codes, chunk.table, chunk.coder, chunk.streams, chunk.delta, 0, xxh3(chunk.payload))
    return struct.pack("<IIIBBBBQ", len(chunk.payload), *fields)


def join_chunks(chunks: list[Chunk], begin: int) -> bytes:
    """A payload member at `begin`; the data begin on a multiple of 64 of the file."""
    payload, alignment = b"", 64
    for chunk in chunks:
        payload += bytes(-(begin + len(payload)) % alignment) + chunk.payload
        alignment = 16
    return payload + bytes(-(begin + len(payload)) % 16 if chunks else 0)


def seal(metadata: dict[str, str], members: Sequence[Member]) -> bytes:
    """The file: header, members in the order given, checksums."""
    header: dict[str, object] = {"__metadata__": metadata}
    rows, begin = [], 0
    # Members without data come first among those that begin at the same offset, by name.
    begins = []
    for member in members:
        begins.append((begin, bool(member.data), member.name, member))
        begin += len(member.data)
    for start, _, name, member in sorted(begins):
        offsets = [start, start + len(member.data)]
        header[name] = {"dtype": member.dtype, "shape": member.shape, "data_offsets": offsets}
        rows.append(0 if name.endswith(".qzc.payload") else xxh3(member.data))
    size = 8 * (len(rows) + 2)
    header["qzc.checksums"] = {"dtype": "U8", "shape": [len(rows) + 2, 8], "data_offsets": [begin, begin + size]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    start_of_file = struct.pack("<Q", len(text)) + text
    rows.append(xxh3(start_of_file))
    checksums = struct.pack(f"<{len(rows)}Q", *rows)
    checksums += struct.pack("<Q", xxh3(checksums))
    return start_of_file + b"".join(member.data for member in members) + checksums


def random_source(rng: np.random.Generator, tensors: dict[str, Decoded]) -> tuple[bytes, Object, list[Member]]:
    """A file that has all these tensors somewhere: (its bytes, `qzc.source_file`, the members that restore the rest)."""
    source, rest = b"", b""
    offsets: dict[str, int] = {}
    for name in rng.permutation(list(tensors)).tolist():
        gap = rng.bytes(int(rng.integers(0, 40) * rng.integers(0, 2)))
        raw = tensors[name].raw
        assert raw is not None
        rest += gap
        offsets[name] = len(source) + len(gap)
        source += gap + raw
    end = rng.bytes(int(rng.integers(0, 3)))
    source, rest = source + end, rest + end
    kind = str(rng.choice(["safetensors", "gguf"]))
    described: Object = {"kind": kind, "nbytes": len(source), "xxh3": f"{xxh3(source):016x}"}
    rows = struct.pack(f"<{len(offsets)}Q", *(offsets[name] for name in sorted(offsets)))
    packed = zlib.compress(rest, int(rng.integers(0, 10)))
    return (
        source,
        described,
        [
            Member("qzc.source.rest", "U8", (len(packed),), packed),
            Member("qzc.source.offsets", "U8", (len(offsets), 8), rows),
        ],
    )


def xxh3(data: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(data))


# ---------------------------------------------------------------------------------------------------------------------
# Random tensors (sections 1 to 3)


def random_plain(rng: np.random.Generator, name: str) -> Member:
    dtype = str(rng.choice(list(PLAIN_BITS)))
    shape = [int(size) for size in rng.integers(0, 5, rng.integers(0, 4))]
    if PLAIN_BITS[dtype] < 8:
        shape.append(4)  # whole bytes
    return Member(name, dtype, tuple(shape), rng.bytes(int(np.prod(shape)) * PLAIN_BITS[dtype] // 8))


def random_quantized(rng: np.random.Generator, name: str, shared: Shared) -> tuple[Coded, Decoded]:
    dtype, shape = str(rng.choice(["F64", "F32", "F16", "BF16"])), random_shape(rng)
    rows, columns = (shape[0], int(np.prod(shape[1:]))) if shape else (1, 1)
    num_bits, symmetric = int(rng.integers(1, 9)), bool(rng.random() < 0.5)
    strategy, group_size = str(rng.choice(["tensor", "channel", "group"])), None
    scale_shape: tuple[int, ...] = (1,) if strategy == "tensor" else (rows, 1)
    if strategy == "group":
        group_size = int(rng.integers(1, columns + 3))
        scale_shape = (rows, -(-columns // group_size))
    scale_dtype, scale = random_scale(rng, scale_shape)
    grid: Object = {"num_bits": num_bits, "symmetric": symmetric, "strategy": strategy}
    grid |= {"group_size": group_size, "scale_method": "absmax", "scale_dtype": SCALE_DTYPES[scale_dtype]}
    if grid not in shared.grids:
        shared.grids.append(grid | ({"unknown": 1} if rng.random() < 0.1 else {}))
    entry: Object = {"dtype": dtype, "shape": list(shape)}
    entry["grid"] = next(i for i, other in enumerate(shared.grids) if grid.items() <= other.items())
    records = random_records(rng, scale.itemsize)._replace(unit=0, lanes=1, gather=None)
    entry["scale"] = number_of(records, shared.records)

    codes = random_codes(rng, rows * columns, num_bits)
    row_class = rng.integers(0, rng.choice([2, 3, 256]), rows).astype(np.uint8) if rng.random() < 0.25 else None
    column_class = rng.integers(0, rng.choice([2, 4]), columns).astype(np.uint8) if rng.random() < 0.25 else None
    chunks = []
    for run in runs_of(codes.reshape(rows, columns), row_class, column_class):
        chunks += random_chunks(rng, run, num_bits, shared.banks)
    zero_point = np.full(scale_shape, 0.5 if num_bits == 1 else 1 << (num_bits - 1), np.float32)
    if not symmetric:
        zeros = random_codes(rng, scale.size, num_bits)
        chunks += random_chunks(rng, [int(zero) for zero in zeros], num_bits, shared.banks)
        zero_point = zeros.astype(np.float32).reshape(scale_shape)
    for (bits, _), plane in zip(records.fields, take_apart(scale.tobytes(), records), strict=True):
        chunks += random_chunks(rng, plane, bits, shared.banks)

    maps = []
    if row_class is not None:
        maps.append(Member(f"{name}.qzc.row_class", "U8", (rows,), row_class.tobytes()))
    if column_class is not None:
        maps.append(Member(f"{name}.qzc.column_class", "U8", (columns,), column_class.tobytes()))

    exact = scale.astype(np.float32)
    weights = np.zeros((rows, columns), np.float32)
    for r, c in np.ndindex(rows, columns):
        at = {"tensor": (0,), "channel": (r, 0), "group": (r, c // (group_size or 1))}[strategy]
        weights[r, c] = np.float32(np.float32(codes[r * columns + c]) - zero_point[at]) * exact[at]
    expected = Decoded(dtype, shape, None, codes.reshape(shape), zero_point, exact, weights.reshape(shape))
    return Coded(name, entry, chunks, maps), expected


def random_lossless(rng: np.random.Generator, name: str, shared: Shared) -> tuple[Coded, Decoded]:
    kind = rng.random()
    if kind < 0.25:
        return random_palette(rng, name, shared)
    records = random_records(rng, int(rng.choice([1, 2, 4, 8, 3, 18, 144])))
    spans = int(rng.integers(0, 2000) // (records.nbytes * records.lanes) if rng.random() < 0.9 else 0)
    raw = random_bytes(rng, spans * records.nbytes * records.lanes)
    entry, expected = random_entry(rng, raw, number_of(records, shared.records))
    planes, theirs = take_apart(raw, records), None
    if kind < 0.5:
        changed = np.frombuffer(raw, np.uint8) ^ (rng.random(len(raw)) < 0.1)
        shared.base[name] = changed.astype(np.uint8).tobytes()
        entry["base"] = f"{xxh3(shared.base[name]):016x}"
        theirs = take_apart(shared.base[name], records)
    chunks = []
    for number, ((bits, _), plane) in enumerate(zip(records.fields, planes, strict=True)):
        chunks += random_chunks(rng, plane, bits, shared.banks, theirs[number] if theirs else None)
    return Coded(name, entry, chunks, []), expected


def random_palette(rng: np.random.Generator, name: str, shared: Shared) -> tuple[Coded, Decoded]:
    if rng.random() < 0.4:
        return random_scaled(rng, name, shared)
    size, p = int(rng.choice([1, 2, 4, 8])), int(rng.choice([1, 2, 3, 5, 16, 17, 256]))
    values, numbers = rng.bytes(p * size), rng.integers(0, p, rng.integers(0, 600)).tolist()
    raw = b"".join(values[size * i : size * i + size] for i in numbers)
    entry, expected = random_entry(rng, raw, number_of(Records([(8, size)]), shared.records))
    entry["palette"] = p
    bits = next(bits for bits in range(1, 9) if 2**bits >= p)
    chunks = random_chunks(rng, numbers, bits, shared.banks) + random_chunks(rng, list(values), 8, shared.banks)
    return Coded(name, entry, chunks, []), expected


def random_scaled(rng: np.random.Generator, name: str, shared: Shared) -> tuple[Coded, Decoded]:
    """Values with scales: ordinary ones, and any bits."""
    dtype, group = str(rng.choice(["F32", "F16", "BF16"])), int(rng.choice([16, 17, 100, 2**31 - 1]))
    p, count = int(rng.choice([1, 2, 16, 17, 256])), int(rng.integers(0, 600))
    numbers = rng.integers(0, p, count)
    values, scales = random_floats(rng, p), random_floats(rng, -(-count // group))
    with np.errstate(all="ignore"):
        products = values[numbers] * scales[np.arange(count) // group]
        exact = products.astype({"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype])
    size = exact.itemsize
    nan = {"F32": b"\0\0\xc0\x7f", "F16": b"\0\x7e", "BF16": b"\xc0\x7f"}[dtype]
    raw = b"".join(nan if value != value else value.tobytes() for value in exact)
    entry: Object = {"dtype": dtype, "shape": [count], "records": number_of(Records([(8, size)]), shared.records)}
    entry |= {"palette": p, "group": group}
    bits = next(bits for bits in range(1, 9) if 2**bits >= p)
    chunks = random_chunks(rng, numbers.tolist(), bits, shared.banks)
    chunks += random_chunks(rng, list(values.tobytes()), 8, shared.banks)
    for plane in take_apart(scales.tobytes(), Records([(8, 1)] * 4, rotate=True)):
        chunks += random_chunks(rng, plane, 8, shared.banks)
    return Coded(name, entry, chunks, []), Decoded(dtype, (count,), raw)


def random_floats(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    if rng.random() < 0.5:
        return (rng.normal(0, 3, count).round() * 2.0**-8).astype(np.float32)
    return np.frombuffer(rng.bytes(4 * count), "<f4")


def random_entry(rng: np.random.Generator, raw: bytes, records: int) -> tuple[Object, Decoded]:
    """The entry of a lossless tensor of these bytes, of any dtype that can have them."""
    known = [dtype for dtype, bits in PLAIN_BITS.items() if 8 * len(raw) % bits == 0]
    if rng.random() < 0.2:
        shape = random_shape(rng)
        entry: Object = {"dtype": "Q4_K", "shape": list(shape), "nbytes": len(raw)}
        if rng.random() < 0.3:
            entry["dtype"], shape = "F4", (3, 5)  # does not fill whole bytes
            entry["shape"] = list(shape)
    else:
        dtype = str(rng.choice(known))
        count = 8 * len(raw) // PLAIN_BITS[dtype]
        shape = (count,) if count % 3 or rng.random() < 0.5 else (3, count // 3)
        if count == 1 and rng.random() < 0.5:
            shape = ()
        entry = {"dtype": dtype, "shape": list(shape)}
    if rng.random() < 0.1:
        entry["unknown"] = None
    return entry | {"records": records}, Decoded(str(entry["dtype"]), shape, raw)


def random_records(rng: np.random.Generator, size: int) -> Records:
    if rng.random() < 0.25:
        walks = random_walks(rng, size)
        return Records(fields_of(walks), gather=walks)
    fields: list[tuple[int, int]] = []
    left = 8 * size
    while left:
        bits = int(rng.integers(1, min(8, left) + 1))
        count = int(rng.integers(1, left // bits + 1)) if rng.random() < 0.5 else 1
        if len(fields) == 60:
            bits, count = 1, left
        fields.append((bits, count))
        left -= bits * count
    if rng.random() < 0.3:
        fields = [(8, size)]
    unit, lanes = 0, 1
    if rng.random() < 0.3:
        unit = int(rng.choice([unit for unit in range(1, size + 1) if size % unit == 0]))
        lanes = int(rng.integers(1, 5))
    return Records(fields, size in (1, 2, 4, 8) and bool(rng.random() < 0.5), unit, lanes)


def number_of(records: Records, known: list[Records]) -> int:
    if records not in known:
        known.append(records)
    return known.index(records)


def random_bytes(rng: np.random.Generator, size: int) -> bytes:
    kind = rng.random()
    if kind < 0.2:
        return rng.bytes(size)
    if kind < 0.4:
        return rng.normal(0, 0.1, size // 4 + 1).astype(np.float32).tobytes()[:size]
    return rng.choice(np.array([0, 1, 2, 128, 255], np.uint8), size, p=[0.6, 0.1, 0.1, 0.1, 0.1]).tobytes()


def take_apart(data: bytes, records: Records) -> list[list[int]]:
    """The planes of bytes: the codes of each field."""
    array = np.frombuffer(data, np.uint8)
    if records.unit:
        spans = array.reshape(-1, records.nbytes // records.unit, records.lanes, records.unit)
        array = spans.transpose(0, 2, 1, 3)
    bits = np.unpackbits(array.reshape(-1, records.nbytes), axis=1, bitorder="little")
    if records.rotate:
        bits = np.roll(bits, 1, axis=1)
    if records.gather is not None:
        order = [place for walk in records.gather for place in bits_of_walk(walk)]
        bits = bits[:, order]
    planes, at = [], 0
    for width, count in records.fields:
        field = bits[:, at : at + width * count].reshape(-1, width).astype(int)
        planes.append([int(code) for code in field @ (1 << np.arange(width))])
        at += width * count
    return planes


def bits_of_walk(walk: Walk) -> list[int]:
    """The bits of a record that the codes of a field have, code by code."""
    counts, *parts = walk
    codes: list[list[int]] = [[]]
    for n in counts:
        codes = [[*digits, i] for digits in codes for i in range(n)]
    return [
        offset + int(np.dot(digits, strides)) + bit
        for digits in codes
        for width, offset, *strides in parts
        for bit in range(width)
    ]


def random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    kind = rng.random()
    if kind < 0.3:
        return tuple(int(size) for size in rng.integers(0, 5, rng.integers(0, 5)))
    if kind < 0.4:
        return (int(rng.integers(1, 3000)),)
    return int(rng.integers(1, 50)), int(rng.integers(1, 200))


def random_scale(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[str, NDArray[np.generic]]:
    values = rng.lognormal(-4, 1, shape).astype(np.float32)
    dtype = str(rng.choice(list(SCALE_DTYPES)))
    if dtype == "F32":
        return dtype, values
    return dtype, values.astype(np.float16 if dtype == "F16" else ml_dtypes.bfloat16)


def random_codes(rng: np.random.Generator, count: int, num_bits: int) -> NDArray[np.uint8]:
    top = (1 << num_bits) - 1
    kind = rng.random()
    if kind < 0.1:
        return np.full(count, rng.integers(0, top + 1), np.uint8)
    if kind < 0.2:
        return rng.integers(0, top + 1, count).astype(np.uint8)
    center, spread = rng.integers(0, top + 1), rng.uniform(0.1, 0.1 + top / 8)
    codes: NDArray[np.uint8] = np.clip(np.rint(rng.normal(center, spread, count)), 0, top).astype(np.uint8)
    return codes


def runs_of(
    codes: NDArray[np.uint8], row_class: NDArray[np.uint8] | None, column_class: NDArray[np.uint8] | None
) -> list[list[int]]:
    """Plane 0 in code order, cut into runs: codes of a class, by row and then column."""
    classes = np.zeros(codes.shape, np.int64)
    if row_class is not None:
        classes += row_class[:, None]
    if column_class is not None:
        classes += column_class[None, :]
    return [[int(code) for code in codes[classes == value]] for value in np.unique(classes)]


# ---------------------------------------------------------------------------------------------------------------------
# Random chunks and tables (sections 4 and 6)


def random_chunks(
    rng: np.random.Generator, run: list[int], bits: int, banks: Banks, base: list[int] | None = None
) -> list[Chunk]:
    width = next(width for width in (1, 2, 4, 8) if width >= bits)
    unit = 8 // width
    cuts = {int(cut) * unit for cut in rng.integers(0, len(run) // unit + 1, rng.integers(0, 3))}
    edges = sorted(cuts | {0, len(run)})
    chunks = []
    for start, stop in itertools.pairwise(edges):
        codes, delta = run[start:stop], 0
        if base is not None:
            delta, pairs = int(rng.integers(3)), list(zip(codes, base[start:stop], strict=True))
            codes = [
                code ^ other if delta == 1 else (code - other) % 2**bits if delta else code for code, other in pairs
            ]
        chunks.append(random_chunk(rng, codes, width, banks)._replace(delta=delta))
    return chunks


def random_chunk(rng: np.random.Generator, codes: list[int], width: int, banks: Banks) -> Chunk:
    """The first of a random order of coders that does not grow; raw never does."""
    buffer = pack(codes, width)
    for coder in (int(coder) for coder in rng.permutation([0, 1, 2, 3, 4, 5, 6, 8, 9])):
        if coder == 0 or (coder == 1 and len(set(buffer)) == 1):
            return Chunk(len(codes), coder, 0, 0, buffer if coder == 0 else buffer[:1])
        if coder < 2:
            continue
        if coder == 6:
            chunk = random_escape_chunk(rng, buffer, banks[6])
            if chunk is None:
                continue
            return chunk._replace(codes=len(codes))
        if coder == 9:
            payload = encode_short256(buffer, *random_payload_table(rng, buffer), lanes := int(rng.choice([1, 2, 4])))
            if len(payload) <= len(buffer):
                return Chunk(len(codes), coder, lanes, 0, payload)
            continue
        low, coded = split(buffer) if coder == 5 else (b"", buffer)  # what has symbols
        kind = 2 if coder == 5 else coder  # of table
        streams = int(rng.integers(1, 2 + len(coded) // 300)) if coder != 4 else 0
        if coder == 8:
            streams = int(rng.choice([1, 2, 4]))
        elif streams and (streams - 1) * stream_size(len(coded), streams) >= len(coded):
            continue
        symbols = {nibble for byte in coded for nibble in (byte & 15, byte >> 4)} if kind in (2, 8) else set(coded)
        known = [table for table in banks[kind] if all(table[symbol] for symbol in symbols)]
        shared = bool(known) and rng.random() < 0.3
        table = known[0] if shared else random_table(rng, kind, coded)
        if kind == 8:
            payload = encode_short16(coded, table, streams)
        else:
            payload = low + (encode_huffman(coded, table) if kind == 4 else encode_ans(coded, table, kind, streams))
        if len(payload) <= len(buffer):
            if not shared:
                banks[kind].append(table)
            return Chunk(len(codes), coder, streams, banks[kind].index(table), payload)
        if rng.random() < 0.05:
            banks[kind].append(table)  # a row that no chunk needs is no error
    raise AssertionError("raw always fits")


def random_escape_chunk(rng: np.random.Generator, buffer: bytes, bank: list[list[int]]) -> Chunk | None:
    """None if it would grow."""
    values = sorted({int(value) for value in rng.choice(list(buffer), rng.integers(1, 16))})
    symbols = escape(buffer, values)[0]
    frequencies = random_table(rng, 2, pack([*symbols, *range(len(values)), 15, 15], 4))
    frequencies = [*frequencies[: len(values)], *[0] * (15 - len(values)), 256 - sum(frequencies[: len(values)])]
    if frequencies[15] > 255:
        return None
    table = [*frequencies, *values, *[0] * (15 - len(values))]
    payload = encode_escape(buffer, table, 1)
    if len(payload) > len(buffer):
        return None
    bank.append(table)
    return Chunk(0, 6, 1, len(bank) - 1, payload)


def random_payload_table(rng: np.random.Generator, buffer: bytes) -> tuple[list[int], int, int]:
    """(frequencies, bits of precision, kind) of a table of coder 9 that knows every byte of the buffer."""
    table, kind = random_table(rng, 3, buffer), int(rng.integers(2))
    precision = int(rng.integers(8, 16))
    scale = 2.0 ** (precision - 12)
    table = [max(1, int(f * scale)) if f else 0 for f in table]
    largest = table.index(max(table))
    table[largest] += 2**precision - sum(table)
    if table[largest] < 1:  # too many symbols for so few bits
        return random_payload_table(rng, buffer)
    return table, precision, kind


def random_table(rng: np.random.Generator, coder: int, buffer: bytes) -> list[int]:
    """Any valid table that knows every symbol of the buffer, often one that suits it."""
    symbols, total = {2: (16, 256), 3: (256, 4096), 4: (256, 2048), 8: (16, 4096)}[coder]
    nibbles = [nibble for byte in buffer for nibble in (byte & 15, byte >> 4)]
    counts = np.bincount(np.array(nibbles if coder in (2, 8) else list(buffer)), minlength=symbols).astype(float)
    if coder == 4 and np.count_nonzero(counts) == 1 and rng.random() < 0.5:
        return [int(count > 0) for count in counts]
    counts[rng.integers(0, symbols, rng.integers(0, 4))] += rng.random() + 1e-9
    counts[np.argmin(counts)] += 1e-9  # at least two symbols
    used = [int(symbol) for symbol in np.argsort(counts) if counts[symbol] > 0]
    table = [0] * symbols
    if coder == 4:
        # Split random leaves of a tree until there are enough; short codes to frequent symbols, or not.
        leaves = [0]
        while len(leaves) < len(used):
            depths = [depth for depth in leaves if depth < 11]
            depth = min(depths) if rng.random() < 0.2 else int(rng.choice(depths))
            leaves.remove(depth)
            leaves += [depth + 1, depth + 1]
        leaves.sort(reverse=True)
        for symbol, depth in zip(used, leaves if rng.random() < 0.8 else rng.permutation(leaves), strict=True):
            table[symbol] = int(depth)
        return table
    for symbol in used:
        table[symbol] = max(1, int(counts[symbol] / counts.sum() * total))
    while sum(table) != total:  # the largest pays, or gets what is left unless that would be everything
        largest = table.index(max(table))
        others = [symbol for symbol in used if symbol != largest]
        step = 1 if sum(table) < total else -1
        table[largest if step < 0 or table[largest] < total - len(others) else others[-1]] += step
    return table


def table_row(coder: int, table: Sequence[int]) -> bytes:
    if coder == 2:
        return bytes(table)
    if coder == 6:
        return bytes([*table, 0])
    if coder in (3, 8):
        return b"".join((a | b << 12).to_bytes(3, "little") for a, b in zip(table[::2], table[1::2], strict=True))
    return bytes(a | b << 4 for a, b in zip(table[::2], table[1::2], strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Coders (section 5)


def pack(codes: Sequence[int], width: int) -> bytes:
    bits = sum(code << (width * i % 8) << 8 * (width * i // 8) for i, code in enumerate(codes))
    return bits.to_bytes(-(-len(codes) * width // 8), "little")


def split(buffer: bytes) -> tuple[bytes, bytes]:
    """The packed low nibbles and the packed high nibbles of coder 5."""
    moved = [(byte + 8) % 256 for byte in buffer]
    return pack([v % 16 for v in moved], 4), pack([v // 16 for v in moved], 4)


def escape(buffer: bytes, values: Sequence[int]) -> tuple[list[int], bytes]:
    """The symbols of coder 6, and the bytes that have none."""
    symbols = [values.index(byte) if byte in values else 15 for byte in buffer]
    return symbols, bytes(byte for byte in buffer if byte not in values)


def encode_escape(buffer: bytes, table: Sequence[int], streams: int) -> bytes:
    symbols, escaped = escape(buffer, table[16 : 16 + sum(frequency > 0 for frequency in table[:15])])
    return struct.pack("<I", len(escaped)) + escaped + encode_ans(pack(symbols, 4), table[:16], 2, streams)


def encode_short16(buffer: bytes, frequencies: Sequence[int], lanes: int) -> bytes:
    return encode_lanes([nibble for byte in buffer for nibble in (byte & 15, byte >> 4)], frequencies, 12, lanes)


def encode_short256(buffer: bytes, frequencies: Sequence[int], precision: int, kind: int, lanes: int) -> bytes:
    head = payload_table(frequencies, precision, kind)
    return head + encode_lanes(list(buffer), frequencies, precision, lanes)


def encode_lanes(symbols: Sequence[int], frequencies: Sequence[int], precision: int, lanes: int) -> bytes:
    states, words = [1] if lanes == 1 else [2**16] * lanes, []
    for i in reversed(range(len(symbols))):
        x, f = states[i % lanes], frequencies[symbols[i]]
        if x >= f * 2 ** (32 - precision):
            words.append(x % 2**16)
            x //= 2**16
        states[i % lanes] = x // f * 2**precision + x % f + sum(frequencies[: symbols[i]])
    first = states[0].to_bytes(-(-states[0].bit_length() // 8), "little")
    return first + struct.pack(f"<{lanes - 1}I{len(words)}H", *states[1:], *reversed(words))


def payload_table(frequencies: Sequence[int], precision: int, kind: int) -> bytes:
    """The table at the beginning of a payload of coder 9."""
    used = [symbol for symbol in range(256) if frequencies[symbol]]
    bits, before, a = "", 0, 2
    for symbol in range(used[0], used[-1]):
        f, m = frequencies[symbol], before if kind else a // 2
        number = f
        if not kind and f <= 2 * before:
            number = 2 * (f - before) if f >= before else 2 * (before - f) - 1
        order = max(0, m.bit_length() - 1)
        digits = format(number + 2**order, "b")
        bits += "0" * (len(digits) - 1 - order) + "1" + digits[:0:-1]
        before, a = f, (a + 1) // 2 + number
    bits += "0" * (-len(bits) % 8)
    return bytes([used[0], used[-1], precision + 16 * kind]) + int("0" + bits[::-1], 2).to_bytes(
        len(bits) // 8, "little"
    )


def stream_size(n: int, streams: int) -> int:
    return -(-n // (32 * streams)) * 32


def encode_ans(buffer: bytes, frequencies: Sequence[int], coder: int, streams: int) -> bytes:
    q = stream_size(len(buffer), streams)
    parts = [encode_ans_stream(buffer[k * q : (k + 1) * q], frequencies, coder) for k in range(streams)]
    sizes = struct.pack(f"<{streams - 1}I", *(len(words) for _, words in parts[:-1]))
    states = b"".join(pack_states(states) for states, _ in parts)
    return sizes + states + b"".join(struct.pack(f"<{len(words)}H", *words) for _, words in parts)


def pack_states(states: Sequence[int]) -> bytes:
    """32 numbers of 17 to 32 bits: how many bits, the low halves, and of the high ones what is below the highest bit."""
    lengths = [state.bit_length() - 17 for state in states]
    bits = "".join(format(x >> 16, "b")[:0:-1] for x in states)  # the lowest bit first
    bits += "0" * (-len(bits) % 16)
    high = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    return pack(lengths, 4) + struct.pack("<32H", *(state % 2**16 for state in states)) + high


def encode_ans_stream(data: bytes, frequencies: Sequence[int], coder: int) -> tuple[list[int], list[int]]:
    """(initial states, words) of the decoder: it all runs backwards, from the tail to the first byte."""
    bits, bias = (8, 128) if coder == 2 else (12, 0)
    starts = [sum(frequencies[:symbol]) for symbol in range(len(frequencies))]
    body = max(0, len(data) - 64)
    tail = data[body:].ljust(64, b"\0")
    states = [2**16 + tail[2 * lane] + 256 * tail[2 * lane + 1] for lane in range(32)]
    words = []
    for j in reversed(range(body)):
        symbols = [data[j] & 15, data[j] >> 4] if coder == 2 else [data[j]]
        x = states[j % 32]
        # The decoder refills exactly if it falls below 2^16 here; it does if the state would grow beyond 2^32 else.
        limit = 2**32
        for symbol in symbols:
            limit = limit // 2**bits * frequencies[symbol]
        if x >= limit:
            words.append(x % 2**16)
            x //= 2**16
        for symbol in reversed(symbols):
            quotient, slot = divmod(x, frequencies[symbol])
            x = quotient * 2**bits + (starts[symbol] + slot - bias) % 2**bits
        states[j % 32] = x
    return states, words[::-1]


def encode_huffman(buffer: bytes, lengths: Sequence[int]) -> bytes:
    codes: dict[int, str] = {}
    code = 0
    for length in range(1, 12):
        for symbol in range(256):
            if lengths[symbol] == length:
                codes[symbol] = format(code, f"0{length}b")
                code += 1
        code <<= 1
    streams = []
    for k in range(10):
        bits = "".join(codes[byte] for byte in buffer[k::10])
        streams.append(int("0" + bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little"))
    return struct.pack("<10I", *(len(stream) for stream in streams)) + b"".join(streams)
