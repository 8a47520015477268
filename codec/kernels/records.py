"""Bytes of a tensor to and from planes of codes: the loops behind `codec.records`.

Planes are given by their addresses, for their number varies; the caller has checked their sizes. A row of `fields` is
(offset of the field in the record in bits, bits, count, width of a packed code). Records `begin .. end - 1` are done,
and `begin` is a multiple of 8: their codes begin on whole bytes in every plane.

LLVM makes vector code of the loops over bytes, about as fast as memcpy (BF16: 28 GB/s in cache), so there are no intrinsics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import bytes_at
from .bits import unpack_into
from .jit import inlined, kernel

U: Any = np.uint64
BLOCK = 4096  # bytes of a lane that is put together in cache
SCRATCH = 1 << 14  # bytes of records that are

# Word records: R = 1, 2, 4 or 8 bytes, and every field is one code, or whole bytes. Byte p of all records makes a lane, an
# array with stride 1: a plane itself, if a field is just that byte, else temporary. Everything is then done by 32 or more
# bytes at once: fields inside and across lanes, the rotation, and the lanes into records.


@kernel
def join_words(
    fields: NDArray[np.int64], planes: NDArray[np.uint64], out: NDArray[np.uint8], begin: int, end: int, rotate: bool
) -> None:
    size = record_nbytes(fields)
    lanes, codes = np.empty((8, BLOCK), np.uint8), np.empty(BLOCK, np.uint8)
    at = np.empty(8, np.uint64)
    for start in range(begin, end, BLOCK):
        n = min(BLOCK, end - start)
        for p in range(size):
            at[p] = U(lanes.ctypes.data) + U(p * BLOCK)
        for f in range(len(fields)):
            offset, bits, count, width = fields[f]
            p, shift = offset >> 3, offset & 7
            plane = planes[f] + U(start * count * width >> 3)
            if bits == 8 and shift == 0 and count == 1:
                at[p] = plane
            elif bits == 8 and shift == 0:
                _take(bytes_at(plane, n * count), count, lanes, p, n)
            elif width == 8:
                _deposit(bytes_at(plane, n), shift, bits, lanes, p, n)
            else:
                unpack_into(bytes_at(plane, (n * width + 7) >> 3), width, 0, codes, n)
                _deposit(codes, shift, bits, lanes, p, n)
        target = out[start * size : (start + n) * size]
        if size == 1:
            _weave1(bytes_at(at[0], n), target, n, rotate)
        elif size == 2:
            _weave2(bytes_at(at[0], n), bytes_at(at[1], n), target, n, rotate)
        elif size == 4:
            _weave4(
                bytes_at(at[0], n), bytes_at(at[1], n), bytes_at(at[2], n), bytes_at(at[3], n), target, n, rotate
            )  # fmt: skip
        else:
            _weave8(
                bytes_at(at[0], n), bytes_at(at[1], n), bytes_at(at[2], n), bytes_at(at[3], n),
                bytes_at(at[4], n), bytes_at(at[5], n), bytes_at(at[6], n), bytes_at(at[7], n), target, n, rotate,
            )  # fmt: skip


@kernel
def split_words(
    fields: NDArray[np.int64], planes: NDArray[np.uint64], data: NDArray[np.uint8], begin: int, end: int, rotate: bool
) -> None:
    size = record_nbytes(fields)
    lanes, codes = np.empty((8, BLOCK), np.uint8), np.empty(BLOCK, np.uint8)
    at = np.empty(8, np.uint64)
    for start in range(begin, end, BLOCK):
        n = min(BLOCK, end - start)
        for p in range(size):
            at[p] = U(lanes.ctypes.data) + U(p * BLOCK)
        for f in range(len(fields)):
            offset, bits, count, width = fields[f]
            if bits == 8 and offset & 7 == 0 and count == 1:
                at[offset >> 3] = planes[f] + U(start)
        source = data[start * size : (start + n) * size]
        if size == 1:
            _unweave1(source, bytes_at(at[0], n), n, rotate)
        elif size == 2:
            _unweave2(source, bytes_at(at[0], n), bytes_at(at[1], n), n, rotate)
        elif size == 4:
            _unweave4(
                source, bytes_at(at[0], n), bytes_at(at[1], n), bytes_at(at[2], n), bytes_at(at[3], n), n, rotate
            )  # fmt: skip
        else:
            _unweave8(
                source, bytes_at(at[0], n), bytes_at(at[1], n), bytes_at(at[2], n), bytes_at(at[3], n),
                bytes_at(at[4], n), bytes_at(at[5], n), bytes_at(at[6], n), bytes_at(at[7], n), n, rotate,
            )  # fmt: skip
        for f in range(len(fields)):
            offset, bits, count, width = fields[f]
            p, shift = offset >> 3, offset & 7
            plane = bytes_at(planes[f] + U(start * count * width >> 3), (n * count * width + 7) >> 3)
            if bits == 8 and shift == 0:
                if count > 1:
                    _put(lanes, p, plane, count, n)
            elif width == 8:
                _extract(at, p, shift, bits, plane, n)
            else:
                _extract(at, p, shift, bits, codes, n)
                pack_into(codes, width, plane, n)


@inlined
def record_nbytes(fields: NDArray[np.int64]) -> int:
    offset, bits, count, _ = fields[len(fields) - 1]
    return int((offset + bits * count) >> 3)


@inlined
def _deposit(codes: NDArray[np.uint8], shift: int, bits: int, lanes: NDArray[np.uint8], p: int, n: int) -> None:
    """Codes into bits `shift ..` of lane p, and of the next one: fields come in order, so the first in a lane begins it."""
    low, up = lanes[p], np.uint8(shift)
    if shift == 0:
        for i in range(n):
            low[i] = codes[i]
        return
    for i in range(n):
        low[i] |= np.uint8(codes[i] << up)
    if shift + bits > 8:
        high, down = lanes[p + 1], np.uint8(8 - shift)
        for i in range(n):
            high[i] = codes[i] >> down


@inlined
def _extract(at: NDArray[np.uint64], p: int, shift: int, bits: int, codes: NDArray[np.uint8], n: int) -> None:
    low, down, mask = bytes_at(at[p], n), np.uint8(shift), np.uint8((1 << bits) - 1)
    if shift + bits <= 8:
        for i in range(n):
            codes[i] = low[i] >> down & mask
    else:
        high, up = bytes_at(at[p + 1], n), np.uint8(8 - shift)
        for i in range(n):
            codes[i] = (low[i] >> down | np.uint8(high[i] << up)) & mask


@inlined
def pack_into(codes: NDArray[np.uint8], width: int, packed: NDArray[np.uint8], n: int) -> None:
    per_byte = 8 // width
    whole = n // per_byte
    if width == 4:
        for j in range(whole):
            packed[j] = codes[2 * j] | codes[2 * j + 1] << 4
    elif width == 2:
        for j in range(whole):
            packed[j] = codes[4 * j] | codes[4 * j + 1] << 2 | codes[4 * j + 2] << 4 | codes[4 * j + 3] << 6
    else:
        for j in range(whole):
            byte = np.uint8(0)
            for i in range(8):
                byte |= codes[8 * j + i] << i
            packed[j] = byte
    if whole * per_byte < n:
        byte = np.uint8(0)
        for i in range(n - whole * per_byte):
            byte |= codes[whole * per_byte + i] << (i * width)
        packed[whole] = byte


@inlined
def _take(source: NDArray[np.uint8], step: int, lanes: NDArray[np.uint8], p: int, n: int) -> None:
    """A plane of `step` bytes per record into lanes p, p + 1 .. For constant steps LLVM has shuffles."""
    if step == 2:
        a, b = lanes[p], lanes[p + 1]
        for i in range(n):
            a[i], b[i] = source[2 * i], source[2 * i + 1]
    elif step == 3:
        a, b, c = lanes[p], lanes[p + 1], lanes[p + 2]
        for i in range(n):
            a[i], b[i], c[i] = source[3 * i], source[3 * i + 1], source[3 * i + 2]
    else:
        for j in range(step):
            lane = lanes[p + j]
            for i in range(n):
                lane[i] = source[step * i + j]


@inlined
def _put(lanes: NDArray[np.uint8], p: int, target: NDArray[np.uint8], step: int, n: int) -> None:
    if step == 2:
        a, b = lanes[p], lanes[p + 1]
        for i in range(n):
            target[2 * i], target[2 * i + 1] = a[i], b[i]
    elif step == 3:
        a, b, c = lanes[p], lanes[p + 1], lanes[p + 2]
        for i in range(n):
            target[3 * i], target[3 * i + 1], target[3 * i + 2] = a[i], b[i], c[i]
    else:
        for j in range(step):
            lane = lanes[p + j]
            for i in range(n):
                target[step * i + j] = lane[i]


@inlined
def shifted_right(x: Any, y: Any) -> Any:
    """A byte of a number that is shifted right by one: x is that byte, y the next higher one."""
    return x >> np.uint8(1) | np.uint8(y << np.uint8(7))


@inlined
def shifted_left(x: Any, y: Any) -> Any:
    """A byte of a number that is shifted left by one: x is that byte, y the next lower one."""
    return np.uint8(x << np.uint8(1)) | y >> np.uint8(7)


@inlined
def _weave1(a: Any, out: NDArray[np.uint8], n: int, rotate: bool) -> None:
    if rotate:
        for i in range(n):
            out[i] = shifted_right(a[i], a[i])
    else:
        for i in range(n):
            out[i] = a[i]


@inlined
def _weave2(a: Any, b: Any, out: NDArray[np.uint8], n: int, rotate: bool) -> None:
    if rotate:
        for i in range(n):
            x, y = a[i], b[i]
            out[2 * i] = shifted_right(x, y)
            out[2 * i + 1] = shifted_right(y, x)
    else:
        for i in range(n):
            out[2 * i] = a[i]
            out[2 * i + 1] = b[i]


@inlined
def _weave4(a: Any, b: Any, c: Any, d: Any, out: NDArray[np.uint8], n: int, rotate: bool) -> None:
    if rotate:
        for i in range(n):
            w, x, y, z = a[i], b[i], c[i], d[i]
            out[4 * i] = shifted_right(w, x)
            out[4 * i + 1] = shifted_right(x, y)
            out[4 * i + 2] = shifted_right(y, z)
            out[4 * i + 3] = shifted_right(z, w)
    else:
        for i in range(n):
            out[4 * i] = a[i]
            out[4 * i + 1] = b[i]
            out[4 * i + 2] = c[i]
            out[4 * i + 3] = d[i]


@inlined
def _weave8(
    a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, out: NDArray[np.uint8], n: int, rotate: bool
) -> None:
    if rotate:
        for i in range(n):
            s, t, u, v, w, x, y, z = a[i], b[i], c[i], d[i], e[i], f[i], g[i], h[i]
            out[8 * i], out[8 * i + 1], out[8 * i + 2] = shifted_right(s, t), shifted_right(t, u), shifted_right(u, v)
            out[8 * i + 3], out[8 * i + 4], out[8 * i + 5] = (
                shifted_right(v, w),
                shifted_right(w, x),
                shifted_right(x, y),
            )
            out[8 * i + 6], out[8 * i + 7] = shifted_right(y, z), shifted_right(z, s)
    else:
        for i in range(n):
            out[8 * i], out[8 * i + 1], out[8 * i + 2], out[8 * i + 3] = a[i], b[i], c[i], d[i]
            out[8 * i + 4], out[8 * i + 5], out[8 * i + 6], out[8 * i + 7] = e[i], f[i], g[i], h[i]


@inlined
def _unweave1(source: NDArray[np.uint8], a: Any, n: int, rotate: bool) -> None:
    if rotate:
        for i in range(n):
            a[i] = shifted_left(source[i], source[i])
    else:
        for i in range(n):
            a[i] = source[i]


@inlined
def _unweave2(source: NDArray[np.uint8], a: Any, b: Any, n: int, rotate: bool) -> None:
    if rotate:
        for i in range(n):
            x, y = source[2 * i], source[2 * i + 1]
            a[i] = shifted_left(x, y)
            b[i] = shifted_left(y, x)
    else:
        for i in range(n):
            a[i] = source[2 * i]
            b[i] = source[2 * i + 1]


@inlined
def _unweave4(source: NDArray[np.uint8], a: Any, b: Any, c: Any, d: Any, n: int, rotate: bool) -> None:
    if rotate:
        for i in range(n):
            w, x, y, z = source[4 * i], source[4 * i + 1], source[4 * i + 2], source[4 * i + 3]
            a[i] = shifted_left(w, z)
            b[i] = shifted_left(x, w)
            c[i] = shifted_left(y, x)
            d[i] = shifted_left(z, y)
    else:
        for i in range(n):
            a[i] = source[4 * i]
            b[i] = source[4 * i + 1]
            c[i] = source[4 * i + 2]
            d[i] = source[4 * i + 3]


@inlined
def _unweave8(
    source: NDArray[np.uint8], a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, n: int, rotate: bool
) -> None:
    if rotate:
        for i in range(n):
            s, t, u, v = source[8 * i], source[8 * i + 1], source[8 * i + 2], source[8 * i + 3]
            w, x, y, z = source[8 * i + 4], source[8 * i + 5], source[8 * i + 6], source[8 * i + 7]
            a[i], b[i], c[i], d[i] = shifted_left(s, z), shifted_left(t, s), shifted_left(u, t), shifted_left(v, u)
            e[i], f[i], g[i], h[i] = shifted_left(w, v), shifted_left(x, w), shifted_left(y, x), shifted_left(z, y)
    else:
        for i in range(n):
            a[i], b[i], c[i], d[i] = source[8 * i], source[8 * i + 1], source[8 * i + 2], source[8 * i + 3]
            e[i], f[i], g[i], h[i] = source[8 * i + 4], source[8 * i + 5], source[8 * i + 6], source[8 * i + 7]
