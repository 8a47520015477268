"""`qzc eval`"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .hf_options import device_option, text_argument, window_options
from .options import PATH, examples, json_option, model_argument, quiet_option, threads_option
from .progress import progress_bar
from .sizes import size_text

if TYPE_CHECKING:
    from ..hf.evaluate import Estimate, EvalReport


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    what: str
    estimate: Estimate


@click.command(
    "eval",
    short_help="Measure a model on text, packed against original.",
    epilog=examples(
        "qzc eval llama/ test.txt",
        "qzc eval llama-qzc/ test.txt --against llama/",
        "qzc eval model.qzc tokens.npz:test --against llama/ --windows 1000 --json",
        "qzc eval minilm-qzc/ test.txt --against minilm/ --window-length 128",
    ),
)
@model_argument
@text_argument
@click.option("--against", type=PATH, metavar="ORIGINAL", help="The folder of the checkpoint that it was packed from.")
@window_options
@device_option
@threads_option
@json_option
@quiet_option
def command(model: Path, text: tuple[str, ...], against: Path | None, **options: Any) -> None:
    """Measure MODEL, a folder that transformers can load or .qzc, on TEXT: its perplexity.

    With --against also the original's, and how far the predictions are from the original's (KL divergence). Of an encoder:
    how far its embeddings, means over a window, turn away from the original's. TEXT is UTF-8, or token ids in .npy or .npz
    (file.npz:NAME). Needs torch and transformers: pip install 'qzc[hf]'
    """
    from ..hf.evaluate import EvalOptions, evaluate
    from ..hf.text import WindowOptions
    from .render import Column, print_json, print_table

    chosen = EvalOptions(
        WindowOptions(options["windows"], options["window_length"], options["special_tokens"]),
        device=options["device"],
        threads=options["threads"],
    )
    with progress_bar("evaluating", options["quiet"]) as progress:
        report = evaluate(model, text, against, chosen, progress)
    if options["as_json"]:
        print_json(_report_json(report))
        return
    columns: list[Column[Line]] = [
        Column("measure", "measure", lambda line: line.what),
        Column("value", "value", lambda line: line.estimate.value, 6),
        Column("low", "95 % from", lambda line: line.estimate.low, 6),
        Column("high", "to", lambda line: line.estimate.high, 6),
    ]
    print_table(columns, _lines(report), notes=[] if options["quiet"] else _notes(report))


def _lines(report: EvalReport) -> list[Line]:
    named = {
        "perplexity": report.perplexity,
        "original perplexity": report.original_perplexity,
        "perplexity ratio": report.ratio,
        "KL divergence, nats": report.kl,
        "same top token": report.top1,
        "1 - cosine": report.cosine_distance,
    }
    return [Line(what, estimate) for what, estimate in named.items() if estimate]


def _notes(report: EvalReport) -> list[str]:
    sizes = f"{report.model}: {size_text(report.nbytes)}"
    if report.original_nbytes is not None:
        sizes += f"; {report.against}: {size_text(report.original_nbytes)}"
    return [f"{sizes}. {report.architecture}, float32; {report.windows}; intervals normal over windows."]


def _report_json(report: EvalReport) -> dict[str, Any]:
    names = ("perplexity", "original_perplexity", "ratio", "kl", "top1", "cosine_distance")
    return {
        "schema": "qzc.eval/1",
        "model": str(report.model),
        "against": str(report.against) if report.against else None,
        "task": report.task,
        "architecture": report.architecture,
        "texts": list(report.windows.texts),
        "text_hash": report.windows.hash,
        "tokenization": report.windows.tokenization,
        "windows": len(report.windows.ids),
        "window_length": report.windows.ids.shape[1],
        "nbytes": report.nbytes,
        "original_nbytes": report.original_nbytes,
        **{name: asdict(value) if (value := getattr(report, name)) else None for name in names},
    }
