"""Coder 8 in plain integer code: two lanes of rANS over nibbles, for buffers too short to pay for the states of 32 (SPEC section 5).

About 8 cycles for a byte of packed codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans_header import I, U
from .jit import inlined, kernel
from .status import BAD_FINAL_STATE, HEADER_TRUNCATED, LOW_STATE, OK, SIZE_MISMATCH, STREAM_EXHAUSTED, STREAM_LEFT_OVER

HEADER = 8  # bytes: the states of two lanes
LOW = 1 << 16  # states are at least this
SLOTS = 1 << 12


@kernel
def encode_short16(packed: NDArray[np.uint8], frequencies: NDArray[np.uint16], out: NDArray[np.uint8]) -> int:
    """Fill `out` from its end; returns the size of the payload. All nibbles must have a frequency.

    out: at least HEADER + 4 bytes for each of `packed`.
    """
    starts = starts_of(frequencies)
    at = out.size
    a, b = U(LOW), U(LOW)
    for i in range(packed.size - 1, -1, -1):
        b, at = put(b, packed[i] >> 4, frequencies, starts, out, at)
        a, at = put(a, packed[i] & 15, frequencies, starts, out, at)
    for state in (b, a):
        at -= 4
        for k in range(4):
            out[at + k] = np.uint8(state >> U(8 * k) & U(255))
    return out.size - at


@inlined
def put(
    x: U, symbol: int, frequencies: NDArray[np.uint16], starts: NDArray[np.uint16], out: NDArray[np.uint8], at: int
) -> tuple[U, int]:
    """One step of a lane backwards: its state and where the payload now begins."""
    f = U(frequencies[symbol])
    if x >= f << U(20):
        at -= 2
        out[at], out[at + 1] = np.uint8(x & U(255)), np.uint8(x >> U(8) & U(255))
        x >>= U(16)
    return (x // f << U(12)) + x % f + U(starts[symbol]), at


@kernel
def decode_short16(payload: NDArray[np.uint8], frequencies: NDArray[np.uint16], out: NDArray[np.uint8]) -> int:
    """Fill `out`; returns a number of `status`. Reads and writes nothing but the arrays, whatever is in them."""
    if payload.size < HEADER:
        return HEADER_TRUNCATED
    if payload.size % 2:
        return SIZE_MISMATCH
    starts, symbols = starts_of(frequencies), np.zeros(SLOTS, np.uint8)
    slot = 0
    for s in range(16):
        for _ in range(frequencies[s]):
            symbols[slot & (SLOTS - 1)] = s
            slot += 1
    a, b = state_at(payload, 0), state_at(payload, 4)
    if a < U(LOW) or b < U(LOW):
        return LOW_STATE
    at = I(HEADER)
    for i in range(out.size):
        low, a, at = take(a, payload, at, frequencies, starts, symbols)
        high, b, at = take(b, payload, at, frequencies, starts, symbols)
        if at < 0:
            return STREAM_EXHAUSTED
        out[i] = low | high << 4
    if at != payload.size:
        return STREAM_LEFT_OVER
    return OK if a == U(LOW) and b == U(LOW) else BAD_FINAL_STATE


@inlined
def take(
    x: U,
    payload: NDArray[np.uint8],
    at: int,
    frequencies: NDArray[np.uint16],
    starts: NDArray[np.uint16],
    symbols: NDArray[np.uint8],
) -> tuple[np.uint8, U, int]:
    """One step of a lane: its symbol, its state and where the payload goes on; -1 for good when it has ended."""
    slot = x & U(SLOTS - 1)
    symbol = symbols[slot]
    x = U(frequencies[symbol]) * (x >> U(12)) + slot - U(starts[symbol])
    if x < U(LOW):
        if at < 0 or at + 2 > payload.size:
            return symbol, x, I(-1)
        x = x << U(16) | U(payload[at]) | U(payload[at + 1]) << U(8)
        at += 2
    return symbol, x, at


@inlined
def state_at(payload: NDArray[np.uint8], at: int) -> U:
    return U(payload[at]) | U(payload[at + 1]) << U(8) | U(payload[at + 2]) << U(16) | U(payload[at + 3]) << U(24)


@inlined
def starts_of(frequencies: NDArray[np.uint16]) -> NDArray[np.uint16]:
    starts = np.zeros(16, np.uint16)
    for s in range(15):
        starts[s + 1] = starts[s] + frequencies[s]
    return starts
