"""`qzc bench`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import examples, grid_options, json_option, model_argument, quiet_option, selection_options
from .render import Cell, Column, print_json, print_table
from .selection import refuse_selection, selection_from

if TYPE_CHECKING:
    from ..benchmark import Bench, CoderSpeed


def _giga(direction: str, which: str) -> Any:
    def cell(row: CoderSpeed) -> Cell:
        speed = row.codes_per_s(direction, which)
        return None if speed is None else speed / 1e9

    return cell


COLUMNS: list[Column[Any]] = [
    Column("coder", "coder", lambda row: row.coder),
    Column("library", "library", lambda row: row.library, rank=4),
    Column("bits_per_code", "bits/code", lambda row: row.bits_per_code, digits=4),
    Column("encode_gcodes_per_s", "encode G/s", _giga("encode", "median"), digits=3),
    Column("encode_gcodes_per_s_best", "best", _giga("encode", "best"), digits=3, rank=3),
    Column("decode_gcodes_per_s", "decode G/s", _giga("decode", "median"), digits=3),
    Column("decode_gcodes_per_s_best", "best", _giga("decode", "best"), digits=3, rank=2),
    Column("cycles_per_code", "cycles/code", lambda row: row.cycles_per_code, rank=1),
]


@click.command(
    "bench",
    short_help="Measure the coders, beside zstd, gzip and others.",
    epilog=examples(
        "qzc bench model.safetensors --bits 4 --group-size 128 --threads 1 --json",
        "qzc bench model.qzc",
    ),
)
@model_argument
@grid_options
@selection_options
@click.option(
    "-T",
    "--threads",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Threads, each with chunks of its own; 0 means all CPUs.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=10.0,
    show_default=True,
    help="How long to measure.",
)
@json_option
@quiet_option
@click.pass_context
def command(
    context: click.Context, /, model: Path, threads: int, seconds: float, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Measure the coders on the codes of MODEL, beside zstd, gzip and what else is installed.

    Takes a sample of the chunks, evenly spread. Every coder codes and decodes it, the results are compared, and then all take
    turns. Speeds are medians, in 10^9 codes per second; bits per code count payload, tables and chunk index.
    """
    from ..benchmark import bench
    from ..formats.checkpoint import is_qzc, open_checkpoint

    if any(is_qzc(file) for file in open_checkpoint(model).files):
        refuse_selection(context, "the codes of a .qzc file are what they are")
    selection = selection_from(options)
    if not quiet and sys.stderr.isatty():
        click.echo(f"measuring for {seconds:g} seconds, and some for compiling", err=True)
    measured = bench(model, selection, threads=threads, seconds=seconds)
    if as_json:
        print_json(measured.to_json())
        return
    print_table(COLUMNS, measured.rows, notes=[] if quiet else notes(measured))


def notes(measured: Bench) -> list[str]:
    """What must be known to read the table."""
    machine = measured.machine
    part = measured.sampled_codes / measured.total_codes
    sample = (
        f"{part:.0%} of the model's {measured.total_codes:,} codes"
        if part < 1
        else f"all {measured.total_codes:,} codes"
    )
    threads = "1 thread" if measured.threads == 1 else f"{measured.threads} threads"
    lines = [
        f"Measured on {sample} in {measured.sampled_chunks} chunks; their entropy is {measured.entropy_bits:.4f} bits per code.",
        f"{threads}, {machine['cpu']} at {machine['clock_ghz']:.2f} GHz, kernels {machine['ans_kernels']}. "
        "Compare figures of one run only.",
    ]
    failed = [row.coder for row in measured.rows if not row.verified]
    if failed:
        lines.append(f"Did not give back what they were given: {', '.join(failed)}.")
    if measured.missing:
        lines.append(f"Not installed: {', '.join(measured.missing)}; `pip install 'qzc[bench]'` brings them.")
    return lines
