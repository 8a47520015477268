"""Memory for what is decoded: many tensors in few large pieces, which the system can back with large pages.

A page that is touched for the first time costs as much as decoding its bytes. NumPy asks for large pages (2 MB instead of 4 KB)
for arrays of 4 MB and more only, but most tensors are smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

PIECE_NBYTES = 1 << 24
LARGE_NBYTES = 1 << 22  # NumPy asks for large pages itself
FEW_NBYTES = 1 << 20  # so much is taken array by array: one small tensor must not keep a piece alive
ALIGNMENT = 64


class _Pieces:
    """taken: bytes so far. rest: what is left of the last piece."""

    def __init__(self) -> None:
        self.taken = 0
        self.rest = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        self.taken += nbytes
        if nbytes >= LARGE_NBYTES or self.taken <= FEW_NBYTES:
            return np.empty(nbytes, np.uint8)
        if nbytes > self.rest.size:
            self.rest = np.empty(PIECE_NBYTES, np.uint8)
            self.rest = self.rest[-self.rest.ctypes.data % ALIGNMENT :]
        found, self.rest = self.rest[:nbytes], self.rest[-(-nbytes // ALIGNMENT) * ALIGNMENT :]
        return found


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
    return np.empty(nbytes, np.uint8) if pieces is None else pieces.take(nbytes)
