"""Charts of a report as PNG files, drawn by matplotlib: for slides and papers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..codec.errors import UnsupportedError
from ..formats.access import naming_os_errors
from .data import AnyChart, Bars, Heat, Histograms, Lines, Planes, ReportData, Strip

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a67c00", "#3a9bd5", "#555555", "#000000")
MARKERS = ("o", "s", "^", "D")
DASHES = ("-", "--", ":", "-.")


def check_matplotlib() -> None:
    """Raise UnsupportedError, saying what to install, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UnsupportedError("PNG figures need matplotlib: pip install 'qzc[plot]'") from None


def write_pngs(report: ReportData, folder: Path) -> list[Path]:
    """Write each chart to `folder/NAME.png`, over older ones; returns the paths.

    The folder is made if it is missing. Raises FileAccessError, UnsupportedError.
    """
    written = [folder / f"{chart.name}.png" for chart in report.charts]
    with naming_os_errors(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
    for chart, path in zip(report.charts, written, strict=True):
        write_png(chart, path)
    return written


def write_png(chart: AnyChart, path: Path) -> None:
    """Write one chart, over an older one. Raises FileAccessError, UnsupportedError."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(8.0, _height(chart)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_plain(chart.title), fontsize=11)
    _draw(chart)(figure, chart)
    with naming_os_errors(path, "write"):
        figure.savefig(path, format="png", metadata={"Software": None, "Description": chart.alt})


def _height(chart: AnyChart) -> float:
    if isinstance(chart, Bars | Strip):
        return 1.4 + 0.2 * len(chart.labels) * (len(chart.series) + 1)
    if isinstance(chart, Heat):
        return 1.6 + 0.28 * len(chart.rows)
    return 4.6 if isinstance(chart, Lines | Histograms) else 3.2


def _draw(chart: AnyChart) -> Callable[[Any, Any], None]:
    kinds: dict[type, Callable[[Any, Any], None]] = {
        Bars: _bars, Planes: _planes, Strip: _strip, Heat: _heat, Histograms: _histograms, Lines: _lines
    }  # fmt: skip
    return kinds[type(chart)]


def _bars(figure: Any, chart: Bars) -> None:
    axes = figure.subplots()
    most = max((value for row in chart.values for value in row if value is not None), default=1.0)
    many = len(chart.series)
    for j, name in enumerate(chart.series):
        places = [i * (many + 0.7) + j for i, row in enumerate(chart.values) if row[j] is not None]
        values = [value for row in chart.values if (value := row[j]) is not None]
        axes.barh(places, values, height=0.85, color=COLOURS[j % 8], label=_plain(name))
        for i, row in enumerate(chart.values):
            if (value := row[j]) is not None:
                axes.text(value + most * 0.01, i * (many + 0.7) + j, chart.words[i][j], va="center", fontsize=7)
    _rows(axes, chart.labels, [i * (many + 0.7) + (many - 1) / 2 for i in range(len(chart.labels))])
    axes.set_xlim(0, most * 1.28)
    axes.set_xticks([])
    if chart.base is not None:
        axes.axvline(chart.base, color="black", linestyle="--", linewidth=0.8)
    if many > 1:
        axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=many)


def _planes(figure: Any, chart: Planes) -> None:
    axes = figure.subplots()
    bit = 0
    for j, (name, bits, words) in enumerate(chart.groups):
        colour = COLOURS[j % 8]
        axes.bar(range(bit, bit + bits), chart.values[bit : bit + bits], color=colour, label=_plain(f"{name}: {words}"))
        bit += bits
    axes.set_xlabel("bit, from the sign", fontsize=8)
    axes.set_ylabel("entropy in bits", fontsize=8)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)


def _strip(figure: Any, chart: Strip) -> None:
    axes = figure.subplots()
    many = len(chart.series)
    for j, name in enumerate(chart.series):
        known = [(i * (many + 1) + j, value) for i, row in enumerate(chart.values) if (value := row[j]) is not None]
        marker = MARKERS[j % 4]
        axes.plot([v for _, v in known], [y for y, _ in known], marker, color=COLOURS[j % 8], label=_plain(name))
        for i, row in enumerate(chart.values):
            if (value := row[j]) is not None:
                axes.annotate(
                    chart.words[i][j],
                    (value, i * (many + 1) + j),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6,
                )
    if chart.log:
        axes.set_xscale("log")
        axes.set_xlim(chart.low, chart.high * 3)
    else:
        axes.set_xlim(chart.low - 0.02, chart.high + (chart.high - chart.low) * 0.25)
    _rows(axes, chart.labels, [i * (many + 1) + (many - 1) / 2 for i in range(len(chart.labels))])
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        _plain(f"{chart.low_word} ... {chart.high_word}" if chart.high_word else chart.low_word), fontsize=8
    )
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=many)


def _heat(figure: Any, chart: Heat) -> None:
    axes = figure.subplots()
    values = [[float("nan") if value is None else value for value in row] for row in chart.values]
    image = axes.imshow(values, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(chart.columns)), [_plain(c) for c in chart.columns], fontsize=7)
    axes.set_yticks(range(len(chart.rows)), [_plain(r) for r in chart.rows], fontsize=7)
    if len(chart.columns) > 24:
        axes.set_xticks(range(0, len(chart.columns), 4), [_plain(c) for c in chart.columns[::4]], fontsize=7)
    figure.colorbar(image, ax=axes, label=chart.unit)


def _histograms(figure: Any, chart: Histograms) -> None:
    grid = figure.subplots(-(-len(chart.panels) // 3), 3, squeeze=False)
    for axes in grid.flat[len(chart.panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, chart.panels, strict=False):
        codes = range(len(panel.shares))
        axes.bar(codes, panel.shares, color=COLOURS[0], alpha=0.5, width=0.9)
        for j, (name, shares) in enumerate(panel.fits, 1):
            axes.plot(codes, shares, DASHES[j % 4], color=COLOURS[j], label=_plain(name), linewidth=1.2)
        axes.set_title(_plain(panel.title[-38:]), fontsize=6)
        axes.tick_params(labelsize=6)
    if chart.panels:
        grid.flat[0].legend(fontsize=5)


def _lines(figure: Any, chart: Lines) -> None:
    axes = figure.subplots()
    for j, line in enumerate(chart.lines):
        style = MARKERS[j % 4] + (":" if line.dashed else "-")
        axes.plot(
            [x for x, _ in line.points],
            [y for _, y in line.points],
            style,
            color=COLOURS[j % 8],
            label=_plain(line.name),
            markersize=4,
        )
    axes.set_xlabel(_plain(chart.x), fontsize=8)
    axes.set_ylabel(_plain(chart.y), fontsize=8)
    if chart.log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _rows(axes: Any, labels: tuple[str, ...], places: list[float]) -> None:
    axes.set_yticks(places, [_plain(label) for label in labels], fontsize=8)
    axes.invert_yaxis()


def _plain(text: str) -> str:
    """matplotlib takes text between dollar signs for formulas, and names may hold any."""
    return text.replace("$", r"\$")
