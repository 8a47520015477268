"""Defects of `.qzc` files behind valid checksums: each is found, and named so that one knows what to look at."""

from pathlib import Path
from typing import Any

import pytest

from qzc.codec.errors import CorruptionError, QzcError, TruncationError, UnsupportedError
from tests.broken_rules import BROKEN, BROKEN_SOURCE
from tests.containers import check, raises, sample
from tests.edits import (
    Edit,
    add,
    at,
    both,
    byte,
    checksum_row,
    checksums_in_the_middle,
    coded,
    empty_member_behind,
    fewer_checksums,
    gap,
    grid,
    header_is,
    index,
    lengthen,
    meta,
    more_checksums,
    payload,
    records,
    remove,
    rename_tensor,
    replace,
    reshape,
    rows,
    set_meta,
    ties,
    unpadded,
    without,
)
from tests.resign import Header, edit_json
from tests.small_files import restorable_file, small_file


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file name that all tests of this module write to."""
    return tmp_path_factory.mktemp("defects") / "model.qzc"


@pytest.mark.parametrize("edit", [edit for _, edit in BROKEN], ids=[where for where, _ in BROKEN])
def test_what_the_reference_decoder_refuses(path: Path, edit: Edit) -> None:
    with raises(path):
        check(path, edit(small_file()))


@pytest.mark.parametrize("edit", [edit for _, edit in BROKEN_SOURCE], ids=[where for where, _ in BROKEN_SOURCE])
def test_sources_that_the_reference_decoder_refuses(path: Path, edit: Edit) -> None:
    with raises(path):
        check(path, edit(restorable_file()))


U32 = 2**32
HUGE = 2**60


def size(header: Header) -> int:
    """Where the data end, from their start."""
    return int(header["qzc.checksums"]["data_offsets"][1])


NOT_A_DTYPE: list[Any] = ["I8", "f32", "", 5, None, ["F32"], {"F32": 1}, "F" * 99_999]
NOT_A_GRID: list[Any] = [-1, 4, 2**64, True, 0.0, "0", None, [0]]
NOT_A_SHAPE: list[Any] = [
    [-1], [9.0, 150.0], [True], ["9"], "9", 9, None, {}, [[9]], [1] * 65, [2**48], [HUGE, HUGE], [HUGE, 0],
    [2**25, 2**25, 0], [2**64], [10**4000],
]  # fmt: skip

DEFECTS: dict[str, tuple[Edit, type[QzcError], str]] = {
    # metadata
    "not qzc": (set_meta("format", "pt"), UnsupportedError, "not a .qzc file"),
    "no format": (set_meta("format", None), UnsupportedError, "not a .qzc file"),
    "another version": (set_meta("qzc.version", "0.1"), UnsupportedError, r"version 0\.1; this qzc reads version 0\.2"),
    "a version of 9": (set_meta("qzc.version", "9"), UnsupportedError, r"version 9; this qzc reads version 0\.2"),
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
    "no grids": (set_meta("qzc.grids", None), CorruptionError, "grid is 0, not below 0"),
    # records
    "records is an object": (set_meta("qzc.records", "{}"), CorruptionError, "qzc.records is not a JSON array"),
    "a record that is a number": (set_meta("qzc.records", "[1, 2, 3]"), CorruptionError, "a record must have the keys"),
    "no records": (set_meta("qzc.records", None), CorruptionError, "not below 0"),
    "a field of 10^4000 codes": (records(1, fields=[[8, 10**4000]]), CorruptionError, "record"),
    "interleaved by 2^64": (records(1, interleave=[1, 2**64]), CorruptionError, "'f' has 1200 bytes|record"),
    "a record of 0.0": (records(1, fields=[[8.0, 1.0]]), CorruptionError, "whole numbers"),
    # coded tensors
    **{
        f"grid number {value!r}": (coded("a", grid=value), CorruptionError, "grid is .*, not below")
        for value in NOT_A_GRID
    },
    **{
        f"dtype {value!r}": (coded("a", dtype=value), CorruptionError, "dtype")
        for value in NOT_A_DTYPE
    },
    **{
        f"shape {value!r:.40}": (coded("a", shape=value), CorruptionError, "shape")
        for value in NOT_A_SHAPE
    },
    "a shape with more rows": (coded("a", shape=[10, 150]), CorruptionError, r"'a.qzc.row_class' is U8\[9\], not U8\[10\]"),
    "a shape with more columns": (coded("h", shape=[3, 401]), CorruptionError, "'h': its chunks do not hold as many"),
    "a shape with fewer columns": (coded("h", shape=[3, 399]), CorruptionError, "'h': its chunks do not hold as many"),
    "a lossless shape with more rows": (coded("f", shape=[3, 300]), CorruptionError, "'f': its chunks do not hold as many"),
    "a lossless shape of half records": (coded("p", shape=[201]), CorruptionError, "'p': its chunks do not hold as many"),
    "an entry without shape": (meta("qzc.coded", '"shape"', '"form"'), CorruptionError, "needs dtype, shape and one of"),
    "a scale number of 3": (coded("a", scale=3), CorruptionError, "scale is 3, not below 3"),
    "scales of other records": (coded("h", scale=0), CorruptionError, "'h' has scales of float32, which its records do not"),
    "a record number of -1": (coded("f", records=-1), CorruptionError, "records is -1, not below 3"),
    "a record number of 2^64": (coded("f", records=2**64), CorruptionError, "records is 18446744073709551616, not"),
    "a palette of 0": (coded("p", palette=0), CorruptionError, "'p' has a palette that does not fit"),
    "a palette of 257": (coded("p", palette=257), CorruptionError, "palette is 257, not below 257"),
    "a palette of 4": (coded("p", palette=4), CorruptionError, "'p': its chunks do not hold as many"),
    "a palette of 2": (coded("p", palette=2), CorruptionError, "'p': its chunks do not hold as many"),
    "a palette of fields": (coded("f", palette=3), CorruptionError, "'f' has a palette that does not fit"),
    "a base of None": (coded("f", base=None), CorruptionError, "the XXH3 of a base must be 16"),
    "a base that nothing says": (coded("f", base="0" * 16), CorruptionError, "must have qzc.base"),
    "a size beside a dtype": (coded("f", nbytes=1200), CorruptionError, "'f' must say nbytes if"),
    "a dtype without a size": (coded("f", dtype="I2"), CorruptionError, "'f' must say nbytes if"),
    "a size of 2^48": (coded("f", dtype="I2", nbytes=2**48), CorruptionError, "'f' has an impossible size"),
    "a size of true": (coded("f", dtype="I2", nbytes=True), CorruptionError, "'f' has an impossible size"),
    "a dtype of 5": (coded("f", dtype=5), CorruptionError, "'f' has a dtype that is no short name"),
    "grid and records": (coded("f", grid=0), CorruptionError, "one of grid, records and rate"),
    "neither grid nor records": (without("f", "records"), CorruptionError, "one of grid, records and rate"),
    "an entry that is a list": (lambda d: edit_json(d, "qzc.coded", lambda v: v.update(a=[])), CorruptionError, "needs"),
    # members
    "no payload": (remove("h.qzc.payload"), CorruptionError, "'h' has no payload"),
    "no chunk index": (remove("qzc.chunks"), CorruptionError, "'a': its chunks do not hold as many"),
    **{
        f"a member {name}": (add(name), CorruptionError, "belongs to no tensor")
        for name in (
            "x.qzc.payload", "h.qzc.more", "h.qzc.", ".qzc.", "qzc.tables.zip", "qzc.x", "qzc", "h.qzc", "h.qzc.chunks",
            "h.qzc.scale", "h.qzc.x.qzc.payload", "f.qzc.row_class", "qzc.source",
        )
    },
    "coded and stored": (add("h"), CorruptionError, "'h' is both coded and stored"),
    "a coded tensor with a reserved name": (rename_tensor("h", "h.qzc"), CorruptionError, "'h.qzc' is reserved"),
    "payload of another dtype": (replace("h.qzc.payload", dtype="I8"), CorruptionError, "h.qzc.payload"),
    "payload with two dimensions": (reshape("h.qzc.payload", lambda n: (n, 1)), CorruptionError, "h.qzc.payload"),
    "chunks in one dimension": (
        reshape("qzc.chunks", lambda n: (n,)), CorruptionError, r"qzc.chunks' is U8\[\d+\], not U8\[any, 24\]",
    ),
    "chunks of 12 bytes": (reshape("qzc.chunks", lambda n: (n // 12, 12)), CorruptionError, r"not U8\[any, 24\]"),
    "a source without its file": (add("qzc.source.rest"), CorruptionError, "qzc.source.rest and qzc.source_file must come"),
    "row_class too short": (replace("a.qzc.row_class", shape=(8,), data=bytes(8)), CorruptionError, "a.qzc.row_class"),
    "row_class of a column": (replace("a.qzc.row_class", shape=(9, 1)), CorruptionError, "a.qzc.row_class"),
    "column_class signed": (replace("a.qzc.column_class", dtype="I8"), CorruptionError, "a.qzc.column_class"),
    "column_class gone": (remove("a.qzc.column_class"), CorruptionError, "'a': its chunks do not hold as many"),
    "other classes": (byte("a.qzc.column_class", 0, 77), CorruptionError, "'a': its chunks do not hold as many"),
    "a bank in one dimension": (reshape("qzc.tables.ans16", lambda n: (n,)), CorruptionError, "qzc.tables.ans16"),
    "a bank gone": (remove("qzc.tables.huffman"), CorruptionError, "names a table that its bank does not have"),
    "a member that fills its bytes": (
        header_is(lambda h: h["bias"].update(shape=[6])), CorruptionError, "'bias'.* does not fill",
    ),
    "members that overlap": (
        header_is(lambda h: h["bias"].update(shape=[4], data_offsets=[4, 20])), CorruptionError, "hole|overlap",
    ),
    "a member beyond the end": (
        header_is(lambda h: h.update(more={"dtype": "U8", "shape": [U32], "data_offsets": [size(h), size(h) + U32]})),
        TruncationError, "ends after",
    ),
    "a header that is not padded": (unpadded, CorruptionError, "padded"),
    # ties
    "a tie to nothing": (ties(x="y"), CorruptionError, "'x' is tied to 'y', which is not stored"),
    "a tie to itself": (ties(x="x"), CorruptionError, "not stored"),
    "a loop of ties": (ties(x="y", y="x"), CorruptionError, "not stored"),
    "a tie to a tie": (ties(x="tied"), CorruptionError, "'x' is tied to 'tied', which is not stored"),
    "a tie to a part": (ties(x="h.qzc.payload"), CorruptionError, "not stored"),
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
    "an unknown coder": (rows("h", "coder", at(1, 10)), UnsupportedError, r"'h': chunk 1 uses coder 10; .*6 \(escape16\)"),
    "coder 255": (rows("h", "coder", at(0, 255)), UnsupportedError, "coder 255"),
    "a table out of the bank": (rows("h", "table", at(0, 99)), CorruptionError, "'h': chunk 0 .huffman. names a table that"),
    "a table far out": (rows("h", "table", at(0, U32 - 1)), CorruptionError, "names a table that its bank does not have"),
    "a table of a coder without": (rows("z", "table", at(0, 1)), CorruptionError, "'z': chunk 0 .constant. names a table"),
    "no codes": (rows("h", "codes", at(0, 0)), CorruptionError, "chunk . does not hold 1 to 16777216 codes"),
    "2^24 + 1 codes": (rows("h", "codes", at(0, 2**24 + 1)), CorruptionError, "does not hold 1 to 16777216 codes"),
    "too many codes": (rows("z", "codes", at(-1, lambda n: n + 1)), CorruptionError, "'z': its chunks do not hold as many"),
    "too few codes": (rows("z", "codes", at(-1, lambda n: n - 1)), CorruptionError, "'z': its chunks do not hold as many"),
    "codes that overflow 32 bits": (
        rows("h", "codes", lambda codes: [n + U32 // 2 for n in codes]), CorruptionError, "codes",
    ),
    "a chunk too few": (index(lambda rows: rows[:-1]), CorruptionError, "'z': its chunks do not hold as many codes"),
    "no chunks": (index(lambda rows: []), CorruptionError, "'a': its chunks do not hold as many codes"),
    "a chunk twice": (index(lambda rows: [*rows, rows[-1]]), CorruptionError, "more chunks than the tensors ask for"),
    "a chunk across planes": (
        rows("h", "codes", lambda c: [c[0], c[1] + 4, c[2] - 4]), CorruptionError, "'h': its chunks do not hold as many",
    ),
    "a chunk across classes": (
        rows("a", "codes", lambda c: [c[0] + 2, c[1] - 2, *c[2:]]), CorruptionError, "'a': its chunks do not hold as many",
    ),
    "a chunk across tensors": (
        both(rows("p", "codes", at(1, 8)), rows("r", "codes", at(0, 772))), CorruptionError, "'p': its chunks do not hold",
    ),
    "a chunk that ends in a byte": (
        rows("r", "codes", lambda c: [c[0] - 1, c[1] + 1, c[2]]), CorruptionError, "'r': chunk 0 ends inside a byte",
    ),
    "more bytes than the payload": (rows("h", "nbytes", at(1, U32 - 1)), CorruptionError, "'h': its chunks take 4294967"),
    "fewer bytes than the payload": (rows("h", "nbytes", at(0, 350)), CorruptionError, "'h': its chunks take 624 bytes"),
    "more bytes than codes": (
        rows("r", "nbytes", at(1, lambda n: n + 1)), CorruptionError, "'r': chunk 1 has another number of bytes than",
    ),
    "a raw chunk with fewer bytes": (
        rows("r", "nbytes", at(1, lambda n: n - 1)), CorruptionError, "'r': chunk 1 has another number of bytes than",
    ),
    "a constant of several bytes": (rows("z", "nbytes", at(0, 2)), CorruptionError, "'z', chunk 0 .*constant"),
    "no bytes": (rows("h", "nbytes", at(2, 0)), CorruptionError, "'h'.* 'h': its chunks take|'h': its chunks take"),
    "no streams": (rows("a", "streams", at(1, 0)), CorruptionError, "'a': chunk 1 .ans16. has a wrong number of streams"),
    "streams of huffman": (rows("h", "streams", at(0, 10)), CorruptionError, "huffman. has a wrong number of streams"),
    "too many streams": (rows("a", "streams", at(1, 255)), CorruptionError, "'a', chunk 1 .*ans16"),
    "a delta of a quantized tensor": (rows("a", "delta", at(1, 1)), CorruptionError, "'a': chunk 1 is a delta"),
    "a delta without a base": (rows("f", "delta", at(0, 2)), CorruptionError, "'f': chunk 0 is a delta"),
    # payload
    "a payload with more behind": (
        lengthen("z.qzc.payload", 16), CorruptionError, "'z': its chunks take",
    ),
    "an empty payload": (replace("z.qzc.payload", shape=(0,), data=b""), CorruptionError, "'z': its chunks take"),
    "a gap that is not zero": (gap("h", 1, -1), CorruptionError, "'h': file bytes .* belong to no chunk"),
    "a last gap that is not zero": (gap("z", 0, 15), CorruptionError, "'z': file bytes .* belong to no chunk"),
    "frequencies with another sum": (byte("qzc.tables.ans16", 0, 99), CorruptionError, "qzc.tables.ans16, table 0"),
    "code lengths with another sum": (byte("qzc.tables.huffman", 0, 17), CorruptionError, "qzc.tables.huffman, table 0"),
    "a Huffman code of 15 bits": (byte("qzc.tables.huffman", 0, 255), CorruptionError, "qzc.tables.huffman, table 0"),
    "words that do not fit": (payload("a", 1, 0, 255), CorruptionError, "'a', chunk 1 .*ans16"),
    "sizes that do not fit": (payload("h", 0, 1, 255), CorruptionError, "'h', chunk 0 .*huffman"),
    "a zero point beyond the grid": (payload("a", 3, 0, 0x88), CorruptionError, "'a', chunk 3 .* larger than 7"),
    "a number of no value": (payload("p", 0, 0, 0xFF), CorruptionError, "'p'.*palette"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects(path: Path, defect: str) -> None:
    edit, kind, message = DEFECTS[defect]
    data = edit(sample())
    assert data != sample()
    with raises(path, kind, message):
        check(path, data)
