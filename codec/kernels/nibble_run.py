"""All chunks of a run, or some of them, coded by nibbles in one call: the loop over chunks is compiled.

Chunk i of a call is bytes bounds[i] .. bounds[i + 1] - 1 of `packed`. The vector twins are in `nibble_run_avx2`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import ans_portable
from .ans_header import I, U
from .batch import copy_bytes
from .bits import estimate_nibbles
from .jit import inlined, kernel
from .xxh3 import xxh3_at

# A sample: 4 KB in 8 pieces, of chunks that are at least twice as large. What pairs seem to save is 0.2 % too much in one of
# them, for rare values are seen too often or not at all, and a table of bytes costs more; in eight it is 0.02 %.
PIECES, PIECE = 8, 512


@kernel
def survey(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    counts: NDArray[np.int64],
    samples: NDArray[np.int64],
    varied: NDArray[np.uint8],
) -> None:
    """Count nibbles (`counts` [chunks, 16], see `estimate_nibbles`) and a sample of the bytes ([chunks, 256]).

    Both are zeros before. varied: 0 where all bytes are the same; else for how many bytes each stands that has been counted.
    """
    for i in range(bounds.size - 1):
        buffer = packed[bounds[i] : bounds[i + 1]]
        weight = estimate_nibbles(buffer, counts[i])
        varied[i] = weight * sample(buffer, samples[i])


@inlined
def piece_start(buffer: NDArray[np.uint8], i: int, pieces: int, size: int) -> int:
    return (buffer.size - size) * i // max(1, pieces - 1)


@inlined
def sample(buffer: NDArray[np.uint8], counts: NDArray[np.int64]) -> int:
    """Count some bytes; returns whether not all of the buffer are the same."""
    pieces, size = (PIECES, PIECE) if buffer.size >= 2 * PIECES * PIECE else (1, buffer.size)
    for i in range(pieces):
        start = piece_start(buffer, i, pieces, size)
        for at in range(start, start + size):
            counts[buffer[U(at)]] += 1
    for at in range(1, buffer.size):
        if buffer[U(at)] != buffer[0]:
            return 1
    return 0


@kernel
def encode(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    streams: NDArray[np.int64],
    frequencies: NDArray[np.uint16],
    memory: NDArray[np.uint8],
    room: NDArray[np.uint8],
    nbytes: NDArray[np.int64],
    checksums: NDArray[np.uint64],
    xxh3: int,
) -> None:
    """Encode (coder 2) chunks with frequencies [chunks, 16] to `room`, each to the end of where it lies in `packed`.

    memory: `encoded_bound` of the largest chunk. xxh3: `xxh3_address()`. Fills `nbytes`: of the payload; 0 if it is not smaller
    than the chunk, and for frequencies of 0; -1 if a nibble of frequency 0 occurs; and for payloads `checksums`.
    """
    for i in range(bounds.size - 1):
        nbytes[i] = 0
        if coded(frequencies[i]):
            buffer, end = packed[bounds[i] : bounds[i + 1]], U(room.ctypes.data) + U(bounds[i + 1])
            size = ans_portable.encode_ans16(buffer, streams[i], frequencies[i], memory)
            place(memory, size, end, buffer.size)
            nbytes[i] = finished(size, buffer.size)
            checksums[i] = xxh3_at(U(xxh3), end - U(nbytes[i]), U(nbytes[i]))


@inlined
def coded(frequencies: NDArray[np.uint16]) -> bool:
    """Whether there is a table."""
    total = 0
    for s in range(16):
        total += I(frequencies[s])
    return total > 0


@inlined
def place(memory: NDArray[np.uint8], size: int, end: U, limit: int) -> None:
    """Copy a payload from the end of `memory` to where `end` is behind it, if it is below the limit."""
    if 0 < size < limit:
        copy_bytes(end - U(size), U(memory.ctypes.data) + U(memory.size - size), U(size))


@inlined
def finished(size: int, limit: int) -> int:
    return size if size < limit else 0
