"""Tensors with few different values in a wide dtype, as indices into the list of these values (SPEC section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .buffers import read_only
from .errors import CorruptionError, InvalidArgumentError
from .packing import unpack_codes
from .tensor import packed_nbytes

MAX_VALUES = 256
ELEMENT_NBYTES = (1, 2, 4, 8)
_SLAB = 1 << 17  # elements whose indices are in cache, one per byte


def index_bits(values: int) -> int:
    """Bits of an index into a palette of `values` values."""
    return max(1, (values - 1).bit_length())


def index_width(values: int) -> int:
    """Bits of an index in the packed plane: 1, 2, 4 or 8."""
    return 1 << (index_bits(values) - 1).bit_length()


def find_palette(data: NDArray[np.uint8], element_nbytes: int, limit: int = MAX_VALUES) -> NDArray[np.uint8] | None:
    """The different elements of a tensor's bytes, sorted as unsigned integers: uint8 `[p, element_nbytes]`.

    None if there are more than `limit` (at most 256), or no elements, or elements of other sizes than 1, 2, 4 and 8 bytes.
    Gives up where it meets the first value too many: mostly after some hundred.

    >>> find_palette(np.array([1, 0, -1, 0], np.int16).view(np.uint8), 2).tolist()
    [[0, 0], [1, 0], [255, 255]]
    """
    from .kernels.palette import collect

    if not 1 <= limit <= MAX_VALUES:
        raise InvalidArgumentError(f"a palette has 1 to {MAX_VALUES} values, not {limit}")
    if element_nbytes not in ELEMENT_NBYTES or data.size == 0 or data.size % element_nbytes:
        return None
    values = np.empty(limit, np.uint64)
    count = collect(read_only(data), element_nbytes, limit, values)
    if count < 0:
        return None
    return np.sort(values[:count]).astype("<u8").view(np.uint8).reshape(count, 8)[:, :element_nbytes].copy()


def indices(data: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where each element of a tensor's bytes is in its palette: a packed plane, `index_width` bits for each.

    Raises InvalidArgumentError if one is not there, or the palette is none.
    """
    from .kernels.bits import pack
    from .kernels.palette import look_up

    size = _check(palette)
    if data.size % size:
        raise InvalidArgumentError(f"{data.size} bytes are no whole number of elements of {size} bytes")
    width, source = index_width(len(palette)), read_only(data)
    wide = np.zeros((len(palette), 8), np.uint8)
    wide[:, :size] = palette
    values = wide.view("<u8").reshape(-1).astype(np.uint64)
    packed = np.empty(packed_nbytes(source.size // size, width), np.uint8)
    slab = np.empty(_SLAB, np.uint8)
    for start in range(0, source.size // size, _SLAB):
        stop = min(start + _SLAB, source.size // size)
        codes = slab[: stop - start]
        if not look_up(source[start * size : stop * size], size, values, codes):
            raise InvalidArgumentError("an element is not in the palette")
        pack(read_only(codes), width, packed[start * width // 8 : packed_nbytes(stop, width)])
    return packed


def restore(packed: NDArray[np.uint8], palette: NDArray[np.uint8], out: NDArray[np.uint8], first: int = 0) -> None:
    """Fill `out` (uint8 `[n]`, C-contiguous) with the elements of packed indices: undoes `indices`.

    first: number of the element with which `out` begins; `packed` begins with the byte in which its index lies.
    Raises CorruptionError for an index beyond the palette, InvalidArgumentError for arrays of other sizes.
    """
    from .kernels import palette as kernels

    size = _check(palette)
    if out.dtype != np.uint8 or not out.flags.c_contiguous or out.size % size:
        raise InvalidArgumentError(f"out must be C-contiguous uint8, a whole number of elements of {size} bytes")
    width, target, source = index_width(len(palette)), out.reshape(-1), read_only(packed)
    skip = first * width % 8 // width
    table = np.zeros(MAX_VALUES * size, np.uint8)
    table[: palette.size] = palette.reshape(-1)
    for start in range(0, target.size // size, _SLAB):
        stop = min(start + _SLAB, target.size // size)
        codes = unpack_codes(source, stop - start, width, skip + start)
        if len(palette) < 1 << width and codes.max() >= len(palette):
            raise CorruptionError(f"an index is {codes.max()}, but the palette has {len(palette)} values")
        kernels.restore(codes, table, size, target[start * size : stop * size])


def _check(palette: NDArray[np.uint8]) -> int:
    """The element size."""
    if palette.dtype != np.uint8 or palette.ndim != 2 or palette.shape[1] not in ELEMENT_NBYTES:
        raise InvalidArgumentError(f"a palette is uint8 [values, 1, 2, 4 or 8], got {palette.dtype}{palette.shape}")
    if not 1 <= len(palette) <= MAX_VALUES:
        raise InvalidArgumentError(f"a palette has 1 to {MAX_VALUES} values, not {len(palette)}")
    return int(palette.shape[1])
