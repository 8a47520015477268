"""The statistics of a layer's inputs, factorized for error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from ..codec.run_map import RunMap

Order = Literal["natural", "activation"]

DAMPING = 0.01  # of the mean of the diagonal: right for up to some 250 tokens per input
_ROWS = 256  # of the matrix, per call of a kernel


@dataclass(frozen=True, eq=False)
class Factor:
    """H = X'X / tokens of the inputs X of a layer, damped, as L L' with L lower triangular.

    unit: float32 `[columns, columns]`, L with every column divided by its diagonal element, zero above the diagonal.
    diagonal: float64 `[columns]`, that of L: what an error of one in a column costs after feedback, as a square root.
    order: int64 `[columns]` or None. If given, row and column i of the factor belong to column `order[i]` of the
    weights. The last column is quantized first.
    """

    unit: NDArray[np.float32]
    diagonal: NDArray[np.float64]
    order: NDArray[np.int64] | None = None


def factorize(
    gram: NDArray[Any],
    damping: float = DAMPING,
    order: Order = "natural",
    *,
    name: str = "tensor",
    run: RunMap = map,
    overwrite: bool = False,
) -> Factor:
    """Factorize a Gram matrix.

    gram: `[columns, columns]`, symmetric and positive semidefinite (only its lower triangle is read), of any scale.
    damping: this part of the mean of the diagonal is added to it. Inputs that never were active then count as if they
    had that power. order: `activation` quantizes the inputs of the largest power first. run: maps over blocks of
    rows; the result does not depend on it. overwrite: use the memory of `gram`, if it is float64.

    Raises InvalidArgumentError for NaN, infinite or negative power, another shape, and a matrix that is not positive
    definite even when damped.
    """
    from . import kernels_feedback as kernels

    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise InvalidArgumentError(f"the Gram matrix of {name} has shape {list(gram.shape)}; it must be square")
    if not 0 < damping < np.inf:
        raise InvalidArgumentError(f"damping is {damping}; it must be positive")
    matrix = np.ascontiguousarray(gram, np.float64) if overwrite else np.array(gram, np.float64, order="C")
    for row in range(len(matrix)):
        matrix[row, row + 1 :] = 0.0
    power = np.diagonal(matrix).copy()
    if not np.isfinite(matrix).all() or (power < 0).any():
        raise InvalidArgumentError(
            f"the Gram matrix of {name} has elements that are NaN or infinite, or negative power"
        )
    permutation: NDArray[np.int64] | None = None
    if order == "activation":
        permutation = np.argsort(power, kind="stable").astype(np.int64)
        matrix += np.tril(matrix, -1).T
        matrix = np.tril(matrix[np.ix_(permutation, permutation)])
    mean = float(power.mean()) if power.size else 0.0
    # A layer whose inputs were never active: all weights count the same.
    matrix[np.diag_indices_from(matrix)] += damping * mean if mean > 0 else 1.0
    panel = np.empty((kernels.PANEL, len(matrix)), np.float64)
    for first in range(0, len(matrix), kernels.PANEL):
        if not kernels.factorize_panel(matrix, first, panel):
            raise InvalidArgumentError(
                f"the Gram matrix of {name} is not positive semidefinite; is it damaged, or of another layer?"
            )
        rest = range(first + kernels.PANEL, len(matrix), _ROWS)
        for _ in run(partial(_subtract, matrix, first, panel), rest):
            pass
    diagonal = np.diagonal(matrix).copy()
    unit = np.empty(matrix.shape, np.float32)
    for row in range(len(matrix)):
        unit[row] = matrix[row] / diagonal
    return Factor(unit, diagonal, permutation)


def _subtract(matrix: NDArray[np.float64], first: int, panel: NDArray[np.float64], row: int) -> None:
    from . import kernels_feedback as kernels

    kernels.subtract_panel(matrix, first, panel, row, min(row + _ROWS, len(matrix)))
