"""`qzc.pack`: quantize -> entropy-code -> write -> read again, a batch of tensors at a time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from .base import BaseTensors
from .codec.errors import InvalidArgumentError
from .formats.checkpoint import Checkpoint, is_qzc, open_checkpoint
from .formats.layouts.layout import Found
from .packing.job import PackJob
from .packing.options import PackOptions
from .packing.report import PackedFile, PackReport
from .packing.to_rate import first_target
from .places import check_output, packed_output
from .planner import FilePlan, plan_file, with_estimates
from .progress import Progress
from .quantize.select import Selection
from .rating import open_statistics
from .sources import find_layout, open_source
from .threads import thread_map

__all__ = ["PackOptions", "PackReport", "PackedFile", "pack", "plan"]


def pack(
    source: str | Path,
    output: str | Path | None = None,
    options: PackOptions | None = None,
    progress: Progress | None = None,
) -> PackReport:
    """Pack a safetensors file, or a folder with shards and side files, into a `.qzc` file or a folder of them.

    output: by default `model.safetensors` -> `model.qzc`, `folder` -> `folder-qzc`. It appears whole or not at all.
    The same input and options give the same bytes, whatever the number of threads.

    Raises InvalidArgumentError (NaN or Inf, reserved names ...), FileAccessError, CorruptionError, UnsupportedError, and
    VerificationError if what was written does not decode to what was coded.
    """
    options = options or PackOptions()
    began = time.perf_counter()
    checkpoint = _open_source(source)
    target = Path(output) if output is not None else packed_output(checkpoint)
    check_output(checkpoint, target)
    found, selection = _choose(checkpoint, options)
    with thread_map(options.threads) as run, ExitStack() as stack:
        base = stack.enter_context(BaseTensors(options.base)) if options.base is not None else None
        statistics = None
        if options.stats is not None:
            statistics = stack.enter_context(open_statistics(options.stats, checkpoint))
        job = PackJob(checkpoint, options, selection, base, statistics, progress, run)
        files = job.write(_plans(checkpoint, options, selection, found), target)
    names = (t.name for file in files for t in file.plan.tensors)
    unused = tuple(selection.unused(names)) if selection else ()
    seconds = time.perf_counter() - began
    description = found.description if found else None
    rating = job.rating
    return PackReport(
        target,
        files,
        seconds,
        options.verify,
        unused,
        checkpoint.skipped,
        description,
        rating.method if rating else None,
        rating.without_statistics if rating else (),
    )


def plan(source: str | Path, options: PackOptions | None = None) -> list[FilePlan]:
    """What `pack` would do, with the sizes that it would give, estimated from a sample of every tensor. Writes nothing.

    Raises as `pack`; NaN and Inf are found only where the sample has them.
    """
    options = options or PackOptions()
    checkpoint = _open_source(source)
    found, selection = _choose(checkpoint, options)
    plans = _plans(checkpoint, options, selection, found)
    bits = first_target(plans, options.rate) if options.rate else 0.0
    for i, bare in enumerate(plans):
        with open_source(bare.source) as file:
            plans[i] = with_estimates(bare, file, options.coder, options.chunk_codes, bits)
    return plans


def _choose(checkpoint: Checkpoint, options: PackOptions) -> tuple[Found | None, Selection | None]:
    """Whether the input is quantized already, and what is to be quantized: nothing, if it is and nobody asked for it."""
    found = find_layout(checkpoint)
    if options.lossless or (found and options.selection is None and options.rate is None):
        return found, None
    return found, options.selection or Selection()


def _open_source(source: str | Path) -> Checkpoint:
    checkpoint = open_checkpoint(source, "safetensors")
    for path in checkpoint.files:
        if is_qzc(path):
            raise InvalidArgumentError(f"{path}: this is a .qzc file already; unpack it first")
    return checkpoint


def _plans(
    checkpoint: Checkpoint, options: PackOptions, selection: Selection | None, found: Found | None
) -> list[FilePlan]:
    """One for each file of the checkpoint."""
    plans: list[FilePlan] = []
    for path in checkpoint.files:
        with open_source(path) as file:
            plan = plan_file(
                file,
                path,
                selection,
                keep_nonfinite=options.nonfinite == "keep",
                code_kept=options.coder != "raw",
                hints=found.hints if found else None,
                rated=options.rate is not None,
            )
            plans.append(plan)
    return plans
