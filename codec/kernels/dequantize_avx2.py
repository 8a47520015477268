"""4-bit codes to float16 or bfloat16 by table: a group has 16 values, and a shuffle looks up 32 bytes at once.

The values are those of `dequantize`, to the bit: each is computed once per group instead of once per code.
0.17 cycles per code in groups of 128 on data in cache, where filling as much memory takes 0.13.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dequantize import to_bfloat16
from .jit import inlined, kernel
from .simd import (
    and_,
    constant_f,
    even_then_odd_d,
    fill_f,
    high_bytes_h,
    join,
    load,
    load_twice,
    low_bytes_h,
    mul_f,
    shift_right_h,
    shuffle_b,
    splat_b,
    store,
    sub_f,
    unpack_high_b,
    unpack_low_b,
)
from .simd import to_float16 as half_of

U: Any = np.uint64
_nibble, _shift4 = splat_b(15), shift_right_h(4)
_first, _second = constant_f([*range(8)]), constant_f([*range(8, 16)])


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
    floats = np.empty(16, np.float32)
    bits = floats.view(np.uint32)
    table = np.empty(16, np.uint16)
    code, at = start, 0
    while at < out16.size:
        row = at // columns if scale.shape[0] > 1 else 0
        for group in range((columns + group_size - 1) // group_size):
            s = scale[row, group]
            z = np.float32(zero_point[row, group]) if zero_point.size else np.float32(symmetric_zero_point)
            if half == 1:
                zeros, scales = fill_f(z), fill_f(s)
                low, high = mul_f(sub_f(_first(), zeros), scales), mul_f(sub_f(_second(), zeros), scales)
                values = join(half_of(low), half_of(high))
            else:
                for c in range(16):
                    floats[c] = (np.float32(c) - z) * s
                for c in range(16):
                    table[c] = to_bfloat16(bits[c])
                values = load(U(table.ctypes.data))
            length = min(group_size, columns - group * group_size)
            source, target = U(packed.ctypes.data) + U(code // 2), U(out16.ctypes.data) + U(2 * at)
            _look_up(source, target, U(length // 32), values)
            if length % 32:
                store(U(table.ctypes.data), values)
            for i in range(length // 32 * 32, length, 2):
                pair = packed[(code + i) // 2]
                out16[at + i] = table[pair & 15]
                out16[at + i + 1] = table[pair >> 4]
            code += length
            at += length


@inlined
def _look_up(source: Any, target: Any, steps: Any, values: Any) -> None:
    """32 codes, 16 bytes, in each step; two steps at a time where there are two."""
    low_bytes, high_bytes = low_bytes_h(values), high_bytes_h(values)
    for _ in range(steps >> U(1)):
        first, second = _unpack(load(source))
        a, b = _values(first, low_bytes, high_bytes), _values(second, low_bytes, high_bytes)
        store(target, a[0])
        store(target + U(32), a[1])
        store(target + U(64), b[0])
        store(target + U(96), b[1])
        source += U(32)
        target += U(128)
    if steps & U(1):
        a = _values(_unpack(load_twice(source))[0], low_bytes, high_bytes)
        store(target, a[0])
        store(target + U(32), a[1])


@inlined
def _unpack(pairs: Any) -> Any:
    """Codes of 32 bytes, one in a byte. Each half has eight of them, then the eight that come sixteen later.

    So the 16-bit values of the first eight in both halves, and those of the others, are sixteen in a row.
    """
    pairs = even_then_odd_d(pairs)
    even, odd = and_(pairs, _nibble()), and_(_shift4(pairs), _nibble())
    return unpack_low_b(even, odd), unpack_high_b(even, odd)


@inlined
def _values(codes: Any, low_bytes: Any, high_bytes: Any) -> Any:
    low, high = shuffle_b(low_bytes, codes), shuffle_b(high_bytes, codes)
    return unpack_low_b(low, high), unpack_high_b(low, high)
