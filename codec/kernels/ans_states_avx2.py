"""States of a stream between the payload, where they take few bits, and registers. Format: see `ans_header`.

In memory the 32 states are four registers of 16-bit lanes: the low halves of a (lanes 0-7, 16-23) and b (lanes 8-15,
24-31), then the high halves. With this order, shuffles, which stay within half a register, bring eight consecutive words
to eight consecutive lanes or back.
"""

from __future__ import annotations

from .ans_header import LANES, LENGTHS, LOW, U
from .jit import inlined
from .simd import (
    load,
    load_halves,
    load_u8,
    load_u16,
    load_u32,
    load_u64,
    log2_u64,
    scratch,
    store,
    store_u8,
    store_u16,
    store_u64,
)

STATE = U(4 * LANES)  # bytes of a stream's registers
_area = scratch(6 * LANES)


@inlined
def unpack_states(source: U, end: U, state: U) -> U:
    """Fill the registers at `state` from the bytes at `source`, which `read_sizes` has found to be there.

    end: of the payload. Returns where the states end, or 0 if unused bits are not zero.
    """
    lengths, area = (load_u64(source), load_u64(source + U(8))), _area()
    bits = _sum_nibbles(lengths[0]) + _sum_nibbles(lengths[1])
    high = source + U(LENGTHS + LOW)
    stop = high + ((bits + U(15)) >> U(4) << U(1))
    if bits & U(15) and load_u16(stop - U(2)) >> (bits & U(15)):
        return U(0)
    if stop + U(4) > end:  # windows of four bytes might reach beyond the payload
        copy = area + U(2 * LANES)
        for i in range(stop - high):
            store_u8(copy + U(i), load_u8(high + U(i)))
        high = copy
    bit = U(0)
    for i in range(2):
        e = lengths[i]
        for lane in range(LANES // 2):
            one = U(1) << (e & U(15))
            window = load_u32(high + (bit >> U(3))) >> (bit & U(7))
            store_u16(area + U(LANES * i + 2 * lane), one | window & (one - U(1)))
            bit += e & U(15)
            e >>= U(4)
    low = source + U(LENGTHS)
    store(state, load_halves(low, low + U(32)))
    store(state + U(32), load_halves(low + U(16), low + U(48)))
    store(state + U(64), load_halves(area, area + U(32)))
    store(state + U(96), load_halves(area + U(16), area + U(48)))
    return stop


@inlined
def _sum_nibbles(x: U) -> U:
    pairs = (x & U(0x0F0F0F0F0F0F0F0F)) + (x >> U(4) & U(0x0F0F0F0F0F0F0F0F))
    return pairs * U(0x0101010101010101) >> U(56)


@inlined
def pack_states(state: U, end: U) -> U:
    """Write the states in the registers at `state` in front of `end`. Returns where they begin."""
    area = _area()
    _in_order(state + U(64), area)
    copy = area + U(2 * LANES)
    window, have, place, lengths = U(0), U(0), copy, (U(0), U(0))
    for i in range(2):
        packed = U(0)
        for lane in range(LANES // 2):
            h = load_u16(area + U(LANES * i + 2 * lane))
            e = log2_u64(h)
            packed |= e << U(4 * lane)
            window |= (h ^ U(1) << e) << have
            have += e
            store_u64(place, window)  # 56 bits or less
            place += have >> U(3)
            window >>= have & U(56)
            have &= U(7)
        lengths = (lengths[1], packed)
    nbytes = (place - copy + (have + U(7) >> U(3)) + U(1)) >> U(1) << U(1)
    if nbytes:
        store_u64(place, window)
    for i in range(nbytes):
        store_u8(end - nbytes + U(i), load_u8(copy + U(i)))
    low = end - nbytes - U(LOW)
    _in_order(state, low)
    store_u64(low - U(16), lengths[0])
    store_u64(low - U(8), lengths[1])
    return low - U(LENGTHS)


@inlined
def _in_order(registers: U, target: U) -> None:
    """The 16-bit lanes of a and b, lane 0 first."""
    store(target, load_halves(registers, registers + U(32)))
    store(target + U(32), load_halves(registers + U(16), registers + U(48)))


@inlined
def get_state(state: U, lane: int) -> U:
    place = _place(state, lane)
    return load_u16(place) | load_u16(place + U(64)) << U(16)


@inlined
def set_state(state: U, lane: int, x: U) -> None:
    place = _place(state, lane)
    store_u16(place, x & U(65535))
    store_u16(place + U(64), x >> U(16))


@inlined
def _place(state: U, lane: int) -> U:
    return state + U((lane & 8) * 4 + (lane & 7) * 2 + (lane >> 4) * 16)


@inlined
def copy_states(source: U, target: U) -> None:
    for i in range(4):
        store(target + U(32 * i), load(source + U(32 * i)))
