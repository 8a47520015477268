"""Byte buffers as kernels take them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Buffer: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]


def read_only(buffer: Buffer) -> NDArray[np.uint8]:
    """A read-only 1-D uint8 view of any contiguous buffer (a copy only of a strided array).

    Kernels are compiled once per type of array, and read-only is part of the type: always passing inputs as
    read-only spares the second compilation.
    """
    array = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    if array.ndim == 1 and array.flags.c_contiguous and array.dtype == np.uint8:
        if not array.flags.writeable:
            return array
        view = array.view()
    else:
        view = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    view.flags.writeable = False
    return view
