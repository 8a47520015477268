"""`qzc pareto`"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import click

from .hf_options import device_option, text_argument, window_options
from .options import (
    PATH,
    examples,
    force_option,
    json_option,
    model_argument,
    quiet_option,
    selection_options,
    threads_option,
)
from .progress import progress_bar
from .render import printable
from .signals import when_stopped
from .sizes import size_text

if TYPE_CHECKING:
    from ..hf.evaluate import Estimate
    from ..hf.pareto import ParetoReport
    from ..hf.points import MeasuredPoint
    from .render import Column

METHODS, METHODS_WITH_STATISTICS = "rtn,rtn-ec", "rtn,gptq,rtn-ec,watersic,best"
RATES = "2,3,4"


@click.command(
    "pareto",
    short_help="Measure methods at several rates on text.",
    epilog=examples(
        "qzc pareto llama/ test.txt --calibrate train.txt -o pareto.json --svg pareto.svg",
        "qzc pareto llama/ test.txt --stats stats.safetensors --methods gptq:row,gptq,watersic:8,best -o pareto.json",
        "qzc pareto minilm/ test.txt --window-length 128 --rates 2,2.5,3 --exclude '*embeddings*' --json",
    ),
)
@model_argument
@text_argument
@click.option(
    "--methods",
    metavar="LIST",
    help="Of rtn and gptq (grids; :row for a scale per row, :64 for groups of 64, :asym for zero points), rtn-ec, diag, gptq-ec, "
    "watersic (:8 for a trellis of 8 states, :uniform for the same rate in every tensor), best."
    f"  [default: {METHODS}; with statistics {METHODS_WITH_STATISTICS}]",
)
@click.option(
    "--rates",
    metavar="LIST",
    default=RATES,
    show_default=True,
    help="Bits per quantized weight, all side information counted; grids have the whole ones.",
)
@click.option(
    "--group-size",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="N",
    help="Weights per group of a grid.",
)
@click.option("--stats", type=PATH, metavar="FILE", help="Statistics of this model's inputs, from `qzc calibrate`.")
@click.option(
    "--calibrate", multiple=True, metavar="TEXT", help="In place of --stats: gather the statistics from this text."
)
@click.option(
    "--calibration-windows",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    metavar="N",
    help="At most, of --calibrate.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    help="Write the points as JSON, for `qzc report --pareto`. Points that it has are not measured again.",
)
@click.option("--svg", type=PATH, metavar="FILE", help="Write the plot as SVG.")
@click.option("--png", type=PATH, metavar="FILE", help="Write the plot as PNG; needs matplotlib (qzc[plot]).")
@click.option("--keep", type=PATH, metavar="DIR", help="Leave the packed files here.")
@selection_options
@window_options
@device_option
@threads_option
@force_option
@json_option
@quiet_option
def command(model: Path, text: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Pack MODEL by several methods at several rates, and measure on TEXT what each file does to it.

    MODEL is a folder that transformers can load, TEXT as for `qzc eval`: KL divergence to the original's predictions, and
    perplexity; of an encoder how far its embeddings turn. Every point is a file that was packed and read back; for grids
    there is a second one, the bits of their codes as packed integers. Interrupted, the same command goes on where it was. Needs torch and
    transformers: pip install 'qzc[hf]'
    """
    from ..hf.evaluate import EvalOptions
    from ..hf.pareto import ParetoOptions, pareto, trials
    from ..hf.text import WindowOptions
    from ..reports.png import check_matplotlib
    from .render import print_json, print_table

    if options["png"] is not None:
        check_matplotlib()
    with_statistics = bool(options["stats"] or options["calibrate"])
    methods = options["methods"] or (METHODS_WITH_STATISTICS if with_statistics else METHODS)
    wanted = trials(methods.split(","), _rates(options["rates"]), options["group_size"])
    chosen = ParetoOptions(
        EvalOptions(
            WindowOptions(options["windows"], options["window_length"], options["special_tokens"]),
            device=options["device"],
            threads=options["threads"],
        ),
        stats=options["stats"],
        calibrate=options["calibrate"],
        calibration_windows=options["calibration_windows"],
        include=options["include"],
        exclude=options["exclude"],
        keep=options["keep"] is not None,
        overwrite=options["force"],
    )
    with ExitStack() as stack:
        folder = _folder(options["keep"], stack)
        progress = stack.enter_context(progress_bar("measuring", options["quiet"]))
        report = pareto(model, text, wanted, folder, output, chosen, progress)
    _write_plots(report, options)
    if options["as_json"]:
        print_json(report.measured.document())
    else:
        best = report.measured.best()
        notes = [] if options["quiet"] else _notes(report)
        print_table(_columns(report.measured.metric, best), report.measured.points, notes=notes)
    for trial, why in report.failed:
        click.echo(printable(f"qzc: warning: no {trial.label} at {trial.rate:g} bits: {why}"), err=True)
    if report.unknown:
        click.echo(
            printable(
                f"qzc: warning: no statistics for {len(report.unknown)} tensors, such as {report.unknown[0]}: rounded to "
                "nearest; --exclude leaves them out"
            ),
            err=True,
        )


def _rates(text: str) -> list[float]:
    rates = []
    for part in text.split(","):
        try:
            rates.append(float(part))
        except ValueError:
            raise click.BadParameter(f"{part!r} is not a number of bits", param_hint="--rates") from None
        if not 0 < rates[-1] <= 16:
            raise click.BadParameter(f"{part} bits: a rate lies above 0 and up to 16", param_hint="--rates")
    return rates


def _folder(keep: Path | None, stack: ExitStack) -> Path:
    """Where to pack: a folder to keep, or one that is gone afterwards, however the process ends."""
    from ..formats.access import naming_os_errors

    if keep is not None:
        with naming_os_errors(keep, "write"):
            keep.mkdir(parents=True, exist_ok=True)
        return keep
    folder = Path(mkdtemp(prefix="qzc-pareto-"))
    remove = partial(shutil.rmtree, folder, ignore_errors=True)
    stack.callback(remove)
    stack.enter_context(when_stopped(remove))
    return folder


def _write_plots(report: ParetoReport, options: dict[str, Any]) -> None:
    if options["svg"] is not None:
        from ..formats.atomic import atomic_writer
        from ..reports.html import figure_svg

        with atomic_writer(options["svg"], overwrite=True) as stream:
            stream.write(figure_svg(report.measured.chart()).encode("utf-8", "backslashreplace"))
    if options["png"] is not None:
        from ..reports.png import write_png

        write_png(report.measured.chart(), options["png"])


def _columns(metric: str, best: list[MeasuredPoint]) -> list[Column[MeasuredPoint]]:
    from .render import Column

    columns: list[Column[MeasuredPoint]] = [
        Column("method", "method", lambda point: point.method),
        Column("bits_per_weight", "bits", lambda point: point.bits_per_weight, 4),
        Column("nbytes", "bytes", lambda point: point.nbytes, rank=3),
        Column(metric, {"kl": "KL, nats"}.get(metric, "1 - cosine"), lambda point: point.error(metric).value, 6),
        Column("low", "95 % from", lambda point: point.error(metric).low, 6, rank=1),
        Column("high", "to", lambda point: point.error(metric).high, 6, rank=1),
        Column("best", "best", lambda point: "yes" if point in best else None),
        Column("seconds", "packed in s", lambda point: point.seconds, 1, rank=4),
    ]
    perplexity: list[Column[MeasuredPoint]] = [
        Column("perplexity", "perplexity", lambda point: _part(point.perplexity, "value"), 3),
        Column("perplexity_low", "95 % from", lambda point: _part(point.perplexity, "low"), 3, rank=2),
        Column("perplexity_high", "to", lambda point: _part(point.perplexity, "high"), 3, rank=2),
    ]
    if metric == "kl":
        columns[6:6] = perplexity
    return columns


def _part(estimate: Estimate | None, name: str) -> float | None:
    found: float | None = getattr(estimate, name, None)
    return found


def _notes(report: ParetoReport) -> list[str]:
    original = report.measured.original
    text = f"{report.measured.model}: {size_text(original['nbytes'])}" if original.get("nbytes") else ""
    text += f", perplexity {original['perplexity']:.3f}" if original.get("perplexity") else ""
    notes = [
        f"{text}. {report.comparison.windows}; intervals normal over windows. best: no other point has less of both."
    ]
    if report.reused:
        notes.append(f"{report.reused} of these had been measured before.")
    return notes
