"""Integer frequencies that code given counts in the fewest bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import kernel


@kernel
def normalize(counts: NDArray[np.int64], steps: NDArray[np.float64], frequencies: NDArray[np.int64]) -> None:
    """Fill `frequencies` (sum `steps.size`, >= 1 for every counted symbol, 0 for others).

    `steps[f]` is ln((f + 1) / f): one more slot for symbol s saves counts[s] * steps[frequencies[s]]. The cost is a
    sum of convex functions of one frequency each, so moving single slots until no move saves anything finds its minimum.
    At least two symbols must be counted.
    """
    total = steps.size
    left, counted = total, 0
    for s in range(counts.size):  # counts.sum() would have every process that codes import numba's linear algebra
        counted += counts[s]
    scale = total / counted
    for s in range(counts.size):
        if counts[s] > 0:
            frequencies[s] = max(1, min(total - 1, int(counts[s] * scale)))
            left -= frequencies[s]
    while True:
        gain, loss = -1.0, np.inf
        to, source = -1, -1
        for s in range(counts.size):
            f = frequencies[s]
            if f == 0:
                continue
            if counts[s] * steps[f] > gain:
                gain, to = counts[s] * steps[f], s
            if f > 1 and counts[s] * steps[f - 1] < loss:
                loss, source = counts[s] * steps[f - 1], s
        if left > 0:
            frequencies[to] += 1
            left -= 1
        elif left < 0:
            frequencies[source] -= 1
            left += 1
        elif gain > loss:
            frequencies[to] += 1
            frequencies[source] -= 1
        else:
            return
