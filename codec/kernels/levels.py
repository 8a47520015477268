"""Compiled loops from codes on an unbounded grid to levels, and from levels to weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import kernel


@kernel
def levels_of(
    codes: NDArray[np.int16], after: NDArray[np.uint8], restart: int, skip: int, top: int, out: NDArray[Any]
) -> Any:
    """out i8 or i16[<= rows - skip, columns] = levels of rows `skip ..` of codes i16[rows, columns].

    after u8[states, 2]: the trellis; a single state for a plain grid, whose levels are the codes. Its states begin at
    0 in every row that is a multiple of `restart`. With a trellis the level is 2 * code in set 0, the lowest bit of
    the state, and 2 * code - sign(code) in set 1. Returns whether all levels are in -top - 1 .. top.
    """
    columns = codes.shape[1]
    last = min(codes.shape[0], skip + out.shape[0])
    fits: Any = np.bool_(True)
    if after.shape[0] == 1:
        for r in range(skip, last):
            for c in range(columns):
                level = np.int32(codes[r, c])
                fits &= (level <= top) & (level >= -top - 1)
                out[r - skip, c] = level
        return fits
    state = np.zeros(columns, np.uint8)
    for r in range(last):
        if r % restart == 0:
            state[:] = 0
        for c in range(columns):
            k = np.int32(codes[r, c])
            if r >= skip:
                sign = (1 if k > 0 else 0) - (1 if k < 0 else 0)
                level = 2 * k - sign * np.int32(state[c] & 1)
                fits &= (level <= top) & (level >= -top - 1)
                out[r - skip, c] = level
            state[c] = after[state[c], k & 1]
    return fits


@kernel
def scale_levels(
    levels: NDArray[Any],
    column_scale: NDArray[np.float32],
    row_scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """out f32[rows, columns] = (level * column_scale) * row_scale, each product rounded once."""
    for r in range(levels.shape[0]):
        for c in range(levels.shape[1]):
            out[r, c] = (np.float32(levels[r, c]) * column_scale[c]) * row_scale[r]
