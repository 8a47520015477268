"""Nibbles counted in AVX2 registers, several times faster than bytes can be counted by tables in memory.

A nibble becomes one bit of two bytes: bit s of the first for symbol s below 8, bit s - 8 of the second for the others.
Full adders (three bits of a column become a sum and a carry) add 16 such registers to one whose bits count 16 each; only
for that are the bits of a byte taken apart, into counters of 8 bits, one register for each symbol.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans_header import I, U
from .bits import BLOCK, block_of_sample, sampling, stands_for_all
from .jit import inlined, kernel
from .simd import (
    Register,
    add_b,
    add_q,
    and_,
    constant_b,
    load,
    load_u64,
    prefetch,
    scratch,
    shift_right_h,
    shuffle_b,
    splat_b,
    store,
    sum_b,
    xor,
)

_AHEAD = 8  # blocks
_first, _second = constant_b([1 << s for s in range(8)] + [0] * 8), constant_b([0] * 8 + [1 << s for s in range(8)])
_nibbles, _zero, _ones = splat_b(15), splat_b(0), splat_b(1)
_shift1, _shift4 = shift_right_h(1), shift_right_h(4)
_counters, _sums, _left = (
    scratch(16 * 32),
    scratch(16 * 32),
    scratch(8 * 32),
)  # by symbol: 32 counters of 8 bits, 4 sums of 64


@kernel
def count_nibbles(buffer: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Signature and duties: see `bits`."""
    _count(buffer, 0, counts)


@inlined
def estimate_nibbles(buffer: NDArray[np.uint8], counts: NDArray[np.int64]) -> int:
    """Signature and duties: see `bits`."""
    shift = sampling(buffer.size)
    while True:
        _count(buffer, shift, counts)
        if shift == 0 or stands_for_all(buffer, shift, counts):
            return 1 << shift
        shift = 0


@inlined
def _count(buffer: NDArray[np.uint8], shift: int, counts: NDArray[np.int64]) -> None:
    counters, sums = _counters(), _sums()
    for s in range(16):
        store(sums + U(32 * s), _zero())
        store(counters + U(32 * s), _zero())
    data = U(buffer.ctypes.data)
    zero = (_zero(), _zero())
    ones, twos, fours, eights = zero, zero, zero, zero
    blocks = buffer.size // BLOCK >> shift
    for first in range(0, blocks, 255):  # what a counter can hold
        for i in range(first, min(first + 255, blocks)):
            source = data + U(BLOCK * block_of_sample(i, shift))
            if shift > 0:  # too irregular for the CPU to see it coming
                ahead = data + U(BLOCK * block_of_sample(i + _AHEAD, shift))
                for line in range(0, BLOCK, 64):
                    prefetch(ahead + U(line))
            ones, twos, fours, eights, carry = _sixteen(source, ones, twos, fours, eights)
            _take_apart(carry, counters)
        _flush(counters, sums)
    _collect(sums, 16, counts)
    left = _left()  # what no carry has taken away
    store(left, ones[0])
    store(left + U(32), ones[1])
    store(left + U(64), twos[0])
    store(left + U(96), twos[1])
    store(left + U(128), fours[0])
    store(left + U(160), fours[1])
    store(left + U(192), eights[0])
    store(left + U(224), eights[1])
    for k in range(4):
        _take_apart((load(left + U(64 * k)), load(left + U(64 * k + 32))), counters)
        _flush(counters, sums)
        _collect(sums, 1 << k, counts)
    for i in range(blocks * BLOCK if shift == 0 else buffer.size, buffer.size):
        counts[buffer[i] & 15] += 1
        counts[buffer[i] >> 4] += 1


@inlined
def _sixteen(
    source: U, ones: Register, twos: Register, fours: Register, eights: Register
) -> tuple[Register, Register, Register, Register, Register]:
    ones, twos, fours, a = _eight(source, ones, twos, fours)
    ones, twos, fours, b = _eight(source + U(128), ones, twos, fours)
    eights, carry = _add(eights, a, b)
    return ones, twos, fours, eights, carry


@inlined
def _eight(source: U, ones: Register, twos: Register, fours: Register) -> tuple[Register, Register, Register, Register]:
    ones, twos, a = _four(source, ones, twos)
    ones, twos, b = _four(source + U(64), ones, twos)
    fours, carry = _add(fours, a, b)
    return ones, twos, fours, carry


@inlined
def _four(source: U, ones: Register, twos: Register) -> tuple[Register, Register, Register]:
    ones, a = _two(source, ones)
    ones, b = _two(source + U(32), ones)
    twos, carry = _add(twos, a, b)
    return ones, twos, carry


@inlined
def _two(source: U, ones: Register) -> tuple[Register, Register]:
    codes = load(source)
    low, high = and_(codes, _nibbles()), and_(_shift4(codes), _nibbles())
    tables = (_first(), _second())
    return _add(ones, shuffle_b(tables, low), shuffle_b(tables, high))


@inlined
def _add(x: Register, y: Register, z: Register) -> tuple[Register, Register]:
    """Sum and carry of each bit."""
    return xor(xor(x, y), z), xor(y, and_(xor(x, y), xor(y, z)))


@inlined
def _take_apart(bits: Register, counters: U) -> None:
    """Add each bit to the counter of its symbol."""
    for s in range(8):
        low, high = counters + U(32 * s), counters + U(32 * s + 256)
        store(low, add_b(load(low), and_(bits[0], _ones())))
        store(high, add_b(load(high), and_(bits[1], _ones())))
        bits = _shift1(bits)  # what moves from one byte to the next is too far up to matter


@inlined
def _flush(counters: U, sums: U) -> None:
    for s in range(16):
        at = U(32 * s)
        store(sums + at, add_q(load(sums + at), sum_b(load(counters + at))))
        store(counters + at, _zero())


@inlined
def _collect(sums: U, weight: int, counts: NDArray[np.int64]) -> None:
    for s in range(16):
        for i in range(4):
            counts[s] += weight * I(load_u64(sums + U(32 * s + 8 * i)))
        store(sums + U(32 * s), _zero())
