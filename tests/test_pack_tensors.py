"""Which tensors `qzc pack` quantizes, ties or keeps, on which grids, and what its plan says of that."""

import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import qzc
from qzc.codec.tensor import QuantizedTensor
from qzc.formats.reader import Reader
from qzc.packer import PackOptions
from qzc.planner import TIE_NBYTES
from tests.command_line import inside, ok
from tests.shards import files_in

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
    assert "16 tensors quantized, 0 lossless, 6 kept, 1 tied" in report.stderr
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
    assert rows[EMBED]["grid"] == "lossless" and rows[EMBED]["reason"] == "rule *embed*=keep"
    assert int(rows[EMBED]["estimated_nbytes"]) < int(rows[EMBED]["nbytes"]) == 384 * 256 * 4
    assert "nothing was written" in result.stderr
    assert files_in(tmp_path) == {"model.safetensors"}
