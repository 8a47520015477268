"""`qzc pack`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .grids import coding_text
from .options import (
    PATH,
    coder_option,
    examples,
    force_option,
    grid_options,
    json_option,
    model_argument,
    quiet_option,
    rate_options,
    selection_options,
    threads_option,
    verbose_option,
)
from .progress import progress_bar
from .selection import GRID_KEYS, selection_from, selection_given, warn_of_rule
from .sizes import bits_text, size_from, size_text

if TYPE_CHECKING:
    from ..formats.writer import Layout
    from ..packer import PackReport
    from ..planner import FilePlan, PlannedTensor
    from ..rating import RateOptions

SHOWN_SKIPPED = 4
COARSE_BITS = 6  # grids of more bits per tensor lose little


@click.command(
    "pack",
    short_help="Quantize and entropy-code a checkpoint.",
    epilog=examples(
        "qzc pack model.safetensors --bits 4 --coder ans",
        "qzc pack llama/ -o llama-qzc/ --bits 'lm_head=8,*.mlp.*=3,*=4'",
        "qzc pack model.safetensors --bits 3 --dry-run",
        "qzc pack model.safetensors --target-bpw 3.0",
        "qzc pack llama/ --target-size 4GB --stats stats.safetensors --best",
        "qzc pack llama-gptq/",
        "qzc pack finetuned/ --lossless --base original/",
    ),
)
@model_argument
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="File or folder to write; - for stdout.  [default: model.safetensors -> model.qzc, folder -> folder-qzc]",
)
@grid_options
@selection_options
@rate_options
@click.option(
    "--lossless",
    is_flag=True,
    help="Quantize nothing: `unpack` gives the very same files back. The default for checkpoints that are quantized already.",
)
@click.option(
    "--base", type=PATH, metavar="MODEL", help="With --lossless: code only what differs from this checkpoint."
)
@coder_option
@click.option(
    "--chunk-codes", type=click.IntRange(1 << 10, 1 << 23), metavar="N", help="Codes per chunk.  [default: 262144]"
)
@click.option(
    "--nonfinite",
    type=click.Choice(["error", "keep"]),
    default="error",
    show_default=True,
    help="What to do with tensors that have NaN or Inf: stop, or store them as they are.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, with estimated sizes; write nothing.")
@click.option("--no-verify", is_flag=True, help="Do not read the result again to compare.")
@threads_option
@force_option
@json_option
@quiet_option
@verbose_option
def command(model: Path, output: str | None, **options: Any) -> None:
    """Quantize and entropy-code MODEL, a .safetensors or .gguf file or a folder with shards.

    A checkpoint that is quantized already (GPTQ, AWQ, compressed-tensors, bitsandbytes, MLX, GGUF) is coded without loss.
    Any other, without grid options 4-bit codes in groups of 128 with clipped scales: what GPTQ, AWQ and llama.cpp users call a good
    4-bit model. Norms, biases, 1-D and small tensors are stored as they are.
    """
    from ..codec.chunks import CHUNK_CODES
    from ..packer import PackOptions, pack, plan

    as_json, quiet = options["as_json"], options["quiet"]
    given = selection_given(click.get_current_context())
    if options["lossless"] and given:
        raise click.UsageError(
            "--lossless quantizes nothing: leave out the options of the grid, --include and --exclude"
        )
    rate = _rate_from(options, click.get_current_context())
    selection = selection_from(options)
    method = options["method"]
    if rate is None and method not in (None, "rtn", "gptq"):
        raise click.UsageError(f"--method {method} quantizes at a rate: give --target-bpw or --target-size")
    pack_options = PackOptions(
        selection=selection if given or method == "gptq" else None,
        lossless=options["lossless"],
        rate=rate,
        method="gptq" if method == "gptq" else "rtn",
        stats=options["stats"],
        base=options["base"],
        coder=options["coder"],
        chunk_codes=options["chunk_codes"] or CHUNK_CODES,
        nonfinite=options["nonfinite"],
        verify=not options["no_verify"],
        threads=options["threads"],
        overwrite=options["force"],
    )
    if options["dry_run"]:
        files = plan(model, pack_options)
        if pack_options.selection:
            for rule in pack_options.selection.unused(t.name for file in files for t in file.tensors):
                warn_of_rule(rule)
        _show_plan(files, as_json)
        return
    if output == "-":
        from .stdout import check_stdout, to_stdout

        if as_json:
            raise click.UsageError("stdout can take the packed model or --json, not both: name a file with -o")
        check_stdout(model)
        with to_stdout() as path, progress_bar("packing", quiet) as progress:
            report = pack(model, path, pack_options, progress)
        _show_report(report, "stdout", as_json, quiet, options["verbose"])
        return
    with progress_bar("packing", quiet) as progress:
        report = pack(model, output, pack_options, progress)
    _show_report(report, str(report.output), as_json, quiet, options["verbose"])


def _rate_from(options: dict[str, Any], context: click.Context) -> RateOptions | None:
    """What the options say of a rate; None if there is none to reach."""
    from ..rating import BEST_STATES, RateOptions

    bits, size = options["target_bpw"], options["target_size"]
    if bits is None and size is None:
        for key in ("trellis", "best", "uniform_rate"):
            if options[key]:
                raise click.UsageError(f"--{key.replace('_', '-')} needs a rate: give --target-bpw or --target-size")
        return None
    if bits is not None and size is not None:
        raise click.UsageError("give either --target-bpw or --target-size")
    if options["lossless"]:
        raise click.UsageError("--lossless quantizes nothing: there is no rate to choose")
    if options["method"] in ("rtn", "gptq"):
        raise click.UsageError(
            f"--method {options['method']} is for grids: leave out the rate, or choose another method"
        )
    for key in ("bits", *GRID_KEYS, "coder"):
        if context.get_parameter_source(key) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{key.replace('_', '-')} has no meaning at a rate")
    if options["best"] and (options["method"] or options["trellis"]):
        raise click.UsageError("--best chooses method and trellis itself")
    try:
        nbytes = None if size is None else size_from(size)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--target-size") from None
    states = BEST_STATES if options["best"] else int(options["trellis"] or 0)
    return RateOptions(bits, nbytes, options["count"], options["method"], states, options["uniform_rate"])


def _show_plan(files: list[FilePlan], as_json: bool) -> None:
    from .render import Column, print_json, print_table

    rows = [tensor for file in files for tensor in file.tensors]
    before = sum(file.source.stat().st_size for file in files)
    after = sum(t.estimated_nbytes or 0 for t in rows) + sum(file.estimated_overhead or 0 for file in files)
    if as_json:
        tensors = [{**_tensor_json(t), "estimated_nbytes": t.estimated_nbytes} for t in rows]
        print_json({"schema": "qzc.plan/1", "source_nbytes": before, "estimated_nbytes": after, "tensors": tensors})
        return
    columns: list[Column[PlannedTensor]] = [
        Column("tensor", "tensor", lambda t: t.name),
        Column("shape", "shape", lambda t: t.shape, rank=3),
        Column("dtype", "dtype", lambda t: t.dtype, rank=4),
        Column("grid", "grid", lambda t: coding_text(t.args, t.tied_to, _coding(t))),
        Column("reason", "why", lambda t: t.reason, rank=5),
        Column("nbytes", "bytes", lambda t: t.nbytes, rank=1),
        Column("estimated_nbytes", "estimated", lambda t: t.estimated_nbytes),
    ]
    note = (
        f"{size_text(before)} -> about {size_text(after)} ({before / after:.2f}x) with the header; nothing was written"
    )
    print_table(columns, rows, notes=[note])


def _tensor_json(tensor: PlannedTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "nbytes": tensor.nbytes,
        "grid": asdict(tensor.args) if tensor.is_quantized and tensor.args else None,
        "coding": _coding(tensor),
        "tied_to": tensor.tied_to,
        "reason": tensor.reason,
    }


def _coding(tensor: PlannedTensor) -> str:
    return "rate" if tensor.rated else "quantized" if tensor.args else "lossless" if tensor.is_lossless else "plain"


def _show_report(report: PackReport, output: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    from .render import print_json, printable

    for rule in report.unused_rules:
        warn_of_rule(rule)
    if as_json:
        print_json(_report_json(report))
        return
    if quiet:
        return
    tensors = [tensor for file in report.files for tensor in file.plan.tensors]
    if verbose:
        for t in tensors:
            click.echo(printable(f"{t.name}  {coding_text(t.args, t.tied_to, _coding(t))} ({t.reason})"), err=True)
    if report.skipped:
        names = ", ".join(path.name for path in report.skipped[:SHOWN_SKIPPED])
        more = len(report.skipped) - SHOWN_SKIPPED
        names += f" and {more} more" if more > 0 else ""
        click.echo(printable(f"not copied (weights in other formats or variants): {names}"), err=True)
    if report.without_statistics:
        names = ", ".join(report.without_statistics[:SHOWN_SKIPPED])
        more = len(report.without_statistics) - SHOWN_SKIPPED
        names += f" and {more} more" if more > 0 else ""
        click.echo(printable(f"qzc: warning: no statistics for {names}: rounded to nearest"), err=True)
    coarse = [t for t in report.quantized if t.args and t.args.strategy == "tensor" and t.args.scale_method == "absmax"]
    if any(t.args and t.args.num_bits <= COARSE_BITS for t in coarse):
        click.echo(
            "qzc: warning: one scale per tensor from its largest weight leaves most levels unused: the file is small because "
            "precision is lost, not because it was coded well; compare --target-bpw, which needs fewer bits for less error",
            err=True,
        )
    quantized, lossless = len(report.quantized), len(report.lossless)
    tied = sum(t.tied_to is not None for t in tensors)
    if report.found:
        click.echo(printable(f"found {report.found}"), err=True)
    line = f"{output}: {quantized} tensors quantized, {lossless} lossless, {len(tensors) - quantized - lossless - tied} kept"
    line += f", {tied} tied" if tied else ""
    line += f" | {size_text(report.source_nbytes)} -> {size_text(report.nbytes)} ({report.source_nbytes / report.nbytes:.2f}x)"
    if report.rated:
        parts = ", ".join(f"{what} {bits:.3f}" for what, bits in report.rate_bits.items())
        line += f" | {report.rate_method} at {bits_text(report.bits_per_weight)} per quantized weight ({parts})"
    elif quantized:
        line += f" | {bits_text(report.bits_per_weight)} per quantized weight"
    line += f" | {'verified' if report.verified else 'not verified'} | {report.seconds:.1f} s"
    click.echo(printable(line), err=True)


def _report_json(report: PackReport) -> dict[str, Any]:
    files = [
        {
            "output": str(file.output),
            "source": str(file.plan.source),
            "source_nbytes": file.source_nbytes,
            "nbytes": file.layout.nbytes,
            "header_nbytes": file.layout.header,
            "tables_nbytes": file.layout.tables + file.layout.classes,
            "vectors_nbytes": file.layout.vectors,
            "checksums_nbytes": file.layout.checksums,
            "source_nbytes_kept": file.layout.source,
            "tensors": [{**_tensor_json(t), "stored": _stored(t, file.layout)} for t in file.plan.tensors],
        }
        for file in report.files
    ]
    return {
        "schema": "qzc.pack/1",
        "output": str(report.output),
        "source_nbytes": report.source_nbytes,
        "nbytes": report.nbytes,
        "bits_per_weight": report.bits_per_weight if report.quantized else None,
        "rate": None if not report.rated else {"method": report.rate_method, "bits": report.rate_bits},
        "without_statistics": list(report.without_statistics),
        "found": report.found,
        "verified": report.verified,
        "seconds": round(report.seconds, 3),
        "unused_rules": list(report.unused_rules),
        "skipped": [str(path) for path in report.skipped],
        "files": files,
    }


def _stored(tensor: PlannedTensor, layout: Layout) -> dict[str, int]:
    """Bytes by part, as `qzc ls --json` shows them."""
    if tensor.tied_to:
        return {}
    return layout.coded.get(tensor.name) or {"data": layout.uncoded[tensor.name]}
