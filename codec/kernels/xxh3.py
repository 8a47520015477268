"""XXH3-64 with seed 0 and the default secret: a payload is compared, or summed, while it is in the caches for a coder anyway.

Written from the description of the algorithm; the package `xxhash` gives the same numbers, and is what all others use. Long
inputs are added up in eight 64-bit lanes, as vectors that LLVM fits to the registers of any CPU.

Kernels call it through its address: as a part of each of them it would be compiled that often.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .ans_header import I, U
from .jit import callback, inlined

_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)
_P32 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_P64 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_START = _P32[2], *_P64[:4], _P32[1], _P64[4], _P32[0]
_FACTOR, _SECOND, _THIRD = U(_P64[0]), U(_P64[1]), U(_P64[2])
_MIX, _MIX_SHORT = U(0x165667919E3779F9), U(0x9FB21C651E98DF25)
_STRIPE, _BLOCK = 64, 1024  # bytes: what the lanes take at once; what they take before they are scrambled


def xxh3_64(data: U, nbytes: I) -> U:
    """The hash of `nbytes` bytes at the address `data`."""
    s = U(_SECRET.ctypes.data)
    n, end = U(nbytes), data + U(nbytes)
    if nbytes > 240:
        return _long(data, nbytes, s)
    if nbytes > 16:
        h = n * _FACTOR
        if nbytes > 128:
            for i in range(8):
                h += _mix(data, U(16 * i), s + U(16 * i))
            h = _avalanche(h)
            for i in range(8, nbytes // 16):
                h += _mix(data, U(16 * i), s + U(16 * i - 125))
            return _avalanche(h + _mix(end, U(0) - U(16), s + U(119)))
        for i in range((nbytes - 1) // 32 + 1):
            h += _mix(data, U(16 * i), s + U(32 * i)) + _mix(end, U(0) - U(16 * i + 16), s + U(32 * i + 16))
        return _avalanche(h)
    if nbytes > 8:
        low = _word(data) ^ _word(s + U(24)) ^ _word(s + U(32))
        high = _word(end - U(8)) ^ _word(s + U(40)) ^ _word(s + U(48))
        return _avalanche(n + _swap(low) + high + _fold(low, high))
    if nbytes > 3:
        h = (word32_at(end - U(4)) | word32_at(data) << U(32)) ^ _word(s + U(8)) ^ _word(s + U(16))
        h = (h ^ (h << U(49) | h >> U(15)) ^ (h << U(24) | h >> U(40))) * _MIX_SHORT
        h = (h ^ (h >> U(35)) + n) * _MIX_SHORT
        return h ^ h >> U(28)
    h = _word(s + U(56)) ^ _word(s + U(64))
    if nbytes > 0:
        h = word32_at(s) ^ word32_at(s + U(4)) ^ _byte(end - U(1))
        h ^= _byte(data) << U(16) | _byte(data + (n >> U(1))) << U(24) | n << U(8)
    h = (h ^ h >> U(33)) * _SECOND
    h = (h ^ h >> U(29)) * _THIRD
    return h ^ h >> U(32)


@inlined
def _long(data: U, nbytes: I, s: U) -> U:
    lanes, at = _lanes(), data
    _begin(lanes)
    for _ in range((nbytes - 1) // _BLOCK):
        _block(lanes, at, s)
        _scramble(lanes, s + U(128))
        at += U(_BLOCK)
    for i in range((nbytes - 1) % _BLOCK // _STRIPE):
        _stripe(lanes, at, s + U(8 * i))
        at += U(_STRIPE)
    _stripe(lanes, data + U(nbytes - _STRIPE), s + U(121))
    h = U(nbytes) * _FACTOR
    for i in range(4):
        h += _mix(lanes, U(16 * i), s + U(11 + 16 * i))
    return _avalanche(h)


@inlined
def _mix(data: U, offset: U, s: U) -> U:
    return _fold(_word(data + offset) ^ _word(s), _word(data + offset + U(8)) ^ _word(s + U(8)))


@inlined
def _avalanche(h: U) -> U:
    h = (h ^ h >> U(37)) * _MIX
    return h ^ h >> U(32)


# ---------------------------------------------------------------------------------------------- LLVM code
_LANES = ir.VectorType(ir.IntType(64), 8)
_NEIGHBOURS = ir.Constant(ir.VectorType(ir.IntType(32), 8), [1, 0, 3, 2, 5, 4, 7, 6])
_WIDE = ir.IntType(128)
_u64, _i64 = types.uint64, types.int64


def _fold_halves(typing_context: Any, x: Any, y: Any) -> Any:
    """The halves of a product of 128 bits, exclusive or."""

    def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
        product = b.mul(*(b.zext(value, _WIDE) for value in values))
        return b.trunc(b.xor(product, b.lshr(product, ir.Constant(_WIDE, 64))), ir.IntType(64))

    return _u64(_u64, _u64), generate


def _swap_bytes(typing_context: Any, x: Any) -> Any:
    return _u64(_u64), lambda context, b, signature, values: b.bswap(values[0])


def _loads(bits: int) -> Any:
    def define(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
            value = b.load(b.inttoptr(values[0], ir.IntType(bits).as_pointer()))
            value.align = 1
            return b.zext(value, ir.IntType(64))

        return _u64(_u64), generate

    return intrinsic(define)


def _room(typing_context: Any) -> Any:
    def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
        with b.goto_entry_block():
            return b.ptrtoint(b.alloca(_LANES), ir.IntType(64))

    return _u64(), generate


def _load(b: Any, address: Any, offset: int = 0) -> Any:
    value = b.load(b.inttoptr(b.add(address, ir.Constant(address.type, offset)), _LANES.as_pointer()))
    value.align = 1
    return value


def _store(b: Any, address: Any, lanes: Any) -> None:
    b.store(lanes, b.inttoptr(address, _LANES.as_pointer())).align = 1


def _all(value: int) -> Any:
    return ir.Constant(_LANES, [value] * 8)


def _first_lanes(typing_context: Any, lanes: Any) -> Any:
    def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
        _store(b, values[0], ir.Constant(_LANES, _START))

    return types.void(_u64), generate


def _stripes(count: int) -> Any:
    """A function for kernels, (lanes, data, secret): add `count` stripes to the lanes."""

    def define(typing_context: Any, lanes: Any, data: Any, secret: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
            lanes, data, secret = values
            sums, plain = _load(b, lanes), _all(0)
            for i in range(count):
                stripe = _load(b, data, _STRIPE * i)
                keyed = b.xor(stripe, _load(b, secret, 8 * i))
                sums = b.add(sums, b.mul(b.and_(keyed, _all(0xFFFFFFFF)), b.lshr(keyed, _all(32))))
                plain = b.add(plain, stripe)
            # Each lane takes the data of its neighbour: their sum does as well, and moves once.
            _store(b, lanes, b.add(sums, b.shuffle_vector(plain, plain, _NEIGHBOURS)))

        return types.void(_u64, _u64, _u64), generate

    return intrinsic(define)


def _scramble_lanes(typing_context: Any, lanes: Any, secret: Any) -> Any:
    def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x = _load(b, values[0])
        x = b.xor(b.xor(x, b.lshr(x, _all(47))), _load(b, values[1]))
        _store(b, values[0], b.mul(x, _all(_P32[0])))

    return types.void(_u64, _u64), generate


_fold: Any = intrinsic(_fold_halves)
_swap: Any = intrinsic(_swap_bytes)
_lanes: Any = intrinsic(_room)
_byte, word32_at, _word = _loads(8), _loads(32), _loads(64)
_begin: Any = intrinsic(_first_lanes)
_stripe, _block = _stripes(1), _stripes(_BLOCK // _STRIPE)
_scramble: Any = intrinsic(_scramble_lanes)


def _call(typing_context: Any, function: Any, data: Any, nbytes: Any) -> Any:
    def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word, word])
        return b.call(b.inttoptr(values[0], kind.as_pointer()), values[1:])

    return _u64(_u64, _u64, _u64), generate


xxh3_at: Any = intrinsic(_call)  # for kernels: (the address of `xxh3_64`, data, nbytes) -> hash


@cache
def xxh3_address() -> int:
    """Of the compiled function; an argument of kernels that call it."""
    return callback(xxh3_64, (_u64, _i64), _u64)
