"""Elements of 1, 2, 4 or 8 bytes as indices of the few values that occur, and back: the loops behind `codec.palette`.

The element size is constant in each loop: LLVM then makes single loads and stores of the bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import inlined, kernel

U: Any = np.uint64
SLOTS = 4096  # of the hash table: 16 for each of 256 values
FIRST, BLOCK = 1 << 11, 1 << 15  # elements until the first look at how many values there are, and between others
_HASH = U(0x9E3779B97F4A7C15)


@kernel
def collect(data: NDArray[np.uint8], size: int, limit: int, values: NDArray[np.uint64]) -> int:
    """Fill `values` (`limit` or more) with the different elements, in any order: their number, or -1 if too many."""
    count, found = data.size // size, 0
    if size <= 2:
        seen = np.zeros(1 << 16, np.uint8)
        start, stop = 0, FIRST
        while start < count:
            for i in range(start, min(stop, count)):  # without a branch: chance decides which value comes next
                seen[_element(data, i, size)] = 1
            start, stop = stop, stop + BLOCK
            found = 0
            for k in range(1 << (8 * size)):
                found += seen[k]
            if found > limit:
                return -1
        found = 0
        for k in range(1 << (8 * size)):
            if seen[k]:
                values[found] = U(k)
                found += 1
        return found
    table, used = np.empty(SLOTS, np.uint64), np.zeros(SLOTS, np.uint8)
    for i in range(count):
        element = _element(data, i, size)
        slot = element * _HASH >> U(52)
        while used[slot] and table[slot] != element:
            slot = slot + U(1) & U(SLOTS - 1)
        if not used[slot]:
            if found == limit:
                return -1
            used[slot], table[slot] = 1, element
            values[found] = element
            found += 1
    return found


@kernel
def look_up(data: NDArray[np.uint8], size: int, values: NDArray[np.uint64], indices: NDArray[np.uint8]) -> bool:
    """Fill `indices`, one for each element; False if an element is none of `values`, which are sorted."""
    if size <= 2:
        places, missing = np.full(1 << 16, 256, np.int16), np.int16(0)
        for k in range(values.size):
            places[values[k]] = k
        for i in range(indices.size):
            place = places[_element(data, i, size)]
            missing |= place
            indices[i] = place
        return bool(missing < 256)
    table, index = np.empty(SLOTS, np.uint64), np.full(SLOTS, -1, np.int16)
    for k in range(values.size):
        slot = values[k] * _HASH >> U(52)
        while index[slot] >= 0:
            slot = slot + U(1) & U(SLOTS - 1)
        table[slot], index[slot] = values[k], k
    for i in range(indices.size):
        element = _element(data, i, size)
        slot = element * _HASH >> U(52)
        while table[slot] != element or index[slot] < 0:
            if index[slot] < 0:
                return False
            slot = slot + U(1) & U(SLOTS - 1)
        indices[i] = index[slot]
    return True


@inlined
def _element(data: NDArray[np.uint8], i: int, size: int) -> Any:
    at = U(i * size)
    if size == 1:
        return U(data[at])
    if size == 2:
        return U(data[at]) | U(data[at + U(1)]) << U(8)
    low = U(data[at]) | U(data[at + U(1)]) << U(8) | U(data[at + U(2)]) << U(16) | U(data[at + U(3)]) << U(24)
    if size == 4:
        return low
    at += U(4)
    high = U(data[at]) | U(data[at + U(1)]) << U(8) | U(data[at + U(2)]) << U(16) | U(data[at + U(3)]) << U(24)
    return low | high << U(32)


@kernel
def restore(indices: NDArray[np.uint8], palette: NDArray[np.uint8], size: int, out: NDArray[np.uint8]) -> None:
    """Elements from indices. palette: 256 values of 1, 2, 4 or 8 bytes."""
    if size == 1:
        for i in range(indices.size):
            out[i] = palette[indices[i]]
    elif size == 2:
        for i in range(indices.size):
            k, at = U(indices[i]) * U(2), U(2 * i)
            a, b = palette[k], palette[k + U(1)]
            out[at], out[at + U(1)] = a, b
    elif size == 4:
        for i in range(indices.size):
            k, at = U(indices[i]) * U(4), U(4 * i)
            a, b, c, d = palette[k], palette[k + U(1)], palette[k + U(2)], palette[k + U(3)]
            out[at], out[at + U(1)], out[at + U(2)], out[at + U(3)] = a, b, c, d
    else:
        for i in range(indices.size):
            for half in (U(0), U(4)):
                k, at = U(indices[i]) * U(8) + half, U(8 * i) + half
                a, b, c, d = palette[k], palette[k + U(1)], palette[k + U(2)], palette[k + U(3)]
                out[at], out[at + U(1)], out[at + U(2)], out[at + U(3)] = a, b, c, d
