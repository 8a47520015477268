"""`qzc unpack` and `unpack()`: back to safetensors, as floats or as packed integers."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qzc
from qzc.cli.unpack import command
from qzc.codec.packing import unpack_codes
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor
from qzc.formats.safetensors import SafetensorsFile
from qzc.packer import PackOptions
from tests.command_line import inside, ok, process
from tests.shards import INDEX, SIDE_FILES, files_in, shard

DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def packed(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture packed with the default grid. Read only."""
    return qzc.pack(model_file, tmp_path_factory.mktemp("packed") / "model.qzc").output


@pytest.fixture
def model(packed: Path, tmp_path: Path) -> Path:
    """A copy of `packed`, so that output can go beside it."""
    return Path(shutil.copy(packed, tmp_path / "model.qzc"))


def test_the_same_names_shapes_and_dtypes(model: Path, model_file: Path, tmp_path: Path) -> None:
    result = ok("unpack", model)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{tmp_path / 'model.safetensors'}: 20 tensors | ") and result.raw == b""
    assert files_in(tmp_path) == {"model.qzc", "model.safetensors"}
    original, restored = load_file(model_file), load_file(tmp_path / "model.safetensors")
    assert restored.keys() == original.keys()
    with qzc.open(model) as opened:
        for name, array in original.items():
            assert (restored[name].dtype, restored[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(restored[name], opened.dequantize(name)), name
            if opened.info(name).args is None:
                assert np.array_equal(restored[name], array), name
    with SafetensorsFile(tmp_path / "model.safetensors") as file, SafetensorsFile(model_file) as source:
        assert file.metadata == source.metadata == {"format": "pt"}


def test_what_was_not_quantized_comes_back_byte_for_byte(model_file: Path, tmp_path: Path) -> None:
    qzc.pack(model_file, tmp_path / "model.qzc", PackOptions(qzc.Selection(qzc.parse_bits("keep"))))
    ok("unpack", tmp_path / "model.qzc")
    assert (tmp_path / "model.safetensors").read_bytes() == model_file.read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_dtypes(dtype: str, model: Path, tmp_path: Path) -> None:
    ok("unpack", model, "--dtype", dtype)
    wanted = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    loaded = qzc.load_file(model, dtype=wanted)
    with SafetensorsFile(tmp_path / "model.safetensors") as file:
        assert file.array(DOWN).dtype == wanted
        assert file.array(DOWN).tobytes() == loaded[DOWN].tobytes()
        assert file.array(NORM).dtype == np.float32  # was never quantized


def test_floats_beyond_the_range_become_infinite_without_a_warning(tmp_path: Path) -> None:
    save_file({"w": np.full((64, 128), 1e6, np.float32)}, tmp_path / "m.safetensors")
    qzc.pack(tmp_path / "m.safetensors", options=PackOptions(qzc.Selection(scale_dtype="float32")))
    result = process("unpack", tmp_path / "m.qzc", "-f", "--dtype", "float16")
    assert result.code == 0 and len(result.stderr.splitlines()) == 1
    assert np.isinf(load_file(tmp_path / "m.safetensors")["w"]).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "columns"), [(1, 96), (3, 96), (4, 95), (8, 95)])
def test_packed_integers(bits: int, columns: int, symmetric: bool, tmp_path: Path) -> None:
    weights = np.random.default_rng(bits).normal(size=(128, columns)).astype(np.float32)
    save_file({"w": weights, "n": weights[0]}, tmp_path / "m.safetensors")
    grid = qzc.Selection(qzc.parse_bits(bits), symmetric=symmetric, strategy="group", group_size=32)
    qzc.pack(tmp_path / "m.safetensors", options=PackOptions(grid))
    ok("unpack", tmp_path / "m.qzc", "--format", "packed", "-o", tmp_path / "packed.safetensors")
    tensor = qzc.load_file(tmp_path / "m.qzc")["w"]
    assert isinstance(tensor, QuantizedTensor)
    with SafetensorsFile(tmp_path / "packed.safetensors") as file:
        found = {name: np.array(file.array(name)) for name in file.keys()}
        grids = json.loads(file.metadata["qzc.grids"])
    args = QuantizationArgs(**grids["w"])
    assert args == tensor.args
    names = {"w.packed", "w.scale", "w.shape", "n"} | (set() if symmetric else {"w.zero_point"})
    assert found.keys() == names
    width = args.storage_bits
    assert found["w.packed"].shape == ((128, columns * width // 8) if columns * width % 8 == 0 else (128 * 95 // 2,))
    # As its reader would do it, from nothing but the file:
    shape = tuple(found["w.shape"].tolist())
    codes = unpack_codes(found["w.packed"].reshape(-1), 128 * columns, width).reshape(shape).astype(np.float32)
    zero = np.full(found["w.scale"].shape, args.symmetric_zero_point, np.float32)
    zero = zero if symmetric else found["w.zero_point"].astype(np.float32)
    spread = [np.repeat(x.astype(np.float32), 32, axis=1)[:, :columns] for x in (zero, found["w.scale"])]
    assert np.array_equal((codes - spread[0]) * spread[1], tensor.dequantize())


def test_packed_names_that_are_taken(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(128, 96)).astype(np.float32)
    save_file({"w": weights, "w.packed": np.arange(4)}, tmp_path / "m.safetensors")
    qzc.pack(tmp_path / "m.safetensors")
    failed = inside("unpack", tmp_path / "m.qzc", "--format", "packed", "-o", tmp_path / "out")
    assert failed.code == 2 and "two tensors would have the name 'w.packed'" in failed.error
    assert files_in(tmp_path) == {"m.safetensors", "m.qzc"}


def test_folder_and_back(model_folder: Path, tmp_path: Path) -> None:
    source = shard(model_folder, tmp_path / "llama")
    rules = qzc.Selection(qzc.parse_bits("*.mlp.*=4,keep"))
    packed = qzc.pack(source, options=PackOptions(rules)).output
    assert packed == tmp_path / "llama-qzc"
    refused = inside("unpack", packed)  # its default is where the original is
    assert refused.code == 1 and "is a folder with files" in refused.error
    restored = tmp_path / "back"
    ok("unpack", packed, "-o", restored)
    shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert files_in(restored) == {*SIDE_FILES, *shards, INDEX}
    assert json.loads((restored / INDEX).read_text()) == json.loads((source / INDEX).read_text())
    for name in shards:
        original, found = load_file(source / name), load_file(restored / name)
        assert found.keys() == original.keys()
        for key in original:
            assert np.array_equal(found[key], original[key]) == (".mlp." not in key), key
    assert (restored / "sub" / "notes.txt").read_text() == "kept"


def test_packed_folder_with_index(model_folder: Path, tmp_path: Path) -> None:
    packed = qzc.pack(shard(model_folder, tmp_path / "llama")).output
    ok("unpack", packed, "--format", "packed", "-o", tmp_path / "int4")
    index = json.loads((tmp_path / "int4" / INDEX).read_text())
    held = {name: load_file(tmp_path / "int4" / name) for name in set(index["weight_map"].values())}
    assert {name for tensors in held.values() for name in tensors} == index["weight_map"].keys()
    assert f"{DOWN}.packed" in index["weight_map"] and NORM in index["weight_map"]
    total = sum(array.nbytes for tensors in held.values() for array in tensors.values())
    assert index["metadata"]["total_size"] == total


def test_folder_names(model_folder: Path, tmp_path: Path) -> None:
    for source, target in (("a-qzc", "a"), ("b", "b-unpacked")):
        qzc.pack(model_folder, tmp_path / source)
        assert qzc.unpack(tmp_path / source).output == tmp_path / target


def test_stdout(model: Path, tmp_path: Path) -> None:
    ok("unpack", model)
    result = ok("unpack", model, "-o", "-")
    assert result.raw == (tmp_path / "model.safetensors").read_bytes()
    for arguments in (("unpack", model, "-o", "-", "--json"), ("unpack", tmp_path, "-o", "-")):
        failed = inside(*arguments)
        assert failed.code != 0 and failed.raw == b"" and failed.error


def test_json_and_quiet(model: Path, tmp_path: Path) -> None:
    report = ok("unpack", model, "--json").json
    path = tmp_path / "model.safetensors"
    assert report == {
        "schema": "qzc.unpack/1",
        "output": str(path),
        "tensors": 20,
        "source_nbytes": model.stat().st_size,
        "nbytes": path.stat().st_size,
    }
    quiet = ok("unpack", model, "-f", "-q")
    assert quiet.raw == b"" and quiet.stderr == ""


def test_existing_files_are_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("precious")
    failed = inside("unpack", model)
    assert failed.code == 1 and "already exists; -f/--force overwrites it" in failed.error
    failed = inside("unpack", model, "-f", "-o", model)
    assert failed.code == 2 and "the output is the input file" in failed.error
    assert (tmp_path / "model.safetensors").read_text() == "precious"
    assert files_in(tmp_path) == {"model.qzc", "model.safetensors"}


def test_threads_do_not_change_the_bytes(model: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        ok("unpack", model, "-T", threads, "-o", tmp_path / f"{threads}")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_what_is_not_packed(model_file: Path, tmp_path: Path) -> None:
    failed = inside("unpack", model_file, "-o", tmp_path / "out")
    assert failed.code == 4 and "not a .qzc file" in failed.error


def test_library_options_without_meaning(model: Path) -> None:
    options: list[dict[str, Any]] = [{"dtype": "int8"}, {"format": "gguf"}, {"threads": -1}]
    for option in options:
        with pytest.raises(qzc.InvalidArgumentError, match=str(*option.values())):
            qzc.unpack(model, **option)


def test_progress_reaches_the_end(model: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    qzc.unpack(model, progress=lambda *call: calls.append(call))
    assert len(calls) == 20
    assert calls[-1][1:] == (model.stat().st_size, model.stat().st_size)


def test_choices_of_the_command_are_those_of_the_library() -> None:
    hints = get_type_hints(qzc.unpack)
    for parameter in command.params:
        if parameter.name in ("dtype", "format"):
            assert isinstance(parameter.type, click.Choice)
            assert tuple(parameter.type.choices) == get_args(hints[parameter.name])
