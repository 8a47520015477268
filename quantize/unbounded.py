"""Quantize on an unbounded grid: what all methods that aim at a rate have in common.

A method says how the steps of rows and columns relate to each other and what the feedback is (a `Design`); this module
does it for a given size of the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from ..codec.rate_tensor import RateGrid, RateTensor, log_scale
from ..codec.run_map import RunMap
from ..codec.table_bank import CENTER, CLASSES, TableBank
from ..codec.tensor import matrix_shape
from ..codec.trellis import predecessors
from .hessian import Factor
from .rtn import NonFiniteError, float32_weights, is_float

PIECE = 1 << 20  # weights that are looked at together

SLAB_ROWS = 512  # rows that are quantized together without a trellis: they are independent
RESTART_ROWS = 1024  # rows after which a trellis begins anew in large tensors; each time costs the worth of a few codes
RESTART_CODES = 1 << 23  # codes after which it must: no chunk can begin in between

# At high rate an error of step^2 / 12 gets smaller by ln(2) / 6 * step^2 per bit. In a trellis two steps are one code
# apart. Of the resulting price of a bit 0.8 are best.
BIT_PRICE = 0.8 * 4 * math.log(2) / 6


@dataclass(frozen=True, eq=False)
class Design:
    """A tensor and how to quantize it, but for the size of the step.

    weights: floating point `[rows, columns]`, finite in float32; may be a view of a file. column_log .. row_class: as in `RateTensor`. factor: of the inputs;
    None rounds without feedback. scale: the step of this tensor in units of the step that is asked for. states: of
    the trellis, or 0. typical: `typical_size`, where it is known. importance: float64 `[columns]`, what a squared error
    in a column costs.
    """

    name: str
    weights: NDArray[Any]
    shape: tuple[int, ...]
    dtype: str
    factor: Factor | None = None
    column_log: NDArray[np.int8] | None = None
    row_log: NDArray[np.int8] | None = None
    column_class: NDArray[np.int8] | None = None
    row_class: NDArray[np.int8] | None = None
    scale: float = 1.0
    states: int = 0
    typical: float | None = None

    def slab(self, rows: slice) -> NDArray[np.float32]:
        """Some of the weights, float32 `[rows, columns]` and read-only: a view where they are float32, else a copy."""
        part = self.weights[rows]
        return float32_weights(part, slice(None)).reshape(part.shape)

    def pieces(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """All weights, some rows at a time: a file that is larger than memory passes through it."""
        rows, columns = self.weights.shape
        step = max(1, PIECE // max(1, columns))
        for row in range(0, rows, step):
            part = slice(row, min(row + step, rows))
            yield part, self.slab(part)

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
        """The same for about `count` rows of all sizes, in float32: what a rate is for them it is for all."""
        rows = self.weights.shape[0]
        if count >= rows:
            return self
        size = np.zeros(rows, np.int64)
        for vector, sign in ((self.row_class, 1), (self.row_log, -1)):
            if vector is not None:
                size += sign * vector.astype(np.int64)
        pick = np.sort(np.argsort(size, kind="stable")[(np.arange(count) * rows + rows // 2) // count])
        return replace(
            self,
            weights=float32_weights(self.weights[pick], slice(None)).reshape(count, -1),
            shape=(count, self.weights.shape[1]),
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
    design = Design(name, tensor.reshape(matrix_shape(tensor.shape)), tensor.shape, dtype)
    if not all(_finite(part) for _, part in design.pieces()):
        raise NonFiniteError(f"{name} has weights that are NaN or infinite in float32; store it losslessly")
    return design


def _finite(weights: NDArray[np.float32]) -> bool:
    from . import kernels

    # Only the status matters here, which is the same for all grids.
    grid = 8, kernels.BALANCED, kernels.FLOAT32
    status = kernels.absmax_scale(*kernels.extremes(weights.reshape(-1).view(np.int32)), *grid)[0]
    return bool(status != kernels.NOT_FINITE)


def check_columns(name: str, columns: int, factor: Factor) -> None:
    """Raises InvalidArgumentError if the factor is of another number of inputs."""
    if len(factor.diagonal) != columns:
        raise InvalidArgumentError(f"{name} has {columns} inputs, the statistics are for {len(factor.diagonal)}")


def classified(design: Design, *, columns: bool) -> Design:
    """With the class of every row, in quarters of an octave, and of every column if asked for: how large weights are.

    Columns whose steps follow the statistics of the inputs need none: their weights are alike.
    """
    from . import kernels_rate

    rows, count = design.weights.shape
    if not design.weights.size:
        return replace(design, typical=0.0)
    mean, steps = np.zeros(rows), log_scale(design.column_log, count)
    for part, weights in design.pieces():
        kernels_rate.row_sizes(weights, steps, mean[part])
    if not mean.any():
        return replace(design, typical=0.0)
    row_class = _classes(mean)
    total, scale = np.zeros(count), log_scale(row_class, rows)
    for part, weights in design.pieces():
        kernels_rate.add_column_sizes(weights, scale[part], total)
    column_class = _classes(total / rows) if columns else None
    typical = _log_deviation((total / log_scale(column_class, count)).sum() / design.weights.size)
    return replace(design, row_class=row_class, column_class=column_class, typical=typical)


def _classes(size: NDArray[np.float64]) -> NDArray[np.int8]:
    middle = float(np.median(size[size > 0]))
    ratio = np.maximum(size / middle, 2.0**-16)
    classes: NDArray[np.int8] = (2 * np.clip(np.rint(4 * np.log2(ratio)), -40, 40)).astype(np.int8)
    return classes


def typical_size(design: Design) -> float:
    """log2 of the standard deviation, about, of weights in rows and columns of class 0."""
    if design.typical is not None:
        return design.typical
    from . import kernels_rate

    rows, columns = design.weights.shape
    row, total = log_scale(design.row_class, rows), np.zeros(columns)
    for part, weights in design.pieces():
        kernels_rate.add_column_sizes(weights, row[part], total)
    size = float((total / log_scale(design.column_class, columns)).sum())
    return _log_deviation(size / max(design.weights.size, 1))


def _log_deviation(mean: float) -> float:
    """From the mean of magnitudes, as of a bell curve. 0 for no weights but zeros."""
    return math.log2(1.25 * mean) if mean > 0 else 0.0


def grid_of(design: Design, step: float, bank: TableBank | None, size: float | None = None) -> RateGrid:
    """The grid on which `quantize_design` quantizes."""
    rows, columns = design.weights.shape
    width = np.float32(min(max(step * design.scale, 1e-30), 1e30))
    size = typical_size(design) if size is None else size
    offset = int(np.clip(round(CENTER + 8 * (size - math.log2(float(width)))), 0, CLASSES - 1))
    most = max(1, RESTART_CODES // max(1, columns))
    restart = max(rows, 1) if rows <= min(2 * RESTART_ROWS, most) else min(RESTART_ROWS, most)
    grid = RateGrid(
        width, design.column_log, design.row_log, None, design.column_class, design.row_class, offset, design.states,
        restart if design.states else 1,
    )  # fmt: skip
    return grid if bank is None else replace(grid, gain=bank.gain_of(grid, columns))


def quantize_design(
    design: Design, step: float, bank: TableBank | None, size: float | None = None, *, run: RunMap = map
) -> Quantized:
    """Quantize with this step (times `design.scale`). size: `typical_size(design)`, if it is known.

    bank: gives the gains, and the prices of codes for the search of a trellis; None does without. run: maps over
    slabs of rows; the result does not depend on it.
    """
    rows, columns = design.weights.shape
    grid = grid_of(design, step, bank, size)
    tensor = RateTensor(
        np.empty((rows, columns), np.int16), grid.step, design.shape, design.dtype, grid.column_log, grid.row_log,
        grid.gain, grid.column_class, grid.row_class, grid.class_offset, grid.states, grid.restart,
    )  # fmt: skip
    steps = replace(tensor, gain=None).column_scale
    height = grid.restart if design.states else SLAB_ROWS
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
        kernels_rate.round_rows(design.slab(rows), steps, row_scale, tensor.codes[rows], direct)
        return direct
    order = slice(None) if design.factor is None or design.factor.order is None else design.factor.order
    weights = np.array(design.slab(rows).T[order], np.float32, order="C")
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
