"""safetensors files in and out, against the library: same values, same bytes, every dtype."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import TensorSpec, safe_open, serialize_file
from safetensors.numpy import load_file, save_file

from qzc.codec.errors import CorruptionError, FileAccessError, InvalidArgumentError, TruncationError, UnsupportedError
from qzc.formats.dtypes import (
    DTYPE_BITS,
    bits_of,
    file_bytes,
    is_float,
    numpy_dtype,
    safetensors_dtype,
    tensor_nbytes,
)
from qzc.formats.header import Member
from qzc.formats.safetensors import SafetensorsFile, library_order, pieces_of, place, write_safetensors
from tests.malformed import MALFORMED, Malformed, entry, file_of

ROOT = Path(__file__).parent.parent

# Names that the library takes for the dtypes that it can write.
LIBRARY_NAMES = {
    "BOOL": "bool", "F4": "float4_e2m1fn_x2", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64",
    "U64": "uint64",
}  # fmt: skip


def save_with_library(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """`{name: (dtype, shape, data)}` through the library, any dtype that it knows."""
    buffers = {name: np.frombuffer(data, np.uint8) for name, (_, _, data) in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=LIBRARY_NAMES[dtype], shape=shape, data_ptr=buffers[name].ctypes.data, data_len=len(data)
        )
        for name, (dtype, shape, data) in tensors.items()
    }
    serialize_file(specs, str(path))


def one_of_each() -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    source = random.Random(7)
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for dtype in LIBRARY_NAMES:
        data = source.randbytes(3 * DTYPE_BITS[dtype])
        if dtype == "BOOL":
            data = bytes(byte & 1 for byte in data)
        # The library counts two F4 elements as one where they come from torch.
        tensors[f"{dtype.lower()}.weight"] = (dtype, (3, 4) if dtype == "F4" else (3, 8), data)
    return tensors


@pytest.fixture
def library_file(tmp_path: Path) -> Path:
    path = tmp_path / "library.safetensors"
    save_with_library(path, one_of_each())
    return path


def test_every_dtype_of_the_library(library_file: Path) -> None:
    with SafetensorsFile(library_file) as file, safe_open(library_file, "np") as library:
        assert set(file.keys()) == set(library.keys()) == set(one_of_each())
        assert file.metadata == (library.metadata() or {})
        for name, (dtype, _, data) in one_of_each().items():
            member, array = file.info(name), file.array(name)
            assert member.dtype == dtype and member.nbytes == len(data) == 3 * DTYPE_BITS[dtype]
            assert member.shape == (3, 8)
            assert file.raw(name).tobytes() == data
            assert not array.flags.writeable
            if dtype == "F4":
                assert array.dtype == np.uint8 and array.shape == (12,)
                continue
            assert array.shape == (3, 8) and array.tobytes() == data
            if array.dtype.isbuiltin == 1:  # ml_dtypes' own are not for the library
                theirs = library.get_tensor(name)
                assert theirs.dtype == array.dtype and theirs.tobytes() == array.tobytes()


def test_names_of_dtypes_round_trip() -> None:
    for dtype in DTYPE_BITS:
        ours = numpy_dtype(dtype)
        if ours is None:
            assert dtype in ("F4", "F6_E2M3", "F6_E3M2")
        else:
            assert safetensors_dtype(ours) == dtype and ours.itemsize * 8 == DTYPE_BITS[dtype]
    assert numpy_dtype("Q4_K") is None
    assert safetensors_dtype(np.dtype(">f4")) == "F32"


@pytest.mark.parametrize("dtype", [np.dtype("U3"), np.dtype(object), np.dtype("f8,i4"), np.dtype(np.complex128)])
def test_dtypes_that_safetensors_lacks(dtype: np.dtype[Any]) -> None:
    with pytest.raises(UnsupportedError, match="no dtype for NumPy's"):
        safetensors_dtype(dtype)


def test_sub_byte_numpy_dtypes_are_refused() -> None:
    with pytest.raises(UnsupportedError):  # one byte per element in NumPy, half of one in a file
        safetensors_dtype(np.dtype(ml_dtypes.float4_e2m1fn))


def test_which_dtypes_are_float() -> None:
    floats = {name for name in DTYPE_BITS if is_float(name)}
    assert floats == {name for name in DTYPE_BITS if name[0] == "F"} | {"BF16"}
    assert not is_float("FP3_UNKNOWN")


def test_sizes() -> None:
    assert tensor_nbytes("F6_E2M3", (4, 2)) == 6 and tensor_nbytes("C64", ()) == 8 and tensor_nbytes("F4", (0,)) == 0
    assert bits_of("F4") == 4 and bits_of("new", default=1) == 1
    with pytest.raises(UnsupportedError, match="unknown dtype 'new'"):
        tensor_nbytes("new", (1,))
    with pytest.raises(UnsupportedError, match="does not fill whole bytes"):
        tensor_nbytes("F4", (3,))


def test_values_of_bfloat16_and_float8(tmp_path: Path) -> None:
    values = np.array([-2.0, 0.0, 0.5, 1.5], np.float32)
    arrays = {
        name: values.astype(dtype)
        for name, dtype in (("b", ml_dtypes.bfloat16), ("e4", ml_dtypes.float8_e4m3fn), ("e5", ml_dtypes.float8_e5m2))
    }
    path = tmp_path / "a.safetensors"
    members = place((name, safetensors_dtype(a.dtype), a.shape, a.nbytes) for name, a in arrays.items())
    write_safetensors(path, members, [file_bytes(a) for a in arrays.values()])
    with SafetensorsFile(path) as file:
        for name, array in arrays.items():
            assert file.array(name).dtype == array.dtype
            assert np.array_equal(file.array(name).astype(np.float32), values)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "scalar": np.array(2.5),
        "empty": np.zeros((3, 0, 2), np.float16),
        "none": np.zeros(0, np.int8),
        "one": np.array([7], np.uint16),
    }
    save_file(arrays, tmp_path / "a.safetensors")
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        for name, array in arrays.items():
            assert file.array(name).shape == array.shape and np.array_equal(file.array(name), array)
            file.release(name)
    save_file({}, tmp_path / "nothing.safetensors", {"only": "metadata"})
    with SafetensorsFile(tmp_path / "nothing.safetensors") as file:
        assert file.keys() == [] and file.metadata == {"only": "metadata"}


def test_shapes_beyond_numpy(tmp_path: Path) -> None:
    tensors = {"many": entry("U8", [1] * 65, [0, 1]), "wide": entry("F64", [0, 2**60 - 1], [1, 1])}
    (tmp_path / "a.safetensors").write_bytes(file_of(tensors, b"x"))
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        assert file.array("wide").shape == (0, 2**60 - 1)
        with pytest.raises(UnsupportedError, match="'many' has 65 dimensions"):
            file.array("many")
        assert file.raw("many").tobytes() == b"x"


def test_unknown_dtype_and_odd_offset(tmp_path: Path) -> None:
    tensors = {"q": entry("Q9_Z", [5, 5], [0, 3]), "w": entry("F32", [2], [3, 11])}
    values = np.array([1.5, -3.0], np.float32)
    (tmp_path / "a.safetensors").write_bytes(file_of(tensors, b"abc" + values.tobytes()))
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        assert file.array("q").tobytes() == b"abc" and file.array("q").dtype == np.uint8
        assert np.array_equal(file.array("w"), values)


def test_zero_copy_and_release(tmp_path: Path) -> None:
    save_file({"a": np.arange(100_000.0), "b": np.arange(3.0), "c": np.arange(50_000)}, tmp_path / "a.safetensors")
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        assert file.nbytes == (tmp_path / "a.safetensors").stat().st_size
        array = file.array("a")
        assert np.shares_memory(array, file.raw("a"))
        for name in ("a", "b", "c"):
            file.release(name)
        assert np.array_equal(array, np.arange(100_000.0)) and np.array_equal(file.array("c"), np.arange(50_000))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_release_gives_memory_back(tmp_path: Path) -> None:
    save_file({"a": np.zeros(16_000_000, np.uint8)}, tmp_path / "a.safetensors")
    code = """
import sys
from qzc.formats.safetensors import SafetensorsFile
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssFile")).split()[1])
with SafetensorsFile(sys.argv[1]) as file:
    before = resident()
    assert file.array("a").max() == 0
    full = resident()
    file.release("a")
    print(full - before, resident() - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.safetensors")]
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    full, released = map(int, output.split())
    assert full > 12_000 and released < 4_000  # kB


def test_views_outlive_the_file(tmp_path: Path) -> None:
    save_file({"a": np.arange(1000)}, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    array = file.array("a")
    file.close()
    file.close()
    assert array.sum() == 499_500
    assert file.info("a").shape == (1000,) and file.nbytes > 8000
    file.release("a")
    with pytest.raises(InvalidArgumentError, match="the file is closed"):
        file.raw("a")


def test_unknown_name(library_file: Path) -> None:
    with SafetensorsFile(library_file) as file, pytest.raises(InvalidArgumentError, match="no tensor named 'x'"):
        file.array("x")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in MALFORMED.values()])
def test_malformed_files(case: Malformed, fixtures: Path) -> None:
    path = fixtures / "bad" / f"{case.name}.safetensors"
    with pytest.raises(CorruptionError) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path}: ") and case.message in str(caught.value)
    assert isinstance(caught.value, TruncationError) == case.truncated


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="no such file"):
        SafetensorsFile(tmp_path / "none")
    with pytest.raises(FileAccessError, match="it is a folder"):
        SafetensorsFile(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileAccessError, match="not a regular file"):
            SafetensorsFile(tmp_path / "pipe")


def test_written_bytes_are_the_library_s(tmp_path: Path) -> None:
    source = random.Random(3)
    known = [dtype for dtype in LIBRARY_NAMES if dtype != "F4"]
    tensors = {f"t{i}\n\u00e9\x7f": (source.choice(known), (i % 3, 2)) for i in range(60)}
    data = {name: source.randbytes(tensor_nbytes(*tensor)) for name, tensor in tensors.items()}
    save_with_library(tmp_path / "theirs", {name: (*tensors[name], data[name]) for name in tensors})
    names = library_order((name, dtype) for name, (dtype, _) in tensors.items())
    members = place((name, *tensors[name], len(data[name])) for name in names)
    size = write_safetensors(tmp_path / "ours", members, [data[name] for name in names])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert size == (tmp_path / "ours").stat().st_size


def test_written_with_metadata(tmp_path: Path, model_file: Path) -> None:
    theirs = load_file(model_file)
    with SafetensorsFile(model_file) as file:
        names = library_order((name, file.info(name).dtype) for name in file.keys())
        members = place((name, file.info(name).dtype, file.info(name).shape, file.info(name).nbytes) for name in names)
        pieces = (piece for name in names for piece in pieces_of(file.raw(name), 1000))
        write_safetensors(tmp_path / "a", members, pieces, {"format": "pt", "note": "\u00fc\n"})
    with safe_open(tmp_path / "a", "np") as library:
        assert library.metadata() == {"format": "pt", "note": "\u00fc\n"}
        assert set(library.keys()) == set(theirs)
        for name, tensor in theirs.items():
            assert np.array_equal(library.get_tensor(name), tensor)
    for member in members:
        assert member.begin % (DTYPE_BITS[member.dtype] // 8) == 0


def test_header_order_apart_from_data_order(tmp_path: Path) -> None:
    members = [Member("z", "U8", (2,), 3, 5), Member("a", "U8", (3,), 0, 3)]
    write_safetensors(tmp_path / "a", members, [b"abc", b"de"])
    with SafetensorsFile(tmp_path / "a") as file:
        assert file.keys() == ["z", "a"] and file.raw("z").tobytes() == b"de" and file.raw("a").tobytes() == b"abc"


@pytest.mark.parametrize(
    ("pieces", "message"),
    [([b"abcd"], "4 bytes of data, 5 were announced"), ([b"abc", b"def"], "more data than the 5 bytes")],
)
def test_data_that_does_not_add_up(tmp_path: Path, pieces: list[bytes], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        write_safetensors(tmp_path / "a", [Member("w", "U8", (5,), 0, 5)], pieces)
    assert list(tmp_path.iterdir()) == []


def test_members_with_a_hole(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="starts at 4, not at 3"):
        write_safetensors(tmp_path / "a", [Member("v", "U8", (3,), 0, 3), Member("w", "U8", (5,), 4, 9)], [bytes(9)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(6, dtype=np.float32).reshape(2, 3),
        lambda: np.arange(6, dtype=">f4").reshape(2, 3),
        lambda: np.arange(6, dtype=np.float32).reshape(3, 2).T.copy("F"),
        lambda: np.arange(12, dtype=np.float32)[::2],
        lambda: np.arange(6).astype(ml_dtypes.bfloat16),
        lambda: np.array(1.0, ml_dtypes.float8_e4m3fn),
        lambda: np.zeros((0, 3), np.int64),
    ],
)
def test_bytes_of_arrays(make: Callable[[], NDArray[Any]]) -> None:
    array = make()
    expected = b"".join(x.astype(x.dtype.newbyteorder("<")).tobytes() for x in array.reshape(-1))
    assert file_bytes(array).tobytes() == expected and file_bytes(array).shape == (array.nbytes,)


def test_bytes_of_an_array_are_a_view() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(array, file_bytes(array))
