"""The reference decoder against the reference encoder, against damage, and against the examples of docs/SPEC.md."""

import json
import re
import struct
import zlib
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests import edits
from tests import reference_coders as coders
from tests import reference_decoder as decoder
from tests import reference_encoder as encoder
from tests import reference_header as header
from tests import reference_rate_encoder as rate_encoder
from tests.broken_rules import BROKEN, BROKEN_SOURCE, REST
from tests.edits import Edit
from tests.reference_decoder import BaseMissing, decode_file, restore_source
from tests.reference_encoder import Records, random_file
from tests.resign import ROW, resign
from tests.small_files import BASE, NUMBERS, SOURCE, restorable_file, small_file


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


@pytest.mark.parametrize("seed", range(100))
def test_random_files_decode_to_what_was_encoded(seed: int) -> None:
    file = random_file(np.random.default_rng(seed), any_order=seed % 3 == 0)
    assert_same(decode_file(file.data, file.base), file.expected)
    if file.source is not None:
        assert restore_source(file.data, file.base) == file.source
    for name in file.base:
        with pytest.raises(BaseMissing, match=re.escape(repr(name))):
            decode_file(file.data, {**file.base, name: file.base[name] + b"x"})


def test_random_files_use_the_whole_format() -> None:
    seen: Counter[str] = Counter()
    for seed in range(200):
        _, members, metadata = header.read_header(random_file(np.random.default_rng(seed)).data)
        profile = header.read_metadata(metadata)
        for grid in profile.grids:
            symmetric = "symmetric" if grid.symmetric else "asymmetric"
            seen.update([f"{grid.num_bits}-bit", f"{grid.strategy} {symmetric} {grid.scale_dtype}"])
        for entry in profile.entries.values():
            seen.update([f"{len(entry.shape)}-d", *["empty"] * (0 in entry.shape)])
            if isinstance(entry, header.Lossless):
                records = profile.records[entry.records]
                seen.update([f"lossless {entry.dtype}", f"R = {records.nbytes}"])
                seen.update(["rotate"] * records.rotate + ["interleave"] * (records.lanes > 1))
                seen.update(["gather"] * (records.gather is not None))
                seen.update(["palette"] * (entry.palette is not None) + ["base"] * (entry.base is not None))
                seen.update([f"scales of {entry.dtype}"] * (entry.group is not None))
            elif isinstance(entry, header.Quantized):
                seen.update(["rotated scales"] * profile.records[entry.scale].rotate)
        seen.update(["tie"] * len(profile.ties) + ["source"] * (profile.source_file is not None))
        for name, member in members.items():
            seen[member.dtype] += not header.is_reserved(name)
            seen["row_class"] += name.endswith(".qzc.row_class")
            seen["column_class"] += name.endswith(".qzc.column_class")
        for _, _, _, coder, streams, delta, _, _ in ROW.iter_unpack(
            members["qzc.chunks"].data if "qzc.chunks" in members else b""
        ):
            seen.update([f"coder {coder}", f"delta {delta}", "several streams" if streams > 1 else "one"])
    wanted = {f"{bits}-bit" for bits in range(1, 9)} | {f"{rank}-d" for rank in range(5)}
    wanted |= (
        {f"coder {coder}" for coder in (*range(7), 8, 9)}
        | {f"delta {delta}" for delta in range(3)}
        | {"several streams"}
    )
    wanted |= {"empty", "tie", "row_class", "column_class", "palette", "base", "rotate", "rotated scales", "interleave"}
    wanted |= {"gather"}
    wanted |= {f"R = {size}" for size in (1, 2, 3, 4, 8, 18, 144)} | set(encoder.PLAIN_BITS) | {"source"}
    wanted |= {f"scales of {dtype}" for dtype in ("F32", "F16", "BF16")}
    wanted |= {"lossless Q4_K", "lossless F4", "lossless BF16", "lossless F32", "lossless U8"}
    wanted |= {
        f"{strategy} {symmetric} {dtype}"
        for strategy in ("tensor", "channel", "group")
        for symmetric in ("symmetric", "asymmetric")
        for dtype in encoder.SCALE_DTYPES
    }
    assert {feature for feature in wanted if not seen[feature]} == set()


@pytest.mark.parametrize("seed", range(40))
def test_records_split_and_join(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mine = encoder.random_records(rng, int(rng.choice([1, 2, 4, 8, 3, 18, 144])))
    theirs = header.Records(mine.fields, mine.rotate, mine.unit, mine.lanes, mine.gather)
    assert header.read_records(json.loads(json.dumps(mine.to_json()))) == theirs
    data = rng.bytes(mine.nbytes * mine.lanes * 3)
    planes = encoder.take_apart(data, mine)
    assert decoder.split(data, theirs) == planes
    assert decoder.join(planes, theirs) == data


def test_what_the_small_files_hold() -> None:
    tensors = decode_file(small_file(), BASE)
    assert tensors.keys() == {"a", "b", "c", "d", "f", "p", "bias", "empty"}
    assert tensors["f"].raw == NUMBERS and tensors["p"].raw == b"abcdefefcdabababefef"
    assert restore_source(restorable_file(), BASE) == SOURCE
    with pytest.raises(ValueError, match="does not hold its source"):
        restore_source(small_file(), BASE)
    for wrong in ({}, {"f": BASE["f"][1:]}, {"f": NUMBERS}):
        with pytest.raises(BaseMissing, match="'f'"):
            decode_file(small_file(), wrong)


# ---------------------------------------------------------------------------------------------------------------------
# Damage without the checksums' knowledge


def test_a_flipped_bit_anywhere_is_noticed() -> None:
    for data in (small_file(), restorable_file()):
        decode_file(data, BASE)
        for at, bit in enumerate(np.random.default_rng(0).integers(0, 8, len(data)).tolist()):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(ValueError):
                decode_file(bytes(damaged), BASE)


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


@pytest.mark.parametrize(("where", "edit"), BROKEN, ids=[where for where, _ in BROKEN])
def test_every_rule_is_checked(where: str, edit: Edit) -> None:
    with pytest.raises(ValueError, match=f"^{where}"):
        decode_file(edit(small_file()), BASE)


@pytest.mark.parametrize(("where", "edit"), BROKEN_SOURCE, ids=[where for where, _ in BROKEN_SOURCE])
def test_every_rule_of_the_source_is_checked(where: str, edit: Edit) -> None:
    with pytest.raises(ValueError, match=f"^{where}"):
        decode_file(edit(restorable_file()), BASE)


@pytest.mark.parametrize(
    "edit", [edits.source_file(xxh3="0" * 16), edits.offset_is(4, 53 + 2), edits.rest_is(zlib.compress(REST[::-1]))]
)
def test_a_source_of_other_bytes(edit: Edit) -> None:
    data = edit(restorable_file())
    assert decode_file(data, BASE).keys() == {"e", "f", "p", "u", "v"}
    with pytest.raises(ValueError, match="section 8, source: another file"):
        restore_source(data, BASE)


def test_a_quantized_tensor_has_no_source() -> None:
    metadata, parts = edits.parts_of(small_file())
    _, described, members = encoder.random_source(np.random.default_rng(0), {})
    metadata["qzc.source_file"] = json.dumps(described)
    parts |= {member.name: member for member in members}
    with pytest.raises(ValueError, match="section 8, source: 'a' is quantized"):
        decode_file(encoder.seal(metadata, list(parts.values())), BASE)


def test_checksum_rows() -> None:
    data = small_file()
    rows = len(edits.parts_of(data)[1]) + 2
    for number, where in ((rows - 1, "the last row"), (rows - 2, "header"), (0, "'empty'"), (2, "'a.qzc.payload'")):
        damaged = bytearray(data)
        damaged[len(data) - 8 * (rows - number)] ^= 1
        if number < rows - 1:
            damaged[-8:] = struct.pack("<Q", encoder.xxh3(bytes(damaged[-8 * rows : -8])))
        with pytest.raises(ValueError, match=f"^section 7, qzc.checksums: {where}"):
            decode_file(bytes(damaged), BASE)


HALVES = [0] * 7 + [128, 128] + [0] * 7  # an ans16 table of the symbols 7 and 8


def ans_payload(words: list[int], **states: int) -> bytes:
    """One stream; lanes are named l0, l1 .."""
    all_states = [states.get(f"l{lane}", 2**16) for lane in range(32)]
    return encoder.pack_states(all_states) + struct.pack(f"<{len(words)}H", *words)


@pytest.mark.parametrize(
    ("payload", "n", "where"),
    [
        (ans_payload([])[:79], 64, "stream 0 states: the payload ends"),
        (ans_payload([], l3=2**17)[:81], 64, "stream 0 states: the payload ends"),
        (ans_payload([], l3=2**17)[:80] + b"\0\1", 64, "stream 0 states: unused bits"),
        (ans_payload([], l3=2**17), 64, "states: a final state"),
        (ans_payload([], l4=2**16 + 256), 9, "tail: not zero"),
        (ans_payload([0]), 64, "words: too many"),
        (ans_payload([]), 65, "words: too few"),
        (ans_payload([]) + b"\0", 64, "words: do not fill"),
    ],
)
def test_broken_ans_chunks(payload: bytes, n: int, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        coders.decode_ans(payload, HALVES, 2, 1, n, "ans")


def test_ans_streams_of_every_length() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 31, 32, 33, 63, 64, 65, 66, 95, 96, 97, 127, 128, 129, 200, 321):
        for coder in (2, 3):
            buffer = bytes(rng.choice(np.array([0x77, 0x78, 0x80, 0xFF], np.uint8), n))
            table = encoder.random_table(rng, coder, buffer)
            for streams in range(1, 5):
                payload = encoder.encode_ans(buffer, table, coder, streams)
                if (streams - 1) * encoder.stream_size(n, streams) < n:
                    assert coders.decode_ans(payload, table, coder, streams, n, "ans") == buffer
                else:
                    with pytest.raises(ValueError, match="streams: one of them"):
                        coders.decode_ans(payload, table, coder, streams, n, "ans")


def test_split_chunks_of_every_length() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 127, 128, 129, 130, 131, 257, 400):
        buffer = rng.integers(0, 256, n).astype(np.uint8).tobytes()
        low, high = encoder.split(buffer)
        assert len(low) == len(high) == -(-n // 2)
        table = encoder.random_table(rng, 2, high)
        payload = low + encoder.encode_ans(high, table, 2, 1)
        assert coders.decode_split(payload, table, 1, n, "split8") == buffer


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
    assert coders.decode_split(b"\x77\x07" + ans_payload([], l0=2**16 + 0x0887), HALVES, 1, 3, "") == b"\x6f\x7f\x7f"
    with pytest.raises(ValueError, match=where):
        coders.decode_split(payload, HALVES, 1, 3, "split8")


ESCAPES = [100, 100, *[0] * 13, 56, 7, 9, *[0] * 13]  # an escape16 table of the bytes 7 and 9


def test_escape_chunks_of_every_length() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 127, 128, 129, 130, 131, 257, 400):
        buffer = bytes(rng.choice(np.array([7, 9, 0, 8, 255], np.uint8), n, p=[0.4, 0.4, 0.1, 0.05, 0.05]))
        payload = encoder.encode_escape(buffer, ESCAPES, 1)
        assert coders.decode_escape(payload, ESCAPES, 1, n, "escape16") == buffer


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        (b"\1\0\0", "escaped: too short"),
        (b"\1\0\0\0", "escaped: too short"),
        (b"\0\0\0\0" + ans_payload([], l0=2**16 + 0x0F10), "escaped: too few"),
        (b"\2\0\0\0ab" + ans_payload([], l0=2**16 + 0x0F10), "escaped: too many"),
        (b"\1\0\0\0a" + ans_payload([], l0=2**16 + 0x1F10), "symbols: unused bits"),
        (b"\1\0\0\0a" + ans_payload([], l1=2**16 + 1), "tail: not zero"),
    ],
)
def test_broken_escape_chunks(payload: bytes, where: str) -> None:
    good = b"\1\0\0\0a" + ans_payload([], l0=2**16 + 0x0F10)
    assert coders.decode_escape(good, ESCAPES, 1, 3, "") == b"\7\11a"
    with pytest.raises(ValueError, match=where):
        coders.decode_escape(payload, ESCAPES, 1, 3, "escape16")


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ([100, 100, *[0] * 13, 55, 7, 9, *[0] * 14], "the sum is not 256"),
        ([100, 0, 100, *[0] * 12, 56, 7, 0, 9, *[0] * 13], "a symbol without frequency"),
        ([100, 100, *[0] * 13, 56, 9, 7, *[0] * 14], "bytes out of order"),
        ([100, 100, *[0] * 13, 56, 7, 7, *[0] * 14], "bytes out of order"),
        ([100, 100, *[0] * 13, 56, 7, 9, 10, *[0] * 13], "unused bytes"),
        ([100, 100, *[0] * 13, 56, 7, 9, *[0] * 13, 1], "unused bytes"),
    ],
)
def test_broken_escape_tables(row: list[int], where: str) -> None:
    assert coders.read_table(6, bytes([*ESCAPES, 0]), "") == ESCAPES
    with pytest.raises(ValueError, match=where):
        coders.read_table(6, bytes(row), "table")


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
        coders.decode_huffman(payload, [1] + [0] * 255, 1, "huffman")


def test_damage_under_valid_checksums_raises_nothing_but_value_errors() -> None:
    rng = np.random.default_rng(0)
    outcomes: Counter[bool] = Counter()
    for make in (small_file, restorable_file):
        metadata, parts = edits.parts_of(make())
        assert resign(encoder.seal(metadata, list(parts.values()))) == make()
        for _ in range(600):
            damaged = dict(parts)
            name = str(rng.choice([name for name, part in parts.items() if part.data]))
            data = bytearray(damaged[name].data)
            for at in rng.integers(0, len(data), rng.integers(1, 4)):
                data[at] = rng.integers(0, 256)
            damaged[name] = damaged[name]._replace(data=bytes(data))
            try:
                decode_file(resign(encoder.seal(metadata, list(damaged.values()))), BASE)
                outcomes[True] += 1
            except ValueError:
                outcomes[False] += 1
    assert min(outcomes.values()) > 100  # other weights, or broken rules


# ---------------------------------------------------------------------------------------------------------------------
# The worked examples of the document


def worked_examples() -> str:
    """Section 10 of the document."""
    document = (Path(__file__).parent.parent / "docs" / "SPEC.md").read_text(encoding="utf-8")
    section = document.partition("\n## 10. Worked examples\n")[2]
    assert section, "docs/SPEC.md has no section 10"
    return section


def listings(title: str) -> dict[str, bytes]:
    """Label -> bytes of the listing below `**title**` in section 10.

    A line is an offset, then items (hex bytes, ` * n` if repeated, or text in quotes), then a note.
    """
    section = worked_examples()
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
    assert coders.read_table(2, example["table"], "") == table
    assert coders.decode_ans(payload, table, 2, 1, len(buffer), "") == buffer
    assert encoder.encode_ans(buffer, table, 2, 1) == payload
    assert len(payload) <= len(buffer) == 272 * 4 // 8


def test_worked_ans16_steps() -> None:
    """The table of the steps of lane 0."""
    example = listings("ans16.")
    f = list(example["table"])
    (x, *_), end = coders.read_states(example["payload"], 0, "")
    words = struct.iter_unpack("<H", example["payload"][end:])
    steps = re.findall(r"^\| (\d) \| (.* \| (?:`0x\w+`|no)) \|$", worked_examples(), re.MULTILINE)
    steps = [(step, cells) for step, cells in steps if cells.count(" | ") == 7]
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


def test_worked_ans16_states() -> None:
    """The table of packed states."""
    states, _ = coders.read_states(listings("ans16.")["payload"], 0, "")
    section = worked_examples()
    found = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| `([01]+)` \| `(\w+)` \| `(\w+)` \|$", section, re.MULTILINE)
    assert [row[0] for row in found] == ["0", "1", "2", "8"]
    for lane, length, high, bits, low, state in found:
        x = states[int(lane)]
        assert (hex(x), hex(x & 0xFFFF)) == (state, low)
        assert (x >> 16) == 2 ** int(length) + int(high) == 2 ** len(bits) + int(bits[::-1], 2)


def test_worked_huffman_chunk() -> None:
    example = listings("huffman.")
    buffer, payload = example["buffer"], example["payload"]
    lengths = coders.read_table(4, example["table"], "")
    assert coders.decode_huffman(payload, lengths, len(buffer), "") == buffer
    assert encoder.encode_huffman(buffer, lengths) == payload
    assert len(payload) <= len(buffer) == 104 * 4 // 8


def test_worked_split8_chunk() -> None:
    example = listings("split8.")
    buffer, payload = example["buffer"], example["payload"]
    table = coders.read_table(2, example["table"], "")
    low, high = encoder.split(buffer)
    assert coders.decode_split(payload, table, 1, len(buffer), "") == buffer
    assert low + encoder.encode_ans(high, table, 2, 1) == payload
    assert len(payload) <= len(buffer) == 271


def test_worked_escape16_chunk() -> None:
    example = listings("escape16.")
    buffer, payload = example["buffer"], example["payload"]
    table = coders.read_table(6, example["table"], "")
    assert coders.decode_escape(payload, table, 1, len(buffer), "") == buffer
    assert encoder.encode_escape(buffer, table, 1) == payload
    assert len(payload) <= len(buffer) == 130


def test_worked_short256_chunk() -> None:
    example = listings("short256.")
    buffer, payload = example["buffer"], example["payload"]
    frequencies, precision, size = coders.read_payload_table(payload, "")
    assert (precision, size) == (8, 6)
    assert {symbol: f for symbol, f in enumerate(frequencies) if f} == {0x41: 171, 0x42: 43, 0x43: 42}
    assert coders.decode_payload(payload, 9, [], 1, len(buffer), "") == buffer
    assert encoder.encode_short256(buffer, frequencies, 8, 1, 1) == payload
    assert len(payload) <= len(buffer) == 32


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        (b"", "table: too short"),
        (b"\1\1\x18\xff\1", "table: its first bytes"),
        (b"\1\2\x17\xff\1", "table: its first bytes"),
        (b"\1\2\x28\xff\1", "table: its first bytes"),
        (b"\1\2\x18\0\0\0", "table: no number"),
        (b"\1\2\x18\x80", "table: ends inside a number"),
        (b"\1\2\x18\x80\xff", "table: unused bits"),
        (b"\1\2\x18\0\2\0\0\1", "table: the sum is too large"),
        (b"\1\2\x18\1\1", "table: only one symbol"),
        (b"\1\2\x18\xfe", "table: unused bits"),
        (b"\1\2\x18\6", "short256: too short"),
        (b"\1\2\x18\6\0", "state: its last byte is 0"),
        (b"\1\2\x18\6\2", "states: the final ones are wrong"),
        (b"\1\2\x18\6\xff\xff\xff\0\0", "words: too many"),
    ],
)
def test_broken_short256_chunks(payload: bytes, where: str) -> None:
    """One byte, of value 1 or 2; the good table says that 1 has 2 of 256 slots."""
    assert coders.decode_payload(b"\1\2\x18\6\1", 9, [], 1, 1, "") == b"\1"
    assert coders.decode_payload(b"\1\2\x18\6\3", 9, [], 1, 1, "") == b"\2"
    with pytest.raises(ValueError, match=where):
        coders.decode_payload(payload, 9, [], 1, 1, "9")


def test_worked_tensor_at_a_rate() -> None:
    example = listings("A tensor at a rate")
    codes = np.frombuffer(example["codes"], np.int8).reshape(3, 8).astype(np.int64)

    def table(*frequencies: int) -> list[int]:
        escape, *others = frequencies
        return [escape, *[0] * (127 - len(others)), *others[::-1], 4096 - escape - 2 * sum(others), *others] + [0] * (
            127 - len(others)
        )

    side = [table(1, 0), table(1, 0), table(1, 0), table(0, 0, 1024)]
    bank = rate_encoder.Bank(95, 1, [126, 128], [table(1, 600, 50), table(1, 900, 250, 40)], side)
    row_class = {"row_class": [0, 2, -2]}
    tensor = rate_encoder.Rated("w", "F32", (3, 8), np.float32(0.5), 95, 0, 1, False, codes, row_class)
    coded, members = rate_encoder.write_rated([tensor], bank)
    assert {member.name: member.data for member in members} == {
        "qzc.tables.classes": example["bank"],
        "qzc.vectors": example["vectors"],
    }
    assert [chunk.payload for chunk in coded[0].chunks] == [example["payload"]]
    entry = {"dtype": "F32", "shape": [3, 8], "rate": {"step": "3f000000", "offset": 95, "row_class": 0}}
    assert coded[0].entry == entry and f"`{json.dumps(entry['rate'])}`" in worked_examples()
    metadata = {"format": "qzc", "qzc.version": "0.2", "qzc.writer": "example", "qzc.coded": json.dumps({"w": entry})}
    found = decode_file(encoder.seal(metadata, encoder.lay_out([], coded, encoder.no_tables(), members)))["w"]
    assert_same({"w": found}, {"w": rate_encoder.decoded(tensor, bank)})
    assert found.levels is not None and found.levels.tolist() == codes.tolist()
    assert found.dequantized is not None
    assert f"row 2 are {' '.join(f'{weight:.9g}' for weight in found.dequantized[2] + 0.0)}." in worked_examples()


def test_worked_records() -> None:
    example = listings("records.")
    planes = [list(example[f"plane {i}"]) for i in range(3)]
    data, fields = example["bytes"], [(8, 1), (4, 1), (4, 1)]
    assert np.frombuffer(data, ml_dtypes.bfloat16).astype(float).tolist() == [1, -1.5, 2**-7, 3]
    for key, unit, lanes in (("bytes", 0, 1), ("interleaved", 1, 2)):
        assert decoder.join(planes, header.Records(fields, True, unit, lanes)) == example[key]
        assert encoder.take_apart(example[key], Records(fields, True, unit, lanes)) == planes
    assert '`{"fields": [[8,1], [4,1], [4,1]], "rotate": true, "interleave": null}`' in worked_examples()
    assert (
        " ".join(f"{(x << 1 | x >> 15) & 0xFFFF:04x}" for (x,) in struct.iter_unpack("<H", data)) in worked_examples()
    )


def test_worked_gathered_records() -> None:
    example = listings("gather.")
    text = '{"fields": [[5,8]], "rotate": false, "interleave": null, "gather": [[[2,4], [4,8,4,8], [1,0,4,1]]]}'
    assert f"`{text}`" in worked_examples()
    records, codes = header.read_records(json.loads(text)), list(example["plane 0"])
    assert decoder.join([codes], records) == example["bytes"]
    assert encoder.take_apart(example["bytes"], Records(records.fields, gather=records.gather)) == [codes]
    assert f"The codes are {' '.join(map(str, codes))}." in worked_examples()


def test_worked_file() -> None:
    data = listings("A file")["file"]
    tensors = decode_file(data)
    assert tensors.keys() == {"t", "v", "w"}
    assert (tensors["t"].dtype, tensors["t"].shape, tensors["t"].raw) == ("F32", (), struct.pack("<f", 1))
    assert (tensors["v"].dtype, tensors["v"].shape, tensors["v"].raw) == ("BF16", (4,), listings("records.")["bytes"])
    w = tensors["w"]
    assert w.codes is not None and w.scale is not None and w.dequantized is not None
    assert w.codes.tolist() == [[8, 9, 7, 0], [15, 8, 8, 1]]
    assert w.scale.tolist() == [[0.5], [0.25]]
    assert w.dequantized.tolist() == [[0, 0.5, -0.5, -4], [1.75, 0, 0, -1.75]]
    metadata, parts = edits.parts_of(data)
    assert resign(encoder.seal(metadata, list(parts.values()))) == data
