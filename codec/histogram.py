"""How often each byte or code occurs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import InvalidArgumentError
from .tensor import packed_nbytes


def byte_counts(buffer: Buffer) -> NDArray[np.int64]:
    """Number of each byte value in the buffer: int64 `[256]`."""
    from .kernels import bits

    counts = np.zeros(256, np.int64)
    bits.count_bytes(read_only(buffer), counts)
    return counts


def nibble_counts(buffer: Buffer) -> NDArray[np.int64]:
    """Number of each nibble value in the buffer, low and high ones alike: int64 `[16]`."""
    from .kernels.select import count_nibbles

    counts = np.zeros(16, np.int64)
    count_nibbles()(read_only(buffer), counts)
    return counts


def code_counts(packed: Buffer, count: int, storage_bits: int) -> NDArray[np.int64]:
    """Number of each code among the first `count` codes of a packed buffer: int64 `[2**storage_bits]`.

    Raises InvalidArgumentError if the buffer does not hold `count` codes.

    >>> code_counts(bytes([0b11_01_00_00, 0b01]), 5, 2).tolist()
    [2, 2, 0, 1]
    """
    from .packing import unpack_codes

    buffer = read_only(packed)
    whole = count * storage_bits // 8
    rest = count - whole * 8 // storage_bits
    if count < 0 or packed_nbytes(count, storage_bits) > buffer.size:
        raise InvalidArgumentError(f"{buffer.size} bytes do not hold {count} codes of {storage_bits} bits")
    counts = (
        byte_counts(buffer[:whole]) if storage_bits == 8 else fold_counts(nibble_counts(buffer[:whole]), storage_bits)
    )
    tail = unpack_codes(buffer, rest, storage_bits, start=count - rest)
    return counts + np.bincount(tail, minlength=counts.size)


def fold_counts(counts: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Counts of bytes or nibbles (int64 `[256]` or `[16]`) as those of the symbols of `width` bits in them: int64 `[2**width]`."""
    levels = 1 << width
    folded = np.zeros(levels, np.int64)
    digit = 1
    while digit < counts.size:  # symbol = high, digit, low: sum over all but the digit
        folded += counts.reshape(-1, levels, digit).sum(axis=(0, 2))
        digit *= levels
    return folded
