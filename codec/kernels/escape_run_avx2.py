"""The vector twins of the loops in `escape_run`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans16_encode_avx2 import NARROW, narrow, wide
from .ans_header import U
from .bits import count_bytes, sample_bytes
from .escape16 import ESCAPE, HEADER
from .escape16_avx2 import to_nibbles
from .escape_run import has_table, join, likely_bytes, parts, stands_for_all, take_sample
from .jit import inlined, kernel
from .nibbles_avx2 import count_nibbles
from .xxh3 import xxh3_at

_SMALL = 1 << 15  # bytes: below it that costs too much
_PIECES, _PIECE = 8, 256  # of the few that are looked at first
_NEARLY_ALL = 0.98  # each of the others is counted one by one


@kernel
def count(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    counts: NDArray[np.int64],
    memory: NDArray[np.uint8],
    estimated: NDArray[np.uint8],
) -> None:
    for i in range(bounds.size - 1):
        buffer = packed[bounds[i] : bounds[i + 1]]
        if estimated[i]:
            sample = take_sample(buffer, memory)
            _count(sample, counts[i], memory[sample.size :])
            estimated[i] = stands_for_all(counts[i], sample.size)
        if not estimated[i]:
            _count(buffer, counts[i], memory)


@inlined
def _count(buffer: NDArray[np.uint8], counts: NDArray[np.int64], memory: NDArray[np.uint8]) -> None:
    """Where 15 values make up nearly all of a few, bytes become symbols as in coder 6, which are counted in registers.

    0.44 cycles for a byte instead of 1.19.
    """
    if buffer.size >= _SMALL:
        row, few, likely = np.zeros(32, np.uint16), np.zeros(256, np.int64), np.zeros(256, np.int64)
        sample_bytes(buffer, _PIECES, _PIECE, few)
        number = 0
        for byte in likely_bytes(few):
            likely[byte] = 1
            number += few[byte]
        if number >= _NEARLY_ALL * _PIECES * _PIECE:
            s = 0
            for byte in range(256):
                if likely[byte]:
                    row[s], row[16 + s] = 1, byte
                    s += 1
            half = (buffer.size + 1) // 2
            nibbles, others = memory[:half], memory[half : half + buffer.size]
            rest, symbols = to_nibbles(buffer, row, nibbles, others), np.zeros(16, np.int64)
            count_nibbles(nibbles, symbols)
            symbols[0] -= buffer.size % 2  # the nibble behind the last byte
            for s in range(ESCAPE):
                counts[row[16 + s]] += symbols[s]
            count_bytes(others[:rest], counts)
            return
    count_bytes(buffer, counts)


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
    # Of one row the maximum of NumPy takes longer than that of Python.
    largest = max(rows[0, :16].tolist()) if len(rows) == 1 else rows[:, :16].max()
    encode_any = _encode_narrow if largest <= NARROW else _encode_wide
    encode_any(packed, bounds, streams, rows, memory, room, nbytes, checksums, xxh3)


@kernel
def _encode_narrow(
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
    for i in range(bounds.size - 1):
        nbytes[i] = 0
        if has_table(rows[i]):
            buffer, end = packed[bounds[i] : bounds[i + 1]], U(room.ctypes.data) + U(bounds[i + 1])
            escaped, nibbles, memory_left = parts(memory, buffer.size)
            number = to_nibbles(buffer, rows[i], nibbles, escaped)
            limit = buffer.size - HEADER - number
            size = narrow(nibbles, streams[i], rows[i, :16], memory_left, end, limit)
            nbytes[i] = join(escaped, number, size, end, buffer.size)
            checksums[i] = xxh3_at(U(xxh3), end - U(nbytes[i]), U(nbytes[i]))


@kernel
def _encode_wide(
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
    for i in range(bounds.size - 1):
        nbytes[i] = 0
        if has_table(rows[i]):
            buffer, end = packed[bounds[i] : bounds[i + 1]], U(room.ctypes.data) + U(bounds[i + 1])
            escaped, nibbles, memory_left = parts(memory, buffer.size)
            number = to_nibbles(buffer, rows[i], nibbles, escaped)
            limit = buffer.size - HEADER - number
            size = wide(nibbles, streams[i], rows[i, :16], memory_left, end, limit)
            nbytes[i] = join(escaped, number, size, end, buffer.size)
            checksums[i] = xxh3_at(U(xxh3), end - U(nbytes[i]), U(nbytes[i]))
