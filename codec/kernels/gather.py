"""As `record_fields`, for records whose codes are gathered: the bits of a code lie in several places.

A row of `fields` is (codes in a record, width of a packed code, first part, behind the last part). A row of `parts` is (bits, place
in the code, kind, index of its first position). Positions are bits of a record: of each code if the kind is SINGLE, of the first
one if it is COPY, else of the first of each 8 codes, which are moved at once: as a number of 64 bits with a code in each byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import bytes_at
from .bits import unpack_into
from .jit import inlined, kernel
from .record_fields import copy_bytes, load, load_some, spread_steps, store
from .records import SCRATCH, U, pack_into

SINGLE = 0  # anywhere
COPY = 1  # all codes are whole bytes, and follow one another
BYTES = 2  # 8 codes lie in 8 bytes in a row, at the same place in each
DENSE = 3  # 8 codes of less than 8 bits follow one another

ONES = 0x0101010101010101
BLOCK = SCRATCH // 2  # bytes of records, which stay in cache together with their codes, of a byte each


@kernel
def split_gathered(
    fields: NDArray[np.int64],
    parts: NDArray[np.int64],
    positions: NDArray[np.int64],
    planes: NDArray[np.uint64],
    data: NDArray[np.uint8],
    begin: int,
    end: int,
    size: int,
) -> None:
    """size: of a record, in bytes."""
    block = max(8, BLOCK // size // 8 * 8)
    scratch = np.empty(8 * size * block, np.uint8)
    masks = np.empty((4, 3), np.uint64)
    for start in range(begin, end, block):
        n = min(block, end - start)
        source = bytes_at(U(data.ctypes.data) + U(start * size), n * size)
        for f in range(len(fields)):
            count, width, first, behind = fields[f]
            place, nbytes = planes[f] + U(start * count * width >> 3), (n * count * width + 7) >> 3
            codes = bytes_at(place if width == 8 else U(scratch.ctypes.data), n * count)
            for p in range(first, behind):
                bits, shift, kind, at = parts[p]
                kept = U(0) if p == first else ~U(0)
                if kind == COPY:
                    copy_bytes(source, size, positions[at] >> 3, codes, count, 0, count, n)
                elif kind == SINGLE:
                    _split_single(source, codes, positions, at, size, count, bits, shift, kept, n)
                elif kind == BYTES:
                    _split_bytes(source, codes, positions, at, size, count, bits, shift, kept, n)
                else:
                    spread_steps(bits, 8, masks)
                    _split_dense(source, codes, positions, at, size, count, bits, shift, kept, masks, n)
            if width < 8:
                pack_into(codes, width, bytes_at(place, nbytes), n * count)


@kernel
def join_gathered(
    fields: NDArray[np.int64],
    parts: NDArray[np.int64],
    positions: NDArray[np.int64],
    planes: NDArray[np.uint64],
    out: NDArray[np.uint8],
    begin: int,
    end: int,
    size: int,
) -> None:
    block = max(8, BLOCK // size // 8 * 8)
    scratch = np.empty(8 * size * block, np.uint8)
    masks = np.empty((4, 3), np.uint64)
    for start in range(begin, end, block):
        n = min(block, end - start)
        target = out[start * size : (start + n) * size]
        for i in range(target.size):
            target[i] = 0
        for f in range(len(fields)):
            count, width, first, behind = fields[f]
            place, nbytes = planes[f] + U(start * count * width >> 3), (n * count * width + 7) >> 3
            if width < 8:
                unpack_into(bytes_at(place, nbytes), width, 0, scratch, n * count)
            codes = bytes_at(place if width == 8 else U(scratch.ctypes.data), n * count)
            for p in range(first, behind):
                bits, shift, kind, at = parts[p]
                if kind == COPY:
                    copy_bytes(codes, count, 0, target, size, positions[at] >> 3, count, n)
                elif kind == SINGLE:
                    _join_single(codes, target, positions, at, size, count, bits, shift, n)
                elif kind == BYTES:
                    _join_bytes(codes, target, positions, at, size, count, bits, shift, n)
                else:
                    spread_steps(bits, 8, masks)
                    _join_dense(codes, target, positions, at, size, count, bits, shift, masks, n)


# One code, or group of codes, of all records after the other: what is not the same in all of them is an address.


@inlined
def _split_single(
    source: Any, codes: Any, positions: Any, at: int, size: int, count: int, bits: int, shift: int, kept: Any, n: int
) -> None:
    mask, keep, up = np.int64((1 << bits) - 1), np.uint8(kept & U(255)), np.int64(shift)
    for c in range(count):
        byte, low = U(positions[at + c] >> 3), positions[at + c] & 7
        more = U(byte + U(1)) if low + bits > 8 else byte
        for i in range(n):
            from_, to = U(i * size), U(i * count + c)
            code = (np.int64(source[from_ + byte]) | np.int64(source[from_ + more]) << 8) >> low & mask
            codes[to] = codes[to] & keep | np.uint8(code << up)


@inlined
def _join_single(
    codes: Any, target: Any, positions: Any, at: int, size: int, count: int, bits: int, shift: int, n: int
) -> None:
    mask, down = np.int64((1 << bits) - 1), np.int64(shift)
    for c in range(count):
        byte, low = U(positions[at + c] >> 3), positions[at + c] & 7
        if low + bits <= 8:
            for i in range(n):
                target[U(i * size) + byte] |= np.uint8((np.int64(codes[U(i * count + c)]) >> down & mask) << low)
        else:
            for i in range(n):
                code = (np.int64(codes[U(i * count + c)]) >> down & mask) << low
                target[U(i * size) + byte] |= np.uint8(code & 255)
                target[U(i * size + 1) + byte] |= np.uint8(code >> 8)


@inlined
def _split_bytes(
    source: Any, codes: Any, positions: Any, at: int, size: int, count: int, bits: int, shift: int, kept: Any, n: int
) -> None:
    mask, up = U((1 << bits) - 1) * U(ONES), U(shift)
    for g in range(count >> 3):
        byte, low, first = U(positions[at + g] >> 3), U(positions[at + g] & 7), U(8 * g)
        for i in range(n):
            x, to = load(source, U(i * size) + byte) >> low & mask, U(i * count) + first
            store(codes, to, load(codes, to) & kept | x << up)


@inlined
def _join_bytes(
    codes: Any, target: Any, positions: Any, at: int, size: int, count: int, bits: int, shift: int, n: int
) -> None:
    mask, down = U((1 << bits) - 1) * U(ONES), U(shift)
    for g in range(count >> 3):
        byte, low, first = U(positions[at + g] >> 3), U(positions[at + g] & 7), U(8 * g)
        for i in range(n):
            x, to = load(codes, U(i * count) + first) >> down & mask, U(i * size) + byte
            store(target, to, load(target, to) | x << low)


@inlined
def _split_dense(
    source: Any, codes: Any, positions: Any, at: int, size: int, count: int, bits: int, shift: int, kept: Any,
    masks: Any, n: int,
) -> None:  # fmt: skip
    mask, up = (U(1) << U(8 * bits)) - U(1), U(shift)
    a, b, c = masks[0], masks[1], masks[2]
    stay0, move0, far0 = a[0], a[1], a[2]
    stay1, move1, far1 = b[0], b[1], b[2]
    stay2, move2, far2 = c[0], c[1], c[2]
    for g in range(count >> 3):
        byte, low, first = positions[at + g] >> 3, U(positions[at + g] & 7), U(8 * g)
        nbytes = (8 * bits + (positions[at + g] & 7) + 7) >> 3
        for i in range(n):
            x, to = load_some(source, i * size + byte, nbytes) >> low & mask, U(i * count) + first
            x = x & stay0 | (x & move0) << far0
            x = x & stay1 | (x & move1) << far1
            x = x & stay2 | (x & move2) << far2
            store(codes, to, load(codes, to) & kept | x << up)


@inlined
def _join_dense(
    codes: Any, target: Any, positions: Any, at: int, size: int, count: int, bits: int, shift: int, masks: Any, n: int
) -> None:
    mask, down = U((1 << bits) - 1) * U(ONES), U(shift)
    a, b, c = masks[0], masks[1], masks[2]
    stay0, move0, far0 = a[0], a[1], a[2]
    stay1, move1, far1 = b[0], b[1], b[2]
    stay2, move2, far2 = c[0], c[1], c[2]
    for g in range(count >> 3):
        byte, low, first = positions[at + g] >> 3, U(positions[at + g] & 7), U(8 * g)
        nbytes = (8 * bits + (positions[at + g] & 7) + 7) >> 3
        for i in range(n):
            x = load(codes, U(i * count) + first) >> down & mask
            x = x & stay2 | x >> far2 & move2
            x = x & stay1 | x >> far1 & move1
            x = x & stay0 | x >> far0 & move0
            x, to = x << low, U(i * size + byte)
            for j in range(nbytes):
                target[to + U(j)] |= np.uint8(x >> U(8 * j) & U(255))
