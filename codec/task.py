"""One chunk for the decoding kernels: addresses and sizes, for they loop over chunks of many tensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# table: address of its table in a parsed bank, 0 without. out, size: its packed buffer. unused: bits of a packed byte that no
# code may have set. spare: unused high bits of the last byte. checksum: of the payload. xxh3: `kernels.xxh3.xxh3_address()`,
# or 0 for a payload that need not be compared. ahead, ranges: address of rows (address, bytes, any number) and how many there
# are: memory that will be read next, and that may be brought into the caches.
TASK = np.dtype(
    [
        (name, "<u8")
        for name in (
            *("payload", "nbytes", "streams", "table", "out", "size", "unused", "spare"),
            *("checksum", "xxh3", "ahead", "ranges"),
        )
    ]
)


def decode_one(
    coder: int, payload: NDArray[np.uint8], table: NDArray[np.uint16], streams: int, out: NDArray[np.uint8]
) -> int:
    """Decode one payload into `out` (uint8, C-contiguous, writable); returns a number of `kernels.status`.

    table: as in a row of `Coder.parse_bank`.
    """
    from .kernels.select import batch_kernels

    task = np.zeros(1, TASK)
    place = payload.ctypes.data, payload.size, streams, table.ctypes.data, out.ctypes.data, out.size
    task[0] = *place, 0, 0, 0, 0, 0, 0
    status = np.zeros(1, np.int64)
    batch_kernels()[coder](task, status)
    return int(status[0])
