"""The part of a tensor that stands for all of it: blocks of whole rows, evenly spread. All of it, if it is not too large."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.tensor import matrix_shape

BLOCKS = 16
ALL_WEIGHTS = 1 << 28  # models of up to so many weights are measured in full unless a sample is asked for
SAMPLE_WEIGHTS = 1 << 20  # of each tensor of a larger one
_BYTES = 1 << 12  # a row of what is no matrix of numbers


@dataclass(frozen=True)
class Part:
    """weights: `[rows, columns]` of the file's dtype, a view of the file or a copy. share: of the tensor's elements, 0 .. 1."""

    weights: NDArray[Any]
    share: float


def sample_size(sizes: Iterable[int], asked: int | None) -> int | None:
    """How many weights to take of each tensor, None for all: as asked (0 means all), or by the size of the model."""
    if asked is not None:
        return asked or None
    return None if sum(sizes) <= ALL_WEIGHTS else SAMPLE_WEIGHTS


def take_part(array: NDArray[Any], most: int | None) -> Part:
    """About `most` weights of a tensor; its rows are dimension 0. A row is never cut: at least one is taken."""
    matrix = array.reshape(matrix_shape(array.shape))
    rows, columns = matrix.shape
    if most is None or matrix.size <= most:
        return Part(matrix, 1.0)
    take = max(1, most // max(1, columns))
    blocks = row_blocks(rows, take)
    return Part(np.concatenate([matrix[start:stop] for start, stop in blocks]), take / rows)


def take_bytes(raw: NDArray[np.uint8], most: int | None) -> NDArray[np.uint8]:
    """About `most` bytes, in the same way."""
    if most is None or raw.size <= max(most, _BYTES):
        return raw
    return take_part(raw[: raw.size // _BYTES * _BYTES].reshape(-1, _BYTES), most).weights.reshape(-1)


def row_blocks(rows: int, take: int, blocks: int = BLOCKS) -> list[tuple[int, int]]:
    """`take` of `rows` rows as ranges of consecutive ones, evenly spread from the first row to the last.

    >>> row_blocks(100, 6, blocks=3)
    [(0, 2), (49, 51), (98, 100)]
    """
    blocks = min(blocks, take)
    sizes = [take // blocks + (i < take % blocks) for i in range(blocks)]
    room = rows - take  # rows left out, spread between the blocks
    gaps = [round(i * room / max(1, blocks - 1)) for i in range(blocks)]
    starts = [sum(sizes[:i]) + gaps[i] for i in range(blocks)]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def with_extremes(array: NDArray[Any], part: Part) -> Part:
    """The part and the rows of the largest and the smallest weight, which decide a scale for the whole tensor."""
    if part.share >= 1.0:
        return part
    matrix = array.reshape(matrix_shape(array.shape))
    step = max(1, (1 << 20) // max(1, matrix.shape[1]))
    slabs = [matrix[i : i + step] for i in range(0, len(matrix), step)]
    highs = np.concatenate([slab.max(axis=1).astype(np.float32) for slab in slabs])
    lows = np.concatenate([slab.min(axis=1).astype(np.float32) for slab in slabs])
    more = sorted({int(highs.argmax()), int(lows.argmin())})
    rows = np.concatenate([part.weights, matrix[more]])
    return Part(rows, len(rows) / len(matrix))
