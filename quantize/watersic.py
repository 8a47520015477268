"""`watersic`: error feedback, and column steps after which every column adds the same error (arXiv 2603.04956)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from .hessian import Factor
from .unbounded import Design, check_columns, classified, prepare

ROW_RESOLUTION = 4  # row steps are multiples of so many eighths of an octave: finer ones cost more than they save


def watersic(
    tensor: NDArray[Any],
    dtype: str,
    factor: Factor,
    *,
    sensitivity: NDArray[Any] | None = None,
    states: int = 0,
    name: str = "tensor",
) -> Design:
    """Step of column j in proportion to 1 / L[j, j]: what is left of its error after feedback has the weight L[j, j]^2.

    factor: of the layer's inputs. sensitivity: `[rows]` or None, what a squared error in each output costs: rows get
    steps in proportion to 1 / sqrt(sensitivity). states: of a trellis, or 0.

    Raises InvalidArgumentError if these do not fit the tensor, NonFiniteError as `prepare` does.
    """
    design = prepare(tensor, dtype, name)
    check_columns(name, design.weights.shape[1], factor)
    known = None if sensitivity is None else np.asarray(sensitivity, np.float64)
    if known is not None:
        if known.shape != (design.weights.shape[0],) or not np.isfinite(known).all() or (known < 0).any():
            raise InvalidArgumentError(f"{name} needs the sensitivity of {design.weights.shape[0]} rows, not negative")
    diagonal = factor.diagonal
    if factor.order is not None:
        diagonal = np.empty_like(diagonal)
        diagonal[factor.order] = factor.diagonal
    log, scale = eighths(diagonal)
    rows, row_scale = eighths(None if known is None else np.sqrt(known), ROW_RESOLUTION)
    design = replace(design, factor=factor, column_log=log, row_log=rows, scale=scale * row_scale, states=states)
    return classified(design, columns=False)


def eighths(weight: NDArray[np.float64] | None, coarse: int = 1) -> tuple[NDArray[np.int8] | None, float]:
    """Steps in proportion to 1 / weight: (logarithms in eighths of an octave, multiples of `coarse`; scale).

    2^(log / 8) * scale is about 1 / weight; the logarithms are 0 in the mean. Weights below a thousandth of their
    geometric mean count as that. None: (None, 1.0).
    """
    if weight is None or not weight.size or not weight.any():
        return None, 1.0
    middle = float(np.exp(np.log(weight[weight > 0]).mean()))
    log = -np.log2(np.maximum(weight / middle, 1e-3)) * 8 / coarse
    return np.clip(np.rint(log) * coarse, -120, 120).astype(np.int8), 1 / middle
