"""`gptq-ec`: error feedback on an unbounded grid with one step per tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .hessian import Factor
from .unbounded import Design, check_columns, classified, prepare


def gptq_ec(tensor: NDArray[Any], dtype: str, factor: Factor, *, states: int = 0, name: str = "tensor") -> Design:
    """Round column after column and let the later ones make up for the errors of the earlier ones.

    factor: of the layer's inputs; in `activation` order it is better by some 0.7 dB. Raises as `watersic` does.
    """
    design = prepare(tensor, dtype, name)
    check_columns(name, design.weights.shape[1], factor)
    power = float((factor.diagonal**2).mean()) if factor.diagonal.size else 1.0
    return classified(replace(design, factor=factor, states=states, scale=float(1 / np.sqrt(power))), columns=True)
