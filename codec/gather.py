"""Codes whose bits do not follow one another in a record: where the bits are (SPEC section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgumentError

Walk = tuple[tuple[int, ...], ...]
"""The codes of a field: (counts, part ..), each part being (bits, offset, a stride for each of the counts).

The number of codes is the product of the counts. Number i of a code makes digits, the last count's change fastest; bit
`offset + sum(digit * stride)` of the record is the first of the `bits` bits of a part. A code has the bits of its parts side by
side, those of the first part lowest.
"""

MAX_GATHERED_NBYTES = 1 << 10
MAX_COUNTS = 4


def gathered_fields(walks: Sequence[Walk]) -> tuple[tuple[int, int], ...]:
    """Bits and count of the codes of each walk.

    >>> gathered_fields([((2, 16), (4, 32, 4, 8), (1, 0, 16, 1))])
    ((5, 32),)
    """
    return tuple((sum(part[0] for part in parts), prod(counts)) for counts, *parts in walks)


def check_walks(walks: Sequence[Walk], fields: tuple[tuple[int, int], ...], nbytes: int) -> None:
    """Raises InvalidArgumentError unless the walks give these fields and have each bit of `nbytes` bytes exactly once."""
    if nbytes > MAX_GATHERED_NBYTES:
        raise InvalidArgumentError(f"records of {nbytes} bytes cannot be gathered, only those of {MAX_GATHERED_NBYTES}")
    if len(walks) != len(fields):
        raise InvalidArgumentError(f"{len(walks)} gathered fields instead of {len(fields)}")
    total, seen = 8 * nbytes, 0
    for (bits, count), walk in zip(fields, walks, strict=True):
        counts, *parts = walk if walk else ((),)
        if len(counts) > MAX_COUNTS or any(not 1 <= n <= total for n in counts) or prod(counts) != count:
            raise InvalidArgumentError(f"a field of {count} codes has up to {MAX_COUNTS} counts with this product")
        if len(parts) > 8 or any(len(part) != 2 + len(counts) or not 1 <= part[0] <= 8 for part in parts):
            raise InvalidArgumentError("a gathered part has 1 to 8 bits, an offset, and a stride for each count")
        if any(not 0 <= number <= total for part in parts for number in part):
            raise InvalidArgumentError("gathered bits are not in the record")
        if sum(part[0] for part in parts) != bits:
            raise InvalidArgumentError(f"gathered parts do not make codes of {bits} bits")
        for width, offset, *strides in parts:
            last = offset + sum((n - 1) * stride for n, stride in zip(counts, strides, strict=True))
            if last + width > total:
                raise InvalidArgumentError("gathered bits are not in the record")
            ones = (1 << width) - 1 << offset
            for n, stride in zip(counts, strides, strict=True):
                ones = _repeated(ones, n, stride)
            seen += ones
    # As many powers of two as there are bits: their sum has all ones only if they are all different.
    if seen != (1 << total) - 1:
        raise InvalidArgumentError("gathered fields do not have every bit of the record once")


def _repeated(x: int, count: int, stride: int) -> int:
    """The sum of `x << i * stride` for i = 0 .. count - 1."""
    total, done = 0, 0
    for bit in range(count.bit_length()):
        if count >> bit & 1:
            total += x << done * stride
            done += 1 << bit
            if done == count:
                break
        x += x << (stride << bit)
    return total


def run_gathered(
    what: str,
    walks: tuple[Walk, ...],
    widths: tuple[int, ...],
    planes: NDArray[np.uint64],
    data: NDArray[np.uint8],
    begin: int,
    end: int,
) -> None:
    """`split` or `join` records `begin .. end - 1` of `data`. widths, planes: bits of a code in packed planes, their addresses."""
    from .kernels.gather import join_gathered, split_gathered

    fields, parts, positions, nbytes = _tables(walks, widths)
    kernel = join_gathered if what == "join" else split_gathered
    kernel(fields, parts, positions, planes, data, begin, end, nbytes)


@lru_cache(maxsize=256)
def _tables(
    walks: tuple[Walk, ...], widths: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Fields, parts and positions as the kernels take them, and the bytes of a record."""
    from .kernels.gather import BYTES, COPY, DENSE, SINGLE

    fields: list[tuple[int, ...]] = []
    parts: list[tuple[int, ...]] = []
    positions: list[int] = []
    total = 0
    for (counts, *items), width in zip(walks, widths, strict=True):
        first, shift = len(parts), 0
        for bits, offset, *strides in items:
            places = np.array([offset])
            for n, stride in zip(counts, strides, strict=True):
                places = np.add.outer(places, np.arange(n) * stride).reshape(-1)
            kind, some = SINGLE, places
            if bits == 8 and offset % 8 == 0 and _are_apart(places, 8):
                kind, some = COPY, places[:1]
            elif places.size % 8 == 0:
                rows = places.reshape(-1, 8)
                if int((places % 8).max()) + bits <= 8 and _are_apart(rows, 8):
                    kind, some = BYTES, rows[:, 0]
                elif bits < 8 and _are_apart(rows, bits):
                    kind, some = DENSE, rows[:, 0]
            parts.append((bits, shift, kind, len(positions)))
            positions += some.tolist()
            shift += bits
        fields.append((prod(counts), width, first, len(parts)))
        total += shift * prod(counts)
    tables = np.array(fields, np.int64), np.array(parts, np.int64), np.array(positions, np.int64)
    for table in tables:
        table.flags.writeable = False
    return *tables, total // 8


def _are_apart(places: NDArray[np.int64], stride: int) -> bool:
    """Whether all numbers in a row are `stride` apart."""
    return bool((np.diff(places) == stride).all())
