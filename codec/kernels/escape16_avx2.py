"""Coder 6 in AVX2 registers. Signatures, duties and results, and how memory is used: see `escape16`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import ans16_decode_avx2
from .ans_header import I, U
from .escape16 import ESCAPE, HEADER, escapes_end, put_bytes, put_nibbles, symbols_of
from .jit import inlined, kernel
from .simd import (
    Register,
    and_,
    greater_b,
    high_half,
    join,
    load,
    load_halves,
    load_twice,
    load_u8,
    log2_u64,
    low_half,
    mask_bits_b,
    or_,
    pack_h,
    popcount,
    scratch,
    shift_right_h,
    shuffle_b,
    splat_b,
    splat_h,
    store,
    store_u8,
    unpack_high_b,
    unpack_low_b,
    xor,
)
from .status import BAD_ESCAPES, HEADER_TRUNCATED, OK

_nibbles, _below_escape, _zero, _low_bytes = splat_b(15), splat_b(ESCAPE - 1), splat_b(0), splat_h(255)
_down = shift_right_h(4)  # of two bytes at once: masks take away what crosses over
_values, _groups = scratch(16), scratch(15 * 32)


@kernel
def decode_escape16(payload: NDArray[np.uint8], streams: int, table: NDArray[np.uint16], out: NDArray[np.uint8]) -> int:
    stop = escapes_end(payload)
    if stop < 0:
        return HEADER_TRUNCATED
    half = (out.size + 1) // 2
    status = ans16_decode_avx2.decode_ans16(payload[stop:], streams, table[:16], out[out.size - half :], U(0), U(0))
    if status != OK:
        return status
    values = _values()
    for s in range(16):
        store_u8(values + U(s), U(table[16 + s]))
    by_symbol, target, pairs = load_twice(values), U(out.ctypes.data), out.size // 2
    next, end = U(payload.ctypes.data) + U(HEADER), U(payload.ctypes.data) + U(stop)
    whole = pairs // 32 * 32
    for j in range(0, whole, 32):
        # Writes bytes 2 j .. 2 j + 63; those from pairs + j + 32 on have not been read, and j + 32 <= pairs.
        nibbles, place = load(target + U(pairs + j)), target + U(2 * j)
        even, odd = and_(nibbles, _nibbles()), and_(_down(nibbles), _nibbles())
        first, second = _in_order(shuffle_b(by_symbol, even), shuffle_b(by_symbol, odd))
        store(place, first)
        store(place + U(32), second)
        even, odd = greater_b(even, _below_escape()), greater_b(odd, _below_escape())
        if mask_bits_b(or_(even, odd)):
            first, second = _in_order(even, odd)
            mask = mask_bits_b(first) | mask_bits_b(second) << U(32)
            if popcount(mask) > end - next:
                return BAD_ESCAPES
            next = _patch(mask, next, place)
    return put_bytes(payload, I(next - U(payload.ctypes.data)), stop, table, out, whole)


@inlined
def _in_order(even: Register, odd: Register) -> tuple[Register, Register]:
    first, second = unpack_low_b(even, odd), unpack_high_b(even, odd)
    return join(low_half(first), low_half(second)), join(high_half(first), high_half(second))


@inlined
def _patch(mask: U, source: U, target: U) -> U:
    """The bytes at source to the places of the mask, in order. Returns the next source."""
    while mask:
        store_u8(target + log2_u64(mask & (U(0) - mask)), load_u8(source))
        source += U(1)
        mask &= mask - U(1)
    return source


@kernel
def to_nibbles(
    data: NDArray[np.uint8], table: NDArray[np.uint16], packed: NDArray[np.uint8], escaped: NDArray[np.uint8]
) -> int:
    symbols, groups = symbols_of(table), _groups()
    end = _fill(table, groups)
    source, target, into = U(data.ctypes.data), U(packed.ctypes.data), U(escaped.ctypes.data)
    next = into
    whole = data.size // 64 * 32
    for j in range(0, whole, 32):
        at = source + U(2 * j)
        # Halves of the registers are placed so that packing brings them back in order.
        x, y = load_halves(at, at + U(32)), load_halves(at + U(16), at + U(48))
        x, y = _symbols(x, y, groups, end)
        a, b = greater_b(x, _below_escape()), greater_b(y, _below_escape())
        if mask_bits_b(or_(a, b)):
            m, n = mask_bits_b(a), mask_bits_b(b)
            mask = (m & U(0xFFFF)) | (n & U(0xFFFF)) << U(16) | (m >> U(16)) << U(32) | (n >> U(16)) << U(48)
            while mask:
                store_u8(next, load_u8(at + log2_u64(mask & (U(0) - mask))))
                next += U(1)
                mask &= mask - U(1)
        x, y = and_(or_(x, _down(x)), _low_bytes()), and_(or_(y, _down(y)), _low_bytes())
        store(target + U(j), pack_h(x, y))
    return put_nibbles(data, whole, symbols, packed, escaped, I(next - into))


@inlined
def _fill(table: NDArray[np.uint16], groups: U) -> U:
    """For each high nibble h among the values 32 bytes: by high nibble 0 for h and 128 else; by low nibble 15 - symbol.

    Returns where they end.
    """
    last, end = -1, groups
    for s in range(ESCAPE):
        if table[s] > 0:
            high, low = I(table[16 + s]) >> 4, I(table[16 + s]) & 15
            if high != last:  # values ascend
                last = high
                for i in range(16):
                    store_u8(end + U(i), U(0) if i == high else U(128))
                    store_u8(end + U(16 + i), U(0))
                end += U(32)
            store_u8(end - U(16) + U(low), U(ESCAPE - s))
    return end


@inlined
def _symbols(x: Register, y: Register, groups: U, end: U) -> tuple[Register, Register]:
    """The symbols of bytes: what no group knows stays an escape."""
    high, high2 = and_(_down(x), _nibbles()), and_(_down(y), _nibbles())
    low, low2 = and_(x, _nibbles()), and_(y, _nibbles())
    found, found2 = _zero(), _zero()
    group = groups
    while group < end:
        others, table = load_twice(group), load_twice(group + U(16))
        found = or_(found, shuffle_b(table, or_(low, shuffle_b(others, high))))
        found2 = or_(found2, shuffle_b(table, or_(low2, shuffle_b(others, high2))))
        group += U(32)
    return xor(found, _nibbles()), xor(found2, _nibbles())
