"""safetensors files that are broken in one way each. `fixtures/make_bad.py` writes them out; `test_formats_header.py` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DATA = bytes(range(24))


@dataclass(frozen=True)
class Malformed:
    """One defect. `message` is a part of the error that qzc gives; `library`: whether the safetensors library objects too."""

    name: str
    data: bytes
    message: str
    truncated: bool = False
    library: bool = True


def file_of(header: str | bytes | dict[str, Any], data: bytes = DATA) -> bytes:
    """A file with this header, whatever it says, and this data."""
    text = json.dumps(header, separators=(",", ":")) if isinstance(header, dict) else header
    raw = text if isinstance(text, bytes) else text.encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def two(first: tuple[int, int], second: tuple[int, int], data: int = 24) -> bytes:
    tensors = {"a": entry("U8", [first[1] - first[0]], first), "b": entry("U8", [second[1] - second[0]], second)}
    return file_of(tensors, bytes(data))


GOOD = file_of({"__metadata__": {"format": "pt"}, "w": entry()})
ENTRY = json.dumps(entry(), separators=(",", ":"))


def malformed() -> Iterator[Malformed]:
    """Every defect, under the name of its file."""
    yield Malformed("empty", b"", "the file is empty", truncated=True)
    yield Malformed("seven_bytes", GOOD[:7], "7 bytes are too few", truncated=True)
    yield Malformed("header_length_alone", GOOD[:8], "ends inside its header (0 of", truncated=True)
    yield Malformed("cut_in_header", GOOD[:40], "ends inside its header (32 of", truncated=True)
    yield Malformed("cut_in_data", GOOD[:-1], "ends after 23 of 24 bytes of data", truncated=True)
    yield Malformed("header_above_limit", (100_000_001).to_bytes(8, "little") + GOOD[8:], "100,000,001 is above")
    yield Malformed("header_length_all_ones", b"\xff" * 8 + GOOD[8:], "not a safetensors file")
    yield Malformed("not_safetensors", b"This is a text file, and not a short one.\n", "not a safetensors file")
    yield Malformed("zeros", bytes(64), "expected '{' at character 0")
    yield Malformed("text_after_length", (8).to_bytes(8, "little") + b"A header is JSON.", "does not begin with '{'")
    yield Malformed("space_before_header", file_of(" " + json.dumps({"w": entry()})), "not begin with", library=False)
    yield Malformed("not_utf8", file_of(b'{"\xff":' + ENTRY.encode() + b"}"), "not UTF-8 (byte 10)")
    yield Malformed("not_json", file_of('{"w": tensor}'), "its entry is not an object")
    yield Malformed("brace_missing", file_of('{"w":' + ENTRY), "not JSON (expected ',' at character 56)")
    yield Malformed("comma_at_end", file_of('{"w":' + ENTRY + ",}"), "expected a name in double quotes")
    yield Malformed("colon_missing", file_of('{"w"' + ENTRY + "}"), "expected ':'")
    yield Malformed("single_quotes", file_of("{'w':" + ENTRY + "}"), "expected a name in double quotes")
    yield Malformed("string_without_end", file_of('{"w'), "Unterminated string")
    yield Malformed("control_character", file_of('{"w\n":' + ENTRY + "}"), "Invalid control character")
    yield Malformed("half_surrogate", file_of('{"\\ud800":' + ENTRY + "}"), "half of a surrogate pair")
    yield Malformed("text_after_header", file_of('{"w":' + ENTRY + "} {}"), "text after the end")
    yield Malformed("header_is_list", file_of("[1, 2]", b""), "does not begin with '{'")
    yield Malformed("nested_deeply", file_of('{"w":{"shape":' + "[" * 8000 + "]" * 8000 + "}}"), "nested too deeply")
    yield Malformed("entry_without_end", file_of('{"w":{"shape":[' + "1," * 10000 + "1]}}"), "no end within 16,384")
    yield Malformed("object_in_entry", file_of('{"w":{"shape":{},"dtype":"F32"}}'), "an object inside its entry")
    yield Malformed(
        "duplicate_tensor", file_of('{"w":' + ENTRY + ',"w":' + ENTRY + "}"), "duplicate tensor 'w'", library=False
    )
    yield Malformed(
        "duplicate_metadata", file_of('{"__metadata__":{},"__metadata__":{}}', b""), "duplicate key '__metadata__'"
    )
    yield Malformed(
        "duplicate_metadata_key", file_of('{"__metadata__":{"a":"1","a":"2"}}', b""), "duplicate key 'a'", library=False
    )
    yield Malformed("duplicate_field", file_of('{"w":' + ENTRY[:-1] + ',"dtype":"F32"}}'), "duplicate field")
    yield Malformed("metadata_is_list", file_of({"__metadata__": ["a"]}, b""), "__metadata__ is not an object")
    yield Malformed(
        "metadata_number", file_of({"__metadata__": {"a": 1}}, b""), "value of 'a' in __metadata__ is not a string"
    )
    yield Malformed("metadata_nested", file_of({"__metadata__": {"a": {"b": "c"}}}, b""), "is not a string")
    yield Malformed("entry_is_list", file_of({"w": [1]}), "tensor 'w': its entry is not an object")
    yield Malformed("entry_is_empty", file_of({"w": {}}), "tensor 'w': no data_offsets")
    yield Malformed("dtype_missing", file_of({"w": {"shape": [6], "data_offsets": [0, 24]}}), "tensor 'w': no dtype")
    yield Malformed("field_unknown", file_of({"w": entry(stride=1)}), "unknown field 'stride'", library=False)
    yield Malformed("dtype_is_number", file_of({"w": entry(dtype=32)}), "dtype is not a string")
    yield Malformed("dtype_is_odd_text", file_of({"w": entry(dtype="F32\n")}), "dtype is not a plain name")
    yield Malformed("shape_is_number", file_of({"w": entry(shape=6)}), "shape is not a list")
    yield Malformed("shape_negative", file_of({"w": entry(shape=[-2, -3])}), "shape holds a number that is negative")
    yield Malformed("shape_float", file_of({"w": entry(shape=[6.0])}), "shape holds something that is not an integer")
    yield Malformed(
        "shape_bool", file_of({"w": entry(shape=[6, True])}), "shape holds something that is not an integer"
    )
    yield Malformed(
        "shape_nan", file_of('{"w":' + ENTRY.replace("[2,3]", "[NaN]") + "}"), "NaN is not a number of JSON"
    )
    yield Malformed("shape_huge_number", file_of('{"w":' + ENTRY.replace("3", "9" * 6000) + "}"), "Exceeds the limit")
    yield Malformed(
        "shape_above_63_bits", file_of({"w": entry(shape=[0, 2**63], offsets=[0, 0])}, b""), "2^63 - 1", library=False
    )
    yield Malformed(
        "shape_overflows_to_fit", file_of({"w": entry(shape=[2**32, 2**32, 6])}), "product of its shape overflows"
    )
    yield Malformed(
        "shape_overflows_then_zero", file_of({"w": entry("U8", [2**40, 2**40, 0], [0, 0])}, b""), "overflows"
    )
    overflow_after_zero = file_of({"w": entry("U8", [0, 2**40, 2**40], [0, 0])}, b"")
    yield Malformed("shape_overflows_after_zero", overflow_after_zero, "overflows", library=False)
    yield Malformed("offsets_three", file_of({"w": entry(offsets=[0, 24, 24])}), "data_offsets has 3 numbers, not 2")
    yield Malformed(
        "offsets_negative", file_of({"w": entry(offsets=[-24, 0])}), "data_offsets holds a number that is negative"
    )
    yield Malformed(
        "offsets_reversed", file_of({"w": entry(offsets=[24, 0])}), "data_offsets end (0) before they begin (24)"
    )
    yield Malformed(
        "offsets_huge", file_of({"w": entry(offsets=[2**64, 2**64 + 24])}), "data_offsets holds a number that is"
    )
    yield Malformed("size_too_small", file_of({"w": entry(shape=[5])}), "F32 of shape [5] does not fill its 24 bytes")
    yield Malformed("size_too_large", file_of({"w": entry(shape=[7])}), "F32 of shape [7] does not fill its 24 bytes")
    yield Malformed(
        "size_half_byte", file_of({"w": entry("F4", [3], [0, 2])}, bytes(2)), "F4 of shape [3] does not fill its 2"
    )
    yield Malformed("hole_at_start", file_of({"w": entry(offsets=[8, 32])}, bytes(32)), "a hole of 8 bytes before it")
    yield Malformed("hole_between", two((0, 8), (9, 24)), "tensor 'b': a hole of 1 bytes before it")
    yield Malformed("overlap", two((0, 16), (8, 24)), "tensor 'b': overlaps the tensor before it")
    yield Malformed("same_data_twice", two((0, 24), (0, 24)), "overlaps the tensor before it")
    yield Malformed("empty_tensor_inside", two((0, 24), (8, 8)), "overlaps the tensor before it")
    yield Malformed("beyond_the_end", two((0, 8), (8, 1024)), "ends after 24 of 1,024 bytes of data", truncated=True)
    yield Malformed("bytes_after_the_end", GOOD + b"\0", "1 bytes after the last tensor")
    yield Malformed("no_tensors_but_data", file_of({}), "24 bytes after the last tensor")


MALFORMED: dict[str, Malformed] = {case.name: case for case in malformed()}
