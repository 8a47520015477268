"""`qzc report`"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from .options import (
    PATH,
    examples,
    force_option,
    grid_shape_options,
    model_argument,
    quiet_option,
    selection_options,
    threads_option,
)
from .progress import progress_bar
from .render import printable
from .roofline import CACHES, tokens
from .selection import selection_from, warn_of_rule


@click.command(
    "report",
    short_help="Write an HTML report on the entropy of a model.",
    epilog=examples(
        "qzc report model.safetensors -o report.html",
        "qzc report llama/ -o report.html --bits 2-8 --context 32k",
        "qzc report model.safetensors -o report.html --png figures --qzc model.qzc",
        "qzc report llama/ -o report.html --pareto pareto.json",
    ),
)
@model_argument
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="The HTML file to write.")
@click.option("--png", type=PATH, metavar="DIR", help="Also write every figure as PNG; needs matplotlib (qzc[plot]).")
@click.option("--bits", default="2-8", show_default=True, metavar="LIST", help="Precisions: 4, or 2-8, or 2,3,4.")
@click.option(
    "--qzc", "packed", type=PATH, metavar="FILE", help="The model packed: its size is shown as that of a file."
)
@click.option(
    "--pareto",
    type=PATH,
    metavar="FILE",
    help="Measured quality against bits, .json or .csv (see docs/stats.md); shown in place of the weight SNR.",
)
@click.option("--context", type=tokens, default="0", metavar="N", help="Tokens in the cache, for the roofline: 32k.")
@click.option("--cache", type=click.Choice(CACHES), default="fp16", show_default=True, help="How the cache is stored.")
@click.option("--sample", type=click.IntRange(min=0), metavar="N", help="Weights of each tensor at most; 0 for all.")
@click.option("--no-gzip", is_flag=True, help="Leave out gzip, the slowest.")
@grid_shape_options
@selection_options
@threads_option
@force_option
@quiet_option
def command(model: Path, output: Path, png: Path | None, bits: str, packed: Path | None, **options: Any) -> None:
    """Measure MODEL (.safetensors, a file or a folder) and write what was found as one HTML file.

    Why weights look random to gzip, what trained weights have over random ones, why few bits are enough, what entropy coding
    adds on top, and what that means for tokens per second. The file needs no network and no scripts.
    """
    from ..formats.atomic import atomic_writer
    from ..reports.build import report_data
    from ..reports.html import report_html
    from ..reports.pareto import pareto_chart, read_pareto
    from ..reports.png import check_matplotlib, write_pngs
    from ..statistics.deep_stats import deep_stats, parse_precisions

    if png is not None:
        check_matplotlib()
    if output.exists() and not options["force"]:
        raise click.UsageError(f"{output} exists; -f overwrites it")
    precisions = parse_precisions(bits)
    selection = selection_from({**options, "bits": "4"})
    pareto = options["pareto"]
    quality = None if pareto is None else pareto_chart(read_pareto(pareto))
    with progress_bar("measuring", options["quiet"]) as progress:
        deep = deep_stats(
            model,
            precisions,
            selection,
            gzip=not options["no_gzip"],
            sample=options["sample"],
            threads=options["threads"],
            progress=progress,
        )
    for rule in selection.unused(tensor.name for tensor in deep.tensors):
        warn_of_rule(rule)
    bound = _roofline(model, deep.totals.at(4) or next(iter(deep.totals.precisions), None), options)
    size = None if packed is None else _size(packed)
    again = shlex.join(["qzc", "report", model.name, "-o", output.name, "--bits", bits, *_grid_words(options)])
    report = report_data(deep, bound, file_nbytes=size, quality=quality, command=printable(again))
    with atomic_writer(output, options["force"]) as stream:
        stream.write(report_html(report).encode("utf-8", "backslashreplace"))
    if png is not None:
        write_pngs(report, png)
    if not options["quiet"]:
        for text in report.findings:
            click.echo(printable(text), err=True)


def _grid_words(options: dict[str, Any]) -> list[str]:
    """What the user said of the grids, as it is written on the command line."""
    words = [f"--{key.replace('_', '-')}={options[key]}" for key in ("strategy", "group_size", "scale") if options[key]]
    if options["symmetric"] is not None:
        words.append("--symmetric" if options["symmetric"] else "--asymmetric")
    if options["scale_dtype"] != "float16":
        words.append(f"--scale-dtype={options['scale_dtype']}")
    return [*words, *(f"--{key}={glob}" for key in ("include", "exclude") for glob in options[key])]


def _roofline(model: Path, precision: Any, options: dict[str, Any]) -> Any:
    from ..analysis.devices import DEVICES
    from ..analysis.roofline import CACHE_DTYPES, roofline
    from ..codec.errors import InvalidArgumentError
    from ..roofline import model_facts, weight_formats

    try:
        facts = model_facts(model)
    except InvalidArgumentError:  # no floats, nothing to read
        return None
    return roofline(
        facts.parameters,
        weight_formats(precision.bits if precision else 4, precision.file.sizes.bits_per_weight if precision else None),
        DEVICES,
        facts.shape,
        context=int(options["context"]),
        cache=CACHE_DTYPES[options["cache"]],
    )


def _size(path: Path) -> int:
    from ..formats.checkpoint import open_checkpoint

    return sum(file.stat().st_size for file in open_checkpoint(path, "qzc").files)
