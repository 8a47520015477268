"""Coder 6 in plain integer code: bytes as nibbles and back, and the table that suits them best (SPEC section 5).

The nibbles are coder 2's business. They are decoded into the second half of `out` and become bytes from the front: what is
written there never passes what is still to be read, so no memory is needed but that of the result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import ans_portable
from .ans_header import I, U
from .jit import inlined, kernel
from .normalize import normalize
from .status import BAD_ESCAPES, BAD_PADDING, HEADER_TRUNCATED, OK

ESCAPE = 15
HEADER = 4


@kernel
def to_nibbles(
    data: NDArray[np.uint8], table: NDArray[np.uint16], packed: NDArray[np.uint8], escaped: NDArray[np.uint8]
) -> int:
    """Fill `packed` (half the size, rounded up) with symbols and `escaped` (the size) with the bytes that have none.

    table: row of a bank, uint16 `[32]`. Returns how many bytes have been escaped.
    """
    symbols = symbols_of(table)
    return put_nibbles(data, 0, symbols, packed, escaped, 0)


@inlined
def symbols_of(table: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """By byte its symbol, or the escape."""
    symbols = np.full(256, ESCAPE, np.uint8)
    for s in range(ESCAPE):
        if table[s] > 0:
            symbols[table[16 + s]] = s
    return symbols


@inlined
def put_nibbles(
    data: NDArray[np.uint8],
    begin: int,
    symbols: NDArray[np.uint8],
    packed: NDArray[np.uint8],
    escaped: NDArray[np.uint8],
    count: int,
) -> int:
    """From pair `begin` of the bytes on, `count` of those before are escaped. Returns how many are in the end."""
    pairs = data.size // 2
    for j in range(begin, pairs):
        a, b = data[2 * j], data[2 * j + 1]
        low, high = symbols[a], symbols[b]
        packed[j] = low | high << 4
        escaped[count] = a  # written always, kept if needed
        count += low == ESCAPE
        if high == ESCAPE:
            escaped[count] = b
            count += 1
    if data.size % 2:
        low = symbols[data[2 * pairs]]
        packed[pairs] = low
        if low == ESCAPE:
            escaped[count] = data[2 * pairs]
            count += 1
    return count


@kernel
def decode_escape16(payload: NDArray[np.uint8], streams: int, table: NDArray[np.uint16], out: NDArray[np.uint8]) -> int:
    """Signature, duties and result: see `ans_portable`; the table is a row of the bank, uint16 `[32]`."""
    stop = escapes_end(payload)
    if stop < 0:
        return HEADER_TRUNCATED
    half = (out.size + 1) // 2
    status = ans_portable.decode_ans16(payload[stop:], streams, table[:16], out[out.size - half :])
    return put_bytes(payload, HEADER, stop, table, out, 0) if status == OK else status


@inlined
def escapes_end(payload: NDArray[np.uint8]) -> int:
    """Where the escaped bytes end; -1 if not within the payload."""
    if payload.size < HEADER:
        return -1
    count: int = U(payload[0]) | U(payload[1]) << U(8) | U(payload[2]) << U(16) | U(payload[3]) << U(24)
    end = HEADER + I(count)
    return end if end <= payload.size else -1


@inlined
def put_bytes(
    payload: NDArray[np.uint8], at: int, stop: int, table: NDArray[np.uint16], out: NDArray[np.uint8], begin: int
) -> int:
    """Turn nibbles in the second half of `out` into bytes, from byte `begin` of them on; the next escaped one is at `at`."""
    pairs = out.size // 2
    for j in range(begin, pairs):
        nibbles = out[pairs + j]
        for i in range(2):
            symbol = nibbles >> (4 * i) & 15
            out[2 * j + i] = table[16 + symbol]
            if symbol == ESCAPE:
                if at >= stop:
                    return BAD_ESCAPES
                out[2 * j + i] = payload[at]
                at += 1
    if out.size % 2:
        symbol = out[2 * pairs]
        if symbol > 15:
            return BAD_PADDING
        out[2 * pairs] = table[16 + symbol]
        if symbol == ESCAPE:
            if at >= stop:
                return BAD_ESCAPES
            out[2 * pairs] = payload[at]
            at += 1
    return OK if at == stop else BAD_ESCAPES


@kernel
def fit(
    counts: NDArray[np.int64],
    order: NDArray[np.int64],
    steps: NDArray[np.float64],
    units: NDArray[np.int64],
    row: NDArray[np.uint16],
) -> None:
    """Fill `row` (uint16 `[32]`, zeros before) with the table that codes counts of bytes (int64 `[256]`) in the fewest bits.

    order: the most frequent bytes, int64 `[15]`, from the most frequent on. steps: see `normalize`. units: cost of a symbol
    by frequency. For each number of bytes with symbols of their own the best are the most frequent ones: so there are
    15 tables to compare.
    """
    total, best, taken = counts.sum(), np.int64(-1), 0
    symbols, frequencies = np.zeros(16, np.int64), np.zeros(16, np.int64)
    chosen = np.zeros(16, np.int64)
    escaped = total
    for used in range(1, 16):
        byte = order[used - 1]
        if counts[byte] == 0:
            break
        symbols[used - 1] = counts[byte]
        escaped -= counts[byte]
        symbols[ESCAPE] = escaped
        frequencies[:] = 0
        if escaped == total - counts[order[0]] and escaped == 0:
            frequencies[0], frequencies[ESCAPE] = 255, 1  # one symbol alone
        else:
            normalize(symbols, steps, frequencies)
        cost = escaped * 8 * (units[1] >> 3)  # units[1] is eight bits
        for s in range(16):
            cost += symbols[s] * units[frequencies[s]]
        if best < 0 or cost <= best:
            best, taken = cost, used
            chosen[:] = frequencies
    row[ESCAPE] = chosen[ESCAPE]
    place = 0
    for byte in range(256):
        for s in range(taken):
            if order[s] == byte:
                row[place], row[16 + place] = chosen[s], byte
                place += 1
