"""`qzc pack` and `pack()`: what is written, under which name, from which options, and what is left behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qzc
from qzc.codec.errors import VerificationError
from qzc.codec.tensor import QuantizedTensor
from qzc.formats.reader import Reader
from qzc.packer import PackOptions
from tests.command_line import inside, ok, process
from tests.shards import INDEX, SIDE_FILES, SKIPPED, files_in, shard

DOWN = "model.layers.0.mlp.down_proj.weight"
EMBED = "model.embed_tokens.weight"
NORM = "model.norm.weight"


@pytest.fixture
def model(model_file: Path, tmp_path: Path) -> Path:
    """A copy of the fixture, so that output can go beside it."""
    return Path(shutil.copy(model_file, tmp_path / "model.safetensors"))


# ---------------------------------------------------------------------------------------------------------------------
# The main job, and where its output goes


def test_the_command_of_the_readme(model: Path, tmp_path: Path) -> None:
    result = process("pack", "model.safetensors", "--bits", 4, "--coder", "ans", cwd=tmp_path)
    assert result.code == 0 and result.raw == b""
    assert files_in(tmp_path) == {"model.safetensors", "model.qzc"}
    (line,) = result.stderr.splitlines()  # not a terminal: no progress
    size = (tmp_path / "model.qzc").stat().st_size
    assert (
        line.startswith("model.qzc: 15 tensors quantized, 0 lossless, 5 kept | 2.37 MB -> ") and "| verified | " in line
    )
    assert size < 300_000
    assert ok("verify", tmp_path / "model.qzc", "--against", model).code == 0


def test_output_names(model: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(model.read_bytes())
    assert qzc.pack(tmp_path / "weights").output == tmp_path / "weights.qzc"
    ok("pack", model, "-q", "-o", tmp_path / "other name")
    assert files_in(tmp_path) == {"model.safetensors", "weights", "weights.qzc", "other name"}


def test_folder_output_names(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model_folder, tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    assert qzc.pack("llama").output == Path("llama-qzc")
    monkeypatch.chdir(tmp_path / "llama")
    assert qzc.pack(".", options=PackOptions(overwrite=True)).output == tmp_path / "llama-qzc"


def test_an_existing_file_is_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.qzc").write_text("precious")
    failed = inside("pack", model)
    assert (failed.code, failed.error) == (1, f"{tmp_path / 'model.qzc'} already exists; -f/--force overwrites it")
    assert (tmp_path / "model.qzc").read_text() == "precious"
    assert files_in(tmp_path) == {"model.safetensors", "model.qzc"}
    ok("pack", model, "-f")
    assert qzc.verify(tmp_path / "model.qzc").tensors == 20


def test_stdout(model: Path, tmp_path: Path) -> None:
    ok("pack", model)
    result = ok("pack", model, "-o", "-")
    assert result.raw == (tmp_path / "model.qzc").read_bytes()
    assert result.stderr.startswith("stdout: 15 tensors quantized")
    assert files_in(tmp_path) == {"model.safetensors", "model.qzc"}


def test_stdout_has_room_for_one_thing(model: Path, model_folder: Path) -> None:
    for arguments in (("pack", model, "-o", "-", "--json"), ("pack", model_folder, "-o", "-")):
        failed = inside(*arguments)
        assert failed.code == 2 and failed.raw == b"" and "stdout" in failed.error


@pytest.mark.parametrize("how", ["the name itself", "a link", "a hard link"])
def test_the_input_is_never_overwritten(how: str, model: Path, tmp_path: Path) -> None:
    target = model
    if how != "the name itself":
        target = tmp_path / "other.qzc"
        target.symlink_to(model) if how == "a link" else target.hardlink_to(model)
    before = model.read_bytes()
    failed = inside("pack", model, "-f", "-o", target)
    assert failed.code == 2 and "the output is the input file" in failed.error
    assert model.read_bytes() == before


def test_quiet_and_verbose(model: Path, tmp_path: Path) -> None:
    quiet = ok("pack", model, "-q")
    assert quiet.raw == b"" and quiet.stderr == ""
    lines = ok("pack", model, "-v", "-f").stderr.splitlines()
    assert f"{DOWN}  4-bit group 128 mse (rule *=4)" in lines
    assert f"{NORM}  keep (1-D)" in lines
    assert len(lines) == 21


def test_json(model: Path, tmp_path: Path) -> None:
    report = ok("pack", model, "--json", "--strategy", "channel").json
    path = tmp_path / "model.qzc"
    assert report["schema"] == "qzc.pack/1" and report["output"] == str(path)
    assert report["nbytes"] == path.stat().st_size and report["source_nbytes"] == model.stat().st_size
    assert report["verified"] is True and report["unused_rules"] == [] and report["skipped"] == []
    (file,) = report["files"]
    stored = sum(sum(tensor["stored"].values()) for tensor in file["tensors"])
    assert file["nbytes"] == stored + file["header_nbytes"] + file["tables_nbytes"] + file["checksums_nbytes"]
    entry = next(tensor for tensor in file["tensors"] if tensor["name"] == DOWN)
    assert entry["grid"]["num_bits"] == 4 and entry["grid"]["strategy"] == "channel" and entry["shape"] == [256, 192]
    kept = [tensor for tensor in file["tensors"] if not tensor["grid"]]
    assert [tensor["reason"] for tensor in kept] == ["1-D"] * 5
    assert 3 < report["bits_per_weight"] < 4


def test_no_verify(model: Path) -> None:
    assert "| not verified |" in ok("pack", model, "--no-verify").stderr


def test_what_does_not_read_back_is_not_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Reader, name: str, rows: slice | None = None, run: Any = map) -> QuantizedTensor:
        tensor = intact(self, name, rows, run)
        packed = tensor.packed.copy()
        packed[-1] ^= 1
        return QuantizedTensor(packed, tensor.scale, tensor.zero_point, tensor.shape, tensor.dtype, tensor.args)

    intact = Reader.quantized
    monkeypatch.setattr(Reader, "quantized", broken)
    failed = inside("pack", model)
    assert failed.code == VerificationError.exit_code
    assert "what was written does not read back (tensor 'model." in failed.error
    assert files_in(tmp_path) == {"model.safetensors"}


# ---------------------------------------------------------------------------------------------------------------------
# The same bytes


def test_threads_and_kernels_do_not_change_the_bytes(model: Path, tmp_path: Path) -> None:
    ok("pack", model, "-T", 1)
    first = (tmp_path / "model.qzc").read_bytes()
    for threads in (2, 8, 100_000):
        ok("pack", model, "-f", "-T", threads)
        assert (tmp_path / "model.qzc").read_bytes() == first
    result = process("pack", model, "-f", env={"QZC_KERNELS": "portable"})
    assert result.code == 0 and (tmp_path / "model.qzc").read_bytes() == first


@pytest.mark.parametrize("coder", ["ans", "huffman", "raw"])
def test_coders_and_chunks(coder: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.qzc"
    codes = None
    for chunk_codes in (1024, 1 << 18):
        ok("pack", model, "-f", "--coder", coder, "--chunk-codes", chunk_codes)
        with Reader(path) as reader:
            index, first = reader.coded_file.index, reader.chunks(EMBED)[2]
            rows = index.rows[index.planes[first] : index.planes[first + 1]]
            assert len(rows) == max(1, round(384 * 256 / chunk_codes))
            found = reader.quantized(EMBED).codes
        assert codes is None or np.array_equal(codes, found)
        codes = found
    assert set(rows["coder"].tolist()) <= {"ans": {2, 3, 8}, "huffman": {4}, "raw": {0}}[coder]


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_folder_in_folder_out(model_folder: Path, tmp_path: Path) -> None:
    source = shard(model_folder, tmp_path / "llama")
    before = {name: (source / name).read_bytes() for name in files_in(source)}
    result = ok("pack", source)
    assert f"not copied (weights in other formats or variants): {SKIPPED}" in result.stderr.splitlines()
    packed = tmp_path / "llama-qzc"
    shards = {f"model-0000{i}-of-00002.qzc.safetensors" for i in (1, 2)}
    assert files_in(packed) == {*SIDE_FILES, *shards, "model.safetensors.index.qzc.json"}
    assert files_in(tmp_path) == {f"llama/{name}" for name in before} | {f"llama-qzc/{n}" for n in files_in(packed)}
    for name in SIDE_FILES:
        assert (packed / name).read_bytes() == before[name]
    index = json.loads((packed / "model.safetensors.index.qzc.json").read_text())
    assert index["metadata"]["made by"] == "a test" and set(index["weight_map"].values()) == shards
    assert index["weight_map"].keys() == json.loads(before[INDEX])["weight_map"].keys()
    with qzc.open(packed) as model:
        assert list(model) == sorted(load_file(model_folder / "model.safetensors"))
    assert qzc.verify(packed, against=source).files == 2
    assert qzc.verify(packed, against=model_folder).files == 2  # shards or not: the same tensors


def test_an_index_stands_for_its_folder(model_folder: Path, tmp_path: Path) -> None:
    source = shard(model_folder, tmp_path / "llama")
    report = qzc.pack(source / INDEX, tmp_path / "out")
    assert len(report.files) == 2 and [path.name for path in report.skipped] == [SKIPPED]


def test_a_folder_that_has_been_packed_file_by_file(model_folder: Path, tmp_path: Path) -> None:
    """Each command takes the kind that it is for."""
    source = Path(shutil.copytree(model_folder, tmp_path / "llama"))
    ok("pack", source / "model.safetensors")
    result = ok("pack", source)
    assert "not copied (weights in other formats or variants): model.qzc" in result.stderr.splitlines()
    assert (tmp_path / "llama-qzc" / "model.qzc.safetensors").read_bytes() == (source / "model.qzc").read_bytes()
    assert ok("verify", source, "--against", source).code == 0
    ok("unpack", source)
    assert files_in(tmp_path / "llama-unpacked") == {path.name for path in model_folder.iterdir()}
    assert len(qzc.load_file(source)) == 20
    failed = inside("ls", source)
    assert failed.code == 3 and "is also in model.qzc" in failed.error


@pytest.mark.parametrize("place", [".", "sub", "new/deep", "../llama", "../link"])
def test_output_into_the_input_is_refused(place: str, model_folder: Path, tmp_path: Path) -> None:
    source = shard(model_folder, tmp_path / "llama")
    (tmp_path / "link").symlink_to(source)
    before = files_in(source)
    failed = inside("pack", source, "-f", "-o", source / place)
    assert failed.code == 2 and "the input folder; choose another with -o" in failed.error
    assert files_in(source) == before


def test_a_folder_under_the_name_of_a_file_is_refused(model_folder: Path, tmp_path: Path) -> None:
    for command, source in (("pack", model_folder), ("unpack", tmp_path / "packed")):
        for suffix in (".qzc", ".safetensors"):
            if command == "unpack" and not source.exists():
                ok("pack", model_folder, "-o", source)
            failed = inside(command, source, "-o", tmp_path / f"out{suffix}")
            assert failed.code == 2 and "the input is a folder, so the output is one; name a folder" in failed.error
    assert {path.name for path in tmp_path.iterdir()} == {"packed"}


def test_a_folder_with_files_needs_force(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    failed = inside("pack", model_folder, "-o", tmp_path / "out")
    assert failed.code == 1 and "is a folder with files; -f/--force" in failed.error
    assert files_in(tmp_path) == {"out/mine.txt"}
    ok("pack", model_folder, "-f", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    assert qzc.verify(tmp_path / "out").tensors == 20


def test_nothing_is_left_of_a_folder_that_fails(model_folder: Path, tmp_path: Path) -> None:
    source = shard(model_folder, tmp_path / "llama")
    second = source / "model-00002-of-00002.safetensors"
    tensors = load_file(second)
    name = max(tensors, key=lambda name: tensors[name].size)
    tensors[name][0, 0] = np.nan
    save_file(tensors, second)
    assert inside("pack", source, "-o", tmp_path / "out").code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"llama"}


def test_what_is_packed_already(model: Path, model_folder: Path, tmp_path: Path) -> None:
    ok("pack", model)
    ok("pack", model_folder, "-o", tmp_path / "folder")
    for path in (tmp_path / "model.qzc", tmp_path / "folder"):
        failed = inside("pack", path, "-o", tmp_path / "out")
        assert failed.code == 2 and "this is a .qzc file already; unpack it first" in failed.error


# ---------------------------------------------------------------------------------------------------------------------
# Progress


def test_progress_reaches_the_end(model: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []

    def note(doing: str, done: int, total: int) -> None:
        calls.append((doing, done, total))

    qzc.pack(model, progress=note)
    dones = [done for _, done, _ in calls]
    assert dones == sorted(dones) and dones[-1] <= model.stat().st_size == calls[-1][2]
    assert dones[-1] > 0.99 * calls[-1][2]
    assert {f"verifying {name}" for name in load_file(model)} <= {doing for doing, _, _ in calls}


def test_a_batch_of_many_tensors_in_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tensors = {f"{i}.weight": rng.normal(size=(64, 80)).astype(np.float32) for i in range(300)}
    save_file(tensors, tmp_path / "m.safetensors")
    qzc.pack(tmp_path / "m.safetensors", options=PackOptions(threads=3))
    assert len(qzc.verify(tmp_path / "m.qzc", against=tmp_path / "m.safetensors").comparisons) == 300
