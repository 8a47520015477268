"""The tasks of `deep_stats`: each measures one thing of one tensor, or of a part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..analysis.baselines import gzip_nbytes, zstd_nbytes
from ..analysis.code_models import code_models, sampling_error
from ..analysis.control import LAWS, Law, draw
from ..analysis.distortion import weight_distortion
from ..analysis.efficiency import huffman_bits
from ..analysis.entropy import shannon_entropy
from ..analysis.float_fields import FORMATS
from ..analysis.weight_fit import weight_fit
from ..codec.histogram import code_counts
from ..codec.packing import unpack_codes
from ..codec.tensor import QuantizedTensor
from ..planner import PlannedTensor
from ..quantize.rtn import NonFiniteError, quantize
from ..sources import SourceTensors
from .coded import Coded, code_lossless, code_tensor, fields_of
from .deep_figures import CodeFigures, ControlFigures
from .deep_grids import measure_grids
from .deep_sample import Part, take_bytes, take_part, with_extremes

CONTROL_WEIGHTS = 1 << 18  # of each tensor: noise is noise, more of it tells nothing new


@dataclass(frozen=True)
class Options:
    """What is measured. bits: precisions, None for what rules decide. sample: weights of a tensor at most, None for all."""

    bits: tuple[int | None, ...]
    sample: int | None
    gzip: bool
    parts: frozenset[str]
    chunk_codes: int

    @property
    def reference(self) -> int | None:
        """The precision at which random weights are quantized."""
        return 4 if 4 in self.bits else self.bits[-1]


@dataclass(frozen=True, eq=False)
class Task:
    """kind: gzip, zstd, floats, fits, codes, kept, control, grids. planned: at `bits`. cost: of time, in proportion."""

    file: SourceTensors
    planned: PlannedTensor
    kind: str
    bits: int | None
    cost: float


def work(task: Task, options: Options) -> Any:
    """The figures; None for a tensor with NaN or Inf that cannot have them, and for a kept one that is too large."""
    try:
        return _KINDS[task.kind](task, options)
    except NonFiniteError:
        return None
    finally:
        task.file.release(task.planned.name)


def _compressed(task: Task, options: Options) -> tuple[int, int]:
    """Bytes measured, and what they become."""
    raw = _raw(task, options)
    return raw.size, gzip_nbytes(raw, 6) if task.kind == "gzip" else zstd_nbytes(raw, 3)


def _kept(task: Task, options: Options) -> Coded | None:
    tensor = task.planned
    if options.sample is not None and tensor.parameters > options.sample:
        return None
    assert tensor.lossless is not None
    raw = task.file.raw(tensor.name)
    return code_lossless(raw, tensor.dtype, tensor.parameters, tensor.lossless, options.chunk_codes)


def _codes(task: Task, options: Options) -> tuple[CodeFigures, Coded | None]:
    planned, args = task.planned, task.planned.args
    assert args is not None
    part = _part(task, options.sample)
    if args.strategy == "tensor":
        part = with_extremes(task.file.array(planned.name), part)
    tensor = quantize(part.weights, args, dtype=planned.dtype, name=f"tensor {planned.name!r}")
    coded, counts = code_tensor(tensor, weight_distortion(part.weights, tensor), options.chunk_codes)
    assert coded.codes is not None
    wants_codes = part.share < 1.0 or "entropies" in options.parts
    codes = _matrix(tensor) if wants_codes else np.zeros((0, 0), np.uint8)
    further = "coders" in options.parts
    figures = CodeFigures(
        bits=task.bits,
        count=planned.parameters,
        sizes=coded.codes,
        error=sampling_error(codes, counts, part.share),
        models=code_models(codes, args.num_bits, _zero(tensor)) if "entropies" in options.parts else None,
        huffman_nbytes=huffman_bits(counts) * coded.codes.count / 8 if further else None,
        gzip_nbytes=gzip_nbytes(tensor.packed, 6) if further and options.gzip else None,
        histogram=tuple(int(n) for n in counts),
    )
    return figures, coded if part.share >= 1.0 else None


def _matrix(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    size = int(np.prod(tensor.shape, dtype=np.int64))
    return unpack_codes(tensor.packed, size, tensor.args.storage_bits).reshape(tensor.shape)


def _zero(tensor: QuantizedTensor) -> float:
    """The code that stands for no weight, on average."""
    if tensor.zero_point is not None and tensor.zero_point.size:
        return float(tensor.zero_point.mean())
    return tensor.args.symmetric_zero_point


def _control(task: Task, options: Options) -> tuple[ControlFigures, ...]:
    """The trained weights and what the initialisers draw in their place, as many of each."""
    planned, args = task.planned, task.planned.args
    part = _part(task, min(CONTROL_WEIGHTS, options.sample or CONTROL_WEIGHTS))
    trained, dtype = part.weights, part.weights.dtype
    std = float(trained.astype(np.float64).std())
    seed = xxhash.xxh32_intdigest(planned.name.encode("utf-8", "surrogatepass"))
    laws: tuple[Law | None, ...] = (None, *LAWS)
    found = []
    for number, law in enumerate(laws):
        weights = trained if law is None else draw(law, planned.shape, trained.size, std, dtype, seed + number)
        weights = weights.reshape(trained.shape)
        raw = np.ascontiguousarray(weights).reshape(-1).view(np.uint8)
        entropy = None
        if args is not None:
            tensor = quantize(weights, args, dtype=planned.dtype, name=f"tensor {planned.name!r}")
            entropy = shannon_entropy(code_counts(tensor.packed, weights.size, args.storage_bits))
        gzipped = gzip_nbytes(raw, 6) if options.gzip else None
        spread = float(weights.astype(np.float64).std())
        found.append(ControlFigures(law, weights.size, raw.size, gzipped, zstd_nbytes(raw, 3), entropy, spread))
    return tuple(found)


def _grids(task: Task, options: Options) -> Any:
    bits = [b for b in options.bits if b is not None] or [2, 3, 4, 5, 6, 8]
    array = task.file.array(task.planned.name)
    return measure_grids(array, task.planned.dtype, task.planned.name, bits, options.sample is None)


def _part(task: Task, most: int | None) -> Part:
    return take_part(task.file.array(task.planned.name), most)


def _raw(task: Task, options: Options) -> NDArray[np.uint8]:
    if task.planned.dtype in FORMATS:
        return np.ascontiguousarray(_part(task, options.sample).weights).reshape(-1).view(np.uint8)
    raw = task.file.raw(task.planned.name)
    size = max(1, raw.size // max(1, task.planned.parameters))
    return take_bytes(raw, None if options.sample is None else options.sample * size)


_KINDS: Mapping[str, Callable[[Task, Options], Any]] = {
    "gzip": _compressed,
    "zstd": _compressed,
    "floats": lambda task, options: fields_of(_raw(task, options), task.planned.dtype),
    "fits": lambda task, options: weight_fit(_part(task, options.sample).weights),
    "codes": _codes,
    "kept": _kept,
    "control": _control,
    "grids": _grids,
}
