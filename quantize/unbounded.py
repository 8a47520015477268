"""Quantize on an unbounded grid: what all methods that aim at a rate have in common.

A method says how the steps of rows and columns relate to each other and what the feedback is (a `Design`); this module
does it for a given size of the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from ..codec.rate_tensor import RateTensor, log_scale
from ..codec.run_map import RunMap
from ..codec.table_bank import CENTER, CLASSES, TableBank
from ..codec.tensor import matrix_shape
from ..codec.trellis import predecessors
from .hessian import Factor
from .rtn import NonFiniteError, float32_weights, is_float

SLAB_ROWS = 512  # rows that are quantized together without a trellis: they are independent
RESTART_ROWS = 1024  # rows after which a trellis begins anew in large tensors; each time costs the worth of a few codes
RESTART_CODES = 1 << 23  # codes after which it must: no chunk can begin in between

# At high rate an error of step^2 / 12 gets smaller by ln(2) / 6 * step^2 per bit. In a trellis two steps are one code
# apart. Of the resulting price of a bit 0.8 are best.
BIT_PRICE = 0.8 * 4 * math.log(2) / 6


@dataclass(frozen=True, eq=False)
class Design:
    """A tensor and how to quantize it, but for the size of the step.

    weights: float32 `[rows, columns]`, finite. column_log .. row_class: as in `RateTensor`. factor: of the inputs;
    None rounds without feedback. scale: the step of this tensor in units of the step that is asked for. states: of
    the trellis, or 0. importance: float64 `[columns]`, what a squared error in a column costs.
    """

    name: str
    weights: NDArray[np.float32]
    shape: tuple[int, ...]
    dtype: str
    factor: Factor | None = None
    column_log: NDArray[np.int8] | None = None
    row_log: NDArray[np.int8] | None = None
    column_class: NDArray[np.int8] | None = None
    row_class: NDArray[np.int8] | None = None
    scale: float = 1.0
    states: int = 0

    @property
    def importance(self) -> NDArray[np.float64]:
        columns = self.weights.shape[1]
        if self.factor is None:
            return np.ones(columns)
        power = self.factor.diagonal**2
        if self.factor.order is None:
            return power
        spread = np.empty(columns)
        spread[self.factor.order] = power
        return spread

    def sample(self, count: int) -> Design:
        """The same for about `count` rows, evenly spread."""
        rows = self.weights.shape[0]
        if count >= rows:
            return self
        pick = (np.arange(count) * rows + rows // 2) // count
        weights = self.weights[pick]
        weights.flags.writeable = False  # kernels are compiled for read-only weights
        return replace(
            self,
            weights=weights,
            shape=weights.shape,
            row_log=None if self.row_log is None else self.row_log[pick],
            row_class=None if self.row_class is None else self.row_class[pick],
        )


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor and the sums by class that the next bank's gains are made of: float64 `[CLASSES]` each.

    loss: the squared error, weighted by the importance of columns and in units of the rows' steps.
    """

    tensor: RateTensor
    products: NDArray[np.float64]
    powers: NDArray[np.float64]
    loss: float


def prepare(tensor: NDArray[Any], dtype: str, name: str) -> Design:
    """The design without steps, classes and feedback.

    tensor: floating point of any shape. Raises NonFiniteError, and InvalidArgumentError if it is not floating point.
    """
    if not is_float(tensor.dtype):
        raise InvalidArgumentError(f"{name} is {tensor.dtype}; only floating-point tensors can be quantized")
    weights = float32_weights(tensor, slice(None)).reshape(matrix_shape(tensor.shape))
    if not np.isfinite(weights).all():
        raise NonFiniteError(f"{name} has weights that are NaN or infinite in float32; store it losslessly")
    return Design(name, weights, tensor.shape, dtype)


def check_columns(name: str, columns: int, factor: Factor) -> None:
    """Raises InvalidArgumentError if the factor is of another number of inputs."""
    if len(factor.diagonal) != columns:
        raise InvalidArgumentError(f"{name} has {columns} inputs, the statistics are for {len(factor.diagonal)}")


def classified(design: Design, *, columns: bool) -> Design:
    """With the class of every row, in quarters of an octave, and of every column if asked for: how large weights are.

    Columns whose steps follow the statistics of the inputs need none: their weights are alike.
    """
    size = np.abs(design.weights)
    if not size.size or not size.any():
        return design
    rows, count = size.shape
    row = _classes((size / log_scale(design.column_log, count)).mean(axis=1, dtype=np.float64))
    if not columns:
        return replace(design, row_class=row)
    column = _classes((size / log_scale(row, rows)[:, None]).mean(axis=0, dtype=np.float64))
    return replace(design, row_class=row, column_class=column)


def _classes(size: NDArray[np.float64]) -> NDArray[np.int8]:
    middle = float(np.median(size[size > 0]))
    ratio = np.maximum(size / middle, 2.0**-16)
    classes: NDArray[np.int8] = (2 * np.clip(np.rint(4 * np.log2(ratio)), -40, 40)).astype(np.int8)
    return classes


def typical_size(design: Design) -> float:
    """log2 of the standard deviation, about, of weights in rows and columns of class 0."""
    rows, columns = design.weights.shape
    size = np.abs(design.weights) / log_scale(design.column_class, columns) / log_scale(design.row_class, rows)[:, None]
    mean = float(size.mean(dtype=np.float64)) if size.size else 0.0
    return math.log2(1.25 * mean) if mean > 0 else 0.0


def quantize_design(
    design: Design, step: float, bank: TableBank | None, size: float | None = None, *, run: RunMap = map
) -> Quantized:
    """Quantize with this step (times `design.scale`). size: `typical_size(design)`, if it is known.

    bank: gives the gains, and the prices of codes for the search of a trellis; None does without. run: maps over
    slabs of rows; the result does not depend on it.
    """
    rows, columns = design.weights.shape
    width = np.float32(min(max(step * design.scale, 1e-30), 1e30))
    size = typical_size(design) if size is None else size
    offset = int(np.clip(round(CENTER + 8 * (size - math.log2(float(width)))), 0, CLASSES - 1))
    most = max(1, RESTART_CODES // max(1, columns))
    restart = max(rows, 1) if rows <= min(2 * RESTART_ROWS, most) else min(RESTART_ROWS, most)
    tensor = RateTensor(
        np.empty((rows, columns), np.int16), width, design.shape, design.dtype, design.column_log, design.row_log, None,
        design.column_class, design.row_class, offset, design.states, restart if design.states else 1,
    )  # fmt: skip
    if bank is not None:
        tensor = replace(tensor, gain=bank.gains(tensor))
    steps = replace(tensor, gain=None).column_scale
    height = restart if design.states else SLAB_ROWS
    slabs = [slice(row, min(row + height, rows)) for row in range(0, rows, height)]
    sums = np.zeros((3, columns))
    for part in run(partial(_slab, design, tensor, steps, bank), slabs):
        sums += part
    products, powers = np.zeros(CLASSES), np.zeros(CLASSES)
    importance = design.importance
    column = np.clip(tensor.class_terms[1], 0, CLASSES - 1)
    np.add.at(products, column, importance * sums[0])
    np.add.at(powers, column, importance * sums[1])
    gain = tensor.column_scale.astype(np.float64) / steps
    loss = float((importance * (sums[2] - 2 * gain * sums[0] + gain * gain * sums[1])).sum())
    return Quantized(tensor, products, powers, max(loss, 0.0))


def _slab(
    design: Design, tensor: RateTensor, steps: NDArray[np.float32], bank: TableBank | None, rows: slice
) -> NDArray[np.float64]:
    """Quantize some rows into `tensor.codes`. Returns the sums of the kernels: float64 `[3, columns]`."""
    from . import kernels_feedback, kernels_rate, kernels_trellis

    columns = design.weights.shape[1]
    row_scale = tensor.row_scale[rows]
    if design.factor is None and not design.states:
        direct = np.zeros((3, columns))
        kernels_rate.round_rows(design.weights[rows], steps, row_scale, tensor.codes[rows], direct)
        return direct
    order = slice(None) if design.factor is None or design.factor.order is None else design.factor.order
    weights = np.array(design.weights[rows].T[order], np.float32, order="C")
    unit = np.empty((0, 0), np.float32) if design.factor is None else design.factor.unit
    worth = tensor.column_scale[order]
    codes = np.empty(weights.shape, np.int16)
    sums = np.zeros((columns, 3))
    if design.states:
        before, flip = predecessors(design.states)
        prices = np.zeros((1, 2, 129)) if bank is None else BIT_PRICE * bank.prices()
        row, column = tensor.class_terms if bank is None else bank.terms(tensor)
        kernels_trellis.feedback_trellis(
            weights, unit, steps[order], worth, row_scale, before, flip, prices, row[rows], column[order], codes, sums
        )
    else:
        kernels_feedback.feedback(weights, unit, steps[order], worth, row_scale, codes, sums)
    spread = np.empty((3, columns))
    spread[:, order] = sums.T
    block = np.empty(codes.T.shape, np.int16)
    block[:, order] = codes.T
    tensor.codes[rows] = block
    return spread
