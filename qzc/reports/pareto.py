"""Measured quality against bits: points from a file (schema `qzc.pareto/1`) as a chart of the report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from ..codec.errors import InvalidArgumentError
from ..roofline import read_text
from .axes import number
from .data import Line, Lines, Table

SCHEMA = "qzc.pareto/1"
METRICS = {
    "kl": "KL divergence to the original model, nats per token",
    "perplexity": "perplexity",
    "cosine_error": "1 - cosine to the original model's output",
}
"""In the order in which a table without a `metric` is searched. In all of them lower is better."""
AXES = {"kl": "KL divergence in nats", "perplexity": "perplexity", "cosine_error": "1 - cosine"}
MAX_POINTS = 2000
_NAME = 120  # characters of a method that are shown


@dataclass(frozen=True)
class ParetoPoint:
    """A method at one rate. error: by the metric of the file."""

    method: str
    bits_per_weight: float
    error: float
    nbytes: int | None = None


@dataclass(frozen=True)
class Pareto:
    """Points of one model by one metric (a key of METRICS)."""

    model: str
    metric: str
    points: tuple[ParetoPoint, ...]

    def best(self) -> list[ParetoPoint]:
        """Those that no other point beats in bits and error at once, by ascending bits."""
        found: list[ParetoPoint] = []
        for point in sorted(self.points, key=lambda p: (p.bits_per_weight, p.error)):
            if not found or point.error < found[-1].error:
                found.append(point)
        return found


def read_pareto(path: Path) -> Pareto:
    """Read a JSON document of the schema `qzc.pareto/1`, or a CSV with its points as rows.

    Raises FileAccessError, InvalidArgumentError.
    """
    text = read_text(path)
    try:
        if text.lstrip().startswith("{"):
            document = json.loads(text)
            if document.get("schema") != SCHEMA:
                raise InvalidArgumentError(f"schema is {document.get('schema')!r}, not {SCHEMA!r}")
            return _pareto(document.get("points"), document.get("metric"), str(document.get("model", "")))
        return _pareto(list(csv.DictReader(io.StringIO(text))), None, "")
    except (ValueError, RecursionError, csv.Error) as error:
        raise InvalidArgumentError(f"{path}: no Pareto points: {error}") from None


def pareto_chart(pareto: Pareto) -> Lines:
    """Takes the place of the weight SNR in the report."""
    best, methods = pareto.best(), dict.fromkeys(point.method for point in pareto.points)
    lines = []
    for method in methods:
        mine = [(p.bits_per_weight, p.error) for p in pareto.points if p.method == method]
        lines.append(Line(method, tuple(sorted(mine))))
    what, log = METRICS[pareto.metric], all(point.error > 0 for point in pareto.points)
    rows = [
        (p.method, f"{p.bits_per_weight:.4f}", number(p.error, 4), f"{p.nbytes:,}" if p.nbytes else "-", _mark(p, best))
        for p in sorted(pareto.points, key=lambda p: (p.method, p.bits_per_weight))
    ]
    of = f" of {pareto.model}" if pareto.model else ""
    return Lines(
        "quality",
        f"Quality against bits: {what}",
        f"As measured{of}, not estimated from weights. Bits count everything a file holds. Lower and further left is better; the table "
        "marks the points that no other one beats in both.",
        f"{len(lines)} methods; the best points go from {_words(best[0])} to {_words(best[-1])}.",
        Table(("method", "bits per weight", pareto.metric, "bytes", "best"), tuple(rows)),
        x="bits per weight",
        y=AXES[pareto.metric] + (", logarithmic" if log else ""),
        lines=tuple(lines),
        log=log,
    )


def _mark(point: ParetoPoint, best: Sequence[ParetoPoint]) -> str:
    return "yes" if point in best else ""


def _words(point: ParetoPoint) -> str:
    return f"{number(point.error, 3)} at {point.bits_per_weight:.2f} bits ({point.method})"


def _pareto(points: Any, metric: Any, model: str) -> Pareto:
    if not isinstance(points, list) or not points or not all(isinstance(point, Mapping) for point in points):
        raise InvalidArgumentError("points must be a list of objects, or rows of a CSV under a header")
    if len(points) > MAX_POINTS:
        raise InvalidArgumentError(f"{len(points)} points are too many to draw; {MAX_POINTS} are the limit")
    if metric is None:
        metric = next((name for name in METRICS if all(point.get(name) not in (None, "") for point in points)), None)
    if not isinstance(metric, str) or metric not in METRICS:
        raise InvalidArgumentError(f"the metric must be one of {', '.join(METRICS)}, and all points must have it")
    return Pareto(model, metric, tuple(_point(point, metric, i) for i, point in enumerate(points, 1)))


def _point(point: Mapping[str, Any], metric: str, number_: int) -> ParetoPoint:
    method = point.get("method")
    if not isinstance(method, str) or not method:
        raise InvalidArgumentError(f"point {number_} has no method")
    bits, error = (_value(point, key, number_) for key in ("bits_per_weight", metric))
    nbytes = point.get("nbytes")
    size = None if nbytes in (None, "") else int(_value(point, "nbytes", number_))
    return ParetoPoint(method[:_NAME], bits, error, size)


def _value(point: Mapping[str, Any], key: str, number_: int) -> float:
    value = point.get(key)
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        found = None
    if found is None or not isfinite(found) or found < 0:
        raise InvalidArgumentError(f"point {number_}: {key} is {value!r}, not a number of at least 0")
    return found
