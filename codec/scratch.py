"""Memory that a thread uses again and again: the pages of a new buffer cost as much as filling them with codes."""

from __future__ import annotations

from threading import local

import numpy as np
from numpy.typing import NDArray

_thread = local()


def scratch(nbytes: int) -> NDArray[np.uint8]:
    """`nbytes` bytes with any content, uint8 `[nbytes]`; the next call of the same thread gives the same ones again."""
    memory: NDArray[np.uint8] | None = getattr(_thread, "memory", None)
    if memory is None or memory.size < nbytes:
        memory = _thread.memory = np.empty(nbytes, np.uint8)
    return memory[:nbytes]
