"""Codes as their difference to those of another tensor: fine-tuned weights differ little from those they came from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .packing import pack_codes, unpack_codes

XOR, DIFFERENCE = 1, 2
"""`delta` of a chunk (SPEC section 4); 0 stands for the codes themselves."""


def differ(packed: NDArray[np.uint8], base: NDArray[np.uint8], bits: int, count: int, delta: int) -> NDArray[np.uint8]:
    """`count` packed codes of `bits` bits against as many others, packed alike: XOR, or the difference modulo 2^bits."""
    return _combine(packed, base, bits, count, delta, -1)


def restore(packed: NDArray[np.uint8], base: NDArray[np.uint8], bits: int, count: int, delta: int) -> NDArray[np.uint8]:
    """The inverse of `differ`."""
    return _combine(packed, base, bits, count, delta, 1)


def _combine(
    packed: NDArray[np.uint8], base: NDArray[np.uint8], bits: int, count: int, delta: int, sign: int
) -> NDArray[np.uint8]:
    if delta == XOR:
        return packed ^ base
    if bits == 8:
        return packed - base if sign < 0 else packed + base
    width = 1 << (bits - 1).bit_length()
    ours, theirs = unpack_codes(packed, count, width), unpack_codes(base, count, width)
    result = ours - theirs if sign < 0 else ours + theirs
    return pack_codes(result & np.uint8((1 << bits) - 1), width)
