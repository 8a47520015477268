"""Codes, one per byte, to and from packed buffers of 1, 2, 4 or 8 bits per code, low bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .buffers import Buffer, read_only
from .errors import InvalidArgumentError
from .tensor import packed_nbytes


def pack_codes(codes: NDArray[np.uint8], storage_bits: int) -> NDArray[np.uint8]:
    """Pack uint8 codes of any shape, row-major; returns uint8 `[packed_nbytes(codes.size, storage_bits)]`.

    Raises InvalidArgumentError for another dtype, and for codes that do not fit `storage_bits` bits.

    >>> pack_codes(np.array([1, 2, 3], np.uint8), 4).tolist()
    [33, 3]
    """
    from .kernels import bits

    _check_width(storage_bits)
    if codes.dtype != np.uint8:
        raise InvalidArgumentError(f"codes must be uint8, got {codes.dtype}")
    packed = np.empty(packed_nbytes(codes.size, storage_bits), np.uint8)
    seen = bits.pack(read_only(codes), storage_bits, packed)
    if seen >> storage_bits:
        raise InvalidArgumentError(f"a code does not fit {storage_bits} bits: the largest is {codes.max()}")
    return packed


def unpack_codes(
    packed: Buffer, count: int, storage_bits: int, start: int = 0, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Codes `start .. start + count - 1` of a packed buffer, one per byte: uint8 `[count]`.

    `start` may lie inside a byte. `out` (uint8, C-contiguous, `count` elements) is filled and returned when given.
    Raises InvalidArgumentError if the buffer does not hold these codes.

    >>> unpack_codes(bytes([33, 3]), 2, 4, start=1).tolist()
    [2, 3]
    """
    from .kernels import bits

    _check_width(storage_bits)
    source = read_only(packed)
    if start < 0 or count < 0 or packed_nbytes(start + count, storage_bits) > source.size:
        raise InvalidArgumentError(
            f"{source.size} bytes hold {source.size * 8 // storage_bits} codes; asked for {start} to {start + count}"
        )
    if out is None:
        out = np.empty(count, np.uint8)
    elif out.dtype != np.uint8 or out.size != count or not out.flags.c_contiguous:
        raise InvalidArgumentError(f"out must be C-contiguous uint8 with {count} elements")
    bits.unpack(source, storage_bits, start, out.reshape(-1))
    return out


def slice_packed(packed: NDArray[np.uint8], start: int, count: int, storage_bits: int) -> NDArray[np.uint8]:
    """Codes `start .. start + count - 1` as a packed buffer of their own: uint8 `[packed_nbytes(count, storage_bits)]`.

    Raises InvalidArgumentError if the buffer does not hold these codes.
    """
    if start * storage_bits % 8 or start < 0 or count < 0 or packed_nbytes(start + count, storage_bits) > packed.size:
        return pack_codes(unpack_codes(packed, count, storage_bits, start), storage_bits)
    first = start * storage_bits // 8
    result = packed[first : first + packed_nbytes(count, storage_bits)].copy()
    if count * storage_bits % 8:
        result[-1] &= (1 << count * storage_bits % 8) - 1
    return result


def _check_width(storage_bits: int) -> None:
    if storage_bits not in (1, 2, 4, 8):
        raise InvalidArgumentError(f"storage_bits is {storage_bits}; packed codes have 1, 2, 4 or 8 bits")
