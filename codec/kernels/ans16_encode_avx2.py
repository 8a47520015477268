"""Coder 2 encoded in AVX2 registers, four streams at a time. Signature, duties and bytes: see `ans_portable`.

States are kept as in the decoder, in halves h and l. A pair of nibbles has the joint frequency F = f0 * f1, and once
x < F * 2^16 is seen to, the quotient Q = x // F is the new h. It comes from a float32 division, which is off by at
most one. What is left, u = x - Q * F, fits 16 bits, and so do the two divisions by single frequencies that make
the new l of it: u // f1 is (u + d) * k * m >> 23, a product of 16 x 16 bits, of which AVX2 gives the high half.
d, k and m are exact for all u < 256 * f1: checked for every frequency in the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans_header import LANES, I, U
from .ans_states_avx2 import STATE
from .ans_streams_avx2 import Addresses, Function, encode, put_words
from .jit import inlined, kernel, spliced
from .simd import (
    Register,
    add_b,
    add_f,
    add_h,
    add_u64,
    and_,
    and_not,
    blend_b,
    divide_f,
    equal_h,
    float_d,
    load,
    load_twice,
    load_u8,
    mask_bits_h,
    min_b,
    min_h,
    mul_h,
    mul_high_h,
    pack_d,
    round_f,
    scratch,
    shift_right_h,
    shift_signed_h,
    shuffle_b,
    splat_b,
    splat_d,
    splat_f,
    splat_h,
    store,
    store_u8,
    store_u16,
    store_u64,
    sub_f,
    sub_h,
    unpack_high_b,
    unpack_high_h,
    unpack_low_b,
    unpack_low_h,
)

_zero, _256, _nibbles = splat_h(0), splat_h(256), splat_b(15)
_shift4, _shift7, _signs = shift_right_h(4), shift_right_h(7), shift_signed_h(15)
# As the high halves of floats these make 2^23 + l and 2^39 + 2^16 h of low halves l and h.
_low_float, _high_float, _float_bias = splat_h(0x4B00), splat_h(0x5300), splat_f(2.0**39 + 2.0**23)
_low_half_d = splat_d(0xFFFF)
_tables = scratch(6 * 16 + 2 * 32)
_LEAST = 128  # where the tables have 32 bytes for the least frequencies that were looked up


NARROW = 181  # largest frequency for `encode_narrow`


def encode_ans16(
    packed: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], dst: NDArray[np.uint8]
) -> int:
    encode_any = encode_narrow if max(frequencies.tolist()) <= NARROW else encode_wide
    return encode_any(packed, streams, frequencies, dst)


@kernel
def encode_narrow(
    packed: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], dst: NDArray[np.uint8]
) -> int:
    return narrow(packed, streams, frequencies, dst, U(dst.ctypes.data) + U(dst.size), dst.size)


@spliced
def narrow(
    packed: NDArray[np.uint8],
    streams: int,
    frequencies: NDArray[np.uint16],
    dst: NDArray[np.uint8],
    end: U,
    limit: int,
) -> int:
    tables = _tables()
    _fill(frequencies, tables)
    return encode(packed, streams, frequencies, dst, end, limit, tables, _narrow_steps, _byte, _sound)


@kernel
def encode_wide(
    packed: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], dst: NDArray[np.uint8]
) -> int:
    return wide(packed, streams, frequencies, dst, U(dst.ctypes.data) + U(dst.size), dst.size)


@spliced
def wide(
    packed: NDArray[np.uint8],
    streams: int,
    frequencies: NDArray[np.uint16],
    dst: NDArray[np.uint8],
    end: U,
    limit: int,
) -> int:
    tables = _tables()
    _fill(frequencies, tables)
    return encode(packed, streams, frequencies, dst, end, limit, tables, _wide_steps, _byte, _sound)


@inlined
def _fill(frequencies: NDArray[np.uint16], t: U) -> None:
    """Tables by symbol: 0 frequency, 1 start + 128, 2 k, 3 and 4 low and high byte of m. Then d in 32 bytes."""
    for i in range(80):
        store_u8(t + U(i), U(0))
    delta = 0
    for symbol in range(16):
        delta |= needs_delta(I(frequencies[symbol]))
    start = 128
    for symbol in range(16):
        f = I(frequencies[symbol])
        if f > 0:
            k, m = reciprocal(f, delta)
            store_u8(t + U(symbol), U(f))
            store_u8(t + U(16 + symbol), U(start & 255))
            store_u8(t + U(32 + symbol), U(k))
            store_u8(t + U(48 + symbol), U(m & 255))
            store_u8(t + U(64 + symbol), U(m >> 8))
            start += f
    for i in range(16):
        store_u16(t + U(96 + 2 * i), U(delta))
    for i in range(4):
        store_u64(t + U(_LEAST + 8 * i), ~U(0))


@inlined
def _sound(t: U) -> bool:
    found = 0
    for i in range(32):
        found += load_u8(t + U(_LEAST + i)) == U(0)
    return found == 0


@inlined
def needs_delta(f: int) -> int:
    """Whether d must be 1 for a frequency f: for some above 181, and then no other is above 74."""
    return 1 if f > 181 and (((1 << 23) - 1) // f + 1) * f * f - (f << 23) > 1 << 15 else 0


@inlined
def reciprocal(f: int, delta: int) -> tuple[int, int]:
    """k and m such that u // f == (u + delta) * k * m >> 23 for 0 <= u < 256 * f; (u + delta) * k and m fit 16 bits."""
    k = 1
    while f * k * 2 + delta <= 256:
        k *= 2
    k = min(k, 255)
    return k, ((1 << 23) - 1) // (f * k) + 1 - delta


@inlined
def _byte(x: U, value: U, frequencies: NDArray[np.uint16]) -> tuple[U, bool, U]:
    low, high = value & U(15), value >> U(4)
    word = x & U(65535)
    over = x >= U(frequencies[low]) * U(frequencies[high]) << U(16)
    if over:
        x >>= U(16)
    return _nibble(_nibble(x, high, frequencies), low, frequencies), over, word


@inlined
def _nibble(x: U, symbol: U, frequencies: NDArray[np.uint16]) -> U:
    start = U(128)
    for s in range(symbol):
        start += U(frequencies[s])
    f = U(frequencies[symbol])
    return x // f << U(8) | (x % f + start) & U(255)


@inlined
def _narrow_steps(begin: U, end: U, live: int, s: U, position: Addresses, source: Addresses, t: U) -> None:
    _steps(begin, end, s, position, source, t, _narrow_quotient, _narrow_dividend)


@inlined
def _wide_steps(begin: U, end: U, live: int, s: U, position: Addresses, source: Addresses, t: U) -> None:
    _steps(begin, end, s, position, source, t, _wide_quotient, _wide_dividend)


@spliced
def _steps(
    begin: U, end: U, s: U, position: Addresses, source: Addresses, t: U, quotient: Function, dividend: Function
) -> None:
    tables = (
        load_twice(t), load_twice(t + U(16)), load_twice(t + U(32)), load_twice(t + U(48)), load_twice(t + U(64)),
        load(t + U(96)),
    )  # fmt: skip
    least = load(t + U(_LEAST))
    p0, p1, p2, p3 = position[0], position[1], position[2], position[3]
    d0, d1, d2, d3 = source[0], source[1], source[2], source[3]
    at = end
    while at > begin:
        at -= U(LANES)
        p0, p1, p2, p3, least = _step((s, s + STATE), (s + U(2) * STATE, s + U(3) * STATE), p0, p1, p2, p3, least,
                                      (d0 + at, d1 + at), (d2 + at, d3 + at), tables, quotient, dividend)  # fmt: skip
    store(t + U(_LEAST), least)
    position[0], position[1], position[2], position[3] = p0, p1, p2, p3


@spliced
def _step(
    s: Register,
    z: Register,
    p0: U,
    p1: U,
    p2: U,
    p3: U,
    least: Register,
    source: Register,
    source2: Register,
    t: Register,
    quotient: Function,
    dividend: Function,
) -> tuple[U, U, U, U, Register]:
    """One step of the streams with states at s[0], s[1] (names a, b) and z[0], z[1] (names c, d)."""
    low, high, rare, fa, fb, ga, gb, ja, jb, ha, hb, la, lb, na, nb, m = _look_up(s, source, t)
    low2, high2, rare2, fc, fd, gc, gd, jc, jd, hc, hd, lc, ld, nc, nd, m2 = _look_up(z, source2, t)
    least = min_b(least, min_b(min_b(rare[0], rare[1]), min_b(rare2[0], rare2[1])))
    p0 = put_words(p0, m[0], la[0], lb[0])
    p1 = put_words(p1, m[1], la[1], lb[1])
    ua, ub = _divide(s, blend_b(na, ha, la), blend_b(nb, hb, lb), and_not(na, ha), and_not(nb, hb), ja, jb, quotient)
    p2 = put_words(p2, m2[0], lc[0], ld[0])
    p3 = put_words(p3, m2[1], lc[1], ld[1])
    uc, ud = _divide(z, blend_b(nc, hc, lc), blend_b(nd, hd, ld), and_not(nc, hc), and_not(nd, hd), jc, jd, quotient)
    ua, ub = _encode(ua, ub, ga, gb, high, t, dividend)
    uc, ud = _encode(uc, ud, gc, gd, high2, t, dividend)
    ua, ub = _encode(ua, ub, fa, fb, low, t, dividend)
    store(s, ua)
    store(add_u64(s, U(32)), ub)
    uc, ud = _encode(uc, ud, fc, fd, low2, t, dividend)
    store(z, uc)
    store(add_u64(z, U(32)), ud)
    return p0, p1, p2, p3, least


@inlined
def _look_up(s: Register, source: Register, t: Register) -> tuple[Register, ...]:
    """Nibbles, the lesser of two frequencies, frequencies, joint frequencies and states, and which states must give up a word."""
    codes = load(source)
    low, high = and_(codes, _nibbles()), and_(_shift4(codes), _nibbles())
    f, g = shuffle_b(t[0], low), shuffle_b(t[0], high)
    fa, fb = unpack_low_b(f, _zero()), unpack_high_b(f, _zero())
    ga, gb = unpack_low_b(g, _zero()), unpack_high_b(g, _zero())
    ja, jb = mul_h(fa, ga), mul_h(fb, gb)
    ha, hb = load(add_u64(s, U(64))), load(add_u64(s, U(96)))
    na, nb = equal_h(min_h(ha, ja), ja), equal_h(min_h(hb, jb), jb)
    return (
        low,
        high,
        min_b(f, g),
        fa,
        fb,
        ga,
        gb,
        ja,
        jb,
        ha,
        hb,
        load(s),
        load(add_u64(s, U(32))),
        na,
        nb,
        mask_bits_h(na, nb),
    )


@inlined
def _divide(
    s: Register, la: Register, lb: Register, ha: Register, hb: Register, fa: Register, fb: Register, quotient: Function
) -> tuple[Register, Register]:
    """Remainders of x by f. Stores the quotients."""
    qa, ua = quotient(la, ha, fa)
    qb, ub = quotient(lb, hb, fb)
    store(add_u64(s, U(64)), qa)
    store(add_u64(s, U(96)), qb)
    return ua, ub


@inlined
def _narrow_quotient(low: Register, high: Register, f: Register) -> tuple[Register, Register]:
    """Quotient and remainder of 2^16 high + low by f, if the quotient is below 2^16 and f below 2^15."""
    x = divide_f(float_d(unpack_low_h(low, high)), float_d(unpack_low_h(f, _zero())))
    y = divide_f(float_d(unpack_high_h(low, high)), float_d(unpack_high_h(f, _zero())))
    # Rounded to nearest, the quotient is right or one too large, as below; 2^16 becomes 2^16 - 1, which is right.
    return _correct(low, pack_d(round_f(x), round_f(y)), f)


@inlined
def _wide_quotient(low: Register, high: Register, f: Register) -> tuple[Register, Register]:
    """Quotient and remainder of 2^16 high + low by f, if the quotient is below 2^16."""
    x = add_f(sub_f(unpack_low_h(high, _high_float()), _float_bias()), unpack_low_h(low, _low_float()))
    y = add_f(sub_f(unpack_high_h(high, _high_float()), _float_bias()), unpack_high_h(low, _low_float()))
    x = divide_f(x, float_d(unpack_low_h(f, _zero())))
    y = divide_f(y, float_d(unpack_high_h(f, _zero())))
    # Rounded to nearest, the quotient is right or one too large, for the error of x is below 2^-7; so the remainder is
    # in -32767..32767: f = 255 * 255 reaches -32767.5.
    return _correct(low, pack_d(and_(round_f(x), _low_half_d()), and_(round_f(y), _low_half_d())), f)


@inlined
def _correct(low: Register, q: Register, f: Register) -> tuple[Register, Register]:
    u = sub_h(low, mul_h(q, f))
    negative = _signs(u)
    return add_h(q, negative), add_h(u, and_(negative, f))


@inlined
def _narrow_dividend(u: Register, t: Register) -> Register:
    return u


@inlined
def _wide_dividend(u: Register, t: Register) -> Register:
    return add_h(u, t[5])


@inlined
def _encode(
    a: Register, b: Register, fa: Register, fb: Register, symbols: Register, t: Register, dividend: Function
) -> tuple[Register, Register]:
    """x // f << 8 | x % f + start, in the order of slots that the format wants."""
    k, c = shuffle_b(t[2], symbols), shuffle_b(t[1], symbols)
    m, n = shuffle_b(t[3], symbols), shuffle_b(t[4], symbols)
    qa = _shift7(mul_high_h(mul_h(dividend(a, t), unpack_low_b(k, _zero())), unpack_low_b(m, n)))
    qb = _shift7(mul_high_h(mul_h(dividend(b, t), unpack_high_b(k, _zero())), unpack_high_b(m, n)))
    # The format wants slot + 128 modulo 256: the start brings the 128, and an addition of bytes the modulo.
    a = add_h(a, mul_h(qa, sub_h(_256(), fa)))
    b = add_h(b, mul_h(qb, sub_h(_256(), fb)))
    return add_b(a, unpack_low_b(c, _zero())), add_b(b, unpack_high_b(c, _zero()))
