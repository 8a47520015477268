"""`qzc bench`, `bench()` and benchmarks/coders.py: what is measured is what they say, and fast enough to run."""

import gc
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import qzc
from qzc import benchmark, contenders
from qzc.analysis.rivals import RIVALS, Codec, Rival, installed
from qzc.analysis.speed import FEWEST, clock_ghz, take_turns
from qzc.benchmark import Bench, bench, compare
from qzc.cli.bench import command, notes
from qzc.codec.chunks import CHUNK_DTYPE, encode_run
from qzc.codec.errors import InvalidArgumentError, VerificationError
from qzc.packer import PackOptions, pack
from qzc.quantize.select import Selection, parse_bits
from qzc.sampling import take_sample
from qzc.threads import thread_count

ROOT = Path(__file__).parent.parent
SELECTIONS = {
    "group": Selection(),
    "channel": Selection(strategy="channel"),
    "asymmetric": Selection(parse_bits("3"), symmetric=False),
    "tensor": Selection(strategy="tensor"),
    "mixed": Selection(parse_bits("*.mlp.*=2,*=8")),
}
OURS = ["ans", "ans-float16", "huffman", "raw", "unpack", "memcpy"]
QUICK = tuple(rival for rival in RIVALS if rival.name in ("zstd-1-packed", "gzip-6-packed"))


@pytest.fixture
def few_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RIVALS", QUICK)


# ------------------------------------------------------------------------------------------------ taking turns
def sleeping(seconds: float, log: list[str], name: str) -> tuple[Callable[[], object], ...]:
    def job() -> None:
        log.append(name)
        time.sleep(seconds)

    return (job,)


def test_jobs_take_turns_and_slow_ones_sit_out() -> None:
    log: list[str] = []
    jobs = {"fast": sleeping(0.005, log, "fast"), "slow": sleeping(0.04, log, "slow")}
    race = take_turns(jobs, 0.6, clock=lambda: 1.0)
    fast, slow = race.timings["fast"], race.timings["slow"]
    assert 0.005 <= fast.best <= fast.median < 0.04 <= slow.best <= slow.median
    # Equal shares of the time, so about eight times as many runs; and never all of one before the other.
    assert fast.runs > 2.5 * slow.runs >= 2.5 * FEWEST
    at = [i for i, name in enumerate(log) if name == "slow"]
    assert all("fast" in log[a:b] for a, b in pairwise(at[2:]))  # the first two are the warm-up
    assert log[-20:].count("slow") >= 1


def test_a_slow_job_is_still_timed() -> None:
    log: list[str] = []
    race = take_turns({"slow": sleeping(0.02, log, "slow")}, 1e-9, clock=lambda: 1.0)
    assert race.timings["slow"].runs == FEWEST
    assert len(log) == FEWEST + 2


def test_quick_functions_are_repeated_within_a_run() -> None:
    calls = [0]

    def job() -> None:
        calls[0] += 1

    timing = take_turns({"quick": (job,)}, 0.02, clock=lambda: 1.0).timings["quick"]
    assert timing.best < 1e-5
    assert calls[0] > 20 * timing.runs


def test_the_parts_of_a_job_run_at_the_same_time() -> None:
    barrier = threading.Barrier(2, timeout=10)
    race = take_turns({"both": (barrier.wait, barrier.wait)}, 0.01, clock=lambda: 1.0)
    assert race.timings["both"].runs >= FEWEST


def test_the_fastest_clock_counts_and_collection_is_switched_on_again() -> None:
    clocks = iter([1.0, 3.0, 2.0, *[1.0] * 100_000])
    seen: list[bool] = []
    race = take_turns({"job": (lambda: seen.append(gc.isenabled()),)}, 0.03, clock=lambda: next(clocks))
    assert race.clock_ghz == 3.0
    assert seen[-1] is False and gc.isenabled()


def test_a_failing_job_ends_the_race_and_collection_is_on() -> None:
    runs = iter(range(10))

    def job() -> None:
        time.sleep(0.005)
        if next(runs) == 4:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        take_turns({"job": (job,)}, 10, clock=lambda: 1.0)
    assert gc.isenabled()


def test_clock_is_that_of_a_cpu() -> None:
    assert 0.2 < clock_ghz() < 8


# ------------------------------------------------------------------------------------------------ rivals
def skewed_codes(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.clip(np.rint(np.random.default_rng(5).normal(8, 2, count)), 0, 15).astype(np.uint8)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_rivals_give_back_what_they_were_given(rival: Rival) -> None:
    if rival not in installed((rival,))[0]:
        pytest.skip(f"{rival.package} is not installed")
    codes = skewed_codes(100_000)
    if rival.takes == "packed":
        data: np.ndarray[Any, Any] = codes[::2] | codes[1::2] << np.uint8(4)
    else:
        data = codes.astype(np.int32)
    before = data.copy()
    data.flags.writeable = False

    def round_trips(number: int) -> int:
        codec, out = rival.open(), np.zeros_like(data)
        payload = b""
        for _ in range(3):  # contexts are reused
            payload = codec.encode(data)
            out[:] = 0
            assert np.array_equal(np.frombuffer(codec.decode(payload, out), data.dtype), before)
        return len(payload)

    with ThreadPoolExecutor(2) as pool:
        sizes = set(pool.map(round_trips, range(4)))
    assert np.array_equal(data, before)
    (nbytes,) = sizes
    counts = np.bincount(codes) / codes.size
    entropy = -float(np.sum(counts[counts > 0] * np.log2(counts[counts > 0])))
    # No coder can be below the entropy by more than block-wise tables gain; one that stores 4 bits does not code.
    assert entropy * 0.99 < 8 * nbytes / codes.size < 3.3
    assert rival.library.split()[1][0].isdigit()


def test_rivals_that_are_not_there_are_left_out() -> None:
    def absent() -> Codec:
        raise ModuleNotFoundError("no such library")

    missing = Rival("absent", "", "absent", "packed", absent)
    assert installed((missing, *QUICK)) == (list(QUICK), [missing])


def liar(kind: str) -> Rival:
    def decode(payload: bytes, out: np.ndarray[Any, Any]) -> Any:
        if kind == "fails":
            raise ValueError("cannot read that")
        out[:] = np.frombuffer(payload, np.uint8)
        out[-1] ^= 1
        return out

    return Rival("liar", "", None, "packed", lambda: Codec(lambda data: data.tobytes(), decode))


@pytest.mark.parametrize("kind", ["wrong", "fails"])
def test_a_rival_that_fails_is_reported_and_not_timed(
    kind: str, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "RIVALS", (liar(kind),))
    measured = bench(model_file, seconds=0.01, sample_codes=10_000)
    row = measured.rows[-1]
    assert (row.coder, row.verified, row.bits_per_code, row.encode, row.decode) == ("liar", False, None, None, None)
    assert row.to_json()["decode_codes_per_s"] is None
    assert "Did not give back what they were given: liar." in notes(measured)


def test_our_own_failure_is_an_error(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "run_tasks", lambda tasks: None)  # leaves the buffer as it was
    with pytest.raises(VerificationError, match="ans does not give back"):
        bench(model_file, seconds=0.01, sample_codes=10_000)


# ------------------------------------------------------------------------------------------------ samples
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_whole_model_is_its_codes(name: str, model_file: Path, tmp_path: Path) -> None:
    sample = take_sample(model_file, SELECTIONS[name], chunk_codes=20_000)
    pack(model_file, tmp_path / "m.qzc", PackOptions(SELECTIONS[name]))
    with qzc.open(tmp_path / "m.qzc") as model:
        stored = {n: model.packed(n) for n in model if model.info(n).args and n not in model.ties}
        whole = np.concatenate([tensor.codes.ravel() for tensor in stored.values()])
    parts = [block.codes.ravel() for block in sample.blocks]
    assert np.array_equal(np.concatenate(parts), whole)
    assert sample.codes == sample.total_codes == whole.size
    assert set(sample.grids) == {tensor.args for tensor in stored.values()}
    assert max(part.size for part in parts) < 40_000
    # The same from the .qzc, where the grids come from the file.
    again = take_sample(tmp_path / "m.qzc", chunk_codes=20_000)
    assert np.array_equal(np.concatenate([block.codes.ravel() for block in again.blocks]), whole)
    assert again.grids == sample.grids
    for block, other in zip(sample.blocks, again.blocks, strict=True):
        assert np.array_equal(block.dequantize(), other.dequantize())


def test_entropy_is_that_of_the_blocks(model_file: Path) -> None:
    sample = take_sample(model_file, SELECTIONS["mixed"], chunk_codes=20_000)
    bits = 0.0
    for block in sample.blocks:
        counts = np.bincount(block.codes.ravel())
        bits -= math.fsum(n * math.log2(n / block.codes.size) for n in counts.tolist() if n)
    assert sample.entropy_bits == pytest.approx(bits / sample.codes, rel=1e-12)


def test_a_sample_is_evenly_spread(tmp_path: Path) -> None:
    # Row r of the model holds weights of scale r + 1, so that a block tells where it comes from.
    rows = 4_000
    weights = np.random.default_rng(0).normal(0, 1, (rows, 64)).astype(np.float32)
    weights[:, 0] = 100
    scaled = weights * np.arange(1, rows + 1, dtype=np.float32)[:, None] / rows
    parts = {"a": scaled[:1000], "b": scaled[1000:1100], "c": scaled[1100:]}
    save_file(parts, tmp_path / "m.safetensors")
    sample = take_sample(tmp_path / "m.safetensors", SELECTIONS["channel"], sample_codes=32_000, chunk_codes=3_200)
    places = [float(block.scale.astype(np.float32).mean()) for block in sample.blocks]
    places = [place / 100 * 7 for place in places]  # the largest weight of a row has code 7
    assert len(places) == 10
    assert places == pytest.approx([0.05 + 0.1 * i for i in range(10)], abs=0.02)
    assert 0.8 * 32_000 < sample.codes < 1.2 * 32_000
    assert sample.total_codes == weights.size


def test_weights_that_no_grid_holds_are_passed_over(tmp_path: Path) -> None:
    good, bad = np.ones((64, 128), np.float32), np.full((64, 128), np.nan, np.float32)
    save_file({"bad": bad, "good": good * 2, "odd": good}, tmp_path / "m.safetensors")
    sample = take_sample(tmp_path / "m.safetensors")
    assert len(sample.blocks) == 2 and sample.codes == 2 * good.size
    save_file({"bad": bad}, tmp_path / "m.safetensors")
    for strategy in ("group", "tensor"):
        with pytest.raises(InvalidArgumentError, match="no tensor has quantized codes"):
            take_sample(tmp_path / "m.safetensors", SELECTIONS[strategy])


# ------------------------------------------------------------------------------------------------ bench
@pytest.fixture(scope="module")
def measured(model_file: Path) -> Bench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "RIVALS", QUICK)
        return qzc.bench(model_file, Selection(), seconds=0.3, chunk_codes=50_000)


def test_bits_count_everything_that_is_stored(measured: Bench, model_file: Path) -> None:
    rows = {row.coder: row for row in measured.rows}
    assert list(rows) == [*OURS, *(rival.name for rival in QUICK)]
    sample = take_sample(model_file, chunk_codes=50_000)
    for coder in ("ans", "huffman", "raw"):
        chunks = [
            chunk
            for block in sample.blocks
            for chunk in encode_run(block.packed, math.prod(block.shape), block.args.storage_bits, coder, 50_000)
        ]
        nbytes = sum(len(chunk.payload) + CHUNK_DTYPE.itemsize for chunk in chunks)
        nbytes += sum(len(table) for _, table in {(chunk.coder, chunk.table) for chunk in chunks})
        assert rows[coder].bits_per_code == 8 * nbytes / sample.codes
    assert rows["memcpy"].bits_per_code == rows["unpack"].bits_per_code == 4
    assert rows["ans-float16"].bits_per_code == rows["ans"].bits_per_code
    bits = rows["ans"].bits_per_code
    assert bits is not None and measured.entropy_bits < bits < measured.entropy_bits + 0.15
    assert measured.sampled_codes == measured.total_codes == sample.codes


def test_speeds_belong_together(measured: Bench) -> None:
    for row in measured.rows:
        assert row.verified and row.decode is not None
        assert (row.encode is None) == (row.coder in ("memcpy", "ans-float16"))
        document = row.to_json()
        assert document["decode_codes_per_s"] <= document["decode_codes_per_s_best"]
        cycles = measured.machine["clock_ghz"] * 1e9 / document["decode_codes_per_s_best"]
        assert document["cycles_per_code"] == pytest.approx(cycles, rel=1e-3)  # the clock is rounded to 1 MHz
        assert document["runs"] >= FEWEST
    speed = {row.coder: row.codes_per_s("decode", "best") or 0 for row in measured.rows}
    assert min(speed["memcpy"], speed["raw"]) > speed["ans"] > 0  # small blocks: both are calls rather than copies
    assert speed["ans"] > speed["ans-float16"]


def test_what_is_measured_last_does_not_run_into_what_was_first(model_file: Path, few_rivals: None) -> None:
    samples = [take_sample(model_file, SELECTIONS[name], sample_codes=40_000) for name in ("group", "channel")]
    found = compare(samples, [1, 2], 0.05)
    assert [(run.grids[0].strategy, run.threads) for run in found] == [
        ("group", 1),
        ("group", 2),
        ("channel", 1),
        ("channel", 2),
    ]
    for one, two in (found[:2], found[2:]):
        assert [row.bits_per_code for row in one.rows] == [row.bits_per_code for row in two.rows]
        assert {row.threads for row in two.rows} == {2}


@pytest.mark.parametrize("threads", [0, 2])
def test_json_document(threads: int, model_file: Path, few_rivals: None) -> None:
    arguments = [
        str(model_file),
        "--bits",
        "4",
        "--group-size",
        "128",
        "-T",
        str(threads),
        "--seconds",
        "0.05",
        "--json",
    ]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["schema"] == "qzc.bench/1"
    assert document["threads"] == (2 if threads else thread_count(0))
    assert document["not_installed"] == []
    assert document["grids"][0]["group_size"] == 128
    assert 0 < document["sampled_codes"] <= document["total_codes"]
    assert 3 < document["entropy_bits"] < 4
    assert {"cpu", "cpus", "clock_ghz", "ans_kernels", "python", "numba"} <= set(document["machine"])
    ans = document["rows"][0]
    assert (ans["coder"], ans["verified"], ans["library"]) == ("ans", True, None)
    fields = {"bits_per_code", "encode_codes_per_s", "decode_codes_per_s", "cycles_per_code", "settings"}
    assert fields <= set(ans)
    assert all(row[field] is not None for row in document["rows"] for field in ("bits_per_code", "decode_codes_per_s"))


def test_table_says_what_was_sampled(model_file: Path, few_rivals: None) -> None:
    result = CliRunner().invoke(command, [str(model_file), "--seconds", "0.05"], catch_exceptions=False)
    assert result.exit_code == 0
    head, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert head[:3] == ["coder", "library", "bits_per_code"]
    assert [line[0] for line in lines] == [*OURS, *(rival.name for rival in QUICK)]
    assert "Measured on all" in result.stderr and "entropy" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "seconds"),
        (["--seconds", "nan"], "seconds"),
        (["-T", "-1"], "threads"),
        (["--bits", "9"], "bad bits rule"),
        (["--bits", "keep"], "no tensor has quantized codes"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, model_file: Path) -> None:
    result = CliRunner().invoke(command, [str(model_file), *arguments])
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)


def test_script_writes_table_document_and_plot(model_file: Path, tmp_path: Path) -> None:
    arguments = [str(model_file), "--bits", "2", "4", "--codes", "60000", "--seconds", "0.1", "--out", str(tmp_path)]
    script = [sys.executable, str(ROOT / "benchmarks" / "coders.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "coders.json").read_text())["runs"]
    assert [(run["grid"].split()[0], run["threads"]) for run in runs] == [
        (f"{bits}-bit", threads) for bits in (2, 2, 4, 4) for threads in (1, 2)
    ]
    assert {run["source"] for run in runs} == {"model.safetensors"}
    assert done.stdout == (tmp_path / "coders.md").read_text()
    table = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + sum(len(run["rows"]) for run in runs[::2])
    assert len({len(line) for line in table}) == 1
    zstd = next(line for line in table if line[1] == "zstd-1-packed")
    assert zstd[5] == zstd[7] == "1.00"
    if "no plot" not in done.stderr:
        assert (tmp_path / "coders.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "coders.svg").read_text()
