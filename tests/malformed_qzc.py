"""`.qzc` files that are broken in one way each, all else signed and sound. `fixtures/make_bad_qzc.py` writes them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qzc.codec.packing import pack_codes
from qzc.codec.rate_tensor import RateTensor
from qzc.codec.records import Records
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor
from tests import edits
from tests.builders import Lossless, Plan, Source, Tensors, build
from tests.edits import Edit
from tests.resign import column, edit_header, edit_json, edit_member, edit_rows, put_together, take_apart

CORRUPT, UNSUPPORTED = 3, 4


@dataclass(frozen=True)
class MalformedQzc:
    """One defect, a part of the message it must be refused with, and the exit code of `qzc verify`."""

    name: str
    data: bytes
    message: str
    exit_code: int = CORRUPT


def sound() -> bytes:
    """The file before it is broken: `w` in two ans16 chunks, one of zero points and one of scales, `z` of 3 bits raw."""
    squares = np.arange(2048) ** 2 % 251 % 64
    codes = np.where(squares < 54, 8, squares % 16).astype(np.uint8).reshape(4, 512)
    args = QuantizationArgs(4, False, "channel", None, "absmax", "float16")
    scale, zero_point = np.array([[1], [2], [3], [4]], np.float16), np.array([[7], [8], [8], [9]], np.uint8)
    three = QuantizationArgs(3, True, "tensor", None, "absmax", "float16")
    few = pack_codes((np.arange(40) % 8).astype(np.uint8), 4)
    tensors: Tensors = {
        "w": QuantizedTensor(pack_codes(codes, 4), scale, zero_point, codes.shape, "F32", args),
        "z": QuantizedTensor(few, np.array([1], np.float16), None, (5, 8), "F16", three),
        "bias": np.arange(4, dtype=np.float32),
    }
    return build(tensors, Plan("qzc golden", chunk_codes=1024, ties={"tied": "w"}, metadata={"format": "pt"}))


def sound_lossless(*, delta: bool = True) -> bytes:
    """Without quantized tensors: `f` of BF16, `p` with a palette of three, `u` as it is; with its source. `d` is a delta."""
    floats, base = np.array([1, 2, 4, 8], "<f4").tobytes(), np.arange(64, dtype="<u2")
    few = np.array([7, 9, 7, 8, 9], "<i2").tobytes()
    tensors: Tensors = {
        "f": Lossless("BF16", (2, 4), floats, Records(((8, 1), (4, 2)), rotate=True, interleave=(1, 2))),
        "p": Lossless("I16", (5,), few, Records(((8, 2),)), palette=True),
        "u": np.arange(4, dtype=np.uint8),
    }
    source, offsets = b"start" + floats + few + bytes(range(4)) + b"end", {"f": 5, "p": 21, "u": 31}
    if delta:
        changed = (base ^ 3).tobytes()
        coded = Lossless("U16", (64,), changed, Records(((8, 1), (8, 1))), base=base.tobytes())
        tensors, source, offsets = {**tensors, "d": coded}, source + changed, {**offsets, "d": len(source)}
    return build(tensors, Plan("qzc golden", coder="raw", source=Source("gguf", source, offsets)))


def malformed_qzc() -> Iterator[MalformedQzc]:
    """Every defect, under the name of its file."""
    yield from damaged()
    yield from bad_metadata()
    yield from bad_members()
    yield from bad_chunks()
    yield from bad_lossless()
    yield from bad_source()
    yield from bad_rates()


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
        "payload": ("w.qzc.payload", -32, "tensor 'w', chunk 2 (file bytes"),
        "scale": ("w.qzc.payload", -16, "tensor 'w', chunk 3 (file bytes"),
        "chunk_index": ("qzc.chunks", 8, "checksum mismatch in 'qzc.chunks'"),
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


def sound_rate() -> bytes:
    """`r` on a trellis of 4 states that begins anew in row 4, with a vector; its first chunk is coded, its second constant."""
    codes = np.zeros((8, 64), np.int16)
    codes[:4, ::5] = 1
    log = (np.arange(64) % 3).astype(np.int8)
    tensor = RateTensor(
        codes,
        np.float32(0.5),
        (8, 64),
        "F32",
        log,
        gain=np.full(64, 128, np.uint8),
        class_offset=90,
        states=4,
        restart=4,
    )
    return build({"r": tensor}, Plan("qzc golden", chunk_codes=256))


def bad_rates() -> Iterator[MalformedQzc]:
    good = sound_rate()

    def rate(**fields: Any) -> bytes:
        return edit_json(good, "qzc.coded", lambda coded: coded["r"]["rate"].update(fields))

    yield MalformedQzc("rate_step_infinite", rate(step="7f800000"), "'r': the step is inf, not positive and finite")
    yield MalformedQzc("rate_no_such_trellis", rate(states=6), "'r': no trellis has 6 states")
    yield MalformedQzc("rate_vector_out_of_order", rate(row_log=2), "tensor 'r' uses vector 2 in a way that cannot be")
    yield MalformedQzc("rate_level_too_wide", edits.payload("r", 1, 0, 127)(good), "a level does not fit 8 bits")
    yield MalformedQzc(
        "rate_chunk_inside_a_trellis", edit_rows(good, "r", codes=[128, 384]), "begins where no chunk of its tensor may"
    )
    yield MalformedQzc("rate_bank_too_long", edits.lengthen("qzc.tables.classes", 1)(good), "bytes are left over")


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
    yield MalformedQzc("shape_huge", entry(shape=[2**47]), "'z': its chunks do not hold as many codes")
    yield MalformedQzc("grid_out_of_range", entry(grid=7), "'z': grid is 7, not below 2")
    yield MalformedQzc("scale_out_of_range", entry(scale=1), "'z': scale is 1, not below 1")
    yield MalformedQzc("scale_missing", edits.without("z", "scale")(good), "'z': scale is None, not below 1")
    yield MalformedQzc("scale_of_other_records", grid(scale_dtype="float32"), "which its records do not fit")
    yield MalformedQzc("grid_and_records", entry(records=0), "'z' needs dtype, shape and one of grid, records and")
    yield MalformedQzc("quantized_with_a_palette", entry(palette=2), "coded tensor 'z'")
    yield MalformedQzc("records_missing", text("qzc.records", None), "scale is 0, not below 0")
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
    yield MalformedQzc("index_missing", edits.remove("qzc.chunks")(good), "'w': its chunks do not hold as many codes")
    yield MalformedQzc(
        "index_rows_too_long", member("qzc.chunks", shape=[3, 48]), "'qzc.chunks' is U8[3, 48], not U8[any"
    )
    yield MalformedQzc("member_of_no_tensor", rename("bias", "y.qzc.payload"), "'y.qzc.payload' belongs to no tensor")
    yield MalformedQzc("member_of_version_0.1", rename("bias", "w.qzc.scale"), "'w.qzc.scale' belongs to no tensor")
    yield MalformedQzc("name_reserved", rename("bias", "qzc.bias"), "'qzc.bias' belongs to no tensor")
    yield MalformedQzc("coded_and_stored", rename("bias", "z"), "'z' is both coded and stored uncoded")
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

    yield MalformedQzc("coder_unknown", rows(coder=[2, 10, 0, 0]), "chunk 1 uses coder 10; this qzc knows", UNSUPPORTED)
    yield MalformedQzc("chunk_reserved_byte", rows(reserved=[0, 1, 0, 0]), "chunk 1 has a reserved byte that is not 0")
    yield MalformedQzc("chunk_of_no_codes", rows(codes=[1024, 0, 4, 8]), "does not hold 1 to 16777216 codes")
    yield MalformedQzc(
        "chunk_of_too_many_codes", rows(codes=[1024, 2**24 + 1, 4, 8]), "does not hold 1 to 16777216 codes"
    )
    yield MalformedQzc("chunk_counts_disagree", rows(codes=[1024, 1022, 4, 8]), "'w': its chunks do not hold as many")
    yield MalformedQzc("chunk_crosses_planes", rows(codes=[1024, 1026, 2, 8]), "'w': its chunks do not hold as many")
    yield MalformedQzc("chunk_ends_inside_a_byte", rows(codes=[1023, 1025, 4, 8]), "chunk 0 ends inside a byte")
    yield MalformedQzc(
        "chunk_missing", edits.index(lambda rows: rows[:-1])(good), "'z': its chunks do not hold as many"
    )
    yield MalformedQzc(
        "chunk_left_over", edits.index(lambda rows: rows + rows[-1:])(good), "more chunks than the tensors"
    )
    yield MalformedQzc("chunk_nbytes_overflows", rows(nbytes=[2**32 - 1] * 4), "'w': its chunks take")
    yield MalformedQzc("chunk_nbytes_zero", rows(nbytes=[*column(good, "w", "nbytes")[:3], 0]), "'w': its chunks take")
    yield MalformedQzc(
        "chunk_larger_than_its_codes", rows(nbytes=[*column(good, "w", "nbytes")[:3], 9]), "another number of"
    )
    yield MalformedQzc("chunk_table_outside", rows(table=[0, 1000, 0, 0]), "names a table that its bank does not have")
    yield MalformedQzc(
        "chunk_without_streams", rows(streams=[0, 1, 0, 0]), "chunk 0 (ans16) has a wrong number of streams"
    )
    yield MalformedQzc("chunk_too_many_streams", rows(streams=[255, 1, 0, 0]), "tensor 'w', chunk 0")
    yield MalformedQzc("chunk_delta_without_base", rows(delta=[1, 0, 0, 0]), "chunk 0 is a delta of a kind that")
    yield MalformedQzc("chunk_checksum", rows(checksum=[0, 0, 0, 0]), "the checksum of the chunk does not match")

    def payload(name: str, change: Callable[[bytearray], None]) -> bytes:
        return edit_member(good, f"{name}.qzc.payload", change)

    first = column(good, "w", "offset")[0]

    def high_bits(data: bytearray) -> None:
        data[first : first + 16] = bytes(16)  # so that what follows are words, and too many

    def spare_bits(data: bytearray) -> None:
        lengths = [length for byte in data[first : first + 16] for length in (byte & 15, byte >> 4)]
        assert sum(lengths) % 16
        data[first + 80 + -(-sum(lengths) // 16) * 2 - 1] |= 0x80

    def code_eight(data: bytearray) -> None:
        data[column(good, "z", "offset")[0]] = 0x88

    yield MalformedQzc("ans_states_too_short", payload("w", high_bits), "tensor 'w', chunk 0")
    yield MalformedQzc("ans_state_padding", payload("w", spare_bits), "tensor 'w', chunk 0")
    yield MalformedQzc("code_beyond_the_grid", payload("z", code_eight), "tensor 'z'")
    gap = edit_member(good, "w.qzc.payload", lambda data: data.__setitem__(-1, 1))
    yield MalformedQzc("gap_not_zero", gap, "belong to no chunk and are not 0")


def bad_lossless() -> Iterator[MalformedQzc]:
    good = sound_lossless()

    def entry(name: str, **fields: Any) -> bytes:
        return edits.coded(name, **fields)(good)

    def records(**fields: Any) -> bytes:
        """With other records of `f`."""
        values = edits.take_json(good, "qzc.coded")
        return edits.records(values["f"]["records"], **fields)(good)

    yield MalformedQzc(
        "records_key_missing", edits.meta("qzc.records", '"rotate"', '"r"')(good), "a record must have the keys"
    )
    yield MalformedQzc("records_no_fields", records(fields=[]), "records have 1 to 64 fields")
    yield MalformedQzc("records_too_many_fields", records(fields=[[8, 1]] * 65), "records have 1 to 64 fields")
    yield MalformedQzc("records_field_of_nine_bits", records(fields=[[9, 1], [7, 1]]), "codes of 1 to 8 bits")
    yield MalformedQzc(
        "records_field_of_no_codes", records(fields=[[8, 2], [8, 0]]), "codes of 1 to 8 bits, at least one"
    )
    yield MalformedQzc("records_field_not_a_pair", records(fields=[[8]]), "must be pairs of whole numbers")
    yield MalformedQzc("records_of_half_bytes", records(fields=[[8, 1], [4, 1]]), "a record has 1 to 65536 whole bytes")
    yield MalformedQzc("records_too_large", records(fields=[[8, 65537]]), "a record has 1 to 65536 whole bytes")
    yield MalformedQzc("records_rotated_in_threes", records(fields=[[8, 3]]), "cannot be rotated")
    yield MalformedQzc("records_rotate_is_number", records(rotate=1), "rotate of a record must be true or false")
    yield MalformedQzc("records_unit_not_a_divisor", records(interleave=[3, 2]), "cannot be interleaved")
    yield MalformedQzc("records_no_lanes", records(interleave=[1, 0]), "cannot be interleaved")
    yield MalformedQzc("records_too_many_lanes", records(interleave=[1, 2**24 + 1]), "cannot be interleaved")
    yield MalformedQzc("records_do_not_fill_the_tensor", records(interleave=[1, 3]), "no whole number of its records")
    apart: dict[str, Any] = {"rotate": False, "interleave": None, "fields": [[8, 2]]}
    twice = records(**apart, gather=[[[2], [4, 0, 8], [4, 8, 4]]])
    yield MalformedQzc("records_gather_bits_twice", twice, "do not have every bit of the record once")
    outside = records(**apart, gather=[[[2], [4, 0, 8], [4, 4, 16]]])
    yield MalformedQzc("records_gather_outside", outside, "gathered bits are not in the record")
    yield MalformedQzc("records_out_of_range", entry("f", records=9), "'f': records is 9, not below 3")
    alone = edits.both(
        edits.remove("qzc.source.rest"), edits.remove("qzc.source.offsets"), edits.set_meta("qzc.source_file", None)
    )
    other = edits.coded("f", shape=[4, 4])(alone(good))
    yield MalformedQzc("lossless_of_other_shape", other, "'f': its chunks do not hold as many codes")
    yield MalformedQzc("lossless_with_a_scale", entry("f", scale=0), "coded tensor 'f'")
    yield MalformedQzc("lossless_with_class_map", edits.add("f.qzc.row_class")(good), "'f.qzc.row_class' belongs to no")
    yield MalformedQzc(
        "nbytes_of_a_known_dtype", entry("f", nbytes=16), "'f' must say nbytes if dtype and shape do not"
    )
    yield MalformedQzc("nbytes_missing", entry("f", dtype="Q4_K"), "'f' must say nbytes if dtype and shape do not")
    yield MalformedQzc("nbytes_huge", entry("f", dtype="Q4_K", nbytes=2**48), "'f' has an impossible size")
    yield MalformedQzc(
        "dtype_with_control_character", entry("f", dtype="\x1b[2J", nbytes=16), "'f' has a dtype that is no"
    )
    yield MalformedQzc("palette_of_none", entry("p", palette=0), "'p' has a palette that does not fit")
    yield MalformedQzc("palette_too_large", entry("p", palette=257), "palette is 257, not below 257")
    yield MalformedQzc("palette_of_fields", entry("f", palette=3), "'f' has a palette that does not fit")
    yield MalformedQzc("palette_of_a_delta", entry("d", palette=3), "'d' has a palette that does not fit")
    yield MalformedQzc("palette_of_other_size", entry("p", palette=4), "'p': its chunks do not hold as many codes")
    yield from bad_scales()
    number = edits.payload("p", 0, 0, 0xFF)(sound_lossless(delta=False))
    yield MalformedQzc("palette_number_of_no_value", number, "'p'")
    yield MalformedQzc(
        "base_not_a_checksum", entry("d", base="0x12"), "the XXH3 of a base must be 16 hexadecimal digits"
    )
    yield MalformedQzc(
        "base_of_nobody", edits.without("d", "base")(good), "must have qzc.base where tensors have a base"
    )
    yield MalformedQzc(
        "base_unexplained", edits.set_meta("qzc.base", None)(good), "must have qzc.base where tensors have"
    )
    unknown = edits.row("d", 0, delta=3)(good)
    yield MalformedQzc("chunk_delta_unknown", unknown, "chunk 0 is a delta of a kind that")
    without = edits.row("f", 0, delta=1)(good)
    yield MalformedQzc("chunk_delta_of_no_base", without, "chunk 0 is a delta of a kind that")


def bad_scales() -> Iterator[MalformedQzc]:
    """`s` is 40 floats with a scale for every 16."""
    floats = (np.arange(40) % 5 - 2) * np.repeat([1, 1.5, 0.5], 16)[:40]
    tensors: Tensors = {
        "p": Lossless("I16", (4,), bytes(8), Records(((8, 2),)), palette=True),
        "s": Lossless("F16", (40,), floats.astype("<f2").tobytes(), palette=True, group=16),
        "u": np.arange(4, dtype=np.uint8),
    }
    good = build(tensors, Plan("qzc golden", coder="raw"))
    for name, edit in {
        "too_small": edits.coded("s", group=15),
        "too_large": edits.coded("s", group=2**31),
        "of_another_dtype": edits.coded("s", dtype="U16"),
        "without_a_palette": edits.without("s", "palette"),
        "not_a_number": edits.coded("s", group=16.0),
        "of_integers": edits.coded("p", group=16),
    }.items():
        yield MalformedQzc(f"group_{name}", edit(good), "group")
    yield MalformedQzc(
        "group_of_other_size", edits.coded("s", group=20)(good), "'s': its chunks do not hold as many codes"
    )
    yield MalformedQzc("group_number_of_no_value", edits.payload("s", 0, 0, 0x77)(good), "'s'")


def bad_source() -> Iterator[MalformedQzc]:
    good = sound_lossless(delta=False)

    def case(name: str, edit: Edit, message: str) -> MalformedQzc:
        return MalformedQzc(f"source_{name}", edit(good), message)

    yield case(
        "rest_missing", edits.remove("qzc.source.rest"), "qzc.source.rest and qzc.source_file must come together"
    )
    yield case(
        "offsets_missing", edits.remove("qzc.source.offsets"), "qzc.source.offsets and qzc.source_file must come"
    )
    yield case("undescribed", edits.set_meta("qzc.source_file", None), "qzc.source_file must come together")
    yield case("of_unknown_kind", edits.source_file(kind="onnx"), "qzc.source_file is of the unknown kind onnx")
    yield case("of_negative_size", edits.source_file(nbytes=-1), "qzc.source_file has an impossible size")
    yield case("without_checksum", edits.source_file(xxh3=None), "the XXH3 of qzc.source_file must be 16")
    yield case("too_small", edits.source_file(nbytes=40), "do not make a file of 40 bytes")
    yield case("too_large", edits.source_file(nbytes=2**40), "do not make a file of 1099511627776 bytes")
    yield case("rest_not_zlib", edits.rest_is(b"rest"), "qzc.source.rest is not a zlib stream")
    yield case("rest_cut", edits.cut("qzc.source.rest", 1), "do not make a file of 38 bytes")
    yield case("offsets_overlap", edits.offset_is(1, 20), "tensors that overlap or lie outside the file")
    yield case("offsets_outside", edits.offset_is(2, 2**63), "tensors that overlap or lie outside the file")
    yield case("offsets_too_few", edits.cut("qzc.source.offsets", 8), "'qzc.source.offsets' is U8")
    quantized = sound()
    described = edits.take_json(good, "qzc.source_file")
    beside = edits.set_meta("qzc.source_file", json.dumps(described))(quantized)
    yield MalformedQzc("source_beside_quantized", beside, "qzc.source_file beside quantized tensors")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def overlapping(data: bytes) -> bytes:
    header, body = take_apart(data)
    begin, end = header["qzc.chunks"]["data_offsets"]
    header["qzc.chunks"]["data_offsets"] = [begin - 2, end - 2]
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
