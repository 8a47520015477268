"""All chunks of a run of bytes, or some of them, in one call: counting, tables of coder 6, and coding with these.

Chunk i of a call is bytes bounds[i] .. bounds[i + 1] - 1 of `packed`. The vector twins are in `escape_run_avx2`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import ans_portable
from .ans_header import I, U
from .batch import bytes_at, copy_bytes
from .bits import BLOCK, block_of_sample, count_bytes, sample_bytes
from .escape16 import ESCAPE, HEADER, fit, to_nibbles
from .jit import inlined, kernel
from .nibble_run import place
from .xxh3 import xxh3_at

SAMPLED = 1 << 17  # bytes of a chunk from which on one block in 2 to the power of _SHIFT is enough
_SHIFT = 2
_PIECES, _PIECE = 8, 256  # bytes that are looked at before
_FEW, _MANY = 0.13, 0.9  # of these the share of the 15 most frequent values: in noise it is 0.1, for coder 6 nearly 1
_NOISE = 400  # the test statistic of even counts: 255 on average, and more than this once in 10^7


@kernel
def count(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    counts: NDArray[np.int64],
    memory: NDArray[np.uint8],
    estimated: NDArray[np.uint8],
) -> None:
    """Fill `counts` ([chunks, 256], zeros before) with the number of each byte.

    estimated: where it is 1, a sample of a large chunk will do for `fit_escapes`; becomes 0 where all has been counted. memory:
    twice the largest chunk.
    """
    for i in range(bounds.size - 1):
        buffer = packed[bounds[i] : bounds[i + 1]]
        if estimated[i]:
            sample = take_sample(buffer, memory)
            count_bytes(sample, counts[i])
            estimated[i] = stands_for_all(counts[i], sample.size)
        if not estimated[i]:
            count_bytes(buffer, counts[i])


@inlined
def take_sample(buffer: NDArray[np.uint8], memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy some blocks to the beginning of `memory`; returns these, or none where they would not do."""
    blocks = buffer.size // BLOCK >> _SHIFT if buffer.size >= SAMPLED else 0
    if blocks > 0:
        few, number = np.zeros(256, np.int64), 0
        sample_bytes(buffer, _PIECES, _PIECE, few)
        for byte in likely_bytes(few):
            number += few[byte]
        if _FEW < number / (_PIECES * _PIECE) < _MANY:
            blocks = 0
    for i in range(blocks):
        start = block_of_sample(i, _SHIFT) * BLOCK
        copy_bytes(U(memory.ctypes.data) + U(i * BLOCK), U(buffer.ctypes.data) + U(start), U(BLOCK))
    return memory[: blocks * BLOCK]


@inlined
def stands_for_all(counts: NDArray[np.int64], total: int) -> int:
    """Make the counts of a sample of `total` bytes those of the whole chunk and return 1, or zeros and 0 if that will not do.

    A table must have the escape, for there may be bytes that the sample lacks: it has if there are more than 15 values.
    What is worth a few bits only is counted, for the same waste is a larger share there, and what is too even for coder 6.
    What cannot be told from noise is taken for noise.
    """
    most, values, squares = 0, 0, 0
    for byte in range(256):
        most, squares = max(most, counts[byte]), squares + counts[byte] * counts[byte]
        values += counts[byte] > 0
    noise = 256.0 * squares <= float(total) * (total + _NOISE)
    enough = noise or (values > ESCAPE and 2 * most <= total <= (ESCAPE + 1) * most)
    for byte in range(256):
        counts[byte] = (total >> 8 if noise else counts[byte]) << _SHIFT if enough else 0
    return 1 if enough and total > 0 else 0


@inlined
def likely_bytes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The 15 most frequent bytes, from the most frequent on; of equally frequent ones the lower first."""
    likely, most = np.empty(ESCAPE, np.int64), np.full(ESCAPE, -1, np.int64)
    for byte in range(256):
        n = counts[byte]
        if n > most[ESCAPE - 1]:
            s = ESCAPE - 1
            while s > 0 and most[s - 1] < n:
                likely[s], most[s] = likely[s - 1], most[s - 1]
                s -= 1
            likely[s], most[s] = byte, n
    return likely


@kernel
def fit_escapes(
    counts: NDArray[np.int64],
    steps: NDArray[np.float64],
    units: NDArray[np.int64],
    price: int,
    rows: NDArray[np.uint16],
) -> int:
    """Fill `rows` (uint16 `[chunks, 32]`, zeros before) with tables that code the run in the fewest bits; returns these.

    counts: of bytes, int64 `[chunks, 256]`, at least one each. price: of a table; that and the result in the units of `units`:
    see `fit`. A chunk that is better off with the table of the whole run than with one of its own gets that.
    """
    chunks = len(counts)
    pooled, shared, costs = np.zeros(256, np.int64), np.zeros(32, np.uint16), np.zeros((2, chunks), np.int64)
    own, mixed = 0, price
    for i in range(chunks):
        fit(counts[i], likely_bytes(counts[i]), steps, units, rows[i])
        costs[0, i] = _cost(counts[i], units, rows[i]) + price
        own += costs[0, i]
        for byte in range(256):
            pooled[byte] += counts[i, byte]
    if chunks == 1:
        return own
    fit(pooled, likely_bytes(pooled), steps, units, shared)
    for i in range(chunks):
        costs[1, i] = _cost(counts[i], units, shared)
        mixed += min(costs[0, i], costs[1, i])
    if own <= mixed:
        return own
    for i in range(chunks):
        if costs[1, i] <= costs[0, i]:
            for k in range(32):
                rows[i, k] = shared[k]
    return mixed


@inlined
def _cost(counts: NDArray[np.int64], units: NDArray[np.int64], row: NDArray[np.uint16]) -> int:
    escaped, cost = 0, 0
    for byte in range(256):
        escaped += counts[byte]
    for s in range(ESCAPE):
        if row[s] > 0:
            n = counts[row[16 + s]]
            escaped -= n
            cost += n * units[row[s]]
    total: int = cost + escaped * (units[row[ESCAPE]] + units[1])  # units[1] is eight bits
    return total


@kernel
def encode(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    streams: NDArray[np.int64],
    rows: NDArray[np.uint16],
    memory: NDArray[np.uint8],
    room: NDArray[np.uint8],
    nbytes: NDArray[np.int64],
    checksums: NDArray[np.uint64],
    xxh3: int,
) -> None:
    """Encode (coder 6) chunks with rows of tables [chunks, 32] to `room`, each to the end of where it lies in `packed`.

    memory: for the largest chunk as many bytes, half as many, and `encoded_bound` of that. xxh3: `xxh3_address()`. Fills
    `nbytes`: of the payload; 0 if it is not smaller than the chunk, and for rows of 0; and for payloads `checksums`.
    """
    for i in range(bounds.size - 1):
        nbytes[i] = 0
        if has_table(rows[i]):
            buffer, end = packed[bounds[i] : bounds[i + 1]], U(room.ctypes.data) + U(bounds[i + 1])
            escaped, nibbles, target = parts(memory, buffer.size)
            number = to_nibbles(buffer, rows[i], nibbles, escaped)
            size = ans_portable.encode_ans16(nibbles, streams[i], rows[i, :16], target)
            place(target, size, end, buffer.size - HEADER - number)
            nbytes[i] = join(escaped, number, size, end, buffer.size)
            checksums[i] = xxh3_at(U(xxh3), end - U(nbytes[i]), U(nbytes[i]))


@inlined
def has_table(row: NDArray[np.uint16]) -> bool:
    total = 0
    for s in range(16):
        total += I(row[s])
    return total > 0


@inlined
def parts(memory: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Places for escaped bytes, for symbols, and for what becomes of these."""
    half = (size + 1) // 2
    return memory[:size], memory[size : size + half], memory[size + half :]


@inlined
def join(escaped: NDArray[np.uint8], number: int, size: int, end: U, limit: int) -> int:
    """Put what comes in front of the symbols' `size` bytes, which end at `end`. Returns the payload's size, or 0 if not below."""
    total = HEADER + number + size
    if total >= limit:
        return 0
    begin = end - U(total)
    head = bytes_at(begin, HEADER)
    for k in range(HEADER):
        head[k] = number >> (8 * k) & 255
    copy_bytes(begin + U(HEADER), U(escaped.ctypes.data), U(number))
    return total
