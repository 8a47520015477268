"""Canonical Huffman over bytes in ten round-robin bit streams (SPEC section 5, coder 4).

The unrolled rounds of 50 symbols are emitted by one intrinsic each, on a tuple of stream registers: unrolled Python
source compiles four times longer, and arrays of states never get into registers. Loads are unaligned and little-endian.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from .jit import inlined, kernel
from .status import BAD_PADDING, HEADER_TRUNCATED, OK, SIZE_MISMATCH, STREAM_EXHAUSTED, STREAM_LEFT_OVER

U: Any = np.uint64
I: Any = np.int64  # noqa: E741
STREAMS = 10
HEADER = 4 * STREAMS
WIDTH = 11  # longest code
ROUND = 5  # symbols per stream between two refills: 5 * 11 bits and 7 left over fit 63
SENTINEL = U(1 << 63)
SLACK = 16  # bytes per stream that the encoder writes beyond its bits

_B8, _B16, _B32, _B64 = (ir.IntType(n) for n in (8, 16, 32, 64))
_U64 = types.uint64
_ALL = types.UniTuple(_U64, STREAMS)
_HALF = types.UniTuple(_U64, STREAMS // 2)


def _load(b: Any, address: Any, kind: Any) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _store(b: Any, address: Any, value: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def _c(n: int) -> Any:
    return ir.Constant(_B64, n)


@intrinsic  # type: ignore[untyped-decorator]
def _load64(typingctx: Any, address: Any) -> Any:
    return _U64(_U64), lambda context, b, sig, args: _load(b, args[0], _B64)


@intrinsic  # type: ignore[untyped-decorator]
def _store64(typingctx: Any, address: Any, value: Any) -> Any:
    def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
        _store(b, args[0], args[1])
        return context.get_dummy_value()

    return types.void(_U64, _U64), emit


@intrinsic  # type: ignore[untyped-decorator]
def _leading_zeros(typingctx: Any, value: Any) -> Any:
    return _U64(_U64), lambda context, b, sig, args: b.ctlz(args[0], ir.Constant(ir.IntType(1), 1))


@intrinsic  # type: ignore[untyped-decorator]
def _decode_round(typingctx: Any, bits: Any, pointers: Any, table: Any, out: Any) -> Any:
    """50 symbols, then refill: the sentinel above the bits tells by its position how many were used."""

    def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
        x = cgutils.unpack_tuple(b, args[0], STREAMS)
        p = cgutils.unpack_tuple(b, args[1], STREAMS)
        for j in range(ROUND):
            for k in range(STREAMS):
                index = b.shl(b.and_(x[k], _c((1 << WIDTH) - 1)), _c(1))
                entry = b.zext(_load(b, b.add(args[2], index), _B16), _B64)
                x[k] = b.lshr(x[k], b.and_(entry, _c(63)))
                _store(b, b.add(args[3], _c(STREAMS * j + k)), b.trunc(b.lshr(entry, _c(8)), _B8))
        for k in range(STREAMS):
            used = b.ctlz(x[k], ir.Constant(ir.IntType(1), 1))
            p[k] = b.add(p[k], b.lshr(used, _c(3)))
            x[k] = b.lshr(b.or_(_load(b, p[k], _B64), _c(1 << 63)), b.and_(used, _c(7)))
        return context.make_tuple(b, sig.return_type, [context.make_tuple(b, _ALL, v) for v in (x, p)])

    return types.UniTuple(_ALL, 2)(_ALL, _ALL, _U64, _U64), emit


@intrinsic  # type: ignore[untyped-decorator]
def _encode_round(typingctx: Any, bits: Any, fill: Any, pointers: Any, table: Any, source: Any) -> Any:
    """5 symbols into each of 5 bit buffers, then store the whole bytes of each: ten buffers at once would spill."""

    def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
        x, n, p = (cgutils.unpack_tuple(b, args[i], STREAMS // 2) for i in range(3))
        for j in range(ROUND):
            for k in range(STREAMS // 2):
                symbol = b.zext(_load(b, b.add(args[4], _c(STREAMS * j + k)), _B8), _B64)
                entry = b.zext(_load(b, b.add(args[3], b.shl(symbol, _c(2))), _B32), _B64)
                x[k] = b.or_(x[k], b.shl(b.lshr(entry, _c(8)), b.and_(n[k], _c(63))))
                n[k] = b.add(n[k], b.and_(entry, _c(255)))
        for k in range(STREAMS // 2):
            _store(b, p[k], x[k])
            p[k] = b.add(p[k], b.lshr(n[k], _c(3)))
            x[k] = b.lshr(x[k], b.and_(n[k], _c(56)))
            n[k] = b.and_(n[k], _c(7))
        return context.make_tuple(b, sig.return_type, [context.make_tuple(b, _HALF, v) for v in (x, n, p)])

    return types.UniTuple(_HALF, 3)(_HALF, _HALF, _HALF, _U64, _U64), emit


@kernel
def decode(payload: NDArray[np.uint8], table: NDArray[np.uint16], out: NDArray[np.uint8]) -> int:
    """Fill `out`; `table` (2^11 entries, by the next 11 bits) holds `symbol << 8 | length`, length 0 for no code."""
    if payload.size < HEADER:
        return HEADER_TRUNCATED
    starts = np.empty(STREAMS + 1, np.int64)
    starts[0] = HEADER
    for k in range(STREAMS):
        size = I(0)
        for i in range(4):
            size |= I(payload[4 * k + i]) << (8 * i)
        starts[k + 1] = starts[k] + size
    if starts[STREAMS] != payload.size:
        return SIZE_MISMATCH
    used = np.zeros(STREAMS, np.int64)  # bits of each stream
    done: int = 0
    # A stream that is too short runs into the next one, which is found out at the end; none may pass the payload.
    limit = I(payload.size) - 8
    if starts[STREAMS - 1] <= limit and out.size >= STREAMS * ROUND:
        done = _decode_rounds(payload, table, out, starts, used, limit)
    for j in range(done, out.size):
        k = j % STREAMS
        window = I(0)
        first = starts[k] + (used[k] >> 3)
        for i in range(3):
            if first + i < starts[k + 1]:
                window |= I(payload[first + i]) << (8 * i)
        entry = table[(window >> (used[k] & 7)) & ((1 << WIDTH) - 1)]
        used[k] += entry & 63
        out[j] = entry >> 8
    for k in range(STREAMS):
        nbytes = (used[k] + 7) >> 3
        if nbytes > starts[k + 1] - starts[k]:
            return STREAM_EXHAUSTED
        if nbytes < starts[k + 1] - starts[k]:
            return STREAM_LEFT_OVER
        # A window without a code leaves its bit, which is 1, behind: it is found here or as a byte left over.
        if used[k] & 7 and payload[starts[k + 1] - 1] >> (used[k] & 7):
            return BAD_PADDING
    return OK


@inlined
def _decode_rounds(
    payload: NDArray[np.uint8],
    table: NDArray[np.uint16],
    out: NDArray[np.uint8],
    starts: NDArray[np.int64],
    used: NDArray[np.int64],
    limit: int,
) -> int:
    """Whole rounds, as long as no stream can read beyond byte `limit + 8`. Returns the symbols done, sets `used`."""
    base = U(payload.ctypes.data)
    last = base + U(limit)
    p = (base + U(starts[0]), base + U(starts[1]), base + U(starts[2]), base + U(starts[3]), base + U(starts[4]),
         base + U(starts[5]), base + U(starts[6]), base + U(starts[7]), base + U(starts[8]), base + U(starts[9]))  # fmt: skip
    x = (_load64(p[0]) | SENTINEL, _load64(p[1]) | SENTINEL, _load64(p[2]) | SENTINEL, _load64(p[3]) | SENTINEL,
         _load64(p[4]) | SENTINEL, _load64(p[5]) | SENTINEL, _load64(p[6]) | SENTINEL, _load64(p[7]) | SENTINEL,
         _load64(p[8]) | SENTINEL, _load64(p[9]) | SENTINEL)  # fmt: skip
    lookup, target = U(table.ctypes.data), U(out.ctypes.data)
    left = U(out.size // (STREAMS * ROUND))
    while left > U(0):
        top = max(max(max(p[0], p[1]), max(p[2], p[3])), max(max(p[4], p[5]), max(p[6], p[7])))
        top = max(top, max(p[8], p[9]))
        # A refill moves a pointer by at most 7 bytes. A test in the loop itself would cost a fifth of the speed.
        rounds = min(left, (last - top) // U(7))
        if rounds == U(0):
            break
        left -= rounds
        while rounds > U(0):
            x, p = _decode_round(x, p, lookup, target)
            target += U(STREAMS * ROUND)
            rounds -= U(1)
    for k in range(STREAMS):
        used[k] = (I(p[k] - base) - starts[k]) * 8 + I(_leading_zeros(x[k]))
    done: int = (out.size // (STREAMS * ROUND) - I(left)) * (STREAMS * ROUND)
    return done


@kernel
def encode(data: NDArray[np.uint8], codes: NDArray[np.uint32], dst: NDArray[np.uint8]) -> int:
    """Write the payload to the start of `dst` (`encoded_bound(n)` bytes); returns its size.

    `codes` holds `reversed code << 8 | length` for each byte; every byte of `data` must have a code.
    """
    capacity = (data.size // STREAMS + 1) * WIDTH // 8 + SLACK
    base, lookup, z = U(dst.ctypes.data) + U(HEADER), U(codes.ctypes.data), U(0)
    step = STREAMS * ROUND
    done = data.size // step * step
    sizes = np.empty(STREAMS, np.int64)
    for half in (0, 5):
        c, source = U(capacity), U(data.ctypes.data) + U(half)
        first = base + U(half) * c
        p = (first, first + c, first + U(2) * c, first + U(3) * c, first + U(4) * c)
        x = (z, z, z, z, z)
        n = (z, z, z, z, z)
        for _ in range(data.size // step):
            x, n, p = _encode_round(x, n, p, lookup, source)
            source += U(step)
        for k in range(5):
            buffer, fill, q = x[k], n[k], p[k]
            for j in range(done + half + k, data.size, STREAMS):
                entry = U(codes[data[j]])
                buffer |= (entry >> U(8)) << fill
                fill += entry & U(255)
                _store64(q, buffer)
                q += fill >> U(3)
                buffer >>= fill & U(56)
                fill &= U(7)
            _store64(q, buffer)
            sizes[half + k] = I(q - first) - k * capacity + (1 if fill > z else 0)
    total: int = HEADER
    for k in range(STREAMS):
        for i in range(4):
            dst[4 * k + i] = sizes[k] >> (8 * i) & 255
        for j in range(0, sizes[k], 8):  # downwards or in place, so no byte is overwritten before it is read
            _store64(U(dst.ctypes.data) + U(total + j), _load64(base + U(k * capacity + j)))
        total += sizes[k]
    return total


def encoded_bound(nbytes: int) -> int:
    """Size of `dst` that `encode` needs for a buffer of `nbytes`."""
    return HEADER + STREAMS * ((nbytes // STREAMS + 1) * WIDTH // 8 + SLACK) + 8
