"""`qzc info`"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..codec.errors import InvalidArgumentError
from .grids import coding_text
from .options import examples, json_option, model_argument
from .sizes import bits_text, size_text

if TYPE_CHECKING:
    from .listing import Listed, ListedFile


@click.command(
    "info",
    short_help="Show what a file, or one tensor in it, is made of.",
    epilog=examples("qzc info model.qzc", "qzc info model.qzc lm_head.weight --json"),
)
@model_argument
@click.argument("tensor", required=False)
@json_option
def command(model: Path, tensor: str | None, as_json: bool) -> None:
    """Show what MODEL is made of, or what is known of one TENSOR in it."""
    from .listing import list_files
    from .render import print_json, printable

    files = list(list_files(model))
    if tensor is not None:
        found = [row for file in files for row in file.tensors if row.name == tensor]
        if not found:
            raise InvalidArgumentError(f"{model}: no tensor named {tensor!r}; `qzc ls` shows the names")
        if as_json:
            from .ls import tensor_json

            print_json({"schema": "qzc.tensor/1", **tensor_json(found[0])})
            return
        _show(printable, _tensor_lines(found[0]))
        return
    if as_json:
        print_json({"schema": "qzc.info/1", "path": str(model), "files": [_file_json(file) for file in files]})
        return
    for file in files:
        _show(printable, _file_lines(file))


def _show(printable: Any, lines: list[tuple[str, str]]) -> None:
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        click.echo(f"{key:<{width}}  {printable(value)}")


def _tensor_lines(tensor: Listed) -> list[tuple[str, str]]:
    lines = [
        ("tensor", tensor.name),
        ("file", tensor.file),
        ("shape", " x ".join(map(str, tensor.shape)) or "scalar"),
        ("dtype", tensor.dtype),
        ("parameters", f"{tensor.parameters:,}"),
        ("grid", coding_text(tensor.args, tensor.tied_to, tensor.coding, tensor.rate)),
    ]
    if tensor.args:
        lines.append(("scale dtype", tensor.args.scale_dtype))
    lines += [(part, f"{nbytes:,} bytes") for part, nbytes in tensor.stored.items()]
    if tensor.bits_per_weight is not None:
        lines.append(("in all", f"{tensor.nbytes:,} bytes, {bits_text(tensor.bits_per_weight)} per weight"))
    return lines


def _file_lines(file: ListedFile) -> list[tuple[str, str]]:
    coded = [t for t in file.tensors if t.is_quantized and not t.tied_to]
    lossless = [t for t in file.tensors if t.coding in ("lossless", "delta") and not t.tied_to]
    kept = [t for t in file.tensors if t.coding == "plain" and not t.tied_to]
    ties = [t for t in file.tensors if t.tied_to]
    version = f" {file.version}, written by {file.writer}" if file.version else ""
    lines = [
        ("file", file.path),
        ("format", f"{file.format}{version}"),
        ("size", f"{file.nbytes:,} bytes ({size_text(file.nbytes)})"),
        (
            "tensors",
            f"{len(file.tensors)}: {len(coded)} quantized, {len(lossless)} coded without loss, {len(kept)} as they are,"
            f" {len(ties)} tied",
        ),
        ("parameters", f"{sum(t.parameters for t in (*coded, *lossless, *kept)):,}"),
    ]
    if coded:
        grids = Counter(coding_text(t.args, None, t.coding, t.rate) for t in coded)
        lines += [("grid", f"{grid}: {count} tensors") for grid, count in sorted(grids.items())]
        parts: Counter[str] = Counter()
        for t in coded:
            parts.update(t.stored)
        lines += [(part, f"{nbytes:,} bytes") for part, nbytes in parts.items()]
    if lossless:
        lines.append(("without loss", f"{sum(t.nbytes for t in lossless):,} bytes"))
    if kept and (coded or lossless):
        lines.append(("as they are", f"{sum(t.nbytes for t in kept):,} bytes"))
    lines += [(part, f"{nbytes:,} bytes") for part, nbytes in file.overhead.items()]
    if coded:
        weights = sum(t.parameters for t in coded)
        side = sum(file.overhead.get(part, 0) for part in ("tables", "vectors", "index"))
        coded_bits = 8 * (sum(t.nbytes for t in coded) + side) / weights if weights else 0.0
        lines.append(("bits per weight", f"{coded_bits:.3f} for the quantized tensors, all side information counted"))
    lines += [(f"metadata {key}", value) for key, value in sorted(file.metadata.items())]
    return lines


def _file_json(file: ListedFile) -> dict[str, Any]:
    fields = asdict(file)
    del fields["tensors"]
    coded = [t for t in file.tensors if t.is_quantized and not t.tied_to]
    return {
        **fields,
        "tensors": len(file.tensors),
        "quantized": len(coded),
        "lossless": sum(t.coding in ("lossless", "delta") and not t.tied_to for t in file.tensors),
        "tied": sum(t.tied_to is not None for t in file.tensors),
        "parameters": sum(t.parameters for t in file.tensors if not t.tied_to),
        "coded_nbytes": sum(t.nbytes for t in coded),
    }
