"""Whether packed codes lie in their grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .tensor import QuantizationArgs


def range_problem(packed: NDArray[np.uint8], count: int, args: QuantizationArgs) -> str | None:
    """What is wrong with a packed buffer of `count` codes (uint8 `[packed_nbytes(count, args.storage_bits)]`), or None.

    Codes above `2**num_bits - 1` are, and anything but zero behind the last code.
    """
    width = args.storage_bits
    unused = sum(((1 << width) - (1 << args.num_bits)) << shift for shift in range(0, 8, width))
    if unused and np.any(packed & np.uint8(unused)):
        return f"a code is larger than {(1 << args.num_bits) - 1}"
    spare = len(packed) * 8 - count * width
    if spare and packed[-1] >> (8 - spare):
        return "bits behind the last code are not 0"
    return None
