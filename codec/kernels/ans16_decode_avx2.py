"""Coder 2 decoded in AVX2 registers, four streams at a time. Signature, duties and result: see `ans_portable`.

A state x of 32 bits is kept as two halves, h and l, in two registers of 16-bit lanes. The two nibbles of a step have
the frequencies f0 and f1, and with F = f0 * f1 the step is x -> F * h + u: one 16 x 16 bit multiplication, where
u < F comes from 16-bit arithmetic on l alone. All look-ups are byte shuffles on 16-byte tables. The 32 lanes of a
stream are registers a (lanes 0-7, 16-23) and b (lanes 8-15, 24-31), so that shuffles, which stay within half
a register, bring eight consecutive words to eight consecutive lanes.

A step depends on the one before it through some 100 cycles. So the work of four streams alternates, in pairs: what
the processor looks ahead is too short to find the other stream's work by itself (measured: 0.96 cycles per code if
one stream follows the other, 0.74 in pairs, 0.58 as here).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans_header import LANES, I, U
from .ans_states_avx2 import STATE
from .ans_streams_avx2 import Addresses, decode, take_words
from .jit import inlined
from .simd import (
    Register,
    add_b,
    add_h,
    add_u64,
    and_,
    blend_b,
    constant_b,
    equal_h,
    greater_b,
    load,
    load_twice,
    load_u64,
    mask_bits_h,
    min_h,
    mul_h,
    mul_high_h,
    or_,
    prefetch,
    scratch,
    shift_left_h,
    shift_right_h,
    shuffle_b,
    splat_b,
    splat_h,
    store,
    store_u8,
    store_u64,
    sub_b,
    sub_saturate_h,
)

_zero, _one, _low_bytes = splat_h(0), splat_h(1), splat_h(255)
_three = splat_b(3)
_up, _down, _times4 = shift_left_h(8), shift_right_h(8), shift_left_h(2)
_in_order = constant_b([*range(0, 16, 2), *range(1, 16, 2)])  # undoes the interleaving of a and b
_tables = scratch(10 * 16 + 5 * 8)
_LINE = 64  # bytes that are brought into the caches at once


@inlined
def decode_ans16(
    payload: NDArray[np.uint8],
    streams: int,
    frequencies: NDArray[np.uint16],
    out: NDArray[np.uint8],
    ahead: U,
    ranges: U,
) -> int:
    """ahead, ranges: see `codec.task`. Memory is idle meanwhile, so that they are brought in for nothing."""
    tables = _tables()
    _fill(frequencies, tables)
    _look_ahead(ahead, ranges, out.size, tables + U(160))
    return decode(payload, streams, frequencies, out, tables, _steps, _byte)


@inlined
def _fill(frequencies: NDArray[np.uint16], t: U) -> None:
    """Tables of 16 bytes, for symbols of frequency > 0 in ranks 0..15.

    0-2: the number before the first slot of rank 4, 8, 12, in every byte. The rank is then searched in its group g = 0..3
    at place 3 + g of tables 3-5: the number before rank 4 g + 1, 4 g + 2, 4 g + 3. And by 4 * (3 + g) + rank in group,
    modulo 16: 6 frequency, 7 first slot, 8 symbol, 9 symbol as high nibble. Slots run from -128 to 127.
    """
    for i in range(160):
        store_u8(t + U(i), U(0))
    for i in range(96):
        store_u8(t + U(i), U(127))  # no slot is greater
    rank, start = 0, -128
    for symbol in range(16):
        f = I(frequencies[symbol])
        if f > 0:
            group, place = rank >> 2, rank & 3
            before = U((start - 1) & 255)
            if place:
                store_u8(t + U(16 * (place + 2) + 3 + group), before)
            elif group:
                for i in range(16):
                    store_u8(t + U(16 * (group - 1) + i), before)
            row = t + U((4 * (3 + group) + place) & 15)
            store_u8(row + U(96), U(f))
            store_u8(row + U(112), U(start & 255))
            store_u8(row + U(128), U(symbol))
            store_u8(row + U(144), U(symbol << 4))
            start += f
            rank += 1


@inlined
def _look_ahead(ahead: U, ranges: U, nbytes: int, t: U) -> None:
    """At t: the next address, the end of its range, the next range, their end, and how many lines are due in each step."""
    total, end = U(0), ahead + U(24) * ranges
    for i in range(ranges):
        total += load_u64(ahead + U(24 * i + 8))
    steps = U(nbytes // (4 * LANES) + 1)
    store_u64(t, U(0))
    store_u64(t + U(8), U(0))
    store_u64(t + U(16), ahead)
    store_u64(t + U(24), end)
    store_u64(t + U(32), min((total // U(_LINE) + steps - U(1)) // steps, U(5)))


@inlined
def _byte(x: U, frequencies: NDArray[np.uint16], tables: U) -> tuple[U, U]:
    x, low = _nibble(x, frequencies)
    x, high = _nibble(x, frequencies)
    return x, low | high << U(4)


@inlined
def _nibble(x: U, frequencies: NDArray[np.uint16]) -> tuple[U, U]:
    slot = x + U(128) & U(255)
    symbol = U(0)
    while slot >= U(frequencies[symbol]):  # ends, for the frequencies add up to 256
        slot -= U(frequencies[symbol])
        symbol += U(1)
    return U(frequencies[symbol]) * (x >> U(8)) + slot, symbol


@inlined
def _steps(begin: U, end: U, live: int, s: U, position: Addresses, target: Addresses, t: U) -> None:
    tables = (
        load_twice(t), load_twice(t + U(16)), load_twice(t + U(32)), load_twice(t + U(48)), load_twice(t + U(64)),
        load_twice(t + U(80)), load_twice(t + U(96)), load_twice(t + U(112)), load_twice(t + U(128)),
        load_twice(t + U(144)),
    )  # fmt: skip
    p0, p1, p2, p3 = position[0], position[1], position[2], position[3]
    o0, o1, o2, o3 = target[0], target[1], target[2], target[3]
    at, ahead = begin, load_u64(t + U(160))
    if ahead >= load_u64(t + U(168)):
        ahead = _next_range(t + U(160))
    lines = U(0) if ahead == U(0) else load_u64(t + U(192))
    while at < end:
        for _ in range(lines):
            prefetch(ahead)
            ahead += U(_LINE)
        p0, p1, p2, p3 = _step((s, s + STATE), (s + U(2) * STATE, s + U(3) * STATE), p0, p1, p2, p3,
                               (o0 + at, o1 + at), (o2 + at, o3 + at), tables)  # fmt: skip
        at += U(LANES)
    store_u64(t + U(160), ahead)
    position[0], position[1], position[2], position[3] = p0, p1, p2, p3


@inlined
def _next_range(t: U) -> U:
    """The first address of the next range, 0 if there is none."""
    row = load_u64(t + U(16))
    if row == load_u64(t + U(24)):
        store_u64(t + U(8), U(0))
        return U(0)
    first = load_u64(row)
    store_u64(t + U(8), first + load_u64(row + U(8)))
    store_u64(t + U(16), row + U(24))
    return first


@inlined
def _step(
    s: Register, z: Register, p0: U, p1: U, p2: U, p3: U, out: Register, out2: Register, t: Register
) -> tuple[U, U, U, U]:
    """One step of the streams with states at s[0], s[1] (names a, b) and z[0], z[1] (names c, d)."""
    la, lb, lc, ld = load(s), load(add_u64(s, U(32))), load(z), load(add_u64(z, U(32)))
    slot, slot2 = _low(la, lb), _low(lc, ld)
    rank = _rank(slot, t)
    rank2 = _rank(slot2, t)
    ya, yb, fa, fb = _decode(slot, rank, _down(la), _down(lb), t)
    yc, yd, fc, fd = _decode(slot2, rank2, _down(lc), _down(ld), t)
    slot, slot2 = _low(ya, yb), _low(yc, yd)
    high = _rank(slot, t)
    high2 = _rank(slot2, t)
    ua, ub, ga, gb = _decode(slot, high, _down(ya), _down(yb), t)
    fa, fb = mul_h(fa, ga), mul_h(fb, gb)
    uc, ud, gc, gd = _decode(slot2, high2, _down(yc), _down(yd), t)
    fc, fd = mul_h(fc, gc), mul_h(fd, gd)
    na, nb, la, lb, m = _multiply(s, fa, fb, ua, ub)
    nc, nd, lc, ld, m2 = _multiply(z, fc, fd, uc, ud)
    wa, wb, p0 = take_words(p0, m[0])
    va, vb, p1 = take_words(p1, m[1])
    store(s, blend_b(na, (wa, va), la))
    store(add_u64(s, U(32)), blend_b(nb, (wb, vb), lb))
    wa, wb, p2 = take_words(p2, m2[0])
    va, vb, p3 = take_words(p3, m2[1])
    store(z, blend_b(nc, (wa, va), lc))
    store(add_u64(z, U(32)), blend_b(nd, (wb, vb), ld))
    store(out, shuffle_b(or_(shuffle_b(t[8], rank), shuffle_b(t[9], high)), _in_order()))
    store(out2, shuffle_b(or_(shuffle_b(t[8], rank2), shuffle_b(t[9], high2)), _in_order()))
    return p0, p1, p2, p3


@inlined
def _low(a: Register, b: Register) -> Register:
    """The low bytes of a and b, alternately."""
    return blend_b(_low_bytes(), a, _up(b))


@inlined
def _rank(slot: Register, t: Register) -> Register:
    """Where the symbols of 32 slots are in tables 6-9: two times three comparisons, each three independent."""
    r = sub_b(sub_b(_three(), greater_b(slot, t[0])), add_b(greater_b(slot, t[1]), greater_b(slot, t[2])))
    a, b, c = shuffle_b(t[3], r), shuffle_b(t[4], r), shuffle_b(t[5], r)
    return sub_b(sub_b(_times4(r), greater_b(slot, a)), add_b(greater_b(slot, b), greater_b(slot, c)))


@inlined
def _decode(
    slot: Register, rank: Register, a: Register, b: Register, t: Register
) -> tuple[Register, Register, Register, Register]:
    """f * (x >> 8) + slot - start, where a and b are the second-lowest bytes of x; and the frequencies."""
    f = shuffle_b(t[6], rank)
    d = sub_b(slot, shuffle_b(t[7], rank))
    fa, fb = and_(f, _low_bytes()), _down(f)
    return add_h(mul_h(fa, a), and_(d, _low_bytes())), add_h(mul_h(fb, b), _down(d)), fa, fb


@inlined
def _multiply(
    s: Register, fa: Register, fb: Register, ua: Register, ub: Register
) -> tuple[Register, Register, Register, Register, Register]:
    """x = f * h + u, and where h became 0: h = l there, for a word will be the new l. Stores h."""
    ha, hb = load(add_u64(s, U(64))), load(add_u64(s, U(96)))
    la, lb = add_h(mul_h(fa, ha), ua), add_h(mul_h(fb, hb), ub)
    ha = add_h(mul_high_h(fa, ha), min_h(sub_saturate_h(ua, la), _one()))  # + 1 if the sum wrapped around
    hb = add_h(mul_high_h(fb, hb), min_h(sub_saturate_h(ub, lb), _one()))
    na, nb = equal_h(ha, _zero()), equal_h(hb, _zero())
    store(add_u64(s, U(64)), blend_b(na, la, ha))
    store(add_u64(s, U(96)), blend_b(nb, lb, hb))
    return na, nb, la, lb, mask_bits_h(na, nb)
