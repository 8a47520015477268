"""The HTML report: well-formed, self-contained, small, readable without its pictures; and shown by a real browser."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from qzc.analysis.devices import DEVICES
from qzc.analysis.roofline import roofline
from qzc.cli.report import command
from qzc.reports.axes import log_ticks, number, short, ticks
from qzc.reports.build import report_data
from qzc.reports.charts import heat_place
from qzc.reports.data import Bars, Heat, Line, Lines, Strip, Table
from qzc.reports.html import report_html
from qzc.reports.svg import chart_svg, ramp
from qzc.roofline import model_facts, weight_formats
from qzc.statistics.deep_figures import DeepStats
from qzc.statistics.deep_stats import deep_stats
from qzc.statistics.deep_totals import deep_totals

CHARTS = ["planes", "control", "sizes", "histograms", "efficiency", "layers", "quality", "equal-snr", "roofline"]
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("href", "src", "data", "action", "srcset") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(__file__).parent.parent / "fixtures" / "model"


@pytest.fixture(scope="module")
def measured(folder: Path) -> DeepStats:
    return deep_stats(folder, (3, 4, 8), gzip=False)


@pytest.fixture(scope="module")
def page(measured: DeepStats, folder: Path) -> str:
    facts = model_facts(folder)
    bound = roofline(facts.parameters, weight_formats(4, 3.6), DEVICES, facts.shape, context=512)
    return report_html(report_data(measured, bound, command="qzc report model -o report.html"))


def test_every_chart_is_there_with_its_table(page: str) -> None:
    parsed = Page(page)
    assert [name for name in parsed.ids if name in CHARTS] == CHARTS
    assert parsed.tags["svg"] == parsed.tags["figure"] == parsed.tags["table"] == len(CHARTS)
    assert len(set(parsed.ids)) == len(parsed.ids)


def test_nothing_comes_from_outside(page: str) -> None:
    parsed = Page(page)
    assert not parsed.links and not parsed.tags["script"] and not parsed.tags["link"]
    outside = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in outside.replace("http-equiv", "") and "url(" not in outside and "@import" not in outside


def test_pictures_are_xml_with_words(page: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == len(CHARTS)
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        kinds = [child.tag.rpartition("}")[2] for child in root[:2]]
        assert kinds == ["title", "desc"] and all(child.text for child in root[:2])
        assert root.get("role") == "img"
        named = (root.get("aria-labelledby") or "").split()
        assert named == [child.get("id") for child in root[:2]]
        assert "nan" not in picture and "inf," not in picture


def test_light_dark_print_and_language(page: str) -> None:
    assert '<html lang="en">' in page and "prefers-color-scheme:dark" in page and "@media print" in page
    assert page.count("--c0:") == 3


def test_numbers_are_those_that_were_measured(page: str, measured: DeepStats) -> None:
    main = measured.totals.at(4)
    assert main is not None
    assert f"{main.codes.entropy:.3f} bits of entropy" in page
    assert f"{main.total_nbytes:,}" in page
    assert f"{main.file.sizes.bits_per_weight:.3f}" in page


def test_a_hostile_name_stays_text(measured: DeepStats) -> None:
    name = '</title></svg><script>alert("1")</script>&\'"'
    tensors = tuple(replace(t, name=name + str(i)) for i, t in enumerate(measured.tensors))
    text = report_html(report_data(replace(measured, tensors=tensors, source=Path("<b>&amp;"))))
    assert Page(text).tags["script"] == 0 and "<script" not in text
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)


def test_a_large_model_makes_a_small_file(measured: DeepStats) -> None:
    """300 tensors at 8 bits, whose histograms have 256 bars."""
    coded = [t for t in measured.tensors if t.codes]
    many = [
        replace(coded[i % len(coded)], name=f"model.layers.{i // 7}.mlp.part{i % 7}.weight", tied_to=None)
        for i in range(300)
    ]
    large = replace(measured, tensors=tuple(many), totals=deep_totals(many, measured.precisions))
    text = report_html(report_data(large, bits=8))
    assert len(text.encode()) < 1_000_000
    assert Page(text).tags["tr"] > 300


def test_parts_may_be_missing(measured: DeepStats) -> None:
    bare = tuple(replace(t, control=()) for t in measured.tensors)
    totals = replace(deep_totals(bare, measured.precisions), gzip_ratio=None)
    without = replace(measured, tensors=bare, totals=totals, curves=(), equal_snr=(), sample=1000)
    text = report_html(report_data(without))
    names = [name for name in Page(text).ids if name in CHARTS]
    assert names == ["planes", "sizes", "histograms", "efficiency", "layers"]
    assert "gzip -6 makes" not in text and "Sampled" not in text  # no error to tell: nothing was left out


def test_measured_quality_takes_the_place_of_snr(measured: DeepStats) -> None:
    chart = Lines(
        "quality", "Perplexity", "t", "a", Table(("a",), ()), x="bits", y="ppl", lines=(Line("x", ((3.0, 9.0),)),)
    )
    report = report_data(measured, quality=chart)
    assert [c.title for c in report.charts if c.name == "quality"] == ["Perplexity"]


def test_charts_of_nothing() -> None:
    table = Table(("a",), ())
    for chart in (
        Bars("a", "t", "x", "y", table),
        Strip("a", "t", "x", "y", table, series=("s",), labels=("l",), values=((None,),), words=(("",),)),
        Heat("a", "t", "x", "y", table),
        Lines("a", "t", "x", "y", table),
    ):
        ElementTree.fromstring(chart_svg(chart))


def test_places_in_the_heat_map() -> None:
    assert heat_place("encoder.layer.3.attention.self.key.weight") == ("attention.self.key", 3)
    assert heat_place("embeddings.word_embeddings.weight") == ("embeddings.word_embeddings", None)
    assert heat_place("blocks.7.experts.12.w1") == ("experts.*.w1", 7)
    assert heat_place("conv.0.weight") == ("conv", 0)
    assert heat_place("weight") == ("weight", None)


def test_axes() -> None:
    assert ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] and ticks(2.0, 2.0) == [2.0]
    assert log_ticks(0.5, 2000.0) == [1.0, 10.0, 100.0, 1000.0]
    assert [number(v) for v in (0.0, 0.00012, 3.9, 92.81, 5485.7)] == ["0", "0.000120", "3.90", "92.8", "5,486"]
    assert [short(v) for v in (0.5, 1000.0, 2.5e6)] == ["0.5", "1k", "2.5M"]
    assert ramp(-1.0) == ramp(0.0) == (0, 34, 78) and ramp(1.0) == (254, 232, 56)


def test_command(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    arguments = [str(folder), "-o", str(output), "--bits", "4", "--no-gzip"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout == "" and "bits of entropy" in result.stderr
    again = CliRunner().invoke(command, arguments)
    assert again.exit_code == 2 and "exists" in again.stderr


@pytest.mark.slow
def test_figures_as_png(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = [str(folder), "-o", str(tmp_path / "report.html"), "--bits", "4", "--no-gzip", "-q"]
    figures = tmp_path / "figures"
    done = CliRunner().invoke(command, [*arguments, "--png", str(figures)], catch_exceptions=False)
    assert done.exit_code == 0 and done.stderr == ""
    assert {path.stem for path in figures.iterdir()} == set(CHARTS)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_shows_every_figure(page: str, tmp_path: Path, width: int) -> None:
    """Headless Chromium lays the page out; a script of the test's own measures what came of it."""
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("needs Chromium")
    probe = """<script>
      const errors = []; window.onerror = (message) => errors.push(message);
      addEventListener("load", () => { const lines = [];
        for (const svg of document.querySelectorAll("svg")) { const box = svg.getBoundingClientRect();
          let out = 0, over = 0; const texts = [...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect());
          for (const t of texts) if (t.left < box.left - 1 || t.right > box.right + 1 || t.bottom > box.bottom + 1) out++;
          for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) { const a = texts[i], b = texts[j];
            if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4) over++; }
          lines.push([svg.closest("section").id, box.width > 300 && box.height > 60, out, over].join(" ")); }
        lines.push("wide " + (document.documentElement.scrollWidth <= innerWidth) + " errors " + errors.length);
        document.title = lines.join("|"); });</script>"""
    path = tmp_path / "report.html"
    loose = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    path.write_text(loose.replace("</head>", probe + "</head>"), "utf-8")
    done = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={width},900", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    measured = re.search(r"<title>(.*?)</title>", done.stdout)
    assert measured is not None
    assert measured[1].split("|") == [f"{name} true 0 0" for name in CHARTS] + ["wide true errors 0"]
