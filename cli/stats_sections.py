"""From measured figures to the tables of `qzc stats`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..analysis.equal_snr import EqualSnr
from ..statistics.deep_grids import REFERENCE
from . import stats_columns as columns
from .render import Column
from .tables import Table

if TYPE_CHECKING:
    from ..analysis.weight_fit import WeightFit
    from ..statistics.deep_figures import DeepStats

CODERS = {
    "huffman_symbol": "huffman, per code",
    "huffman_byte": "huffman, packed bytes",
    "ans": "ans",
    "zstd1_packed": "zstd -1 packed",
    "gzip6_packed": "gzip -6 packed",
}
MODELS = {"order0": "nothing", "row": "left", "column": "above", "classes": "scale classes"}
WEIGHTS = {"kaiming": "uniform, Kaiming", "xavier": "uniform, Xavier", "gaussian": "Gaussian, same spread"}


def section(name: str, deep: DeepStats, tensors: Sequence[str]) -> Table[Any]:
    """One of the sections but `tensors`. tensors: names of those that get a row, in order."""
    if name == "fits":
        return _fits(deep, tensors)
    tables = {
        "precisions": _precisions,
        "floats": _floats,
        "entropies": _entropies,
        "coders": _coders,
        "control": _control,
        "grids": _grids,
    }
    return tables[name](deep)


def _precisions(deep: DeepStats) -> Table[Any]:
    shown = [c for c in columns.PRECISIONS if c.key != "entropy_error" or deep.sample is not None]
    return Table("precisions", "Precisions side by side", shown, deep.totals.precisions)


def _floats(deep: DeepStats) -> Table[Any]:
    floats = deep.totals.floats
    rows: list[columns.BitsRow] = []
    if floats is not None:
        rows += [columns.BitsRow(f.name, f.first, f.bits, f.entropy, f.bias) for f in floats.fields]
        rows += [columns.BitsRow(f"bit {i}", i, 1, entropy) for i, entropy in enumerate(floats.planes)]
    title = f"Entropy of the fields and bits of {floats.dtype}" if floats else "Entropy of the bits of floats"
    return Table("floats", title, columns.FLOATS, rows)


def _entropies(deep: DeepStats) -> Table[Any]:
    rows = [
        columns.ModelRow(p.codes, MODELS[name], cost)
        for p in deep.totals.precisions
        if p.codes.models is not None
        for name, cost in p.codes.models.costs.items()
    ]
    return Table("entropies", "Entropy of the codes, given what is known before each, in bits", columns.ENTROPIES, rows)


def _coders(deep: DeepStats) -> Table[Any]:
    rows = [
        columns.CoderRow(p.codes, coder, title)
        for p in deep.totals.precisions
        for coder, title in CODERS.items()
        if coder in p.codes.coder_nbytes
    ]
    return Table("coders", "Coders: 0 saves nothing, 1 reaches the entropy", columns.CODERS, rows)


def _control(deep: DeepStats) -> Table[Any]:
    rows = [(WEIGHTS[one.law] if one.law else "trained", one) for one in deep.totals.control]
    return Table("control", "Random weights of the same shapes", columns.CONTROL, rows)


def _fits(deep: DeepStats, tensors: Sequence[str]) -> Table[Any]:
    fits = {t.name: t.fit for t in deep.tensors if t.fit is not None and len(t.shape) > 1}
    rows = [_fit(name, fits[name]) for name in tensors if name in fits]
    totals = deep.totals
    total = columns.FitRow(
        "TOTAL", None, totals.kurtosis, totals.beyond3, totals.beyond6, None, None, None, dict(totals.fit_loss)
    )
    return Table("fits", "How weights are spread: bits per weight that a law wastes", columns.FITS, rows, (total,))


def _fit(name: str, fit: WeightFit) -> columns.FitRow:
    best = fit.best
    law, freedom, ks = (best.law, best.freedom, best.ks) if best else (None, None, None)
    loss: dict[str, float] = {one.law: best.log_likelihood - one.log_likelihood for one in fit.fits} if best else {}
    return columns.FitRow(name, fit.std, fit.kurtosis, fit.beyond3, fit.beyond6, law, freedom, ks, loss)


def _grids(deep: DeepStats) -> Table[Any]:
    """Rows are kinds of grid, columns the SNRs that the reference grid has at each precision."""
    reference = next((curve for curve in deep.curves if curve.grid == REFERENCE), None)
    shown: list[Column[str]] = [Column("grid", "bits per weight, coded", lambda grid: grid)]
    levels = {level.snr_db: level for level in deep.equal_snr}
    for bits, point in zip(reference.bits, reference.coded, strict=True) if reference else ():
        shown.append(_level(bits, levels[point.snr_db]))
    rows = [curve.grid for curve in deep.curves]
    return Table("grids", "Bits at equal weight SNR", shown, rows, ("SNR in dB",) if rows else ())


def _level(bits: int, level: EqualSnr) -> Column[str]:
    def cell(grid: str) -> float | None:
        return level.bits.get(grid) if grid in level.bits else level.snr_db

    return Column(f"as_{bits}_bits", f"{level.snr_db:.1f} dB", cell, digits=3)
