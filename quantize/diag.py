"""`diag`: column steps from the power of the inputs alone, as an importance vector has it; no feedback."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from .hessian import DAMPING
from .unbounded import Design, classified, prepare
from .watersic import eighths


def diag(
    tensor: NDArray[Any],
    dtype: str,
    power: NDArray[Any],
    *,
    damping: float = DAMPING,
    sensitivity: NDArray[Any] | None = None,
    states: int = 0,
    name: str = "tensor",
) -> Design:
    """Step of column j in proportion to 1 / sqrt(power[j]): then every column adds the same error to the output.

    power: `[columns]`, the mean square of each input, of any scale; `damping` times their mean is added to each.
    sensitivity, states: as for `watersic`. Raises InvalidArgumentError for powers that are negative or not finite.
    """
    design = prepare(tensor, dtype, name)
    known = np.asarray(power, np.float64)
    if known.shape != (design.weights.shape[1],) or not np.isfinite(known).all() or (known < 0).any():
        raise InvalidArgumentError(
            f"{name} needs the power of {design.weights.shape[1]} inputs, finite and not negative"
        )
    mean = float(known.mean()) if known.size else 0.0
    log, scale = eighths(np.sqrt(known + damping * mean) if mean > 0 else np.ones(known.size))
    rows, row_scale = eighths(None if sensitivity is None else np.sqrt(np.asarray(sensitivity, np.float64)), coarse=2)
    design = replace(design, column_log=log, row_log=rows, scale=scale * row_scale, states=states)
    return classified(design, columns=True)
