"""The points that `qzc pareto` measured: as a document of the schema `qzc.pareto/1`, and as a chart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from ..codec.errors import InvalidArgumentError
from ..formats.atomic import atomic_writer
from ..reports.data import Lines
from ..reports.pareto import SCHEMA, Pareto, ParetoPoint, pareto_chart
from ..roofline import read_text
from .evaluate import Estimate

PACKED = ", packed ints"
"""Behind a method: its codes as integers side by side, not entropy-coded. No file, but what such files come to."""
ESTIMATES = ("kl", "perplexity", "cosine_error")


@dataclass(frozen=True)
class MeasuredPoint:
    """A method at one rate.

    rate: as asked for; of a grid its number of bits. bits_per_weight: of the quantized tensors, all side information
    counted. nbytes: of the packed files, None where there are none. kl, perplexity, cosine_error: as in `EvalReport`, None
    for what there is not. seconds: of packing.
    """

    method: str
    rate: float
    bits_per_weight: float
    nbytes: int | None
    kl: Estimate | None
    perplexity: Estimate | None
    cosine_error: Estimate | None
    seconds: float

    def error(self, metric: str) -> Estimate:
        """The estimate by a key of `METRICS`."""
        found = getattr(self, metric)
        assert isinstance(found, Estimate)
        return found


@dataclass(frozen=True)
class Measured:
    """Points of one model. metric: a key of `METRICS` that they all have.

    settings: what must be equal for points to be comparable: hashes of model, text and statistics, windows, and which
    tensors are quantized. original: its size and perplexity, for people.
    """

    model: str
    metric: str
    settings: Mapping[str, Any]
    original: Mapping[str, Any]
    points: tuple[MeasuredPoint, ...]

    def best(self) -> list[MeasuredPoint]:
        """Those that no other point beats in bits and error at once."""
        plain = self._plain()
        best = plain.best()
        return [point for point, place in zip(self.points, plain.points, strict=True) if place in best]

    def document(self) -> dict[str, Any]:
        best = self.best()
        return {
            "schema": SCHEMA,
            "model": self.model,
            "metric": self.metric,
            "settings": dict(self.settings),
            "original": dict(self.original),
            "points": [{**_to_json(point), "best": point in best} for point in self.points],
        }

    def chart(self) -> Lines:
        """As `qzc report` draws it; what is not entropy-coded is dotted."""
        chart = pareto_chart(self._plain())
        return replace(chart, lines=tuple(replace(line, dashed=line.name.endswith(PACKED)) for line in chart.lines))

    def _plain(self) -> Pareto:
        points = (
            ParetoPoint(point.method, point.bits_per_weight, point.error(self.metric).value, point.nbytes)
            for point in self.points
        )
        return Pareto(self.model, self.metric, tuple(points))


def write_measured(measured: Measured, path: Path) -> None:
    """Write the document, over an older one. Raises FileAccessError."""
    text = json.dumps(measured.document(), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_writer(path, overwrite=True) as stream:
        stream.write(text.encode("utf-8", "backslashreplace") + b"\n")


def read_measured(path: Path) -> Measured:
    """Read what `write_measured` wrote. Raises FileAccessError, InvalidArgumentError for any other file."""
    try:
        document = json.loads(read_text(path))
        if document["schema"] != SCHEMA:
            raise ValueError(f"the schema is {document['schema']!r}")
        model, metric, settings = document["model"], document["metric"], document["settings"]
        if not isinstance(model, str) or metric not in ESTIMATES or not isinstance(settings, dict):
            raise ValueError("model, metric or settings are missing")
        points = tuple(_from_json(point) for point in document["points"])
        if any(getattr(point, metric) is None for point in points):
            raise ValueError(f"a point has no {metric}")
        return Measured(model, metric, settings, dict(document["original"]), points)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidArgumentError(f"{path}: not a result of `qzc pareto` ({error})") from None


def _to_json(point: MeasuredPoint) -> dict[str, Any]:
    """Flat, as the columns of a table are."""
    plain = {
        "method": point.method,
        "rate": point.rate,
        "bits_per_weight": point.bits_per_weight,
        "nbytes": point.nbytes,
    }
    for name in ESTIMATES:
        found = getattr(point, name)
        if found is not None:
            plain |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {**plain, "seconds": round(point.seconds, 3)}


def _from_json(entry: Mapping[str, Any]) -> MeasuredPoint:
    nbytes = entry["nbytes"]
    return MeasuredPoint(
        method=str(entry["method"]),
        rate=_number(entry["rate"]),
        bits_per_weight=_number(entry["bits_per_weight"]),
        nbytes=None if nbytes is None else int(_number(nbytes)),
        kl=_estimate(entry, "kl"),
        perplexity=_estimate(entry, "perplexity"),
        cosine_error=_estimate(entry, "cosine_error"),
        seconds=_number(entry["seconds"]),
    )


def _estimate(entry: Mapping[str, Any], name: str) -> Estimate | None:
    if name not in entry:
        return None
    low, high = (None if end is None else _number(end) for end in (entry[f"{name}_low"], entry[f"{name}_high"]))
    return Estimate(_number(entry[name]), low, high)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)
