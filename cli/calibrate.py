"""`qzc calibrate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .hf_options import device_option, text_argument, window_options
from .options import PATH, examples, force_option, json_option, model_argument, quiet_option, threads_option
from .progress import progress_bar
from .sizes import size_text

if TYPE_CHECKING:
    from ..hf.calibrate import CalibrateReport

TOKENS_PER_INPUT = 64  # of the widest layer: from here on the matrices are good enough to correct errors by


@click.command(
    "calibrate",
    short_help="Run a model on text for `pack --stats`.",
    epilog=examples(
        "qzc calibrate llama/ train.txt -o stats.safetensors",
        "qzc calibrate llama/ wiki.txt code.txt --windows 512 --window-length 1024 -o stats.safetensors",
        "qzc calibrate minilm/ tokens.npz:train --window-length 128 -o stats.safetensors",
    ),
)
@model_argument
@text_argument
@click.option(
    "-o", "--output", type=PATH, metavar="PATH", required=True, help="The file of statistics to write, safetensors."
)
@window_options
@click.option(
    "--diagonal", is_flag=True, help="Only the power of each input, not the matrix of how inputs go together."
)
@click.option(
    "--sensitivity-windows",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    metavar="N",
    help="Measure on N windows of the text what errors in each matrix cost the model, so that `pack` can spend bits where they "
    "count. 0 leaves it out.",
)
@click.option("--whole", is_flag=True, help="Load the whole model at once, instead of block by block.")
@device_option
@threads_option
@force_option
@json_option
@quiet_option
def command(model: Path, text: tuple[str, ...], output: Path, **options: Any) -> None:
    """Run MODEL on TEXT and store the statistics of what its linear layers are given: which weights matter, and how; and what
    errors in each matrix cost the model, each quantized alone.

    MODEL is a folder that transformers can load: config, safetensors and tokenizer. TEXT is UTF-8, or token ids in .npy or
    .npz (file.npz:NAME). Never calibrate on the text that you evaluate on. Interrupted, the same command goes on where it
    was. Needs torch and transformers: pip install 'qzc[hf]'
    """
    from ..hf.calibrate import CalibrateOptions, calibrate
    from ..hf.text import WindowOptions
    from .render import print_json, printable

    chosen = CalibrateOptions(
        WindowOptions(options["windows"], options["window_length"], options["special_tokens"]),
        grams=not options["diagonal"],
        in_blocks=not options["whole"],
        sensitivity_windows=options["sensitivity_windows"],
        device=options["device"],
        threads=options["threads"],
        overwrite=options["force"],
    )
    with progress_bar("calibrating", options["quiet"]) as progress:
        report = calibrate(model, text, output, chosen, progress)
    for line in _warnings(report, options["whole"]):
        click.echo(printable(f"qzc: warning: {line}"), err=True)
    if options["as_json"]:
        print_json(_report_json(model, report))
    elif not options["quiet"]:
        line = f"{output}: {report.inputs} inputs of {report.tensors} tensors, {size_text(report.nbytes)} | {report.windows}"
        line += f" | sensitivity of {report.sensitivities} tensors" if report.sensitivities else ""
        line += f" | {report.seconds:.1f} s" + (f", {report.resumed} blocks done before" if report.resumed else "")
        click.echo(printable(line), err=True)


def _warnings(report: CalibrateReport, whole: bool) -> list[str]:
    lines = []
    per_input = report.tokens / report.columns
    if per_input < TOKENS_PER_INPUT:
        lines.append(
            f"{report.tokens:,} tokens are {per_input:.0f} for each of the {report.columns:,} inputs of the widest layer; "
            f"from {TOKENS_PER_INPUT} on statistics are good: more --windows"
        )
    if report.uncovered:
        count = len(report.uncovered)
        lines.append(f"no statistics for {count} layers of other kinds or names, such as {report.uncovered[0]}")
    if report.whole and not whole:
        lines.append(f"the whole model was run at once ({report.whole})")
    return lines


def _report_json(model: Path, report: CalibrateReport) -> dict[str, Any]:
    return {
        "schema": "qzc.hf.calibrate/1",
        "model": str(model),
        "output": str(report.output),
        "texts": list(report.windows.texts),
        "tokenization": report.windows.tokenization,
        "windows": len(report.windows.ids),
        "window_length": report.windows.ids.shape[1],
        "tokens": report.tokens,
        "inputs": report.inputs,
        "tensors": report.tensors,
        "uncovered": list(report.uncovered),
        "sensitivities": report.sensitivities,
        "whole": report.whole,
        "resumed_blocks": report.resumed,
        "nbytes": report.nbytes,
    }
