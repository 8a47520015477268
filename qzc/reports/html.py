"""A report as one HTML file that needs nothing else: no network, no scripts, pictures as inline SVG."""

from __future__ import annotations

from html import escape

from ..version import VERSION
from .data import AnyChart, ReportData, Table
from .svg import chart_svg

# Okabe and Ito's colours, which colour-blind readers can tell apart; on dark ground lighter where they would vanish.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a67c00", "#3a9bd5", "#555555", "#000000")
_DARK = ("#4aa8e0", "#ff8a3d", "#2fc79b", "#e39ac2", "#e6c229", "#8fd0f5", "#b0b0b0", "#ffffff")

# Of the charts themselves, wherever they stand.
_FIGURE = """\
.t{font-size:13px;fill:var(--ink)}.n{font-size:11.5px;fill:var(--soft)}.s{font-size:12px;fill:var(--ink)}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}
.mark{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3}
.thin{stroke-width:1!important;opacity:.45}.soft{opacity:.55}
polyline,line{fill:none}"""
_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--card:#f6f7f9;--ink:#1a1c20;--soft:#565c66;--rule:#d9dde3;%s}
@media (prefers-color-scheme:dark){:root{--ground:#14161a;--card:#1e2127;--ink:#e8eaee;--soft:#a5adb8;--rule:#353a43;%s}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header,footer{max-width:54rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.5rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .4rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.6rem;margin:0 0 1.5rem}
dl div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
dt{color:var(--soft);font-size:.82rem}
dd{margin:0;font-weight:600;overflow-wrap:anywhere}
li{margin:.35rem 0}
section{margin:2.2rem 0;padding-top:1.6rem;border-top:1px solid var(--rule)}
figure{margin:0}
.scroll{overflow-x:auto}
svg{display:block;width:100%%;min-width:34rem;height:auto;margin:.6rem 0;font-family:inherit}
p,figcaption{color:var(--soft);margin:.2rem 0 .6rem}
header p{color:var(--ink)}
details{margin-top:.4rem}
summary{cursor:pointer;color:var(--soft);font-size:.9rem}
table{border-collapse:collapse;font-size:.82rem;margin:.5rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem .2rem 0;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
code{background:var(--card);padding:.1rem .35rem;border-radius:.25rem;font-size:.88em;overflow-wrap:anywhere}
footer{padding-bottom:3rem;font-size:.88rem;color:var(--soft)}
%s
@media print{
:root{--ground:#fff;--card:#f6f7f9;--ink:#000;--soft:#444;--rule:#ccc;%s}
body{font-size:11pt}section{break-inside:avoid;border-top:0;margin:1rem 0;padding-top:.5rem}
details::details-content{content-visibility:visible;display:block;height:auto}
h2{break-after:avoid}.scroll{overflow:visible}details table{font-size:7pt}th,td{white-space:normal;padding-right:.4rem}summary{display:none}section:has(tr:nth-child(24)){break-inside:auto}
figure svg{break-inside:avoid;min-width:0}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""


def report_html(report: ReportData) -> str:
    """The whole page."""
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in report.facts)
    findings = "".join(f"<li>{escape(text)}</li>" for text in report.findings)
    notes = "".join(f"<p>{escape(text)}</p>" for text in report.notes)
    made = f"<p>Made by qzc {escape(VERSION)}"
    made += f" with <code>{escape(report.command)}</code></p>" if report.command else "</p>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(report.title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(report.title)}</h1><dl>{facts}</dl><ol>{findings}</ol></header>\n<main>\n"
        + "\n".join(_section(chart) for chart in report.charts)
        + f"\n</main>\n<footer>{notes}{made}</footer>\n</body>\n</html>\n"
    )


def figure_svg(chart: AnyChart) -> str:
    """One chart as an SVG file that needs no page around it, light or dark as its reader has it."""
    colours = (
        "--ink:#1a1c20;--soft:#565c66;--rule:#d9dde3;background:#fff",
        "--ink:#e8eaee;--soft:#a5adb8;--rule:#353a43;background:#14161a",
    )
    light, dark = (f"svg{{{_variables(c)}{more}}}" for c, more in zip((_LIGHT, _DARK), colours, strict=True))
    style = f"{light}@media (prefers-color-scheme:dark){{{dark}}}svg{{font-family:sans-serif}}{_FIGURE}{_series()}"
    head, mark, rest = chart_svg(chart).partition(">")
    return f"{head}{mark}<style>{style}</style>{rest}\n"


def _section(chart: AnyChart) -> str:
    return (
        f'<section id="{escape(chart.name)}"><h2>{escape(chart.title)}</h2><figure>'
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(chart.title)}">{chart_svg(chart)}</div>'
        f"<figcaption>{escape(chart.text)}</figcaption></figure>{_table(chart.table)}</section>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return (
        "<details><summary>The numbers as a table</summary>"
        f'<div class="scroll" tabindex="0" role="group" aria-label="Table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _style() -> str:
    return _STYLE % (_variables(_LIGHT), _variables(_DARK), f"{_FIGURE}\n{_series()}", _variables(_LIGHT))


def _variables(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))


def _series() -> str:
    return "".join(f".f{i}{{fill:var(--c{i})}}.l{i}{{stroke:var(--c{i});stroke-width:2}}" for i in range(8))
