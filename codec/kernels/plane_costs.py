"""What planes would cost, from counts of a sample: the arithmetic behind `codec.choose_records`.

Costs are integers of 1 / UNITS bit as long as they are sums, and no logarithm but those of a table is taken: the same
choice on every machine. A cost is a row of three numbers: price, bytes, and whether the plane is coded (1) or stored raw (0).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans_header import U
from .escape16 import ESCAPE
from .escape_run import likely_bytes
from .jit import inlined, kernel

PRICE, NBYTES, CODED = 0, 1, 2
UNITS = 1 << 20

# Bytes that coding a byte of a packed plane must save, for it takes time to decode: by escape16, nibbles (ans16), ans256.
ESCAPE_PRICE, NIBBLE_PRICE, BYTE_PRICE = 0.008, 0.010, 0.010
ROW_NBYTES = 24 + 8  # of a chunk: its row in the index, and on average what it takes to a multiple of 16
STATE_NBYTES, TAIL_NBYTES = 116, 64  # of each stream: its header, and how many bytes of its codes that header holds
ESCAPE_TABLE, NIBBLE_TABLE, BYTE_TABLE = 32, 16, 384  # bytes
COARSE = 0.0045  # what probabilities of 8 bits cost where the likely bytes become nibbles, as a share
LEAST = 0.002  # share of a plane that coding must gain beyond its price
CUT = 0.002  # bytes for each byte of a lane that cutting it in two must save beyond that: two planes are more work
# Few symbols look less even than they are: by half a nat for each value that occurs (Miller and Madow).
EVENER = 756351  # round(0.7213 * UNITS)


@kernel
def count_lanes(
    data: NDArray[np.uint8], size: int, rotate: bool, starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    """Count the bytes of each lane of words: int64 `[lanes, pieces, 256]`, zeros before.

    Piece i are the words of `size` bytes in bytes starts[i, 0] .. starts[i, 1] - 1. rotate: by one bit to the left.
    """
    # Eight bytes at once, each with counters of its own: where the same byte comes again and again, it would wait for its last store.
    partial = np.empty((8, 256), np.uint32)
    bits, lowest = U(8 * size), U(0)
    for at in range(0, 8, size):
        lowest |= U(1) << U(8 * at)  # the lowest bit of each word
    for i in range(len(starts)):
        begin, end = starts[i]
        partial[:] = 0
        whole = begin + (end - begin) // 8 * 8
        for at in range(begin, whole, 8):
            word = _word(data, U(at))
            if rotate:
                word = (word & ~(lowest << (bits - U(1)))) << U(1) | word >> (bits - U(1)) & lowest
            for k in range(8):
                partial[U(k), word >> U(8 * k) & U(255)] += np.uint32(1)
        for at in range(whole, end):
            p = (at - begin) % size
            byte = data[at]
            if rotate:
                byte = np.uint8(byte << np.uint8(1)) | data[at - p + (p - 1) % size] >> np.uint8(7)
            partial[U(p), byte] += np.uint32(1)
        for k in range(8):
            for byte in range(256):
                counts[k % size, i, byte] += partial[k, byte]


@inlined
def _word(data: NDArray[np.uint8], at: U) -> U:
    """Eight bytes, little-endian: LLVM makes one load of it."""
    low = U(data[at]) | U(data[at + U(1)]) << U(8) | U(data[at + U(2)]) << U(16) | U(data[at + U(3)]) << U(24)
    high = U(data[at + U(4)]) | U(data[at + U(5)]) << U(8) | U(data[at + U(6)]) << U(16) | U(data[at + U(7)]) << U(24)
    return low | high << U(32)


@kernel
def plane_cost(
    counts: NDArray[np.int64],
    codes: int,
    width: int,
    sampled: bool,
    chunk_codes: int,
    small_codes: int,
    logs: NDArray[np.int64],
    cost: NDArray[np.float64],
) -> None:
    """Fill `cost` for a plane of `codes` codes, packed by `width` bits, in chunks of about `chunk_codes`.

    counts: of its codes, or of its nibbles (16 symbols), in each piece: int64 `[pieces, symbols]`. sampled: whether there is
    more of the plane than the pieces. small_codes: chunks of fewer codes have one stream, others four. logs: see `fit_nibbles`.
    """
    pieces, symbols = counts.shape
    chunks = max(1.0, np.rint(codes / chunk_codes))
    streams = chunks if np.rint(codes / chunks) < small_codes else 4 * chunks
    plane, rows = codes * width / 8, chunks * ROW_NBYTES
    raw = plane + rows
    cost[PRICE], cost[NBYTES], cost[CODED] = raw, raw, 0.0
    pooled, values, total = np.zeros(symbols, np.int64), 0, 0
    for i in range(pieces):
        for s in range(symbols):
            pooled[s] += counts[i, s]
    for s in range(symbols):
        values += pooled[s] > 0
        total += pooled[s]
    if values <= 1:
        cost[PRICE], cost[NBYTES], cost[CODED] = rows + chunks, rows + chunks, 1.0
        return
    outside = max(0.0, 1 - streams * TAIL_NBYTES / plane)  # share of the codes that the headers do not hold
    per_unit = codes * width / (4 if symbols == 16 else width) / total / (8 * UNITS) * outside
    more = rows + streams * STATE_NBYTES
    table = BYTE_TABLE if width == 8 else NIBBLE_TABLE
    price = NIBBLE_PRICE if symbols == 16 else BYTE_PRICE

    units, constant, sum_units = np.zeros(pieces, np.float64), np.zeros(pieces, np.uint8), 0.0
    for i in range(pieces):
        whole = _entropy(counts[i], logs)
        constant[i] = whole == 0
        if sampled:
            for s in range(symbols):
                whole += EVENER * (counts[i, s] > 0)
            whole -= EVENER
        units[i] = whole
        sum_units += whole
    pooled_units = float(_entropy(pooled, logs))
    if symbols == 256:  # the likely bytes as nibbles, the others after an escape
        likely = likely_bytes(pooled)
        few, all_few = np.zeros(16, np.int64), np.zeros(16, np.int64)
        few_units, sum_few = np.zeros(pieces, np.float64), 0.0
        for i in range(pieces):
            escaped = 0
            for s in range(256):
                escaped += counts[i, s]
            for s in range(ESCAPE):
                few[s] = counts[i, likely[s]]
                escaped -= few[s]
            few[ESCAPE] = escaped
            for s in range(16):
                all_few[s] += few[s]
            few_units[i] = _entropy(few, logs) * (1 + COARSE) + few[ESCAPE] * 8.0 * UNITS
            sum_few += few_units[i]
        few_nbytes = sum_few * per_unit + ESCAPE_TABLE * chunks + ESCAPE_PRICE * plane
        if few_nbytes < sum_units * per_unit + table * chunks + price * plane:
            units, table, price = few_units, ESCAPE_TABLE, ESCAPE_PRICE
            pooled_units = _entropy(all_few, logs) + all_few[ESCAPE] * 8.0 * UNITS

    # With tables of their own, each piece as it is best: chunks will choose for themselves, too.
    own_price, own = 0.0, 0.0
    for i in range(pieces):
        counted = 0
        for s in range(symbols):
            counted += counts[i, s]
        share = counted / total
        if constant[i]:
            nbytes = share * (rows + chunks)
            own_price += nbytes
        else:
            nbytes = min(units[i] * per_unit + share * (more + chunks * table), share * raw)
            own_price += min(nbytes + share * plane * price, share * raw)
        own += nbytes
    shared = pooled_units * per_unit + more + table
    if pieces > 1 and shared + price * plane < own_price:
        own_price, own = shared + price * plane, shared
    if own_price < raw - LEAST * plane:
        cost[PRICE], cost[NBYTES], cost[CODED] = own_price, own, 1.0


@kernel
def cut_lanes(
    counts: NDArray[np.int64],
    codes: int,
    sampled: bool,
    chunk_codes: int,
    small_codes: int,
    logs: NDArray[np.int64],
    lows: NDArray[np.int64],
    costs: NDArray[np.float64],
) -> None:
    """The cheapest fields of lanes of `codes` bytes, counts int64 `[lanes, pieces, 256]`; their costs: float64 `[lanes, 2, 3]`.

    lows: int64 `[lanes]`: 0 for all of a lane as bytes, 8 for pairs of nibbles, or how many low bits make a field of their own.
    """
    for i in range(len(counts)):
        lows[i] = _cut_lane(counts[i], codes, sampled, chunk_codes, small_codes, logs, costs[i])


@inlined
def _cut_lane(
    counts: NDArray[np.int64],
    codes: int,
    sampled: bool,
    chunk_codes: int,
    small_codes: int,
    logs: NDArray[np.int64],
    costs: NDArray[np.float64],
) -> int:
    pieces = len(counts)
    plane_cost(counts, codes, 8, sampled, chunk_codes, small_codes, logs, costs[0])
    changing, any_bit, every_bit, values = 0, 0, 255, 0
    for byte in range(256):
        seen = False
        for i in range(pieces):
            seen |= counts[i, byte] > 0
        if seen:
            any_bit |= byte
            every_bit &= byte
            values += 1
    if costs[0, CODED] == 0.0 or values == 1:
        return 0
    changing = any_bit ^ every_bit
    found, best, tried = 0, costs[0, PRICE], np.zeros((2, 3), np.float64)
    # Cut in two, in the middle or so that one side is the same in all bytes that occur.
    below, above = 0, 8
    while not changing >> below & 1:
        below += 1
    while not changing >> (above - 1):
        above -= 1
    for low in range(8, 0, -1):
        if low not in (8, 4, below, above):
            continue
        parts = np.zeros((pieces, 16 if low == 8 else 1 << low), np.int64)
        others = np.zeros((pieces, 1 << (8 - low)), np.int64)
        for i in range(pieces):
            for byte in range(256):
                if low == 8:
                    parts[i, byte & 15] += counts[i, byte]
                    parts[i, byte >> 4] += counts[i, byte]
                else:
                    parts[i, byte & ((1 << low) - 1)] += counts[i, byte]
                    others[i, byte >> low] += counts[i, byte]
        tried[1, PRICE] = 0.0
        if low == 8:
            plane_cost(parts, 2 * codes, 4, sampled, chunk_codes, small_codes, logs, tried[0])
        else:
            plane_cost(parts, codes, _width(low), sampled, chunk_codes, small_codes, logs, tried[0])
            plane_cost(others, codes, _width(8 - low), sampled, chunk_codes, small_codes, logs, tried[1])
        price = tried[0, PRICE] + tried[1, PRICE] + (CUT * codes if low < 8 else 0.0)
        if price < best:
            found, best = low, price
            for i in range(2):
                for k in range(3):
                    costs[i, k] = tried[i, k]
    return found


@inlined
def _width(bits: int) -> int:
    width = 1
    while width < bits:
        width *= 2
    return width


@kernel
def _entropy(counts: NDArray[np.int64], logs: NDArray[np.int64]) -> int:
    """Bits of all symbols together, in units."""
    total, units = 0, 0
    for s in range(counts.size):
        n = counts[s]
        if n > 0:
            total += n
            units -= _times_log(n, logs)
    return units + _times_log(total, logs) if total else 0


@inlined
def _times_log(n: int, logs: NDArray[np.int64]) -> int:
    """n log2(n), from the first 12 bits of n: 0.0004 bits too small."""
    short, shift = n, 0
    while short >= 4096:
        short >>= 1
        shift += 1
    units: int = n * (logs[short] + shift * UNITS)
    return units
