"""`qzc verify`"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    PATH,
    base_option,
    examples,
    json_option,
    model_argument,
    quiet_option,
    threads_option,
    verbose_option,
)
from .progress import progress_bar
from .sizes import size_text

if TYPE_CHECKING:
    from ..verifier import Comparison, VerifyReport


@click.command(
    "verify",
    short_help="Check every byte, and compare with the original.",
    epilog=examples(
        "qzc verify model.qzc",
        "qzc verify model.qzc --against model.safetensors",
        "qzc verify llama-qzc/ --json",
    ),
)
@model_argument
@click.option(
    "--against",
    type=PATH,
    metavar="ORIGINAL",
    help="Compare with the checkpoint it was packed from.",
)
@base_option
@threads_option
@json_option
@quiet_option
@verbose_option
def command(model: Path, against: Path | None, **options: Any) -> None:
    """Check every byte of MODEL, a .qzc file or folder: checksums, structure, and that all of it decodes.

    The exit code is 3 if a byte is wrong, or if something differs from the original.
    """
    from ..verifier import verify
    from .render import print_json, printable

    with progress_bar("verifying", options["quiet"]) as progress:
        report = verify(model, against, base=options["base"], threads=options["threads"], progress=progress)
    if options["as_json"]:
        print_json(_report_json(model, against, report))
        return
    if options["quiet"]:
        return
    if options["verbose"]:
        for item in report.comparisons:
            click.echo(printable(f"{item.name}  {_comparison_text(item)}"), err=True)
    line = f"{model}: ok | {report.tensors} tensors, {report.chunks} chunks, {size_text(report.nbytes)}"
    click.echo(printable(line), err=True)
    if against is not None:
        click.echo(printable(_against_text(report, against)), err=True)


def _against_text(report: VerifyReport, against: Path) -> str:
    comparisons = report.comparisons
    if report.identical == report.files:
        return f"{against}: {report.files} files come out byte by byte as they were"
    kept = sum(not item.quantized for item in comparisons)
    quantized = [item for item in comparisons if item.quantized]
    text = f"{against}: {kept} tensors equal bit for bit"
    if quantized:
        exact = sum(item.exact for item in quantized)
        text += f", {len(quantized)} quantized ({exact} with exactly the codes that rounding gives)"
        known = [item.snr_db for item in quantized if item.snr_db is not None and isfinite(item.snr_db)]
        text += f", lowest weight SNR {min(known):.1f} dB" if known else ""
    return text


def _comparison_text(item: Comparison) -> str:
    if not item.quantized:
        return "equal"
    return f"{'exact codes' if item.exact else 'other codes'}, SNR {item.snr_db:.2f} dB"


def _report_json(model: Path, against: Path | None, report: VerifyReport) -> dict[str, Any]:
    return {
        "schema": "qzc.verify/1",
        "path": str(model),
        "ok": True,
        "files": report.files,
        "tensors": report.tensors,
        "chunks": report.chunks,
        "nbytes": report.nbytes,
        "against": str(against) if against else None,
        "identical_files": report.identical,
        "comparisons": [
            {
                "name": item.name,
                "quantized": item.quantized,
                "exact": item.exact,
                "snr_db": item.snr_db if item.snr_db is not None and isfinite(item.snr_db) else None,
            }
            for item in report.comparisons
        ],
    }
