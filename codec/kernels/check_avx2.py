"""The vector twin of `batch.check`: several times as fast, and it runs over everything that is decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import batch
from .ans_header import U
from .jit import inlined
from .simd import load, load_u64, or_, scratch, splat_b, store
from .status import CODE_TOO_LARGE, OK

_area, _zero = scratch(32), splat_b(0)


@inlined
def check(out: NDArray[np.uint8], unused: Any, spare: Any) -> int:
    whole = 0
    if unused != 0:
        whole = out.size // 128 * 128
        data, area = U(out.ctypes.data), _area()
        a, b, c, d = _zero(), _zero(), _zero(), _zero()
        for i in range(0, whole, 128):
            at = data + U(i)
            a, b = or_(a, load(at)), or_(b, load(at + U(32)))
            c, d = or_(c, load(at + U(64))), or_(d, load(at + U(96)))
        store(area, or_(or_(a, b), or_(c, d)))
        seen = load_u64(area) | load_u64(area + U(8)) | load_u64(area + U(16)) | load_u64(area + U(24))
        if seen & (U(unused) * U(0x0101010101010101)):
            return CODE_TOO_LARGE
    if whole == out.size and spare == 0:
        return OK
    return batch.check(out[min(whole, out.size - 1) :], unused, spare)
