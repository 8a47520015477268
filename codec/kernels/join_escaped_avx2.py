"""Floats from the nibbles of coder 6 and the bytes below, in AVX2 registers: exponents never are in memory as bytes.

That is `escape16.put_bytes` and `records.join_words` in one, for records of 2 or 4 bytes whose highest one is coded so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ans_header import I, U
from .escape16 import ESCAPE
from .jit import inlined, kernel
from .pieces import NONE
from .simd import (
    Register,
    and_,
    constant_b,
    fence,
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
    popcount,
    scratch,
    shift_left_d,
    shift_left_h,
    shift_right_d,
    shift_right_h,
    shuffle_b,
    splat_b,
    store,
    store_around,
    store_u8,
    unpack_high_b,
    unpack_high_h,
    unpack_low_b,
    unpack_low_h,
)
from .status import BAD_ESCAPES, BAD_PADDING, HEADER_TRUNCATED, OK

_nibbles, _below_escape, _zero = splat_b(15), splat_b(ESCAPE - 1), splat_b(0)
_down = shift_right_h(4)  # of two bytes at once: masks take away what crosses over
_right_h, _left_h, _right_d, _left_d = shift_right_h(1), shift_left_h(15), shift_right_d(1), shift_left_d(31)
_threes = constant_b([b for i in range(0, 12, 3) for b in (i, i + 1, i + 2, 128)])  # 128: a zero
_values, _patched = scratch(16), scratch(64)


@kernel
def join_escaped(
    tasks: NDArray[Any],
    status: NDArray[np.int64],
    joins: NDArray[np.uint64],
    escaped: NDArray[np.uint64],
    planes: NDArray[np.uint64],
    apart: bool,
    size: int,
    rotate: bool,
) -> None:
    """Fill memory with records of `size` bytes, 2 or 4, piece by piece.

    joins: of each piece the number of the task that has decoded its nibbles, that of its row in `planes`, the address of the
    records and how many there are. Those whose task has failed are left out; `status` gets what is found in the others.
    escaped: of each piece how many bytes have no symbol; they are in front of the payload of the task. NONE if it has no number.
    A row of planes: addresses of the bytes below, lowest first: a plane for each if they are `apart`, else one.
    """
    for j in range(len(joins)):
        number = I(joins[j, 0])
        if escaped[j] == U(NONE):
            status[number] = HEADER_TRUNCATED
        elif status[number] == OK:
            t: Any = tasks[number]
            begin, end = t.payload - escaped[j], t.payload
            status[number] = _join(
                t.table, t.out, begin, end, planes[I(joins[j, 1])], apart, joins[j, 2], I(joins[j, 3]), size, rotate
            )


@inlined
def _join(
    table: U,
    codes: U,
    next: U,
    end: U,
    planes: NDArray[np.uint64],
    apart: bool,
    target: U,
    n: int,
    size: int,
    rotate: bool,
) -> int:
    """Fill `n` records at `target`. Returns a number of `status`.

    table: address of a row of the bank, 32 numbers of 16 bits. codes: of the symbols, packed. next, end: of the bytes that have
    none.
    """
    values = _values()
    for s in range(16):
        store_u8(values + U(s), load_u8(table + U(32 + 2 * s)))
    by_symbol, buffer = load_twice(values), _patched()
    around = target & U(31) == U(0)  # twice as fast, if memory is not new; else no slower
    whole = max(0, n - 2) // 64 * 64  # what is read beyond the bytes of a block is two records at most
    first = planes[0]
    second, third = (planes[1], planes[2]) if apart and size == 4 else (first, first)
    for i in range(0, whole, 64):
        packed = load(codes + U(i // 2))
        even, odd = and_(packed, _nibbles()), and_(_down(packed), _nibbles())
        a, b = _in_order(shuffle_b(by_symbol, even), shuffle_b(by_symbol, odd))
        even, odd = greater_b(even, _below_escape()), greater_b(odd, _below_escape())
        if mask_bits_b(or_(even, odd)):
            x, y = _in_order(even, odd)
            mask = mask_bits_b(x) | mask_bits_b(y) << U(32)
            if popcount(mask) > end - next:
                return BAD_ESCAPES
            store(buffer, a)
            store(buffer + U(32), b)
            while mask:
                store_u8(buffer + log2_u64(mask & (U(0) - mask)), load_u8(next))
                next += U(1)
                mask &= mask - U(1)
            a, b = load(buffer), load(buffer + U(32))
        if size == 2:
            _pairs(load(first + U(i)), a, rotate, around, target + U(2 * i))
            _pairs(load(first + U(i + 32)), b, rotate, around, target + U(2 * i + 64))
        elif apart:
            at, place = U(i), target + U(4 * i)
            _fours(load(first + at), load(second + at), load(third + at), a, rotate, around, place)
            at += U(32)
            _fours(load(first + at), load(second + at), load(third + at), b, rotate, around, place + U(128))
        else:
            _three_and_one(first + U(3 * i), a, rotate, around, target + U(4 * i))
            _three_and_one(first + U(3 * i + 96), b, rotate, around, target + U(4 * i + 128))
    for i in range(whole, n):
        byte = load_u8(codes + U(i // 2))
        symbol = byte >> U(4 * (i & 1)) & U(15)
        if i == n - 1 and n & 1 and byte > U(15):
            return BAD_PADDING
        word = load_u8(values + symbol)
        if symbol == U(ESCAPE):
            if next == end:
                return BAD_ESCAPES
            word = load_u8(next)
            next += U(1)
        for k in range(size - 2, -1, -1):
            word = word << U(8) | load_u8(planes[k] + U(i) if apart else first + U((size - 1) * i + k))
        if rotate:
            word = word >> U(1) | (word & U(1)) << U(8 * size - 1)
        for k in range(size):
            store_u8(target + U(i * size + k), word >> U(8 * k))
    if around:
        fence()
    return OK if next == end else BAD_ESCAPES


@inlined
def _in_order(even: Register, odd: Register) -> tuple[Register, Register]:
    first, second = unpack_low_b(even, odd), unpack_high_b(even, odd)
    return join(low_half(first), low_half(second)), join(high_half(first), high_half(second))


@inlined
def _pairs(low: Register, high: Register, rotate: bool, around: bool, target: U) -> None:
    """32 records of 2 bytes."""
    a, b = unpack_low_b(low, high), unpack_high_b(low, high)
    if rotate:
        a, b = or_(_right_h(a), _left_h(a)), or_(_right_h(b), _left_h(b))
    _put(around, target, join(low_half(a), low_half(b)))
    _put(around, target + U(32), join(high_half(a), high_half(b)))


@inlined
def _fours(p: Register, q: Register, r: Register, s: Register, rotate: bool, around: bool, target: U) -> None:
    """32 records of 4 bytes."""
    a, b, c, d = unpack_low_b(p, q), unpack_high_b(p, q), unpack_low_b(r, s), unpack_high_b(r, s)
    _store(unpack_low_h(a, c), unpack_high_h(a, c), unpack_low_h(b, d), unpack_high_h(b, d), rotate, around, target)


@inlined
def _three_and_one(source: U, high: Register, rotate: bool, around: bool, target: U) -> None:
    """32 records of 4 bytes, of which three lie together."""
    a, b = unpack_low_b(_zero(), high), unpack_high_b(_zero(), high)
    w, x = unpack_low_h(_zero(), a), unpack_high_h(_zero(), a)
    y, z = unpack_low_h(_zero(), b), unpack_high_h(_zero(), b)
    # Records 4 k and 16 + 4 k, each with the three that follow.
    w = or_(w, shuffle_b(load_halves(source, source + U(48)), _threes()))
    x = or_(x, shuffle_b(load_halves(source + U(12), source + U(60)), _threes()))
    y = or_(y, shuffle_b(load_halves(source + U(24), source + U(72)), _threes()))
    z = or_(z, shuffle_b(load_halves(source + U(36), source + U(84)), _threes()))
    _store(w, x, y, z, rotate, around, target)


@inlined
def _store(w: Register, x: Register, y: Register, z: Register, rotate: bool, around: bool, target: U) -> None:
    if rotate:
        w, x = or_(_right_d(w), _left_d(w)), or_(_right_d(x), _left_d(x))
        y, z = or_(_right_d(y), _left_d(y)), or_(_right_d(z), _left_d(z))
    _put(around, target, join(low_half(w), low_half(x)))
    _put(around, target + U(32), join(low_half(y), low_half(z)))
    _put(around, target + U(64), join(high_half(w), high_half(x)))
    _put(around, target + U(96), join(high_half(y), high_half(z)))


@inlined
def _put(around: bool, target: U, x: Register) -> None:
    if around:
        store_around(target, x)
    else:
        store(target, x)
