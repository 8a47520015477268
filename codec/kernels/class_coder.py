"""Compiled loops of coder `ans_classes`: interleaved rANS whose table is chosen symbol by symbol.

Codes are a matrix. The table of code (r, c) is number `row_class[r] + column_class[c]`, clipped, and with a trellis
one of two by the lowest bit of the state of column c. Nothing but codes that are already decoded enters the choice.

Decoders take any bytes: they stay inside the arrays, end, and return a status.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import inlined, kernel
from .status import (
    BAD_FINAL_STATE,
    BAD_STATE,
    BAD_STREAMS,
    HEADER_TRUNCATED,
    OK,
    STREAM_EXHAUSTED,
    STREAM_LEFT_OVER,
)

# numba makes float64 of a mixed uint64 and int64, so states and their arithmetic are all uint64.
U: Any = np.uint64
I: Any = np.int64  # noqa: E741
MAX_LANES = 32
ESCAPE = 0  # the symbol of codes beyond +-127; code k is symbol k + 128


@kernel
def expand(frequencies: NDArray[np.uint16], tables: NDArray[np.uint32]) -> None:
    """Decoding tables u32[tables, 4096] by slot: frequency | slot - start << 12 | symbol << 24.

    frequencies u16[tables, 256], each row of sum 4096 and below 4096 everywhere.
    """
    for t in range(frequencies.shape[0]):
        slot = 0
        for s in range(256):
            f = I(frequencies[t, s])
            for r in range(f):
                tables[t, (slot + r) & 4095] = f | r << 12 | s << 24
            slot += f


@kernel
def decode_classes(
    payload: NDArray[np.uint8],
    lanes: int,
    tables: NDArray[np.uint32],
    sets: int,
    row_class: NDArray[np.int64],
    column_class: NDArray[np.int64],
    after: NDArray[np.uint8],
    restart: int,
    out: NDArray[np.int16],
) -> int:
    """Fill out i16[rows, columns]. Returns a status.

    tables: from `expand`, `sets` (1 or 2) per class. after u8[states, 2]: the trellis, whose entries are below
    `states`; a single state for a plain grid. Its states begin at 0 in every row that is a multiple of `restart` (>=
    1).
    """
    rows, columns = out.shape
    if lanes < 1 or lanes > MAX_LANES or lanes & (lanes - 1):
        return BAD_STREAMS
    if payload.size < 4 * lanes:
        return HEADER_TRUNCATED
    x = np.empty(lanes, np.uint64)
    for lane in range(lanes):
        y = U(0)
        for i in range(4):
            y |= U(payload[4 * lane + i]) << U(8 * i)
        if y < U(65536):
            return BAD_STATE
        x[lane] = y
    last = tables.shape[0] // sets - 1
    flat = tables.reshape(-1)
    two = U(sets - 1) << U(12)
    position, back = U(4 * lanes), U(payload.size)
    jump = after.reshape(-1)
    state, base = np.zeros(columns, np.uint8), np.empty(columns, np.uint64)
    lane, mask = U(0), U(lanes - 1)
    for r in range(rows):
        if r % restart == 0:
            state[:] = 0
        for c in range(columns):
            base[c] = U(min(max(row_class[r] + column_class[c], 0), last) * sets) << U(12)
        row = out[r]
        if position + U(4 * columns) <= back:  # no word and no escape of this row can be missing
            if after.shape[0] == 1:
                for c in range(columns):
                    y = x[lane]
                    y, position, symbol = step(y, flat[base[c] | (y & U(4095))], payload, position)
                    x[lane] = y
                    lane = (lane + U(1)) & mask
                    row[c] = np.int16(symbol) - np.int16(128)
                    if symbol == U(ESCAPE):
                        back -= U(2)
                        row[c] = escaped(payload, back)
            else:
                for c in range(columns):
                    y, s = x[lane], U(state[c])
                    entry = flat[(base[c] + (s << U(12) & two)) | (y & U(4095))]
                    y, position, symbol = step(y, entry, payload, position)
                    x[lane] = y
                    lane = (lane + U(1)) & mask
                    row[c] = np.int16(symbol) - np.int16(128)
                    if symbol == U(ESCAPE):
                        back -= U(2)
                        row[c] = escaped(payload, back)
                        symbol = U(I(row[c]) & 1)
                    state[c] = jump[s << U(1) | symbol & U(1)]
        else:
            for c in range(columns):
                s = I(state[c])
                e = U(flat[(base[c] + (U(s) << U(12) & two)) | (x[lane] & U(4095))])
                y = (e & U(4095)) * (x[lane] >> U(12)) + ((e >> U(12)) & U(4095))
                k = I(e >> U(24)) - 128
                if y < U(65536):
                    if position + U(2) > back:
                        return STREAM_EXHAUSTED
                    y = y << U(16) | U(payload[position]) | U(payload[position + U(1)]) << U(8)
                    position += U(2)
                x[lane] = y
                lane = (lane + U(1)) & mask
                if k == ESCAPE - 128:
                    if position + U(2) > back:
                        return STREAM_EXHAUSTED
                    back -= U(2)
                    k = escaped(payload, back)
                row[c] = k
                state[c] = after[s, k & 1]
    if position != back:
        return STREAM_LEFT_OVER
    for lane in range(lanes):
        if x[lane] != U(65536):
            return BAD_FINAL_STATE
    return OK


@inlined
def step(y: Any, entry: Any, payload: NDArray[np.uint8], position: Any) -> tuple[Any, Any, Any]:
    """Decode one symbol and refill without a branch: whether a state needs a word is as good as random."""
    e = U(entry)
    y = (e & U(4095)) * (y >> U(12)) + ((e >> U(12)) & U(4095))
    word = U(payload[position]) | U(payload[position + U(1)]) << U(8)
    need = (y - U(65536)) >> U(63)  # the borrow bit
    return y << (need << U(4)) | word & (U(0) - need), position + (need << U(1)), e >> U(24)


@inlined
def escaped(payload: NDArray[np.uint8], at: np.uint64) -> Any:
    value = I(payload[at]) | I(payload[at + U(1)]) << 8
    return value - ((value & 32768) << 1)


@kernel
def encode_classes(
    codes: NDArray[np.int16],
    lanes: int,
    frequencies: NDArray[np.uint16],
    sets: int,
    row_class: NDArray[np.int64],
    column_class: NDArray[np.int64],
    after: NDArray[np.uint8],
    restart: int,
    dst: NDArray[np.uint8],
) -> int:
    """The payload of codes i16[rows, columns]: the first bytes of `dst`, whose number is returned.

    A symbol of frequency 0 escapes. dst u8[>= 4 * lanes + 4 * codes + 8]. Returns -1 if a symbol of frequency 0
    is in a table where escapes have frequency 0 as well.
    """
    rows, columns = codes.shape
    tables = frequencies.shape[0]
    start = np.zeros((tables, 256), np.uint64)
    reciprocal = np.zeros((tables, 256), np.uint64)
    for t in range(tables):
        total = 0
        for s in range(256):
            f = I(frequencies[t, s])
            start[t, s] = total
            total += f
            if f:
                reciprocal[t, s] = ((1 << 44) + f - 1) // f
    last = tables // sets - 1
    which = chosen_sets(codes, after, restart, sets - 1)
    x = np.full(lanes, 65536, np.uint64)
    p = U(dst.size)
    escapes = 0
    lane = (rows * columns) & (lanes - 1)
    for r in range(rows - 1, -1, -1):
        for c in range(columns - 1, -1, -1):
            lane = (lane - 1) & (lanes - 1)
            t = min(max(row_class[r] + column_class[c], 0), last) * sets + which[r, c]
            k = I(codes[r, c])
            s = k + 128 if -127 <= k <= 127 else ESCAPE
            if frequencies[t, s] == 0:
                s = ESCAPE
                if frequencies[t, s] == 0:
                    return -1
            if s == ESCAPE:
                escapes += 1
            f, y = U(frequencies[t, s]), x[lane]
            if y >= f << U(20):
                p -= U(2)
                dst[p] = y & U(255)
                dst[p + U(1)] = (y >> U(8)) & U(255)
                y >>= U(16)
            q = (y * reciprocal[t, s]) >> U(44)  # y // f: y < f * 2^20
            x[lane] = y + q * (U(4096) - f) + start[t, s]
    words = dst.size - I(p)
    head = 4 * lanes
    for lane in range(lanes):
        for i in range(4):
            dst[4 * lane + i] = (x[lane] >> U(8 * i)) & U(255)
    for i in range(words):
        dst[head + i] = dst[I(p) + i]
    nbytes = head + words + 2 * escapes
    at = nbytes
    if escapes:
        for r in range(rows):
            for c in range(columns):
                k = I(codes[r, c])
                t = min(max(row_class[r] + column_class[c], 0), last) * sets + which[r, c]
                if k < -127 or k > 127 or frequencies[t, k + 128] == 0:
                    at -= 2
                    dst[at] = k & 255
                    dst[at + 1] = (k >> 8) & 255
    return int(nbytes)


@kernel
def chosen_sets(codes: NDArray[np.int16], after: NDArray[np.uint8], restart: int, two: int) -> NDArray[np.uint8]:
    """The set of every code: the lowest bit of its column's state, or 0 if `two` is 0."""
    rows, columns = codes.shape
    which = np.zeros((rows, columns), np.uint8)
    if two == 0:
        return which
    state = np.zeros(columns, np.uint8)
    for r in range(rows):
        if r % restart == 0:
            state[:] = 0
        for c in range(columns):
            which[r, c] = state[c] & 1
            state[c] = after[state[c], I(codes[r, c]) & 1]
    return which
