"""The beginning of a payload of coders 2 and 3 (SPEC section 5): sizes of the streams, and states in as few bits as they have.

Plain integer code for both sets of kernels. Nothing is read before it is known to be there: loops over the bits of the
states read up to two bytes too far, and take the last byte of the array instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import inlined
from .status import BAD_STREAMS, HEADER_TRUNCATED, OK, SIZE_MISMATCH

# numba makes float64 of a mixed uint64 and int64, so states and their arithmetic are all uint64. (Any: to a type
# checker these are numpy scalars, to numba plain machine integers.)
U: Any = np.uint64
I: Any = np.int64  # noqa: E741
LANES = 32
LENGTHS, LOW = LANES // 2, 2 * LANES  # bytes of the first two parts of a stream's states
HEADER = 4 + LENGTHS + LOW + LANES * 15 // 8  # bytes per stream, at most


@inlined
def stream_share(nbytes: int, streams: int) -> int:
    """Bytes that a stream covers."""
    return (nbytes + LANES * streams - 1) // (LANES * streams) * LANES


@inlined
def read_sizes(payload: NDArray[np.uint8], streams: int, nbytes: int, starts: NDArray[np.int64]) -> int:
    """Check the sizes of a payload that decodes to `nbytes` bytes.

    Fills `starts` (256): where the words of stream k begin at k, and where those of the last end behind it.
    """
    if streams < 1 or streams > 255 or (streams - 1) * stream_share(nbytes, streams) >= nbytes:
        return BAD_STREAMS
    at = 4 * (streams - 1)
    for _ in range(streams):
        if at + LENGTHS + LOW > payload.size:
            return HEADER_TRUNCATED
        at += LENGTHS + LOW + _high_nbytes(payload, at)
    if at > payload.size:
        return HEADER_TRUNCATED
    for k in range(streams - 1):
        starts[k] = at
        at += 2 * _u32(payload, 4 * k)
    starts[streams - 1], starts[streams] = at, payload.size
    if at > payload.size or (payload.size - at) & 1:
        return SIZE_MISMATCH
    return OK


@inlined
def _u32(data: NDArray[np.uint8], at: int) -> int:
    i = U(at)
    word: int = I(U(data[i]) | U(data[i + U(1)]) << U(8) | U(data[i + U(2)]) << U(16) | U(data[i + U(3)]) << U(24))
    return word


@inlined
def _high_nbytes(payload: NDArray[np.uint8], at: int) -> int:
    bits = 0
    for i in range(LENGTHS):
        bits += (payload[at + i] & 15) + (payload[at + i] >> 4)
    return (bits + 15) // 16 * 2


@inlined
def unpack_states(payload: NDArray[np.uint8], at: int, x: NDArray[np.uint64]) -> int:
    """Fill `x` (32) with the states that begin at `at`. Returns where they end, or -1 if unused bits are not zero."""
    first, last = U(at + LENGTHS + LOW), U(payload.size - 1)
    bit = U(0)
    for lane in range(LANES):
        e = U(payload[U(at + (lane >> 1))]) >> U(4 * (lane & 1)) & U(15)
        i = first + (bit >> U(3))
        window = U(payload[min(i, last)])
        window |= U(payload[min(i + U(1), last)]) << U(8) | U(payload[min(i + U(2), last)]) << U(16)
        high = U(1) << e | window >> (bit & U(7)) & ((U(1) << e) - U(1))
        low = U(at + LENGTHS + 2 * lane)
        x[lane] = high << U(16) | U(payload[low + U(1)]) << U(8) | U(payload[low])
        bit += e
    end = I(first) + I((bit + U(15)) >> U(4) << U(1))
    unused = U(0)
    while bit & U(15):  # ends where the bytes of the states do
        unused |= U(payload[first + (bit >> U(3))]) >> (bit & U(7)) & U(1)
        bit += U(1)
    return -1 if unused else end


@inlined
def put_sizes(words: NDArray[np.uint64], dst: NDArray[np.uint8], end: int) -> int:
    """Write the sizes of the streams in front of their states. Returns where the payload begins."""
    begin = end - 4 * (words.size - 1)
    for k in range(words.size - 1):
        for i in range(4):
            dst[begin + 4 * k + i] = words[k] >> U(8 * i) & U(255)
    return begin


@inlined
def pack_states(x: NDArray[np.uint64], dst: NDArray[np.uint8], end: int) -> int:
    """Write states (`x` [32]) in front of `end`. Returns where they begin."""
    bits = U(0)
    for lane in range(LANES):
        bits += _length(x[lane] >> U(16))
    first = U(end) - ((bits + U(15)) >> U(4) << U(1))
    at, last = first - U(LENGTHS + LOW), U(dst.size - 1)
    for i in range(I(first), end):
        dst[i] = 0
    bit = U(0)
    for lane in range(LANES):
        h = x[lane] >> U(16)
        e = _length(h)
        place = at + U(lane >> 1)
        dst[place] = e if lane & 1 == 0 else U(dst[place]) | e << U(4)
        low = at + U(LENGTHS + 2 * lane)
        dst[low], dst[low + U(1)] = x[lane] & U(255), x[lane] >> U(8) & U(255)
        window, i = (h - (U(1) << e)) << (bit & U(7)), first + (bit >> U(3))
        for j in range(3):  # what lies behind the states' end is not changed, for the bits there are zero
            dst[min(i + U(j), last)] |= window >> U(8 * j) & U(255)
        bit += e
    begin: int = I(at)
    return begin


@inlined
def _length(h: U) -> U:
    """floor(log2(h)) for h = 1 .. 2^16 - 1."""
    a = (U(255) - h) >> U(63) << U(3)  # a borrow bit for each power of two
    h >>= a
    b = (U(15) - h) >> U(63) << U(2)
    h >>= b
    c = (U(3) - h) >> U(63) << U(1)
    return a | b | c | (U(1) - (h >> c)) >> U(63)
