"""Many chunks in one call: the loop over chunks is compiled, so that threads meet in Python once a batch, not once a chunk.

A batch is an array of `codec.task.TASK`: addresses and sizes. Whoever makes one has checked that every address range lies
in an array that is alive for as long as the kernel runs; the decoders stay inside these ranges whatever the payload holds.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from . import ans_portable, escape16, huffman, short256, split8
from .ans_header import I, U
from .jit import inlined, kernel
from .lanes import decode_lanes
from .status import CODE_TOO_LARGE, OK, PADDING_NOT_ZERO, SIZE_MISMATCH, WRONG_CHECKSUM
from .xxh3 import xxh3_at


def _pointer(element: Any) -> Any:
    def define(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.uint64), generate

    return intrinsic(define)


_byte_pointer, words_at = _pointer(types.uint8), _pointer(types.uint16)


def _copy_bytes(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    """memcpy, which LLVM does not make of a loop over arrays that might overlap."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        places = [builder.inttoptr(value, pointer) for value in values[:2]]
        cgutils.raw_memcpy(builder, *places, values[2], 1)

    return types.void(types.uint64, types.uint64, types.uint64), generate


copy_bytes: Any = intrinsic(_copy_bytes)


@inlined
def bytes_at(address: Any, count: Any) -> Any:
    """`count` bytes of memory as an array."""
    return numba.carray(_byte_pointer(address), (I(count),))


@inlined
def damaged(t: Any) -> bool:
    """Whether a payload has another checksum than its task says."""
    return bool(t.xxh3 != U(0) and xxh3_at(t.xxh3, t.payload, t.nbytes) != t.checksum)


@inlined
def check(out: NDArray[np.uint8], unused: Any, spare: Any) -> int:
    """Whether all codes are in range and nothing but zeros follows the last one."""
    if unused != 0:
        seen = np.uint8(0)
        for i in range(out.size):
            seen |= out[i]
        if seen & np.uint8(unused):
            return CODE_TOO_LARGE
    if spare != 0 and np.int64(out[out.size - 1]) >> np.int64(8 - np.int64(spare)):
        return PADDING_NOT_ZERO
    return OK


@kernel
def copy(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    """Coder 0. The other kernels are alike: they fill `status` (one number of `status.py` per task)."""
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        if t.nbytes != t.size:
            status[i] = SIZE_MISMATCH
            continue
        copy_bytes(t.out, t.payload, t.size)
        status[i] = check(bytes_at(t.out, t.size), t.unused, t.spare)


@kernel
def fill(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    """Coder 1."""
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        if t.nbytes != 1:
            status[i] = SIZE_MISMATCH
            continue
        out = bytes_at(t.out, t.size)
        out[:] = bytes_at(t.payload, t.nbytes)[0]
        status[i] = check(out, t.unused, t.spare)


@kernel
def decode_huffman(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    """Coder 4; a table is the 2^11 windows of `huffman.decode`."""
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (2048,))
        status[i] = huffman.decode(bytes_at(t.payload, t.nbytes), table, out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)


@kernel
def decode_ans16(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    """Coder 2; a table is 16 frequencies of 16 bits."""
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (16,))
        status[i] = ans_portable.decode_ans16(bytes_at(t.payload, t.nbytes), I(t.streams), table, out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)


@kernel
def decode_ans256(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    """Coder 3; a table is 256 frequencies of 16 bits."""
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (256,))
        status[i] = ans_portable.decode_ans256(bytes_at(t.payload, t.nbytes), I(t.streams), table, out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)


@kernel
def decode_split8(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    """Coder 5; tables are those of coder 2."""
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (16,))
        status[i] = split8.decode_split8(bytes_at(t.payload, t.nbytes), I(t.streams), table, out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)


@kernel
def decode_short16(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    """Coder 8; a table is 16 frequencies of 16 bits."""
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (16,))
        status[i] = decode_lanes(bytes_at(t.payload, t.nbytes), I(t.streams), table, I(12), out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)


@kernel
def decode_short256(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    """Coder 9; tables are in the payloads."""
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out = bytes_at(t.out, t.size)
        status[i] = short256.decode_short256(bytes_at(t.payload, t.nbytes), I(t.streams), out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)


@kernel
def decode_escape16(tasks: NDArray[Any], status: NDArray[np.int64]) -> None:
    """Coder 6; a table is a row of its bank as 32 numbers of 16 bits."""
    for i in range(tasks.size):
        t = tasks[i]
        if damaged(t):
            status[i] = WRONG_CHECKSUM
            continue
        out, table = bytes_at(t.out, t.size), numba.carray(words_at(t.table), (32,))
        status[i] = escape16.decode_escape16(bytes_at(t.payload, t.nbytes), I(t.streams), table, out)
        if status[i] == OK:
            status[i] = check(out, t.unused, t.spare)
