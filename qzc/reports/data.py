"""What a report shows, as plain data: charts that know nothing of where their numbers come from or how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Table:
    """The numbers of a chart as text: what a reader without the picture reads."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """name: a word for files and anchors. title: what is shown. text: how to read it. alt: the picture in a sentence."""

    name: str
    title: str
    text: str
    alt: str
    table: Table


@dataclass(frozen=True)
class Bars(Chart):
    """Horizontal bars: values `[label][series]`, None for a gap; each with the words beside it.

    base: a value that is marked by a line across all bars (1 for ratios), or None.
    """

    labels: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    values: tuple[tuple[float | None, ...], ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    base: float | None = None


@dataclass(frozen=True)
class Planes(Chart):
    """One upright bar for each bit of a float, 0 .. 1, in groups: (name, number of bits, words about it)."""

    values: tuple[float, ...] = ()
    groups: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True)
class Strip(Chart):
    """Dots on a line per label and series: values `[label][series]`. log: logarithmic axis. low, high: its ends.

    low_word, high_word: what the ends of the axis mean.
    """

    labels: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    values: tuple[tuple[float | None, ...], ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    low_word: str = ""
    high_word: str = ""


@dataclass(frozen=True)
class Heat(Chart):
    """Values by row and column, None where there is none. unit: of the values."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    values: tuple[tuple[float | None, ...], ...] = ()
    unit: str = ""


@dataclass(frozen=True)
class Panel:
    """A histogram: shares of the codes 0 .. levels - 1, and laws fitted to it, (name, shares)."""

    title: str
    shares: tuple[float, ...]
    fits: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Histograms(Chart):
    """Small histograms side by side, each on a scale of its own."""

    panels: tuple[Panel, ...] = ()


@dataclass(frozen=True)
class Line:
    """A curve through points (x, y). dashed: an uncoded twin of another curve."""

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


@dataclass(frozen=True)
class Lines(Chart):
    """Curves over two axes. log: the upright one is logarithmic."""

    x: str = ""
    y: str = ""
    lines: tuple[Line, ...] = ()
    log: bool = False


AnyChart: TypeAlias = Bars | Planes | Strip | Heat | Histograms | Lines


@dataclass(frozen=True)
class ReportData:
    """A report: title, facts about the model as (name, value), what was found in sentences, and the charts in order.

    command: how to make these numbers again. notes: what must be known to read them right.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    findings: tuple[str, ...]
    charts: tuple[AnyChart, ...]
    command: str = ""
    notes: tuple[str, ...] = field(default=())
