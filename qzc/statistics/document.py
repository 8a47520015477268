"""The JSON document of figures, schema `qzc.stats/2`: one for `stats` and `deep_stats`, defined in docs/stats.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .deep_figures import plain

if TYPE_CHECKING:
    from .deep_figures import DeepStats, TensorFigures
    from .measure import ModelStats

SCHEMA = "qzc.stats/2"
NO_TENSOR: dict[str, Any] = {"floats": None, "fit": None, "control": []}
NO_TOTALS: dict[str, Any] = {
    "floats": None,
    "kurtosis": None,
    "beyond3": None,
    "beyond6": None,
    "fit_loss": {},
    "control": [],
}


def stats_document(precisions: Sequence[ModelStats], deep: DeepStats | None = None) -> dict[str, Any]:
    """precisions: what packing gives at each, of the same tensors. deep: all that was measured besides."""
    first = precisions[0]
    figures = {tensor.name: tensor for tensor in deep.tensors} if deep else {}
    return {
        "schema": SCHEMA,
        "source": str(first.source),
        "kind": first.kind,
        "bits": [one.bits for one in precisions],
        "sample": deep.sample if deep else None,
        "tensors": [
            _tensor(precisions, number, figures.get(tensor.name)) for number, tensor in enumerate(first.tensors)
        ],
        "totals": _totals(precisions, deep),
        "curves": plain(deep.curves) if deep else [],
        "equal_snr": plain(deep.equal_snr) if deep else [],
    }


def _tensor(precisions: Sequence[ModelStats], number: int, figures: TensorFigures | None) -> dict[str, Any]:
    each = [one.tensors[number] for one in precisions]
    first = each[0]
    return {
        "name": first.name,
        "dtype": first.dtype,
        "shape": list(first.shape),
        "tied_to": first.tied_to,
        **first.sizes.before_json(),
        **(figures.to_json() if figures else {"measured": first.sizes.parameters, **NO_TENSOR}),
        "precisions": [
            _precision(one.bits, tensor.sizes.coded_json(), figures.at(one.bits) if figures else None)
            | {"reason": tensor.reason}
            for one, tensor in zip(precisions, each, strict=True)
        ],
    }


def _totals(precisions: Sequence[ModelStats], deep: DeepStats | None) -> dict[str, Any]:
    first = precisions[0].totals
    found = []
    for one in precisions:
        at = deep.totals.at(one.bits) if deep else None
        entry = _precision(one.bits, one.totals.sizes.coded_json(), at.codes if at else None)
        found.append(entry | {"coded_tensors": one.totals.coded_tensors, "parts": dict(one.totals.parts)})
    return {
        "tensors": first.tensors,
        **first.sizes.before_json(),
        **(deep.totals.to_json() if deep else NO_TOTALS),
        "precisions": found,
    }


def _precision(bits: int | None, coded: dict[str, Any], figures: Any) -> dict[str, Any]:
    if figures is not None:
        coded["codes"] |= figures.to_json()
    return {"bits": bits, **coded}
