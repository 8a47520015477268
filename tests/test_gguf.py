"""GGUF files: against the gguf package's writer and reader, broken ones, and the split of real blocks into planes."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from qzc.analysis.entropy import shannon_entropy
from qzc.codec.errors import CorruptionError, FileAccessError, InvalidArgumentError, TruncationError, UnsupportedError
from qzc.codec.packing import unpack_codes
from qzc.codec.records import BYTES, Records, join, split
from qzc.formats.gguf import GgufFile
from qzc.formats.gguf_blocks import BLOCKS, block_records
from tests.layout_writers import gguf_file, gguf_string, gguf_tensor, gguf_value

gguf = pytest.importorskip("gguf")

SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")  # those that the package can quantize to
U32, STRING, ARRAY = 4, 8, 9
ALIGNMENT = gguf_value("general.alignment", U32, struct.pack("<I", 64))


def plane_entropy(data: NDArray[np.uint8], records: Records) -> float:
    """Bits of all planes together, each coded with the order-0 statistics of its own codes."""
    bits = 0.0
    for plane, count, width in zip(split(data, records), records.codes(data.size), records.widths, strict=True):
        bits += count * shannon_entropy(np.bincount(unpack_codes(plane, count, width)))
    return bits


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def weights(model_file: Path) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in load_file(model_file).items() if array.shape[-1] == 256}


@pytest.fixture(scope="module")
def library_file(weights: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the package's writer: all types that it can make, a vocabulary, alignment 64."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_token_list([f"token {number}" for number in range(500)])
    writer.add_token_scores([0.5] * 500)
    writer.add_array("nested.flags", [True, False, True])
    writer.add_uint64("a.long", 2**40)
    matrix = weights["model.layers.0.self_attn.q_proj.weight"]
    for name in SIMPLE:
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(matrix, kind), raw_dtype=kind)
    writer.add_tensor("norm.weight", weights["model.norm.weight"].astype(np.float32))
    writer.add_tensor("half.weight", matrix.astype(np.float16))
    kind = gguf.GGMLQuantizationType.BF16
    writer.add_tensor("brain.weight", gguf.quants.quantize(matrix, kind), raw_dtype=kind)
    writer.add_tensor("positions", np.arange(24, dtype=np.int32).reshape(2, 3, 4))
    writer.add_tensor("doubles", np.linspace(0, 1, 6))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("which", ["library_file", "k_quants"])
def test_same_tensors_as_the_package(which: str, fixtures: Path, request: pytest.FixtureRequest) -> None:
    path = fixtures / "layouts" / "k_quants.gguf" if which == "k_quants" else request.getfixturevalue(which)
    theirs = gguf.GGUFReader(path)
    with GgufFile(path) as file:
        assert file.nbytes == path.stat().st_size
        assert file.header.data_start == theirs.data_offset
        assert file.keys() == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            info = file.info(tensor.name)
            assert info.shape == tuple(int(length) for length in reversed(tensor.shape))
            assert info.dtype.removeprefix("GGUF_") == tensor.tensor_type.name
            assert file.header.data_start + info.begin == tensor.data_offset
            np.testing.assert_array_equal(file.raw(tensor.name), tensor.data.reshape(-1).view(np.uint8))
            if info.dtype in ("F32", "F16", "I32", "F64"):
                np.testing.assert_array_equal(file.array(tensor.name), tensor.data)
        plain = {
            "norm.weight": "F32",
            "half.weight": "F16",
            "brain.weight": "BF16",
            "positions": "I32",
            "doubles": "F64",
        }
        assert {name: file.info(name).dtype for name in file.keys() if name in plain} in (plain, {})


@pytest.mark.parametrize("which", ["library_file", "k_quants"])
def test_planes_restore_the_bytes_and_hold_less_than_they(
    which: str, fixtures: Path, request: pytest.FixtureRequest
) -> None:
    path = fixtures / "layouts" / "k_quants.gguf" if which == "k_quants" else request.getfixturevalue(which)
    with GgufFile(path) as file:
        for name in file.keys():
            data = file.raw(name)
            (records,) = file.records(name)
            back = np.empty_like(data)
            join(split(data, records), records, back)
            np.testing.assert_array_equal(back, data)
            if file.info(name).dtype not in ("I32", "F64") and data.size > 2000:
                assert plane_entropy(data, records) < 0.995 * plane_entropy(data, BYTES), name


def test_fields_are_the_codes_of_the_package(library_file: Path, weights: dict[str, NDArray[Any]]) -> None:
    """The planes of a few types against what the package computes from the same blocks."""
    with GgufFile(library_file) as file:
        planes: dict[str, list[NDArray[np.uint8]]] = {}
        for name in ("Q4_0", "Q8_0", "TQ2_0"):
            (records,) = file.records(f"{name}.weight")
            data = file.raw(f"{name}.weight")
            counts = records.codes(data.size)
            packed = split(data, records)
            planes[name] = [
                unpack_codes(plane, n, width) for plane, n, width in zip(packed, counts, records.widths, strict=True)
            ]
        values = {
            name: gguf.quants.dequantize(
                file.raw(f"{name}.weight").reshape(1, -1), gguf.GGMLQuantizationType[name]
            ).reshape(-1)
            for name in planes
        }
    low, high, codes = planes["Q4_0"]
    scales = (low.astype(np.uint16) | high.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    order = codes.reshape(-1, 16, 2).transpose(0, 2, 1).reshape(-1, 32)  # the low nibbles come first
    np.testing.assert_array_equal((order - np.float32(8)) * scales[:, None], values["Q4_0"].reshape(-1, 32))
    low, high, codes = planes["Q8_0"]
    scales = (low.astype(np.uint16) | high.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    signed = codes.view(np.int8).reshape(-1, 32).astype(np.float32)
    np.testing.assert_array_equal(signed * scales[:, None], values["Q8_0"].reshape(-1, 32))
    assert np.bincount(planes["TQ2_0"][0], minlength=3).tolist() == [
        int((values["TQ2_0"] < 0).sum()), int((values["TQ2_0"] == 0).sum()), int((values["TQ2_0"] > 0).sum())
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Q5_0", "Q5_1", "Q3_K", "Q5_K", "Q6_K"])
def test_codes_in_parts_are_put_together(name: str, library_file: Path, fixtures: Path) -> None:
    """The planes have the codes as the package computes with them, in its order."""
    path = library_file if name in SIMPLE else fixtures / "layouts" / "k_quants.gguf"
    with GgufFile(path) as file:
        data, (records,) = np.array(file.raw(f"{name}.weight")), file.records(f"{name}.weight")
    blocks = data.size // records.nbytes
    plain = zip(split(data, records), records.codes(data.size), records.widths, strict=True)
    planes = [unpack_codes(plane, count, width).reshape(blocks, -1) for plane, count, width in plain]
    number = 0 if name in ("Q3_K", "Q6_K") else -1
    codes, ends = planes[number].astype(np.float32), planes[2:] if number == 0 else planes[: 2 if name == "Q5_0" else 4]
    halves = [np.hstack(pair).view(np.float16).astype(np.float32) for pair in zip(ends[::2], ends[1::2], strict=True)]
    assert records.fields[number] == (int(name[1]), codes.shape[1])
    if name == "Q5_0":
        values = halves[0] * (codes - 16)
    elif name == "Q5_1":
        values = halves[0] * codes + halves[1]
    elif name == "Q5_K":
        scale, least = gguf.quants.Q4_K.get_scale_min(np.concatenate(planes[4:7], axis=1))
        steps, least = (np.repeat(half * some, 32, axis=1) for half, some in zip(halves, (scale, least), strict=True))
        values = steps * codes - least
    else:
        scale = planes[1].astype(np.float32) - 32 if name == "Q3_K" else planes[1].view(np.int8).astype(np.float32)
        values = np.repeat(halves[0] * scale, 16, axis=1) * (codes - (4 if name == "Q3_K" else 32))
    wanted = gguf.quants.dequantize(data.reshape(blocks, -1), gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(values, wanted)


def test_k_quants_are_of_the_model(fixtures: Path, weights: dict[str, NDArray[Any]]) -> None:
    matrix = weights["model.layers.0.self_attn.q_proj.weight"]
    with GgufFile(fixtures / "layouts" / "k_quants.gguf") as file:
        errors = []
        for name in file.keys():
            kind = gguf.GGMLQuantizationType[file.info(name).dtype.removeprefix("GGUF_")]
            back = gguf.quants.dequantize(file.raw(name).reshape(len(matrix), -1), kind)
            errors.append(float(np.sqrt(np.mean((back - matrix) ** 2) / np.mean(matrix**2))))
    assert errors == sorted(errors, reverse=True) and errors[0] < 0.4 and errors[-1] < 0.03


@pytest.mark.parametrize("dtype", BLOCKS)
def test_blocks_are_as_large_as_the_package_says(dtype: str) -> None:
    kind = gguf.GGMLQuantizationType[dtype.removeprefix("GGUF_")]
    assert BLOCKS[dtype].nbytes == gguf.GGML_QUANT_SIZES[kind][1]


def test_every_type_of_the_package_splits() -> None:
    for kind, (_, nbytes) in gguf.GGML_QUANT_SIZES.items():
        records = block_records(kind.name if kind.name in ("F32", "I8") else f"GGUF_{kind.name}", 3 * nbytes)
        assert 3 * nbytes % records.span == 0
    assert block_records("GGUF_Q4_0", 17) == BYTES  # whatever a newer package makes of the type
    assert block_records("GGUF_NEW", 18) == BYTES
    assert block_records("BF16", 4) == Records(((8, 1), (8, 1)), rotate=True)
    assert block_records("I64", 8) == Records(((8, 1),) * 8)


GOOD = gguf_file([], [gguf_tensor("w", (2, 32), 2, 0)], bytes(36))


def test_versions_and_alignment(tmp_path: Path) -> None:
    for version in (2, 3):
        data = gguf_file([ALIGNMENT], [gguf_tensor("w", (2, 32), 2, 64)], bytes(100), version=version, alignment=64)
        with GgufFile(written(tmp_path / f"{version}.gguf", data)) as file:
            assert file.header.data_start % 64 == 0
            assert (file.info("w").begin, file.info("w").nbytes, file.info("w").shape) == (64, 36, (2, 32))
            assert file.whole().tobytes() == data
            assert file.xxh3() == xxhash.xxh3_64_intdigest(data)
            assert file.offset("w") == len(data) - 36
            assert file.rest() == data[:-36]
            np.testing.assert_array_equal(file.array("w"), file.raw("w"))
            file.release("w")
            view = file.raw("w")
        assert view.size == 36 and not view.any()  # still there after the file is closed
        with pytest.raises(InvalidArgumentError, match="the file is closed"):
            file.raw("w")
    with pytest.raises(InvalidArgumentError, match="no tensor named 'x'"), GgufFile(tmp_path / "3.gguf") as file:
        file.raw("x")
    with GgufFile(written(tmp_path / "none.gguf", gguf_file([], [], b"")[:24])) as file:
        assert file.keys() == [] and file.header.data_start == 24
    with pytest.raises(FileAccessError):
        GgufFile(tmp_path / "missing.gguf")


def test_tensors_in_any_order_with_gaps(tmp_path: Path) -> None:
    """What lies around the tensors, and what follows the last one, is the rest of the file."""
    tensors = [
        gguf_tensor("late", (32,), 2, 64),
        gguf_tensor("empty", (0, 4), 0, 32),
        gguf_tensor("early", (32,), 2, 0),
    ]
    body = bytes(range(18)) + b"g" * 46 + bytes(range(100, 118)) + b"tail"
    data = gguf_file([], tensors, body)
    with GgufFile(written(tmp_path / "gaps.gguf", data)) as file:
        assert file.keys() == ["late", "empty", "early"]
        assert file.raw("early").tobytes() == bytes(range(18)) and file.raw("late").tobytes() == bytes(range(100, 118))
        assert file.rest() == data[: -len(body)] + b"g" * 46 + b"tail"
        assert file.array("empty").shape == (0, 4)
        restored = bytearray(file.nbytes)
        used = np.zeros(file.nbytes, bool)
        for name in file.keys():
            place = slice(file.offset(name), file.offset(name) + file.info(name).nbytes)
            restored[place] = file.raw(name).tobytes()
            used[place] = True
        np.frombuffer(restored, np.uint8)[~used] = np.frombuffer(file.rest(), np.uint8)
        assert bytes(restored) == data


def nested(depth: int) -> bytes:
    inner = struct.pack("<IQ", U32, 0)
    return struct.pack("<IQ", ARRAY, 1) * depth + inner


def two(first: int, second: int) -> bytes:
    return gguf_file([], [gguf_tensor("a", (32,), 2, first), gguf_tensor("b", (32,), 2, second)], bytes(96))


STRINGS = struct.pack("<IQ", STRING, 2**60) + gguf_string("a")
MALFORMED: dict[str, tuple[bytes, type[Exception], str]] = {
    "empty": (b"", TruncationError, "the file is empty"),
    "magic": (b"GGML" + GOOD[4:], CorruptionError, "does not begin with 'GGUF'"),
    "safetensors": (b"\x10\0\0\0\0\0\0\0{}", CorruptionError, "not a GGUF file"),
    "version_1": (gguf_file([], [], b"", version=1), UnsupportedError, "GGUF version 1;"),
    "version_4": (gguf_file([], [], b"", version=4), UnsupportedError, "GGUF version 4;"),
    "big_endian": (GOOD[:4] + GOOD[4:8][::-1] + GOOD[8:], UnsupportedError, "big-endian"),
    "cut_in_magic": (GOOD[:3], TruncationError, "ends inside its header"),
    "cut_in_header": (GOOD[:40], TruncationError, "ends inside its header"),
    "cut_in_data": (GOOD[:-1], TruncationError, "tensor 'w' ends at byte"),
    "tensor_count": (gguf_file([], [], bytes(64), counts={"tensors": 2**64 - 1}), CorruptionError, "duplicate tensor ''"),
    "value_count": (gguf_file([ALIGNMENT], [], b"", counts={"values": 2**63}), TruncationError, "inside its header"),
    "key_length": (gguf_file([b"\xff" * 8], [], b""), TruncationError, "inside its header"),
    "key_not_utf8": (gguf_file([b"\1" + bytes(7) + b"\xff"], [], bytes(9)), CorruptionError, "a key is not UTF-8"),
    "duplicate_key": (gguf_file([gguf_value("k", U32, bytes(4))] * 2, [], b""), CorruptionError, "duplicate key 'k'"),
    "value_type": (gguf_file([gguf_value("k", 13, bytes(4))], [], b""), CorruptionError, "of the unknown type 13"),
    "array_type": (gguf_file([gguf_value("k", ARRAY, b"\x63" + bytes(3) + b"\1" + bytes(7))], [], b""), CorruptionError, "type 99"),
    "array_length": (gguf_file([gguf_value("k", ARRAY, b"\0" * 4 + b"\xff" * 8)], [], b""), TruncationError, "its header"),
    "string_count": (gguf_file([gguf_value("k", ARRAY, STRINGS)], [], b""), TruncationError, "inside its header"),
    "string_length": (gguf_file([gguf_value("k", ARRAY, STRINGS + b"\xff" * 8)], [], bytes(9)), TruncationError, "its header"),
    "nested_arrays": (gguf_file([gguf_value("k", ARRAY, nested(6))], [], b""), CorruptionError, "nested deeper than 4"),
    "alignment_type": (gguf_file([gguf_value("general.alignment", STRING, bytes(8))], [], b""), CorruptionError, "not a 32-bit"),
    "alignment_0": (gguf_file([gguf_value("general.alignment", U32, bytes(4))], [], b""), CorruptionError, "not a power of two"),
    "alignment_24": (gguf_file([gguf_value("general.alignment", U32, b"\x18\0\0\0")], [], b""), CorruptionError, "is 24, not a"),
    "name_not_utf8": (GOOD.replace(b"w", b"\xff"), CorruptionError, "the name of a tensor is not UTF-8"),
    "duplicate_tensor": (two(0, 32).replace(b"b", b"a"), CorruptionError, "duplicate tensor 'a'"),
    "dimensions": (gguf_file([], [gguf_tensor("w", (1,) * 65, 0, 0)], bytes(4)), CorruptionError, "has 65 dimensions"),
    "type_unknown": (gguf_file([], [gguf_tensor("w", (32,), 4, 0)], bytes(99)), UnsupportedError, "is of type 4, unknown to"),
    "half_a_block": (gguf_file([], [gguf_tensor("w", (2, 48), 2, 0)], bytes(99)), CorruptionError, "not whole blocks of 32"),
    "scalar_block": (gguf_file([], [gguf_tensor("w", (), 2, 0)], bytes(99)), CorruptionError, "not whole blocks of 32"),
    "shape_huge": (gguf_file([], [gguf_tensor("w", (2**40, 2**40), 0, 0)], b""), CorruptionError, "impossibly large"),
    "shape_huge_and_0": (gguf_file([], [gguf_tensor("w", (0, 2**63), 0, 0)], b""), CorruptionError, "impossibly large"),
    "offset_huge": (gguf_file([], [gguf_tensor("w", (32,), 2, 2**64 - 32)], bytes(99)), CorruptionError, "impossibly large"),
    "offset_outside": (gguf_file([], [gguf_tensor("w", (32,), 2, 4096)], bytes(99)), TruncationError, "ends at byte 4,"),
    "empty_outside": (gguf_file([], [gguf_tensor("w", (0,), 0, 128)], bytes(9)), TruncationError, "ends at byte"),
    "overlap": (two(0, 16), CorruptionError, "tensors 'a' and 'b' overlap"),
    "same_place": (two(32, 32), CorruptionError, "tensors 'a' and 'b' overlap"),
}  # fmt: skip


@pytest.mark.parametrize("defect", MALFORMED)
def test_malformed(defect: str, tmp_path: Path) -> None:
    data, kind, message = MALFORMED[defect]
    began = time.perf_counter()
    with pytest.raises(kind) as caught:
        GgufFile(written(tmp_path / "bad.gguf", data))
    assert type(caught.value) is kind
    assert message in str(caught.value) and "bad.gguf" in str(caught.value) and "\n" not in str(caught.value)
    assert time.perf_counter() - began < 2


def test_every_cut_is_a_truncation(tmp_path: Path) -> None:
    values = [ALIGNMENT, gguf_value("k", ARRAY, struct.pack("<IQ", STRING, 2) + gguf_string("ab") + gguf_string(""))]
    data = gguf_file(values, [gguf_tensor("w", (2, 32), 2, 0)], bytes(36), alignment=64)
    for length in range(len(data)):
        with pytest.raises(TruncationError):
            GgufFile(written(tmp_path / "cut.gguf", data[:length]))


@given(data=st.data())
def test_flipped_bytes_never_crash(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    bad = bytearray(
        gguf_file([ALIGNMENT, gguf_value("k", STRING, gguf_string("v"))], [gguf_tensor("w", (2, 32), 2, 0)], bytes(60))
    )
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    try:
        with GgufFile(written(path, bytes(bad))) as file:
            for name in file.keys():
                file.raw(name)
                assert file.raw(name).size % file.records(name)[0].span == 0
    except (CorruptionError, UnsupportedError):
        pass


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    path.write_bytes(gguf_file([gguf_value("k", ARRAY, struct.pack("<IQ", 0, 2**27))], [], b""))
    with path.open("r+b") as stream:
        stream.truncate(2**28)  # sparse
    with pytest.raises(CorruptionError, match="the header is longer than"):
        GgufFile(path)


def test_many_tokens_are_read_quickly(tmp_path: Path) -> None:
    """A vocabulary and merges as of today's models; the package's reader takes seconds for them."""
    tokens = b"".join(gguf_string(f"token {number}") for number in range(300_000))
    data = gguf_file([gguf_value("tokens", ARRAY, struct.pack("<IQ", STRING, 300_000) + tokens)], [], b"")
    path = written(tmp_path / "tokens.gguf", data)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        GgufFile(path).close()
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1


def test_without_the_package_the_error_names_the_extra(tmp_path: Path) -> None:
    path = written(tmp_path / "model.gguf", GOOD)
    program = (
        "import sys; sys.modules['gguf'] = None\n"
        "from qzc.codec.errors import UnsupportedError\n"
        "from qzc.formats.gguf import GgufFile\n"
        f"try: GgufFile({str(path)!r})\n"
        "except UnsupportedError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert "pip install 'qzc[gguf]'" in result.stdout, result.stderr
