"""Reference decoder of the .qzc format, written from docs/SPEC.md alone.

It shares no code with the package and prefers plain to fast: the sections below are the sections of the document, in
its order, and each broken *must* raises a ValueError that names the section and the field. It is the oracle for the
real reader, so keep it free of anything that is in there.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray


@dataclass(frozen=True)
class Decoded:
    """A tensor of the file: `raw` for one that is not coded, the four arrays for one that is."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes | None = None  # little-endian, row-major
    codes: NDArray[np.uint8] | None = None  # of `shape`
    zero_point: NDArray[np.float32] | None = None  # of the scale shape
    scale: NDArray[np.float32] | None = None  # of the scale shape
    dequantized: NDArray[np.float32] | None = None  # of `shape`


def decode_file(data: bytes) -> dict[str, Decoded]:
    """All tensors of a .qzc file by name, ties included.

    Raises ValueError if the bytes break any rule of the format, and nothing else as long as there is memory.
    """
    base, members, metadata = read_header(data)  # section 1
    check_checksums(data, base, members)  # section 7
    coded, grids, ties = read_metadata(metadata)  # section 2
    check_names(members, coded, ties)
    banks = read_banks(members)  # section 6
    tensors = {
        name: Decoded(member.dtype, member.shape, raw=member.data)
        for name, member in members.items()
        if not is_reserved(name)
    }
    layouts = {name: read_layout(name, *entry, grids, base, members) for name, entry in coded.items()}  # 8
    for name, layout in layouts.items():
        with np.errstate(all="ignore"):  # scales of infinity and NaN are not against the rules
            tensors[name] = decode_tensor(name, layout, members, banks)
    return tensors | {name: tensors[target] for name, target in ties.items()}


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
CODED_MEMBERS = ("payload", "chunks", "scale", "row_class", "column_class")
BANK_WIDTHS = {"qzc.tables.ans16": 16, "qzc.tables.ans256": 384, "qzc.tables.huffman": 128}
CHECKSUMS = "qzc.checksums"


@dataclass(frozen=True)
class Member:
    dtype: str
    shape: tuple[int, ...]
    begin: int  # from the start of the data
    data: bytes


def read_header(data: bytes) -> tuple[int, dict[str, Member], dict[str, str]]:
    """(start of the data, the members in the order of the data, `__metadata__`)."""
    where = "section 1, header"
    must(len(data) >= 8, "section 1, header_size", "the file ends inside it")
    header_size = int.from_bytes(data[:8], "little")
    base = 8 + header_size
    must(header_size <= MAX_HEADER, "section 1, header_size", f"{header_size} is too large")
    must(base <= len(data), "section 1, header_size", "the file ends inside the header")
    must(base % 64 == 0, "section 1, header_size", "8 + header_size is not a multiple of 64")
    try:
        text = data[8:base].decode("utf-8").rstrip(" ")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {error}") from None
    must(text[:1] == "{" and text[-1:] == "}", where, "not an object padded with spaces")
    header = an_object(parse_json(text, where), where)

    metadata = strings(header.pop("__metadata__", None), "section 1, __metadata__")
    found: list[tuple[int, int, str, Member]] = []
    for name, value in header.items():
        where = f"section 1, member {name!r}"
        name.encode()  # refuses lone surrogates: no UTF-8 text contains them, but JSON escapes can
        fields = an_object(value, where)
        must(set(fields) == {"dtype", "shape", "data_offsets"}, where, "keys")
        dtype = a_text(fields["dtype"], where)
        shape = a_shape(fields["shape"], where)
        offsets = a_list(fields["data_offsets"], where)
        must(len(offsets) == 2, where, "data_offsets")
        begin, end = (an_int(offset, where, 0, len(data) - base) for offset in offsets)
        if dtype in DTYPE_BITS:  # members of other dtypes may have any length
            must(8 * (end - begin) == math.prod(shape) * DTYPE_BITS[dtype], where, "data_offsets do not fit the shape")
        found.append((begin, end, name, Member(dtype, shape, begin, data[base + begin : base + end])))

    # The order of section 7: by start; members without data first, by name.
    found.sort(key=lambda item: (item[0], item[1] > item[0], item[2]))
    position = 0
    for begin, end, name, _ in found:
        must(begin == position, f"section 1, member {name!r}", f"begins at {begin}, not {position}: a hole or overlap")
        position = end
    must(base + position == len(data), "section 1, data", "bytes after the last member")
    members = {name: member for _, _, name, member in found}
    must(bool(found) and found[-1][2] == CHECKSUMS, "section 1, qzc.checksums", "must be the last member in the data")
    return base, members, metadata


def is_reserved(name: str) -> bool:
    return ".qzc." in name or name.startswith("qzc.")


def parse_json(text: str, where: str) -> object:
    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        must(len(result) == len(pairs), where, "duplicate key")
        return result

    def no_constant(constant: str) -> object:
        raise ValueError(f"{where}: {constant} is not JSON")

    try:
        value: object = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply") from None
    except json.JSONDecodeError as error:
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


def an_int(value: object, where: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: not an integer")
    must(low <= value <= high, where, f"{value} is not in {low} .. {high}")
    return value


def a_shape(value: object, where: str) -> tuple[int, ...]:
    return tuple(an_int(size, where, 0, 2**63 - 1) for size in a_list(value, where))


def strings(value: object, where: str) -> dict[str, str]:
    return {key: a_text(text, where) for key, text in an_object(value, where).items()}


# ---------------------------------------------------------------------------------------------------------------------
# 2. Metadata


@dataclass(frozen=True)
class Grid:
    num_bits: int
    symmetric: bool
    strategy: str
    group_size: int
    scale_dtype: str

    @property
    def storage_bits(self) -> int:
        return next(width for width in (1, 2, 4, 8) if width >= self.num_bits)


def read_metadata(
    metadata: dict[str, str],
) -> tuple[dict[str, tuple[str, tuple[int, ...], int]], list[Grid], dict[str, str]]:
    """(coded tensors: name -> (dtype, shape, grid number); grids; ties: name -> name)."""
    must(metadata.get("format") == "qzc", "section 2, format", "not qzc")
    must(metadata.get("qzc.version") == "0.1", "section 2, qzc.version", "not 0.1")
    for key in ("qzc.writer", "qzc.coded"):
        must(key in metadata, f"section 2, {key}", "is missing")
    coded = {}
    where = "section 2, qzc.coded"
    for name, value in an_object(parse_json(metadata["qzc.coded"], where), where).items():
        entry = an_object(value, where)
        must({"dtype", "shape", "grid"} <= set(entry), where, f"{name!r} lacks a key")
        dtype = a_text(entry["dtype"], where)
        must(dtype in ("F64", "F32", "F16", "BF16"), where, f"{name!r} has dtype {dtype!r}")
        coded[name] = (dtype, a_shape(entry["shape"], where), an_int(entry["grid"], where, 0, 2**63 - 1))
    where = "section 2, qzc.grids"
    grids = [read_grid(value) for value in a_list(parse_json(metadata.get("qzc.grids", "[]"), where), where)]
    ties = strings(parse_json(metadata.get("qzc.ties", "{}"), "section 2, qzc.ties"), "section 2, qzc.ties")
    strings(parse_json(metadata.get("qzc.source", "{}"), "section 2, qzc.source"), "section 2, qzc.source")
    return coded, grids, ties


def check_names(
    members: dict[str, Member], coded: dict[str, tuple[str, tuple[int, ...], int]], ties: dict[str, str]
) -> None:
    stored = {name for name in members if not is_reserved(name)}
    for name in coded:
        must(name not in stored, "section 2, qzc.coded", f"{name!r} is stored uncoded, too")
        for kind in CODED_MEMBERS[:3]:
            must(f"{name}.qzc.{kind}" in members, "section 2, qzc.coded", f"{name!r} has no {kind}")
    stored |= set(coded)
    for name in (*coded, *ties):
        must(not is_reserved(name), "section 1, names", f"{name!r} is reserved")
    for name, target in ties.items():
        must(target in stored, "section 2, qzc.ties", f"{name!r} is tied to {target!r}, which is not stored")
        must(name not in stored, "section 2, qzc.ties", f"{name!r} is stored and tied")
    for name in members:
        if is_reserved(name) and name != CHECKSUMS and name not in BANK_WIDTHS:
            owner, _, kind = name.rpartition(".qzc.")
            must(owner in coded and kind in CODED_MEMBERS, "section 2, qzc.coded", f"{name!r} belongs to no tensor")


# ---------------------------------------------------------------------------------------------------------------------
# 3. Grids: from codes to weights

SCALE_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def read_grid(value: object) -> Grid:
    where = "section 3, grid"
    fields = an_object(value, where)
    keys = {"num_bits", "symmetric", "strategy", "group_size", "scale_method", "scale_dtype"}
    must(keys <= set(fields), where, "lacks a key")
    num_bits = an_int(fields["num_bits"], f"{where} num_bits", 1, 8)
    symmetric, strategy, group_size = fields["symmetric"], a_text(fields["strategy"], where), 1
    must(isinstance(symmetric, bool), f"{where} symmetric", "not true or false")
    must(strategy in ("tensor", "channel", "group"), f"{where} strategy", f"unknown {strategy!r}")
    if strategy == "group":
        group_size = an_int(fields["group_size"], f"{where} group_size", 1, 2**63 - 1)
    else:
        must(fields["group_size"] is None, f"{where} group_size", f"not null, but strategy is {strategy!r}")
    a_text(fields["scale_method"], f"{where} scale_method")
    scale_dtype = a_text(fields["scale_dtype"], where)
    must(scale_dtype in SCALE_DTYPES, f"{where} scale_dtype", f"unknown {scale_dtype!r}")
    return Grid(num_bits, symmetric is True, strategy, group_size, SCALE_DTYPES[scale_dtype])


def read_scale(member: Member, grid: Grid, rows: int, columns: int, where: str) -> NDArray[np.float32]:
    expected: tuple[int, ...] = (1,)
    if grid.strategy == "channel":
        expected = (rows, 1)
    if grid.strategy == "group":
        expected = (rows, -(-columns // grid.group_size))
    must(member.dtype == grid.scale_dtype, where, f"dtype {member.dtype}, but the grid says {grid.scale_dtype}")
    must(member.shape == expected, where, f"shape {member.shape}, not {expected}")
    if member.dtype == "F16":
        return np.frombuffer(member.data, "<f2").astype(np.float32).reshape(expected)
    if member.dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(member.data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(expected)
    return np.frombuffer(member.data, "<f4").astype(np.float32).reshape(expected)


def read_class(members: dict[str, Member], name: str, size: int) -> NDArray[np.uint8] | None:
    if name not in members:
        return None
    member = members[name]
    must(member.dtype == "U8" and member.shape == (size,), f"section 3, {name!r}", "dtype or shape")
    return np.frombuffer(member.data, np.uint8)


def code_order(rows: int, columns: int, row_class: object, column_class: object) -> list[list[int]]:
    """The runs of plane 0: for each class that occurs, the row-major positions of its codes."""
    if row_class is None and column_class is None:
        return [list(range(rows * columns))] if rows * columns else []
    row_classes = [0] * rows if row_class is None else [int(c) for c in np.asarray(row_class)]
    column_classes = [0] * columns if column_class is None else [int(c) for c in np.asarray(column_class)]
    runs: dict[int, list[int]] = {}
    for r in range(rows):
        for c in range(columns):
            runs.setdefault(row_classes[r] + column_classes[c], []).append(r * columns + c)
    return [runs[key] for key in sorted(runs)]


def decode_tensor(name: str, layout: Layout, members: dict[str, Member], banks: dict[int, list[list[int]]]) -> Decoded:
    grid, rows, columns, scale = layout.grid, layout.rows, layout.columns, layout.scale
    row_class = read_class(members, f"{name}.qzc.row_class", rows)
    column_class = read_class(members, f"{name}.qzc.column_class", columns)
    payload = members[f"{name}.qzc.payload"].data
    flat = np.zeros(rows * columns, np.uint8)
    left = iter(enumerate(layout.chunks))
    for run in code_order(rows, columns, row_class, column_class):
        flat[run] = decode_run(len(run), 0, grid, left, payload, banks, name)
    zero_point = np.full(scale.shape, 0.5 if grid.num_bits == 1 else 2 ** (grid.num_bits - 1), np.float32)
    if layout.zero_points:
        values = decode_run(layout.zero_points, 1, grid, left, payload, banks, name)
        zero_point = np.array(values, np.float32).reshape(scale.shape)

    weights = np.zeros((rows, columns), np.float32)
    if weights.size:
        r, c = np.arange(rows)[:, None], np.arange(columns)[None, :]
        owner = {"tensor": (0 * r + 0 * c,), "channel": (r, 0 * c), "group": (r, c // grid.group_size)}[grid.strategy]
        weights = (flat.reshape(rows, columns).astype(np.float32) - zero_point[owner]) * scale[owner]
    shape = layout.shape
    return Decoded(layout.dtype, shape, None, flat.reshape(shape), zero_point, scale, weights.reshape(shape))


# ---------------------------------------------------------------------------------------------------------------------
# 4. Chunks


@dataclass(frozen=True)
class Chunk:
    offset: int
    nbytes: int
    codes: int
    table: int
    coder: int
    plane: int
    streams: int
    reserved: int
    checksum: int


def read_chunks(member: Member, sizes: tuple[int, int], where: str) -> list[Chunk]:
    must(member.dtype == "U8" and member.shape[1:] == (32,), f"{where} chunks", "dtype or shape")
    chunks = [Chunk(*row) for row in struct.iter_unpack("<QIIIBBBBQ", member.data)]
    for number, chunk in enumerate(chunks):
        here = f"{where} chunk {number}"
        must(1 <= chunk.codes <= 2**24, f"{here} codes", f"{chunk.codes} is not in 1 .. 2^24")
        must(chunk.coder <= 5, f"{here} coder", f"unknown {chunk.coder}")
        must(chunk.plane <= 1, f"{here} plane", f"unknown {chunk.plane}")
        must((chunk.streams >= 1) == (chunk.coder in (2, 3, 5)), f"{here} streams", str(chunk.streams))
        must(chunk.table == 0 or chunk.coder >= 2, f"{here} table", "must be 0")
        must(chunk.reserved == 0, f"{here} reserved", "must be 0")
    planes = [chunk.plane for chunk in chunks]
    must(planes == sorted(planes), f"{where} chunks plane", "order")
    for plane, size in enumerate(sizes):
        codes = sum(chunk.codes for chunk in chunks if chunk.plane == plane)
        must(codes == size, f"{where} chunks codes", f"plane {plane} has {size} codes, its chunks {codes}")
    return chunks


def check_payload(payload: Member, base: int, chunks: list[Chunk], where: str) -> None:
    """Chunks in order, aligned in the file, and nothing but short runs of zeros between them."""
    must(payload.dtype == "U8" and len(payload.shape) == 1, where, "dtype or shape")
    must(bool(chunks) or not payload.data, where, "no chunks, but not empty")
    if not chunks:
        return
    start, position, alignment = base + payload.begin, 0, 64
    for number, chunk in enumerate(chunks):
        here = f"{where} chunk {number}"
        must(position <= chunk.offset, f"{here} offset", "overlaps the one before")
        must(chunk.offset + chunk.nbytes <= len(payload.data), f"{here} nbytes", "ends outside the payload")
        must((start + chunk.offset) % alignment == 0, f"{here} offset", f"not a multiple of {alignment} of the file")
        must(chunk.offset - position < alignment, f"{here} offset", "the gap before is too long")
        must(not any(payload.data[position : chunk.offset]), f"{here} gap", "not zero")
        must(
            xxh3(payload.data[chunk.offset : chunk.offset + chunk.nbytes]) == chunk.checksum, f"{here} checksum", "bad"
        )
        position, alignment = chunk.offset + chunk.nbytes, 16
    must((start + len(payload.data)) % 16 == 0, where, "does not end on a multiple of 16 of the file")
    must(len(payload.data) - position < 16, where, "too long")
    must(not any(payload.data[position:]), f"{where} gap", "not zero at the end")


def decode_run(
    size: int,
    plane: int,
    grid: Grid,
    chunks: Iterator[tuple[int, Chunk]],
    payload: bytes,
    banks: dict[int, list[list[int]]],
    name: str,
) -> list[int]:
    """The `size` codes of one run from as many chunks as it takes."""
    codes: list[int] = []
    width = grid.storage_bits
    while len(codes) < size:
        number, chunk = next(chunks)  # the totals were checked, so there is one
        where = f"section 4, {name!r} chunk {number}"
        must(chunk.plane == plane, f"{where} plane", "order")
        must(len(codes) + chunk.codes <= size, f"{where} codes", "the chunk crosses the end of its run")
        last = len(codes) + chunk.codes == size
        must(last or chunk.codes % (8 // width) == 0, f"{where} codes", "not a multiple of 8 / w")
        nbytes = -(-chunk.codes * width // 8)
        must(chunk.nbytes <= nbytes, f"{where} nbytes", "the chunk is larger than its packed codes")
        data = payload[chunk.offset : chunk.offset + chunk.nbytes]
        buffer = decode_chunk(data, chunk, nbytes, banks, f"section 5, {name!r} chunk {number}")
        values = [byte >> shift & (1 << width) - 1 for byte in buffer for shift in range(0, 8, width)]
        must(not any(values[chunk.codes :]), f"{where} codes", "unused bits of the last byte are not zero")
        del values[chunk.codes :]
        must(max(values) < 2**grid.num_bits, f"section 3, {name!r} chunk {number} codes", "above 2^num_bits - 1")
        codes += values
    return codes


# ---------------------------------------------------------------------------------------------------------------------
# 5. Coders


def decode_chunk(data: bytes, chunk: Chunk, n: int, banks: dict[int, list[list[int]]], where: str) -> bytes:
    """The packed buffer, `n` bytes, of one chunk."""
    if chunk.coder == 0:
        must(len(data) == n, f"{where} raw", "wrong size")
        return data
    if chunk.coder == 1:
        must(len(data) == 1, f"{where} constant", "wrong size")
        return data * n
    bank = banks[2 if chunk.coder == 5 else chunk.coder]
    must(chunk.table < len(bank), f"section 4, {where} table", f"row {chunk.table} of {len(bank)}")
    if chunk.coder == 4:
        return decode_huffman(data, bank[chunk.table], n, f"{where} huffman")
    if chunk.coder == 5:
        return decode_split(data, bank[chunk.table], chunk.streams, n, f"{where} split8")
    return decode_ans(data, bank[chunk.table], chunk.coder, chunk.streams, n, f"{where} ans")


def decode_ans(data: bytes, frequencies: list[int], coder: int, streams: int, n: int, where: str) -> bytes:
    q = -(-n // (32 * streams)) * 32
    must((streams - 1) * q < n, f"{where} streams", "one of them covers no byte")
    must(len(data) >= 132 * streams, where, "too short")
    words = struct.unpack_from(f"<{streams}I", data, 0)
    states = struct.unpack_from(f"<{32 * streams}I", data, 4 * streams)
    must(len(data) == 132 * streams + 2 * sum(words), f"{where} words", "do not fill the payload")
    buffer, position = b"", 132 * streams
    for k in range(streams):
        stream = struct.unpack_from(f"<{words[k]}H", data, position)
        position += 2 * words[k]
        m = min((k + 1) * q, n) - k * q
        buffer += decode_ans_stream(stream, states[32 * k : 32 * k + 32], frequencies, coder, m, f"{where} stream {k}")
    return buffer


def decode_ans_stream(
    stream: tuple[int, ...], initial: tuple[int, ...], frequencies: list[int], coder: int, m: int, where: str
) -> bytes:
    bits, bias = (8, 128) if coder == 2 else (12, 0)
    symbols = [symbol for symbol, frequency in enumerate(frequencies) for _ in range(frequency)]
    starts = [sum(frequencies[:symbol]) for symbol in range(len(frequencies))]
    states, words = list(initial), iter(stream)
    must(min(states) >= 2**16, f"{where} states", "an initial state is below 2^16")

    def decode_symbol(x: int) -> tuple[int, int]:
        slot = (x + bias) % 2**bits
        symbol = symbols[slot]
        return symbol, frequencies[symbol] * (x // 2**bits) + slot - starts[symbol]

    body = max(0, m - 64)
    out = bytearray()
    for j in range(body):  # steps of 32 bytes, lane after lane: the order of the bytes
        x = states[j % 32]
        byte, x = decode_symbol(x)
        if coder == 2:
            high, x = decode_symbol(x)
            byte |= high << 4
        if x < 2**16:
            word = next(words, None)
            must(word is not None, f"{where} words", "too few")
            x = x * 2**16 + (word or 0)
        states[j % 32] = x
        out.append(byte)
    must(next(words, None) is None, f"{where} words", "too many")
    must(all(2**16 <= x < 2**17 for x in states), f"{where} states", "a final state is not in 2^16 .. 2^17 - 1")
    tail = struct.pack("<32H", *(x - 2**16 for x in states))
    must(not any(tail[m - body :]), f"{where} tail", "not zero beyond the tail")
    return bytes(out) + tail[: m - body]


def decode_huffman(data: bytes, lengths: list[int], n: int, where: str) -> bytes:
    codes: dict[tuple[int, int], int] = {}  # (length, code) -> symbol
    code, last = -1, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        code = (code + 1) << (length - last) if codes else 0
        codes[length, code] = symbol
        last = length
    must(len(data) >= 40, where, "too short")
    sizes = struct.unpack_from("<10I", data)
    must(len(data) == 40 + sum(sizes), f"{where} sizes", "do not fill the payload")
    out, position = bytearray(n), 40
    for k, size in enumerate(sizes):
        stream = data[position : position + size]
        position += size
        used = 0
        for j in range(k, n, 10):
            length = code = 0
            while (length, code) not in codes:
                must(length < 11 and used < 8 * size, f"{where} stream {k}", "no such code")
                code = code << 1 | stream[used // 8] >> used % 8 & 1
                length, used = length + 1, used + 1
            out[j] = codes[length, code]
        must(size == -(-used // 8), f"{where} sizes", f"stream {k} has unused bytes")
        must(used % 8 == 0 or stream[-1] >> used % 8 == 0, f"{where} stream {k}", "unused bits are not zero")
    return bytes(out)


def decode_split(data: bytes, frequencies: list[int], streams: int, n: int, where: str) -> bytes:
    h = -(-n // 2)
    must(len(data) >= h, f"{where} low", "too short")
    high = decode_ans(data[h:], frequencies, 2, streams, h, where)
    nibbles = [[nibble for byte in packed for nibble in (byte & 15, byte >> 4)] for packed in (data[:h], high)]
    must(not any(nibbles[0][n:]), f"{where} low", "unused bits of the last byte are not zero")
    must(not any(nibbles[1][n:]), f"{where} high", "unused bits of the last byte are not zero")
    return bytes((high << 4 | low) - 8 & 255 for low, high in zip(*nibbles, strict=True))[:n]


# ---------------------------------------------------------------------------------------------------------------------
# 6. Table banks


def read_banks(members: dict[str, Member]) -> dict[int, list[list[int]]]:
    """Coder -> rows, each the frequencies or code lengths of all symbols."""
    banks: dict[int, list[list[int]]] = {}
    for coder, (name, width) in enumerate(BANK_WIDTHS.items(), start=2):
        banks[coder] = []
        if name not in members:
            continue
        member, where = members[name], f"section 6, {name}"
        must(member.dtype == "U8" and member.shape[1:] == (width,), where, "dtype or shape")
        for row in range(member.shape[0]):
            banks[coder].append(read_table(coder, member.data[row * width : (row + 1) * width], f"{where} row {row}"))
    return banks


def read_table(coder: int, row: bytes, where: str) -> list[int]:
    if coder == 2:
        table = list(row)
        must(sum(table) == 256, where, "the sum is not 256")
    elif coder == 3:
        pairs = [int.from_bytes(row[i : i + 3], "little") for i in range(0, len(row), 3)]
        table = [value for pair in pairs for value in (pair & 4095, pair >> 12)]
        must(sum(table) == 4096, where, "the sum is not 4096")
    else:
        table = [length for byte in row for length in (byte & 15, byte >> 4)]
        must(max(table) <= 11, where, "a length above 11")
        kraft = sum(2 ** (11 - length) for length in table if length)
        must(kraft == 2**11 or sorted(table)[-2:] == [0, 1], where, "the Kraft sum is not 1")
    return table


# ---------------------------------------------------------------------------------------------------------------------
# 7. Checksums


def xxh3(data: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(data))


def check_checksums(data: bytes, base: int, members: dict[str, Member]) -> None:
    member, where = members[CHECKSUMS], f"section 7, {CHECKSUMS}"
    must(member.dtype == "U8" and member.shape == (len(members) + 1, 8), where, "dtype or shape")
    rows = struct.unpack(f"<{len(members) + 1}Q", member.data)
    must(rows[-1] == xxh3(member.data[:-8]), where, "the last row does not fit the rows before")
    must(rows[-2] == xxh3(data[:base]), where, "header")
    others = [item for item in members.items() if item[0] != CHECKSUMS]
    for (name, other), row in zip(others, rows[:-2], strict=True):
        expected = 0 if name.endswith(".qzc.payload") else xxh3(other.data)
        must(row == expected, where, f"{name!r}")


# ---------------------------------------------------------------------------------------------------------------------
# 8. What readers must survive


@dataclass(frozen=True)
class Layout:
    dtype: str
    shape: tuple[int, ...]
    rows: int
    columns: int
    grid: Grid
    scale: NDArray[np.float32]
    zero_points: int  # the size of plane 1
    chunks: list[Chunk]


def read_layout(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    grid_number: int,
    grids: list[Grid],
    base: int,
    members: dict[str, Member],
) -> Layout:
    """All that can be checked before anything of the size of the tensor is allocated (section 8)."""
    must(grid_number < len(grids), "section 2, qzc.coded", f"{name!r} names grid {grid_number} of {len(grids)}")
    grid = grids[grid_number]
    rows, columns = (1, 1) if shape == () else (shape[0], math.prod(shape[1:]))
    with np.errstate(all="ignore"):
        scale = read_scale(members[f"{name}.qzc.scale"], grid, rows, columns, f"section 3, {name!r} scale")
    zero_points = 0 if grid.symmetric else scale.size
    chunks = read_chunks(members[f"{name}.qzc.chunks"], (rows * columns, zero_points), f"section 4, {name!r}")
    check_payload(members[f"{name}.qzc.payload"], base, chunks, f"section 4, {name!r} payload")
    return Layout(dtype, shape, rows, columns, grid, scale, zero_points, chunks)
