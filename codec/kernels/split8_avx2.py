"""Coder 5 decoded with AVX2. Signature, duties and result: see `ans_portable`; how memory is used: see `split8`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import ans16_decode_avx2
from .ans_header import U
from .jit import inlined, kernel
from .simd import (
    Register,
    and_,
    high_half,
    join,
    load,
    low_half,
    or_,
    shift_left_h,
    shift_right_h,
    splat_b,
    store,
    sub_b,
    unpack_high_b,
    unpack_low_b,
)
from .split8 import merge
from .status import HEADER_TRUNCATED, OK

_up, _down = shift_left_h(4), shift_right_h(4)  # of two bytes at once: masks take away what crosses over
_low_nibbles, _high_nibbles, _eight = splat_b(15), splat_b(240), splat_b(8)


@kernel
def decode_split8(
    payload: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], out: NDArray[np.uint8]
) -> int:
    half = (out.size + 1) // 2
    if payload.size < half:
        return HEADER_TRUNCATED
    status = ans16_decode_avx2.decode_ans16(payload[half:], streams, frequencies, out[out.size - half :], U(0), U(0))
    if status != OK:
        return status
    low, target, pairs = U(payload.ctypes.data), U(out.ctypes.data), out.size // 2
    whole = pairs // 32 * 32
    for j in range(0, whole, 32):
        # Writes bytes 2 j .. 2 j + 63; those from pairs + j + 32 on have not been read, and j + 32 <= pairs.
        _merge(load(low + U(j)), load(target + U(pairs + j)), target + U(2 * j))
    return merge(payload, out, whole)


@inlined
def _merge(low: Register, high: Register, target: U) -> None:
    even = sub_b(or_(and_(low, _low_nibbles()), and_(_up(high), _high_nibbles())), _eight())
    odd = sub_b(or_(and_(_down(low), _low_nibbles()), and_(high, _high_nibbles())), _eight())
    first, second = unpack_low_b(even, odd), unpack_high_b(even, odd)
    store(target, join(low_half(first), low_half(second)))
    store(target + U(32), join(high_half(first), high_half(second)))
