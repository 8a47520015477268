"""`qzc pareto`: pack a model by several methods at several rates, and measure what each file does to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import xxhash

from ..calibration import Calibration, fingerprint
from ..codec.errors import InvalidArgumentError
from ..codec.tensor import QuantizationArgs
from ..formats.checkpoint import open_checkpoint
from ..packer import PackOptions, PackReport, pack
from ..progress import Progress
from ..quantize.select import Selection, parse_bits
from ..rating import BEST_STATES, RATE_METHODS, TRELLISES, RateMethod, RateOptions
from ..version import VERSION
from .calibrate import CalibrateOptions, calibrate
from .evaluate import Comparison, EvalOptions, EvalReport
from .points import PACKED, Measured, MeasuredPoint, read_measured, write_measured

GRID_METHODS = ("rtn", "gptq")
WITHOUT_STATISTICS = ("rtn", "rtn-ec", "best")
GROUP_SIZE = 128
NAMES = ("texts", "tokenization")  # of the settings: for people, their hashes say more
SHORT = 200  # characters; longer entries of statistics are in their hash only


@dataclass(frozen=True)
class Trial:
    """One method at one rate. label: as users write it, in full. method: None for the default at a rate.

    rate: bits per weight; of `rtn` and `gptq` the whole number of bits of the grid. states: of a trellis, or 0. uniform: the
    same rate for every tensor. group_size: of a grid; None for one scale per row. symmetric: a grid without zero points.
    """

    label: str
    method: RateMethod | Literal["rtn", "gptq"] | None
    rate: float
    states: int = 0
    uniform: bool = False
    group_size: int | None = None
    symmetric: bool = True

    @property
    def on_grid(self) -> bool:
        return self.method in GRID_METHODS

    @property
    def needs_statistics(self) -> bool:
        return self.label.partition(":")[0] not in WITHOUT_STATISTICS

    @property
    def file_name(self) -> str:
        return f"{self.label.replace(':', '-')}-{self.rate:g}"

    def pack_options(
        self, stats: Path | None, include: Sequence[str] = (), exclude: Sequence[str] = (), threads: int = 0
    ) -> PackOptions:
        """Grids have clipped scales, which is what makes them good at few bits."""
        every = Selection(include=tuple(include), exclude=tuple(exclude))
        if not self.on_grid:
            method = cast("RateMethod | None", self.method)
            rate = RateOptions(self.rate, method=method, states=self.states, uniform=self.uniform)
            used = None if self.method == "rtn-ec" else stats
            return PackOptions(every, rate=rate, stats=used, threads=threads, overwrite=True)
        grid = replace(
            every,
            rules=parse_bits(round(self.rate)),
            strategy="channel" if self.group_size is None else "group",
            group_size=self.group_size,
            symmetric=self.symmetric,
            scale="mse",
        )
        if self.method == "gptq":
            return PackOptions(grid, method="gptq", stats=stats, threads=threads, overwrite=True)
        return PackOptions(grid, threads=threads, overwrite=True)


def trials(methods: Sequence[str], rates: Sequence[float], group_size: int | None = GROUP_SIZE) -> list[Trial]:
    """Every method at every rate that it can have: grids at the whole numbers from 1 to 8 only.

    methods: `rtn`, `gptq` (`:row` or `:64` for scales per row or per group of 64, else groups of `group_size`; `:asym` for
    zero points), `rtn-ec`, `diag`, `gptq-ec`, `watersic` (`:8` for a trellis of 8 states), `best` (these with `:uniform` for the
    same rate in every tensor). Raises InvalidArgumentError for others, and for a grid without a rate.

    >>> [(trial.label, trial.rate) for trial in trials(["gptq", "watersic:8"], [2.5, 3])]
    [('gptq:128', 3), ('watersic:8', 2.5), ('watersic:8', 3)]
    """
    found = []
    for text in methods:
        one = _method(text.strip(), group_size)
        mine = [rate for rate in rates if not one.on_grid or rate in range(1, 9)]
        if not mine:
            raise InvalidArgumentError(f"{text} is on a grid: give it whole numbers of bits from 1 to 8")
        found += [replace(one, rate=rate) for rate in mine]
    return list(dict.fromkeys(found))


def _method(text: str, group_size: int | None) -> Trial:
    name, *words = text.split(":")
    numbers, names = [word for word in words if word.isdecimal() and int(word)], [w for w in words if not w.isdecimal()]
    if len(numbers) + len(names) < len(words) or len(numbers) > 1:
        raise InvalidArgumentError(f"{text}: cannot read {':'.join(words)!r}")
    number = int(numbers[0]) if numbers else 0
    if name in GRID_METHODS:
        if not set(names) <= {"row", "asym"} or (number and "row" in names):
            raise InvalidArgumentError(f"{text}: write {name}:row, or {name}:N for groups of N weights, and :asym")
        size = None if "row" in names else number or group_size
        label = f"{name}:{size or 'row'}" + (":asym" if "asym" in names else "")
        method = cast("Literal['rtn', 'gptq']", name)
        return Trial(label, method, 0, group_size=size, symmetric="asym" not in names)
    if name not in (*RATE_METHODS, "best"):
        raise InvalidArgumentError(
            f"unknown method {text!r}; choose among {', '.join((*GRID_METHODS, *RATE_METHODS, 'best'))}"
        )
    if not set(names) <= {"uniform"} or (number and (name == "best" or number not in TRELLISES)):
        raise InvalidArgumentError(
            f"{text}: write {name}:uniform, or {name}:N for a trellis of {', '.join(map(str, TRELLISES))} states; best has one"
        )
    label = name + (f":{number}" if number else "") + (":uniform" if names else "")
    if name == "best":
        return Trial(label, None, 0, BEST_STATES, bool(names))
    return Trial(label, cast("RateMethod", name), 0, number, bool(names))


@dataclass(frozen=True)
class ParetoOptions:
    """evaluation: the text's windows, and where torch runs. stats: a file of `qzc calibrate`; or calibrate: texts to gather
    them from, at most `calibration_windows` windows. include, exclude: as in `Selection`. keep: leave the packed files.
    overwrite: begin anew where `output` has points that were measured otherwise.
    """

    evaluation: EvalOptions = field(default_factory=EvalOptions)
    stats: Path | None = None
    calibrate: tuple[str, ...] = ()
    calibration_windows: int = 200
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.stats is not None and self.calibrate:
            raise InvalidArgumentError("give either statistics or texts to gather them from")


@dataclass(frozen=True)
class ParetoReport:
    """measured: all points, those of earlier runs included. comparison: what they were measured by. reused: points that were
    there already. failed: trials without a file, and why. unknown: tensors that methods with statistics had none for.
    """

    measured: Measured
    comparison: Comparison
    reused: int
    failed: tuple[tuple[Trial, str], ...]
    unknown: tuple[str, ...]


def pareto(
    model: str | Path,
    texts: Sequence[str | Path],
    wanted: Sequence[Trial],
    folder: Path,
    output: Path | None = None,
    options: ParetoOptions | None = None,
    progress: Progress | None = None,
) -> ParetoReport:
    """Pack, read back and evaluate every trial. Bits are those of files, nothing is estimated.

    model: a folder that transformers can load. texts: see `read_windows`. folder: where files are packed; it must exist.
    output: the document, written anew after every point; trials that it has already, with equal settings, are not run again.

    Raises InvalidArgumentError (statistics missing, of another model, or from the text that is evaluated on; `output` is of
    other settings), UnsupportedError, CorruptionError, FileAccessError. A rate that cannot be reached is no error while
    there are others.
    """
    options, model = options or ParetoOptions(), Path(model)
    missing = [trial.label for trial in wanted if trial.needs_statistics]
    if missing and options.stats is None and not options.calibrate:
        raise InvalidArgumentError(
            f"{missing[0]} needs the statistics that `qzc calibrate` gathers: give --stats, or --calibrate with a text"
        )
    earlier = read_measured(output) if output is not None and output.exists() and not options.overwrite else None
    comparison = Comparison(model, texts, options.evaluation)
    stats = options.stats
    if options.calibrate:
        stats = folder / "statistics.safetensors"
        windows = replace(options.evaluation.windows, count=options.calibration_windows)
        gather = CalibrateOptions(
            windows, device=options.evaluation.device, threads=options.evaluation.threads, overwrite=True
        )
        calibrate(model, options.calibrate, stats, gather, progress)
    settings = _settings(model, stats, comparison, options)
    metric = "cosine_error" if comparison.task == "encoder" else "kl"
    measured = Measured(model.resolve().name, metric, settings, {}, ())
    if earlier is not None:
        differ = [key for key in settings if key not in NAMES and earlier.settings.get(key) != settings[key]]
        if differ:
            raise InvalidArgumentError(
                f"{output} has points that were measured otherwise ({', '.join(differ)}); name another file, or begin it "
                "anew with -f"
            )
        measured = earlier
    run = _Run(model, comparison, folder, stats, options)
    done = {(point.method, point.rate) for point in measured.points}
    left = [trial for trial in wanted if (trial.label, trial.rate) not in done]
    failed: list[tuple[Trial, str]] = []
    for index, trial in enumerate(left):
        try:
            report, points = run.measure(trial, _part(progress, trial.file_name, index, len(left)))
        except InvalidArgumentError as error:
            failed.append((trial, str(error)))
            if len(failed) == len(left) and not measured.points:
                raise
            continue
        measured = replace(measured, original=_original(report), points=_in_order((*measured.points, *points), wanted))
        if output is not None:
            write_measured(measured, output)
    return ParetoReport(measured, comparison, len(wanted) - len(left), tuple(failed), tuple(run.unknown))


class _Run:
    def __init__(
        self, model: Path, comparison: Comparison, folder: Path, stats: Path | None, options: ParetoOptions
    ) -> None:
        self._model, self._comparison, self._folder = model, comparison, folder
        self._stats, self._options = stats, options
        self._is_folder = open_checkpoint(model, "safetensors").is_folder
        self.unknown: dict[str, None] = {}

    def measure(self, trial: Trial, part: Callable[[int], Progress | None]) -> tuple[EvalReport, list[MeasuredPoint]]:
        options = self._options
        path = self._folder / (trial.file_name + ("" if self._is_folder else ".qzc"))
        how = trial.pack_options(self._stats, options.include, options.exclude, options.evaluation.threads)
        try:
            packed = pack(self._model, path, how, part(0))
            self.unknown.update(dict.fromkeys(packed.without_statistics))
            report = self._comparison.measure(path, part(1))
        finally:
            if not options.keep:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        point = MeasuredPoint(
            trial.label,
            trial.rate,
            packed.bits_per_weight,
            packed.nbytes,
            report.kl,
            report.perplexity,
            report.cosine_distance,
            packed.seconds,
        )
        points = [point]
        if trial.on_grid:
            ints = replace(point, method=trial.label + PACKED, bits_per_weight=packed_int_bits(packed), nbytes=None)
            points.append(ints)
        return report, points


def packed_int_bits(report: PackReport) -> float:
    """Bits per weight of the grids themselves: codes side by side at their number of bits, scales and zero points beside."""
    bits, weights = 0, 0
    for tensor in report.quantized:
        if tensor.args is not None:
            bits += tensor.parameters * tensor.args.num_bits + _scale_bits(tensor.args, tensor.shape)
            weights += tensor.parameters
    return bits / max(1, weights)


def _scale_bits(args: QuantizationArgs, shape: tuple[int, ...]) -> int:
    rows, groups = (*args.scale_shape(shape), 1)[:2]
    return rows * groups * ((32 if args.scale_dtype == "float32" else 16) + (0 if args.symmetric else args.num_bits))


def _settings(model: Path, stats: Path | None, comparison: Comparison, options: ParetoOptions) -> dict[str, Any]:
    """Also checks that the statistics are fit to be used here."""
    windows = comparison.windows
    statistics: dict[str, str] | None = None
    model_hash = fingerprint(model)
    if stats is not None:
        with Calibration.open(stats) as calibration:
            if calibration.model_hash != model_hash:
                calibration.check_model(model)
            if calibration.text_hash == windows.hash:
                raise InvalidArgumentError(
                    f"{stats}: the statistics are from the very text to evaluate on, which makes methods look better than "
                    "they are; calibrate on another one"
                )
            metadata = calibration.metadata
            whole = json.dumps(metadata, sort_keys=True).encode()
            statistics = {key: value for key, value in metadata.items() if len(value) <= SHORT}
            statistics["metadata_hash"] = xxhash.xxh3_64_hexdigest(whole)
    return {
        "writer": f"qzc {VERSION}",
        "model_hash": model_hash,
        "text_hash": windows.hash,
        "texts": list(windows.texts),
        "tokenization": windows.tokenization,
        "windows": len(windows.ids),
        "window_length": windows.ids.shape[1],
        "statistics": statistics,
        "include": list(options.include),
        "exclude": list(options.exclude),
    }


def _original(report: EvalReport) -> dict[str, Any]:
    perplexity = report.original_perplexity
    return {"nbytes": report.original_nbytes, "perplexity": perplexity.value if perplexity else None}


def _in_order(points: Sequence[MeasuredPoint], wanted: Sequence[Trial]) -> tuple[MeasuredPoint, ...]:
    """Methods as they were asked for, those of earlier runs first; each by ascending rate."""
    asked = {name: i for i, t in enumerate(wanted) for name in (t.label, t.label + PACKED)}
    return tuple(sorted(points, key=lambda point: (asked.get(point.method, -1), point.method, point.rate)))


def _part(progress: Progress | None, name: str, index: int, count: int) -> Callable[[int], Progress | None]:
    """Progress of packing (0) and evaluating (1) the trial, as a part of all."""

    def half(which: int) -> Progress | None:
        return None if progress is None else partial(_report, progress, name, 2 * index + which, 2 * count)

    return half


def _report(progress: Progress, name: str, before: int, steps: int, doing: str, done: int, total: int) -> None:
    progress(f"{name}: {doing}", before * total + done, steps * total)
