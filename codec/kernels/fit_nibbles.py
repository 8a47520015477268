"""Tables for the nibbles of a run of chunks, and whether tables for its bytes would be better: all that decides, in one call."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import inlined, kernel
from .normalize import normalize


@kernel
def fit_nibbles(
    bounds: NDArray[np.int64],
    counts: NDArray[np.int64],
    samples: NDArray[np.int64],
    varied: NDArray[np.uint8],
    steps: NDArray[np.float64],
    units: NDArray[np.int64],
    logs: NDArray[np.int64],
    prices: NDArray[np.int64],
    frequencies: NDArray[np.int64],
) -> tuple[float, float]:
    """Fill `frequencies` (int64 `[chunks + 1, 16]`, zeros before); returns the costs of the run by nibbles and by bytes.

    bounds, counts of nibbles (int64 `[chunks, 16]`), samples (counts of bytes, int64 `[chunks, 256]`), varied: see `survey`;
    chunks that do not vary are left out. steps: see `normalize`. units: cost of a nibble by frequency; logs: log2 of
    0 .. logs.size - 1, 0 for 0, in the same units, as all costs. prices: of a table of nibbles; of a table of bytes; what
    sampling takes off the cost by bytes for each value but one.

    The last row of `frequencies` codes the whole run. A chunk that is better off with it than with a table of its own
    gets the same frequencies. The cost by nibbles is as exact as their counts, that by bytes an estimate with one
    table for all.
    """
    chunks = varied.size
    shared, pooled, costs = np.zeros(16, np.int64), np.zeros(256, np.int64), np.zeros(2 * chunks, np.int64)
    size = 0
    for i in range(chunks):
        if varied[i]:
            normalize(counts[i], steps, frequencies[i])
            costs[i] = _cost(counts[i], units, frequencies[i]) + prices[0]
            # A table of what a sample happens to hold seems to save half a nat for each of its bytes and each value.
            for s in range(16):
                costs[i] += prices[2] * (varied[i] - 1) if counts[i, s] > 0 else 0
            size += bounds[i + 1] - bounds[i]
            for s in range(16):
                shared[s] += counts[i, s]
            for byte in range(256):
                pooled[byte] += samples[i, byte]
    if size == 0:
        return 0.0, 0.0
    normalize(shared, steps, frequencies[chunks])
    own, mixed, alone = 0.0, float(prices[0]), 0.0
    for i in range(chunks):
        costs[chunks + i] = _cost(counts[i], units, frequencies[chunks]) if varied[i] else 0
        own += costs[i]
        alone += costs[chunks + i]
        mixed += min(costs[i], costs[chunks + i])
    for i in range(chunks):
        if varied[i] and mixed < own and costs[chunks + i] <= costs[i]:
            for s in range(16):
                frequencies[i, s] = frequencies[chunks, s]
    by_nibbles, by_bytes = _sampled(pooled, size, units, logs, prices[2], frequencies[chunks])
    return min(own, mixed), alone * by_bytes / by_nibbles + prices[1]


@inlined
def _cost(counts: NDArray[np.int64], units: NDArray[np.int64], frequencies: NDArray[np.int64]) -> int:
    cost = 0
    for s in range(16):
        cost += counts[s] * units[frequencies[s]]
    return cost


@inlined
def _sampled(
    sample: NDArray[np.int64],
    size: int,
    units: NDArray[np.int64],
    logs: NDArray[np.int64],
    price: int,
    frequencies: NDArray[np.int64],
) -> tuple[float, float]:
    """The cost of a run by nibbles and by bytes, as far as a sample of its bytes tells."""
    nbytes, values, once, twice, by_nibbles, by_bytes = 0, -1, 0, 0, 0, 0
    for byte in range(256):
        n = sample[byte]
        if n > 0:
            nbytes += n
            by_nibbles += n * (units[frequencies[byte & 15]] + units[frequencies[byte >> 4]])
            by_bytes -= n * _log(n, logs)
            values += 1
            once += n == 1
            twice += n == 2
    values += once * once // (2 * max(1, twice))  # about as many have not been met (Chao, 1984)
    by_bytes += nbytes * _log(nbytes, logs)
    if nbytes < size:
        by_bytes += price * values
    return by_nibbles / nbytes * size, by_bytes / nbytes * size


@inlined
def _log(n: int, logs: NDArray[np.int64]) -> int:
    doubled = 0
    while n >= logs.size:
        n >>= 1
        doubled += 1
    log: int = logs[n] + doubled * logs[2]  # log2(2) is one bit
    return log
