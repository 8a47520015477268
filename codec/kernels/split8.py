"""Coder 5 in plain integer code: bytes, moved up by 8, cut into nibbles and joined again (SPEC section 5).

The high nibbles are coder 2's business. They are decoded into the second half of `out` and merged with the low ones from
the front: what is written there never passes what is still to be read, so no memory is needed but that of the result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import ans_portable
from .jit import inlined, kernel
from .status import BAD_PADDING, HEADER_TRUNCATED, OK


@kernel
def split(data: NDArray[np.uint8], low: NDArray[np.uint8], high: NDArray[np.uint8]) -> None:
    """Fill two arrays of half the size, rounded up, with packed nibbles."""
    # LLVM makes vector code of this loop: the casts keep its lanes narrow.
    pairs = data.size // 2
    for j in range(pairs):
        a, b = np.uint8(data[2 * j] + 8), np.uint8(data[2 * j + 1] + 8)
        low[j] = np.uint8(a & 15) | np.uint8(b << 4)
        high[j] = np.uint8(a >> 4) | np.uint8(b & 240)
    if data.size % 2:
        a = np.uint8(data[data.size - 1] + 8)
        low[pairs], high[pairs] = a & 15, a >> 4


@kernel
def decode_split8(
    payload: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], out: NDArray[np.uint8]
) -> int:
    """Signature, duties and result: see `ans_portable`."""
    half = (out.size + 1) // 2
    if payload.size < half:
        return HEADER_TRUNCATED
    status = ans_portable.decode_ans16(payload[half:], streams, frequencies, out[out.size - half :])
    return merge(payload, out, 0) if status == OK else status


@inlined
def merge(low: NDArray[np.uint8], out: NDArray[np.uint8], begin: int) -> int:
    """Join packed low nibbles with the high ones in the second half of `out`, from byte `begin` of both on."""
    pairs = out.size // 2
    for j in range(begin, pairs):
        a, b = low[j], out[pairs + j]
        out[2 * j] = (a & 15 | (b & 15) << 4) - 8
        out[2 * j + 1] = (a >> 4 | b & 240) - 8
    if out.size % 2:
        a, b = low[pairs], out[2 * pairs]
        if a > 15 or b > 15:
            return BAD_PADDING
        out[2 * pairs] = (a | b << 4) - 8
    return OK
