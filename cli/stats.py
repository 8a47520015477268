"""`qzc stats`"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    examples,
    grid_shape_options,
    model_argument,
    quiet_option,
    selection_options,
    threads_option,
)
from .progress import progress_bar
from .render import Column, print_json, sort_rows
from .selection import refuse_selection, selection_from, selection_given, warn_of_rule
from .stats_columns import BITS, TENSORS, Line, line_of, total_of
from .tables import Table, chosen_format, format_options, print_tables

if TYPE_CHECKING:
    from ..analysis.tensor_stats import TensorStats
    from ..statistics.deep_figures import DeepStats
    from ..statistics.measure import ModelStats

SORT_KEYS = list(dict.fromkeys(column.key for columns in TENSORS.values() for column in columns))
SECTIONS = ("precisions", "tensors", "floats", "entropies", "coders", "control", "fits", "grids")
_LIST = re.compile(r"[1-8](-[1-8])?(,[1-8](-[1-8])?)*")


@click.command(
    "stats",
    short_help="Report what entropy coding gains, tensor by tensor.",
    epilog=examples(
        "qzc stats model.safetensors --bits 4",
        "qzc stats model.safetensors --bits 2-8 --no-gzip",
        "qzc stats model.safetensors --bits 2-8 --sections all --md",
        "qzc stats model.qzc --top 10",
        "qzc stats llama/ --bits 3,4 --sample 1000000 --json",
    ),
)
@model_argument
@click.option(
    "--bits",
    metavar="N|LIST|RULES",
    default="4",
    show_default=True,
    help="Bits of the integer grid, 1 to 8; or several side by side: 2-8, or 2,3,4; or rules by tensor name, the first "
    "that matches counts: 'lm_head=8,*.mlp.*=3,*=4'. 'keep' stores a tensor as it is.",
)
@grid_shape_options
@selection_options
@click.option("--lossless", is_flag=True, help="Quantize nothing: every tensor is coded bit by bit.")
@click.option(
    "--sections",
    metavar="LIST",
    help=f"What to report, by commas: {', '.join(SECTIONS)}; or all.  [default: tensors; precisions for several]",
)
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Only the first N tensors; totals are of all.")
@click.option(
    "--sort",
    type=click.Choice(SORT_KEYS),
    metavar="COLUMN",
    help="Sort tensors by a column, named as in a pipe; numbers descending.  [default: tensor; with --top stored_nbytes]",
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    metavar="N",
    help="Measure N weights of each tensor at most, and estimate; 0 for all.  [default: all; of several precisions, "
    "floats .. of a model above 268 million weights 1,048,576]",
)
@click.option("--no-gzip", is_flag=True, help="Leave out gzip, the slowest.")
@threads_option
@format_options
@quiet_option
def command(
    model: Path, top: int | None, sort: str | None, sections: str | None, lossless: bool, no_gzip: bool, **options: Any
) -> None:
    """Report what entropy coding gains on MODEL, tensor by tensor.

    For .safetensors: gzip and zstd on the original bytes, then what the integer codes of a grid take in bits per code: as
    fixed numbers (log2 L), by their entropy (H0), Huffman and ANS as actually coded, zstd on the packed codes; scales, the
    total in bits per weight, and the weight SNR that all this costs. With several --bits one row per precision. For .qzc:
    what the file really holds. Where nothing is quantized: where the information sits, its bound, and what is reached.
    """
    from ..formats.checkpoint import is_qzc, open_checkpoint

    form, context = chosen_format(options), click.get_current_context()
    quiet, threads, sample = options.pop("quiet"), options.pop("threads"), options.pop("sample")
    kind = "qzc" if is_qzc(open_checkpoint(model).files[0]) else "safetensors"
    several = _several(options)
    chosen = _sections(sections, bool(several))
    if kind == "qzc":
        why = f"{model} is packed, and its grids are what they are"
        refuse_selection(context, why)
        if lossless or sample is not None or chosen != ["tensors"]:
            raise click.UsageError(f"--lossless, --sample and --sections have no meaning here: {why}")
    if sort:
        _check_sort(model, [c for one in (kind, f"lossless {kind}") for c in _columns(one, no_gzip)], sort)
    given = selection_given(context)
    if given and lossless:
        raise click.UsageError("--lossless quantizes nothing: it takes no options of grids")
    selection = selection_from(options)
    deep: DeepStats | None = None
    with progress_bar("measuring", quiet) as progress:
        common: dict[str, Any] = dict(lossless=lossless, gzip=not no_gzip, threads=threads, progress=progress)
        if not several and chosen == ["tensors"] and sample is None:
            from ..statistics.measure import stats

            measured: tuple[ModelStats, ...] = (stats(model, selection if given else None, **common),)
        else:
            from ..statistics.deep_stats import PARTS, deep_stats

            parts = [part for part in PARTS if part in chosen]
            deep = deep_stats(model, several, selection if given else None, parts=parts, sample=sample, **common)
            measured = deep.precisions
    _warn_of_rules(measured[0], selection if given and kind != "qzc" else None)
    tables, names = _tables(model, measured, deep, chosen, no_gzip, sort, top)
    notes = summary(measured, deep)
    if form == "json":
        document = measured[0].to_json() if deep is None else deep.to_json()
        by_name = {tensor["name"]: tensor for tensor in document["tensors"]}
        document["tensors"] = [by_name[name] for name in names]
        print_json({**document, "summary": notes})
        return
    print_tables(tables, form, [] if quiet else notes)


def _several(options: dict[str, Any]) -> tuple[int, ...] | None:
    """Takes a list of precisions out of --bits, if it is one."""
    from ..statistics.deep_stats import parse_precisions

    text = options["bits"].replace(" ", "")
    if len(text) == 1 or not _LIST.fullmatch(text):
        return None
    options["bits"] = "4"
    return parse_precisions(text)


def _sections(text: str | None, several: bool) -> list[str]:
    if text is None:
        return ["precisions" if several else "tensors"]
    given = [part.strip() for part in text.split(",")]
    if given == ["all"]:
        return list(SECTIONS)
    unknown = [part for part in given if part not in SECTIONS]
    if unknown:
        raise click.UsageError(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}, and all")
    return [section for section in SECTIONS if section in given]


def _warn_of_rules(measured: ModelStats, selection: Any) -> None:
    for rule in selection.unused(tensor.name for tensor in measured.tensors) if selection else ():
        warn_of_rule(rule)


# ---------------------------------------------------------------------------------------------- tables
def _tables(
    model: Path,
    measured: tuple[ModelStats, ...],
    deep: DeepStats | None,
    chosen: list[str],
    no_gzip: bool,
    sort: str | None,
    top: int | None,
) -> tuple[list[Table[Any]], list[str]]:
    """The tables, and the names of the tensors to show, in order."""
    first = measured[0]
    lossless = all(one.totals.coded_tensors == 0 and one.totals.sizes.lossless for one in measured)
    columns = _columns(f"lossless {first.kind}" if lossless else first.kind, no_gzip)
    key = sort or ("stored_nbytes" if top else "tensor")
    _check_sort(model, columns, key)
    names = [tensor.name for tensor in _ordered(first.tensors, columns, key)[:top]]
    tables: list[Table[Any]] = []
    for name in chosen:
        if name == "tensors":
            tables.append(_tensors(measured, columns, names))
        elif deep is not None:
            from .stats_sections import section

            tables.append(section(name, deep, names))
    return tables, names


def _tensors(measured: tuple[ModelStats, ...], columns: list[Column[Line]], names: list[str]) -> Table[Line]:
    by_name = [{tensor.name: tensor for tensor in one.tensors} for one in measured]
    lines = [line_of(each[name]) for name in names for each in by_name]
    if len(measured) == 1:
        return Table("tensors", "Tensors", columns, lines, (total_of(measured[0]),))
    return Table("tensors", "Tensors", [columns[0], BITS, *columns[1:]], lines, [total_of(one) for one in measured])


def _columns(kind: str, no_gzip: bool) -> list[Column[Line]]:
    return [column for column in TENSORS[kind] if not (no_gzip and column.key == "gzip6_ratio")]


def _check_sort(model: Path, columns: list[Column[Line]], sort: str) -> None:
    """Refuse a column that this report does not have, if possible before minutes are spent on it."""
    if all(column.key != sort for column in columns):
        known = ", ".join(dict.fromkeys(column.key for column in columns))
        raise click.UsageError(f"the report on {model} has no column {sort!r}; choose from {known}")


def _ordered(tensors: tuple[TensorStats, ...], columns: list[Column[Line]], sort: str) -> list[TensorStats]:
    column = next(column for column in columns if column.key == sort)
    by_tensor: Column[TensorStats] = Column(sort, "", lambda tensor: column.cell(line_of(tensor)))
    return sort_rows(tensors, by_tensor)


def summary(measured: tuple[ModelStats, ...], deep: DeepStats | None = None) -> list[str]:
    """What the tables say, in a few sentences, with what must be known to read them right."""
    from .stats_words import several_words, single_words

    return single_words(measured[0], deep) if len(measured) == 1 else several_words(measured, deep)
