"""As `records`, for all other records: any size, fields of many codes, interleaved units.

Records of a block, made contiguous and rotated where they are not as they should be, stay in cache while one field after
another is moved between them and its plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import bytes_at
from .jit import inlined, kernel
from .records import SCRATCH, U, record_nbytes, shifted_left, shifted_right


@kernel
def join_fields(
    fields: NDArray[np.int64],
    planes: NDArray[np.uint64],
    out: NDArray[np.uint8],
    begin: int,
    end: int,
    rotate: bool,
    unit: int,
    lanes: int,
) -> None:
    """unit, lanes: those of interleaved records; lanes = 0 if they follow one another."""
    size = record_nbytes(fields)
    block = max(8, SCRATCH // size // 8 * 8)
    scratch = np.empty(block * size, np.uint8)
    masks = np.empty((4, 3), np.uint64)
    for start in range(begin, end, block):
        n = min(block, end - start)
        target = scratch[: n * size] if rotate or lanes else out[start * size : (start + n) * size]
        for i in range(target.size):
            target[i] = 0
        for f in range(len(fields)):
            offset, bits, count, width = fields[f]
            plane = bytes_at(planes[f] + U(start * count * width >> 3), (n * count * width + 7) >> 3)
            if bits == width and (offset | bits * count) & 7 == 0:
                nbytes = bits * count >> 3
                copy_bytes(plane, nbytes, 0, target, size, offset >> 3, nbytes, n)
            elif count * width & 7 == 0:
                _join_groups(plane, target, size, offset, bits, count, width, masks, n)
            else:
                for i in range(n * count):
                    code = plane[i * width >> 3] >> (i * width & 7) & ((1 << bits) - 1)
                    bit = i // count * size * 8 + offset + i % count * bits
                    target[bit >> 3] |= code << (bit & 7) & 255
                    if (bit & 7) + bits > 8:
                        target[(bit >> 3) + 1] |= code >> (8 - (bit & 7))
        if rotate:
            _rotate_right(target, size, n)
        if lanes:
            _interleave(target, out, size, start, n, unit, lanes)
        elif rotate:
            for i in range(n * size):
                out[start * size + i] = target[i]


@kernel
def split_fields(
    fields: NDArray[np.int64],
    planes: NDArray[np.uint64],
    data: NDArray[np.uint8],
    begin: int,
    end: int,
    rotate: bool,
    unit: int,
    lanes: int,
) -> None:
    size = record_nbytes(fields)
    block = max(8, SCRATCH // size // 8 * 8)
    scratch = np.empty(block * size, np.uint8)
    masks = np.empty((4, 3), np.uint64)
    for start in range(begin, end, block):
        n = min(block, end - start)
        source = bytes_at(U(data.ctypes.data) + U(start * size), n * size)
        if rotate or lanes:
            if lanes:
                _gather(data, scratch, size, start, n, unit, lanes)
            else:
                for i in range(n * size):
                    scratch[i] = source[i]
            source = bytes_at(U(scratch.ctypes.data), n * size)
        if rotate:
            _rotate_left(scratch, size, n)
        for f in range(len(fields)):
            offset, bits, count, width = fields[f]
            plane = bytes_at(planes[f] + U(start * count * width >> 3), (n * count * width + 7) >> 3)
            if bits == width and (offset | bits * count) & 7 == 0:
                nbytes = bits * count >> 3
                copy_bytes(source, size, offset >> 3, plane, nbytes, 0, nbytes, n)
            elif count * width & 7 == 0:
                _split_groups(source, plane, size, offset, bits, count, width, masks, n)
            else:
                for i in range(plane.size):
                    plane[i] = 0
                for i in range(n * count):
                    bit = i // count * size * 8 + offset + i % count * bits
                    code = np.int64(source[bit >> 3]) >> (bit & 7)
                    if (bit & 7) + bits > 8:
                        code |= np.int64(source[(bit >> 3) + 1]) << (8 - (bit & 7))
                    plane[i * width >> 3] |= (code & ((1 << bits) - 1)) << (i * width & 7)


@inlined
def copy_bytes(
    source: Any, source_step: int, source_first: int, target: Any, step: int, first: int, nbytes: int, n: int
) -> None:
    """`nbytes` bytes of each of `n` records."""
    if nbytes == 1:
        for i in range(n):
            target[i * step + first] = source[i * source_step + source_first]
    elif nbytes == 2:
        for i in range(n):
            target[i * step + first] = source[i * source_step + source_first]
            target[i * step + first + 1] = source[i * source_step + source_first + 1]
    else:
        for i in range(n):
            a, b, j = U(i * source_step + source_first), U(i * step + first), U(0)
            while j + U(8) <= U(nbytes):
                store(target, b + j, load(source, a + j))
                j += U(8)
            while j < U(nbytes):
                target[b + j] = source[a + j]
                j += U(1)


# Groups of codes that fill 64 bits of the plane (32, if codes are as wide as they are there: with the bits before the first
# they then still fit one load). In a record they are `bits` wide; three or four steps spread them to `width`.


@inlined
def _join_groups(
    plane: Any, target: Any, size: int, offset: int, bits: int, count: int, width: int, masks: Any, n: int
) -> None:
    steps, group = spread_steps(bits, width, masks)
    for i in range(n):
        for first in range(0, count, group):
            codes = min(group, count - first)
            x = load_some(plane, (i * count + first) * width >> 3, codes * width >> 3)
            for k in range(steps - 1, -1, -1):
                x = x & masks[k, 0] | x >> masks[k, 2] & masks[k, 1]
            x &= (U(1) << U(codes * bits)) - U(1)
            bit = i * size * 8 + offset + first * bits
            at, x = bit >> 3, x << U(bit & 7)
            if at + 8 <= target.size:
                store(target, U(at), load(target, U(at)) | x)
            else:
                while x != U(0):
                    target[at] |= np.uint8(x & U(255))
                    x >>= U(8)
                    at += 1


@inlined
def _split_groups(
    source: Any, plane: Any, size: int, offset: int, bits: int, count: int, width: int, masks: Any, n: int
) -> None:
    steps, group = spread_steps(bits, width, masks)
    for i in range(n):
        for first in range(0, count, group):
            codes = min(group, count - first)
            bit = i * size * 8 + offset + first * bits
            x = load_some(source, bit >> 3, ((bit & 7) + codes * bits + 7) >> 3) >> U(bit & 7)
            x &= (U(1) << U(codes * bits)) - U(1)
            for k in range(steps):
                x = x & masks[k, 0] | (x & masks[k, 1]) << masks[k, 2]
            at = (i * count + first) * width >> 3
            if codes * width == 64:
                store(plane, U(at), x)
            else:
                for j in range(codes * width >> 3):
                    plane[at + j] = np.uint8(x >> U(8 * j) & U(255))


@inlined
def spread_steps(bits: int, width: int, masks: Any) -> Any:
    """Number of steps and of codes in a group. masks: for each step what stays, what moves, and how far."""
    if bits == width:
        return 0, 32 // width
    group = 64 // width
    steps, half = 0, group >> 1
    while half:
        piece, low, high = (U(1) << U(half * bits)) - U(1), U(0), U(0)
        for k in range(0, group, 2 * half):
            low |= piece << U(k * width)
            high |= piece << U(k * width + half * bits)
        masks[steps, 0], masks[steps, 1], masks[steps, 2] = low, high, U(half * (width - bits))
        steps, half = steps + 1, half >> 1
    return steps, group


@inlined
def load(source: Any, at: Any) -> Any:
    """8 bytes: LLVM makes one load of it, and one store of `store`."""
    return (
        U(source[at]) | U(source[at + U(1)]) << U(8) | U(source[at + U(2)]) << U(16) | U(source[at + U(3)]) << U(24)
        | U(source[at + U(4)]) << U(32) | U(source[at + U(5)]) << U(40) | U(source[at + U(6)]) << U(48)
        | U(source[at + U(7)]) << U(56)
    )  # fmt: skip


@inlined
def load_some(source: Any, at: int, nbytes: int) -> Any:
    """At least `nbytes` (1 to 8) bytes, as far as there are any; what is above them may be anything."""
    if at + 8 <= source.size:
        return load(source, U(at))
    x = U(0)
    for j in range(nbytes):
        x |= U(source[at + j]) << U(8 * j)
    return x


@inlined
def store(target: Any, at: Any, x: Any) -> None:
    for j in range(8):
        target[at + U(j)] = np.uint8(x >> U(8 * j) & U(255))


@inlined
def _rotate_right(records: Any, size: int, n: int) -> None:
    for i in range(0, n * size, size):
        lowest = records[i]
        for j in range(i, i + size - 1):
            records[j] = shifted_right(records[j], records[j + 1])
        records[i + size - 1] = shifted_right(records[i + size - 1], lowest)


@inlined
def _rotate_left(records: Any, size: int, n: int) -> None:
    for i in range(0, n * size, size):
        highest = records[i + size - 1]
        for j in range(i + size - 1, i, -1):
            records[j] = shifted_left(records[j], records[j - 1])
        records[i] = shifted_left(records[i], highest)


@inlined
def _gather(data: Any, records: Any, size: int, start: int, n: int, unit: int, lanes: int) -> None:
    """Records `start .. start + n - 1` out of their spans."""
    done = 0
    while done < n:
        span, lane = divmod(start + done, lanes)
        some = min(n - done, lanes - lane)
        for u in range(size // unit):
            source = span * lanes * size + (u * lanes + lane) * unit
            copy_bytes(data[source:], unit, 0, records, size, done * size + u * unit, unit, some)
        done += some


@inlined
def _interleave(records: Any, out: Any, size: int, start: int, n: int, unit: int, lanes: int) -> None:
    done = 0
    while done < n:
        span, lane = divmod(start + done, lanes)
        some = min(n - done, lanes - lane)
        for u in range(size // unit):
            target = span * lanes * size + (u * lanes + lane) * unit
            copy_bytes(records, size, done * size + u * unit, out[target:], unit, 0, unit, some)
        done += some
