"""The table of coder 9, which its payload begins with, and its decoder: a table read, then lanes (SPEC section 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans_header import I
from .jit import inlined, kernel
from .lanes import decode_lanes
from .status import BAD_TABLE

HEADER = 3  # bytes: first symbol, last symbol, precision and kind
LEAST, MOST = 8, 15  # bits of precision
ZEROS = 15  # of a number, at most
TABLE_NBYTES = HEADER + 255 * 5
"""No table that `write_table` makes is larger: frequencies are below 2^15, and so a number has at most 33 bits."""


@kernel
def write_table(frequencies: NDArray[np.uint16], precision: int, out: NDArray[np.uint8]) -> int:
    """Fill `out` from its beginning, in the kind that is shorter; returns the size. out: TABLE_NBYTES.

    frequencies: of 256 symbols, at least two of them above 0.
    """
    first, last = 0, 255
    while frequencies[first] == 0:
        first += 1
    while frequencies[last] == 0:
        last -= 1
    bits = np.zeros(2, np.int64)
    for kind in range(2):
        before, mean = I(0), I(2)
        for s in range(first, last):
            f = I(frequencies[s])
            value, order = fold(f, before, kind), order_of(before, mean, kind)
            bits[kind] += 2 * (length_of(value + (1 << order)) - 1) - order + 1
            before, mean = f, mean - (mean >> 1) + value
    plain: int = HEADER + (bits[1] + 7) // 8
    nbytes: int = HEADER + (bits[0] + 7) // 8
    kind = I(plain < nbytes)
    nbytes = min(nbytes, plain)
    out[:nbytes] = 0
    out[0], out[1], out[2] = first, last, precision | kind << 4
    at = I(8 * HEADER)
    before, mean = I(0), I(2)
    for s in range(first, last):
        f = I(frequencies[s])
        value, order = fold(f, before, kind), order_of(before, mean, kind)
        shifted = value + (1 << order)
        zeros = length_of(shifted) - 1 - order
        number, length = I(1) << zeros | (shifted - (I(1) << (zeros + order))) << (zeros + 1), 2 * zeros + 1 + order
        for k in range(length):
            out[(at + k) >> 3] |= np.uint8((number >> k & 1) << ((at + k) & 7))
        at += length
        before, mean = f, mean - (mean >> 1) + value
    return nbytes


@kernel
def read_table(payload: NDArray[np.uint8], frequencies: NDArray[np.uint16]) -> tuple[int, int]:
    """Fill `frequencies` (256 zeros); returns (precision, size of the table), (0, 0) if it is none."""
    if payload.size < HEADER:
        return 0, 0
    first, last, precision, kind = I(payload[0]), I(payload[1]), I(payload[2]) & 15, I(payload[2]) >> 4
    if first >= last or precision < LEAST or kind > 1:
        return 0, 0
    left, at, end = I(1) << precision, I(8 * HEADER), 8 * payload.size
    before, mean = I(0), I(2)
    for s in range(first, last):
        order, zeros = order_of(before, mean, kind), I(0)
        while zeros <= ZEROS and at < end and not payload[at >> 3] >> np.uint8(at & 7) & 1:
            zeros += 1
            at += 1
        at += 1
        if zeros > ZEROS or at + zeros + order > end:
            return 0, 0
        value = (I(1) << (zeros + order)) - (I(1) << order)
        for k in range(zeros + order):
            value += I(payload[(at + k) >> 3] >> np.uint8((at + k) & 7) & 1) << k
        at += zeros + order
        f = value
        if kind == 0 and value <= 2 * before:
            f = before - (value + 1) // 2 if value & 1 else before + value // 2
        left -= f
        if left <= 0:
            return 0, 0
        frequencies[s] = f
        before, mean = f, mean - (mean >> 1) + value
    if left >> precision or (at & 7 and payload[at >> 3] >> np.uint8(at & 7)):
        return 0, 0
    frequencies[last] = left
    return precision, (at + 7) // 8


@kernel
def decode_short256(payload: NDArray[np.uint8], lanes: int, out: NDArray[np.uint8]) -> int:
    """Fill `out`; returns a number of `status`. Reads and writes nothing but the arrays, whatever is in them."""
    frequencies = np.zeros(256, np.uint16)
    precision, nbytes = read_table(payload, frequencies)
    if precision == 0:
        return BAD_TABLE
    return decode_lanes(payload[nbytes:], lanes, frequencies, precision, out)


@inlined
def fold(f: int, before: int, kind: int) -> int:
    """What is written for a frequency: itself, or in kind 0 how it differs from the one before, small numbers for small ones."""
    if kind == 1 or f > 2 * before:
        return f
    return 2 * (f - before) if f >= before else 2 * (before - f) - 1


@inlined
def order_of(before: int, mean: int, kind: int) -> int:
    """The order of the next number. mean: twice a running mean of those that were written."""
    return max(0, length_of(before if kind == 1 else mean >> 1) - 1)


@inlined
def length_of(value: int) -> int:
    """Number of bits, 0 for 0."""
    length = 0
    while value >> length:
        length += 1
    return length
