"""`qzc stats`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .grids import grid_text
from .options import (
    examples,
    grid_options,
    json_option,
    model_argument,
    quiet_option,
    selection_options,
    threads_option,
)
from .progress import progress_bar
from .render import Cell, Column, print_json, print_table, sort_rows
from .selection import refuse_selection, selection_from, warn_of_rule
from .sizes import size_text

if TYPE_CHECKING:
    from ..analysis.tensor_stats import CodeStats, Sizes, TensorStats, Totals
    from ..measure import ModelStats

POOR_SNR_DB = 10.0  # every tenth of the weights' energy is then noise: even 3 bits per row do better


@dataclass(frozen=True)
class Line:
    """A row of the table: a tensor, or the total."""

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    grid: str | None
    sizes: Sizes

    @property
    def codes(self) -> CodeStats | None:
        return self.sizes.codes


def _entropy(line: Line) -> Cell:
    return line.codes.per_code(line.codes.entropy_bits) if line.codes else None


def _level_bits(line: Line) -> Cell:
    return line.codes.per_code(line.codes.level_bits) if line.codes else None


def _side(line: Line) -> Cell:
    return line.codes.per_code(8 * line.codes.side_nbytes) if line.codes else None


def _coded(way: str, key: str, title: str) -> Column[Line]:
    return Column(key, title, lambda line: line.codes.coded_bits(way) if line.codes else None, digits=3)


TENSOR: list[Column[Line]] = [
    Column("tensor", "tensor", lambda line: line.name),
    Column("shape", "shape", lambda line: line.shape, rank=6),
    Column("dtype", "dtype", lambda line: line.dtype, rank=7),
    Column("parameters", "parameters", lambda line: line.sizes.parameters, rank=4),
    Column("nbytes", "bytes", lambda line: line.sizes.nbytes, rank=8),
]
GENERAL: list[Column[Line]] = [
    Column("gzip6_ratio", "gzip -6", lambda line: line.sizes.gzip_ratio, digits=3, rank=2),
    Column("zstd3_ratio", "zstd -3", lambda line: line.sizes.zstd_ratio, digits=3, rank=2),
]
GRID: list[Column[Line]] = [
    Column("grid", "grid", lambda line: line.grid, rank=9),
    Column("levels", "levels", lambda line: line.codes.levels if line.codes else None, rank=5),
    Column("log2_levels", "log2 L", _level_bits, rank=3),
    Column("entropy", "H0", _entropy, digits=3),
]
WOULD_TAKE = [_coded("huffman", "huffman", "huffman"), _coded("ans", "ans", "ans")]
IN_FILE: list[Column[Line]] = [
    Column("coder", "coder", lambda line: "+".join(line.codes.final.coders) if line.codes else None, rank=1),
    _coded("file", "coded", "coded"),
]
COST: list[Column[Line]] = [
    Column(
        "packed_zstd1", "zstd -1 packed", lambda line: line.codes.packed_zstd_bits if line.codes else None, digits=3
    ),
    Column("side", "scales", _side, digits=3, rank=1),
    Column("bits_per_weight", "total", lambda line: line.sizes.bits_per_weight, digits=3),
    Column("stored_nbytes", "stored", lambda line: line.sizes.stored_nbytes, rank=8),
]
QUALITY: list[Column[Line]] = [
    Column("snr_db", "SNR dB", lambda line: line.codes.snr_db if line.codes else None, digits=1)
]
COLUMNS = {
    "safetensors": [*TENSOR, *GENERAL, *GRID, *WOULD_TAKE, *COST, *QUALITY],
    "qzc": [*TENSOR, *GRID, *IN_FILE, *COST],
}
SORT_KEYS = list(dict.fromkeys(column.key for columns in COLUMNS.values() for column in columns))


@click.command(
    "stats",
    short_help="Report what entropy coding gains, tensor by tensor.",
    epilog=examples(
        "qzc stats model.safetensors --bits 4",
        "qzc stats model.qzc --top 10",
        "qzc stats llama/ --bits 3 --no-gzip --json",
    ),
)
@model_argument
@grid_options
@selection_options
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Only the first N tensors; totals are of all.")
@click.option(
    "--sort",
    type=click.Choice(SORT_KEYS),
    metavar="COLUMN",
    help="Sort by a column, named as in a pipe; numbers descending.  [default: tensor; with --top stored_nbytes]",
)
@click.option("--no-gzip", is_flag=True, help="Leave out the gzip column, the slowest.")
@threads_option
@json_option
@quiet_option
def command(model: Path, top: int | None, sort: str | None, no_gzip: bool, as_json: bool, **options: Any) -> None:
    """Report what entropy coding gains on MODEL, tensor by tensor.

    For .safetensors: gzip and zstd on the original bytes, then what the integer codes of a grid take in bits per code: as
    fixed numbers (log2 L), by their entropy (H0), Huffman and ANS as actually coded, zstd on the packed codes; scales, the
    total in bits per weight, and the weight SNR that all this costs. For .qzc: what the file really holds.
    """
    from ..formats.checkpoint import is_qzc, open_checkpoint
    from ..measure import stats

    kind = "qzc" if is_qzc(open_checkpoint(model).files[0]) else "safetensors"
    if kind == "qzc":
        refuse_selection(click.get_current_context(), f"{model} is packed, and its grids are what they are")
    if sort:
        _check_sort(model, _columns(kind, no_gzip), sort)
    quiet, threads = options.pop("quiet"), options.pop("threads")
    selection = selection_from(options)
    with progress_bar("measuring", quiet) as progress:
        measured = stats(model, selection, gzip=not no_gzip, threads=threads, progress=progress)
    columns = _columns(measured.kind, no_gzip)
    tensors = _chosen(measured.tensors, columns, sort or ("stored_nbytes" if top else "tensor"), top)
    notes = summary(measured)
    if measured.kind == "safetensors":
        for rule in selection.unused(tensor.name for tensor in measured.tensors):
            warn_of_rule(rule)
    if as_json:
        document = measured.to_json()
        document["tensors"] = [tensor.to_json() for tensor in tensors]
        print_json({**document, "summary": notes})
        return
    total = Line("TOTAL", None, None, None, measured.totals.sizes)
    print_table(columns, [_line(tensor) for tensor in tensors], total, [] if quiet else notes)


def _columns(kind: str, no_gzip: bool) -> list[Column[Line]]:
    return [column for column in COLUMNS[kind] if not (no_gzip and column.key == "gzip6_ratio")]


def _check_sort(model: Path, columns: list[Column[Line]], sort: str) -> None:
    """Refuse a column that this report does not have before minutes are spent on it."""
    if all(column.key != sort for column in columns):
        known = ", ".join(column.key for column in columns)
        raise click.UsageError(f"the report on {model} has no column {sort!r}; choose from {known}")


def _chosen(
    tensors: tuple[TensorStats, ...], columns: list[Column[Line]], sort: str, top: int | None
) -> list[TensorStats]:
    column = next(column for column in columns if column.key == sort)
    by_tensor: Column[TensorStats] = Column(sort, "", lambda tensor: column.cell(_line(tensor)))
    return sort_rows(tensors, by_tensor)[:top]


def _line(tensor: TensorStats) -> Line:
    codes = tensor.sizes.codes
    grid = grid_text(codes.args if codes else None, tensor.tied_to)
    return Line(tensor.name, tensor.dtype, tensor.shape, grid, tensor.sizes)


def summary(measured: ModelStats) -> list[str]:
    """What the table says, in a few sentences, with what must be known to read it right."""
    totals = measured.totals
    notes = [_codes_sentence(totals), _size_sentence(measured)]
    broken = [tensor.name for tensor in measured.tensors if tensor.reason == "has NaN or Inf"]
    if broken:
        notes.append(f"Not quantized, because of NaN or Inf: {', '.join(broken)}.")
    notes += _quality_warnings(measured)
    return [note for note in notes if note]


def _codes_sentence(totals: Totals) -> str:
    codes = totals.sizes.codes
    if codes is None or not codes.count:
        return "No tensor is quantized."
    of = f"of {codes.level_bits / codes.count:.3g} bits (H0 {codes.entropy_bits / codes.count:.3f})"
    way = "file" if "file" in codes.coded else "ans"
    taken = f"{codes.coded_bits(way):.3f} {of}"
    text = f"Codes take {taken} with {'+'.join(codes.final.coders)}" if way == "file" else f"ANS codes take {taken}"
    if "huffman" in codes.coded:
        text += f", Huffman codes {codes.coded_bits('huffman'):.3f}"
    if codes.packed_zstd_bits is not None:
        text += f"; zstd -1 on the packed codes takes {codes.packed_zstd_bits:.3f}"
    text += f"; scales{'' if codes.zero_point.nbytes == 0 else ' and zero points'} add {8 * codes.side_nbytes / codes.count:.3f}."
    return text + (f" Weight SNR {codes.snr_db:.1f} dB." if codes.snr_db is not None else "")


def _size_sentence(measured: ModelStats) -> str:
    sizes = measured.totals.sizes
    if not sizes.parameters or not sizes.stored_nbytes:
        return ""
    text = f"All {measured.totals.tensors} tensors: {size_text(sizes.nbytes)} -> {size_text(sizes.stored_nbytes)}"
    text += f", {sizes.ratio:.2f}x, {sizes.bits_per_weight:.3f} bits per weight"
    if measured.kind == "qzc":
        parts = (f"{what.replace('_', ' ')} {nbytes:,}" for what, nbytes in measured.totals.parts.items() if nbytes)
        return f"{text}. Bytes: {' + '.join(parts)} = {sizes.stored_nbytes:,}."
    general = [("gzip -6", sizes.gzip_ratio), ("zstd -3", sizes.zstd_ratio)]
    known = [f"{tool} {ratio:.2f}x" for tool, ratio in general if ratio is not None]
    return f"{text} (header and checksums of a file not counted). On the original bytes: {', '.join(known)}."


def _quality_warnings(measured: ModelStats) -> list[str]:
    """Low entropy is easily had by rounding most weights to zero: say so where it may have happened."""
    coded = [tensor.sizes.codes for tensor in measured.tensors if tensor.sizes.codes]
    notes: list[str] = []
    if any(codes.args and codes.args.strategy == "tensor" and codes.args.scale_method == "absmax" for codes in coded):
        shown = "see the SNR" if measured.kind == "safetensors" else "`qzc stats` on the original shows the SNR"
        notes.append(
            "Note: one scale per tensor from its largest weight leaves most levels unused. The low entropy is lost "
            f"precision, not compressibility ({shown}); compare --strategy group."
        )
    poor = sum(codes.snr_db is not None and codes.snr_db < POOR_SNR_DB for codes in coded)
    if poor:
        notes.append(f"Note: {poor} of {len(coded)} quantized tensors have a weight SNR below {POOR_SNR_DB:.0f} dB.")
    return notes
