"""The vector twins of the loops in `nibble_run`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans16_encode_avx2 import NARROW, narrow, wide
from .ans_header import U
from .jit import kernel
from .nibble_run import PIECE, PIECES, coded, finished, piece_start, sample
from .nibbles_avx2 import estimate_nibbles
from .simd import prefetch
from .xxh3 import xxh3_at


@kernel
def survey(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    counts: NDArray[np.int64],
    samples: NDArray[np.int64],
    varied: NDArray[np.uint8],
) -> None:
    for i in range(bounds.size - 1):
        buffer = packed[bounds[i] : bounds[i + 1]]
        for k in range(PIECES):  # of the sample, by the time that it is taken
            start = U(buffer.ctypes.data) + U(piece_start(buffer, k, PIECES, PIECE))
            for line in range(0, PIECE, 64):
                prefetch(start + U(line))
        weight = estimate_nibbles(buffer, counts[i])
        varied[i] = weight * sample(buffer, samples[i])


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
    encode_any = _encode_narrow if frequencies.max() <= NARROW else _encode_wide
    encode_any(packed, bounds, streams, frequencies, memory, room, nbytes, checksums, xxh3)


@kernel
def _encode_narrow(
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
    for i in range(bounds.size - 1):
        nbytes[i] = 0
        if coded(frequencies[i]):
            buffer, end = packed[bounds[i] : bounds[i + 1]], U(room.ctypes.data) + U(bounds[i + 1])
            nbytes[i] = finished(narrow(buffer, streams[i], frequencies[i], memory, end, buffer.size), buffer.size)
            checksums[i] = xxh3_at(U(xxh3), end - U(nbytes[i]), U(nbytes[i]))


@kernel
def _encode_wide(
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
    for i in range(bounds.size - 1):
        nbytes[i] = 0
        if coded(frequencies[i]):
            buffer, end = packed[bounds[i] : bounds[i + 1]], U(room.ctypes.data) + U(bounds[i + 1])
            nbytes[i] = finished(wide(buffer, streams[i], frequencies[i], memory, end, buffer.size), buffer.size)
            checksums[i] = xxh3_at(U(xxh3), end - U(nbytes[i]), U(nbytes[i]))
