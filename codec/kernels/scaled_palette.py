"""Floats as whole numbers times a scale for each group: the loops behind `codec.scaled_palette`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import inlined, kernel

U: Any = np.uint64
LIMIT = 255  # largest whole number, and most magnitudes in a group
ZERO, KEYS = 256, 512  # -255 .. -1, -0, 0, 1 .. 255 have the keys 0 .. 511
_SLOTS = 1024
_HASH = U(0x9E3779B97F4A7C15)
_SCALE_BITS = 24
_TRIES = 6


@kernel
def fit(
    bits: NDArray[np.uint32],
    group: int,
    precision: int,
    lowest: int,
    scales: NDArray[np.float32],
    keys: NDArray[np.uint16],
    counts: NDArray[np.int64],
) -> bool:
    """Fill `scales`, one for each `group` floats, and `keys` of their whole numbers, one for each; add to the `counts` of
    each key. False if one group has no scale.

    bits: of float32 values. precision, lowest: bits of the mantissa and the least exponent of the dtype they come from.
    """
    table, stamps, places = np.empty(_SLOTS, np.uint32), np.full(_SLOTS, -1, np.int64), np.empty(_SLOTS, np.int16)
    found, whole = np.empty(LIMIT, np.uint32), np.empty(LIMIT, np.int16)
    magnitudes = found.view(np.float32)
    scale = np.float32(1)
    for number in range(scales.size):
        start, stop = number * group, min((number + 1) * group, bits.size)
        count = 0
        for i in range(start, stop):
            key = bits[i] & np.uint32(0x7FFFFFFF)
            if key >= np.uint32(0x7F800000):
                return False
            if key == 0:
                continue
            slot = _slot(table, stamps, key, number)
            if stamps[slot] != number:
                if count == LIMIT:
                    return False
                table[slot], stamps[slot] = key, number
                at = count
                while at and found[at - 1] > key:
                    found[at] = found[at - 1]
                    at -= 1
                found[at] = key
                count += 1
        if count:
            scale = _scale(magnitudes, count, precision, lowest, whole)
            if scale == 0:
                return False
            for j in range(count):
                places[_slot(table, stamps, found[j], number)] = whole[j]
        scales[number] = scale  # a group of zeros has that of the group before it
        for i in range(start, stop):
            key = bits[i] & np.uint32(0x7FFFFFFF)
            place = np.int64(places[_slot(table, stamps, key, number)]) if key else 0
            place = ZERO - 1 - place if bits[i] != key else ZERO + place
            keys[i] = place
            counts[place] += 1
    return True


@kernel
def restore(
    codes: NDArray[np.uint8], tables: NDArray[np.uint8], values: int, size: int, group: int, skip: int, out: Any
) -> None:
    """Elements from their codes. tables: for each group its `values` elements of `size` bytes, 2 or 4; skip: elements of the
    first group that come before those of `codes`."""
    i, table = 0, 0
    while i < codes.size:
        stop = min(codes.size, (table + 1) * group - skip)
        first = U(table * values * size)
        if size == 2:
            for j in range(i, stop):
                k, at = first + U(codes[j]) * U(2), U(2 * j)
                a, b = tables[k], tables[k + U(1)]
                out[at], out[at + U(1)] = a, b
        else:
            for j in range(i, stop):
                k, at = first + U(codes[j]) * U(4), U(4 * j)
                a, b, c, d = tables[k], tables[k + U(1)], tables[k + U(2)], tables[k + U(3)]
                out[at], out[at + U(1)], out[at + U(2)], out[at + U(3)] = a, b, c, d
        i, table = stop, table + 1


@inlined
def _slot(table: Any, stamps: Any, key: Any, number: int) -> Any:
    """Where a magnitude of this group is in the hash table, or would be."""
    slot = U(key) * _HASH >> U(54)
    while stamps[slot] == number and table[slot] != key:
        slot = slot + U(1) & U(_SLOTS - 1)
    return slot


@inlined
def _scale(magnitudes: Any, count: int, precision: int, lowest: int, whole: Any) -> Any:
    """The scale of which all magnitudes (ascending) are multiples as far as their precision tells, the largest the least
    that is possible; 0 if there is none. whole: filled with the multipliers."""
    top = np.float64(magnitudes[count - 1])
    for most in range(count, LIMIT + 1):
        half = _half(top, precision, lowest)
        low, high, last = (top - half) / most, (top + half) / most, 0.0
        fits = True
        for j in range(count):  # the small ones first: of them there is no doubt what they are multiplied by
            x = np.float64(magnitudes[j])
            k = np.rint(x / (0.5 * (low + high)))
            if k <= last or k > most:
                fits = False
                break
            half = _half(x, precision, lowest)
            low, high, last = max(low, (x - half) / k), min(high, (x + half) / k), k
            if low > high * (1 + 1e-15):
                fits = False
                break
            whole[j] = k
        if fits:
            scale = _simplest(low * (1 - 1e-15), high * (1 + 1e-15), magnitudes, whole, count, precision, lowest)
            if scale > 0:
                return scale
    return np.float32(0)


@inlined
def _simplest(low: float, high: float, magnitudes: Any, whole: Any, count: int, precision: int, lowest: int) -> Any:
    """The number from `low` to `high` with the fewest bits that gives all magnitudes; 0 if none does."""
    exponent = math.frexp(low)[1]
    for bits in range(1, _SCALE_BITS + 1):
        step = math.ldexp(1.0, exponent - bits)
        at = math.ceil(low / step) * step
        for _ in range(_TRIES):
            if at > high:
                break
            scale, exact = np.float32(at), True
            for j in range(count):
                product = np.float64(np.float32(whole[j]) * scale)
                if _rounded(product, precision, lowest) != np.float64(magnitudes[j]):
                    exact = False
                    break
            if exact:
                return scale
            at += step
    return np.float32(0)


@inlined
def _half(x: float, precision: int, lowest: int) -> float:
    """Half a unit in the last place."""
    return math.ldexp(1.0, max(math.frexp(x)[1] - 1, lowest) - precision)


@inlined
def _rounded(x: float, precision: int, lowest: int) -> float:
    unit = 2 * _half(x, precision, lowest)
    return float(np.rint(x / unit) * unit)
