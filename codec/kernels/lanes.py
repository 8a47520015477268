"""Coders 8 and 9 in plain integer code: rANS in a few lanes, for buffers too short to pay for the states of 32 (SPEC section 5).

Decoding takes about 6 cycles a symbol in 4 lanes, 8 in 2, and 14 in one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans_header import I, U
from .jit import inlined, kernel
from .status import BAD_FINAL_STATE, BAD_STREAMS, HEADER_TRUNCATED, LOW_STATE, OK, STREAM_LEFT_OVER

MOST = 4  # lanes
LOW = 1 << 16  # states are at least this; one lane begins, in the encoder, from 1


@kernel
def encode_lanes(
    packed: NDArray[np.uint8],
    lanes: int,
    frequencies: NDArray[np.uint16],
    precision: int,
    out: NDArray[np.uint8],
) -> int:
    """Fill `out` from its end; returns the size of the payload. All symbols must have a frequency.

    frequencies: of 16 symbols, nibbles, or of 256. out: at least 4 bytes for each lane, and 2 for each symbol.
    """
    nibbles = frequencies.size == 16
    starts = starts_of(frequencies)
    bits, shift = U(precision), U(32 - precision)
    states = np.empty(MOST, np.uint64)
    for lane in range(MOST):
        states[lane] = U(1 if lanes == 1 else LOW)
    at = out.size
    for i in range(packed.size * (2 if nibbles else 1) - 1, -1, -1):
        symbol = I(packed[i >> 1]) >> (4 * (i & 1)) & 15 if nibbles else I(packed[i])
        x, f = states[i & (lanes - 1)], U(frequencies[symbol])
        if x >= f << shift:
            at -= 2
            out[at], out[at + 1] = np.uint8(x & U(255)), np.uint8(x >> U(8) & U(255))
            x >>= U(16)
        states[i & (lanes - 1)] = (x // f << bits) + x % f + U(starts[symbol])
    for lane in range(lanes - 1, 0, -1):
        at -= 4
        for k in range(4):
            out[at + k] = np.uint8(states[lane] >> U(8 * k) & U(255))
    size = 0
    while size < 4 and states[0] >> U(8 * size):
        size += 1
    at -= size
    for k in range(size):
        out[at + k] = np.uint8(states[0] >> U(8 * k) & U(255))
    return out.size - at


@kernel
def decode_lanes(
    payload: NDArray[np.uint8],
    lanes: int,
    frequencies: NDArray[np.uint16],
    precision: int,
    out: NDArray[np.uint8],
) -> int:
    """Fill `out`; returns a number of `status`. Reads and writes nothing but the arrays, whatever is in them."""
    nibbles = frequencies.size == 16
    if lanes != 1 and lanes != 2 and lanes != MOST:
        return BAD_STREAMS
    rest = payload.size - 4 * (lanes - 1)
    if rest < 0:
        return HEADER_TRUNCATED
    first = rest if rest <= 4 else 4 - (rest & 1)
    states = np.empty(MOST, np.uint64)
    for lane in range(MOST):
        states[lane] = U(0)
    for k in range(first):
        states[0] |= U(payload[k]) << U(8 * k)
    at = I(first)
    for lane in range(1, lanes):
        for k in range(4):
            states[lane] |= U(payload[at]) << U(8 * k)
            at += 1
    if first == 0 or payload[first - 1] == 0:
        return LOW_STATE
    for lane in range(lanes):
        if lanes > 1 and states[lane] < U(LOW):
            return LOW_STATE
    spans = spans_of(frequencies)
    symbols = symbols_of(frequencies, precision)
    bits, mask, count, i = U(precision), U((1 << precision) - 1), out.size * (2 if nibbles else 1), 0
    if lanes == MOST:
        # A word for each lane is there, whether it takes it or not.
        a, b, c, d = states[0], states[1], states[2], states[3]
        while i + 4 <= count and at + 8 <= payload.size:
            p, a, at = step(a, payload, at, bits, mask, spans, symbols)
            q, b, at = step(b, payload, at, bits, mask, spans, symbols)
            r, c, at = step(c, payload, at, bits, mask, spans, symbols)
            s, d, at = step(d, payload, at, bits, mask, spans, symbols)
            if nibbles:
                out[i >> 1], out[(i >> 1) + 1] = p | q << 4, r | s << 4
            else:
                out[i], out[i + 1], out[i + 2], out[i + 3] = p, q, r, s
            i += 4
        states[0], states[1], states[2], states[3] = a, b, c, d
    low = np.uint8(0)
    while i < count:
        x = states[i & (lanes - 1)]
        slot = x & mask
        symbol = symbols[slot]
        span = spans[symbol]
        x = (span >> U(16)) * (x >> bits) + slot - (span & U(0xFFFF))
        if x < U(LOW) and at + 2 <= payload.size:
            x = x << U(16) | U(payload[at]) | U(payload[at + 1]) << U(8)
            at += 2
        states[i & (lanes - 1)] = x
        if not nibbles:
            out[i] = symbol
        elif i & 1:
            out[i >> 1] = low | symbol << 4
        else:
            low = symbol
        i += 1
    if at != payload.size:
        return STREAM_LEFT_OVER
    for lane in range(lanes):
        if states[lane] != U(1 if lanes == 1 else LOW):
            return BAD_FINAL_STATE
    return OK


@inlined
def step(
    x: U,
    payload: NDArray[np.uint8],
    at: int,
    bits: U,
    mask: U,
    spans: NDArray[np.uint64],
    symbols: NDArray[np.uint8],
) -> tuple[np.uint8, U, int]:
    """A symbol of a lane, its state and where the payload goes on; a branch on the refill would often be guessed wrongly."""
    slot = x & mask
    symbol = symbols[slot]
    span = spans[symbol]
    x = (span >> U(16)) * (x >> bits) + slot - (span & U(0xFFFF))
    refill = I(x < U(LOW))
    word = U(payload[at]) | U(payload[at + 1]) << U(8)
    x = x << U(16 * refill) | word & U(-refill)
    return symbol, x, at + 2 * refill


@inlined
def spans_of(frequencies: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """By symbol its frequency, above 16 bits for where its slots begin."""
    spans = np.empty(frequencies.size, np.uint64)
    start = U(0)
    for s in range(frequencies.size):
        spans[s] = U(frequencies[s]) << U(16) | start & U(0xFFFF)
        start += U(frequencies[s])
    return spans


@inlined
def starts_of(frequencies: NDArray[np.uint16]) -> NDArray[np.uint16]:
    starts = np.empty(frequencies.size, np.uint16)
    starts[0] = 0
    for s in range(frequencies.size - 1):
        starts[s + 1] = starts[s] + frequencies[s]
    return starts


@inlined
def symbols_of(frequencies: NDArray[np.uint16], precision: int) -> NDArray[np.uint8]:
    """By slot its symbol."""
    symbols = np.empty(1 << precision, np.uint8)
    for slot in range(symbols.size):
        symbols[slot] = 0
    slot = 0
    for s in range(frequencies.size):
        for _ in range(frequencies[s]):
            symbols[slot & ((1 << precision) - 1)] = s
            slot += 1
    return symbols
