"""Packing, unpacking and counting: w-bit codes in bytes, low bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import inlined, kernel

# The loops below are written so that LLVM turns each into vector code: one width each, plain strides.


@kernel
def pack(codes: NDArray[np.uint8], storage_bits: int, packed: NDArray[np.uint8]) -> int:
    """Fill `packed`; returns the bitwise or of all codes, which tells whether one was too large."""
    seen = np.uint8(0)
    for i in range(codes.size):
        seen |= codes[i]
    per_byte = 8 // storage_bits
    whole = codes.size // per_byte
    if storage_bits == 8:
        for j in range(whole):  # not packed[:] = codes, which takes two seconds to compile
            packed[j] = codes[j]
    elif storage_bits == 4:
        for j in range(whole):
            packed[j] = codes[2 * j] | codes[2 * j + 1] << 4
    elif storage_bits == 2:
        for j in range(whole):
            packed[j] = codes[4 * j] | codes[4 * j + 1] << 2 | codes[4 * j + 2] << 4 | codes[4 * j + 3] << 6
    else:
        for j in range(whole):
            byte = np.uint8(0)
            for i in range(8):
                byte |= codes[8 * j + i] << i
            packed[j] = byte
    if whole < packed.size:
        byte = np.uint8(0)
        for i in range(codes.size - whole * per_byte):
            byte |= codes[whole * per_byte + i] << (i * storage_bits)
        packed[whole] = byte
    return int(seen)


@kernel
def unpack(packed: NDArray[np.uint8], storage_bits: int, start: int, out: NDArray[np.uint8]) -> None:
    """Codes `start .. start + out.size - 1`, one per byte. The caller has checked that `packed` holds them."""
    unpack_into(packed, storage_bits, start, out, out.size)


@inlined
def unpack_into(packed: NDArray[np.uint8], storage_bits: int, start: int, out: NDArray[np.uint8], count: int) -> None:
    per_byte = 8 // storage_bits
    mask = (1 << storage_bits) - 1
    head = min(count, -start % per_byte)  # codes before the first whole byte
    for i in range(head):
        out[i] = packed[(start + i) // per_byte] >> ((start + i) % per_byte * storage_bits) & mask
    first = (start + head) // per_byte
    whole = (count - head) // per_byte
    source, target = packed[first : first + whole], out[head : head + whole * per_byte]
    if storage_bits == 8:
        for j in range(whole):
            target[j] = source[j]
    elif storage_bits == 4:
        for j in range(whole):
            target[2 * j] = source[j] & 15
            target[2 * j + 1] = source[j] >> 4
    elif storage_bits == 2:
        for j in range(whole):
            target[4 * j] = source[j] & 3
            target[4 * j + 1] = source[j] >> 2 & 3
            target[4 * j + 2] = source[j] >> 4 & 3
            target[4 * j + 3] = source[j] >> 6
    else:
        for j in range(whole):
            for i in range(8):
                target[8 * j + i] = source[j] >> i & 1
    for i in range(head + whole * per_byte, count):
        out[i] = packed[(start + i) // per_byte] >> ((start + i) % per_byte * storage_bits) & mask


@kernel
def count_bytes(buffer: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Add the number of each byte to `counts` (256)."""
    partial = np.zeros((4, 256), np.int64)
    _count(buffer, 0, buffer.size, partial)
    for j in range(4):
        for s in range(256):
            counts[s] += partial[j, s]


@kernel
def count_nibbles(buffer: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Add the number of each nibble to `counts` (16)."""
    partial = np.zeros((4, 256), np.int64)
    _count(buffer, 0, buffer.size, partial)
    _add_nibbles(partial, counts)


# Nibbles of buffers of so many bytes are estimated by one block in 4, or 8: less than 0.01 % more bytes.
SAMPLED, SAMPLED_LESS = 1 << 16, 7 << 14
BLOCK = 256
# Bytes that are always counted: vector kernels code the last ones one by one, and do not look whether they can.
ENDING = 128


@inlined
def sampling(nbytes: int) -> int:
    """Of 2 to the power of how many blocks one is counted."""
    return 0 if nbytes < SAMPLED else 2 if nbytes < SAMPLED_LESS else 3


@inlined
def block_of_sample(i: int, shift: int) -> int:
    """Block i of a sample: one of 2^shift, by the golden ratio, for each part of a matrix' row must come up as often."""
    return i << shift | (i * 0x9E3779B9 & 0xFFFFFFFF) >> (32 - shift)


@inlined
def estimate_nibbles(buffer: NDArray[np.uint8], counts: NDArray[np.int64]) -> int:
    """Fill `counts` (16, zeros before) with the number of each nibble, of large buffers about that: rare ones may be missed.

    Returns for how many bytes each that has been counted stands.
    """
    partial, shift = np.zeros((4, 256), np.int64), sampling(buffer.size)
    for i in range(buffer.size // BLOCK >> shift if shift > 0 else 0):
        start = block_of_sample(i, shift) * BLOCK
        _count(buffer, start, start + BLOCK, partial)
    _add_nibbles(partial, counts)
    if stands_for_all(buffer, shift, counts):
        return 1 << shift
    count_nibbles(buffer, counts)
    return 1


@inlined
def stands_for_all(buffer: NDArray[np.uint8], shift: int, counts: NDArray[np.int64]) -> bool:
    """Make a sample's counts those of the whole buffer, or zeros if its nibbles are worth less than two bits or so.

    There the same waste is a larger share.
    """
    most, total = 0, 0
    for s in range(16):
        most, total = max(most, counts[s]), total + counts[s]
    if shift == 0 or 4 * most > total:
        for s in range(16):
            counts[s] = 0
        return False
    for i in range(buffer.size - ENDING, buffer.size):
        counts[buffer[i] & 15] += 1
        counts[buffer[i] >> 4] += 1
    for s in range(16):
        counts[s] <<= shift
    return True


@inlined
def _add_nibbles(partial: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    for j in range(4):
        for byte in range(256):
            counts[byte & 15] += partial[j, byte]
            counts[byte >> 4] += partial[j, byte]


@kernel
def sample_bytes(buffer: NDArray[np.uint8], pieces: int, size: int, counts: NDArray[np.int64]) -> None:
    """Add the number of each byte in `pieces` pieces of `size` bytes, evenly spaced, to `counts` (256)."""
    partial = np.zeros((4, 256), np.int64)
    for i in range(pieces):
        start = (buffer.size - size) * i // max(1, pieces - 1)
        _count(buffer, start, start + size, partial)
    for j in range(4):
        for s in range(256):
            counts[s] += partial[j, s]


@inlined
def _count(buffer: NDArray[np.uint8], begin: int, end: int, partial: NDArray[np.int64]) -> None:
    # Four tables: on skewed data one counter after the other is the same, and would wait for its own last store.
    whole = begin + (end - begin) // 4 * 4
    for i in range(begin, whole, 4):
        for j in range(4):
            partial[np.uint64(j), buffer[np.uint64(i + j)]] += 1
    for i in range(whole, end):
        partial[0, buffer[i]] += 1
