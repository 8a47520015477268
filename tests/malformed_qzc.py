"""`.qzc` files that are broken in one way each, all else signed and sound. `fixtures/make_bad_qzc.py` writes them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qzc.codec.packing import pack_codes
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor
from tests.golden import Golden, Tensors, encode
from tests.resign import edit_header, edit_json, edit_member, edit_rows, put_together, take_apart

CORRUPT, UNSUPPORTED = 3, 4


@dataclass(frozen=True)
class MalformedQzc:
    """One defect, a part of the message it must be refused with, and the exit code of `qzc verify`."""

    name: str
    data: bytes
    message: str
    exit_code: int = CORRUPT


def sound() -> bytes:
    """The file before it is broken: `w` in two ans16 chunks and one of zero points, `z` of 3 bits raw, `bias`, a tie."""
    squares = np.arange(4096) ** 2 % 251 % 64
    codes = np.where(squares < 54, 8, squares % 16).astype(np.uint8).reshape(4, 1024)
    args = QuantizationArgs(4, False, "channel", None, "absmax", "float16")
    scale, zero_point = np.array([[1], [2], [3], [4]], np.float16), np.array([[7], [8], [8], [9]], np.uint8)
    three = QuantizationArgs(3, True, "tensor", None, "absmax", "float16")
    few = pack_codes((np.arange(40) % 8).astype(np.uint8), 4)
    tensors: Tensors = {
        "w": QuantizedTensor(pack_codes(codes, 4), scale, zero_point, codes.shape, "F32", args),
        "z": QuantizedTensor(few, np.array([1], np.float16), None, (5, 8), "F16", three),
        "bias": np.arange(4, dtype=np.float32),
    }
    return encode(Golden("sound", tensors, "ans", 2048, {"tied": "w"}, {"format": "pt"}))


def malformed_qzc() -> Iterator[MalformedQzc]:
    """Every defect, under the name of its file."""
    yield from damaged()
    yield from bad_metadata()
    yield from bad_members()
    yield from bad_chunks()


def damaged() -> Iterator[MalformedQzc]:
    """What happens to files on their way: cut, flipped, lengthened. The checksums find it."""
    good = sound()
    header, body = take_apart(good)
    start = len(good) - len(body)
    yield MalformedQzc("empty", b"", "the file is empty")
    yield MalformedQzc("cut_in_length", good[:5], "5 bytes are too few")
    yield MalformedQzc("cut_in_header", good[: start // 2], "the file ends inside its header")
    yield MalformedQzc("cut_in_data", good[: start + len(body) // 2], "the file ends after")
    yield MalformedQzc("last_byte_missing", good[:-1], "the file ends after")
    yield MalformedQzc("byte_after_the_end", good + b"\0", "1 bytes after the last tensor")
    flips = {
        "uncoded_tensor": ("bias", 0, "checksum mismatch in 'bias' (file bytes"),
        "payload": ("w.qzc.payload", -16, "tensor 'w', chunk 2 (payload bytes"),
        "chunk_index": ("w.qzc.chunks", 8, "checksum mismatch in 'w.qzc.chunks'"),
        "scale": ("w.qzc.scale", 0, "checksum mismatch in 'w.qzc.scale'"),
        "table": ("qzc.tables.ans16", 0, "checksum mismatch in 'qzc.tables.ans16'"),
        "checksums": ("qzc.checksums", 0, "the checksums themselves are damaged"),
    }
    for what, (member, place, message) in flips.items():
        begin, end = header[member]["data_offsets"]
        yield MalformedQzc(f"flipped_{what}", flipped(good, start + (begin if place >= 0 else end) + place), message)
    gap = start + header["w.qzc.payload"]["data_offsets"][1] - 1
    yield MalformedQzc("flipped_gap", flipped(good, gap), "belong to no chunk and are not 0")
    at = good.index(b"qzc golden")
    yield MalformedQzc("flipped_header", flipped(good, at), "checksum mismatch in the header (file bytes 0 to")


def bad_metadata() -> Iterator[MalformedQzc]:
    good = sound()

    def text(key: str, value: str | None) -> bytes:
        def change(header: dict[str, Any]) -> None:
            if value is None:
                del header["__metadata__"][key]
            else:
                header["__metadata__"][key] = value

        return edit_header(good, change)

    def entry(**fields: Any) -> bytes:
        return edit_json(good, "qzc.coded", lambda coded: coded["z"].update(fields))

    def grid(**fields: Any) -> bytes:
        return edit_json(good, "qzc.grids", lambda grids: grids[0].update(fields))

    yield MalformedQzc("version_1.0", text("qzc.version", "1.0"), "format version 1.0; this qzc reads", UNSUPPORTED)
    yield MalformedQzc("version_missing", text("qzc.version", None), "format version none", UNSUPPORTED)
    yield MalformedQzc("format_other", text("format", "pt"), "not a .qzc file", UNSUPPORTED)
    yield MalformedQzc("writer_missing", text("qzc.writer", None), "metadata has no qzc.writer")
    yield MalformedQzc("coded_missing", text("qzc.coded", None), "metadata has no qzc.coded")
    yield MalformedQzc("coded_not_json", text("qzc.coded", "{"), "metadata qzc.coded is not valid JSON")
    yield MalformedQzc("coded_twice", text("qzc.coded", '{"w":1,"w":1}'), "not valid JSON (duplicate key)")
    yield MalformedQzc("coded_is_list", text("qzc.coded", "[]"), "metadata qzc.coded is not a JSON object")
    yield MalformedQzc("coded_nested_deeply", text("qzc.coded", "[" * 3000), "metadata qzc.coded is not valid JSON")
    yield MalformedQzc("coded_entry_empty", text("qzc.coded", '{"w":{}}'), "coded tensor 'w' needs dtype, shape and")
    yield MalformedQzc("dtype_integer", entry(dtype="I32"), "coded tensor 'z' has dtype I32")
    yield MalformedQzc("shape_negative", entry(shape=[-5, -8]), "has a shape that is not a list of sizes")
    yield MalformedQzc("shape_float", entry(shape=[40.0]), "has a shape that is not a list of sizes")
    yield MalformedQzc("shape_overflows", entry(shape=[2**40, 2**40]), "coded tensor 'z' has an impossible shape")
    yield MalformedQzc("shape_huge", entry(shape=[2**47]), "chunks of plane 0 hold 40 codes")
    yield MalformedQzc("grid_out_of_range", entry(grid=7), "names grid 7 of 2")
    yield MalformedQzc("grid_nine_bits", grid(num_bits=9), "num_bits is 9")
    yield MalformedQzc("grid_strategy_unknown", grid(strategy="lattice"), "unknown strategy 'lattice'")
    yield MalformedQzc("grid_group_of_zero", grid(strategy="group", group_size=0), "a group_size of at least 1")
    without_key = edit_json(good, "qzc.grids", lambda grids: grids[0].pop("symmetric"))
    yield MalformedQzc("grid_key_missing", without_key, "a grid must have the keys")
    yield MalformedQzc("tie_to_nothing", text("qzc.ties", '{"tied":"x"}'), "tied to 'x', which is not stored")
    yield MalformedQzc("tie_of_a_stored_name", text("qzc.ties", '{"bias":"w"}'), "both stored and tied to 'w'")
    yield MalformedQzc("tie_of_a_tie", text("qzc.ties", '{"a":"b","b":"w"}'), "tied to 'b', which is not stored")
    yield MalformedQzc("source_not_strings", text("qzc.source", '{"a":1}'), "qzc.source has a value that is not a")


def bad_members() -> Iterator[MalformedQzc]:
    good = sound()

    def header(change: Callable[[dict[str, Any]], Any]) -> bytes:
        return edit_header(good, lambda header: change(header))

    def rename(old: str, new: str) -> bytes:
        return header(lambda h: h.update({new: h.pop(old)}))

    def member(name: str, **fields: Any) -> bytes:
        return header(lambda h: h[name].update(fields))

    yield MalformedQzc("payload_missing", rename("z.qzc.payload", "y"), "coded tensor 'z' has no payload")
    yield MalformedQzc("scale_missing", rename("z.qzc.scale", "y"), "coded tensor 'z' has no scale")
    yield MalformedQzc("member_of_no_tensor", rename("bias", "y.qzc.scale"), "'y.qzc.scale' belongs to no tensor")
    yield MalformedQzc("name_reserved", rename("bias", "qzc.bias"), "'qzc.bias' belongs to no tensor")
    yield MalformedQzc("coded_and_stored", rename("bias", "z"), "'z' is both coded and stored uncoded")
    yield MalformedQzc(
        "scale_other_shape", member("w.qzc.scale", shape=[2, 2]), "'w.qzc.scale' is F16[2, 2], not F16[4"
    )
    yield MalformedQzc("scale_other_dtype", member("w.qzc.scale", dtype="BF16"), "is BF16[4, 1], not F16[4, 1]")
    yield MalformedQzc(
        "table_rows_too_long", member("qzc.tables.ans16", shape=[1, 1, 16]), "qzc.tables.ans16' is U8[1, 1"
    )
    yield MalformedQzc("checksums_missing", rename("qzc.checksums", "y"), "qzc.checksums is missing")
    yield MalformedQzc("members_overlap", overlapping(good), "overlaps the tensor before it")
    yield MalformedQzc("member_outside", outside(good), "the file ends after")
    unpadded, body = take_apart(good)
    text = json.dumps(unpadded, separators=(",", ":")).encode()
    text += b" " * (1 - (8 + len(text)) % 2)
    raw = len(text).to_bytes(8, "little") + text + bytes(body)
    yield MalformedQzc("header_not_padded", raw, "the header is not padded to a multiple of 64")
    table = edit_member(good, "qzc.tables.ans16", lambda data: data.__setitem__(0, data[0] ^ 1))
    yield MalformedQzc("table_unused", with_another_table(good), "qzc.tables.ans16, table 1: the frequencies")
    yield MalformedQzc("table_of_no_chunk", with_another_bank(good), "qzc.tables.huffman, table 0")
    yield MalformedQzc("table_sum", table, "qzc.tables.ans16, table 0: the frequencies")


def bad_chunks() -> Iterator[MalformedQzc]:
    good = sound()

    def rows(**fields: list[int]) -> bytes:
        return edit_rows(good, "w", **fields)

    yield MalformedQzc("coder_unknown", rows(coder=[2, 9, 0]), "chunk 1 uses coder 9; this qzc knows", UNSUPPORTED)
    yield MalformedQzc("chunk_reserved_byte", rows(reserved=[0, 1, 0]), "chunk 1 has a reserved byte that is not 0")
    yield MalformedQzc("chunk_plane_two", rows(plane=[0, 0, 2]), "chunks are not listed by plane")
    yield MalformedQzc("chunk_of_no_codes", rows(codes=[2048, 0, 4]), "chunk 1 holds 0 codes")
    yield MalformedQzc("chunk_of_too_many_codes", rows(codes=[2048, 2**24 + 1, 4]), "chunk 1 holds 16777217 codes")
    yield MalformedQzc("chunk_counts_disagree", rows(codes=[2048, 2046, 4]), "plane 0 hold 4094 codes, the shape asks")
    yield MalformedQzc("chunk_ends_inside_a_byte", rows(codes=[2047, 2049, 4]), "chunk 0 ends inside a byte")
    yield MalformedQzc("chunk_overlaps", rows(offset=[0, 0, 0]), "starts at payload offset 0, not at")
    yield MalformedQzc("chunk_offset_overflows", rows(offset=[2**64 - 1] * 3), "chunk 0 lies outside the payload")
    yield MalformedQzc("chunk_nbytes_overflows", rows(nbytes=[2**32 - 1] * 3), "chunk 0 lies outside the payload")
    yield MalformedQzc("chunk_table_outside", rows(table=[0, 1000, 0]), "chunk 1 names table 1000 of")
    yield MalformedQzc("chunk_without_streams", rows(streams=[0, 1, 0]), "chunk 0 (ans16) has 0 streams")
    yield MalformedQzc("chunk_too_many_streams", rows(streams=[255, 1, 0]), "tensor 'w', chunk 0")
    yield MalformedQzc("chunk_checksum", rows(checksum=[0, 0, 0]), "the checksum of the chunk does not match")

    def payload(name: str, change: Callable[[bytearray], None]) -> bytes:
        return edit_member(good, f"{name}.qzc.payload", change)

    first = 64 - (len(good) - len(take_apart(good)[1]) + take_apart(good)[0]["w.qzc.payload"]["data_offsets"][0]) % 64

    def zero_state(data: bytearray) -> None:
        data[first % 64 + 4 : first % 64 + 8] = bytes(4)

    def missing_word(data: bytearray) -> None:
        data[first % 64] ^= 1

    def code_eight(data: bytearray) -> None:
        data[-20] = 0x88

    yield MalformedQzc("ans_state_too_small", payload("w", zero_state), "tensor 'w', chunk 0")
    yield MalformedQzc("ans_word_count", payload("w", missing_word), "tensor 'w', chunk 0")
    yield MalformedQzc("code_beyond_the_grid", payload("z", code_eight), "tensor 'z'")
    gap = edit_member(good, "w.qzc.payload", lambda data: data.__setitem__(-1, 1))
    yield MalformedQzc("gap_not_zero", gap, "belong to no chunk and are not 0")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def overlapping(data: bytes) -> bytes:
    header, body = take_apart(data)
    begin, end = header["z.qzc.scale"]["data_offsets"]
    header["z.qzc.scale"]["data_offsets"] = [begin - 2, end - 2]
    return put_together(header, body)


def with_another_table(data: bytes) -> bytes:
    """A second row of zeros in the bank, which no chunk names."""
    header, body = take_apart(data)
    bank = header["qzc.tables.ans16"]
    end = bank["data_offsets"][1]
    bank.update(shape=[bank["shape"][0] + 1, 16], data_offsets=[bank["data_offsets"][0], end + 16])
    header["qzc.checksums"]["data_offsets"] = [at + 16 for at in header["qzc.checksums"]["data_offsets"]]
    return put_together(header, body[:end] + bytes(16) + body[end:])


def with_another_bank(data: bytes) -> bytes:
    """A row of zeros for a coder that no chunk uses."""
    header, body = take_apart(data)
    begin, end = header["qzc.checksums"]["data_offsets"]
    header["qzc.tables.huffman"] = {"dtype": "U8", "shape": [1, 128], "data_offsets": [begin, begin + 128]}
    header["qzc.checksums"].update(shape=[(end - begin) // 8 + 1, 8], data_offsets=[begin + 128, end + 128 + 8])
    return put_together(header, body[:begin] + bytes(128) + body[begin:] + bytes(8))


def outside(data: bytes) -> bytes:
    header, body = take_apart(data)
    begin, end = header["qzc.checksums"]["data_offsets"]
    header["qzc.checksums"].update(shape=[(end - begin) // 8 + 1000, 8], data_offsets=[begin, end + 8000])
    return put_together(header, body)


MALFORMED_QZC: dict[str, MalformedQzc] = {case.name: case for case in malformed_qzc()}
