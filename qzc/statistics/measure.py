"""`qzc.stats`: what quantizing and coding a checkpoint costs and gains, or what a `.qzc` holds, tensor by tensor.

Introduces the rooms to each other: formats reads, quantize and codec do what a pack would do, analysis counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..analysis.baselines import gzip_nbytes, zstd_nbytes
from ..analysis.distortion import weight_distortion
from ..analysis.tensor_stats import TensorStats, Totals, totals
from ..codec.chunks import CHUNK_CODES
from ..codec.errors import InvalidArgumentError
from ..codec.records import Records
from ..codec.run_map import RunMap
from ..formats.checkpoint import is_qzc, open_checkpoint
from ..lossless import plan_lossless
from ..packing.encoder import LARGE
from ..planner import FilePlan, PlannedTensor, plan_file
from ..progress import Progress
from ..quantize.rtn import NonFiniteError, quantize
from ..quantize.select import BitsRule, Selection
from ..sources import SourceTensors, find_layout, open_source
from ..threads import thread_map
from .coded import Coded, code_lossless, code_tensor, file_stats
from .packed import packed_stats

NOT_FINITE = "has NaN or Inf"


@dataclass(frozen=True)
class ModelStats:
    """The figures of a checkpoint; `docs/stats.md` defines each.

    bits: that of the grids, None where rules or the file decide. tensors: sorted by name.
    """

    source: Path
    kind: Literal["safetensors", "qzc"]
    bits: int | None
    tensors: tuple[TensorStats, ...]
    totals: Totals

    def to_json(self) -> dict[str, Any]:
        """A document of the schema `qzc.stats/2`: sizes are exact integers, figures that do not exist are null."""
        from .document import stats_document

        return stats_document([self])


def stats(
    path: str | Path,
    selection: Selection | None = None,
    *,
    lossless: bool = False,
    gzip: bool = True,
    chunk_codes: int = CHUNK_CODES,
    threads: int = 0,
    progress: Progress | None = None,
) -> ModelStats:
    """Measure a checkpoint as `pack` would quantize and code it, or a `.qzc` as it is, to the byte.

    path: a file or a folder. selection: grids by tensor name, not for `.qzc`; None for the default grid, and for none if
    the checkpoint is quantized already. lossless: quantize nothing. gzip: also run gzip -6 over the original bytes, by far the slowest figure.
    chunk_codes: as for `pack`. threads: 0 for all CPUs; the result does not depend on it. Nothing is written.

    Raises InvalidArgumentError, FileAccessError, CorruptionError, UnsupportedError.
    """
    checkpoint = open_checkpoint(path)
    packed = [is_qzc(file) for file in checkpoint.files]
    if any(packed) and not all(packed):
        raise InvalidArgumentError(f"{path}: some files are .qzc and some are not; measure them one by one")
    total = sum(file.stat().st_size for file in checkpoint.files)
    kind: Literal["safetensors", "qzc"] = "qzc" if any(packed) else "safetensors"
    with thread_map(threads) as run:
        if kind == "qzc":
            bits = None
            tensors, overhead = packed_stats(checkpoint.files, run, _Work(run, total, progress).advance)
        else:
            work = _Work(run, total * (3 if gzip else 2), progress)
            found = find_layout(checkpoint)
            selection = choose(selection, lossless, found is not None)
            hints = found.hints if found else {}
            bits = None if selection is None else one_precision(selection)
            tensors, overhead = _as_packed(checkpoint.files, selection, hints, gzip, chunk_codes, work)
    tensors.sort(key=lambda tensor: tensor.name)
    return ModelStats(checkpoint.root, kind, bits, tuple(tensors), totals(tensors, overhead))


def choose(selection: Selection | None, lossless: bool, is_quantized: bool) -> Selection | None:
    """What is to be quantized, as `pack` decides it: nothing, if it is already and nobody asked for it."""
    if lossless and selection is not None:
        raise InvalidArgumentError("lossless means that nothing is quantized: give either it or a selection")
    return None if lossless or (selection is None and is_quantized) else selection or Selection()


def one_precision(selection: Selection) -> int | None:
    """The bits of all grids; None if rules give them by name."""
    (first, *others) = selection.rules or (BitsRule("*", None),)
    return first.bits if first.pattern == "*" and not others else None


class _Work:
    """How work is run, and how far it got, in bytes read."""

    def __init__(self, run: RunMap, total: int, progress: Progress | None) -> None:
        self.run, self._total, self._done = run, total, 0
        self._progress = progress or (lambda doing, done, total: None)

    def advance(self, doing: str, nbytes: int) -> None:
        self._done += nbytes
        self._progress(doing, self._done, self._total)


def _as_packed(
    paths: Sequence[Path],
    selection: Selection | None,
    hints: Mapping[str, Sequence[Records]],
    gzip: bool,
    chunk_codes: int,
    work: _Work,
) -> tuple[list[TensorStats], dict[str, int]]:
    tensors: list[TensorStats] = []
    overhead: dict[str, int] = {}
    for path in paths:
        with open_source(path) as file:
            plan = plan_file(file, path, selection, hints=hints)
            coded = dict(_code(file, plan.quantized, chunk_codes, work))
            plan = without_bad(plan, {name for name, one in coded.items() if one is None}, file)
            good = {name: one for name, one in coded.items() if one is not None}
            good.update(_code_kept(file, plan.lossless, chunk_codes, work))
            found, beside = file_stats(file, plan, good, chunk_codes, selection is None)
            stored = [t for t in plan.tensors if not t.tied_to]
            zstd = _compress(file, stored, "zstd -3", work)
            gzipped = _compress(file, stored, "gzip -6", work) if gzip else {}
            tensors += [
                replace(t, sizes=replace(t.sizes, gzip_nbytes=gzipped.get(t.name), zstd_nbytes=zstd.get(t.name)))
                for t in found
            ]
            for what, nbytes in beside.items():
                overhead[what] = overhead.get(what, 0) + nbytes
    return tensors, overhead


def without_bad(plan: FilePlan, bad: set[str], file: SourceTensors) -> FilePlan:
    """The plan with tensors that no grid can hold kept, as a pack does that is told to keep them."""

    def kept(t: PlannedTensor) -> PlannedTensor:
        if t.name not in bad:
            return t
        return replace(
            t, args=None, reason=NOT_FINITE, lossless=plan_lossless(file.raw(t.name), t.dtype, shape=t.shape)
        )

    return replace(plan, tensors=tuple(map(kept, plan.tensors))) if bad else plan


def _compress(file: SourceTensors, tensors: Sequence[PlannedTensor], tool: str, work: _Work) -> dict[str, int]:
    """The size of each tensor's bytes under a general compressor; the largest tensors first, so that no thread idles."""

    def size(tensor: PlannedTensor) -> int:
        raw = file.raw(tensor.name)
        nbytes = gzip_nbytes(raw, 6) if tool == "gzip -6" else zstd_nbytes(raw, 3)
        file.release(tensor.name)
        return nbytes

    order = sorted(tensors, key=lambda tensor: -tensor.nbytes)
    sizes: dict[str, int] = {}
    for tensor, nbytes in zip(order, work.run(size, order), strict=True):
        sizes[tensor.name] = nbytes
        work.advance(f"{tool} {tensor.name}", tensor.nbytes)
    return sizes


def _code(
    file: SourceTensors, tensors: Sequence[PlannedTensor], chunk_codes: int, work: _Work
) -> Iterator[tuple[str, Coded | None]]:
    """Large tensors one after another, each spread over the threads; then the small ones, one to a thread."""
    for large in (True, False):
        group = [tensor for tensor in tensors if (tensor.parameters >= LARGE) == large]
        code = partial(_code_one, file, chunk_codes, work.run if large else map)
        for tensor, coded in zip(group, (map if large else work.run)(code, group), strict=True):
            work.advance(tensor.name, tensor.nbytes)
            yield tensor.name, coded


def _code_one(file: SourceTensors, chunk_codes: int, run: RunMap, planned: PlannedTensor) -> Coded | None:
    """Quantize and code one tensor as a pack would; None if it has values that no grid can hold."""
    assert planned.args is not None
    weights = file.array(planned.name)
    try:
        tensor = quantize(weights, planned.args, dtype=planned.dtype, name=f"tensor {planned.name!r}", run=run)
    except NonFiniteError:
        return None
    distortion = weight_distortion(weights, tensor, run=run)
    file.release(planned.name)
    return code_tensor(tensor, distortion, chunk_codes, run)[0]


def _code_kept(
    file: SourceTensors, tensors: Sequence[PlannedTensor], chunk_codes: int, work: _Work
) -> Iterator[tuple[str, Coded]]:
    """What is coded bit by bit. One after another: their planes are spread over the threads."""
    for tensor in tensors:
        assert tensor.lossless is not None
        raw = file.raw(tensor.name)
        coded = code_lossless(raw, tensor.dtype, tensor.parameters, tensor.lossless, chunk_codes, work.run)
        file.release(tensor.name)
        work.advance(tensor.name, tensor.nbytes)
        yield tensor.name, coded
