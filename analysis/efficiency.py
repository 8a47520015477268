"""How much of what entropy coding can gain a coder does gain: 0 at log2(L) bits per code, 1 at the entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError

SMALLEST_GAIN = 1e-9  # bits per code: below it there is nothing to gain, and a share of it means nothing


def efficiency(bits: float, entropy: float, level_bits: float) -> float | None:
    """`(log2 L - bits) / (log2 L - H0)`: 1 = coded at the entropy, 0 = nothing gained, below 0 = larger than uncoded.

    All in bits per code. None where the entropy leaves nothing to gain. Above 1: a coder that uses more than the
    histogram of a whole tensor (tables per chunk, matches).
    """
    gain = level_bits - entropy
    return (level_bits - bits) / gain if gain > SMALLEST_GAIN else None


def huffman_bits(counts: NDArray[Any]) -> float:
    """Mean length in bits of an optimal Huffman code, without limit, for symbols with these counts.

    counts: non-negative integers, one per symbol. A single symbol takes one bit, none at all takes 0. Tables are not counted.
    """
    used = np.sort(np.asarray(counts).ravel())
    if used.size and used[0] < 0:
        raise InvalidArgumentError(f"a count cannot be negative, got {used[0]}")
    leaves = [int(count) for count in used if count]
    total = sum(leaves)
    if len(leaves) < 2:
        return float(len(leaves))
    # Two queues (van Leeuwen): inner nodes come out in ascending order by themselves.
    inner: list[int] = []
    length = leaf = node = 0
    for _ in range(len(leaves) - 1):
        weight = 0
        for _ in range(2):
            if node >= len(inner) or (leaf < len(leaves) and leaves[leaf] <= inner[node]):
                weight, leaf = weight + leaves[leaf], leaf + 1
            else:
                weight, node = weight + inner[node], node + 1
        inner.append(weight)
        length += weight
    return length / total
