"""All chunks of a run, or some of them, coded by nibbles in one call: the loop over chunks is compiled.

Chunk i of a call is bytes bounds[i] .. bounds[i + 1] - 1 of `packed`. The vector twins are in `nibble_run_avx2`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import ans_portable
from .ans_header import I, U
from .batch import copy_bytes
from .bits import count_nibbles
from .jit import inlined, kernel

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
    """Count nibbles (`counts` [chunks, 16]) and a sample of the bytes ([chunks, 256]); whether not all bytes are the same.

    Counts are added to what the arrays hold.
    """
    for i in range(bounds.size - 1):
        buffer = packed[bounds[i] : bounds[i + 1]]
        count_nibbles(buffer, counts[i])
        varied[i] = sample(buffer, samples[i])


@inlined
def sample(buffer: NDArray[np.uint8], counts: NDArray[np.int64]) -> int:
    """Count some bytes; returns whether not all of the buffer are the same."""
    pieces, size = (PIECES, PIECE) if buffer.size >= 2 * PIECES * PIECE else (1, buffer.size)
    different, first = 0, buffer[0]
    for i in range(pieces):
        start = (buffer.size - size) * i // max(1, pieces - 1)
        for at in range(start, start + size):
            byte = buffer[U(at)]
            counts[byte] += 1
            different |= byte ^ first
    at = 1
    while different == 0 and at < buffer.size:
        different |= buffer[U(at)] ^ first
        at += 1
    return 1 if different else 0


@kernel
def encode(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    streams: NDArray[np.int64],
    frequencies: NDArray[np.uint16],
    memory: NDArray[np.uint8],
    room: NDArray[np.uint8],
    nbytes: NDArray[np.int64],
) -> None:
    """Encode (coder 2) chunks with frequencies [chunks, 16] to `room`, each to where it lies in `packed`.

    memory: `encoded_bound` of the largest chunk. Fills `nbytes`: of the payload; 0 if it is not smaller than the chunk, and
    for frequencies of 0: then `room` is as it was.
    """
    for i in range(bounds.size - 1):
        nbytes[i] = 0
        if coded(frequencies[i]):
            buffer = packed[bounds[i] : bounds[i + 1]]
            size = ans_portable.encode_ans16(buffer, streams[i], frequencies[i], memory)
            nbytes[i] = place(memory, size, room, bounds[i], buffer.size)


@inlined
def coded(frequencies: NDArray[np.uint16]) -> bool:
    """Whether there is a table."""
    total = 0
    for s in range(16):
        total += I(frequencies[s])
    return total > 0


@inlined
def place(memory: NDArray[np.uint8], size: int, room: NDArray[np.uint8], at: int, limit: int) -> int:
    if size >= limit:
        return 0
    copy_bytes(U(room.ctypes.data) + U(at), U(memory.ctypes.data) + U(memory.size - size), U(size))
    return size
