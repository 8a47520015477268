"""Memory for what is decoded: many tensors in few large pieces, which the system can back with large pages.

A page that is touched for the first time costs more than decoding its bytes: 4 KB as much as 10 KB. NumPy asks for large pages
(2 MB) for arrays of 4 MB and more only, and they cannot begin anywhere: an array that begins where one does has up to 500 small
ones less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

PIECE_NBYTES = 1 << 24
LARGE_NBYTES = 1 << 22  # NumPy asks for large pages
PAGE_NBYTES = 1 << 21  # a large one
FEW_NBYTES = (
    1 << 18
)  # so much, and the first array, is taken array by array: one small tensor must not keep a piece alive
ALIGNMENT = 64


class _Pieces:
    """taken: bytes so far. rest: what is left of the last piece."""

    def __init__(self) -> None:
        self.taken = 0
        self.rest = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        first = not self.taken
        self.taken += nbytes
        if nbytes >= LARGE_NBYTES or first or self.taken <= FEW_NBYTES:
            return on_large_pages(nbytes)
        if nbytes > self.rest.size:
            self.rest = on_large_pages(PIECE_NBYTES)
        found, self.rest = self.rest[:nbytes], self.rest[-(-nbytes // ALIGNMENT) * ALIGNMENT :]
        return found


def on_large_pages(nbytes: int) -> NDArray[np.uint8]:
    """Like `np.empty`: uint8 `[nbytes]`, which begins where a large page does if NumPy asks for these."""
    if nbytes < LARGE_NBYTES:
        return np.empty(nbytes, np.uint8)
    # The last page is large where the array is, too: what is more than the array is then a small share of it.
    more = 2 * PAGE_NBYTES if nbytes >= PIECE_NBYTES else PAGE_NBYTES
    memory = np.empty(nbytes + more, np.uint8)
    return memory[-memory.ctypes.data % PAGE_NBYTES :][:nbytes]


_pieces: ContextVar[_Pieces | None] = ContextVar("pieces", default=None)


@contextmanager
def shared_pages() -> Iterator[None]:
    """Inside, arrays of `empty` share pieces of memory. A piece lives as long as any of its arrays."""
    token = _pieces.set(_Pieces())
    try:
        yield
    finally:
        _pieces.reset(token)


def empty(nbytes: int) -> NDArray[np.uint8]:
    """Like `np.empty`: uint8 `[nbytes]`."""
    pieces = _pieces.get()
    return on_large_pages(nbytes) if pieces is None else pieces.take(nbytes)
