"""`qzc cat`"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import base_option, examples, force_option, model_argument, threads_option
from .stdout import check_stdout

if TYPE_CHECKING:
    from numpy.typing import NDArray


@click.command(
    "cat",
    short_help="Write one tensor, or some of its rows, as .npy.",
    epilog=examples(
        "qzc cat model.qzc lm_head.weight --rows 0:128 -o rows.npy",
        "qzc cat model.qzc lm_head.weight --codes > codes.npy",
    ),
)
@model_argument
@click.argument("tensor")
@click.option("--rows", metavar="A:B", help="Only these rows (dimension 0); A or B may be left out.")
@click.option(
    "-o", "--output", metavar="PATH", default="-", show_default=True, help=".npy file to write; - for stdout."
)
@click.option(
    "--dtype",
    type=click.Choice(["original", "float32", "float16", "float64"]),
    default="original",
    show_default=True,
    help="Of the floats. bfloat16 tensors are written as float32: .npy does not know it.",
)
@click.option(
    "--codes",
    is_flag=True,
    help="The integers instead of floats: codes, one per byte; of a tensor packed at a rate its levels.",
)
@base_option
@threads_option
@force_option
def command(model: Path, tensor: str, rows: str | None, output: str, **options: Any) -> None:
    """Write one TENSOR of MODEL, a .qzc file or folder, or a range of its rows, as .npy."""
    selected = _row_slice(rows)
    if output == "-":
        check_stdout()
    import numpy as np

    from ..model import Model

    with Model(model, options["threads"], options["base"]) as opened:
        if options["codes"]:
            rated = opened.info(tensor).rate is not None
            array: NDArray[Any]
            array = opened.levels(tensor, selected).levels if rated else opened.packed(tensor, selected).codes
        else:
            dtype = None if options["dtype"] == "original" else np.dtype(options["dtype"])
            array = opened.dequantize(tensor, dtype, selected)
            if array.dtype.kind not in "biufc" or array.dtype.name not in np.sctypeDict:
                array = array.astype(np.float32)  # ml_dtypes: numpy would write raw bytes that nobody can read
        if output == "-":
            buffer = io.BytesIO()
            np.save(buffer, array)
            sys.stdout.buffer.write(buffer.getbuffer())
            sys.stdout.buffer.flush()
            return
        from ..formats.atomic import atomic_writer

        with atomic_writer(output, options["force"]) as stream:
            np.save(stream, array)


def _row_slice(text: str | None) -> slice | None:
    if text is None:
        return None
    match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", text)
    if not match:
        raise click.BadParameter(f"{text!r} is not a range such as 0:128", param_hint="--rows")
    return slice(*(int(part) if part else None for part in match.groups()))
