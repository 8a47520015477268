"""What precedes the decoding of pieces of tensors, for many chunks in one call: see `codec.joined`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ans_header import I, U
from .escape16 import HEADER
from .jit import kernel
from .status import OK, WRONG_CHECKSUM
from .xxh3 import word32_at, xxh3_at

NONE = 2**64 - 1


@kernel
def compare(sources: NDArray[np.uint64], status: NDArray[np.int64], xxh3: int) -> None:
    """Fill `status`. sources: of each chunk the address of its bytes, their number, their checksum. xxh3: as in a TASK."""
    for i in range(len(sources)):
        same = xxh3_at(U(xxh3), sources[i, 0], sources[i, 1]) == sources[i, 2]
        status[i] = OK if same else WRONG_CHECKSUM


@kernel
def only_nibbles(tasks: NDArray[Any], joins: NDArray[np.uint64], escaped: NDArray[np.uint64]) -> None:
    """Make tasks of coder 6, those of `joins`, some of coder 2. Fills `escaped`: how many bytes have no symbol in each.

    joins: see `join_escaped_avx2`. Where there are not as many it is NONE, and the payload empty.
    """
    for i in range(len(joins)):
        t: Any = tasks[I(joins[i, 0])]
        escaped[i], skipped = U(NONE), t.nbytes
        if t.nbytes >= U(HEADER):
            count = word32_at(t.payload)
            if count <= t.nbytes - U(HEADER):
                escaped[i], skipped = count, U(HEADER) + count
        t.payload += skipped
        t.nbytes -= skipped
        t.size = (t.size + U(1)) >> U(1)
