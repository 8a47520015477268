"""Charts as inline SVG: text, not pictures, coloured by the page's style sheet (see `report_html`), so light and dark both work.

Series differ in colour and in shape or dash: nobody needs to tell the colours apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .axes import linear, log_ticks, logarithmic, number, short, ticks
from .data import AnyChart, Bars, Chart, Heat, Histograms, Lines, Panel, Planes, Strip

WIDTH = 760
LABEL = 200  # pixels for labels at the left
CHARACTER = 7.7  # about the width of one at 13 pixels, in a wide font
DASHES = ("", "6 3", "2 3", "8 3 2 3", "10 4", "4 2", "1 2", "12 3 3 3")
# Cividis, made for colour-blind readers, from low to high.
RAMP = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 181, 102), (254, 232, 56))


def chart_svg(chart: AnyChart) -> str:
    """One chart as an `<svg>` element with a title and a description."""
    if isinstance(chart, Bars):
        return _bars(chart)
    if isinstance(chart, Planes):
        return _planes(chart)
    if isinstance(chart, Strip):
        return _strip(chart)
    if isinstance(chart, Heat):
        return _heat(chart)
    if isinstance(chart, Histograms):
        return _histograms(chart)
    return _lines(chart)


def ramp(share: float) -> tuple[int, int, int]:
    """The colour of a heat map at 0 .. 1."""
    at = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    r, g, b = (round(a + (z - a) * (at - low)) for a, z in zip(RAMP[low], RAMP[low + 1], strict=True))
    return r, g, b


def _bars(chart: Bars) -> str:
    thick = 22 if len(chart.series) == 1 else 15
    group = thick * len(chart.series) + 12
    top = 30 if len(chart.series) > 1 else 8
    height = top + group * len(chart.labels) + 6
    known = [value for row in chart.values for value in row if value is not None]
    words = max((len(word) for row in chart.words for word in row), default=0)
    right = WIDTH - 16 - words * 6.4
    place = linear(0.0, max(known, default=1.0) or 1.0, LABEL, right)
    parts = [_legend(chart.series, LABEL, 14)] if len(chart.series) > 1 else []
    for i, label in enumerate(chart.labels):
        y = top + i * group
        parts.append(_label(label, LABEL - 10, y + (group - 12) / 2 + 4))
        for j, value in enumerate(chart.values[i]):
            if value is None:
                continue
            x = place(value)
            at = y + j * thick
            parts.append(
                f'<rect class="f{j}" x="{LABEL}" y="{at}" width="{max(x - LABEL, 1):.1f}" height="{thick - 3}"/>'
            )
            parts.append(_text(x + 6, at + thick / 2 + 3, chart.words[i][j], "n"))
    if chart.base is not None:
        x = place(chart.base)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{height - 6}"/>')
    return _svg(chart, height, parts)


def _planes(chart: Planes) -> str:
    left, top, low = 44, 14, 190
    place = linear(0.0, len(chart.values), left, WIDTH - 8)
    high = linear(0.0, 1.0, low, top)
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - 8}" y1="{high(value):.1f}" y2="{high(value):.1f}"/>')
        parts.append(_text(left - 6, high(value) + 4, f"{value:g}", "n", "end"))
    bit, taken = 0, [0.0, 0.0]  # how far to the right the two lines of labels are full
    for number_, (name, bits, words) in enumerate(chart.groups):
        x0, x1 = place(bit), place(bit + bits)
        for i in range(bit, bit + bits):
            y = high(chart.values[i])
            width = max(place(i + 1) - place(i) - 2, 1)
            parts.append(
                f'<rect class="f{number_ % 8}" x="{place(i) + 1:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(low - y, 0.5):.1f}">'
                f"<title>{escape(f'bit {i} ({name}): {chart.values[i]:.4f} bits')}</title></rect>"
            )
        parts.append(f'<line class="axis" x1="{x0 + 1:.1f}" x2="{x1 - 1:.1f}" y1="{low + 6}" y2="{low + 6}"/>')
        anchor = "start" if number_ == 0 else "end" if number_ == len(chart.groups) - 1 else "middle"
        x = {"start": x0, "end": x1, "middle": (x0 + x1) / 2}[anchor]
        width = max(len(name), len(words)) * CHARACTER
        begins = x - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
        row = 0 if begins >= taken[0] else 1
        taken[row] = begins + width + 4
        line = low + 8 + 34 * row
        parts.append(_text(x, line + 12, name, "t", anchor))
        parts.append(_text(x, line + 26, words, "n", anchor))
        bit += bits
    return _svg(chart, low + (76 if taken[1] else 42), parts)


def _strip(chart: Strip) -> str:
    top, line = 34, 15
    group = line * len(chart.series) + 10
    height = top + group * len(chart.labels) + 34
    words = max((len(word) for row in chart.words for word in row), default=0)
    start, stop = LABEL + 8, WIDTH - 20 - words * 6.4
    place = (logarithmic if chart.log else linear)(chart.low, chart.high, start, stop)
    parts = [_legend(chart.series, LABEL, 14, marks=True)]
    bottom = height - 34
    for tick in log_ticks(chart.low, chart.high) if chart.log else ticks(chart.low, chart.high, 5):
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 14, short(tick), "n", "middle"))
    parts.append(_text(start, bottom + 30, chart.low_word, "n"))
    parts.append(_text(stop, bottom + 30, chart.high_word, "n", "end"))
    for i, label in enumerate(chart.labels):
        y = top + i * group
        parts.append(_label(label, LABEL - 10, y + (group - 10) / 2 + 4))
        if i:
            parts.append(f'<line class="grid" x1="10" x2="{WIDTH - 8}" y1="{y - 5}" y2="{y - 5}"/>')
        for j, value in enumerate(chart.values[i]):
            if value is None:
                continue
            x, at = place(min(max(value, chart.low), chart.high)), y + j * line + line / 2
            parts.append(f'<line class="l{j % 8} thin" x1="{start}" x2="{x:.1f}" y1="{at}" y2="{at}"/>')
            parts.append(_mark(j, x, at))
            parts.append(_text(x + 9, at + 4, chart.words[i][j], "s"))
    return _svg(chart, height, parts)


def _heat(chart: Heat) -> str:
    left, top = LABEL, 26
    # Few columns need no wide cells; many get what there is.
    cell = min(52.0, (WIDTH - left - 8) / max(1, len(chart.columns)))
    tall = 24
    known = [value for row in chart.values for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    height = top + tall * len(chart.rows) + 56
    parts = []
    every = max(1, -(-max(len(c) for c in chart.columns or ("",)) * 8 // max(1, int(cell))))
    for j, column in enumerate(chart.columns):
        if j % every == 0:
            parts.append(_text(left + (j + 0.5) * cell, top - 8, column, "n", "middle"))
    for i, row in enumerate(chart.rows):
        y = top + i * tall
        parts.append(_label(row, left - 10, y + 16))
        for j, value in enumerate(chart.values[i]):
            if value is None:
                continue
            share = (value - low) / (high - low) if high > low else 0.5
            colour = ramp(share)
            x = left + j * cell
            said = escape(f"{row}, {chart.columns[j]}: {value:.4f} {chart.unit}")
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(cell - 1, 1):.1f}" height="{tall - 1}" fill="rgb{colour}">'
                f"<title>{said}</title></rect>"
            )
            if cell >= 32:
                ink = "#000" if sum(c * w for c, w in zip(colour, (0.299, 0.587, 0.114), strict=True)) > 120 else "#fff"
                parts.append(
                    f'<text x="{x + cell / 2:.1f}" y="{y + 16}" text-anchor="middle" class="s" style="fill:{ink}">{value:.2f}</text>'
                )
    y = height - 40
    for i in range(40):
        parts.append(f'<rect x="{left + i * 6}" y="{y}" width="6.5" height="12" fill="rgb{ramp(i / 39)}"/>')
    parts.append(_text(left, y + 28, f"{low:.3f}", "n"))
    parts.append(_text(left + 240, y + 28, f"{high:.3f} {chart.unit}", "n", "end"))
    return _svg(chart, height, parts)


def _histograms(chart: Histograms) -> str:
    across, wide, tall, top = 3, (WIDTH - 20) / 3, 176, 34
    names = list(dict.fromkeys(name for panel in chart.panels for name, _ in panel.fits))
    parts = [_legend(["codes", *names], 10, 14, lines=True)]
    for i, panel in enumerate(chart.panels):
        parts.append(_panel(panel, 10 + (i % across) * wide, top + (i // across) * tall, wide - 14, tall - 44, names))
    rows = -(-len(chart.panels) // across)
    return _svg(chart, top + rows * tall, parts)


def _panel(panel: Panel, x: float, y: float, wide: float, tall: float, names: Sequence[str]) -> str:
    levels = len(panel.shares)
    most = max(*panel.shares, *(max(shares) for _, shares in panel.fits), 1e-9)
    across, up = linear(0.0, levels, x, x + wide), linear(0.0, most, y + tall, y + 18)
    parts = [_text(x, y + 10, _cut(panel.title, int(wide / (CHARACTER * 12 / 13))), "s", title=panel.title)]
    bars = []
    gap = 1.0 if levels <= 64 else 0.0
    for code, share in enumerate(panel.shares):
        bars.append(
            f"M{across(code) + gap / 2:.1f} {up(0):.1f}V{up(share):.1f}H{across(code + 1) - gap / 2:.1f}V{up(0):.1f}Z"
        )
    parts.append(f'<path class="f0 soft" d="{"".join(bars)}"/>')
    for name, shares in panel.fits:
        j = 1 + list(names).index(name)
        points = " ".join(f"{across(code + 0.5):.1f},{up(share):.1f}" for code, share in enumerate(shares))
        parts.append(f'<polyline class="l{j % 8}" stroke-dasharray="{DASHES[j % 8]}" points="{points}"/>')
    parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x + wide:.1f}" y1="{y + tall:.1f}" y2="{y + tall:.1f}"/>')
    for code in (0, levels // 2, levels - 1):
        parts.append(_text(across(code + 0.5), y + tall + 14, str(code), "n", "middle"))
    parts.append(_text(x + wide, y + 28, f"peak {most:.1%}", "n", "end"))
    return "".join(parts)


def _lines(chart: Lines) -> str:
    left, top, right, rows = 56, 12, WIDTH - 12, -(-len(chart.lines) // 3)
    bottom = 372
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    x_low, x_high = _room(xs)
    y_low, y_high = (min(ys) / 1.2, max(ys) * 1.2) if chart.log else _room(ys)
    across = linear(x_low, x_high, left, right)
    up = (logarithmic if chart.log else linear)(y_low, y_high, bottom, top)
    parts = []
    for tick in ticks(x_low, x_high, 8):
        parts.append(f'<line class="grid" x1="{across(tick):.1f}" x2="{across(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(across(tick), bottom + 16, short(tick), "n", "middle"))
    for tick in log_ticks(y_low, y_high) if chart.log and y_high >= 10 * y_low else ticks(y_low, y_high, 7):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(_text(left - 6, up(tick) + 4, short(tick), "n", "end"))
    parts.append(_text((left + right) / 2, bottom + 34, chart.x, "t", "middle"))
    middle = (top + bottom) / 2
    parts.append(
        f'<text class="t" text-anchor="middle" transform="translate(14 {middle}) rotate(-90)">{escape(chart.y)}</text>'
    )
    for j, line in enumerate(chart.lines):
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        dash = "3 4" if line.dashed else ""
        parts.append(f'<polyline class="l{j % 8}" stroke-dasharray="{dash}" points="{points}"/>')
        parts += [_mark(j, across(x), up(y), f"{line.name}: {number(x, 4)}, {number(y, 4)}") for x, y in line.points]
    for j, line in enumerate(chart.lines):
        x, y = left + (j % 3) * 232, bottom + 58 + (j // 3) * 20
        dash = "3 4" if line.dashed else ""
        parts.append(
            f'<line class="l{j % 8}" stroke-dasharray="{dash}" x1="{x}" x2="{x + 26}" y1="{y - 4}" y2="{y - 4}"/>'
        )
        parts.append(_mark(j, x + 13, y - 4))
        parts.append(_text(x + 33, y, _cut(line.name, 28), "s", title=line.name))
    return _svg(chart, bottom + 58 + rows * 20, parts)


# ---------------------------------------------------------------------------------------------- pieces
def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * 0.04 or 0.5
    return low - room, high + room


def _svg(chart: Chart, height: float, parts: Sequence[str]) -> str:
    name = escape(chart.name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(chart.title)}</title>'
        f'<desc id="{name}-desc">{escape(chart.alt)}</desc>{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start", title: str = "") -> str:
    said = f"<title>{escape(title)}</title>" if title and title != text else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{place}>{said}{escape(text)}</text>'


def _label(text: str, x: float, y: float) -> str:
    return _text(x, y, _cut(text, int((LABEL - 14) / CHARACTER)), "t", "end", title=text)


def _cut(text: str, most: int) -> str:
    """The end of a name tells more than its beginning."""
    return text if len(text) <= most else "…" + text[1 - most :]


def _legend(names: Sequence[str], x: float, y: float, marks: bool = False, lines: bool = False) -> str:
    parts = []
    for j, name in enumerate(names):
        if lines and j:
            parts.append(
                f'<line class="l{j % 8}" stroke-dasharray="{DASHES[j % 8]}" x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y - 4}" y2="{y - 4}"/>'
            )
            x += 14
        elif marks:
            parts.append(_mark(j, x + 5, y - 4))
        else:
            parts.append(f'<rect class="f{j % 8}" x="{x:.1f}" y="{y - 10}" width="11" height="11"/>')
        parts.append(_text(x + 15, y, name, "s"))
        x += 34 + len(name) * 6.6
    return "".join(parts)


def _mark(j: int, x: float, y: float, title: str = "") -> str:
    """A shape of its own for each series."""
    said = f"<title>{escape(title)}</title>" if title else ""
    kind = f'class="f{j % 8}"'
    if j % 4 == 0:
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="4.5">{said}</circle>'
    if j % 4 == 1:
        return f'<rect {kind} x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8">{said}</rect>'
    if j % 4 == 2:
        return f'<path {kind} d="M{x:.1f} {y - 5.5:.1f}l5.2 9.2h-10.4z">{said}</path>'
    return f'<path {kind} d="M{x:.1f} {y - 5.8:.1f}l5.8 5.8l-5.8 5.8l-5.8 -5.8z">{said}</path>'
