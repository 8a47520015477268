"""All figures of a model: they agree with independent counts, do not depend on threads, and survive samples and odd tensors."""

import json
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from qzc.analysis.baselines import gzip_nbytes, zstd_nbytes
from qzc.codec.errors import InvalidArgumentError, UnsupportedError
from qzc.formats.safetensors import SafetensorsFile, place, write_safetensors
from qzc.packer import PackOptions, pack
from qzc.quantize.grid import grid_for
from qzc.quantize.rtn import quantize
from qzc.quantize.select import Selection, parse_bits
from qzc.statistics.deep_figures import DeepStats
from qzc.statistics.deep_sample import row_blocks, take_bytes, take_part
from qzc.statistics.deep_stats import deep_stats, parse_precisions
from qzc.statistics.measure import stats


def save(path: Path, tensors: dict[str, NDArray[Any]]) -> Path:
    names = {"float32": "F32", "float16": "F16", "int64": "I64"}
    members = place((name, names[a.dtype.name], a.shape, a.nbytes) for name, a in tensors.items())
    write_safetensors(path, members, [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in tensors.values()])
    return path


def noise(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.fixture(scope="module")
def measured() -> DeepStats:
    return deep_stats(Path(__file__).parent.parent / "fixtures" / "model", (3, 4, 8), threads=2)


def test_figures_of_a_tensor_are_those_of_its_parts(measured: DeepStats, model_file: Path) -> None:
    tensor = max((t for t in measured.tensors if t.codes), key=lambda t: t.parameters)
    with SafetensorsFile(model_file) as file:
        weights, raw = np.array(file.array(tensor.name)), np.array(file.raw(tensor.name))
    (before,) = (t.sizes for t in measured.precisions[0].tensors if t.name == tensor.name)
    assert before.gzip_nbytes == gzip_nbytes(raw) and before.zstd_nbytes == zstd_nbytes(raw, 3)
    codes = tensor.at(4)
    assert codes is not None and codes.sizes.args == grid_for(4)
    quantized = quantize(weights, grid_for(4), "F32")
    counts = np.bincount(quantized.codes.reshape(-1), minlength=16)
    assert codes.histogram == tuple(counts)
    assert codes.entropy == pytest.approx(float(scipy_stats.entropy(counts, base=2)), abs=1e-9)
    assert codes.models is not None and codes.models.order0.plugin == pytest.approx(codes.entropy, abs=1e-12)
    assert codes.coder_nbytes["zstd1_packed"] == zstd_nbytes(quantized.packed, 1)
    assert codes.coder_nbytes["gzip6_packed"] == gzip_nbytes(quantized.packed)
    error = np.square(weights - quantized.dequantize()).sum(dtype=np.float64)
    assert codes.snr_db == pytest.approx(10 * np.log10(np.square(weights, dtype=np.float64).sum() / error), abs=1e-6)
    assert tensor.fit is not None and tensor.fit.std == pytest.approx(float(weights.std(dtype=np.float64)))


GRIDS = {
    "default": Selection(),
    "asymmetric": Selection(symmetric=False, strategy="group", group_size=32),
    "channel": Selection(strategy="channel", scale="absmax", scale_dtype="float32"),
    "tensor": Selection(strategy="tensor", exclude=("*embed*",)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_sizes_are_those_of_packed_files(name: str, model_file: Path, tmp_path: Path) -> None:
    """ANS, scales, tables and totals at every precision: to the byte what a pack writes."""
    found = deep_stats(model_file, (2, 4, 5, 8), GRIDS[name], parts=(), gzip=False)
    for bits, precision, file in zip(found.bits, found.totals.precisions, found.precisions, strict=True):
        path = tmp_path / f"{bits}.qzc"
        pack(model_file, path, PackOptions(replace(GRIDS[name], rules=parse_bits(str(bits))), verify=False))
        assert precision.total_nbytes == path.stat().st_size == sum(file.totals.parts.values())
        held = {tensor.name: tensor.sizes for tensor in stats(path).tensors}
        for tensor in found.tensors:
            codes, stored = tensor.at(bits), held[tensor.name].codes
            assert (codes is None) == (stored is None)
            if codes and stored:
                assert codes.coder_nbytes["ans"] == stored.final.nbytes
                assert codes.sizes.side_nbytes == stored.side_nbytes


def test_one_precision_is_what_stats_says(model_file: Path) -> None:
    found = deep_stats(model_file, (4,), parts=(), gzip=False)
    assert found.precisions == (stats(model_file, gzip=False),)
    assert deep_stats(model_file, None, parts=(), gzip=False).precisions == found.precisions
    rules = Selection(parse_bits("*.mlp.*=2,*=5"))
    assert deep_stats(model_file, None, rules, parts=(), gzip=False).precisions == (
        stats(model_file, rules, gzip=False),
    )
    lossless = deep_stats(model_file, (4,), lossless=True, parts=(), gzip=False)
    assert lossless.bits == (None,) and not lossless.totals.precisions
    assert lossless.precisions == (stats(model_file, lossless=True, gzip=False),)


def test_totals_add_up(measured: DeepStats) -> None:
    totals = measured.totals
    stored = [t for t in measured.tensors if t.tied_to is None]
    assert totals.parameters == sum(t.parameters for t in stored)
    for precision in totals.precisions:
        mine = [codes for t in stored if (codes := t.at(precision.bits))]
        codes = precision.codes
        assert codes.count == sum(one.count for one in mine)
        assert codes.coder_nbytes["ans"] == sum(one.coder_nbytes["ans"] for one in mine)
        parts = precision.file.parts
        rest = parts["header"] + parts["checksums"] + parts.get("source", 0)
        coded = sum(one.sizes.final.nbytes + one.sizes.side_nbytes for one in mine)
        assert precision.total_nbytes == coded + precision.kept_nbytes + rest
        assert 0.0 <= codes.entropy <= (precision.bits or 0)
        assert codes.entropy * codes.count == pytest.approx(sum(one.entropy * one.count for one in mine))
        assert precision.entropy_nbytes < precision.total_nbytes < precision.dense_nbytes
    ratios = {c.law: c for c in totals.control}
    assert set(ratios) == {None, "kaiming", "xavier", "gaussian"}
    assert all(c.gzip_ratio is not None and 1.0 < c.gzip_ratio < 1.2 for c in totals.control)


def test_order_of_coders(measured: DeepStats) -> None:
    """No coder with one table beats the entropy; an optimal Huffman code does not lose a bit."""
    for precision in measured.totals.precisions:
        codes = precision.codes
        assert codes.entropy <= (codes.coded("huffman_symbol") or 0.0) < codes.entropy + 1.0
        assert 0.8 < (codes.efficiency("ans") or 0.0) < 1.05


def test_equal_snr_shows_what_low_entropy_costs(measured: DeepStats) -> None:
    curves = {curve.grid: curve for curve in measured.curves}
    worst, best = curves["tensor absmax"], curves["one step, unbounded"]
    assert worst.coded[1].bits < curves["group 128 mse"].coded[1].bits  # fewer bits at "4 bits" ..
    assert worst.coded[1].snr_db < curves["group 128 mse"].coded[1].snr_db - 3  # .. and far less quality
    level = measured.equal_snr[1]
    assert level.best == "one step, unbounded"
    assert level.bits["group 128 mse"] == pytest.approx(curves["group 128 mse"].coded[1].bits)
    assert len(best.coded) == 17 and best.fixed == ()


def test_threads_do_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", {f"{i}.weight": noise(80 + i, 64, i) for i in range(4)})
    alone, more = (deep_stats(path, (4, 8), threads=threads) for threads in (1, 3))
    assert json.dumps(alone.to_json(), allow_nan=False) == json.dumps(more.to_json(), allow_nan=False)


def test_a_sample_says_how_far_off_it_is(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((2000, 128)) * np.exp(random.standard_normal((2000, 1)) * 0.3)
    path = save(
        tmp_path / "m.safetensors",
        {
            "a.weight": rows.astype(np.float32),
            "b.weight": rows.astype(np.float16),
            "ids": random.integers(0, 1000, 50_000),
        },
    )
    full = deep_stats(path, (4,), gzip=False, parts=())
    part = deep_stats(path, (4,), gzip=False, parts=(), sample=20_000)
    assert full.sample is None and part.sample == 20_000
    (whole,), (sampled,) = full.totals.precisions, part.totals.precisions
    assert whole.codes.error == 0.0 < sampled.codes.error < 0.02
    assert abs(sampled.codes.entropy - whole.codes.entropy) < 5 * sampled.codes.error
    assert sampled.total_nbytes == pytest.approx(whole.total_nbytes, rel=0.03)
    assert sampled.file.sizes.zstd_nbytes == pytest.approx(whole.file.sizes.zstd_nbytes, rel=0.3)
    assert part.tensors[0].measured == 156 * 128
    # A sample that leaves nothing out is exact.
    assert deep_stats(path, (4,), gzip=False, parts=(), sample=1 << 20).precisions == full.precisions


def test_odd_tensors(tmp_path: Path) -> None:
    bad = noise(80, 64)
    bad[3, 3] = np.nan
    tensors: dict[str, NDArray[Any]] = {
        "empty.weight": np.zeros((0, 64), np.float32),
        "zeros.weight": np.zeros((80, 64), np.float32),
        "nan.weight": bad,
        "ids": np.arange(64, dtype=np.int64),
        "scalar": np.array(3.0, np.float32),
        "noise.weight": noise(80, 64),
    }
    path = save(tmp_path / "m.safetensors", tensors)
    found = deep_stats(path, (2, 4))
    by_name = {t.name: t for t in found.tensors}
    assert {t.name: t.reason for t in found.precisions[1].tensors}["nan.weight"] == "has NaN or Inf"
    assert not by_name["nan.weight"].codes and by_name["ids"].floats is None
    zeros = by_name["zeros.weight"].at(4)
    assert zeros is not None and zeros.entropy == 0.0 and zeros.snr_db is None
    assert by_name["noise.weight"].at(4) is not None
    assert found.totals.parameters == 3 * 80 * 64 + 64 + 1
    json.dumps(found.to_json(), allow_nan=False)
    pack(path, tmp_path / "m.qzc", PackOptions(Selection(), nonfinite="keep"))
    assert found.totals.precisions[1].total_nbytes == (tmp_path / "m.qzc").stat().st_size


def test_second_names_count_once(tmp_path: Path) -> None:
    a = noise(300, 64)
    path = save(tmp_path / "m.safetensors", {"a.weight": a, "b.weight": a.copy(), "c.weight": a + 1})
    found = deep_stats(path, (4,), gzip=False, parts=())
    assert {t.name: t.tied_to for t in found.tensors} == {"a.weight": None, "b.weight": "a.weight", "c.weight": None}
    assert found.totals.parameters == 2 * a.size


def test_rules_keep_tensors(model_folder: Path) -> None:
    found = deep_stats(model_folder, (4,), Selection(parse_bits("*embed*=keep,8")), gzip=False, parts=())
    kept = [t for t in found.precisions[0].tensors if "embed" in t.name]
    assert kept and all(t.sizes.codes is None and t.reason == "rule *embed*=keep" for t in kept)
    assert all(c.bits == 4 for t in found.tensors for c in t.codes)


def test_only_what_is_asked_for(model_folder: Path) -> None:
    found = deep_stats(model_folder, (4,), gzip=False, parts=("entropies",))
    assert found.totals.floats is None and not found.curves and not found.totals.control
    codes = found.totals.precisions[0].codes
    assert codes.models is not None and list(codes.coder_nbytes) == ["huffman_byte", "ans", "zstd1_packed"]


def test_what_is_refused(model_folder: Path, fixtures: Path) -> None:
    for bits in ((), (0,), (4, 9)):
        with pytest.raises(InvalidArgumentError, match="1 to 8"):
            deep_stats(model_folder, bits)
    with pytest.raises(InvalidArgumentError, match="sample"):
        deep_stats(model_folder, (4,), sample=-1)
    with pytest.raises(InvalidArgumentError, match="no part models"):
        deep_stats(model_folder, (4,), parts=("models",))
    with pytest.raises(UnsupportedError, match="is packed"):
        deep_stats(fixtures / "golden" / "ans-4bit.qzc", (4,))


@pytest.mark.parametrize("text", ["", "9", "0-4", "4-2", "2-", "a", "2..4", "-4"])
def test_bad_precisions(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="bad precisions"):
        parse_precisions(text)


@pytest.mark.parametrize(("rows", "take"), [(1, 1), (5, 5), (100, 7), (100, 99), (17, 16), (100_000, 333)])
def test_blocks_are_rows_in_order(rows: int, take: int) -> None:
    blocks = row_blocks(rows, take)
    assert sum(stop - start for start, stop in blocks) == take
    assert all(0 <= start < stop <= rows for start, stop in blocks)
    assert all(a[1] <= b[0] for a, b in pairwise(blocks))


def test_a_row_is_never_cut() -> None:
    part = take_part(np.ones((3, 1000), np.float32), 10)
    assert part.weights.shape == (1, 1000) and part.share == pytest.approx(1 / 3)


def test_part_of_bytes() -> None:
    raw = np.arange(100_001, dtype=np.uint32).astype(np.uint8)
    assert take_bytes(raw, None) is raw and take_bytes(raw, 1 << 17) is raw
    part = take_bytes(raw, 20_000)
    assert part.size == 4 * 4096 and np.array_equal(part[:4096], raw[:4096])


@pytest.mark.slow
def test_a_7b_model_stays_below_1_gb(tmp_path: Path) -> None:
    """291 tensors of the shapes of Llama-2-7B in a sparse file of 13.5 GB: sampled, in a process of its own."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (32000, 4096),
        "lm_head.weight": (32000, 4096),
        "norm": (4096,),
    }
    for i in range(32):
        shapes |= {f"layers.{i}.attn.{p}_proj.weight": (4096, 4096) for p in "qkvo"}
        shapes |= {f"layers.{i}.mlp.{p}.weight": (11008, 4096) for p in ("gate", "up")}
        shapes |= {f"layers.{i}.mlp.down.weight": (4096, 11008), f"layers.{i}.ln1": (4096,), f"layers.{i}.ln2": (4096,)}
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = (np.random.default_rng(0).standard_normal(1 << 16) * 0.02).astype(np.float16)
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + at)
        for i, entry in enumerate(header.values()):
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            file.write(random[i : i + min(1 << 15, (end - begin) // 2)].tobytes())
    code = (
        "import resource, sys; from qzc.statistics.deep_stats import deep_stats; s = deep_stats(sys.argv[1], (4,), gzip=False);"
        "print(s.sample, len(s.tensors), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    sample, tensors, peak = map(int, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    assert (sample, tensors) == (1 << 20, 291) and peak * unit < 1e9
