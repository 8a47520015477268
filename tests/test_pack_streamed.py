"""`qzc pack` at a rate with models that are larger than memory: tensors are read again for every try."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file as save_safetensors

import qzc
from qzc import factors, rating
from qzc.packer import PackOptions, pack
from qzc.packing import encoder
from qzc.quantize import rate, unbounded
from qzc.rating import RateMethod, RateOptions
from tests.test_pack_rate import packed_at, statistics


@pytest.fixture(scope="module")
def stats(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return statistics(model_file, tmp_path_factory.mktemp("stats") / "stats.safetensors")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are read again for every try, factors lie in a file, and the search sees a part of the rows."""
    monkeypatch.setattr(rating, "IN_MEMORY", 0)
    monkeypatch.setattr(factors, "IN_MEMORY_NBYTES", 1 << 18)
    monkeypatch.setattr(rate, "_SAMPLE", 60_000)
    monkeypatch.setattr(rate, "_SAMPLE_ROWS", 16)
    monkeypatch.setattr(unbounded, "PIECE", 5_000)
    monkeypatch.setattr(encoder, "PIECE", 5_000)


@pytest.mark.parametrize(
    ("method", "states", "bits", "uniform"),
    [
        ("rtn-ec", 0, 3.0, False),
        ("rtn-ec", 8, 1.5, True),
        ("diag", 0, 4.0, False),
        ("gptq-ec", 0, 2.0, False),
        ("watersic", 0, 3.0, False),
        ("watersic", 4, 2.0, False),
    ],
)
def test_models_beyond_memory_hit_the_rate(
    little_memory: None,
    method: RateMethod,
    states: int,
    bits: float,
    uniform: bool,
    model_file: Path,
    stats: Path,
    tmp_path: Path,
) -> None:
    options = RateOptions(bits, method=method, states=states, uniform=uniform)
    files = []
    for threads in (1, 3):
        out = tmp_path / f"{threads}.qzc"
        report = pack(model_file, out, PackOptions(rate=options, stats=stats, chunk_codes=1 << 12, threads=threads))
        assert report.bits_per_weight == pytest.approx(bits, rel=0.005) and report.verified
        files.append(out.read_bytes())
    assert files[0] == files[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.qzc", "3.qzc"]


def test_both_ways_are_as_good(model_file: Path, stats: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    snr = []
    for name in ("all", "streamed"):
        packed_at(model_file, tmp_path / name, RateOptions(3.0, method="watersic"), stats=stats)
        compared = qzc.verify(tmp_path / name, model_file).comparisons
        snr.append(np.mean([c.snr_db for c in compared if c.snr_db is not None]))
        if name == "all":
            request.getfixturevalue("little_memory")
    assert snr[1] == pytest.approx(snr[0], abs=0.05)


def test_large_levels_of_models_beyond_memory(little_memory: None, tmp_path: Path) -> None:
    """Whether levels need 16 bits is known only when the tensor is written."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((300, 200)).astype(np.float32) for name in ("a.weight", "b.weight")}
    tensors["a.weight"][17, 5] = 200.0
    save_safetensors(tensors, tmp_path / "m.safetensors")
    report = packed_at(tmp_path / "m.safetensors", tmp_path / "m.qzc", RateOptions(4.0))
    assert report.bits_per_weight == pytest.approx(4.0, rel=0.005)
    with qzc.open(report.output) as model:
        assert [model.levels(name).levels.dtype for name in sorted(tensors)] == [np.int16, np.int8]
