"""The tables of `qzc stats`: which columns each has. docs/stats.md defines them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .grids import grid_text
from .render import Cell, Column

if TYPE_CHECKING:
    from ..analysis.code_models import ModelCost
    from ..analysis.code_stats import CodeStats
    from ..analysis.tensor_stats import Sizes, TensorStats
    from ..statistics.deep_figures import CodeFigures, ControlFigures, Precision
    from ..statistics.measure import ModelStats


@dataclass(frozen=True)
class Line:
    """A row of the table of tensors: a tensor at one precision, or the total."""

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    grid: str | None
    sizes: Sizes

    @property
    def codes(self) -> CodeStats | None:
        return self.sizes.codes

    @property
    def field(self) -> dict[str, float]:
        lossless = self.sizes.lossless
        return lossless.fields.by_kind if lossless and lossless.fields else {}


def line_of(tensor: TensorStats) -> Line:
    codes = tensor.sizes.codes
    grid = "rate" if tensor.sizes.rated else grid_text(codes.args if codes else None, tensor.tied_to)
    return Line(tensor.name, tensor.dtype, tensor.shape, grid, tensor.sizes)


def total_of(measured: ModelStats) -> Line:
    return Line("TOTAL", None, None, None, measured.totals.sizes)


def _entropy(line: Line) -> Cell:
    return line.codes.per_code(line.codes.entropy_bits) if line.codes else None


def _level_bits(line: Line) -> Cell:
    return line.codes.per_code(line.codes.level_bits) if line.codes else None


def _side(line: Line) -> Cell:
    return line.codes.per_code(8 * line.codes.side_nbytes) if line.codes else None


def _efficiency(line: Line) -> Cell:
    return line.codes.efficiency(line.codes.final.nbytes) if line.codes else None


def _coded(way: str, key: str, title: str) -> Column[Line]:
    return Column(key, title, lambda line: line.codes.coded_bits(way) if line.codes else None, digits=3)


def _kind(kind: str) -> Column[Line]:
    return Column(kind, kind, lambda line: line.field.get(kind), digits=3, rank=1)


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
BITS: Column[Line] = Column(
    "bits", "bits", lambda line: line.codes.args.num_bits if line.codes and line.codes.args else None
)
"""Where several precisions are side by side."""
WOULD_TAKE = [_coded("huffman", "huffman", "huffman"), _coded("ans", "ans", "ans")]
IN_FILE: list[Column[Line]] = [
    Column("coder", "coder", lambda line: "+".join(line.codes.final.coders) if line.codes else None, rank=1),
    _coded("file", "coded", "coded"),
]
COST: list[Column[Line]] = [
    Column(
        "packed_zstd1", "zstd -1 packed", lambda line: line.codes.packed_zstd_bits if line.codes else None, digits=3
    ),
    Column("efficiency", "efficiency", _efficiency, digits=3, rank=5),
    Column("side", "scales", _side, digits=3, rank=1),
]
RESULT: list[Column[Line]] = [
    Column("bits_per_weight", "total", lambda line: line.sizes.bits_per_weight, digits=3),
    Column("stored_nbytes", "stored", lambda line: line.sizes.stored_nbytes, rank=8),
]
QUALITY: list[Column[Line]] = [
    Column("snr_db", "SNR dB", lambda line: line.codes.snr_db if line.codes else None, digits=1)
]
FIELDS: list[Column[Line]] = [
    _kind("sign"),
    _kind("exponent"),
    _kind("mantissa"),
    Column("bound", "bound", lambda line: line.sizes.lossless.entropy if line.sizes.lossless else None, digits=3),
]
RATIO: list[Column[Line]] = [Column("ratio", "ratio", lambda line: line.sizes.ratio, digits=3)]

TENSORS = {
    "safetensors": [*TENSOR, *GENERAL, *GRID, *WOULD_TAKE, *COST, *RESULT, *QUALITY],
    "qzc": [*TENSOR, *GRID, *IN_FILE, *COST, *RESULT],
    "lossless safetensors": [*TENSOR, *GENERAL, *FIELDS, *RESULT, *RATIO],
    "lossless qzc": [*TENSOR, *FIELDS, *RESULT, *RATIO],
}
"""By kind of report; the lossless ones where no tensor is quantized."""


def _bits(row: Any) -> Cell:
    return "rules" if row.bits is None else int(row.bits)


PRECISIONS: list[Column[Precision]] = [
    Column("bits", "bits", _bits),
    Column("entropy", "H0", lambda p: p.codes.entropy, digits=3),
    Column("entropy_error", "±", lambda p: p.codes.error or None, digits=4, rank=1),
    Column("huffman", "huffman", lambda p: p.codes.coded("huffman_byte"), digits=3, rank=4),
    Column("ans", "ans", lambda p: p.codes.coded("ans"), digits=3),
    Column("packed_zstd1", "zstd -1 packed", lambda p: p.codes.coded("zstd1_packed"), digits=3, rank=3),
    Column("efficiency", "efficiency", lambda p: p.codes.efficiency("ans"), digits=3, rank=5),
    Column("side", "scales", lambda p: p.codes.sizes.per_code(8 * p.codes.sizes.side_nbytes), digits=3, rank=2),
    Column("bits_per_weight", "total", lambda p: p.file.sizes.bits_per_weight, digits=3),
    Column("ratio_to_fp32", "to FP32", lambda p: p.file.sizes.ratio_to_fp32),
    Column("ratio_to_fp16", "to FP16", lambda p: p.file.sizes.ratio_to_fp16),
    Column("snr_db", "SNR dB", lambda p: p.codes.snr_db, digits=1),
    Column("stored_nbytes", "file", lambda p: p.total_nbytes, rank=6),
]


@dataclass(frozen=True)
class ModelRow:
    """Codes at one precision under one model."""

    codes: CodeFigures
    name: str
    cost: ModelCost

    @property
    def bits(self) -> int | None:
        return self.codes.bits

    @property
    def saves(self) -> float | None:
        assert self.codes.models is not None
        return self.codes.models.order0.with_tables - self.cost.with_tables


ENTROPIES: list[Column[ModelRow]] = [
    Column("bits", "bits", _bits),
    Column("model", "given", lambda row: row.name),
    Column("plugin", "entropy", lambda row: row.cost.plugin, digits=4),
    Column("corrected", "corrected", lambda row: row.cost.corrected, digits=4),
    Column("with_tables", "with tables", lambda row: row.cost.with_tables, digits=4),
    Column("tables", "tables", lambda row: row.cost.tables),
    Column("saves", "saves", lambda row: row.saves, digits=4),
]


@dataclass(frozen=True)
class CoderRow:
    """Codes at one precision under one coder."""

    codes: CodeFigures
    coder: str
    title: str

    @property
    def bits(self) -> int | None:
        return self.codes.bits


CODERS: list[Column[CoderRow]] = [
    Column("bits", "bits", _bits),
    Column("coder", "coder", lambda row: row.title),
    Column("bits_per_code", "bits per code", lambda row: row.codes.coded(row.coder), digits=4),
    Column("efficiency", "efficiency", lambda row: row.codes.efficiency(row.coder), digits=4),
    Column("coded_nbytes", "bytes", lambda row: round(row.codes.coder_nbytes[row.coder])),
]


@dataclass(frozen=True)
class BitsRow:
    """A field of a float, or one of its bits."""

    name: str
    first: int
    bits: int
    entropy: float
    bias: float | None = None


FLOATS: list[Column[BitsRow]] = [
    Column("field", "field", lambda row: row.name),
    Column("first", "first bit", lambda row: row.first),
    Column("field_bits", "bits", lambda row: row.bits),
    Column("field_entropy", "entropy", lambda row: row.entropy, digits=4),
    Column("free", "share", lambda row: row.entropy / row.bits, digits=4),
    Column("bias", "bias", lambda row: row.bias, digits=4, rank=1),
]


@dataclass(frozen=True)
class FitRow:
    """How the weights of a tensor are spread, or those of all."""

    name: str
    std: float | None
    kurtosis: float | None
    beyond3: float | None
    beyond6: float | None
    law: str | None
    freedom: float | None
    ks: float | None
    loss: dict[str, float]


def _loss(law: str, title: str) -> Column[FitRow]:
    return Column(f"{law.replace('-', '_')}_loss", title, lambda row: row.loss.get(law), digits=4)


FITS: list[Column[FitRow]] = [
    Column("tensor", "tensor", lambda row: row.name),
    Column("std", "std", lambda row: row.std, digits=5, rank=2),
    Column("kurtosis", "kurtosis", lambda row: row.kurtosis),
    Column("beyond3", "> 3 std", lambda row: row.beyond3, digits=5),
    Column("beyond6", "> 6 std", lambda row: row.beyond6, digits=6, rank=1),
    Column("law", "best law", lambda row: row.law),
    Column("freedom", "freedom", lambda row: row.freedom, digits=1, rank=3),
    Column("ks", "KS", lambda row: row.ks, digits=4, rank=4),
    _loss("gaussian", "gaussian"),
    _loss("laplace", "laplace"),
    _loss("student-t", "student-t"),
]

CONTROL: list[Column[tuple[str, ControlFigures]]] = [
    Column("weights", "weights", lambda row: row[0]),
    Column("std", "std", lambda row: row[1].std, digits=5, rank=2),
    Column("gzip6_ratio", "gzip -6", lambda row: row[1].gzip_ratio, digits=3),
    Column("zstd3_ratio", "zstd -3", lambda row: row[1].zstd_ratio, digits=3),
    Column("entropy", "H0 of codes", lambda row: row[1].entropy, digits=3),
    Column("measured", "measured", lambda row: row[1].measured, rank=1),
]
