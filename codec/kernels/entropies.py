"""What no table can code the chunks of a run of bytes in less: whole, or their high nibbles alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .escape16 import HEADER
from .jit import inlined, kernel

LEAST_NBYTES = HEADER + 44  # what coding adds to the information, at least: 116 bytes for states less the 64 they hold

VARIED, HOPELESS, CONSTANT = 0, 1, 2


@kernel
def entropies(counts: NDArray[np.int64], shift: int, kinds: NDArray[np.uint8]) -> tuple[float, float, int]:
    """Bits of the bytes, each chunk by itself; of the high nibbles of the bytes plus `shift`; and how many bytes there are.

    counts: int64 `[chunks, 256]`. kinds: VARIED, HOPELESS for chunks that coder 6 cannot make smaller, or CONSTANT for those whose
    bytes are all the same, which do not count.
    """
    whole, halves, total = 0.0, 0.0, 0
    high = np.empty(16, np.int64)
    for i in range(len(counts)):
        high[:] = 0
        some, most = 0, 0
        for byte in range(256):
            some += counts[i, byte]
            most = max(most, counts[i, byte])
            high[(byte + shift & 255) >> 4] += counts[i, byte]
        if most == some:
            kinds[i] = CONSTANT
            continue
        bits = _times_log(some)
        halves += bits
        for byte in range(256):
            bits -= _times_log(counts[i, byte])
        for s in range(16):
            halves -= _times_log(high[s])
        kinds[i] = HOPELESS if some - bits / 8 < LEAST_NBYTES else VARIED
        whole += bits
        total += some
    return whole, halves, total


@inlined
def _times_log(n: int) -> float:
    return n * np.log2(n) if n > 0 else 0.0
