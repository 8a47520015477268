"""`.qzc` files as users, other libraries and the file system see them."""

import os
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray

from qzc.codec.chunks import plan_chunks
from qzc.codec.errors import (
    CorruptionError,
    FileAccessError,
    InvalidArgumentError,
    TruncationError,
    UnsupportedError,
)
from qzc.codec.packing import pack_codes
from qzc.codec.planes import PLAIN
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, matrix_shape
from qzc.formats.profile import CodedTensor, Profile
from qzc.formats.reader import Reader
from qzc.formats.writer import UncodedTensor, Writer
from qzc.model import Model, load_file
from qzc.save import save_file
from tests.containers import assert_equal
from tests.reference_decoder import decode_file
from tests.reference_header import BANK_WIDTHS, CHUNKS, CODED_MEMBERS, DTYPE_BITS
from tests.resign import column, resign, take_apart
from tests.strategies import CODERS, SCALE_DTYPES, quantized, written

Tensors = dict[str, QuantizedTensor | NDArray[Any]]
NUMPY_DTYPES = [
    np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float16, np.float32,
    np.float64, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz,
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.qzc"


# ---------------------------------------------------------------------------------------------------------------------
# Tensors that are not coded


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 5), (2, 1, 7)])
def test_plain_tensors_keep_their_bytes(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    raw = np.random.default_rng(0).integers(0, 256, prod(shape) * np.dtype(dtype).itemsize, np.uint8)
    array = (raw & 1 if dtype is np.bool_ else raw).view(dtype).reshape(shape)
    save_file({"a": array, "quantized": quantized((4, 6))}, path)
    assert_equal(load_file(path)["a"], array)
    with Model(path) as model:
        assert_equal(model["a"], array)
        assert not model.array("a").flags.writeable


def test_layouts_and_byte_orders_of_memory(path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    save_file({"f": np.asfortranarray(array), "strided": array[::2, ::-1], "big": array.astype(">f4")}, path)
    found = load_file(path)
    assert_equal(found["f"], array)
    assert_equal(found["strided"], np.ascontiguousarray(array[::2, ::-1]))
    assert found["big"].dtype == np.float32 and found["big"].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [("F4", (3, 6), 9), ("F6_E2M3", (4,), 3), ("F6_E3M2", (2, 2), 3), ("Q7_NEW", (5, 5), 11), ("I4", (0,), 0)],
)
def test_dtypes_that_numpy_lacks_are_bytes(path: Path, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
    raw = bytes(range(1, nbytes + 1))
    uncoded = {"a": UncodedTensor(dtype, shape, nbytes), "b": UncodedTensor("F64", (1,), 8)}
    with path.open("wb") as stream:
        writer = Writer(stream, Profile({}, {}, None, "a test"), uncoded)
        assert writer.names == ("b", "a")
        writer.write_uncoded("b", [bytes(8)])
        writer.write_uncoded("a", [raw[:2], b"", raw[2:]])
        writer.finish()
    with Model(path) as model:
        info = model.info("a")
        assert (info.dtype, info.shape, info.nbytes) == (dtype, shape, nbytes)
        assert_equal(model["a"], np.frombuffer(raw, np.uint8))
        assert_equal(model.dequantize("a", np.float32), np.frombuffer(raw, np.uint8))
        with pytest.raises(InvalidArgumentError, match=f"dtype {dtype}"):
            model.array("a", slice(0, 1))
    assert_equal(load_file(path)["a"], np.frombuffer(raw, np.uint8))


def test_more_dimensions_than_numpy_has(path: Path) -> None:
    with path.open("wb") as stream:
        writer = Writer(stream, Profile({}, {}, None, "a test"), {"a": UncodedTensor("U8", (1,) * 65, 1)})
        writer.write_uncoded("a", [b"x"])
        writer.finish()
    with Model(path) as model:
        assert model.info("a").shape == (1,) * 65
        with pytest.raises(UnsupportedError, match="65 dimensions"):
            model["a"]


# ---------------------------------------------------------------------------------------------------------------------
# The file as others see it


def everything() -> Tensors:
    tensors: Tensors = {f"plain.{np.dtype(dtype).name}": np.zeros(3, dtype) for dtype in NUMPY_DTYPES}
    for i, scale_dtype in enumerate(SCALE_DTYPES):
        args = QuantizationArgs((3, 4, 8)[i], i == 1, "group", 5, scale_dtype=scale_dtype)
        spread = (0.15, 0.15, 0.005)[i]  # the last one is so narrow that it takes escape16
        tensors[f"coded.{i}"] = quantized((131, 137), args, spread=spread, row_classes=i, column_classes=2)
    return tensors


def test_the_safetensors_library_reads_every_member(path: Path) -> None:
    tensors = everything()
    save_file(tensors, path, {"a": "b"})
    data = path.read_bytes()
    header, body = take_apart(data)
    with safetensors.safe_open(path, "numpy") as file:
        assert set(file.keys()) == set(header) - {"__metadata__"}
        assert file.metadata()["format"] == "qzc"
        for name in file.keys():
            if header[name]["dtype"] in ("U8", "F32", "F16", "I64"):
                begin, end = header[name]["data_offsets"]
                assert file.get_tensor(name).tobytes() == body[begin:end]
    read = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    assert read.keys() == header.keys() - {"__metadata__"}
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            assert read[name]["data"] == tensor.tobytes()


def test_members_are_aligned_and_in_order(path: Path) -> None:
    save_file(everything(), path, chunk_codes=1000)
    data = path.read_bytes()
    header, body = take_apart(data)
    start = len(data) - len(body)
    assert start % 64 == 0
    del header["__metadata__"]
    names = sorted(header, key=lambda name: header[name]["data_offsets"])
    assert names == list(header)
    plain = [name for name in names if ".qzc." not in name and not name.startswith("qzc.")]
    assert plain == sorted(plain, key=lambda name: (-DTYPE_BITS[header[name]["dtype"]], name))
    coded = [f"coded.{i}.qzc.{what}" for i in range(3) for what in CODED_MEMBERS]
    assert names == [
        *plain,
        *(n for n in coded if n in header),
        *(n for n in (CHUNKS, *BANK_WIDTHS) if n in header),
        "qzc.checksums",
    ]
    assert "qzc.tables.ans16" in names and "qzc.tables.escape16" in names
    for name in names:
        begin, end = header[name]["data_offsets"]
        assert (start + begin) % max(1, DTYPE_BITS[header[name]["dtype"]] // 8) == 0, name
        if name.endswith(".qzc.payload"):
            offsets = column(data, name.removesuffix(".qzc.payload"), "offset")
            assert (start + begin + offsets[0]) % 64 == 0
            assert all((start + begin + offset) % 16 == 0 for offset in offsets)
            assert (start + end) % 16 == 0


def test_sizes_add_up_to_the_file(path: Path) -> None:
    size = save_file(everything(), path)
    with Reader(path) as reader:
        parts = sum(reader.info(name).nbytes for name in reader.keys())
        assert parts + sum(reader.overhead.values()) == size == reader.file_size == path.stat().st_size


def test_tables_are_stored_once() -> None:
    tensor = quantized((200, 400))
    once, twice = written({"a": tensor}), written({"a": tensor, "b": tensor})
    assert take_apart(once)[0]["qzc.tables.ans16"] == take_apart(once)[0]["qzc.tables.ans16"]
    assert take_apart(twice)[0]["qzc.tables.ans16"]["shape"] == take_apart(once)[0]["qzc.tables.ans16"]["shape"]


def test_nibbles_and_the_high_nibbles_of_bytes_share_a_bank(path: Path) -> None:
    grid = QuantizationArgs(8, True, "channel", None, "absmax", "float16")
    tensors = {"a": quantized((200, 400)), "b": quantized((200, 400), grid)}
    data = written(tensors, chunk_codes=40_000)
    assert [column(data, name, "coder")[0] for name in "ab"] == [2, 5]
    used = [
        pair for name in "ab" for pair in zip(column(data, name, "coder"), column(data, name, "table"), strict=True)
    ]
    rows = {table for coder, table in used if coder in (2, 5)}
    assert take_apart(data)[0]["qzc.tables.ans16"]["shape"] == [len(rows), 16]
    path.write_bytes(data)
    with Reader(path) as reader:
        reader.check_tables()
        for name, tensor in tensors.items():
            assert np.array_equal(reader.quantized(name).packed, tensor.packed)
    for name, decoded in decode_file(data).items():
        assert decoded.codes is not None and np.array_equal(decoded.codes, tensors[name].codes)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("spread", [0, 0.02, 0.15, 10])
def test_no_payload_outgrows_its_codes(coder: str, spread: float) -> None:
    for size in (1, 63, 511, 3000):
        tensor = quantized((size,), spread=spread)
        data = written({"a": tensor}, {"a": coder})
        assert sum(column(data, "a", "nbytes")) <= tensor.packed.size + tensor.scale.nbytes


def test_the_header_has_room_for_any_plan(path: Path) -> None:
    """It is reserved before the first chunk is coded: here with as many runs, chunks and digits as there can be."""
    for count in (1, 9, 10, 99):
        tensors: Tensors = {
            f"{'n' * count}{i}": quantized((300, 300), seed=i, row_classes=256, column_classes=256) for i in range(3)
        }
        tensors |= {f"{i}": np.zeros(10**i, np.uint8) for i in range(6)}
        tensors |= {f"one.{i}": quantized((1,), seed=i) for i in range(count)}
        save_file(tensors, path, chunk_codes=1, overwrite=True)
        assert len(load_file(path)) == len(tensors)


def test_an_empty_checkpoint(path: Path) -> None:
    save_file({}, path)
    assert load_file(path) == {}
    assert decode_file(path.read_bytes()) == {}


def test_empty_tensors_with_huge_dimensions_take_no_memory(path: Path) -> None:
    args = QuantizationArgs(4, False, "tensor", None)
    for shape in ((0, 2**40), (2**40, 0), (2**20, 0, 2**20)):
        rows, columns = matrix_shape(shape)
        classes = np.zeros(0, np.uint8)
        tensor = QuantizedTensor(
            np.zeros(0, np.uint8), np.ones(1, np.float16), np.ones(1, np.uint8), shape, "F32", args,
            None if rows else classes, None if columns else classes,
        )  # fmt: skip
        save_file({"a": tensor}, path, overwrite=True)
        assert_equal(load_file(path)["a"], tensor)


# ---------------------------------------------------------------------------------------------------------------------
# What the writer refuses


def bad_codes() -> QuantizedTensor:
    args = QuantizationArgs(3, True, "tensor", None)
    return QuantizedTensor(pack_codes(np.array([7, 8], np.uint8), 4), np.ones(1, np.float16), None, (2,), "F32", args)


def bad_padding() -> QuantizedTensor:
    args = QuantizationArgs(4, True, "tensor", None)
    return QuantizedTensor(np.array([0x11], np.uint8), np.ones(1, np.float16), None, (1,), "F32", args)


def bad_zero_point() -> QuantizedTensor:
    args = QuantizationArgs(3, False, "tensor", None)
    packed, zero_point = np.array([0x11], np.uint8), np.array([8], np.uint8)
    return QuantizedTensor(packed, np.ones(1, np.float16), zero_point, (2,), "F32", args)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": bad_codes()}, "a code is larger than 7"),
        ({"a": bad_padding()}, "behind the last code"),
        ({"a": bad_zero_point()}, "zero_point .* larger than 7"),
        ({"a": quantized((3,), dtype="I8")}, "'a' has dtype 'I8'"),
        ({"a": [1.0, 2.0]}, "'a' is a list"),
        ({3: np.zeros(3)}, "strings"),
        ({"qzc.x": np.zeros(3)}, "reserved"),
        ({"a.qzc.scale": np.zeros(3)}, "reserved"),
        ({"a.qzc": np.zeros(3)}, "reserved"),
        ({"qzc.x": quantized((3,))}, "reserved"),
        ({"__metadata__": quantized((3,))}, "reserved"),
        ({"\ud800": np.zeros(3)}, "Unicode"),
        ({"\ud800": quantized((3,))}, "Unicode"),
    ],
)
def test_refused_tensors(path: Path, tensors: Any, message: str) -> None:
    path.write_bytes(b"old")
    with pytest.raises(InvalidArgumentError, match=message):
        save_file(tensors, path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_refused_options(path: Path) -> None:
    tensors: Tensors = {"a": quantized((3, 4))}
    for chunk_codes in (-1, 0, (1 << 23) + 1, 1 << 40):
        with pytest.raises(InvalidArgumentError, match="chunk_codes"):
            save_file(tensors, path, chunk_codes=chunk_codes)
    with pytest.raises(InvalidArgumentError, match="coder"):
        save_file(tensors, path, coder="zip")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="metadata"):
        save_file(tensors, path, {"a": 1})  # type: ignore[dict-item]
    with pytest.raises(InvalidArgumentError, match="threads"):
        save_file(tensors, path, threads=-1)
    with pytest.raises(UnsupportedError, match="S3"):
        save_file({"a": np.zeros(3, "S3")}, path)
    assert not path.exists()
    save_file(tensors, path)
    with pytest.raises(FileAccessError, match="exists"):
        save_file(tensors, path)


def test_no_target_size_makes_chunks_that_readers_refuse() -> None:
    for codes in (1 << 23, 3 << 23, (3 << 23) + 1, 1 << 26):
        assert max(b - a for a, b in plan_chunks(codes, 4, 1 << 23)) <= 1 << 24


def test_the_writer_keeps_its_order(path: Path) -> None:
    with path.open("wb") as stream:
        profile = Profile({"c": CodedTensor("F32", (3,), QuantizationArgs(), PLAIN[2])}, {}, None, "a test")
        writer = Writer(stream, profile, {"a": UncodedTensor("U8", (2,), 2), "b": UncodedTensor("F32", (1,), 4)})
        assert writer.names == ("b", "a", "c")
        with pytest.raises(InvalidArgumentError, match="'b' expected"):
            writer.write_uncoded("a", [b"12"])
        with pytest.raises(InvalidArgumentError, match="5 bytes given, 4 announced"):
            writer.write_uncoded("b", [b"123", b"45"])
        with pytest.raises(InvalidArgumentError, match="'a' was announced"):
            writer.finish()


# ---------------------------------------------------------------------------------------------------------------------
# Opening and closing


def test_arrays_outlive_the_reader(path: Path) -> None:
    path.write_bytes(written({"a": np.arange(1000), "b": quantized((4, 6))}))
    with Reader(path) as reader:
        array, tensor = reader.array("a"), reader.quantized("b")
    reader.close()
    path.unlink()
    assert array.sum() == 499500
    assert tensor.dequantize().shape == (4, 6)


def test_nothing_is_read_from_what_is_closed(path: Path) -> None:
    path.write_bytes(written({"a": np.arange(1000), "b": quantized((4, 6))}))
    with Reader(path) as reader, Model(path) as model:
        pass
    for read in (reader.array, reader.raw, reader.check):
        with pytest.raises(InvalidArgumentError, match="closed"):
            read("a")
    for call in (lambda: reader.quantized("b"), lambda: model.packed("b"), lambda: model["a"], lambda: model.metadata):
        with pytest.raises(InvalidArgumentError, match="closed"):
            call()
    model.close()
    assert len(model) == 0


def test_what_is_not_a_file(path: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path.write_bytes(b"x")
    for source, message in (
        (tmp_path / "missing.qzc", "no such file"),
        (tmp_path, "folder"),
        (fifo, "regular"),
        (Path(os.devnull), "regular"),
        (path / "below.qzc", "not a folder"),
    ):
        with pytest.raises(FileAccessError, match=message) as caught:
            Reader(source)
        assert str(source) in str(caught.value)


def test_what_is_not_a_qzc_file(path: Path) -> None:
    for data, kind in (
        (b"", TruncationError),
        (b"\0" * 7, TruncationError),
        (b"\0" * 100, CorruptionError),
        (os.urandom(8)[:7] + b"\xff" + bytes(100), CorruptionError),
        (b"\x02" + bytes(7) + b"{}", UnsupportedError),
        (b"\x42" + bytes(7) + b'{"__metadata__":{"format":"pt"}}'.ljust(66), UnsupportedError),
    ):
        path.write_bytes(data)
        with pytest.raises(kind) as caught:
            Reader(path)
        assert str(path) in str(caught.value)


def test_names_of_files_that_are_not_text(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe \n.qzc")
    try:
        save_file({"a": quantized((4, 6))}, path)
    except FileAccessError:
        pytest.skip("this file system takes only names that are text")
    assert list(load_file(path)) == ["a"]
    Path(path).write_bytes(b"")
    with pytest.raises(TruncationError) as caught:
        Reader(path)
    assert path in str(caught.value)


def test_a_reader_of_an_open_stream(path: Path) -> None:
    """That is how a packer looks at what it has just written."""
    with path.open("w+b") as stream:
        stream.write(written({"a": np.arange(5)}))
        with Reader(stream) as reader:
            assert reader.array("a").tolist() == [0, 1, 2, 3, 4]
        assert not stream.closed


def test_an_unchanged_file_stays_as_it_is_when_signed() -> None:
    data = written({"a": quantized((4, 600)), "b": np.arange(5)})
    assert resign(data) == data
