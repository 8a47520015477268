"""Splitting and joining small tensors without compiled code: scales of most matrices are not worth waiting for a compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL_NBYTES = 1 << 18
ROTATABLE = (1, 2, 4, 8)  # bytes of a record that is a word
Fields = tuple[tuple[int, int], ...]


def is_small(fields: Fields, record_nbytes: int, nbytes: int) -> bool:
    """Whether the functions here can do it: words, in nibbles and bytes, and not too many."""
    return nbytes <= SMALL_NBYTES and record_nbytes in ROTATABLE and all(bits in (4, 8) for bits, _ in fields)


def split_words(data: NDArray[np.uint8], fields: Fields, rotate: bool, planes: Sequence[NDArray[np.uint8]]) -> None:
    """Fill the packed planes of records that follow one another: `records.split` for those that `is_small` takes."""
    words = _words(data, fields)
    size = words.dtype.itemsize * 8
    if rotate:
        words = words << words.dtype.type(1) | words >> words.dtype.type(size - 1)
    offset = 0
    for (bits, count), plane in zip(fields, planes, strict=True):
        codes = np.empty((words.size, count), np.uint8)
        for i in range(count):
            codes[:, i] = words >> words.dtype.type(offset) & words.dtype.type((1 << bits) - 1)
            offset += bits
        flat = codes.reshape(-1)
        if bits == 8:
            plane[:] = flat
        else:
            plane[:] = flat[0::2]
            plane[: flat.size // 2] |= flat[1::2] << 4


def join_words(planes: Sequence[NDArray[np.uint8]], fields: Fields, rotate: bool, out: NDArray[np.uint8]) -> None:
    """Fill `out` from packed planes: undoes `split_words`."""
    target = _words(out, fields)
    kind, size = target.dtype.type, target.dtype.itemsize * 8
    words = np.zeros(target.size, target.dtype)
    offset = 0
    for (bits, count), plane in zip(fields, planes, strict=True):
        codes = plane if bits == 8 else np.stack([plane & 15, plane >> 4], 1).reshape(-1)[: target.size * count]
        for i in range(count):
            words |= codes[i::count].astype(target.dtype) << kind(offset)
            offset += bits
    target[:] = words >> kind(1) | words << kind(size - 1) if rotate else words


def _words(data: NDArray[np.uint8], fields: Fields) -> NDArray[Any]:
    nbytes = sum(bits * count for bits, count in fields) // 8
    return data.view(np.dtype(f"<u{nbytes}"))
