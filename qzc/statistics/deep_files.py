"""The files of a checkpoint at several precisions: what becomes of each tensor, and what the packed files come to."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..analysis.tensor_stats import TensorStats, totals
from ..codec.records import Records
from ..formats.writer import Writer
from ..lossless import plan_lossless
from ..planner import FilePlan, PlannedTensor, plan_file
from ..quantize.select import BitsRule, Selection
from ..sources import SourceTensors
from .coded import Coded, code_lossless, file_stats, planned_stats
from .deep_tasks import Options
from .measure import ModelStats, without_bad

Results = Mapping[tuple[str, str, int | None], Any]


@dataclass(frozen=True, eq=False)
class DeepFile:
    """An open file and what a pack would do with it at each precision."""

    source: SourceTensors
    plans: Mapping[int | None, FilePlan]

    @cached_property
    def tensors(self) -> dict[str, dict[int | None, PlannedTensor]]:
        """By name, then by precision."""
        found: dict[str, dict[int | None, PlannedTensor]] = {}
        for bits, plan in self.plans.items():
            for tensor in plan.tensors:
                found.setdefault(tensor.name, {})[bits] = tensor
        return found


def plan_at(
    file: SourceTensors,
    path: Path,
    selection: Selection | None,
    bits: int | None,
    hints: Mapping[str, Sequence[Records]],
) -> FilePlan:
    """bits: in place of those of the rules, which then say only what is kept; None for the rules as they are."""
    if selection is not None and bits is not None:
        rules = tuple(BitsRule(rule.pattern, rule.bits and bits) for rule in selection.rules)
        selection = replace(selection, rules=rules)
    return plan_file(file, path, selection, hints=hints)


def file_at(
    root: Path, files: Sequence[DeepFile], bits: int | None, results: Results, options: Options, restorable: bool
) -> ModelStats:
    """What the packed files come to at one precision: to the byte where all weights were measured, else estimated."""
    tensors: list[TensorStats] = []
    overhead: dict[str, int] = {}
    for file in files:
        plan = file.plans[bits]
        bad = {t.name for t in plan.quantized if results.get((t.name, "codes", bits)) is None}
        plan = without_bad(plan, bad, file.source)
        coded = {t.name: _coded(file.source, t, bits, results, options) for t in (*plan.quantized, *plan.lossless)}
        whole = {name: one for name, one in coded.items() if one is not None}
        if len(whole) == len(coded):
            found, beside = file_stats(file.source, plan, whole, options.chunk_codes, restorable)
        else:
            found, beside = (
                [_estimate(t, coded.get(t.name), bits, results) for t in plan.tensors],
                _beside(plan, options),
            )
        tensors += [_compressed(tensor, results) for tensor in found]
        for what, nbytes in beside.items():
            overhead[what] = overhead.get(what, 0) + nbytes
    tensors.sort(key=lambda tensor: tensor.name)
    return ModelStats(root, "safetensors", bits, tuple(tensors), totals(tensors, overhead))


def _coded(
    source: SourceTensors, tensor: PlannedTensor, bits: int | None, results: Results, options: Options
) -> Coded | None:
    """A tensor that was coded in full; None for a sample."""
    if tensor.args is not None:
        coded: Coded | None = results[tensor.name, "codes", bits][1]
        return coded
    if (tensor.name, "kept", None) in results:
        kept: Coded | None = results[tensor.name, "kept", None]
        return kept
    plan = tensor.lossless or plan_lossless(source.raw(tensor.name), tensor.dtype, shape=tensor.shape)  # one with NaN
    assert plan is not None
    return code_lossless(source.raw(tensor.name), tensor.dtype, tensor.parameters, plan, options.chunk_codes)


def _estimate(tensor: PlannedTensor, coded: Coded | None, bits: int | None, results: Results) -> TensorStats:
    if tensor.tied_to or not (tensor.args or tensor.lossless):
        return planned_stats(tensor, 0 if tensor.tied_to else tensor.nbytes)
    if tensor.args is not None:
        figures = results[tensor.name, "codes", bits][0]
        return planned_stats(tensor, None, figures.sizes.scaled(figures.count / figures.sizes.count))
    assert tensor.lossless is not None
    return planned_stats(tensor, tensor.lossless.nbytes, lossless=coded.lossless if coded else None)


def _beside(plan: FilePlan, options: Options) -> dict[str, int]:
    stream, uncoded = io.BytesIO(), plan.uncoded()
    Writer(stream, plan.profile(), uncoded, chunk_codes=options.chunk_codes)  # reserves its header
    members = len(plan.quantized) + len(plan.lossless) + len(uncoded) + 6
    return {"header": stream.tell(), "checksums": 8 * members}


def _compressed(tensor: TensorStats, results: Results) -> TensorStats:
    """With what general compressors make of its bytes, scaled up from the part that was measured."""

    def whole(kind: str) -> int | None:
        found = results.get((tensor.name, kind, None))
        if found is None:
            return None if tensor.sizes.nbytes or kind == "gzip" else 0
        measured, size = found
        return int(size) if measured == tensor.sizes.nbytes else round(size * tensor.sizes.nbytes / measured)

    sizes = replace(tensor.sizes, gzip_nbytes=whole("gzip"), zstd_nbytes=whole("zstd"))
    return replace(tensor, sizes=sizes)
