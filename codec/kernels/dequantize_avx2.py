"""4-bit codes to float16 or bfloat16 by table: a group has 16 values, and a shuffle looks up 32 bytes at once.

The values are those of `dequantize`, to the bit: each is computed once per group instead of once per code.
0.15 to 0.25 cycles per code in groups of 128, on data in cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dequantize import to_bfloat16, to_float16
from .jit import inlined, kernel
from .simd import (
    and_,
    constant_b,
    high_half,
    load,
    load_twice,
    load_u64,
    low_half,
    scratch,
    shift_right_h,
    shuffle_b,
    splat_b,
    store,
    store_half,
    store_u64,
    unpack_high_b,
    unpack_low_b,
)

U: Any = np.uint64
_nibble, _shift4 = splat_b(15), shift_right_h(4)
_split = constant_b([0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15])
_planes = scratch(32)  # of the 16 values of a group: low bytes, then high bytes


@kernel
def dequantize4(
    packed: NDArray[np.uint8],
    start: int,
    scale: NDArray[np.float32],
    zero_point: NDArray[np.uint8],
    symmetric_zero_point: float,
    group_size: int,
    columns: int,
    half: int,
    out16: NDArray[np.uint16],
) -> None:
    """As `dequantize.dequantize` with storage_bits = 4 and half = 1 or 2. start, group_size and columns must be even."""
    floats, shifted = np.empty(16, np.float32), np.empty(16, np.float32)
    bits, shifted_bits = floats.view(np.uint32), shifted.view(np.uint32)
    table = np.empty(16, np.uint16)
    planes = _planes()
    code, at = start, 0
    while at < out16.size:
        row = at // columns if scale.shape[0] > 1 else 0
        for group in range((columns + group_size - 1) // group_size):
            s = scale[row, group]
            z = np.float32(zero_point[row, group]) if zero_point.size else np.float32(symmetric_zero_point)
            for c in range(16):
                floats[c] = (np.float32(c) - z) * s
                shifted[c] = abs(floats[c]) + np.float32(0.5)
            if half == 1:
                for c in range(16):
                    table[c] = to_float16(bits[c], shifted_bits[c])
            else:
                for c in range(16):
                    table[c] = to_bfloat16(bits[c])
            store(planes, shuffle_b(load(U(table.ctypes.data)), _split()))  # low bytes of 0..7, high bytes, the same of 8..15
            middle = load_u64(planes + U(8))
            store_u64(planes + U(8), load_u64(planes + U(16)))
            store_u64(planes + U(16), middle)
            length = min(group_size, columns - group * group_size)
            whole = length // 64 * 64
            _look_up(U(packed.ctypes.data) + U(code // 2), U(out16.ctypes.data) + U(2 * at), U(whole // 64), planes)
            for i in range(whole, length, 2):
                pair = packed[(code + i) // 2]
                out16[at + i] = table[pair & 15]
                out16[at + i + 1] = table[pair >> 4]
            code += length
            at += length


@inlined
def _look_up(source: Any, target: Any, steps: Any, planes: Any) -> None:
    """64 codes, 32 bytes, in each step."""
    low_bytes, high_bytes, nibble = load_twice(planes), load_twice(planes + U(16)), _nibble()
    for _ in range(steps):
        pairs = load(source)
        even, odd = and_(pairs, nibble), and_(_shift4(pairs), nibble)
        first, second = unpack_low_b(even, odd), unpack_high_b(even, odd)
        # `first` holds codes 0..15 and 32..47, `second` 16..31 and 48..63: halves are put in order when they are stored.
        a = shuffle_b(low_bytes, first), shuffle_b(high_bytes, first)
        b = shuffle_b(low_bytes, second), shuffle_b(high_bytes, second)
        a0, a1 = unpack_low_b(a[0], a[1]), unpack_high_b(a[0], a[1])
        b0, b1 = unpack_low_b(b[0], b[1]), unpack_high_b(b[0], b[1])
        store_half(target, low_half(a0))
        store_half(target + U(16), low_half(a1))
        store_half(target + U(32), low_half(b0))
        store_half(target + U(48), low_half(b1))
        store_half(target + U(64), high_half(a0))
        store_half(target + U(80), high_half(a1))
        store_half(target + U(96), high_half(b0))
        store_half(target + U(112), high_half(b1))
        source += U(32)
        target += U(128)
