"""`qzc ls`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .grids import coding_text
from .options import examples, json_option, model_argument

if TYPE_CHECKING:
    from .listing import Listed


@click.command(
    "ls",
    short_help="List the tensors, from the header alone.",
    epilog=examples("qzc ls model.qzc", "qzc ls model.qzc --json | jq '.tensors[].name'"),
)
@model_argument
@json_option
def command(model: Path, as_json: bool) -> None:
    """List the tensors of MODEL, a .qzc or .safetensors file or folder, from the header alone."""
    from .listing import list_files
    from .render import Column, print_json, print_table

    rows = [tensor for file in list_files(model) for tensor in file.tensors]
    if as_json:
        print_json({"schema": "qzc.ls/1", "path": str(model), "tensors": [tensor_json(row) for row in rows]})
        return
    columns: list[Column[Listed]] = [
        Column("tensor", "tensor", lambda t: t.name),
        Column("shape", "shape", lambda t: t.shape, rank=1),
        Column("dtype", "dtype", lambda t: t.dtype, rank=2),
        Column("grid", "grid", lambda t: coding_text(t.args, t.tied_to, t.coding, t.rate), rank=3),
        Column("nbytes", "bytes", lambda t: t.nbytes),
        Column("bits_per_weight", "bits/weight", lambda t: t.bits_per_weight),
    ]
    print_table(columns, rows)


def tensor_json(tensor: Listed) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "file": tensor.file,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "grid": asdict(tensor.args) if tensor.args else None,
        "rate": None if tensor.rate is None else tensor.rate.to_json(),
        "coding": tensor.coding,
        "tied_to": tensor.tied_to,
        "stored": tensor.stored,
        "nbytes": tensor.nbytes,
    }
