"""Order-0 entropy: the bits that a symbol costs when nothing but the symbol counts is known."""

from __future__ import annotations

from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError


def shannon_entropy(counts: NDArray[Any]) -> float:
    """Entropy of a histogram, in bits per symbol: `-sum(p * log2(p))` with `p = counts / sum(counts)`.

    counts: integers of any shape, one per symbol. Symbols that never occur add nothing; no symbols at all cost 0.
    This is the plug-in estimate. It is what a coder with a free table could reach on exactly these symbols, and below
    the entropy of the source they were drawn from by about `(used symbols - 1) / (2 ln 2 * total)` bits.
    Raises InvalidArgumentError for negative counts.
    """
    used = np.asarray(counts).ravel()
    if used.size and used.min() < 0:
        raise InvalidArgumentError(f"a count cannot be negative, got {used.min()}")
    used = used[used > 0]
    if used.size < 2:
        return 0.0
    p = used / used.sum(dtype=np.float64)
    return float(-np.sum(p * np.log2(p)))


def level_bits(levels: int) -> float:
    """`log2(levels)`: bits per code when each of the grid's levels is given a number of fixed length."""
    if levels < 1:
        raise InvalidArgumentError(f"a grid has at least one level, got {levels}")
    return log2(levels)
