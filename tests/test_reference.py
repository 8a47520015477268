"""The reference decoder against the reference encoder, against damage, and against the examples of docs/SPEC.md."""

import json
import re
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from tests import reference_decoder as decoder
from tests import reference_encoder as encoder
from tests.reference_decoder import decode_file
from tests.reference_encoder import Chunk, Coded, Member, random_file

ROW = struct.Struct("<QIIIBBBBQ")  # a row of the chunk index
FIELDS = ("offset", "nbytes", "codes", "table", "coder", "plane", "streams", "reserved", "checksum")


def assert_same(found: dict[str, decoder.Decoded], expected: dict[str, decoder.Decoded]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        for field, wanted in zip(astuple(found[name]), astuple(tensor), strict=True):
            if isinstance(wanted, np.ndarray):
                assert field.dtype == wanted.dtype and field.shape == wanted.shape, name
                assert field.tobytes() == wanted.tobytes(), name
            else:
                assert field == wanted, name


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("seed", range(60))
def test_random_files_decode_to_what_was_encoded(seed: int) -> None:
    data, expected = random_file(np.random.default_rng(seed), any_order=seed % 3 == 0)
    assert_same(decode_file(data), expected)


def test_random_files_use_the_whole_format() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        _, members, metadata = decoder.read_header(random_file(np.random.default_rng(seed))[0])
        coded, grids, ties = decoder.read_metadata(metadata)
        seen.update(f"{grid.num_bits}-bit" for grid in grids)
        seen.update(f"{grid.strategy} {'' if grid.symmetric else 'a'}symmetric {grid.scale_dtype}" for grid in grids)
        seen.update(f"{len(shape)}-d" for _, shape, _ in coded.values())
        seen.update("empty" for _, shape, _ in coded.values() if 0 in shape)
        seen.update("tie" for _ in ties)
        for name, member in members.items():
            seen[member.dtype] += not decoder.is_reserved(name)
            seen["row_class"] += name.endswith(".qzc.row_class")
            seen["column_class"] += name.endswith(".qzc.column_class")
            if name.endswith(".qzc.chunks"):
                for row in ROW.iter_unpack(member.data):
                    seen.update([f"coder {row[4]}", f"plane {row[5]}", "several streams" if row[6] > 1 else "one"])
    wanted = {f"{bits}-bit" for bits in range(1, 9)} | {f"{rank}-d" for rank in range(5)}
    wanted |= {f"coder {coder}" for coder in range(6)} | {"plane 0", "plane 1", "several streams"}
    wanted |= {"empty", "tie", "row_class", "column_class"} | set(encoder.PLAIN_BITS)
    wanted |= {
        f"{strategy} {symmetric} {dtype}"
        for strategy in ("tensor", "channel", "group")
        for symmetric in ("symmetric", "asymmetric")
        for dtype in encoder.SCALE_DTYPES
    }
    assert {feature for feature in wanted if not seen[feature]} == set()


# ---------------------------------------------------------------------------------------------------------------------
# A small file with everything in it


def code_chunks(
    banks: encoder.Banks, codes: list[int], width: int, plane: int, cuts: list[tuple[int, int, int]]
) -> list[Chunk]:
    """Chunks of (codes, coder, streams) each, every one but raw and constant with a table of its own."""
    rng = np.random.default_rng(0)
    chunks = []
    for count, coder, streams in cuts:
        buffer, codes, table = encoder.pack(codes[:count], width), codes[count:], 0
        payload = buffer[:1] if coder == 1 else buffer
        if coder >= 2:
            row = encoder.random_table(rng, coder, buffer)
            payload = encoder.encode_huffman(buffer, row) if coder == 4 else b""
            if coder < 4:
                payload = encoder.encode_ans(buffer, row, coder, streams)
            banks[coder].append(row)
            table = len(banks[coder]) - 1
        assert len(payload) <= len(buffer)
        chunks.append(Chunk(count, coder, plane, streams, table, payload))
    assert not codes
    return chunks


def small_file() -> bytes:
    """About 3 KB with coders 0 to 4, both planes, class maps, ties and uncoded tensors."""
    banks: encoder.Banks = {2: [], 3: [], 4: []}
    skewed = [6 + (i % 11 == 0) - (i % 13 == 5) for i in range(600)]
    a = code_chunks(banks, skewed[:230] + [1] * 70, 8, 0, [(150, 3, 1), (80, 4, 0), (70, 1, 0)])
    # By row and column classes, the runs of b hold 2 * 299, 2 + 299, 1 + 299 and 1 codes.
    b = code_chunks(banks, skewed[:598], 4, 0, [(300, 2, 1), (298, 4, 0)])
    b += code_chunks(banks, skewed[:301], 4, 0, [(301, 4, 0)]) + code_chunks(banks, skewed[:300], 4, 0, [(300, 4, 0)])
    b += code_chunks(banks, [7], 4, 0, [(1, 0, 0)])
    b += code_chunks(banks, [1, 2, 3, 4, 5, 6, 0, 0, 3, 3, 3, 3], 4, 1, [(8, 0, 0), (4, 1, 0)])
    grids: list[dict[str, object]] = [
        {"num_bits": 8, "symmetric": True, "strategy": "channel", "group_size": None},
        {"num_bits": 3, "symmetric": False, "strategy": "group", "group_size": 140},
    ]
    entries = {
        "a": {"dtype": "F32", "shape": [3, 100], "grid": 0},
        "b": {"dtype": "BF16", "shape": [4, 300], "grid": 1},
    }
    metadata = {
        "format": "qzc",
        "qzc.version": "0.1",
        "qzc.writer": "test",
        "qzc.coded": json.dumps(entries),
        "qzc.grids": json.dumps([grid | {"scale_method": "mse", "scale_dtype": "float16"} for grid in grids]),
        "qzc.ties": json.dumps({"c": "a", "d": "bias"}),
        "qzc.source": "{}",
    }
    scale = np.linspace(0.5, 2, 12).astype(np.float16).tobytes()
    maps = [
        Member("b.qzc.scale", "F16", (4, 3), scale),
        Member("b.qzc.row_class", "U8", (4,), bytes([0, 1, 0, 2])),
        Member("b.qzc.column_class", "U8", (300,), bytes([1] + [0] * 299)),
    ]
    coded = [Coded("a", {}, a, [Member("a.qzc.scale", "F16", (3, 1), scale[:6])]), Coded("b", {}, b, maps)]
    plain = [Member("bias", "F32", (2,), bytes(range(8))), Member("empty", "I64", (0, 3), b"")]
    return encoder.seal(metadata, encoder.lay_out(plain, coded, banks))


# ---------------------------------------------------------------------------------------------------------------------
# Damage without the checksums' knowledge


def test_every_flipped_bit_is_noticed() -> None:
    data = small_file()
    decode_file(data)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            decode_file(bytes(damaged))


def test_every_truncation_is_noticed() -> None:
    data = small_file()
    for size in range(len(data)):
        with pytest.raises(ValueError):
            decode_file(data[:size])
    with pytest.raises(ValueError, match="section 1, data"):
        decode_file(data + b"\0")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a":1,"a":2}', "duplicate key"),
        ('{"__metadata__":{"a":"1","a":"2"}}', "duplicate key"),
        ('{"__metadata__":{"a":1}}', "__metadata__: not a string"),
        ("{}", "__metadata__: not an object"),
        ("[]", "section 1, header: not an object"),
        ('{"a":NaN}', "NaN is not JSON"),
        ('{"a":}', "section 1, header: Expecting value"),
        ('{"\udcff":1}', "section 1, header: 'utf-8' codec"),
        ('{"a":' + "[" * 100_000 + "}", "nested too deeply"),
        ('{"__metadata__":{},"a":{"dtype":"U8","shape":[1]}}', "member 'a': keys"),
        ('{"__metadata__":{},"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', "not an integer"),
        ('{"__metadata__":{},"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', "not an integer"),
        ('{"__metadata__":{},"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}', "-1 is not in"),
        ('{"__metadata__":{},"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}', "9 is not in"),
        ('{"__metadata__":{},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,2]}}', "do not fit the shape"),
        ('{"__metadata__":{},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', "hole or overlap"),
        ('{"__metadata__":{},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "after the last member"),
        ('{"__metadata__":{},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}', "must be the last member"),
        ('{"__metadata__":{},"\\ud800":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}', "surrogates"),
    ],
)
def test_broken_headers(text: str, where: str) -> None:
    encoded = text.encode("utf-8", "surrogateescape") + b" " * (-(8 + len(text)) % 64)
    with pytest.raises(ValueError, match=where):
        decode_file(struct.pack("<Q", len(encoded)) + encoded + bytes(8))


def test_header_size() -> None:
    for size, message in (
        (100_000_056, "too large"),
        (2**64 - 8, "too large"),
        (56, "ends inside"),
        (48, "multiple of 64"),
    ):
        with pytest.raises(ValueError, match=f"header_size.*{message}"):
            decode_file(struct.pack("<Q", size) + b"{}".ljust(50))


# ---------------------------------------------------------------------------------------------------------------------
# Broken rules under valid checksums

Parts = dict[str, Member]
Meta = dict[str, str]


def parts_of(data: bytes) -> tuple[Meta, Parts]:
    _, members, metadata = decoder.read_header(data)
    del members["qzc.checksums"]
    return metadata, {name: Member(name, member.dtype, member.shape, member.data) for name, member in members.items()}


def reseal(metadata: Meta, parts: Parts) -> bytes:
    """The file with all checksums made good, those of the chunks included."""
    for name, member in parts.items():
        if name.endswith(".qzc.chunks"):
            payload, index = parts[name.removesuffix("chunks") + "payload"].data, b""
            for row in ROW.iter_unpack(member.data):
                index += ROW.pack(*row[:8], encoder.xxh3(payload[row[0] : row[0] + row[1]]))
            parts[name] = member._replace(data=index)
    return encoder.seal(metadata, list(parts.values()))


def row(tensor: str, number: int, **fields: int) -> Callable[[Meta, Parts], None]:
    """Adds to fields of a row of the chunk index."""

    def edit(metadata: Meta, parts: Parts) -> None:
        member = parts[f"{tensor}.qzc.chunks"]
        values = list(ROW.unpack_from(member.data, 32 * number))
        for field, change in fields.items():
            values[FIELDS.index(field)] += change
        data = bytearray(member.data)
        ROW.pack_into(data, 32 * number, *values)
        parts[member.name] = member._replace(data=bytes(data))

    return edit


def byte(name: str, position: int, value: int, chunk: int | None = None) -> Callable[[Meta, Parts], None]:
    """Sets a byte of a member; of one of its chunks, if it is a payload and a chunk is given."""

    def edit(metadata: Meta, parts: Parts) -> None:
        data, at = bytearray(parts[name].data), position
        if chunk is not None:
            at += int(ROW.unpack_from(parts[name.removesuffix("payload") + "chunks"].data, 32 * chunk)[0])
        assert data[at] != value
        data[at] = value
        parts[name] = parts[name]._replace(data=bytes(data))

    return edit


def both(*edits: Callable[[Meta, Parts], None]) -> Callable[[Meta, Parts], None]:
    def edit(metadata: Meta, parts: Parts) -> None:
        for each in edits:
            each(metadata, parts)

    return edit


def text(key: str, old: str, new: str) -> Callable[[Meta, Parts], None]:
    def edit(metadata: Meta, parts: Parts) -> None:
        assert old in metadata[key]
        metadata[key] = metadata[key].replace(old, new, 1)

    return edit


def no_text(key: str) -> Callable[[Meta, Parts], None]:
    return lambda metadata, parts: metadata.__delitem__(key)


def member(name: str, /, **fields: object) -> Callable[[Meta, Parts], None]:
    """Replaces fields of a member; no fields: removes it."""

    def edit(metadata: Meta, parts: Parts) -> None:
        if not fields:
            del parts[name]
        else:
            old = parts.get(name, Member(name, "U8", (0,), b""))
            parts[name] = Member(*(fields.get(key, value) for key, value in old._asdict().items()))  # type: ignore[arg-type]

    return edit


BROKEN: list[tuple[str, Callable[[Meta, Parts], None]]] = [
    ("section 1, names: 'qzc.x'", text("qzc.ties", '"c"', '"qzc.x"')),
    ("section 1, names: 'x.qzc.y'", text("qzc.ties", '"c"', '"x.qzc.y"')),
    ("section 2, format", text("format", "qzc", "pt")),
    ("section 2, qzc.version", text("qzc.version", "0.1", "0.2")),
    ("section 2, qzc.writer", no_text("qzc.writer")),
    ("section 2, qzc.coded: is missing", no_text("qzc.coded")),
    ("section 2, qzc.coded: not an object", lambda metadata, parts: metadata.update({"qzc.coded": "[]"})),
    ("section 2, qzc.coded: 'a' names grid 2 of 2", text("qzc.coded", '"grid": 0', '"grid": 2')),
    ("section 2, qzc.coded: -1 is not in", text("qzc.coded", '"grid": 0', '"grid": -1')),
    ("section 2, qzc.coded: 'a' lacks", text("qzc.coded", '"grid": 0', '"g": 0')),
    ("section 2, qzc.coded: 'a' has dtype 'I8'", text("qzc.coded", '"F32"', '"I8"')),
    ("section 2, qzc.coded: duplicate", text("qzc.coded", '"b"', '"a"')),
    ("section 2, qzc.coded: 'a' has no payload", member("a.qzc.payload", name="z.qzc.payload")),
    ("section 2, qzc.coded: 'a' has no chunks", member("a.qzc.chunks", name="z.qzc.chunk")),
    ("section 2, qzc.coded: 'a' has no scale", member("a.qzc.scale")),
    ("section 2, qzc.coded: 'z.qzc.payload' belongs to no", member("z.qzc.payload", shape=(0,))),
    ("section 2, qzc.coded: 'a.qzc.more' belongs to no", member("a.qzc.more", shape=(0,))),
    ("section 2, qzc.coded: 'qzc.more' belongs to no", member("qzc.more", shape=(0,))),
    ("section 2, qzc.coded: 'a' is stored uncoded", member("a", shape=(0,))),
    ("section 2, qzc.ties: 'c' is tied to 'z'", text("qzc.ties", '"a"', '"z"')),
    ("section 2, qzc.ties: 'd' is tied to 'c'", text("qzc.ties", '"bias"', '"c"')),
    ("section 2, qzc.ties: 'bias' is stored and tied", text("qzc.ties", '"d"', '"bias"')),
    ("section 2, qzc.ties: not a string", text("qzc.ties", '"bias"', "1")),
    ("section 2, qzc.source: not a string", text("qzc.source", "{", '{"a": 1')),
    ("section 3, grid num_bits: 9 is not in", text("qzc.grids", '"num_bits": 8', '"num_bits": 9')),
    ("section 3, grid num_bits: not an integer", text("qzc.grids", '"num_bits": 8', '"num_bits": true')),
    ("section 3, grid symmetric", text("qzc.grids", "true", "1")),
    ("section 3, grid strategy", text("qzc.grids", "channel", "block")),
    ("section 3, grid group_size: not null", text("qzc.grids", "null", "1")),
    ("section 3, grid group_size: 0 is not in", text("qzc.grids", "140", "0")),
    ("section 3, grid scale_dtype", text("qzc.grids", "float16", "float64")),
    ("section 3, grid: lacks a key", text("qzc.grids", "scale_method", "method")),
    ("section 3, 'a' scale: dtype", text("qzc.grids", "float16", "bfloat16")),
    ("section 3, 'a' scale: shape", member("a.qzc.scale", shape=(3,))),
    ("section 3, 'b.qzc.row_class'", member("b.qzc.row_class", shape=(4, 1))),
    ("section 3, 'b.qzc.column_class'", member("b.qzc.column_class", dtype="I8")),
    ("section 3, 'b' chunk 4 codes: above", byte("b.qzc.payload", 0, 0x08, chunk=4)),
    ("section 3, 'b' chunk 5 codes: above", byte("b.qzc.payload", 0, 0x80, chunk=5)),
    ("section 4, 'a' chunks: dtype", member("a.qzc.chunks", shape=(96,))),
    ("section 4, 'a' payload: dtype", member("a.qzc.payload", dtype="I8")),
    ("section 4, 'a' chunk 2 codes: 0 is not in", row("a", 2, codes=-70)),
    ("section 4, 'a' chunk 2 codes: 16777217 is not in", row("a", 2, codes=2**24 + 1 - 70)),
    ("section 4, 'a' chunks codes: plane 0 has 300 codes", row("a", 2, codes=1)),
    ("section 4, 'b' chunks codes: plane 1 has 12 codes", row("b", 6, codes=1)),
    ("section 4, 'a' chunk 0 coder", row("a", 0, coder=3)),
    ("section 4, 'b' chunk 5 plane", row("b", 5, plane=1)),
    ("section 4, 'b' chunks plane: order", row("b", 0, plane=1)),
    ("section 4, 'a' chunk 0 streams", row("a", 0, streams=-1)),
    ("section 4, 'a' chunk 1 streams", row("a", 1, streams=1)),
    ("section 4, 'a' chunk 2 table", row("a", 2, table=1)),
    ("section 4, .*'a' chunk 1 table: row 4 of 4", row("a", 1, table=4)),
    ("section 4, 'a' chunk 1 reserved", row("a", 1, reserved=1)),
    ("section 4, 'a' payload chunk 1 offset: overlaps", row("a", 1, offset=-16)),
    ("section 4, 'a' payload chunk 1 offset: the gap", row("a", 1, offset=16)),
    ("section 4, 'a' payload chunk 1 offset: not a multiple of 16", row("a", 1, offset=1)),
    ("section 4, 'a' payload chunk 0 offset: not a multiple of 64", row("a", 0, offset=16)),
    ("section 4, 'a' payload chunk 2 nbytes: ends outside", row("a", 2, nbytes=16)),
    ("section 4, 'a' payload chunk 0 gap", byte("a.qzc.payload", 7, 1)),
    ("section 4, 'a' payload chunk 1 gap", byte("a.qzc.payload", -1, 1, chunk=1)),
    ("section 4, 'a' payload gap", byte("a.qzc.payload", 1, 1, chunk=2)),
    ("section 4, 'b' chunk 1 codes: the chunk crosses", both(row("b", 1, codes=2), row("b", 2, codes=-2))),
    ("section 4, 'b' chunk 0 codes: not a multiple", both(row("b", 0, codes=-1), row("b", 1, codes=1))),
    ("section 4, 'b' chunk 4 codes: unused bits", byte("b.qzc.payload", 0, 0x17, chunk=4)),
    ("section 4, 'b' chunk 4 nbytes: the chunk is larger", row("b", 4, nbytes=1)),
    ("section 5, 'b' chunk 5 raw", row("b", 5, nbytes=-1)),
    ("section 5, 'a' chunk 2 constant", row("a", 2, nbytes=1)),
    ("section 5, 'a' chunk 0 ans streams", row("a", 0, streams=9)),
    ("section 5, 'a' chunk 0 ans: too short", row("a", 0, streams=1)),
    ("section 5, 'a' chunk 0 ans words", byte("a.qzc.payload", 1, 1, chunk=0)),
    ("section 5, 'a' chunk 0 ans stream 0 states: an initial", byte("a.qzc.payload", 6, 0, chunk=0)),
    ("section 5, 'b' chunk 4 huffman: too short", row("b", 4, coder=4)),
    ("section 5, 'a' chunk 1 huffman sizes: do not fill", byte("a.qzc.payload", 0, 9, chunk=1)),
    ("section 6, qzc.tables.ans16: dtype", member("qzc.tables.ans16", shape=(16,))),
    ("section 6, qzc.tables.ans16 row 0: the sum", byte("qzc.tables.ans16", 0, 9)),
    ("section 6, qzc.tables.ans256 row 0: the sum", byte("qzc.tables.ans256", 383, 9)),
    ("section 6, qzc.tables.huffman row 0: a length", byte("qzc.tables.huffman", 0, 0xC0)),
    ("section 6, qzc.tables.huffman row 0: the Kraft", byte("qzc.tables.huffman", 127, 0x10)),
]


@pytest.mark.parametrize(("where", "edit"), BROKEN, ids=[where for where, _ in BROKEN])
def test_every_rule_is_checked(where: str, edit: Callable[[Meta, Parts], None]) -> None:
    metadata, parts = parts_of(small_file())
    edit(metadata, parts)
    with pytest.raises(ValueError, match=f"^{where}"):
        decode_file(reseal(metadata, parts))


def test_checksum_rows() -> None:
    data = small_file()
    rows = len(parts_of(data)[1]) + 2
    for number, where in ((rows - 1, "the last row"), (rows - 2, "header"), (0, "'empty'"), (2, "'a.qzc.payload'")):
        damaged = bytearray(data)
        damaged[len(data) - 8 * (rows - number)] ^= 1
        if number < rows - 1:
            damaged[-8:] = struct.pack("<Q", encoder.xxh3(bytes(damaged[-8 * rows : -8])))
        with pytest.raises(ValueError, match=f"^section 7, qzc.checksums: {where}"):
            decode_file(bytes(damaged))


HALVES = [0] * 7 + [128, 128] + [0] * 7  # an ans16 table of the symbols 7 and 8


def ans_payload(words: list[int], **states: int) -> bytes:
    """One stream; lanes are named l0, l1 .."""
    all_states = [states.get(f"l{lane}", 2**16) for lane in range(32)]
    return struct.pack("<I32I", len(words), *all_states) + struct.pack(f"<{len(words)}H", *words)


@pytest.mark.parametrize(
    ("payload", "n", "where"),
    [
        (ans_payload([], l3=2**16 - 1), 64, "states: an initial state"),
        (ans_payload([], l3=2**17), 64, "states: a final state"),
        (ans_payload([], l4=2**16 + 256), 9, "tail: not zero"),
        (ans_payload([0]), 64, "words: too many"),
        (ans_payload([]), 65, "words: too few"),
        (ans_payload([])[:-1], 64, "too short"),
        (ans_payload([]) + b"\0", 64, "words: do not fill"),
    ],
)
def test_broken_ans_chunks(payload: bytes, n: int, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        decoder.decode_ans(payload, HALVES, 2, 1, n, "ans")


def test_ans_streams_of_every_length() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 31, 32, 33, 63, 64, 65, 66, 95, 96, 97, 127, 128, 129, 200, 321):
        for coder in (2, 3):
            buffer = bytes(rng.choice(np.array([0x77, 0x78, 0x80, 0xFF], np.uint8), n))
            table = encoder.random_table(rng, coder, buffer)
            for streams in range(1, 5):
                payload = encoder.encode_ans(buffer, table, coder, streams)
                if (streams - 1) * encoder.stream_size(n, streams) < n:
                    assert decoder.decode_ans(payload, table, coder, streams, n, "ans") == buffer
                else:
                    with pytest.raises(ValueError, match="streams: one of them"):
                        decoder.decode_ans(payload, table, coder, streams, n, "ans")


def test_split_chunks_of_every_length() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 127, 128, 129, 130, 131, 257, 400):
        buffer = rng.integers(0, 256, n).astype(np.uint8).tobytes()
        low, high = encoder.split(buffer)
        assert len(low) == len(high) == -(-n // 2)
        table = encoder.random_table(rng, 2, high)
        payload = low + encoder.encode_ans(high, table, 2, 1)
        assert decoder.decode_split(payload, table, 1, n, "split8") == buffer


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        (b"\0", "low: too short"),
        (b"\x77\x77" + ans_payload([], l0=2**16 + 0x0777), "low: unused bits"),
        (b"\x77\x07" + ans_payload([], l0=2**16 + 0x7777), "high: unused bits"),
        (b"\x77\x07" + ans_payload([], l1=2**16 + 1), "tail: not zero"),
    ],
)
def test_broken_split_chunks(payload: bytes, where: str) -> None:
    assert decoder.decode_split(b"\x77\x07" + ans_payload([], l0=2**16 + 0x0887), HALVES, 1, 3, "") == b"\x6f\x7f\x7f"
    with pytest.raises(ValueError, match=where):
        decoder.decode_split(payload, HALVES, 1, 3, "split8")


@pytest.mark.parametrize(
    ("sizes", "stream", "where"),
    [
        ([1], b"\1", "stream 0: no such code"),
        ([1], b"\2", "stream 0: unused bits"),
        ([2], b"\0\0", "sizes: stream 0 has unused bytes"),
        ([1, 1], b"\0\0", "sizes: stream 1 has unused bytes"),
        ([0], b"", "stream 0: no such code"),
        ([1], b"", "sizes: do not fill"),
    ],
)
def test_broken_huffman_chunks(sizes: list[int], stream: bytes, where: str) -> None:
    payload = struct.pack("<10I", *sizes, *[0] * (10 - len(sizes))) + stream
    with pytest.raises(ValueError, match=where):
        decoder.decode_huffman(payload, [1] + [0] * 255, 1, "huffman")


def test_damage_under_valid_checksums_raises_nothing_but_value_errors() -> None:
    rng = np.random.default_rng(0)
    metadata, parts = parts_of(small_file())
    assert reseal(metadata, dict(parts)) == small_file()
    outcomes: Counter[bool] = Counter()
    for _ in range(1000):
        damaged = dict(parts)
        name = str(rng.choice([name for name, part in parts.items() if part.data]))
        data = bytearray(damaged[name].data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        damaged[name] = damaged[name]._replace(data=bytes(data))
        try:
            decode_file(reseal(metadata, damaged))
            outcomes[True] += 1
        except ValueError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 100  # other weights, or broken rules


# ---------------------------------------------------------------------------------------------------------------------
# The worked examples of the document


def listings(title: str) -> dict[str, bytes]:
    """Label -> bytes of the listing below `**title**` in section 9.

    A line is an offset, then items (hex bytes, ` * n` if repeated, or text in quotes), then a note.
    """
    document = (Path(__file__).parent.parent / "docs" / "SPEC.md").read_text(encoding="utf-8")
    section = document.partition("\n## 9. Worked examples\n")[2]
    assert section, "docs/SPEC.md has no section 9"
    found: dict[str, bytes] = {}
    label = ""
    for line in section.partition(f"**{title}")[2].partition("```text\n")[2].partition("```")[0].splitlines():
        if line.endswith(":"):
            label = line[:-1]
            found[label] = b""
            continue
        offset, _, rest = line.partition("  ")
        assert int(offset, 16) == len(found[label]), line
        if rest.startswith("'"):
            found[label] += rest[1 : rest.rindex("'")].encode()
            continue
        for item in rest.partition("  ;")[0].split(", "):
            unit, _, times = item.partition(" * ")
            found[label] += bytes.fromhex(unit) * int(times or 1)
    return found


def test_worked_ans16_chunk() -> None:
    example = listings("ans16.")
    table, buffer, payload = list(example["table"]), example["buffer"], example["payload"]
    assert decoder.read_table(2, example["table"], "") == table
    assert decoder.decode_ans(payload, table, 2, 1, len(buffer), "") == buffer
    assert encoder.encode_ans(buffer, table, 2, 1) == payload
    assert len(payload) <= len(buffer) == 272 * 4 // 8


def test_worked_ans16_steps() -> None:
    """The table of the steps of lane 0."""
    example = listings("ans16.")
    f = list(example["table"])
    (x,), words = struct.unpack_from("<I", example["payload"], 4), struct.iter_unpack("<H", example["payload"][132:])
    document = (Path(__file__).parent.parent / "docs" / "SPEC.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| (\d) \| (.*) \|$", document.partition("\n## 9. Worked examples\n")[2], re.MULTILINE)
    assert [step for step, _ in steps] == ["0", "1", "2"]
    for step, cells in steps:
        row = [f"`{x:#x}`"]
        for shift in (0, 4):
            symbol = example["buffer"][32 * int(step)] >> shift & 15
            slot = (x + 128) % 256
            x = f[symbol] * (x // 256) + slot - sum(f[:symbol])
            row += [str(slot), str(symbol), f"`{x:#x}`"]
        if x < 2**16:
            x = x * 2**16 + next(words)[0]
            row.append(f"`{x:#x}`")
        else:
            row.append("no")
        assert cells == " | ".join(row)
    assert struct.pack("<H", x - 2**16) == example["buffer"][72:74]


def test_worked_huffman_chunk() -> None:
    example = listings("huffman.")
    buffer, payload = example["buffer"], example["payload"]
    lengths = decoder.read_table(4, example["table"], "")
    assert decoder.decode_huffman(payload, lengths, len(buffer), "") == buffer
    assert encoder.encode_huffman(buffer, lengths) == payload
    assert len(payload) <= len(buffer) == 104 * 4 // 8


def test_worked_split8_chunk() -> None:
    example = listings("split8.")
    buffer, payload = example["buffer"], example["payload"]
    table = decoder.read_table(2, example["table"], "")
    low, high = encoder.split(buffer)
    assert decoder.decode_split(payload, table, 1, len(buffer), "") == buffer
    assert low + encoder.encode_ans(high, table, 2, 1) == payload
    assert len(payload) <= len(buffer) == 271


def test_worked_file() -> None:
    data = listings("A file")["file"]
    tensors = decode_file(data)
    assert tensors.keys() == {"t", "w"}
    assert (tensors["t"].dtype, tensors["t"].shape, tensors["t"].raw) == ("F32", (), struct.pack("<f", 1))
    w = tensors["w"]
    assert w.codes is not None and w.scale is not None and w.dequantized is not None
    assert w.codes.tolist() == [[8, 9, 7, 0], [15, 8, 8, 1]]
    assert w.scale.tolist() == [[0.5], [0.25]]
    assert w.dequantized.tolist() == [[0, 0.5, -0.5, -4], [1.75, 0, 0, -1.75]]
    assert reseal(*parts_of(data)) == data
