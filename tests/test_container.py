"""The `.qzc` container: what is written reads back, in whole and by rows, through our reader and through others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.errors import (
    CorruptionError,
    InvalidArgumentError,
)
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, matrix_shape
from qzc.formats.reader import Reader
from qzc.model import Model, load_file
from qzc.save import save_file
from tests.containers import as_decoded, assert_equal
from tests.reference_decoder import code_order, decode_file
from tests.reference_encoder import random_file
from tests.resign import column, take_apart
from tests.strategies import CODERS, STRATEGIES, quantized, quantized_tensors, written
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


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


@settings(max_examples=80)
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
    assert [name for name, _ in safetensors.deserialize(data)]  # type: ignore[no-untyped-call]


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


@settings(max_examples=50)
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
