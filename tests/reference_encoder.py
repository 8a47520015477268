"""Writer of random valid .qzc files, written from docs/SPEC.md alone: slow, and far more varied than the real one.

It uses what the format allows and the real writer does not: any mix of coders, tables, streams and chunk sizes, any
code lengths, class maps, every dtype, other orders of the members. It shares no code with the package or with the
reference decoder, except for the record of the expected values.
"""

import itertools
import json
import struct
from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np
import xxhash
from numpy.typing import NDArray

from tests.reference_decoder import Decoded

NAMES = ("weight", "a.weight", "a b/c", "ключ", "0", "\u00e9\"'\\", "layers.10.mlp", "x" * 70, "\n", "\U0001f600", "")
PLAIN_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
SCALE_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
TABLES = {2: ("qzc.tables.ans16", 16), 3: ("qzc.tables.ans256", 384), 4: ("qzc.tables.huffman", 128)}

# The tables of coders 2, 3 and 4: frequencies or code lengths of all symbols. Coder 5 uses those of coder 2.
Banks = dict[int, list[list[int]]]


class Member(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Chunk(NamedTuple):
    codes: int
    coder: int
    plane: int
    streams: int
    table: int
    payload: bytes


class Coded(NamedTuple):
    """A coded tensor on its way into a file; `maps` holds the scale and class map members."""

    name: str
    entry: dict[str, object]
    chunks: list[Chunk]
    maps: list[Member]


def random_file(rng: np.random.Generator, *, any_order: bool = False) -> tuple[bytes, dict[str, Decoded]]:
    """A random valid file and what it decodes to, ties included.

    With `any_order` the members are shuffled, as readers must not rely on their order.
    """
    names = [str(name) for name in rng.permutation(NAMES)]
    expected: dict[str, Decoded] = {}
    plain = [random_plain(rng, names.pop()) for _ in range(rng.integers(0, 4))]
    expected |= {member.name: Decoded(member.dtype, member.shape, member.data) for member in plain}
    banks: Banks = {2: [], 3: [], 4: []}
    grids: list[dict[str, object]] = []
    coded = []
    for _ in range(rng.integers(0, 4)):
        tensor, expected[tensor.name] = random_coded(rng, names.pop(), grids, banks)
        coded.append(tensor)
    ties = {names.pop(): str(rng.choice(list(expected))) for _ in range(rng.integers(0, 3)) if expected}
    expected |= {name: expected[target] for name, target in ties.items()}

    metadata = {"format": "qzc", "qzc.version": "0.1", "qzc.writer": "reference", "unknown key": "is ignored"}
    metadata["qzc.coded"] = json.dumps({tensor.name: tensor.entry for tensor in coded}, ensure_ascii=False)
    if grids:
        metadata["qzc.grids"] = json.dumps(grids)
    if ties:
        metadata["qzc.ties"] = json.dumps(ties)
    if rng.random() < 0.5:
        metadata["qzc.source"] = json.dumps({"format": "pt"})
    return seal(metadata, lay_out(plain, coded, banks, rng if any_order else None)), expected


# ---------------------------------------------------------------------------------------------------------------------
# The file around the tensors (sections 1, 4 and 7)


def lay_out(
    plain: list[Member],
    coded: list[Coded],
    banks: Banks,
    shuffle: np.random.Generator | None = None,
) -> list[Member]:
    """All members but the checksums, in the order of section 1 or any other."""
    members = sorted(plain, key=lambda member: (-PLAIN_BITS[member.dtype], member.name))
    chunks: dict[str, list[Chunk]] = {}
    for tensor in sorted(coded):
        name, k = tensor.name, len(tensor.chunks)
        chunks[f"{name}.qzc.payload"] = tensor.chunks
        members.append(Member(f"{name}.qzc.payload", "U8", (0,), b""))
        members.append(Member(f"{name}.qzc.chunks", "U8", (k, 32), bytes(32 * k)))
        members += tensor.maps
    for coder, (name, width) in TABLES.items():
        if banks[coder]:
            rows = b"".join(table_row(coder, table) for table in banks[coder])
            members.append(Member(name, "U8", (len(banks[coder]), width), rows))
    if shuffle is not None:
        # numpy would make an array of the members, hence the indirection.
        members = [members[int(i)] for i in shuffle.permutation(len(members))]

    # A payload's size depends on where it begins, the chunk index on its payload, wherever that is.
    begin, indexes = 0, {}
    for number, member in enumerate(members):
        if member.name in chunks:
            payload, index = join_chunks(chunks[member.name], begin)
            indexes[member.name.removesuffix("payload") + "chunks"] = index
            members[number] = member._replace(shape=(len(payload),), data=payload)
        begin += len(members[number].data)
    return [member._replace(data=indexes.get(member.name, member.data)) for member in members]


def join_chunks(chunks: list[Chunk], begin: int) -> tuple[bytes, bytes]:
    """(payload, chunk index) of a payload member at `begin`; the data begin on a multiple of 64 of the file."""
    payload, index, alignment = b"", b"", 64
    for chunk in chunks:
        payload += bytes(-(begin + len(payload)) % alignment)
        alignment = 16
        fields = (chunk.codes, chunk.table, chunk.coder, chunk.plane, chunk.streams, 0, xxh3(chunk.payload))
        index += struct.pack("<QIIIBBBBQ", len(payload), len(chunk.payload), *fields)
        payload += chunk.payload
    return payload + bytes(-(begin + len(payload)) % 16 if chunks else 0), index


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


def xxh3(data: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(data))


# ---------------------------------------------------------------------------------------------------------------------
# Random tensors (sections 1 and 3)


def random_plain(rng: np.random.Generator, name: str) -> Member:
    dtype = str(rng.choice(list(PLAIN_BITS)))
    shape = [int(size) for size in rng.integers(0, 5, rng.integers(0, 4))]
    if PLAIN_BITS[dtype] < 8:
        shape.append(4)  # whole bytes
    return Member(name, dtype, tuple(shape), rng.bytes(int(np.prod(shape)) * PLAIN_BITS[dtype] // 8))


def random_coded(
    rng: np.random.Generator, name: str, grids: list[dict[str, object]], banks: Banks
) -> tuple[Coded, Decoded]:
    dtype, shape = str(rng.choice(["F64", "F32", "F16", "BF16"])), random_shape(rng)
    rows, columns = (shape[0], int(np.prod(shape[1:]))) if shape else (1, 1)
    num_bits, symmetric = int(rng.integers(1, 9)), bool(rng.random() < 0.5)
    width = next(width for width in (1, 2, 4, 8) if width >= num_bits)
    strategy, group_size = str(rng.choice(["tensor", "channel", "group"])), None
    scale_shape: tuple[int, ...] = (1,) if strategy == "tensor" else (rows, 1)
    if strategy == "group":
        group_size = int(rng.integers(1, columns + 3))
        scale_shape = (rows, -(-columns // group_size))
    scale_dtype, scale = random_scale(rng, scale_shape)
    grid: dict[str, object] = {"num_bits": num_bits, "symmetric": symmetric, "strategy": strategy}
    grid |= {"group_size": group_size, "scale_method": "absmax", "scale_dtype": SCALE_DTYPES[scale_dtype]}
    if grid not in grids:
        grids.append(grid | ({"unknown": 1} if rng.random() < 0.1 else {}))
    entry: dict[str, object] = {"dtype": dtype, "shape": list(shape)}
    entry["grid"] = next(i for i, other in enumerate(grids) if grid.items() <= other.items())

    codes = random_codes(rng, rows * columns, num_bits)
    row_class = rng.integers(0, rng.choice([2, 3, 256]), rows).astype(np.uint8) if rng.random() < 0.25 else None
    column_class = rng.integers(0, rng.choice([2, 4]), columns).astype(np.uint8) if rng.random() < 0.25 else None
    chunks = []
    for run in runs_of(codes.reshape(rows, columns), row_class, column_class):
        chunks += random_chunks(rng, run, width, 0, banks)
    zero_point = np.full(scale_shape, 0.5 if num_bits == 1 else 1 << (num_bits - 1), np.float32)
    if not symmetric:
        zeros = random_codes(rng, scale.size, num_bits)
        chunks += random_chunks(rng, [int(zero) for zero in zeros], width, 1, banks)
        zero_point = zeros.astype(np.float32).reshape(scale_shape)

    maps = [Member(f"{name}.qzc.scale", scale_dtype, scale_shape, scale.tobytes())]
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


def random_chunks(rng: np.random.Generator, run: list[int], width: int, plane: int, banks: Banks) -> list[Chunk]:
    unit = 8 // width
    cuts = {int(cut) * unit for cut in rng.integers(0, len(run) // unit + 1, rng.integers(0, 3))}
    edges = sorted(cuts | {0, len(run)})
    return [random_chunk(rng, run[start:stop], width, plane, banks) for start, stop in itertools.pairwise(edges)]


def random_chunk(rng: np.random.Generator, codes: list[int], width: int, plane: int, banks: Banks) -> Chunk:
    """The first of a random order of coders that does not grow; raw never does."""
    buffer = pack(codes, width)
    for coder in (int(coder) for coder in rng.permutation(6)):
        if coder == 0 or (coder == 1 and len(set(buffer)) == 1):
            return Chunk(len(codes), coder, plane, 0, 0, buffer if coder == 0 else buffer[:1])
        if coder < 2:
            continue
        low, coded = split(buffer) if coder == 5 else (b"", buffer)  # what has symbols
        kind = 2 if coder == 5 else coder  # of table
        streams = int(rng.integers(1, 2 + len(coded) // 300)) if coder != 4 else 0
        if streams and (streams - 1) * stream_size(len(coded), streams) >= len(coded):
            continue
        symbols = {nibble for byte in coded for nibble in (byte & 15, byte >> 4)} if kind == 2 else set(coded)
        known = [table for table in banks[kind] if all(table[symbol] for symbol in symbols)]
        shared = bool(known) and rng.random() < 0.3
        table = known[0] if shared else random_table(rng, kind, coded)
        payload = low + (encode_huffman(coded, table) if kind == 4 else encode_ans(coded, table, kind, streams))
        if len(payload) <= len(buffer):
            if not shared:
                banks[kind].append(table)
            return Chunk(len(codes), coder, plane, streams, banks[kind].index(table), payload)
        if rng.random() < 0.05:
            banks[kind].append(table)  # a row that no chunk needs is no error
    raise AssertionError("raw always fits")


def random_table(rng: np.random.Generator, coder: int, buffer: bytes) -> list[int]:
    """Any valid table that knows every symbol of the buffer, often one that suits it."""
    symbols, total = {2: (16, 256), 3: (256, 4096), 4: (256, 2048)}[coder]
    nibbles = [nibble for byte in buffer for nibble in (byte & 15, byte >> 4)]
    counts = np.bincount(np.array(nibbles if coder == 2 else list(buffer)), minlength=symbols).astype(float)
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
    if coder == 3:
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


def stream_size(n: int, streams: int) -> int:
    return -(-n // (32 * streams)) * 32


def encode_ans(buffer: bytes, frequencies: Sequence[int], coder: int, streams: int) -> bytes:
    q = stream_size(len(buffer), streams)
    parts = [encode_ans_stream(buffer[k * q : (k + 1) * q], frequencies, coder) for k in range(streams)]
    sizes = struct.pack(f"<{streams}I", *(len(words) for _, words in parts))
    states = b"".join(struct.pack("<32I", *states) for states, _ in parts)
    return sizes + states + b"".join(struct.pack(f"<{len(words)}H", *words) for _, words in parts)


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
