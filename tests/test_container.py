"""The `.qzc` container: what is written reads back, in whole and by rows, through our reader and through others."""

import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
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
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, matrix_shape, packed_nbytes
from qzc.formats.profile import CodedTensor, Profile
from qzc.formats.reader import Reader
from qzc.formats.writer import UncodedTensor, Writer
from qzc.model import Model, load_file
from qzc.save import save_file
from tests.reference_decoder import BANK_WIDTHS, CODED_MEMBERS, DTYPE_BITS, Decoded, code_order, decode_file
from tests.reference_encoder import random_file
from tests.resign import column, resign, take_apart
from tests.strategies import CODERS, SCALE_DTYPES, STRATEGIES, quantized, quantized_tensors, written
from tests.test_reference import assert_same

Tensors = dict[str, QuantizedTensor | NDArray[Any]]
NUMPY_DTYPES = [
    np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float16, np.float32,
    np.float64, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("container")


@pytest.fixture
def path(folder: Path) -> Iterator[Path]:
    """A file name; the same for all examples of a test, because a folder for each would take longer than the test."""
    path = folder / "model.qzc"
    yield path
    path.unlink(missing_ok=True)


def assert_equal(found: Any, wanted: QuantizedTensor | NDArray[Any]) -> None:
    """Bit for bit, every field."""
    if isinstance(wanted, QuantizedTensor):
        assert isinstance(found, QuantizedTensor)
        assert (found.shape, found.dtype, found.args) == (wanted.shape, wanted.dtype, wanted.args)
        for field in ("packed", "scale", "zero_point", "row_class", "column_class"):
            mine, other = getattr(found, field), getattr(wanted, field)
            assert (mine is None) == (other is None), field
            if other is not None:
                assert mine.dtype == other.dtype and mine.shape == other.shape, field
                assert mine.tobytes() == other.tobytes(), field
    else:
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def assert_reference_agrees(data: bytes, tensors: Mapping[str, QuantizedTensor | NDArray[Any]]) -> None:
    found = decode_file(data)
    assert found.keys() == tensors.keys()
    for name, wanted in tensors.items():
        if isinstance(wanted, QuantizedTensor):
            assert (found[name].dtype, found[name].shape) == (wanted.dtype, wanted.shape)
            assert np.array_equal(found[name].codes, wanted.codes)  # type: ignore[arg-type]
            with np.errstate(all="ignore"):
                assert np.array_equal(found[name].dequantized, wanted.dequantize())  # type: ignore[arg-type]
        else:
            assert found[name].raw == wanted.tobytes()


def as_decoded(reader: Reader, name: str) -> Decoded:
    """What our reader makes of a tensor, in the reference decoder's words."""
    info = reader.info(name)
    if info.args is None:
        return Decoded(info.dtype, info.shape, reader.raw(name).tobytes())
    tensor = reader.quantized(name)
    zero_point = np.full(tensor.scale.shape, tensor.args.symmetric_zero_point, np.float32)
    if tensor.zero_point is not None:
        zero_point = tensor.zero_point.astype(np.float32)
    scale = tensor.scale.astype(np.float32)
    return Decoded(info.dtype, info.shape, None, tensor.codes, zero_point, scale, tensor.dequantize())


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


@settings(max_examples=150)
@given(
    coded=st.lists(quantized_tensors(), min_size=1, max_size=3),
    coder=st.sampled_from(CODERS),
    chunk_codes=st.sampled_from([1, 600, 5000, 1 << 18]),
    threads=st.integers(1, 3),
)
def test_what_is_written_reads_back(
    folder: Path, coded: list[QuantizedTensor], coder: Any, chunk_codes: int, threads: int
) -> None:
    path = folder / "model.qzc"
    tensors: Tensors = {f"layer.{i}": tensor for i, tensor in enumerate(coded)}
    tensors |= {"bias": np.arange(3, dtype=np.float32), "second": coded[0]}
    size = save_file(tensors, path, coder=coder, chunk_codes=chunk_codes, threads=threads, overwrite=True)
    data = path.read_bytes()
    assert size == len(data)
    if all(tensor.args.symmetric or tensor.packed.size for tensor in coded):  # else see the next test
        assert_reference_agrees(data, tensors)
    found = load_file(path, threads=threads)
    assert list(found) == sorted(tensors)
    for name, tensor in tensors.items():
        assert_equal(found[name], tensor)
    assert found["second"] is found["layer.0"]
    assert [name for name, _ in safetensors.deserialize(data)]


@pytest.mark.parametrize(("strategy", "shape", "zero_points"), [("tensor", (0, 4), 1), ("channel", (5, 0), 5)])
def test_zero_points_of_a_tensor_without_elements(
    path: Path, strategy: Any, shape: tuple[int, ...], zero_points: int
) -> None:
    tensor = quantized(shape, QuantizationArgs(4, False, strategy, None))
    path.write_bytes(written({"a": tensor}))
    assert column(path.read_bytes(), "a", "plane") == [1]
    assert column(path.read_bytes(), "a", "codes") == [zero_points]
    assert_equal(load_file(path)["a"], tensor)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_grid(path: Path, bits: int, symmetric: bool, coder: Any) -> None:
    tensors: Tensors = {}
    for strategy in STRATEGIES:
        for classes in (0, 3):
            args = QuantizationArgs(bits, symmetric, strategy, 7 if strategy == "group" else None)
            tensors[f"{strategy}{classes}"] = quantized((23, 41), args, row_classes=classes, column_classes=classes)
    save_file(tensors, path, coder=coder, chunk_codes=512)
    assert_reference_agrees(path.read_bytes(), tensors)
    for name, tensor in load_file(path).items():
        assert_equal(tensor, tensors[name])


def test_large_chunks_with_several_streams(path: Path) -> None:
    tensors: Tensors = {"a": quantized((500, 300), QuantizationArgs(8, False, "channel", None))}
    save_file(tensors, path)
    data = path.read_bytes()
    assert max(column(data, "a", "streams")) > 1
    assert_reference_agrees(data, tensors)
    assert_equal(load_file(path)["a"], tensors["a"])


def test_the_bytes_depend_on_neither_threads_nor_the_order_of_the_mapping(path: Path) -> None:
    tensors: Tensors = {f"w{i}": quantized((100, 300), seed=i, row_classes=3 * (i % 2)) for i in range(6)}
    tensors |= {"b": np.ones(3, np.float16), "a": np.ones(5, np.float64)}
    seen = set()
    for threads in (1, 2, 5):
        for order in (list(tensors), list(tensors)[::-1]):
            shuffled = {name: tensors[name] for name in order}
            save_file(shuffled, path, {"x": "1", "a": "2"}, chunk_codes=700, threads=threads, overwrite=True)
            seen.add(path.read_bytes())
    assert len(seen) == 1


@pytest.mark.parametrize("seed", range(120))
def test_files_of_the_reference_encoder(path: Path, seed: int) -> None:
    data, expected = random_file(np.random.default_rng(1000 + seed), any_order=seed % 2 == 0)
    path.write_bytes(data)
    with np.errstate(all="ignore"), Reader(path) as reader:
        reader.check_tables()
        for name in reader.keys():
            reader.check(name)
        assert_same({name: as_decoded(reader, name) for name in reader.keys()}, expected)
        for name in reader.keys():
            tensor, shape = expected[name], reader.info(name).shape
            if tensor.codes is not None and shape:
                first, last = sorted(np.random.default_rng(seed).integers(0, shape[0] + 1, 2).tolist())
                part = reader.quantized(name, slice(first, last))
                assert np.array_equal(part.codes, tensor.codes[first:last])
                assert tensor.dequantized is not None
                assert np.array_equal(part.dequantize(), tensor.dequantized[first:last], equal_nan=True)


# ---------------------------------------------------------------------------------------------------------------------
# Rows


@settings(max_examples=80)
@given(tensor=quantized_tensors().filter(lambda t: len(t.shape) > 0), data=st.data())
def test_rows_are_those_of_the_whole(folder: Path, tensor: QuantizedTensor, data: st.DataObject) -> None:
    path = folder / "model.qzc"
    path.write_bytes(written({"a": tensor}))
    bounds = st.one_of(st.none(), st.integers(-3, tensor.shape[0] + 3))
    with Model(path, threads=1) as model:
        for _ in range(4):
            rows = slice(data.draw(bounds), data.draw(bounds))
            part = model.packed("a", rows)
            assert_equal(part.codes, tensor.codes[rows])
            assert_equal(model.dequantize("a", np.float32, rows), tensor.dequantize()[rows])
            first, last, _ = rows.indices(tensor.shape[0])
            assert part.shape == (max(0, last - first), *tensor.shape[1:])
            again = quantized(part.shape, part.args)
            assert part.packed.shape == again.packed.shape and part.scale.shape == again.scale.shape


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("classes", [(0, 0), (3, 0), (0, 3), (2, 2)])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_rows_read_only_the_chunks_that_hold_them(
    path: Path, bits: int, classes: tuple[int, int], strategy: Any
) -> None:
    args = QuantizationArgs(bits, False, strategy, 3 if strategy == "group" else None)
    tensor = quantized((61, 67), args, row_classes=classes[0], column_classes=classes[1])
    data = written({"a": tensor})
    rows_of_chunk = chunk_rows(tensor, data)
    assert len(rows_of_chunk) > 5
    header, body = take_apart(data)
    start, payload = len(data) - len(body), header["a.qzc.payload"]["data_offsets"][0]
    wanted = tensor.codes
    for chunk, (offset, rows) in enumerate(zip(column(data, "a", "offset"), rows_of_chunk, strict=True)):
        damaged = bytearray(data)
        damaged[start + payload + offset] ^= 1
        path.write_bytes(damaged)
        with Reader(path) as reader:
            for first, last in ((0, 1), (17, 29), (60, 61), (30, 30), (1, 60)):
                if rows is None or rows & set(range(first, last)):
                    with pytest.raises(CorruptionError, match=rf"model.qzc: tensor 'a', chunk {chunk} .*checksum"):
                        reader.quantized("a", slice(first, last))
                else:
                    found = reader.quantized("a", slice(first, last))
                    assert np.array_equal(found.codes, wanted[first:last])
                    assert found.zero_point is not None and tensor.zero_point is not None
                    part = tensor.zero_point if strategy == "tensor" else tensor.zero_point[first:last]
                    assert np.array_equal(found.zero_point, part)


def chunk_rows(tensor: QuantizedTensor, data: bytes) -> list[set[int] | None]:
    """For each chunk the rows that cannot do without it; None for that of a zero point that all share."""
    rows, columns = matrix_shape(tensor.shape)
    in_order = [i for run in code_order(rows, columns, tensor.row_class, tensor.column_class) for i in run]
    owners = [[i // columns for i in in_order], []]
    if tensor.zero_point is not None:
        per_row = tensor.zero_point.size // rows
        owners[1] = [i // per_row for i in range(tensor.zero_point.size)] if per_row else []
    result: list[set[int] | None] = []
    at = [0, 0]
    for plane, codes in zip(column(data, "a", "plane"), column(data, "a", "codes"), strict=True):
        result.append(set(owners[plane][at[plane] : at[plane] + codes]) if owners[plane] else None)
        at[plane] += codes
    return result


def test_no_rows_of_a_tensor_need_no_chunk_but_that_of_a_shared_zero_point(path: Path) -> None:
    path.write_bytes(written({"a": quantized((10, 10), QuantizationArgs(4, False, "tensor", None))}))
    with Model(path) as model:
        part = model.packed("a", slice(4, 4))
        assert part.shape == (0, 10) and part.packed.size == 0
        assert part.zero_point is not None and part.zero_point.shape == (1,)


def test_bad_rows(path: Path) -> None:
    path.write_bytes(written({"a": quantized((10, 10)), "0-d": quantized(()), "plain": np.arange(4)}))
    with Model(path) as model:
        assert model.array("plain", slice(1, 3)).tolist() == [1, 2]
        for name, rows in (("a", slice(0, 4, 2)), ("0-d", slice(0, 1)), ("plain", slice(3, 0, -1))):
            with pytest.raises(InvalidArgumentError, match="row"):
                model.packed(name, rows) if name != "plain" else model.array(name, rows)


# ---------------------------------------------------------------------------------------------------------------------
# Into given memory


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("rows", [None, slice(3, 8), slice(2, 9)])
def test_out_is_filled_and_returned(path: Path, rows: slice | None, classes: int) -> None:
    tensor = quantized((11, 31), QuantizationArgs(2, True, "channel", None), row_classes=classes)
    path.write_bytes(written({"a": tensor}))
    wanted = tensor.codes[rows or slice(None)]
    with Model(path) as model:
        out = np.full(packed_nbytes(wanted.size, 2), 0xFF, np.uint8)
        found = model.packed("a", rows, out)
        assert found.packed is out
        assert np.array_equal(found.codes, wanted)
        floats = np.full(wanted.shape, np.nan, np.float32)
        assert model.dequantize("a", np.float32, rows, floats) is floats
        assert np.array_equal(floats, tensor.dequantize()[rows or slice(None)])
        for bad in (out[:-1], out.astype(np.int8), np.zeros(2 * out.size, np.uint8)[::2], out.reshape(1, -1)):
            with pytest.raises(InvalidArgumentError, match="out must be"):
                model.packed("a", rows, bad)
        out.flags.writeable = False
        with pytest.raises(InvalidArgumentError, match="out must be"):
            model.packed("a", rows, out)


def test_out_of_a_plain_tensor(path: Path) -> None:
    path.write_bytes(written({"a": np.arange(6, dtype=np.float16).reshape(2, 3)}))
    with Model(path) as model:
        out = np.zeros((2, 3), np.float32)
        assert model.dequantize("a", np.float32, out=out) is out
        assert out.tolist() == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(InvalidArgumentError, match="out must be"):
            model.dequantize("a", out=out)


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def test_load_as_floats(path: Path) -> None:
    tensor = quantized((4, 6), dtype="BF16")
    plain = np.arange(3, dtype=np.float16)
    save_file({"a": tensor, "b": plain, "ids": np.arange(3), "tied": tensor}, path)
    found = load_file(path, packed=False)
    assert_equal(found["a"], tensor.dequantize(ml_dtypes.bfloat16))
    assert_equal(found["b"], plain)
    assert found["tied"] is found["a"]
    for dtype in (np.float32, "float32", "bfloat16", np.float64):
        found = load_file(path, dtype)
        wanted = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        assert found["a"].dtype == found["b"].dtype == wanted
        assert_equal(found["a"], tensor.dequantize(dtype))
        assert_equal(found["ids"], np.arange(3))
    with pytest.raises(InvalidArgumentError, match="int8"):
        load_file(path, np.int8)


def test_loaded_arrays_are_the_callers_own(path: Path) -> None:
    save_file({"a": quantized((4, 6)), "b": np.zeros(3)}, path)
    found = load_file(path)
    path.write_bytes(b"")
    found["b"][0] = 1
    found["a"].packed[0] = 0


def test_a_model_is_a_mapping(path: Path) -> None:
    tensor = quantized((4, 6))
    save_file({"b": tensor, "a": np.zeros(3), "c": tensor}, path, {"k": "v", "ключ": "\u2028\0"})
    with Model(path) as model:
        assert list(model) == ["a", "b", "c"] and len(model) == 3
        assert "b" in model and "z" not in model and 3 not in model
        assert model.get("z") is None
        with pytest.raises(KeyError):
            model["z"]
        with pytest.raises(InvalidArgumentError, match="no tensor named 'z'"):
            model.info("z")
        assert_equal(model["c"], tensor)
        assert model.metadata == {"k": "v", "ключ": "\u2028\0"}
        assert model.ties == {"c": "b"}
        assert model.info("c").tied_to == "b" and model.info("c").nbytes == 0 < model.info("b").nbytes
        with pytest.raises(InvalidArgumentError, match="not quantized"):
            model.packed("a")
        with pytest.raises(InvalidArgumentError, match="is quantized"):
            model.array("b")


def test_membership_decodes_nothing(path: Path) -> None:
    data = bytearray(written({"a": quantized((40, 60))}))
    header, body = take_apart(bytes(data))
    data[len(data) - len(body) + header["a.qzc.payload"]["data_offsets"][1] - 20] ^= 1
    path.write_bytes(data)
    with Model(path) as model:
        assert "a" in model and "a" in model.keys()
        with pytest.raises(CorruptionError):
            model["a"]


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    tensor = quantized((4, 6))
    save_file({"a": tensor, "b": tensor}, tmp_path / "1.qzc")
    save_file({"b": np.zeros(3)}, tmp_path / "2.qzc")
    with pytest.raises(CorruptionError, match="'b'"):
        Model(tmp_path)


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
        tensors[f"coded.{i}"] = quantized((131, 137), args, row_classes=i, column_classes=2)
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
    read = dict(safetensors.deserialize(data))
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
        *(n for n in BANK_WIDTHS if n in header),
        "qzc.checksums",
    ]
    assert "qzc.tables.ans16" in names and "qzc.tables.ans256" in names
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


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("spread", [0, 0.02, 0.15, 10])
def test_no_payload_outgrows_its_codes(coder: str, spread: float) -> None:
    for size in (1, 63, 511, 3000):
        tensor = quantized((size,), spread=spread)
        data = written({"a": tensor}, {"a": coder})
        assert sum(column(data, "a", "nbytes")) <= tensor.packed.size


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
    with pytest.raises(UnsupportedError, match="float128|longdouble|S3"):
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
        profile = Profile({"c": CodedTensor("F32", (3,), QuantizationArgs())}, {}, None, "a test")
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
        array, tensor = reader.uncoded("a"), reader.quantized("b")
    reader.close()
    path.unlink()
    assert array.sum() == 499500
    assert tensor.dequantize().shape == (4, 6)


def test_nothing_is_read_from_what_is_closed(path: Path) -> None:
    path.write_bytes(written({"a": np.arange(1000), "b": quantized((4, 6))}))
    with Reader(path) as reader, Model(path) as model:
        pass
    for read in (reader.uncoded, reader.raw, reader.check):
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
            assert reader.uncoded("a").tolist() == [0, 1, 2, 3, 4]
        assert not stream.closed


def test_an_unchanged_file_stays_as_it_is_when_signed() -> None:
    data = written({"a": quantized((4, 600)), "b": np.arange(5)})
    assert resign(data) == data
