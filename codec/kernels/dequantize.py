"""Packed codes to float32, float16 or bfloat16: unpack a block that stays in cache, scale it, round it once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .bits import unpack_into
from .jit import inlined, kernel

I32 = np.int32
BLOCK = 4096  # codes; a block as bytes and as float32 fits the first-level cache


@kernel
def dequantize(
    packed: NDArray[np.uint8],
    storage_bits: int,
    start: int,
    scale: NDArray[np.float32],
    zero_point: NDArray[np.uint8],
    symmetric_zero_point: float,
    group_size: int,
    columns: int,
    half: int,
    out: NDArray[np.float32],
    out16: NDArray[np.uint16],
) -> None:
    """Rows of `columns` codes from code `start` on, to `out` (half = 0), or as float16 (1) or bfloat16 (2) to `out16`.

    scale: `[rows, groups]`, or `[1, 1]` for all rows. zero_point: the same shape, or empty for symmetric grids.
    """
    count = out.size if half == 0 else out16.size
    codes = np.empty(BLOCK, np.uint8)
    floats = np.zeros(BLOCK, np.float32)
    shifted = np.empty(BLOCK, np.float32)
    bits, shifted_bits = floats.view(np.uint32), shifted.view(np.uint32)
    row, column = 0, 0
    for first in range(0, count, BLOCK):
        n = min(BLOCK, count - first)
        unpack_into(packed, storage_bits, start + first, codes, n)
        target = floats[:n] if half else out[first : first + n]
        done = 0
        while done < n:
            group = column // group_size
            length = min(min(group_size * (group + 1), columns) - column, n - done)
            r = row if scale.shape[0] > 1 else 0
            s = scale[r, group]
            z = np.float32(zero_point[r, group]) if zero_point.size else np.float32(symmetric_zero_point)
            _scale(codes[done : done + length], z, s, target[done : done + length])
            done += length
            column += length
            if column == columns:
                row, column = row + 1, 0
        if half == 1:
            for i in range(BLOCK):
                shifted[i] = abs(floats[i]) + np.float32(0.5)
            rounded = out16[first : first + n]
            for i in range(rounded.size):
                rounded[i] = to_float16(bits[i], shifted_bits[i])
        elif half == 2:
            rounded = out16[first : first + n]
            for i in range(rounded.size):
                rounded[i] = to_bfloat16(bits[i])


@inlined
def _scale(codes: NDArray[np.uint8], zero_point: np.float32, scale: np.float32, out: NDArray[np.float32]) -> None:
    for i in range(out.size):
        out[i] = (np.float32(codes[i]) - zero_point) * scale


@inlined
def to_float16(x: np.uint32, shifted: np.uint32) -> np.uint16:
    """Round to nearest even, in integers: numba has no float16 on CPUs.

    shifted: the bits of `abs(value) + 0.5`. That sum has the last bit of a subnormal float16 as its own, so the
    processor has rounded it already.
    """
    magnitude = I32(I32(x) & I32(0x7FFFFFFF))
    odd = I32((I32(x) >> I32(13)) & I32(1))
    normal = I32(I32(I32(magnitude - I32(112 << 23)) + I32(0xFFF)) + odd) >> I32(13)
    half = I32(I32(shifted) - I32(126 << 23)) if magnitude < I32(113 << 23) else I32(normal)
    half = min(half, I32(0x7C00))
    half = I32(0x7E00) if magnitude > I32(0x7F800000) else half
    return np.uint16(half | (I32(x) >> I32(16)) & I32(0x8000))


@inlined
def to_bfloat16(x: np.uint32) -> np.uint16:
    """Round to nearest even."""
    nan = (x & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    rounded = np.uint32(x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1)))
    return np.uint16((x | np.uint32(0x400000) if nan else rounded) >> np.uint32(16))
