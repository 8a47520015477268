"""`qzc pack` and `pack()`: what is written, under which name, from which options, and what is left behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import qzc
from qzc.codec.errors import VerificationError
from qzc.codec.tensor import QuantizedTensor
from qzc.formats.reader import Reader
from qzc.packer import PackOptions
from qzc.planner import TIE_NBYTES
from tests.command_line import inside, ok, process
from tests.shards import INDEX, SIDE_FILES, SKIPPED, files_in, shard

DOWN = "model.layers.0.mlp.down_proj.weight"
EMBED = "model.embed_tokens.weight"
NORM = "model.norm.weight"


@pytest.fixture
def model(model_file: Path, tmp_path: Path) -> Path:
    """A copy of the fixture, so that output can go beside it."""
    return Path(shutil.copy(model_file, tmp_path / "model.safetensors"))


def grids(path: Path) -> dict[str, Any]:
    with Reader(path) as reader:
        return {name: reader.info(name).args for name in reader.keys()}


# ---------------------------------------------------------------------------------------------------------------------
# The main job, and where its output goes


def test_the_command_of_the_readme(model: Path, tmp_path: Path) -> None:
    result = process("pack", "model.safetensors", "--bits", 4, "--coder", "ans", cwd=tmp_path)
    assert result.code == 0 and result.raw == b""
    assert files_in(tmp_path) == {"model.safetensors", "model.qzc"}
    (line,) = result.stderr.splitlines()  # not a terminal: no progress
    size = (tmp_path / "model.qzc").stat().st_size
    assert line.startswith("model.qzc: 15 tensors quantized, 5 kept | 2.37 MB -> ") and "| verified | " in line
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
    for threads in (2, 8):
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
            rows = reader.planes(EMBED).index.rows
            assert len(rows) == max(1, round(384 * 256 / chunk_codes))
            found = reader.quantized(EMBED).codes
        assert codes is None or np.array_equal(codes, found)
        codes = found
    assert set(rows["coder"].tolist()) <= {"ans": {2, 3}, "huffman": {4}, "raw": {0}}[coder]


# ---------------------------------------------------------------------------------------------------------------------
# What is quantized, and how


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (4, True, "group", 128, "mse", "float16")),
        (["--bits", 8], (8, True, "channel", None, "absmax", "float16")),
        (["--bits", 3, "--group-size", 32], (3, True, "group", 32, "mse", "float16")),
        (["--strategy", "channel", "--asymmetric"], (4, False, "channel", None, "absmax", "float16")),
        (["--strategy", "tensor", "--scale", "mse"], (4, True, "tensor", None, "mse", "float16")),
        (["--scale-dtype", "bfloat16", "--scale", "absmax"], (4, True, "group", 128, "absmax", "bfloat16")),
        (["--bits", 1, "--symmetric", "--scale-dtype", "float32"], (1, True, "group", 128, "mse", "float32")),
    ],
)
def test_grid_options(options: list[Any], expected: tuple[Any, ...], model: Path, tmp_path: Path) -> None:
    ok("pack", model, *options)
    found = grids(tmp_path / "model.qzc")[DOWN]
    assert tuple(vars(found).values()) == expected


def test_rules_by_name(model: Path, tmp_path: Path) -> None:
    rules = ("--bits", "*.mlp.*=3,*embed*=8,*.v_proj.*=keep,*=4")
    result = ok("pack", model, *rules, "--include", "model.norm*", "--exclude", "*.1.*")
    assert result.stderr.count("\n") == 1
    found = {name: args.num_bits if args else None for name, args in grids(tmp_path / "model.qzc").items()}
    expected = {
        name: None
        if "layernorm" in name or ".1." in name or "v_proj" in name or "model.norm" in name  # 1 kB gains nothing
        else 3
        if ".mlp." in name
        else 8
        if "embed" in name
        else 4
        for name in load_file(model)
    }
    assert found == expected


def test_rules_without_effect_are_pointed_out(model: Path, tmp_path: Path) -> None:
    options = ("--bits", "lm_haed=8,*=4", "--exclude", "emebd*")
    for more in ((), ("-f", "--json"), ("-f", "-q"), ("--dry-run",)):
        lines = ok("pack", model, *options, *more).stderr.splitlines()
        assert "qzc: warning: --bits lm_haed=8 has no effect on any tensor" in lines
        assert "qzc: warning: --exclude emebd* has no effect on any tensor" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "9"), "bad bits rule '9'"),
        (("--bits", ""), "bad bits rule ''"),
        (("--bits", "a=b"), "bad bits rule 'a=b'"),
        (("--strategy", "row"), "'row' is not one of 'tensor', 'channel', 'group'"),
        (("--strategy", "channel", "--group-size", "64"), "group_size has no meaning for strategy 'channel'"),
        (("--group-size", "0"), "0 is not in the range x>=1"),
        (("--include", " "), "a pattern is empty"),
        (("--coder", "zip"), "'zip' is not one of 'ans', 'huffman', 'raw'"),
        (("--chunk-codes", "1"), "1 is not in the range"),
        (("-T", "-1"), "-1 is not in the range"),
        (("--colour",), "No such option '--colour'"),
    ],
)
def test_options_without_meaning(options: tuple[str, ...], message: str, model: Path, tmp_path: Path) -> None:
    failed = inside("pack", model, *options)
    assert failed.code == 2 and message in failed.error
    assert files_in(tmp_path) == {"model.safetensors"}


def test_library_options_without_meaning() -> None:
    for field, value in {"coder": "zip", "nonfinite": "drop", "chunk_codes": 1}.items():
        options: dict[str, Any] = {field: value}
        with pytest.raises(qzc.InvalidArgumentError, match=str(value)):
            PackOptions(**options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_weights(value: float, tmp_path: Path) -> None:
    weights = np.linspace(-1, 1, 128 * 256, dtype=np.float32).reshape(128, 256)
    broken = weights.copy()
    broken[17, 5] = value
    save_file({"good": weights, "bad": broken}, tmp_path / "model.safetensors")
    failed = inside("pack", tmp_path / "model.safetensors")
    assert failed.code == 2
    assert "tensor 'bad' has 1 of 32768 weights that are NaN or infinite" in failed.error
    assert "[17, 5]" in failed.error and "--nonfinite keep" in failed.error
    assert files_in(tmp_path) == {"model.safetensors"}
    ok("pack", tmp_path / "model.safetensors", "--nonfinite", "keep")
    loaded = qzc.load_file(tmp_path / "model.qzc")
    assert loaded["bad"].tobytes() == broken.tobytes() and isinstance(loaded["good"], QuantizedTensor)


def test_float64_beyond_float32_counts_as_nonfinite(tmp_path: Path) -> None:
    save_file({"w": np.full((64, 128), 1e300)}, tmp_path / "m.safetensors")
    assert inside("pack", tmp_path / "m.safetensors").code == 2
    ok("pack", tmp_path / "m.safetensors", "--nonfinite", "keep")
    assert np.array_equal(qzc.load_file(tmp_path / "m.qzc")["w"], np.full((64, 128), 1e300))


def test_every_dtype_passes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    floats: dict[str, NDArray[Any]] = {
        str(np.dtype(dtype)): rng.normal(size=(64, 128)).astype(dtype)
        for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
    }
    others: dict[str, NDArray[Any]] = {
        str(np.dtype(dtype)): rng.integers(0, 2, (64, 128)).astype(dtype)
        for dtype in (bool, np.uint8, np.int64, ml_dtypes.float8_e4m3fn, np.complex64)
    }
    qzc.save_file(floats | others, tmp_path / "plain.qzc")
    ok("unpack", tmp_path / "plain.qzc")
    ok("pack", tmp_path / "plain.safetensors", "-f", "-o", tmp_path / "coded.qzc")
    found = qzc.load_file(tmp_path / "coded.qzc")
    for name, array in floats.items():
        assert isinstance(found[name], QuantizedTensor)
        restored = qzc.load_file(tmp_path / "coded.qzc", packed=False)[name]
        assert restored.dtype == array.dtype
        assert np.square(restored.astype(np.float64) - array.astype(np.float64)).mean() < 0.03
    for name, array in others.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["a.qzc.scale", "qzc", "qzc.a", "a.qzc"])
def test_reserved_names(name: str, tmp_path: Path) -> None:
    save_file({name: np.zeros(3, np.float32)}, tmp_path / "m.safetensors")
    failed = inside("pack", tmp_path / "m.safetensors")
    assert failed.code == 2 and f"tensor name {name!r} is reserved" in failed.error


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "m.safetensors")
    plan = ok("pack", tmp_path / "m.safetensors", "--dry-run")
    assert plan.table == []
    ok("pack", tmp_path / "m.safetensors")
    assert qzc.load_file(tmp_path / "m.qzc") == {}


# ---------------------------------------------------------------------------------------------------------------------
# Ties


def test_equal_tensors_are_stored_once(model_file: Path, tmp_path: Path) -> None:
    tensors = load_file(model_file)
    tensors["lm_head.weight"] = tensors[EMBED].copy()
    almost = tensors[EMBED].copy()
    almost[200, 3] += 1  # between the places that are looked at first
    tensors["almost.weight"] = almost
    tensors["second.norm.weight"] = tensors[NORM].copy()
    assert tensors[NORM].nbytes < TIE_NBYTES < tensors[EMBED].nbytes
    save_file(tensors, tmp_path / "m.safetensors")
    report = ok("pack", tmp_path / "m.safetensors", "-v")
    assert "16 tensors quantized, 6 kept, 1 tied" in report.stderr
    assert f"{EMBED}  = lm_head.weight (rule *=4)" in report.stderr.splitlines()
    with qzc.open(tmp_path / "m.qzc") as model:
        assert model.ties == {EMBED: "lm_head.weight"}
    assert ok("ls", tmp_path / "m.qzc").table[1]["grid"] == "4-bit group 128 mse"
    loaded = qzc.load_file(tmp_path / "m.qzc")
    assert loaded[EMBED] is loaded["lm_head.weight"]
    assert qzc.verify(tmp_path / "m.qzc", against=tmp_path / "m.safetensors").tensors == 23
    ok("unpack", tmp_path / "m.qzc", "-o", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tensors.keys() and np.array_equal(back[EMBED], back["lm_head.weight"])


def test_equal_tensors_of_different_grids_are_not_tied(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(128, 256)).astype(np.float32)
    save_file({"a": weights, "b": weights.copy(), "c": weights.astype(np.float16)}, tmp_path / "m.safetensors")
    report = qzc.pack(tmp_path / "m.safetensors", options=PackOptions(qzc.Selection(qzc.parse_bits("a=8,4"))))
    assert [tensor.tied_to for tensor in report.files[0].plan.tensors] == [None, None, None]


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
# Dry run


@pytest.mark.parametrize("coder", ["ans", "huffman", "raw"])
@pytest.mark.parametrize("options", [[], ["--bits", "3", "--asymmetric"], ["--bits", "8"], ["--strategy", "tensor"]])
def test_estimates_are_near(coder: str, options: list[str], model: Path, tmp_path: Path) -> None:
    options = [*options, "--coder", coder]
    plan = ok("pack", model, "--dry-run", "--json", *options).json
    assert files_in(tmp_path) == {"model.safetensors"}
    report = ok("pack", model, "--json", *options).json
    assert plan["schema"] == "qzc.plan/1" and plan["source_nbytes"] == report["source_nbytes"]
    assert plan["estimated_nbytes"] == pytest.approx(report["nbytes"], rel=0.01)
    tensors = report["files"][0]["tensors"]
    for estimated, written in zip(plan["tensors"], tensors, strict=True):
        assert estimated["name"] == written["name"] and estimated["grid"] == written["grid"]
        assert estimated["estimated_nbytes"] == pytest.approx(sum(written["stored"].values()), rel=0.05, abs=500)


@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
def test_estimates_from_a_sample_are_near(strategy: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weights = (rng.normal(size=(3000, 512)) * rng.lognormal(size=(3000, 1))).astype(np.float32)
    weights[1234, 5] = 100  # one row decides the scale of the tensor
    save_file({"w": weights}, tmp_path / "m.safetensors")
    options = ("--json", "--strategy", strategy)
    plan = ok("pack", tmp_path / "m.safetensors", "--dry-run", *options).json
    report = ok("pack", tmp_path / "m.safetensors", *options).json
    assert plan["estimated_nbytes"] == pytest.approx(report["nbytes"], rel=0.05)


def test_the_plan_as_a_table(model: Path, tmp_path: Path) -> None:
    result = ok("pack", model, "--dry-run", "--bits", "*embed*=keep,4")
    rows = {row["tensor"]: row for row in result.table}
    assert len(rows) == 20
    assert rows[DOWN]["grid"] == "4-bit group 128 mse" and rows[DOWN]["shape"] == "[256, 192]"
    assert rows[EMBED]["grid"] == "keep" and rows[EMBED]["reason"] == "rule *embed*=keep"
    assert rows[EMBED]["estimated_nbytes"] == rows[EMBED]["nbytes"] == str(384 * 256 * 4)
    assert "nothing was written" in result.stderr
    assert files_in(tmp_path) == {"model.safetensors"}


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
