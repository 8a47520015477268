"""Measured quality in the report: what files are read, and what becomes of their points."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from qzc.cli.report import command
from qzc.codec.errors import FileAccessError, InvalidArgumentError
from qzc.reports.pareto import ParetoPoint, pareto_chart, read_pareto
from qzc.reports.svg import chart_svg

POINTS: list[dict[str, Any]] = [
    {"method": "rtn", "bits_per_weight": 4.1, "nbytes": 1000, "kl": 0.02, "extra": "x"},
    {"method": "rtn", "bits_per_weight": 3.1, "nbytes": 800, "kl": 0.2},
    {"method": "gptq", "bits_per_weight": 3.1, "kl": 0.05},
    {"method": "gptq", "bits_per_weight": 3.5, "kl": 0.06},
]
DOCUMENT = {"schema": "qzc.pareto/1", "model": "tiny", "metric": "kl", "points": POINTS}
CSV = "method,bits_per_weight,nbytes,kl\nrtn,4.1,1000,0.02\nrtn,3.1,800,0.2\ngptq,3.1,,0.05\ngptq,3.5,,0.06\n"


def written(folder: Path, content: object) -> Path:
    path = folder / "points"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_json_and_csv_hold_the_same_points(tmp_path: Path) -> None:
    from_json = read_pareto(written(tmp_path, DOCUMENT))
    assert (from_json.model, from_json.metric) == ("tiny", "kl")
    assert from_json.points[0] == ParetoPoint("rtn", 4.1, 0.02, 1000) and from_json.points[2].nbytes is None
    from_csv = read_pareto(written(tmp_path, "\ufeff" + CSV))
    assert from_csv.points == from_json.points and from_csv.metric == "kl"


def test_best_points_are_those_that_none_beats(tmp_path: Path) -> None:
    pareto = read_pareto(written(tmp_path, DOCUMENT))
    assert [(p.method, p.bits_per_weight) for p in pareto.best()] == [("gptq", 3.1), ("rtn", 4.1)]
    chart = pareto_chart(pareto)
    assert [line.name for line in chart.lines] == ["rtn", "gptq"] and chart.log
    assert chart.lines[0].points == ((3.1, 0.2), (4.1, 0.02))
    assert [row[-1] for row in chart.table.rows] == ["yes", "", "", "yes"]
    assert "gptq" in chart.alt and "tiny" in chart.text


def test_no_logarithm_of_nothing(tmp_path: Path) -> None:
    points = [{"method": "<a & b>", "bits_per_weight": 2.0 + i, "cosine_error": 0.1 * i} for i in range(3)]
    chart = pareto_chart(read_pareto(written(tmp_path, {**DOCUMENT, "metric": "cosine_error", "points": points})))
    assert not chart.log
    ElementTree.fromstring(chart_svg(chart))
    alone = pareto_chart(read_pareto(written(tmp_path, {**DOCUMENT, "points": POINTS[:1]})))
    ElementTree.fromstring(chart_svg(alone))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "points must be"),
        ("{", "no Pareto points"),
        ("[" * 100_000, "points must be"),
        ("{" + '"a":{' * 100_000, "no Pareto points"),
        ({"schema": "qzc.pareto/2"}, "schema is"),
        ({**DOCUMENT, "points": []}, "points must be"),
        ({**DOCUMENT, "points": [1]}, "points must be"),
        ({**DOCUMENT, "metric": "beauty"}, "metric must be"),
        ({**DOCUMENT, "metric": ["kl"]}, "metric must be"),
        ({**DOCUMENT, "metric": "perplexity"}, "point 1: perplexity is None"),
        ({**DOCUMENT, "points": [{"method": "a", "bits_per_weight": "many", "kl": 1}]}, "is 'many'"),
        ({**DOCUMENT, "points": [{"method": "a", "bits_per_weight": True, "kl": 1}]}, "is True"),
        ({**DOCUMENT, "points": [{"method": "a", "bits_per_weight": 4, "kl": -1}]}, "at least 0"),
        ({**DOCUMENT, "points": [{"method": "a", "bits_per_weight": 10**400, "kl": 1}]}, "bits_per_weight"),
        ({**DOCUMENT, "points": [{"bits_per_weight": 4, "kl": 1}]}, "no method"),
        ({**DOCUMENT, "points": POINTS * 1000}, "too many"),
        (CSV.replace("0.05", "nan"), "kl is 'nan'"),
        (CSV.replace("kl", "loss"), "metric must be"),
        ("method\n" + "x" * 200_000, "no Pareto points"),
    ],
)
def test_what_is_refused(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        read_pareto(written(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError):
        read_pareto(tmp_path / "none.json")


def test_command(model_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    arguments = [str(model_folder), "-o", str(output), "--bits", "4", "--no-gzip", "--strategy", "channel"]
    result = CliRunner().invoke(command, [*arguments, "--pareto", str(written(tmp_path, DOCUMENT))])
    assert result.exit_code == 0, result.stderr
    page = output.read_text("utf-8")
    assert "KL divergence" in page and "weight SNR, grid by grid" not in page and "gptq" in page
    assert "--strategy=channel" in page
