"""Coder 3 in AVX2 registers, with its table in memory. Signatures, duties and bytes: see `ans_portable`.

The look-ups, one load for each byte, are most of the work. The 32-bit states are put together from their halves
(see `ans_streams_avx2`) for each step: w, x have the lanes of register a, y, z those of b.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans_header import LANES, I, U
from .ans_states_avx2 import STATE
from .ans_streams_avx2 import Addresses, decode, encode, put_words, take_words
from .jit import inlined, kernel
from .simd import (
    Register,
    add_d,
    add_f,
    add_u64,
    and_,
    and_not,
    blend_b,
    constant_d,
    divide_f,
    equal_h,
    fill_d,
    float_d,
    load,
    load_u32,
    look_up_by_b,
    look_up_by_h,
    mask_bits_h,
    min_h,
    mul_d,
    pack_d,
    pack_h,
    round_f,
    scratch,
    shift_right_d,
    shift_right_h,
    shift_signed_d,
    splat_d,
    splat_f,
    splat_h,
    store,
    store_u32,
    sub_d,
    sub_f,
    unpack_high_h,
    unpack_low_h,
)

_zero, _low_12h = splat_h(0), splat_h(4095)
_low_12, _low_16, _4096 = splat_d(4095), splat_d(65535), splat_d(4096)
_down12, _down16, _down24 = shift_right_d(12), shift_right_d(16), shift_right_d(24)
_signs, _down4 = shift_signed_d(31), shift_right_h(4)
# As the high halves of floats these make 2^23 + l and 2^39 + 2^16 h of low halves l and h.
_low_float, _high_float, _float_bias = splat_h(0x4B00), splat_h(0x5300), splat_f(2.0**39 + 2.0**23)
_slots = scratch((4096 + 7) * 4)
_counting, _eight = constant_d([*range(8)]), splat_d(8)
_indices = scratch(4 * 2 * LANES)
_symbols = scratch(256 * 4)


@kernel
def decode_ans256(
    payload: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], out: NDArray[np.uint8]
) -> int:
    table = _slots()  # by slot: slot - start | frequency << 12 | symbol << 24
    entry = table
    for symbol in range(256):
        f = I(frequencies[symbol])
        entries = add_d(fill_d(U(f << 12 | symbol << 24)), _counting())
        for i in range(0, f, 8):  # what is too much is overwritten by the next symbol, or lies behind the table
            store(entry + U(4 * i), entries)
            entries = add_d(entries, _eight())
        entry += U(4 * f)
    return decode(payload, streams, frequencies, out, table, _decode_steps, _decode_byte)


@inlined
def _decode_byte(x: U, frequencies: NDArray[np.uint16], table: U) -> tuple[U, U]:
    entry = load_u32(table + ((x & U(4095)) << U(2)))
    return (entry >> U(12) & U(4095)) * (x >> U(12)) + (entry & U(4095)), entry >> U(24)


@inlined
def _decode_steps(begin: U, end: U, live: int, s: U, position: Addresses, target: Addresses, table: U) -> None:
    p0, p1, p2, p3 = position[0], position[1], position[2], position[3]
    o0, o1, o2, o3 = target[0], target[1], target[2], target[3]
    first = _indices()
    second = first + U(4 * LANES)
    for k in range(4):
        store(first + U(2 * LANES * k), and_(load(s + STATE * U(k)), _low_12h()))
        store(first + U(2 * LANES * k + 32), and_(load(s + STATE * U(k) + U(32)), _low_12h()))
    at = begin
    while at < end:
        p0, p1 = _decode_step((s, s + STATE), p0, p1, (o0 + at, o1 + at), table, (first, first + U(2 * LANES)))
        if live > 2:
            p2, p3 = _decode_step(
                (s + U(2) * STATE, s + U(3) * STATE), p2, p3, (o2 + at, o3 + at), table, (second, second + U(2 * LANES))
            )
        at += U(LANES)
    position[0], position[1], position[2], position[3] = p0, p1, p2, p3


@inlined
def _decode_step(s: Register, p0: U, p1: U, out: Register, table: U, slots: Register) -> tuple[U, U]:
    """One step of two streams. slots: addresses of the low 12 bits of their states, in the order of the registers."""
    la, lb, ha, hb = load(s), load(add_u64(s, U(32))), load(add_u64(s, U(64))), load(add_u64(s, U(96)))
    w, i = _decode(unpack_low_h(la, ha), look_up_by_h(table, slots))
    x, j = _decode(unpack_high_h(la, ha), look_up_by_h(table, add_u64(slots, U(8))))
    y, k = _decode(unpack_low_h(lb, hb), look_up_by_h(table, add_u64(slots, U(32))))
    z, m = _decode(unpack_high_h(lb, hb), look_up_by_h(table, add_u64(slots, U(40))))
    ha, hb = pack_d(_down16(w), _down16(x)), pack_d(_down16(y), _down16(z))
    la, lb = pack_d(and_(w, _low_16()), and_(x, _low_16())), pack_d(and_(y, _low_16()), and_(z, _low_16()))
    na, nb = equal_h(ha, _zero()), equal_h(hb, _zero())
    store(out, pack_h(pack_d(i, j), pack_d(k, m)))
    mask = mask_bits_h(na, nb)
    store(add_u64(s, U(64)), blend_b(na, la, ha))
    store(add_u64(s, U(96)), blend_b(nb, lb, hb))
    a0, b0, p0 = take_words(p0, mask[0])
    a1, b1, p1 = take_words(p1, mask[1])
    la, lb = blend_b(na, (a0, a1), la), blend_b(nb, (b0, b1), lb)
    store(s, la)
    store(add_u64(s, U(32)), lb)
    store(slots, and_(la, _low_12h()))
    store(add_u64(slots, U(32)), and_(lb, _low_12h()))
    return p0, p1


@inlined
def _decode(x: Register, entry: Register) -> tuple[Register, Register]:
    f = and_(_down12(entry), _low_12())
    return add_d(mul_d(f, _down12(x)), and_(entry, _low_12())), _down24(entry)


@kernel
def encode_ans256(
    packed: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], dst: NDArray[np.uint8]
) -> int:
    table = _symbols()  # frequency | start << 12
    start = 0
    for symbol in range(256):
        store_u32(table + U(4 * symbol), U(I(frequencies[symbol]) | start << 12))
        start += I(frequencies[symbol])
    end = U(dst.ctypes.data) + U(dst.size)
    return encode(packed, streams, frequencies, dst, end, dst.size, table, _encode_steps, _encode_byte, _sound)


@inlined
def _sound(table: U) -> bool:
    return True  # no caller has tables without the symbols it codes


@inlined
def _encode_byte(x: U, value: U, frequencies: NDArray[np.uint16]) -> tuple[U, bool, U]:
    f, start = U(frequencies[value]), U(0)
    for s in range(value):
        start += U(frequencies[s])
    word = x & U(65535)
    over = x >= f << U(20)
    if over:
        x >>= U(16)
    return x // f << U(12) | x % f + start, over, word


@inlined
def _encode_steps(begin: U, end: U, live: int, states: U, position: Addresses, source: Addresses, table: U) -> None:
    at = end
    while at > begin:
        at -= U(LANES)
        for k in range(live):
            position[k] = _encode_step(states + STATE * U(k), position[k], source[k] + at, table)


@inlined
def _encode_step(s: U, p: U, source: U, table: U) -> U:
    i, j = look_up_by_b(table, source), look_up_by_b(table, source + U(4))
    k, m = look_up_by_b(table, source + U(8)), look_up_by_b(table, source + U(12))
    la, lb, ha, hb = load(s), load(s + U(32)), load(s + U(64)), load(s + U(96))
    # x >= f << 20 is h >> 4 >= f
    fa = pack_d(and_(i, _low_12()), and_(j, _low_12()))
    fb = pack_d(and_(k, _low_12()), and_(m, _low_12()))
    na, nb = equal_h(min_h(_down4(ha), fa), fa), equal_h(min_h(_down4(hb), fb), fb)
    p = put_words(p, mask_bits_h(na, nb), la, lb)
    la, lb, ha, hb = blend_b(na, ha, la), blend_b(nb, hb, lb), and_not(na, ha), and_not(nb, hb)
    w = _encode(unpack_low_h(la, ha), unpack_low_h(la, _low_float()), unpack_low_h(ha, _high_float()), i)
    x = _encode(unpack_high_h(la, ha), unpack_high_h(la, _low_float()), unpack_high_h(ha, _high_float()), j)
    y = _encode(unpack_low_h(lb, hb), unpack_low_h(lb, _low_float()), unpack_low_h(hb, _high_float()), k)
    z = _encode(unpack_high_h(lb, hb), unpack_high_h(lb, _low_float()), unpack_high_h(hb, _high_float()), m)
    store(s, pack_d(and_(w, _low_16()), and_(x, _low_16())))
    store(s + U(32), pack_d(and_(y, _low_16()), and_(z, _low_16())))
    store(s + U(64), pack_d(_down16(w), _down16(x)))
    store(s + U(96), pack_d(_down16(y), _down16(z)))
    return p


@inlined
def _encode(x: Register, low: Register, high: Register, entry: Register) -> Register:
    """(x // f << 12) + x % f + start, for x = 2^16 h + l and the floats that h and l make."""
    f = and_(entry, _low_12())
    # Rounded to nearest, the quotient is right or one too large, for it is below 2^20 and its error below 2^-2.
    q = round_f(divide_f(add_f(sub_f(high, _float_bias()), low), float_d(f)))
    q = add_d(q, _signs(sub_d(x, mul_d(q, f))))
    return add_d(add_d(x, mul_d(q, sub_d(_4096(), f))), _down12(entry))
