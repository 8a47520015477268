"""`qzc unpack`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import base_option, examples, force_option, json_option, model_argument, quiet_option, threads_option
from .progress import progress_bar
from .sizes import size_text


@click.command(
    "unpack",
    short_help="Decode a .qzc checkpoint to safetensors.",
    epilog=examples(
        "qzc unpack model.qzc -o restored.safetensors",
        "qzc unpack model.qzc --dtype bfloat16 -o model-bf16.safetensors",
        "qzc unpack llama-qzc/ --format packed -o llama-int4/",
    ),
)
@model_argument
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="File or folder to write; - for stdout.  [default: model.qzc -> model.safetensors, folder-qzc -> folder]",
)
@click.option(
    "--dtype",
    type=click.Choice(["original", "float32", "float16", "bfloat16", "float64"]),
    default="original",
    show_default=True,
    help="Of the tensors that were quantized, as floats.",
)
@click.option(
    "--format",
    type=click.Choice(["float", "packed"]),
    default="float",
    show_default=True,
    help="Dequantized floats, or packed integers with scale, zero point and shape.",
)
@base_option
@threads_option
@force_option
@json_option
@quiet_option
def command(model: Path, output: str | None, **options: Any) -> None:
    """Decode MODEL, a .qzc file or folder, to safetensors; if it was packed without loss, to the very files it came from."""
    from ..unpacker import unpack
    from .render import print_json, printable

    quiet, as_json = options["quiet"], options["as_json"]
    arguments = {key: options[key] for key in ("dtype", "format", "base", "threads")}
    if output == "-":
        from .stdout import check_stdout, to_stdout

        if as_json:
            raise click.UsageError("stdout can take the tensors or --json, not both: name a file with -o")
        check_stdout(model)
        with to_stdout() as path, progress_bar("unpacking", quiet) as progress:
            report = unpack(model, path, **arguments, progress=progress)
    else:
        with progress_bar("unpacking", quiet) as progress:
            report = unpack(model, output, **arguments, overwrite=options["force"], progress=progress)
    if as_json:
        print_json(
            {
                "schema": "qzc.unpack/1",
                "output": str(report.output),
                "tensors": report.tensors,
                "source_nbytes": report.source_nbytes,
                "nbytes": report.nbytes,
            }
        )
    elif not quiet:
        place = "stdout" if output == "-" else report.output
        line = f"{place}: {report.tensors} tensors | {size_text(report.source_nbytes)} -> {size_text(report.nbytes)}"
        click.echo(printable(line), err=True)
