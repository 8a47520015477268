"""From measured figures to a report: which charts there are, and in which order."""

from __future__ import annotations

from ..analysis.roofline import Roofline
from ..statistics.deep_figures import DeepStats
from . import charts, words
from .data import AnyChart, Lines, ReportData


def report_data(
    deep: DeepStats,
    roofline: Roofline | None = None,
    *,
    bits: int | None = None,
    file_nbytes: int | None = None,
    quality: Lines | None = None,
    command: str = "",
) -> ReportData:
    """The report on what `deep_stats` measured.

    bits: the precision that single-precision charts show; 4 if measured, else the first. file_nbytes: of a `.qzc` of this
    model, to stand in the waterfall for the size that was found. quality: a chart of measured quality against bits;
    without it the weight SNR stands in, and the chart says so. command: how to make the report again.
    """
    measured = [b for b in deep.bits if b is not None]
    chosen = bits if bits is not None else 4 if 4 in measured else next(iter(measured), None)
    main = deep.totals.at(chosen)
    shown: list[AnyChart | None] = [charts.planes(deep), charts.controls(deep, main)]
    if main is not None and chosen is not None:
        shown += [
            charts.waterfall(deep, main, file_nbytes),
            charts.histograms(deep, chosen),
            charts.efficiency(deep),
            charts.heat(deep, chosen),
        ]
    shown.append(quality or charts.quality(deep))
    if main is not None:
        shown.append(charts.equal_bits(deep, main))
    shown.append(None if roofline is None else charts.tokens(roofline))
    return ReportData(
        title=f"The entropy of {words.model_name(deep.source)}",
        facts=words.facts(deep, main),
        findings=tuple(words.findings(deep, main)),
        charts=tuple(chart for chart in shown if chart is not None),
        command=command,
        notes=tuple(words.notes(deep)),
    )
