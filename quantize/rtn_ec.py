"""`rtn-ec`: round to nearest on an unbounded grid with one step per tensor. Needs no statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from .unbounded import Design, classified, prepare


def rtn_ec(tensor: NDArray[Any], dtype: str, *, states: int = 0, name: str = "tensor") -> Design:
    """One step for all weights: at a given rate no choice of steps by row or group has a smaller squared error.

    tensor: floating point, any shape. states: of a trellis, or 0. Raises as `prepare` does.
    """
    return classified(replace(prepare(tensor, dtype, name), states=states), columns=True)
