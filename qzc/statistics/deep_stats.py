"""The entropy puzzle on one's own model: where floats hold noise, what trained weights have over random ones, what is left
in the codes of a grid, which coder gets at it, and what each grid costs at equal quality.

Tensor by tensor, in tasks of similar size, on all threads; huge models by a sample of each tensor's rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..analysis.equal_snr import equal_snr
from ..analysis.float_fields import FORMATS
from ..analysis.tensor_stats import TensorStats
from ..codec.chunks import CHUNK_CODES
from ..codec.errors import InvalidArgumentError, UnsupportedError
from ..codec.records import Records
from ..formats.checkpoint import is_qzc, open_checkpoint
from ..planner import PlannedTensor
from ..progress import Progress
from ..quantize.select import Selection
from ..sources import find_layout, open_source
from ..threads import thread_map
from .deep_figures import CodeFigures, DeepStats, TensorFigures
from .deep_files import DeepFile, Results, file_at, plan_at
from .deep_grids import REFERENCE, GridPoint, grid_curves
from .deep_sample import sample_size
from .deep_tasks import CONTROL_WEIGHTS, Options, Task, work
from .deep_totals import deep_totals
from .measure import choose, one_precision

PRECISIONS = (2, 3, 4, 5, 6, 8)
PARTS = ("floats", "fits", "entropies", "coders", "control", "grids")


def deep_stats(
    path: str | Path,
    bits: Sequence[int] | None = PRECISIONS,
    selection: Selection | None = None,
    *,
    lossless: bool = False,
    parts: Collection[str] = PARTS,
    gzip: bool = True,
    sample: int | None = None,
    chunk_codes: int = CHUNK_CODES,
    threads: int = 0,
    progress: Progress | None = None,
) -> DeepStats:
    """Measure a checkpoint that is not packed (a file or a folder).

    bits: precisions, each 1 to 8; None for those of the selection. selection: which tensors are quantized and how; with `bits`
    its rules say only which tensors are kept. None: as in `stats`. lossless: quantize nothing.
    parts: what to measure besides sizes: "floats" (entropy of bits and fields), "fits" (distributions), "entropies" (models of
    the codes), "coders" (further coders of the codes), "control" (random tensors), "grids" (kinds of grid at equal SNR).
    gzip: also run gzip -6, the slowest figure. sample: weights per tensor at most, 0 for all, None for all of a model of up
    to 2^28 weights and 2^20 per tensor of a larger one; where nothing is left out, sizes are those of a packed file to the
    byte. chunk_codes: as for `pack`. threads: 0 for all CPUs; the result does not depend on it.

    Raises InvalidArgumentError, FileAccessError, CorruptionError, UnsupportedError.
    """
    if bits is not None and not (bits and 1 <= min(bits) and max(bits) <= 8):
        raise InvalidArgumentError(f"bits are {list(bits)}; give at least one precision, each from 1 to 8")
    if sample is not None and sample < 0:
        raise InvalidArgumentError(f"a sample of {sample} weights: give 0 for all, or a number above 0")
    if unknown := set(parts) - set(PARTS):
        raise InvalidArgumentError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    checkpoint = open_checkpoint(path, "safetensors")
    if any(is_qzc(file) for file in checkpoint.files):
        raise UnsupportedError(
            f"{path} is packed: its original weights are gone; measure the .safetensors it was made of"
        )
    found = find_layout(checkpoint)
    selection = choose(selection, lossless, found is not None)
    precisions = _precisions(bits, selection)
    with ExitStack() as stack:
        sources = [(path, stack.enter_context(open_source(path))) for path in checkpoint.files]
        hints: Mapping[str, Sequence[Records]] = found.hints if found else {}
        files = [
            DeepFile(file, {b: plan_at(file, path, selection, b, hints) for b in precisions}) for path, file in sources
        ]
        tensors = [plans for file in files for plans in file.tensors.values()]
        sizes = [t.parameters for plans in tensors if not (t := next(iter(plans.values()))).tied_to]
        options = Options(precisions, sample_size(sizes, sample), gzip, frozenset(parts), chunk_codes)
        run = stack.enter_context(thread_map(threads))
        tasks = sorted(_tasks(files, options), key=lambda task: -task.cost)
        total, done = sum(task.cost for task in tasks), 0.0
        nbytes = sum(file.source.nbytes for file in files)
        results: dict[tuple[str, str, int | None], Any] = {}
        for task, result in zip(tasks, run(lambda task: work(task, options), tasks), strict=True):
            results[task.planned.name, task.kind, task.bits] = result
            done += task.cost
            if progress:
                progress(task.planned.name, round(done / total * nbytes), nbytes)
        packed = tuple(file_at(checkpoint.root, files, b, results, options, selection is None) for b in precisions)
    in_file = [{tensor.name: tensor for tensor in one.tensors} for one in packed]
    figures = sorted((_figures(plans, results, in_file) for plans in tensors), key=lambda tensor: tensor.name)
    points: list[GridPoint] = [p for tensor in figures for p in results.get((tensor.name, "grids", None)) or ()]
    curves = grid_curves(points)
    levels = equal_snr({curve.grid: curve.coded for curve in curves}, REFERENCE) if curves else ()
    totals = deep_totals(figures, packed)
    return DeepStats(checkpoint.root, precisions, options.sample, tuple(figures), packed, totals, curves, levels)


def parse_precisions(text: str) -> tuple[int, ...]:
    """`2-8`, `4` or `2,3,4-6`; a range skips 7, of which nobody makes grids, unless it is named.

    >>> parse_precisions("2-8"), parse_precisions("4,7")
    ((2, 3, 4, 5, 6, 8), (4, 7))
    """
    found: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if low not in tuple("12345678") or (dash and high not in tuple("12345678")) or (dash and high < low):
            raise InvalidArgumentError(f"bad precisions {text!r}: write 4, or 2-8, or 2,3,4; each from 1 to 8")
        found |= {b for b in range(int(low), int(high) + 1) if b != 7} if dash else {int(low)}
    return tuple(sorted(found))


def _precisions(bits: Sequence[int] | None, selection: Selection | None) -> tuple[int | None, ...]:
    if selection is None:
        return (None,)
    return (one_precision(selection),) if bits is None else tuple(sorted(set(bits)))


def _tasks(files: Iterable[DeepFile], options: Options) -> Iterator[Task]:
    """cost: about the seconds of a slow core, times a number."""
    parts = options.parts
    for file in files:
        for plans in file.tensors.values():
            tensor = next(iter(plans.values()))
            if tensor.tied_to or not tensor.parameters:
                continue
            size = min(tensor.parameters, options.sample or tensor.parameters)
            nbytes = size * max(1, tensor.nbytes // tensor.parameters)

            def task(kind: str, cost: float, of: PlannedTensor = tensor, file: DeepFile = file) -> Task:
                return Task(file.source, of, kind, None, cost)

            if options.gzip:
                yield task("gzip", nbytes * 45.0)
            yield task("zstd", nbytes * 3.0)
            if tensor.dtype in FORMATS and "floats" in parts:
                yield task("floats", size * 8.0)
            if tensor.dtype in FORMATS and "fits" in parts:
                yield task("fits", size * 8.0)
            each = 15.0 + 10.0 * ("entropies" in parts) + 15.0 * (options.gzip and "coders" in parts)
            for bits, planned in plans.items():
                if planned.is_quantized:
                    yield replace(task("codes", size * each, planned), bits=bits)
            if kept := [planned for planned in plans.values() if planned.is_lossless]:
                yield task("kept", size * 10.0, kept[0])
            if any(planned.is_quantized for planned in plans.values()):
                part = min(size, CONTROL_WEIGHTS)
                if "control" in parts:
                    yield task("control", part * (720.0 if options.gzip else 150.0), plans[options.reference])
                if "grids" in parts:
                    yield task("grids", part * 300.0)


def _figures(
    plans: Mapping[int | None, PlannedTensor], results: Results, in_file: Sequence[Mapping[str, TensorStats]]
) -> TensorFigures:
    """in_file: at each precision all tensors as they are in a file."""
    tensor = next(iter(plans.values()))
    name = tensor.name
    zstd = results.get((name, "zstd", None))
    codes: list[CodeFigures] = []
    for bits, stored in zip(plans, in_file, strict=True):
        found, sizes = results.get((name, "codes", bits)), stored[name].sizes.codes
        if found is not None and sizes is not None:
            whole = found[0].sizes.count == sizes.count
            codes.append(replace(found[0], sizes=sizes) if whole else found[0])
    return TensorFigures(
        name,
        tensor.dtype,
        tensor.shape,
        tensor.parameters,
        measured=tensor.parameters * zstd[0] // tensor.nbytes if zstd and tensor.nbytes else 0,
        tied_to=tensor.tied_to,
        floats=results.get((name, "floats", None)),
        fit=results.get((name, "fits", None)),
        codes=tuple(codes),
        control=results.get((name, "control", None)) or (),
    )
