"""Opening and loading `.qzc` files: a mapping of tensors, floats, memory of the caller's."""

import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec import decoding as decoding_module
from qzc.codec.batch import run_tasks
from qzc.codec.errors import (
    CorruptionError,
    InvalidArgumentError,
)
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, packed_nbytes
from qzc.formats import reader
from qzc.formats.access import read_ahead
from qzc.model import Model, load_file
from qzc.save import save_file
from tests.containers import assert_equal
from tests.resign import take_apart
from tests.strategies import quantized, written

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


def test_loading_asks_for_the_payloads_before_it_decodes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": quantized((40, 60)), "b": np.zeros(3), "c": quantized((400, 60))}, path)
    header, body = take_apart(path.read_bytes())
    data_start = path.stat().st_size - len(body)
    payloads = [header[f"{name}.qzc.payload"]["data_offsets"] for name in "ac"]
    events: list[Any] = []

    def recorded(mapped: mmap.mmap, begin: int, end: int) -> None:
        events.append([begin - data_start, end - data_start])
        read_ahead(mapped, begin, end)
        read_ahead(mapped, begin, begin)  # nothing is no error, either
        read_ahead(mapped, 0, len(mapped))

    def decoding(*arguments: Any) -> None:
        events.append("decoding")
        run_tasks(*arguments)

    monkeypatch.setattr(reader, "read_ahead", recorded)
    monkeypatch.setattr(decoding_module, "run_tasks", decoding)
    load_file(path)
    assert events == [*payloads, "decoding"]


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
        assert "b" in model and "z" not in model
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
        bad: Any
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
