"""`qzc pareto`: points are what files hold and do, each is measured once, and what is not comparable stays apart."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import qzc
from qzc.cli import pareto as cli_pareto
from qzc.cli import signals
from qzc.codec.errors import FileAccessError, InvalidArgumentError
from qzc.hf import pareto as work
from qzc.hf.evaluate import Comparison, Estimate, EvalOptions, EvalReport, evaluate
from qzc.hf.model import load_model
from qzc.hf.pareto import ParetoOptions, ParetoReport, Trial, packed_int_bits, pareto, trials
from qzc.hf.points import PACKED, Measured, MeasuredPoint, read_measured, write_measured
from qzc.hf.text import WindowOptions, Windows
from qzc.progress import Progress
from qzc.rating import RateOptions
from qzc.reports.pareto import read_pareto
from tests.command_line import Argument, inside, ok
from tests.test_pack_rate import statistics

HF = find_spec("torch") is not None and find_spec("transformers") is not None
EXCLUDE = ("*embed*",)


class FakeComparison:
    """In place of running models: the divergence is the mean squared error of the weights. Needs no torch."""

    task, seed = "causal", 0

    def __init__(self, against: Path, texts: Sequence[str | Path], options: EvalOptions | None = None) -> None:
        self.original = load_file(against / "model.safetensors")
        ids = np.random.default_rng(self.seed).integers(0, 9, (3, 4))
        self.windows = Windows(ids, tuple(map(str, texts)), "token ids as given")

    def measure(self, model: Path, progress: Progress | None = None) -> EvalReport:
        error = 0.0
        for name, weights in qzc.load_file(model, np.float32).items():
            error += float(np.square(weights - self.original[name].astype(np.float32), dtype=np.float64).sum())
        if progress:
            progress("window 0", 10, 10)
        found = Estimate(error, 0.9 * error, 1.1 * error)
        return EvalReport(
            model, None, self.task, "Fake", self.windows, 1, 2, found, found, None,
            None if self.task == "encoder" else found, None, found if self.task == "encoder" else None, 0.0,
        )  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeComparison]:
    class Mine(FakeComparison):
        pass

    monkeypatch.setattr(work, "Comparison", Mine)
    return Mine


@pytest.fixture(scope="module")
def stats(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return statistics(model_folder / "model.safetensors", tmp_path_factory.mktemp("stats") / "stats.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def run(
    model: Path, folder: Path, methods: str, rates: Sequence[float], output: Path | None = None, **options: Any
) -> ParetoReport:
    chosen = ParetoOptions(EvalOptions(threads=1), exclude=EXCLUDE, **options)
    return pareto(model, ["text"], trials(methods.split(","), rates), folder, output, chosen)


def summary(measured: Measured) -> list[tuple[str, float]]:
    return [(point.method, point.rate) for point in measured.points]


# ---------------------------------------------------------------------------------------------------------------------
# What is to be measured


def test_methods_and_rates() -> None:
    found = trials(["rtn", "gptq:row", "gptq:64", "rtn-ec:8", "best"], [2, 2.5, 9])
    assert [(t.label, t.rate, t.group_size, t.states) for t in found] == [
        ("rtn:128", 2, 128, 0),
        ("gptq:row", 2, None, 0),
        ("gptq:64", 2, 64, 0),
        ("rtn-ec:8", 2, None, 8),
        ("rtn-ec:8", 2.5, None, 8),
        ("rtn-ec:8", 9, None, 8),
        ("best", 2, None, 32),
        ("best", 2.5, None, 32),
        ("best", 9, None, 32),
    ]
    assert [t.label for t in trials(["best:uniform", "gptq:asym", "diag:uniform:8"], [3])] == [
        "best:uniform",
        "gptq:128:asym",
        "diag:8:uniform",
    ]
    assert trials(["gptq", "gptq:32"], [3], 32) == [Trial("gptq:32", "gptq", 3, group_size=32)]
    assert [t.needs_statistics for t in trials(["rtn", "rtn-ec:4", "best", "diag", "gptq", "watersic:8"], [3])] == [
        False, False, False, True, True, True,
    ]  # fmt: skip


def test_grids_are_clipped_and_rates_are_rates() -> None:
    (grid,) = trials(["gptq:row"], [3])
    options = grid.pack_options(Path("s"), exclude=EXCLUDE)
    assert options.method == "gptq" and options.stats == Path("s") and options.selection is not None
    args = options.selection.decide("a.weight", "F32", (64, 64)).args
    assert args is not None and (args.num_bits, args.strategy, args.scale_method) == (3, "channel", "mse")
    assert options.selection.decide("embed.weight", "F32", (64, 64)).args is None
    (free,) = trials(["rtn-ec:8"], [2.5])
    options = free.pack_options(Path("s"))
    assert options.stats is None and options.rate is not None
    assert options.rate == RateOptions(2.5, method="rtn-ec", states=8)
    (even,) = trials(["best:uniform"], [2.5])
    assert even.pack_options(Path("s")).rate == RateOptions(2.5, states=even.states, uniform=True)
    (asymmetric,) = trials(["rtn:asym"], [3])
    selection = asymmetric.pack_options(None).selection
    assert selection is not None and selection.symmetric is False and selection.group_size == 128


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("magic", "unknown method 'magic'"),
        ("", "unknown method ''"),
        ("best:8", "best has one"),
        ("gptq:column", "gptq:row"),
        ("gptq:row:8", "gptq:row"),
        ("gptq:uniform", "gptq:row"),
        ("rtn:0", "cannot read '0'"),
        ("rtn:4:8", "cannot read '4:8'"),
        ("watersic:5", "a trellis of 4, 8"),
        ("watersic:asym", "watersic:uniform"),
        ("rtn", "whole numbers"),
    ],
)
def test_methods_that_do_not_exist(method: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        trials([method], [2.5])


# ---------------------------------------------------------------------------------------------------------------------
# Measuring, without torch


def test_points_are_what_files_hold(
    model_folder: Path, stats: Path, folder: Path, tmp_path: Path, fake: type[FakeComparison]
) -> None:
    report = run(model_folder, folder, "rtn:row,rtn-ec,watersic", [3], tmp_path / "p.json", stats=stats, keep=True)
    points = {point.method: point for point in report.measured.points}
    assert list(points) == ["rtn:row", f"rtn:row{PACKED}", "rtn-ec", "watersic"]
    original = load_file(model_folder / "model.safetensors")
    quantized = [array.size for name, array in original.items() if array.ndim == 2 and "embed" not in name]
    kept = 4 * (sum(array.size for array in original.values()) - sum(quantized))
    for name, file in (("rtn:row", "rtn-row-3"), ("rtn-ec", "rtn-ec-3")):
        nbytes = next((folder / file).glob("*.qzc.safetensors")).stat().st_size
        assert points[name].nbytes == nbytes
        # All but what is kept as it is, some of which is coded without loss, and the header.
        assert 8 * (nbytes - kept) / sum(quantized) < points[name].bits_per_weight + 0.2
        assert points[name].kl == fake(model_folder, ["text"]).measure(folder / file).kl is not None
    assert points["rtn-ec"].bits_per_weight == pytest.approx(3, rel=0.005)
    ints = points[f"rtn:row{PACKED}"]
    assert ints.nbytes is None and ints.kl == points["rtn:row"].kl
    assert points["rtn:row"].bits_per_weight < 3 < ints.bits_per_weight < 3.3
    assert report.measured.settings["text_hash"] == report.comparison.windows.hash
    document = json.loads((tmp_path / "p.json").read_text("utf-8"))
    assert document == json.loads(json.dumps(report.measured.document()))
    read = read_pareto(tmp_path / "p.json")
    assert (read.model, read.metric, len(read.points)) == ("model", "kl", 4)


@pytest.mark.parametrize("text", ["rtn:row", "rtn:48", "rtn:64", "rtn:64:asym"])
def test_bits_of_packed_integers(text: str, model_folder: Path, tmp_path: Path) -> None:
    (trial,) = trials([text], [4])
    nothing = qzc.pack(model_folder, tmp_path / "0", trial.pack_options(None, exclude=["*"]))
    assert packed_int_bits(nothing) == 0
    report = qzc.pack(model_folder, tmp_path / "1", trial.pack_options(None, exclude=["*embed*"]))
    columns = {tensor.shape: tensor.shape[1] for tensor in report.quantized}
    scales = [t.shape[0] * -(-columns[t.shape] // (trial.group_size or columns[t.shape])) for t in report.quantized]
    assert len(set(columns.values())) > 1
    each = 16 if trial.symmetric else 16 + 4
    assert packed_int_bits(report) == pytest.approx(
        4 + each * sum(scales) / sum(t.parameters for t in report.quantized)
    )


def test_nothing_is_measured_twice(
    model_folder: Path, folder: Path, tmp_path: Path, fake: type[FakeComparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, packed = tmp_path / "p.json", []
    real = qzc.pack

    def counting(*arguments: Any) -> Any:
        packed.append(arguments[1].name)
        if len(packed) == 2 and arguments[1].name == "rtn-ec-3":
            raise FileAccessError("no space left")  # in place of anything that ends a run
        return real(*arguments)

    monkeypatch.setattr(work, "pack", counting)
    with pytest.raises(FileAccessError):
        run(model_folder, folder, "rtn-ec", [2, 3], output)
    assert summary(read_measured(output)) == [("rtn-ec", 2)] and not list(folder.iterdir())
    first = read_measured(output).points[0]
    report = run(model_folder, folder, "rtn-ec", [2, 3], output)
    assert packed == ["rtn-ec-2", "rtn-ec-3", "rtn-ec-3"] and report.reused == 1
    assert report.measured.points[0] == first and summary(report.measured) == [("rtn-ec", 2), ("rtn-ec", 3)]
    report = run(model_folder, folder, "rtn:row", [3], output)  # others stay
    assert report.reused == 0 and len(read_measured(output).points) == 4
    again = run(model_folder, folder, "rtn:row,rtn-ec", [2, 3], output)
    assert packed[4:] == ["rtn-row-2"] and again.reused == 3

    fake.seed = 1
    with pytest.raises(InvalidArgumentError, match=r"p\.json has points that were measured otherwise \(text_hash\)"):
        run(model_folder, folder, "rtn-ec", [2], output)
    assert run(model_folder, folder, "rtn-ec", [2], output, overwrite=True).reused == 0
    assert summary(read_measured(output)) == [("rtn-ec", 2)]


def test_a_rate_out_of_reach_does_not_end_the_run(model_folder: Path, folder: Path, fake: type[FakeComparison]) -> None:
    report = run(model_folder, folder, "rtn-ec", [0.05, 3])
    assert summary(report.measured) == [("rtn-ec", 3)]
    assert [trial.rate for trial, _ in report.failed] == [0.05] and "cannot reach" in report.failed[0][1]
    with pytest.raises(InvalidArgumentError, match="cannot reach"):
        run(model_folder, folder, "rtn-ec", [0.05])


def test_statistics_must_be_there_and_fit(
    model_folder: Path, stats: Path, folder: Path, tmp_path: Path, fake: type[FakeComparison]
) -> None:
    with pytest.raises(InvalidArgumentError, match="diag needs the statistics that `qzc calibrate` gathers"):
        run(model_folder, folder, "rtn-ec,diag", [3])
    other = shutil.copytree(model_folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidArgumentError, match="taken on another model"):
        run(other, folder, "watersic", [3], stats=stats)
    fake.seed = 5
    ids = np.random.default_rng(5).integers(0, 9, (3, 4))
    same = tmp_path / "same.safetensors"
    with safe_open(stats, "np") as file:
        metadata = {**file.metadata(), "text_hash": Windows(ids, (), "").hash}
    save_file(load_file(stats), same, metadata)
    with pytest.raises(InvalidArgumentError, match="the very text to evaluate on"):
        run(model_folder, folder, "watersic", [3], stats=same)
    with pytest.raises(InvalidArgumentError, match="either statistics or texts"):
        ParetoOptions(stats=stats, calibrate=("text",))
    assert not list(folder.iterdir())


def test_an_encoder_has_distances(model_folder: Path, folder: Path, fake: type[FakeComparison]) -> None:
    fake.task = "encoder"
    report = run(model_folder, folder, "rtn-ec", [3])
    (point,) = report.measured.points
    assert report.measured.metric == "cosine_error" and point.kl is None and point.cosine_error is not None


# ---------------------------------------------------------------------------------------------------------------------
# Documents and plots


def some_points() -> Measured:
    def point(method: str, bits: float, error: float, nbytes: int | None = 5) -> MeasuredPoint:
        kl = Estimate(error, None, None)
        return MeasuredPoint(method, round(bits), bits, nbytes, kl, Estimate(9.0, 8.0, 10.0), None, 1.5)

    points = (point("a", 2.0, 0.2), point("b", 2.5, 0.3), point("a", 3.0, 0.1), point(f"b{PACKED}", 3.1, 0.3, None))
    return Measured("mödel", "kl", {"model_hash": "0"}, {"nbytes": 7, "perplexity": 8.5}, points)


def test_documents_come_back(tmp_path: Path) -> None:
    measured = some_points()
    write_measured(measured, tmp_path / "p.json")
    assert read_measured(tmp_path / "p.json") == measured
    assert [p.bits_per_weight for p in measured.best()] == [2.0, 3.0]
    assert [p["best"] for p in measured.document()["points"]] == [True, False, True, False]


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", "{" * 100_000, '{"schema": "qzc.pareto/2"}',
        {"points": [{"method": "a"}]}, {"points": 5}, {"metric": "beauty"}, {"settings": None}, {"original": 5},
        {"points": [{"method": "a", "rate": 1, "bits_per_weight": 1, "nbytes": 1, "seconds": 1}]},
        {"points": [{"method": "a", "rate": True, "bits_per_weight": 1, "nbytes": 1, "seconds": 1, "kl": 1}]},
    ],
)  # fmt: skip
def test_files_that_are_no_documents(content: str | dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps({**some_points().document(), **content}))
    with pytest.raises(InvalidArgumentError, match=r"p\.json: not a result of `qzc pareto`"):
        read_measured(path)


def test_an_svg_of_its_own() -> None:
    from qzc.reports.html import figure_svg

    text = figure_svg(some_points().chart())
    root = ElementTree.fromstring(text)
    assert root[0].tag.endswith("style") and ".l0{stroke:var(--c0)" in (root[0].text or "")
    lines = [line for line in root if line.tag.endswith("polyline")]
    assert [line.get("stroke-dasharray") for line in lines] == ["", "", "3 4"]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command(model_folder: Path, tmp_path: Path, fake: type[FakeComparison]) -> None:
    output, svg = tmp_path / "p.json", tmp_path / "p.svg"
    what = ("--methods", "rtn,rtn-ec", "--rates", "2.5,3", "--exclude", "*embed*", "-T", 1)
    arguments: tuple[Argument, ...] = ("pareto", model_folder, "text", *what, "-o", output, "--svg", svg)
    result = ok(*arguments)
    assert [row["method"] for row in result.table] == ["rtn:128", f"rtn:128{PACKED}", "rtn-ec", "rtn-ec"]
    assert all(float(row["low"]) < float(row["kl"]) < float(row["high"]) for row in result.table)
    assert [row["nbytes"] == "" for row in result.table] == [False, True, False, False]
    assert result.table[3]["best"] == "yes" and result.table[1]["best"] == ""
    assert "3 windows of 4 tokens from text" in result.stderr
    ElementTree.parse(svg)
    again = ok(*arguments, "--json")
    assert again.json == json.loads(output.read_text("utf-8")) and again.json["schema"] == "qzc.pareto/1"
    assert "3 of these had been measured before" in ok(*arguments).stderr
    kept = tmp_path / "new" / "kept"
    warned = ok("pareto", model_folder, "text", "--methods", "rtn-ec", "--rates", "0.01,3", "--keep", kept, "-T", 1)
    assert [path.name for path in kept.iterdir()] == ["rtn-ec-3"]
    assert "qzc: warning: no rtn-ec at 0.01 bits: " in warned.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rates", "2,x"), "'x' is not a number of bits"),
        (("--rates", "0"), "a rate lies above 0"),
        (("--rates", "nan"), "a rate lies above 0"),
        (("--methods", "watersic"), "watersic needs the statistics"),
        (("--methods", "rtn", "--rates", "2.5"), "rtn is on a grid"),
        (("--calibrate", "a", "--stats", "b"), "either statistics or texts"),
    ],
)
def test_usage(arguments: tuple[str, ...], message: str, model_folder: Path, fake: type[FakeComparison]) -> None:
    failed = inside("pareto", model_folder, "text", *arguments)
    assert failed.code == 2 and message in failed.error and failed.raw == b""


@pytest.mark.skipif(HF, reason="torch and transformers are there")
def test_it_says_what_to_install(model_folder: Path) -> None:
    failed = inside("pareto", model_folder, "text")
    assert failed.code == 4 and "pip install 'qzc[hf]'" in failed.error


def test_packed_files_are_gone_when_a_signal_ends_the_process() -> None:
    before = list(signals._cleanups)
    with ExitStack() as stack:
        folder = cli_pareto._folder(None, stack)
        (folder / "file").write_bytes(b"x")
        (cleanup,) = [one for one in signals._cleanups if one not in before]
        cleanup()
        assert not folder.exists()
    assert signals._cleanups == before


def test_commands_of_the_document_parse() -> None:
    text = (Path(__file__).parent.parent / "docs" / "pareto.md").read_text("utf-8")
    (block,) = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for line in block.splitlines() if line.startswith("qzc pareto ")]
    assert len(lines) == 2
    for line in lines:
        context = cli_pareto.command.make_context("pareto", line[2:])
        methods = context.params["methods"] or cli_pareto.METHODS_WITH_STATISTICS
        assert trials(methods.split(","), cli_pareto._rates(context.params["rates"]))


# ---------------------------------------------------------------------------------------------------------------------
# With torch


@pytest.mark.skipif(not HF, reason="torch and transformers are not installed")
def test_real_models(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.hf_models import llama, tokens

    model = llama(tmp_path / "model", hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    text, other = tokens(tmp_path / "ids.npy"), tokens(tmp_path / "other.npy", seed=1)
    options = EvalOptions(WindowOptions(7, 20), threads=1)
    monkeypatch.setattr("qzc.hf.evaluate.PASS_TOKENS", 60)
    chosen = ParetoOptions(options, calibrate=(str(other),), exclude=("*embed*", "lm_head"), keep=True)
    report = pareto(model, [text], trials(["rtn", "gptq-ec", "gptq:row"], [4]), folder, None, chosen)
    assert not report.failed and len(report.measured.points) == 5
    for point in report.measured.points:
        name = point.method.removesuffix(PACKED).replace(":", "-")
        alone = evaluate(folder / f"{name}-4", [text], model, options)
        assert alone.kl is not None and point.kl == alone.kl and point.perplexity == alone.perplexity
    assert report.measured.original["perplexity"] > 1


@pytest.mark.skipif(not HF, reason="torch and transformers are not installed")
@pytest.mark.parametrize("keep_nbytes", [0, 20_000, 1 << 30])
def test_the_original_runs_once(keep_nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.hf_models import VOCABULARY, llama, tokens

    model, text = llama(tmp_path / "model"), tokens(tmp_path / "ids.npy")
    options = EvalOptions(WindowOptions(7, 20), threads=1)
    monkeypatch.setattr("qzc.hf.evaluate.PASS_TOKENS", 60)
    packed = [
        qzc.pack(model, tmp_path / f"{bits}", qzc.PackOptions(qzc.Selection(qzc.parse_bits(bits), ("*_proj*",)))).output
        for bits in (3, 4)
    ]
    loaded: list[bool] = []
    real = load_model

    def counting(found: Any, *arguments: Any) -> Any:
        loaded.append(found.packed)
        return real(found, *arguments)

    monkeypatch.setattr("qzc.hf.evaluate.load_model", counting)
    comparison = Comparison(model, [text], options, keep_nbytes)
    reports = [comparison.measure(path) for path in packed]
    enough = keep_nbytes >= 7 * 19 * VOCABULARY * 4
    assert loaded == ([True, False, True] if enough else [True, False] * 2)
    for path, report in zip(packed, reports, strict=True):
        alone = evaluate(path, [text], model, options)
        assert (report.kl, report.perplexity, report.ratio) == (alone.kl, alone.perplexity, alone.ratio)
