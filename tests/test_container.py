"""The `.qzc` container: what is written reads back, in whole and by rows, through our reader and through others."""

import json
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
from qzc.codec.records import Records
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, matrix_shape
from qzc.formats.dtypes import numpy_dtype
from qzc.formats.reader import Reader
from qzc.model import Model, load_file
from qzc.save import save_file
from tests.builders import Lossless, Plan, Source, build
from tests.containers import as_decoded, assert_equal, based, check_all
from tests.reference_decoder import Decoded, code_order, decode_file, restore_source
from tests.reference_encoder import random_bytes, random_file, random_records, random_source
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


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("seed", range(12))
def test_lossless_tensors_read_back(path: Path, seed: int, coder: str) -> None:
    """Of all records, with palettes and bases, and the source of the file as well."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Lossless | NDArray[Any]] = {"plain": rng.integers(0, 99, (2, 3))}
    for i, size in enumerate((1, 2, 4, 8, 3, 18, 144)):
        fields, rotate, unit, lanes, walks = random_records(rng, size)
        gather = None if walks is None else tuple(tuple(tuple(item) for item in walk) for walk in walks)
        records = Records(tuple(fields), rotate, (unit, lanes) if unit else None, gather)
        data = random_bytes(rng, int(rng.integers(0, 3000)) // records.span * records.span)
        base = random_bytes(rng, len(data)) if rng.random() < 0.3 else None
        tensors[f"{i}"] = Lossless("Q9", (i, 3), data, records, base=base)
        if size in (1, 2, 4, 8):
            few = bytes(rng.choice(np.array([0, 1, 77], np.uint8), 500).repeat(size))
            tensors[f"few.{i}"] = Lossless("U8", (5, 100 * size), few, Records(((8, size),)), palette=True)
    tensors["f"] = Lossless("BF16", (40, 30), random_bytes(rng, 2400), Records(((3, 1), (8, 1), (5, 1)), rotate=True))
    ties = {"tied": "f"}
    raw = {name: tensor.data if isinstance(tensor, Lossless) else tensor.tobytes() for name, tensor in tensors.items()}
    raw |= {name: raw[target] for name, target in ties.items()}
    expected = {name: Decoded("", (), data) for name, data in raw.items()}
    source, _, members = random_source(rng, expected)
    offsets = dict(zip(sorted(raw), np.frombuffer(members[1].data, "<u8").tolist(), strict=True))
    plan = Plan(coder=coder, ties=ties, source=Source("gguf", source, offsets))
    path.write_bytes(build(tensors, plan))
    bases = {name: t.base for name, t in tensors.items() if isinstance(t, Lossless) and t.base is not None}
    assert {name: tensor.raw for name, tensor in decode_file(path.read_bytes(), bases).items()} == raw
    assert restore_source(path.read_bytes(), bases) == source
    with Reader(path, based(bases)) as reader:
        check_all(reader)
        assert {name: reader.raw(name).tobytes() for name in reader.keys()} == raw
        assert reader.source_file()[1] == offsets
        for name in ("f", "plain", "few.3", "tied"):
            whole = reader.array(name)
            first, last = sorted(rng.integers(0, len(whole) + 1, 2).tolist())
            assert_equal(reader.array(name, slice(first, last)), whole[first:last])
    with Reader(path) as reader:
        for name in bases:
            with pytest.raises(InvalidArgumentError, match=f"'{name}' is a delta"):
                reader.raw(name)
    with Reader(path, based({name: base + b"x" for name, base in bases.items()})) as reader:
        for name in bases:
            with pytest.raises(InvalidArgumentError, match="not the base"):
                reader.raw(name)


@pytest.mark.parametrize(("strategy", "shape", "zero_points"), [("tensor", (0, 4), 1), ("channel", (5, 0), 5)])
def test_zero_points_of_a_tensor_without_elements(
    path: Path, strategy: Any, shape: tuple[int, ...], zero_points: int
) -> None:
    tensor = quantized(shape, QuantizationArgs(4, False, strategy, None))
    path.write_bytes(written({"a": tensor}))
    assert column(path.read_bytes(), "a", "codes") == [zero_points, 2 * zero_points]  # and two bytes of each scale
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
    file = random_file(np.random.default_rng(1000 + seed), any_order=seed % 2 == 0)
    path.write_bytes(file.data)
    with np.errstate(all="ignore"), Reader(path, based(file.base)) as reader:
        check_all(reader)
        assert_same({name: as_decoded(reader, name) for name in reader.keys()}, file.expected)
        for name in reader.keys():
            tensor, shape = file.expected[name], reader.info(name).shape
            if not shape:
                continue
            rows = slice(*sorted(np.random.default_rng(seed).integers(0, shape[0] + 1, 2).tolist()))
            if tensor.codes is not None:
                part = reader.quantized(name, rows)
                assert np.array_equal(part.codes, tensor.codes[rows])
                assert tensor.dequantized is not None
                assert np.array_equal(part.dequantize(), tensor.dequantized[rows], equal_nan=True)
            elif numpy_dtype(tensor.dtype) is not None:
                assert_equal(reader.array(name, rows), reader.array(name)[rows])


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
    """For each chunk the rows that cannot do without it; None for those of zero points and scales that all share."""
    rows, columns = matrix_shape(tensor.shape)
    runs = code_order(rows, columns, tensor.row_class, tensor.column_class)
    planes: list[list[int] | None] = [[i // columns for run in runs for i in run]]
    assert tensor.zero_point is not None
    metadata = take_apart(data)[0]["__metadata__"]
    records = json.loads(metadata["qzc.records"])[json.loads(metadata["qzc.coded"])["a"]["scale"]]
    for per_scale in (1, *(count for _, count in records["fields"])):
        per_row = tensor.scale.size // rows * per_scale
        planes.append([i // per_row for i in range(rows * per_row)] if per_row else None)
    result: list[set[int] | None] = []
    sizes = iter(column(data, "a", "codes"))
    for owners, each in zip(planes, (1, 1, *(count for _, count in records["fields"])), strict=True):
        left = each if owners is None else len(owners)
        while left:
            codes = next(sizes)
            at = 0 if owners is None else len(owners) - left
            result.append(None if owners is None else set(owners[at : at + codes]))
            left -= codes
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
