"""What errors cost, as statistics say it, and how the bits are spread by it. Needs no torch."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from qzc.calibration import Calibration
from qzc.codec.errors import CorruptionError
from qzc.packer import PackOptions, PackReport, pack
from qzc.rating import RateMethod, RateOptions
from tests.test_pack_rate import METHODS, statistics

DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def stats(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return statistics(model_file, tmp_path_factory.mktemp("stats") / "stats.safetensors")


def with_sensitivities(stats: Path, path: Path, text: str) -> Path:
    with Calibration.open(stats) as known:
        metadata = known.metadata
    save_file(load_file(stats), path, {**metadata, "sensitivities": text})
    return path


def rates(report: PackReport) -> dict[str, float]:
    """Bits per weight of the codes of each tensor."""
    layout = report.files[0].layout
    return {tensor.name: 8 * layout.coded[tensor.name]["payload"] / tensor.parameters for tensor in report.rated}


def packed(model: Path, stats: Path, method: RateMethod, uniform: bool = False) -> dict[str, float]:
    options = PackOptions(
        rate=RateOptions(3.0, method=method, uniform=uniform), stats=stats, threads=1, overwrite=True, verify=False
    )
    return rates(pack(model, stats.with_suffix(".qzc"), options))


@pytest.mark.parametrize("method", METHODS)
def test_sixteen_times_the_harm_is_two_bits_more(
    method: RateMethod, model_file: Path, stats: Path, tmp_path: Path
) -> None:
    with Calibration.open(stats) as known:
        names = known.tensors
    found = {}
    for factor in (1.0, 16.0):
        each = {name: 0.5 * (factor if name == DOWN else 1.0) for name in names}
        found[factor] = packed(model_file, with_sensitivities(stats, tmp_path / f"{factor}", json.dumps(each)), method)
    before, after = found[1.0], found[16.0]
    others = [after[name] - before[name] for name in names if name != DOWN]
    assert max(others) < 0
    assert after[DOWN] - before[DOWN] - sum(others) / len(others) == pytest.approx(2.0, abs=0.3)
    sizes = {name: weights.size for name, weights in load_file(model_file).items()}
    mean = sum(after[name] * sizes[name] for name in names) / sum(sizes[name] for name in names)
    assert after[EMBEDDINGS] == pytest.approx(mean, abs=0.5)  # nothing is known of them


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_in_the_units_of_the_errors(
    method: RateMethod, model_file: Path, stats: Path, tmp_path: Path
) -> None:
    """Equal sensitivities to squared errors of outputs: larger inputs mean smaller steps of weights."""
    with Calibration.open(stats) as known:
        names, key, metadata = known.tensors, known.input_of(DOWN), known.metadata
    arrays = load_file(stats)
    for part, factor in (("gram", 16.0), ("power", 16.0), ("mean", 4.0)):
        arrays[f"{key}.{part}"] = arrays[f"{key}.{part}"] * factor
    each = json.dumps(dict.fromkeys(names, 1.0))
    save_file(arrays, tmp_path / "louder", {**metadata, "sensitivities": each})
    before = packed(model_file, with_sensitivities(stats, tmp_path / "same", each), method)
    after = packed(model_file, tmp_path / "louder", method)
    others = [after[name] - before[name] for name in names if name != DOWN]
    assert after[DOWN] - before[DOWN] - sum(others) / len(others) == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize("method", ["rtn-ec", "watersic"])
def test_uniform_rates_do_not_look_at_them(method: RateMethod, model_file: Path, stats: Path, tmp_path: Path) -> None:
    path = with_sensitivities(stats, tmp_path / "s", json.dumps({DOWN: 1e6}))
    assert packed(model_file, path, method, uniform=True) == packed(model_file, stats, method, uniform=True)
    assert packed(model_file, path, method) != packed(model_file, stats, method)


def test_reading_them(stats: Path, tmp_path: Path) -> None:
    with Calibration.open(stats) as known:
        assert not known.has_sensitivities and known.sensitivity(DOWN) is None
    with Calibration.open(with_sensitivities(stats, tmp_path / "s", '{"no.input":0.25}')) as known:
        assert known.has_sensitivities
        assert known.sensitivity("no.input") == 0.25 and known.sensitivity(DOWN) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a":0.0}', '{"a":-1.0}', '{"a":NaN}', '{"a":Infinity}', '{"a":"1"}', "[" * 5000]
)
def test_damaged_ones(text: str, stats: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptionError, match="sensitivit"):
        Calibration.open(with_sensitivities(stats, tmp_path / "s", text))
