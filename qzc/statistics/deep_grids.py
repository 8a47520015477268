"""Kinds of grid side by side: what each costs at the same weight SNR, so that bits saved by losing weights are seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis.code_models import contexts_cost
from ..analysis.code_stats import CodedSize
from ..analysis.distortion import Distortion, weight_distortion
from ..analysis.entropy import shannon_entropy
from ..analysis.equal_snr import RatePoint
from ..codec.chunks import CHUNK_CODES
from ..codec.histogram import code_counts
from ..codec.planes import encode_tensor
from ..codec.tensor import QuantizationArgs, QuantizedTensor
from ..quantize.rtn import float32_weights, quantize
from .coded import coded_size
from .deep_figures import GridCurve
from .deep_sample import Part, take_part, with_extremes

GRID_WEIGHTS = 1 << 18  # of each tensor
REFERENCE = "group 128 mse"  # the default grid up to 4 bits: the others are read at its SNRs
STEP = "one step, unbounded"
STEPS = tuple(2.0 ** (power / 2) for power in range(3, -14, -1))  # in standard deviations

_GRIDS: dict[str, Callable[[int], QuantizationArgs]] = {
    "tensor absmax": lambda bits: QuantizationArgs(bits, True, "tensor", None, "absmax"),
    "channel absmax": lambda bits: QuantizationArgs(bits, True, "channel", None, "absmax"),
    "channel mse": lambda bits: QuantizationArgs(bits, True, "channel", None, "mse"),
    "group 128 absmax": lambda bits: QuantizationArgs(bits, True, "group", 128, "absmax"),
    REFERENCE: lambda bits: QuantizationArgs(bits, True, "group", 128, "mse"),
    "group 128 asymmetric": lambda bits: QuantizationArgs(bits, False, "group", 128, "absmax"),
    "group 32 mse": lambda bits: QuantizationArgs(bits, True, "group", 32, "mse"),
}


@dataclass(frozen=True)
class GridPoint:
    """One tensor on one grid. fixed_bits, coded_bits: of all its weights together, side information and tables counted."""

    grid: str
    bits: int
    weights: float
    fixed_bits: float
    coded_bits: float
    distortion: Distortion


def measure_grids(
    weights: NDArray[Any], dtype: str, name: str, bits: Sequence[int], whole: bool = True
) -> tuple[GridPoint, ...]:
    """A tensor on every kind of grid at every precision, by a sample of its rows.

    Sums are scaled up to the whole tensor. whole: read all of it for the largest weight, which sets a scale per tensor;
    else the largest of the sample stands for it. Raises NonFiniteError as `quantize`.
    """
    part = take_part(weights, GRID_WEIGHTS)
    extremes = with_extremes(weights, part) if whole else part
    points = []
    for grid, args_for in _GRIDS.items():
        rows = extremes if grid.startswith("tensor") else part
        for precision in bits:
            args = args_for(precision)
            tensor = quantize(rows.weights, args, dtype=dtype, name=f"tensor {name!r}")
            counts = code_counts(tensor.packed, rows.weights.size, args.storage_bits)[: 1 << precision]
            side = 8 * tensor.scale.nbytes + (0 if tensor.zero_point is None else tensor.zero_point.size * precision)
            size = rows.weights.size
            cost = contexts_cost(counts[None], size, precision)
            # A table serves the whole tensor, not the sample alone.
            coded = cost.plugin * size + (cost.with_tables - cost.plugin) * size * rows.share
            coded += _coded_side(tensor, rows.share)
            points.append(
                _point(grid, precision, rows, precision * size + side, coded, weight_distortion(rows.weights, tensor))
            )
    points += _steps(part)
    return tuple(points)


def grid_curves(points: Sequence[GridPoint]) -> tuple[GridCurve, ...]:
    """All tensors together: one curve per kind of grid, its points in the order of the bits."""
    names = list(dict.fromkeys(point.grid for point in points))
    curves = []
    for name in names:
        mine = [point for point in points if point.grid == name]
        bits = sorted({point.bits for point in mine})
        fixed, coded = [], []
        for b in bits:
            here = [point for point in mine if point.bits == b]
            weights = sum(point.weights for point in here)
            snr = sum((point.distortion for point in here), Distortion()).snr_db
            fixed.append(RatePoint(snr, sum(point.fixed_bits for point in here) / weights))
            coded.append(RatePoint(snr, sum(point.coded_bits for point in here) / weights))
        curves.append(GridCurve(name, tuple(bits), () if name == STEP else tuple(fixed), tuple(coded)))
    return tuple(curves)


def _coded_side(tensor: QuantizedTensor, share: float) -> float:
    """Bits of scales and zero points as a file has them, where the tensor is such a share of a whole one."""
    planes = encode_tensor(tensor, "ans", CHUNK_CODES, verify=False).chunks[1:]
    size = sum(map(coded_size, planes), CodedSize())
    return 8.0 * (size.payload + (size.nbytes - size.payload) * share)


def _steps(part: Part) -> list[GridPoint]:
    """A uniform grid without end and without scales but one, made for entropy coding: `round(w / step)`."""
    weights = float32_weights(part.weights, slice(None)).astype(np.float64)
    std = float(weights.std())
    points = []
    for number, ratio in enumerate(STEPS):
        step = std * ratio
        codes = np.rint(weights / step) if step else np.zeros_like(weights)
        error = weights - codes * step
        distortion = Distortion(float(np.square(weights).sum()), float(np.square(error).sum()))
        counts = _value_counts(codes)
        entropy = shannon_entropy(counts)
        coded = entropy * codes.size + 12.0 * np.count_nonzero(counts) * part.share  # 12 bits for each value in use
        points.append(_point(STEP, number, part, coded, coded, distortion))
    return points


def _value_counts(values: NDArray[np.float64]) -> NDArray[np.int64]:
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if high - low < 1 << 20:
        return np.bincount((values - low).astype(np.int64))
    return np.unique(values, return_counts=True)[1]  # outliers a million steps away: sort instead


def _point(grid: str, bits: int, part: Part, fixed: float, coded: float, distortion: Distortion) -> GridPoint:
    up = 1.0 / part.share
    scaled = replace(distortion, weight_energy=distortion.weight_energy * up, error_energy=distortion.error_energy * up)
    return GridPoint(grid, bits, part.weights.size * up, fixed * up, coded * up, scaled)
