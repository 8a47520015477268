"""Hostile `.qzc` files: every defect is found and named, nothing but a QzcError comes out, and memory stays small."""

import json
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qzc.codec.errors import CorruptionError, QzcError, TruncationError, UnsupportedError
from qzc.codec.tensor import QuantizationArgs
from qzc.formats.reader import Reader
from qzc.model import Model
from tests import reference_encoder as encoder
from tests.reference_decoder import Decoded, decode_file
from tests.resign import (
    FIELDS,
    ROW,
    Header,
    column,
    edit_header,
    edit_json,
    edit_member,
    edit_rows,
    put_together,
    resign,
    take_apart,
)
from tests.strategies import quantized, written
from tests.test_container import as_decoded
from tests.test_reference import BROKEN, Meta, Parts, assert_same, parts_of, reseal, small_file

Edit = Callable[[bytes], bytes]


@cache
def sample() -> bytes:
    """About 5 KB from the real writer: every coder and part, both planes, a tie, tensors that are not coded."""
    tensors: dict[str, Any] = {
        "a": quantized((9, 150), QuantizationArgs(3, False, "group", 40), row_classes=2, column_classes=2, spread=0.1),
        "h": quantized((3, 400), QuantizationArgs(8, True, "channel", None, "absmax", "float32"), spread=0.01),
        "z": quantized((600,), QuantizationArgs(2, True, "tensor", None, "mse", "bfloat16"), spread=0),
        "r": quantized((40, 30), QuantizationArgs(1, True, "tensor", None)),
        "bias": np.arange(5, dtype=np.float32),
        "empty": np.zeros((0, 3), np.int64),
    }
    return written(tensors, {"h": "huffman", "r": "raw"}, {"tied": "a", "second": "bias"})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file name that all tests of this module write to: a new one for each of thousands of files takes too long."""
    return tmp_path_factory.mktemp("corruption") / "model.qzc"


def check(path: Path, data: bytes) -> dict[str, Decoded]:
    """Read all there is in a file, as `qzc verify` does and more; the content in the reference decoder's words."""
    path.write_bytes(data)
    with np.errstate(all="ignore"), Reader(path) as reader:
        reader.check_tables()
        for name in reader.keys():
            assert reader.info(name).nbytes >= 0
            reader.check(name)
            if not reader.info(name).args:
                reader.uncoded(name)
        return {name: as_decoded(reader, name) for name in reader.keys()}


@contextmanager
def raises(path: Path, kind: type[QzcError] = QzcError, message: str = "") -> Iterator[None]:
    """A QzcError that names the file in one line of a bearable length."""
    with pytest.raises(kind, match=message or None) as caught:
        yield
    text = str(caught.value)
    assert text.count(str(path)) == 1
    assert len(text) < 1000 and text.isprintable(), text


def test_the_samples_are_whole(path: Path) -> None:
    coders = {coder for name in "ahz" for coder in column(sample(), name, "coder")}
    assert coders >= {0, 1, 2, 4}
    for data in (sample(), small_file()):
        assert_same(check(path, data), decode_file(data))
        assert resign(data) == data


# ---------------------------------------------------------------------------------------------------------------------
# Damage that a checksum finds


@pytest.mark.parametrize("make", [sample, small_file])
def test_a_flipped_bit_anywhere_is_noticed(path: Path, make: Callable[[], bytes]) -> None:
    data = bytearray(make())
    for at, bit in enumerate(np.random.default_rng(0).integers(0, 8, len(data)).tolist()):
        data[at] ^= 1 << bit
        with raises(path):
            check(path, data)
        data[at] ^= 1 << bit
    check(path, data)


def test_every_truncation_is_noticed(path: Path) -> None:
    data = sample()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with raises(path, TruncationError):
            Reader(path)
    for more in (1, 64):
        with raises(path, CorruptionError, "after the last"):
            check(path, data + bytes(more))


def test_damage_names_tensor_chunk_and_bytes(path: Path) -> None:
    data = bytearray(sample())
    header, body = take_apart(bytes(data))
    at = column(bytes(data), "h", "offset")[1]
    begin = header["h.qzc.payload"]["data_offsets"][0]
    data[len(data) - len(body) + begin + at] ^= 1
    with raises(path, CorruptionError, rf"tensor 'h', chunk 1 \(payload bytes {at} to \d+\): the checksum"):
        check(path, bytes(data))
    begin, end = header["bias"]["data_offsets"]
    start = len(data) - len(body)
    data[start + begin] ^= 1
    with raises(path, CorruptionError, rf"mismatch in 'bias' \(file bytes {start + begin} to {start + end - 1}\)"):
        check(path, bytes(data))


def test_damage_to_one_tensor_leaves_the_others_readable(path: Path) -> None:
    data = bytearray(sample())
    header, body = take_apart(bytes(data))
    data[len(data) - len(body) + header["a.qzc.scale"]["data_offsets"][0]] ^= 1
    path.write_bytes(data)
    with Model(path) as model:
        assert model["h"].shape == (3, 400) and model["second"].shape == (5,)
        for name in ("a", "tied"):
            with raises(path, CorruptionError, r"'a\.qzc\.scale'"):
                model.packed(name)


# ---------------------------------------------------------------------------------------------------------------------
# Defects behind valid checksums: all that the reference decoder refuses ...


@pytest.mark.parametrize("edit", [edit for _, edit in BROKEN], ids=[where for where, _ in BROKEN])
def test_what_the_reference_decoder_refuses(path: Path, edit: Callable[[Meta, Parts], None]) -> None:
    metadata, parts = parts_of(small_file())
    edit(metadata, parts)
    with raises(path):
        check(path, reseal(metadata, parts))


# ... and what goes wrong in our own reader, by name


def meta(key: str, old: str, new: str) -> Edit:
    """Replaces a piece of one of the texts of `__metadata__`."""

    def edit(header: Header) -> None:
        assert old in header["__metadata__"][key]
        header["__metadata__"][key] = header["__metadata__"][key].replace(old, new, 1)

    return lambda data: edit_header(data, edit)


def set_meta(key: str, value: str | None) -> Edit:
    def edit(header: Header) -> None:
        header["__metadata__"].pop(key, None)
        if value is not None:
            header["__metadata__"][key] = value

    return lambda data: edit_header(data, edit)


def coded(name: str, **fields: Any) -> Edit:
    return lambda data: edit_json(data, "qzc.coded", lambda value: value[name].update(fields))


def grid(number: int, **fields: Any) -> Edit:
    return lambda data: edit_json(data, "qzc.grids", lambda value: value[number].update(fields))


def ties(**names: Any) -> Edit:
    return lambda data: edit_json(data, "qzc.ties", lambda value: value.update(names))


def rows(tensor: str, field: str, change: Callable[[list[int]], list[int]]) -> Edit:
    return lambda data: edit_rows(data, tensor, **{field: change(column(data, tensor, field))})


def at(number: int, value: int | Callable[[int], int]) -> Callable[[list[int]], list[int]]:
    def change(values: list[int]) -> list[int]:
        values[number] = value(values[number]) if callable(value) else value
        return values

    return change


def parts(edit: Callable[[Meta, Parts], None]) -> Edit:
    """Adds, removes or reshapes members; the data are laid out anew."""

    def apply(data: bytes) -> bytes:
        metadata, members = parts_of(data)
        edit(metadata, members)
        return encoder.seal(metadata, list(members.values()))

    return apply


def add(name: str, dtype: str = "U8", shape: tuple[int, ...] = (2,), data: bytes = b"12") -> Edit:
    return parts(lambda metadata, members: members.update({name: encoder.Member(name, dtype, shape, data)}))


def replace(name: str, **fields: Any) -> Edit:
    return parts(lambda metadata, members: members.update({name: members[name]._replace(**fields)}))


def remove(name: str) -> Edit:
    return parts(lambda metadata, members: members.__delitem__(name))


def index(name: str, change: Callable[[bytes], bytes]) -> Edit:
    """Changes the bytes of a chunk index, its length too."""

    def edit(metadata: Meta, members: Parts) -> None:
        data = change(members[f"{name}.qzc.chunks"].data)
        members[f"{name}.qzc.chunks"] = encoder.Member(f"{name}.qzc.chunks", "U8", (len(data) // 32, 32), data)

    return parts(edit)


def byte(name: str, position: int, value: int) -> Edit:
    def change(member: bytearray) -> None:
        assert member[position] != value
        member[position] = value

    return lambda data: edit_member(data, name, change)


def gap(tensor: str, chunk: int, position: int) -> Edit:
    """Sets a byte near the start of a chunk, outside of all chunks."""

    def apply(data: bytes) -> bytes:
        return byte(f"{tensor}.qzc.payload", column(data, tensor, "offset")[chunk] + position, 1)(data)

    return apply


def payload(tensor: str, chunk: int, position: int, value: int) -> Edit:
    def apply(data: bytes) -> bytes:
        return byte(f"{tensor}.qzc.payload", column(data, tensor, "offset")[chunk] + position, value)(data)

    return apply


def both(*edits: Edit) -> Edit:
    def apply(data: bytes) -> bytes:
        for edit in edits:
            data = edit(data)
        return data

    return apply


def header_is(edit: Callable[[Header], None]) -> Edit:
    return lambda data: edit_header(data, edit)


def unpadded(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    return resign((size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :])


def checksum_row(number: int) -> Edit:
    """Sets a row of the checksums, the last row is right again."""

    def apply(data: bytes) -> bytes:
        header, _ = take_apart(data)
        count = header["qzc.checksums"]["shape"][0]
        result = bytearray(data)
        result[len(data) - 8 * (count - number % count)] ^= 1
        if number != -1:
            result[-8:] = struct.pack("<Q", encoder.xxh3(bytes(result[-8 * count : -8])))
        return bytes(result)

    return apply


def empty_member_behind(data: bytes) -> bytes:
    """A member without data where the checksums end, with a checksum of its own at the end of the others."""
    header, body = take_apart(data)
    begin, end = header["qzc.checksums"]["data_offsets"]
    header["qzc.checksums"]["shape"][0] += 1
    header["qzc.checksums"]["data_offsets"] = [begin, end + 8]
    header["behind"] = {"dtype": "U8", "shape": [0], "data_offsets": [end + 8, end + 8]}
    return put_together(header, body + bytes(8))


def fewer_checksums(data: bytes) -> bytes:
    header, body = take_apart(data)
    header["qzc.checksums"]["shape"][0] -= 1
    header["qzc.checksums"]["data_offsets"][1] -= 8
    return put_together(header, body[:-8])


def more_checksums(data: bytes) -> bytes:
    header, body = take_apart(data)
    header["qzc.checksums"]["shape"][0] += 1
    header["qzc.checksums"]["data_offsets"][1] += 8
    return put_together(header, body + bytes(8))


def checksums_in_the_middle(data: bytes) -> bytes:
    header, body = take_apart(data)
    begin = len(body) + 8
    header["late"] = {"dtype": "U8", "shape": [3], "data_offsets": [begin, begin + 3]}
    header["qzc.checksums"]["shape"][0] += 1
    header["qzc.checksums"]["data_offsets"][1] += 8
    return put_together(header, body + bytes(8) + b"123")


U32, U64 = 2**32, 2**64
HUGE = 2**60

DEFECTS: dict[str, tuple[Edit, type[QzcError], str]] = {
    # metadata
    "not qzc": (set_meta("format", "pt"), UnsupportedError, "not a .qzc file"),
    "no format": (set_meta("format", None), UnsupportedError, "not a .qzc file"),
    "another version": (set_meta("qzc.version", "0.2"), UnsupportedError, r"version 0\.2; this qzc reads version 0\.1"),
    "a version of 9": (set_meta("qzc.version", "9"), UnsupportedError, r"version 9; this qzc reads version 0\.1"),
    "a version to fill screens": (set_meta("qzc.version", "\x1b[2J" * 9999), UnsupportedError, "version '.x1b"),
    "no version": (set_meta("qzc.version", None), UnsupportedError, "version none"),
    "no writer": (set_meta("qzc.writer", None), CorruptionError, "no qzc.writer"),
    "no coded": (set_meta("qzc.coded", None), CorruptionError, "no qzc.coded"),
    "coded is a list": (set_meta("qzc.coded", "[]"), CorruptionError, "qzc.coded is not a JSON object"),
    "grids is an object": (set_meta("qzc.grids", "{}"), CorruptionError, "qzc.grids is not a JSON array"),
    "ties is a list": (set_meta("qzc.ties", "[]"), CorruptionError, "qzc.ties is not a JSON object"),
    "coded is not JSON": (set_meta("qzc.coded", "{"), CorruptionError, "qzc.coded is not valid JSON"),
    "coded is too deep": (set_meta("qzc.coded", "[" * 200_000), CorruptionError, "qzc.coded is not valid JSON"),
    "a number to wait for": (set_meta("qzc.coded", "9" * 99_999), CorruptionError, "qzc.coded is not valid JSON"),
    "a name twice in coded": (meta("qzc.coded", '"h"', '"a"'), CorruptionError, "duplicate key"),
    "a field twice in coded": (meta("qzc.coded", '"shape"', '"dtype"'), CorruptionError, "duplicate key"),
    "a field twice in a grid": (meta("qzc.grids", '"symmetric"', '"num_bits"'), CorruptionError, "duplicate key"),
    "a name twice in ties": (meta("qzc.ties", '"second"', '"tied"'), CorruptionError, "duplicate key"),
    "NaN": (coded("a", more=float("nan")), CorruptionError, "NaN"),
    "half a surrogate pair": (ties(**{"\udc00": "a"}), CorruptionError, "surrogates"),
    "half a surrogate pair in the source": (set_meta("qzc.source", '{"a": "\\ud800"}'), CorruptionError, "surrogates"),
    "a source of numbers": (set_meta("qzc.source", '{"a": 1}'), CorruptionError, "qzc.source .* not a string"),
    # grids
    **{
        f"grid {field} = {value!r}": (grid(1, **{field: value}), CorruptionError, "grid")
        for field, value in (
            ("num_bits", 0), ("num_bits", 9), ("num_bits", 4.0), ("num_bits", True), ("num_bits", "4"),
            ("num_bits", None), ("num_bits", -(2**70)), ("symmetric", 1), ("symmetric", None), ("strategy", "block"),
            ("strategy", None), ("strategy", ["channel"]), ("group_size", 1), ("group_size", 1.5), ("group_size", "1"),
            ("scale_method", 3), ("scale_dtype", "float64"), ("scale_dtype", None), ("scale_dtype", {}),
        )
    },
    "group_size 0": (grid(0, group_size=0), CorruptionError, "group_size"),
    "group_size missing": (grid(0, group_size=None), CorruptionError, "group_size"),
    "group_size -1": (grid(0, group_size=-1), CorruptionError, "group_size"),
    "a grid without strategy": (meta("qzc.grids", '"strategy"', '"strategies"'), CorruptionError, "keys"),
    "a grid that is a number": (set_meta("qzc.grids", "[1, 2, 3]"), CorruptionError, "keys"),
    "no grids": (set_meta("qzc.grids", None), CorruptionError, "names grid 0 of 0"),
    # coded tensors
    **{
        f"grid number {value!r}": (coded("a", grid=value), CorruptionError, "names grid")
        for value in (-1, 4, 2**64, True, 0.0, "0", None, [0])
    },
    **{
        f"dtype {value!r}": (coded("a", dtype=value), CorruptionError, "dtype")
        for value in ("I8", "f32", "", 5, None, ["F32"], {"F32": 1}, "F" * 99_999)
    },
    **{
        f"shape {value!r:.40}": (coded("a", shape=value), CorruptionError, "shape")
        for value in (
            [-1], [9.0, 150.0], [True], ["9"], "9", 9, None, {}, [[9]], [1] * 65, [2**48], [HUGE, HUGE], [HUGE, 0],
            [2**25, 2**25, 0], [2**64], [10**4000],
        )
    },
    "a shape with more rows": (coded("a", shape=[10, 150]), CorruptionError, "not F16"),
    "a shape with more columns": (coded("h", shape=[3, 401]), CorruptionError, "hold 1200 codes, .* asks for 1203"),
    "a shape with fewer columns": (coded("h", shape=[3, 399]), CorruptionError, "hold 1200 codes, .* asks for 1197"),
    "an entry without shape": (meta("qzc.coded", '"shape"', '"form"'), CorruptionError, "needs dtype, shape and grid"),
    "an entry that is a list": (lambda d: edit_json(d, "qzc.coded", lambda v: v.update(a=[])), CorruptionError, "needs"),
    # members
    **{f"no {what}": (remove(f"h.qzc.{what}"), CorruptionError, f"'h' has no {what}") for what in ("payload", "chunks", "scale")},
    **{
        f"a member {name}": (add(name), CorruptionError, "belongs to no tensor")
        for name in ("x.qzc.scale", "h.qzc.more", "h.qzc.", ".qzc.", "qzc.tables.zip", "qzc.x", "qzc", "h.qzc", "h.qzc.x.qzc.scale")
    },
    "coded and stored": (add("h"), CorruptionError, "'h' is both coded and stored"),
    "a coded tensor with a reserved name": (
        both(meta("qzc.coded", '"h"', '"h.qzc"'), *(
            parts(lambda m, p, w=w: p.update({f"h.qzc.qzc.{w}": p.pop(f"h.qzc.{w}")._replace(name=f"h.qzc.qzc.{w}")}))
            for w in ("payload", "chunks", "scale")
        )), CorruptionError, "'h.qzc' is reserved",
    ),
    "scale of another shape": (replace("h.qzc.scale", shape=(3,)), CorruptionError, r"F32\[3\], not F32\[3, 1\]"),
    "scale of another dtype": (replace("h.qzc.scale", dtype="I32"), CorruptionError, r"I32\[3, 1\], not F32"),
    "scale with a row too few": (replace("h.qzc.scale", shape=(2, 1), data=bytes(8)), CorruptionError, "h.qzc.scale"),
    "payload of another dtype": (replace("h.qzc.payload", dtype="I8"), CorruptionError, "h.qzc.payload"),
    "payload with two dimensions": (
        parts(lambda m, p: p.update({"h.qzc.payload": p["h.qzc.payload"]._replace(shape=(*p["h.qzc.payload"].shape, 1))})),
        CorruptionError, "h.qzc.payload",
    ),
    "chunks in one dimension": (
        parts(lambda m, p: p.update({"h.qzc.chunks": p["h.qzc.chunks"]._replace(shape=(len(p["h.qzc.chunks"].data),))})),
        CorruptionError, r"h.qzc.chunks' is U8\[\d+\], not U8\[any, 32\]",
    ),
    "chunks of 16 bytes": (
        parts(lambda m, p: p.update({"h.qzc.chunks": p["h.qzc.chunks"]._replace(shape=(len(p["h.qzc.chunks"].data) // 16, 16))})),
        CorruptionError, r"not U8\[any, 32\]",
    ),
    "row_class too short": (replace("a.qzc.row_class", shape=(8,), data=bytes(8)), CorruptionError, "a.qzc.row_class"),
    "row_class of a column": (replace("a.qzc.row_class", shape=(9, 1)), CorruptionError, "a.qzc.row_class"),
    "column_class signed": (replace("a.qzc.column_class", dtype="I8"), CorruptionError, "a.qzc.column_class"),
    "column_class gone": (remove("a.qzc.column_class"), CorruptionError, "runs across classes"),
    "other classes": (byte("a.qzc.column_class", 0, 77), CorruptionError, "runs across classes"),
    "a bank in one dimension": (
        parts(lambda m, p: p.update({"qzc.tables.ans16": p["qzc.tables.ans16"]._replace(shape=(len(p["qzc.tables.ans16"].data),))})),
        CorruptionError, "qzc.tables.ans16",
    ),
    "a bank gone": (remove("qzc.tables.huffman"), CorruptionError, "table 0 of 0"),
    "a member that fills its bytes": (
        header_is(lambda h: h["bias"].update(shape=[6])), CorruptionError, "'bias'.* does not fill",
    ),
    "members that overlap": (
        header_is(lambda h: h["bias"].update(shape=[4], data_offsets=[4, 20])), CorruptionError, "hole|overlap",
    ),
    "a member beyond the end": (
        header_is(lambda h: h["qzc.checksums"].update(shape=[U32, 8], data_offsets=[h["qzc.checksums"]["data_offsets"][0], h["qzc.checksums"]["data_offsets"][0] + 8 * U32])),
        TruncationError, "ends after",
    ),
    "a header that is not padded": (unpadded, CorruptionError, "padded"),
    # ties
    "a tie to nothing": (ties(x="y"), CorruptionError, "'x' is tied to 'y', which is not stored"),
    "a tie to itself": (ties(x="x"), CorruptionError, "not stored"),
    "a loop of ties": (ties(x="y", y="x"), CorruptionError, "not stored"),
    "a tie to a tie": (ties(x="tied"), CorruptionError, "'x' is tied to 'tied', which is not stored"),
    "a tie to a part": (ties(x="h.qzc.scale"), CorruptionError, "not stored"),
    "a tie of a coded tensor": (ties(h="a"), CorruptionError, "'h' is both stored and tied"),
    "a tie of a plain tensor": (ties(bias="a"), CorruptionError, "'bias' is both stored and tied"),
    "a tie of a reserved name": (ties(**{"qzc.x": "a"}), CorruptionError, "'qzc.x' is reserved"),
    "a tie of the header's own key": (ties(__metadata__="a"), CorruptionError, "'__metadata__' is reserved"),
    "a tie to a number": (ties(x=3), CorruptionError, "not a string"),
    # checksums
    "no checksums": (
        header_is(lambda h: h.update({"sums": h.pop("qzc.checksums")})), CorruptionError, "qzc.checksums is missing",
    ),
    "checksums of another dtype": (
        header_is(lambda h: h["qzc.checksums"].update(dtype="I8")), CorruptionError, "qzc.checksums is missing or has",
    ),
    "checksums in one dimension": (
        header_is(lambda h: h["qzc.checksums"].update(shape=[8 * h["qzc.checksums"]["shape"][0]])),
        CorruptionError, "qzc.checksums is missing or has the wrong size",
    ),
    "a checksum too few": (fewer_checksums, CorruptionError, "wrong size"),
    "a checksum too many": (more_checksums, CorruptionError, "wrong size"),
    "an empty member behind the checksums": (empty_member_behind, CorruptionError, "not the last member"),
    "a member behind the checksums": (checksums_in_the_middle, CorruptionError, "not the last member"),
    "a wrong checksum of a member": (checksum_row(1), CorruptionError, "mismatch in 'bias'"),
    "a wrong checksum of an empty member": (checksum_row(0), CorruptionError, "mismatch in 'empty'"),
    "a checksum of a payload": (checksum_row(2), CorruptionError, "a payload has a checksum"),
    "a wrong checksum of the header": (checksum_row(-2), CorruptionError, "mismatch in the header"),
    "a wrong checksum of checksums": (checksum_row(-1), CorruptionError, "checksums themselves"),
    "a wrong checksum of a chunk": (rows("h", "checksum", at(1, 5)), CorruptionError, "'h', chunk 1 .*checksum"),
    # rows of the chunk index
    "a reserved byte": (rows("h", "reserved", at(1, 1)), CorruptionError, "'h': chunk 1 has a reserved byte"),
    "an unknown coder": (rows("h", "coder", at(1, 5)), UnsupportedError, r"'h': chunk 1 uses coder 5; .*4 \(huffman\)"),
    "coder 255": (rows("h", "coder", at(0, 255)), UnsupportedError, "coder 255"),
    "a table out of the bank": (rows("h", "table", at(0, 99)), CorruptionError, "chunk 0 names table 99 of 1"),
    "a table far out": (rows("h", "table", at(0, U32 - 1)), CorruptionError, "names table 4294967295"),
    "a table of a coder without": (rows("z", "table", at(0, 1)), CorruptionError, "names table 1 of 1"),
    "no codes": (rows("h", "codes", at(0, 0)), CorruptionError, "chunk 0 holds 0 codes"),
    "2^24 + 1 codes": (rows("h", "codes", at(0, 2**24 + 1)), CorruptionError, "holds 16777217 codes"),
    "too many codes": (rows("h", "codes", at(-1, lambda n: n + 1)), CorruptionError, "hold 1201 codes, .* asks for 1200"),
    "too few codes": (rows("h", "codes", at(-1, lambda n: n - 1)), CorruptionError, "hold 1199 codes, .* asks for 1200"),
    "codes that overflow 32 bits": (
        rows("h", "codes", lambda codes: [codes[0] + U32 // 2, codes[1] + U32 // 2]), CorruptionError, "codes",
    ),
    "a chunk too few": (index("h", lambda d: d[:-32]), CorruptionError, "codes, the shape asks for 1200"),
    "no chunks": (index("h", lambda d: b""), CorruptionError, "hold 0 codes"),
    "a chunk twice": (index("h", lambda d: d + d[-32:]), CorruptionError, "codes, the shape asks for 1200"),
    "plane 2": (rows("a", "plane", at(-1, 2)), CorruptionError, "by plane"),
    "planes in the wrong order": (rows("a", "plane", at(0, 1)), CorruptionError, "by plane"),
    "zero points of a symmetric grid": (rows("h", "plane", at(-1, 1)), CorruptionError, "plane 0 hold"),
    "no zero points": (rows("a", "plane", lambda p: [0] * len(p)), CorruptionError, "plane 0 hold"),
    "a chunk across classes": (
        rows("a", "codes", lambda c: [c[0] + 2, c[1] - 2, *c[2:]]), CorruptionError, "'a': a chunk of plane 0 runs across",
    ),
    "a chunk that ends in a byte": (
        rows("r", "codes", lambda c: [c[0] - 1, c[1] + 1]), CorruptionError, "'r': chunk 0 ends inside a byte",
    ),
    "offsets that overlap": (rows("h", "offset", at(1, lambda n: n - 16)), CorruptionError, "chunk 1 starts at"),
    "offsets with a hole": (rows("h", "offset", at(1, lambda n: n + 16)), CorruptionError, "chunk 1 starts at"),
    "an offset of 1": (rows("h", "offset", at(1, lambda n: n + 1)), CorruptionError, "chunk 1 starts at"),
    "an offset outside": (rows("h", "offset", at(1, HUGE)), CorruptionError, "chunk 1 lies outside"),
    "an offset of 2^63": (rows("h", "offset", at(1, 2**63)), CorruptionError, "chunk 1 lies outside"),
    "an offset of -16": (rows("h", "offset", at(0, U64 - 16)), CorruptionError, "chunk 0 lies outside"),
    "offsets swapped": (rows("h", "offset", lambda o: o[::-1]), CorruptionError, "chunk 0 starts at"),
    "a first chunk too late": (rows("h", "offset", lambda o: [n + 64 for n in o]), CorruptionError, "chunk 0 starts"),
    "more bytes than the payload": (rows("h", "nbytes", at(1, U32 - 1)), CorruptionError, "chunk 1 lies outside"),
    "more bytes than codes": (
        rows("r", "nbytes", at(1, lambda n: n + 1)), CorruptionError, "'r': chunk 1 is larger than its 54 bytes",
    ),
    "a raw chunk with fewer bytes": (rows("r", "nbytes", at(1, lambda n: n - 1)), CorruptionError, "'r': payload bytes .* are not 0"),
    "a constant of several bytes": (rows("z", "nbytes", at(0, 2)), CorruptionError, "'z', chunk 0 .*constant"),
    "no bytes": (rows("z", "nbytes", at(0, 0)), CorruptionError, "z"),
    "no streams": (rows("a", "streams", at(1, 0)), CorruptionError, "has 0 streams"),
    "streams of huffman": (rows("h", "streams", at(0, 10)), CorruptionError, "has 10 streams"),
    "too many streams": (rows("a", "streams", at(1, 255)), CorruptionError, "'a', chunk 1 .*ans16"),
    # payload
    "a payload with more behind": (
        parts(lambda m, p: p.update({"z.qzc.payload": p["z.qzc.payload"]._replace(shape=(len(p["z.qzc.payload"].data) + 16,), data=p["z.qzc.payload"].data + bytes(16))})),
        CorruptionError, "chunks end at payload byte",
    ),
    "an empty payload": (replace("z.qzc.payload", shape=(0,), data=b""), CorruptionError, "'z': chunk 0"),
    "a gap that is not zero": (gap("h", 1, -1), CorruptionError, "'h': payload bytes .* belong to no chunk"),
    "a last gap that is not zero": (gap("z", 0, 15), CorruptionError, "'z': payload bytes .* belong to no chunk"),
    "a frequency table with another sum": (byte("qzc.tables.ans16", 0, 99), CorruptionError, "table 0 of qzc.tables.ans16"),
    "a Huffman table with another sum": (byte("qzc.tables.huffman", 0, 0x11), CorruptionError, "table 0 of qzc.tables.huffman"),
    "a Huffman code of 15 bits": (byte("qzc.tables.huffman", 0, 0xFF), CorruptionError, "table 0 of qzc.tables.huffman"),
    "words that do not fit": (payload("a", 1, 0, 255), CorruptionError, "'a', chunk 1 .*ans16"),
    "sizes that do not fit": (payload("h", 0, 1, 255), CorruptionError, "'h', chunk 0 .*huffman"),
    "a zero point beyond the grid": (payload("a", -1, 0, 0x88), CorruptionError, "'a', chunk .* larger than 7"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects(path: Path, defect: str) -> None:
    edit, kind, message = DEFECTS[defect]
    data = edit(sample())
    assert data != sample()
    with raises(path, kind, message):
        check(path, data)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Fails if more than `limit` bytes are in use at once; NumPy's arrays count from when they are allocated."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def claim(shape: list[int], args: dict[str, Any], members: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A signed file with one coded tensor of any shape and parts."""
    metadata = {"format": "qzc", "qzc.version": "0.1", "qzc.writer": "a test"}
    metadata["qzc.coded"] = json.dumps({"a": {"dtype": "F32", "shape": shape, "grid": 0}})
    fields = {"num_bits": 8, "symmetric": True, "strategy": "tensor", "group_size": None}
    metadata["qzc.grids"] = json.dumps([fields | {"scale_method": "mse", "scale_dtype": "float16"} | args])
    parts = {"payload": ("U8", (0,), b""), "chunks": ("U8", (0, 32), b""), "scale": ("F16", (1,), bytes(2))} | members
    return encoder.seal(metadata, [encoder.Member(f"a.qzc.{what}", *part) for what, part in parts.items()])


CLASSES = {"column_class": ("U8", (0,), b"")}
CLAIMS: list[tuple[list[int], dict[str, Any], dict[str, tuple[str, tuple[int, ...], bytes]]]] = [
    ([2**47], {}, {}),
    ([1, 2**47], {"strategy": "channel"}, {"scale": ("F16", (1, 1), bytes(2))}),
    ([2**23, 2**24], {"symmetric": False}, {}),
    ([2**47], {"strategy": "channel"}, {}),
    ([2, 2**46], {"strategy": "group", "group_size": 1}, {}),
    ([1, 2**47], {"strategy": "group", "group_size": 2**30}, {}),
    ([0, 2**47], {}, {"column_class": ("U8", (2**47,), b"")}),
    ([HUGE], {}, {}),
    ([HUGE, 0], {"strategy": "group", "group_size": 1}, {"scale": ("F16", (HUGE, 0), b"")}),
]


@pytest.mark.parametrize("claimed", CLAIMS, ids=lambda claimed: f"{claimed[0]} {claimed[1]}")
def test_huge_shapes_without_data_take_no_memory(path: Path, claimed: Any) -> None:
    data = claim(*claimed)
    check_once = pytest.raises(QzcError)
    with little_memory(1 << 20), check_once:
        check(path, data)


def test_huge_empty_tensors_take_no_memory(path: Path) -> None:
    for shape, members in (
        ([2**47, 0], CLASSES),
        ([0, 2**47], {"row_class": ("U8", (0,), b"")}),
        ([2**20, 0, 2**20], CLASSES),
    ):
        path.write_bytes(claim(shape, {}, members))
        with Reader(path) as reader, little_memory(1 << 20):
            assert reader.quantized("a").packed.size == 0
            assert reader.quantized("a", slice(0, 5)).packed.size == 0


def bomb(count: int) -> bytes:
    """`count` constant chunks of 2^24 codes each: at 48 bytes a chunk, 350,000 codes from every byte of the file."""
    payload = b"\x07".ljust(16, b"\0") * count
    # The payload comes first, so it begins on a multiple of 64 and all chunks are 16 bytes apart.
    chunks = b"".join(ROW.pack(16 * i, 1, 2**24, 0, 1, 0, 0, 0, encoder.xxh3(b"\x07")) for i in range(count))
    return claim(
        [count, 2**24], {}, {"payload": ("U8", (len(payload),), payload), "chunks": ("U8", (count, 32), chunks)}
    )


def test_a_bomb_goes_off_only_as_far_as_it_is_decoded(path: Path) -> None:
    path.write_bytes(bomb(4000))
    with little_memory(4 << 20), Reader(path) as reader:
        assert reader.info("a").shape == (4000, 2**24)
        assert len(reader.planes("a").index.rows) == 4000
    with little_memory(40 << 20), Reader(path) as reader:
        assert reader.check_chunks("a", lambda function, items: map(function, list(items)[:3])) == 4000
        part = reader.quantized("a", slice(3999, 4000))
        assert part.packed.size == 2**24 and set(part.packed[::4099].tolist()) == {7}


# ---------------------------------------------------------------------------------------------------------------------
# Fuzz: signed again after each mutation

ODD: list[Any] = [
    0, 1, -1, 2, 3, 8, 9, 15, 16, 63, 64, 255, 2**16, 2**24, 2**31, 2**32 - 1, 2**47, 2**53, 2**63 - 1, 2**64, 1.5,
    True, None, "", "a", "h", "F16", "F32", "U8", "qzc.x", [], [1], [0, 0], {}, {"a": 1}, "\u0000", "é" * 50,
]  # fmt: skip


def mutate_json(rng: np.random.Generator, value: Any) -> Any:
    """Something at a random place in a JSON value removed, doubled, swapped or replaced by something odd."""
    odd = ODD[rng.integers(len(ODD))]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        keys = list(value)
        key = keys[rng.integers(len(keys))]
        kind = rng.random()
        if kind < 0.05:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.1:
            return {**value, keys[rng.integers(len(keys))]: value[key]}
        if kind < 0.15:
            return {(f"{key}x" if k == key else k): v for k, v in value.items()}
        return {k: mutate_json(rng, v) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = int(rng.integers(len(value)))
        if rng.random() < 0.1:
            return value[:at] + value[at + 1 :]
        if rng.random() < 0.1:
            return value[:at] + [value[at]] + value[at:]
        return [mutate_json(rng, v) if i == at else v for i, v in enumerate(value)]
    if isinstance(value, int) and rng.random() < 0.6:
        return value + [-64, -16, -8, -1, 1, 8, 16, 64][rng.integers(8)]
    return odd


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """One to three changes to the header, the JSON texts in it, a chunk index or any bytes."""
    header, body = take_apart(data)
    for _ in range(rng.integers(1, 4)):
        kind = rng.random()
        if kind < 0.15:
            header = mutate_json(rng, header)
            if not isinstance(header, dict):
                break
        elif kind < 0.4 and isinstance(header.get("__metadata__"), dict):
            texts = [key for key in ("qzc.coded", "qzc.grids", "qzc.ties") if key in header["__metadata__"]]
            for key in rng.permutation(texts)[:1].tolist():
                with suppress(TypeError, ValueError):  # an earlier change left no JSON
                    value = mutate_json(rng, json.loads(header["__metadata__"][key]))
                    header["__metadata__"] = header["__metadata__"] | {key: json.dumps(value)}
        else:
            names = [name for name in header if name.endswith(".qzc.chunks") or kind > 0.7]
            name = names[rng.integers(len(names))] if names else ""
            entry = header.get(name)
            with suppress(TypeError, KeyError, ValueError):  # an earlier change left no such member
                begin, end = entry["data_offsets"]
                if kind <= 0.7 and 0 <= begin <= end - 32 <= len(body):
                    mutate_row(rng, body, begin, (end - begin) // 32)
                elif 0 <= begin < end <= len(body):
                    for at in rng.integers(begin, end, rng.integers(1, 5)).tolist():
                        body[at] = int(rng.choice([0, 1, 255, body[at] ^ 1 << rng.integers(8)]))
    return put_together(header, body, chunks=bool(rng.random() < 0.95))


def mutate_row(rng: np.random.Generator, body: bytearray, begin: int, count: int) -> None:
    at = begin + 32 * int(rng.integers(count))
    if at + 32 > len(body):
        return
    values = list(ROW.unpack_from(body, at))
    field = int(rng.integers(len(FIELDS)))
    top = (U64, U32, U32, U32, 256, 256, 256, 256, U64)[field]
    steps = [1, -1, 8, -8, 16, -16, 256, top - 1, top // 2, 2**24]
    values[field] = (values[field] + steps[rng.integers(len(steps))]) % top if rng.random() < 0.8 else rng.integers(4)
    ROW.pack_into(body, at, *map(int, values))


@pytest.mark.parametrize("make", [sample, small_file])
def test_mutated_files_raise_nothing_but_our_errors(path: Path, make: Callable[[], bytes]) -> None:
    """And the reference decoder finds the same files good, with the same content."""
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    with address_space(2 << 30):
        for _ in range(1500):
            data = mutate(rng, make())
            try:
                found = check(path, data)
            except QzcError as error:
                assert str(path) in str(error)
                outcomes[type(error).__name__] += 1
                if "unknown scale method" not in str(error):  # free text to the reference decoder
                    with pytest.raises(ValueError):
                        decode_file(data)
                continue
            outcomes["whole"] += 1
            try:
                expected = decode_file(data)
            except ValueError as error:
                assert "unknown dtype" in str(error)  # bytes to us
                continue
            assert_same(found, expected)
    assert outcomes["whole"] > 20 and outcomes["CorruptionError"] > 500 and outcomes["UnsupportedError"] > 5


@contextmanager
def address_space(room: int) -> Iterator[None]:
    """Lets this process grow by `room` bytes and no more, where there is /proc: a larger allocation is a MemoryError."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
