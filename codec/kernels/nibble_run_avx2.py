"""The vector twins of the loops in `nibble_run`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans16_encode_avx2 import NARROW, narrow, wide
from .jit import kernel
from .nibble_run import coded, place, sample
from .nibbles_avx2 import count_nibbles


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
        count_nibbles(buffer, counts[i])
        varied[i] = sample(buffer, samples[i])


def encode(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    streams: NDArray[np.int64],
    frequencies: NDArray[np.uint16],
    memory: NDArray[np.uint8],
    room: NDArray[np.uint8],
    nbytes: NDArray[np.int64],
) -> None:
    encode_any = _encode_narrow if frequencies.max() <= NARROW else _encode_wide
    encode_any(packed, bounds, streams, frequencies, memory, room, nbytes)


@kernel
def _encode_narrow(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    streams: NDArray[np.int64],
    frequencies: NDArray[np.uint16],
    memory: NDArray[np.uint8],
    room: NDArray[np.uint8],
    nbytes: NDArray[np.int64],
) -> None:
    for i in range(bounds.size - 1):
        nbytes[i] = 0
        if coded(frequencies[i]):
            buffer = packed[bounds[i] : bounds[i + 1]]
            size = narrow(buffer, streams[i], frequencies[i], memory)
            nbytes[i] = place(memory, size, room, bounds[i], buffer.size)


@kernel
def _encode_wide(
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    streams: NDArray[np.int64],
    frequencies: NDArray[np.uint16],
    memory: NDArray[np.uint8],
    room: NDArray[np.uint8],
    nbytes: NDArray[np.int64],
) -> None:
    for i in range(bounds.size - 1):
        nbytes[i] = 0
        if coded(frequencies[i]):
            buffer = packed[bounds[i] : bounds[i + 1]]
            size = wide(buffer, streams[i], frequencies[i], memory)
            nbytes[i] = place(memory, size, room, bounds[i], buffer.size)
