"""`qzc verify` and `verify()`: whole files pass, any difference is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qzc
from qzc.codec.tensor import QuantizedTensor
from qzc.formats.reader import Reader
from qzc.packer import PackOptions
from tests.command_line import inside, ok
from tests.shards import shard

DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def packed(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qzc.pack(model_file, tmp_path_factory.mktemp("packed") / "model.qzc").output


def test_a_whole_file(packed: Path) -> None:
    result = ok("verify", packed)
    (line,) = result.stderr.splitlines()
    with Reader(packed) as reader:
        chunks = len(reader.coded_file.index.rows)
    assert line.startswith(f"{packed}: ok | 20 tensors, {chunks} chunks, ") and result.raw == b""
    assert ok("verify", packed, "-q").stderr == ""


def test_against_the_original(packed: Path, model_file: Path) -> None:
    lines = ok("verify", packed, "--against", model_file, "-v").stderr.splitlines()
    assert f"{NORM}  equal" in lines
    assert sum(": ok | " in line for line in lines) == 1 and len(lines) == 22
    assert lines[-1].startswith(f"{model_file}: 5 tensors equal bit for bit, 15 quantized (15 with exactly the codes")
    assert any(line.startswith(f"{DOWN}  exact codes, SNR ") for line in lines)


def test_json(packed: Path, model_file: Path) -> None:
    document = ok("verify", packed, "--against", model_file, "--json").json
    assert document["schema"] == "qzc.verify/1" and document["ok"] is True
    assert document["nbytes"] == packed.stat().st_size and document["against"] == str(model_file)
    items = {item["name"]: item for item in document["comparisons"]}
    assert items[NORM] == {"name": NORM, "quantized": False, "exact": True, "snr_db": None}
    assert items[DOWN]["exact"] is True and 15 < items[DOWN]["snr_db"] < 25
    assert ok("verify", packed, "--json").json["comparisons"] == []


def test_shards_against_one_file_and_back(model_folder: Path, model_file: Path, packed: Path, tmp_path: Path) -> None:
    source = shard(model_folder, tmp_path / "llama")
    shards = qzc.pack(source).output
    assert len(qzc.verify(shards, against=model_file).comparisons) == 20
    assert len(qzc.verify(packed, against=source).comparisons) == 20


def altered(model_file: Path, target: Path, name: str, change: str) -> Path:
    """The original with one difference."""
    tensors = {key: array.copy() for key, array in load_file(model_file).items()}
    array = tensors[name]
    if change == "value":
        array.reshape(-1)[3] += 1
    elif change == "all values":
        array += 0.5 * array.std() * np.random.default_rng(0).normal(size=array.shape).astype(array.dtype)
    elif change == "nan":
        array.reshape(-1)[3] = np.nan
    elif change == "shape":
        tensors[name] = array.reshape(-1, 1)
    elif change == "dtype":
        tensors[name] = array.astype(np.float64)
    elif change == "name":
        tensors[name + "x"] = tensors.pop(name)
    elif change == "one more":
        tensors[name + "x"] = array.copy()
    save_file(tensors, target)
    return target


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (NORM, "value", f"tensor '{NORM}' is not quantized and differs from the original"),
        (DOWN, "all values", f"tensor '{DOWN}' differs from the original (SNR "),
        (DOWN, "nan", "the original cannot be what was packed: tensor 'model.layers.0.mlp.down_proj.weight' has 1 of"),
        (DOWN, "shape", "is F32[256, 192], in the original F32[49152, 1]"),
        (DOWN, "dtype", "is F32[256, 192], in the original F64[256, 192]"),
        (DOWN, "name", f"tensor '{DOWN}' is in "),
        (NORM, "one more", f"tensor '{NORM}x' of the original is missing (1 missing in all)"),
    ],
)
def test_differences(name: str, change: str, message: str, packed: Path, model_file: Path, tmp_path: Path) -> None:
    original = altered(model_file, tmp_path / "m.safetensors", name, change)
    failed = inside("verify", packed, "--against", original)
    assert failed.code == 3 and message in failed.error
    assert failed.raw == b""


def test_other_codes_that_are_as_near_pass(packed: Path, model_file: Path, tmp_path: Path) -> None:
    """Scales that somebody else has chosen better, as GPTQ does, are no damage."""
    tensors = qzc.load_file(packed)
    absmax = tmp_path / "absmax.qzc"
    qzc.pack(model_file, absmax, PackOptions(qzc.Selection(scale="absmax")))
    coarse = qzc.load_file(absmax)[DOWN]
    fine = tensors[DOWN]
    assert isinstance(fine, QuantizedTensor) and isinstance(coarse, QuantizedTensor)
    # The codes of the better grid under the name of the worse, and the other way round.
    mixed = {
        "better": QuantizedTensor(fine.packed, fine.scale, None, fine.shape, "F32", coarse.args),
        "worse": QuantizedTensor(coarse.packed, coarse.scale, None, fine.shape, "F32", fine.args),
    }
    weights = load_file(model_file)[DOWN]
    for name, passes in (("better", True), ("worse", False)):
        qzc.save_file({"w": mixed[name]}, tmp_path / "w.qzc", overwrite=True)
        save_file({"w": weights}, tmp_path / "w.safetensors")
        result = inside("verify", tmp_path / "w.qzc", "--against", tmp_path / "w.safetensors")
        assert (result.code == 0) is passes, name
        assert ("0 with exactly the codes" in result.stderr) is passes


def test_scales_that_are_not_numbers_are_not_near(model_file: Path, packed: Path, tmp_path: Path) -> None:
    tensor = qzc.load_file(packed)[DOWN]
    scale = np.full_like(tensor.scale, np.nan)
    broken = QuantizedTensor(tensor.packed, scale, None, tensor.shape, "F32", tensor.args)
    qzc.save_file({DOWN: broken}, tmp_path / "w.qzc")
    save_file({DOWN: load_file(model_file)[DOWN]}, tmp_path / "w.safetensors")
    failed = inside("verify", tmp_path / "w.qzc", "--against", tmp_path / "w.safetensors")
    assert failed.code == 3 and "differs from the original (SNR nan dB)" in failed.error


def test_zeros_and_exact_weights(tmp_path: Path) -> None:
    exact = (np.arange(64 * 128) % 15 - 7).astype(np.float32).reshape(64, 128)
    save_file({"zeros": np.zeros((64, 128), np.float32), "exact": exact}, tmp_path / "m.safetensors")
    qzc.pack(tmp_path / "m.safetensors", options=PackOptions(qzc.Selection(scale="absmax", strategy="channel")))
    document = ok("verify", tmp_path / "m.qzc", "--against", tmp_path / "m.safetensors", "--json").json
    assert [item["exact"] for item in document["comparisons"]] == [True, True]
    lines = ok("verify", tmp_path / "m.qzc", "--against", tmp_path / "m.safetensors", "-v").stderr.splitlines()
    assert "nan" not in " ".join(lines)


def test_what_cannot_be_compared(packed: Path, model_file: Path, tmp_path: Path) -> None:
    shutil.copy(packed, tmp_path / "other.qzc")
    failed = inside("verify", packed, "--against", tmp_path / "other.qzc")
    assert failed.code == 2 and "the original must be a safetensors checkpoint" in failed.error
    failed = inside("verify", model_file)
    assert failed.code == 4 and "not a .qzc file" in failed.error
    failed = inside("verify", packed, "--against", tmp_path / "missing")
    assert failed.code == 1 and "no such file" in failed.error


def test_threads_and_progress(packed: Path, model_file: Path) -> None:
    reports = [qzc.verify(packed, model_file, threads=threads) for threads in (1, 3)]
    assert reports[0] == reports[1]
    calls: list[tuple[str, int, int]] = []
    qzc.verify(packed, progress=lambda *call: calls.append(call))
    assert len(calls) == 20 and 0.9 < calls[-1][1] / calls[-1][2] <= 1
