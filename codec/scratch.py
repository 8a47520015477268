"""Memory that a thread uses again and again: the pages of a new buffer cost as much as filling them with codes."""

from __future__ import annotations

from threading import local

import numpy as np
from numpy.typing import NDArray

from .pages import on_large_pages

MAX_NBYTES = 1 << 26  # of what is kept

_thread = local()


def scratch(nbytes: int) -> NDArray[np.uint8]:
    """`nbytes` bytes with any content, uint8 `[nbytes]`; the next call of the same thread gives the same ones again."""
    return _kept("memory", nbytes)


def workspace(nbytes: int) -> NDArray[np.uint8]:
    """The same with other bytes: for what calls `scratch` while it uses them."""
    return _kept("workspace", nbytes)


def _kept(name: str, nbytes: int) -> NDArray[np.uint8]:
    memory: NDArray[np.uint8] | None = getattr(_thread, name, None)
    if memory is None or memory.size < nbytes:
        memory = on_large_pages(nbytes)
        if nbytes <= MAX_NBYTES:
            setattr(_thread, name, memory)
    return memory[:nbytes]
