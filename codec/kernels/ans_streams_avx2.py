"""What the vector kernels of both ANS coders share: streams in groups of four, their beginnings and ends.

Bounds: a step takes at most 32 words and reads at most 64 bytes from where it starts. So it is enough to look once per
batch of steps whether the payload is long enough for another batch. If it is not, the stream goes on in a copy of its
end with zeros behind it; if that too is used up, the payload was too short. Words beyond the end of a stream, which
belong to the next one, do no harm: where a stream stops is checked when it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ans_header import HEADER, LANES, I, U, read_sizes, stream_share
from .ans_portable import TAIL
from .ans_states_avx2 import STATE, copy_states, get_state, pack_states, set_state, unpack_states
from .jit import inlined, spliced
from .simd import (
    COMPRESS,
    SPREAD,
    Register,
    high_half,
    load,
    load_halves,
    load_u8,
    load_u16,
    low_half,
    popcount,
    scratch,
    shuffle_b,
    shuffle_half,
    store,
    store_half,
    store_u8,
    store_u16,
    store_u32,
)
from .status import BAD_FINAL_STATE, BAD_PADDING, BAD_STATE, OK, STREAM_EXHAUSTED, STREAM_LEFT_OVER

GROUP = 4
_BATCH = 8
_REACH = _BATCH * 2 * LANES  # bytes that a batch may read
_states = scratch(GROUP * 4 * LANES)
_pads = scratch(GROUP * 2 * _REACH)

Addresses = NDArray[np.uint64]
Function = Callable[..., Any]  # compiled, with numba's types


@inlined
def decode(
    payload: NDArray[np.uint8],
    streams: int,
    frequencies: NDArray[np.uint16],
    out: NDArray[np.uint8],
    tables: U,
    steps: Function,
    byte: Function,
) -> int:
    """Decode with two functions of the coder.

    steps(begin, end, live, states, position, target, tables) decodes bytes begin .. end - 1 (multiples of 32) of four
    streams and moves the positions; only the first `live` are needed, the others are repetitions of stream 0.
    byte(x, frequencies, tables) -> (x, byte) decodes one byte of one lane, without the refill.
    """
    n = out.size
    starts = np.empty(256, np.int64)
    status = read_sizes(payload, streams, n, starts)
    if status != OK:
        return status
    share = stream_share(n, streams)
    data = U(payload.ctypes.data)
    initial = data + U(4 * (streams - 1))
    states, pads = _states(), _pads()
    # Of each stream in the group: addresses of its next word, where that is too late for another batch, of the end of
    # its words, of its output; and how far its copied end is from the payload's.
    position, limit, stop = np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64)
    target, shift = np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64)
    end = data + U(payload.size)
    for first in range(0, streams, GROUP):
        count = min(GROUP, streams - first)
        for k in range(count):
            initial = unpack_states(initial, end, states + STATE * U(k))
            if initial == U(0):
                return BAD_STATE
            position[k], stop[k] = data + U(starts[first + k]), data + U(starts[first + k + 1])
            limit[k] = end - U(_REACH)
            shift[k] = 0
            target[k] = U(out.ctypes.data) + U((first + k) * share)
        # All streams are equally long but for the last one of the chunk: it is done first, and repeats another one then,
        # as do the places without a stream.
        done, valid = 0, count
        for k in range(count - 1, -1, -1):
            size = min(share, n - (first + k) * share)
            full = max(0, size - TAIL) // LANES * LANES
            if full > done:
                for j in range(valid, GROUP):
                    position[j], limit[j], shift[j], target[j] = position[0], limit[0], shift[0], target[0]
                    copy_states(states, states + STATE * U(j))
                while done < full:
                    for j in range(GROUP):
                        if position[j] > limit[j]:
                            if shift[j] != U(0):
                                return STREAM_EXHAUSTED
                            pad = pads + U(2 * _REACH * j)
                            _copy_end(position[j], end, pad)
                            shift[j] = position[j] - pad
                            position[j] = pad
                            limit[j] = pad + U(_REACH)
                    pause = min(full, done + _BATCH * LANES)
                    steps(U(done), U(pause), valid, states, position, target, tables)
                    done = pause
            valid = k
            status = _finish(
                states + STATE * U(k), full, size, position[k] + shift[k], stop[k], target[k], frequencies, tables, byte
            )
            if status != OK:
                return status
    return OK


@inlined
def _copy_end(source: U, end: U, pad: U) -> None:
    for i in range(2 * _REACH):
        store_u8(pad + U(i), load_u8(source + U(i)) if source + U(i) < end else U(0))


@inlined
def _finish(
    state: U,
    full: int,
    size: int,
    position: U,
    stop: U,
    target: U,
    frequencies: NDArray[np.uint16],
    tables: U,
    byte: Function,
) -> int:
    """The last step if it is not full, the checks at the end of a stream, and its tail."""
    body = max(0, size - TAIL)
    for lane in range(body - full):
        x, value = byte(get_state(state, lane), frequencies, tables)
        if x < U(65536):
            if position + U(2) > stop:
                return STREAM_EXHAUSTED
            x = x << U(16) | load_u16(position)
            position += U(2)
        set_state(state, lane, x)
        store_u8(target + U(full + lane), value)
    if position != stop:
        return STREAM_EXHAUSTED if position > stop else STREAM_LEFT_OVER
    for lane in range(LANES):
        x = get_state(state, lane)
        if x >> U(16) != U(1):
            return BAD_FINAL_STATE
        for i in range(2):
            value = x >> U(8 * i) & U(255)
            if 2 * lane + i < size - body:
                store_u8(target + U(body + 2 * lane + i), value)
            elif value != U(0):
                return BAD_PADDING
    return OK


@inlined
def take_words(p: U, mask: U) -> tuple[Register, Register, U]:
    """The next words at p, each in a 16-bit lane of `mask` in ascending order, as registers a and b; p behind them."""
    spread = U(SPREAD.ctypes.data)
    m0, m1 = mask << U(4) & U(0xFF0), mask >> U(4) & U(0xFF0)  # rows of SPREAD are 16 bytes
    m2, m3 = mask >> U(12) & U(0xFF0), mask >> U(20) & U(0xFF0)
    p1 = p + (popcount(m0) << U(1))
    p2 = p1 + (popcount(m1) << U(1))
    p3 = p2 + (popcount(m2) << U(1))
    a = shuffle_b(load_halves(p, p2), load_halves(spread + m0, spread + m2))
    b = shuffle_b(load_halves(p1, p3), load_halves(spread + m1, spread + m3))
    return a, b, p + (popcount(mask) << U(1))


@spliced
def encode(
    packed: NDArray[np.uint8],
    streams: int,
    frequencies: NDArray[np.uint16],
    dst: NDArray[np.uint8],
    end: U,
    limit: int,
    tables: U,
    steps: Function,
    byte: Function,
    sound: Function,
) -> int:
    """Encode with three functions of the coder.

    steps(begin, end, live, states, position, source, tables) codes bytes end - 1 .. begin (multiples of 32) of four
    streams and moves the positions down; only the first `live` are needed, the others are repetitions of stream 0.
    byte(x, byte, frequencies) -> (x, over, word) codes one byte of one lane; if `over`, the word goes to the stream.
    sound(tables) tells whether all symbols of all steps had a frequency above 0; if not, the result is -1.

    end: address behind the payload, which may be that behind `dst`, as if the words were moved up. Where it has `limit` bytes
    or more, only their number is returned.
    """
    n = packed.size
    share = stream_share(n, streams)
    states, data = _states(), U(dst.ctypes.data)
    top = data + U(dst.size)
    position, source = np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64)
    # Of each stream: address of its words, their number, address of its states.
    begins, words, initial = np.empty(streams, np.uint64), np.empty(streams, np.uint64), np.empty(streams, np.uint64)
    for first in range(0, streams, GROUP):
        count = min(GROUP, streams - first)
        # All streams are equally long but for the last one of the chunk: it joins in when the others are as short.
        # Before that it repeats another one, as do the places without a stream.
        begin = 0
        for joined in range(2):
            for k in range((count - 1) * joined, count - 1 + joined):
                at = (first + k) * share
                size = min(share, n - at)
                begin = max(0, size - TAIL) // LANES * LANES
                source[k] = U(packed.ctypes.data) + U(at)
                # Words go downwards, in a place of two bytes for each byte of the stream.
                begins[first + k] = top - U(2 * (n - at - size))
                position[k] = _start(
                    states + STATE * U(k), source[k], begin, size, begins[first + k], frequencies, byte
                )
            stop = 0
            if joined == 0:
                stop = max(0, min(share, n - (first + count - 1) * share) - TAIL) // LANES * LANES
            for k in range(count - 1 + joined, GROUP):
                position[k], source[k] = position[0], source[0]
                copy_states(states, states + STATE * U(k))
            if begin > stop:
                steps(U(stop), U(begin), count - 1 + joined, states, position, source, tables)
        if not sound(tables):
            return -1  # the states are nothing to be packed
        for k in range(count):
            words[first + k] = (begins[first + k] - position[k]) >> U(1)
            begins[first + k] = position[k]
            # Below all words there is room for the states of every stream.
            initial[first + k] = pack_states(states + STATE * U(k), data + U(HEADER * (first + k + 1)))
    total = 4 * (streams - 1)
    for k in range(streams):
        total += 2 * I(words[k]) + I(data + U(HEADER * (k + 1)) - initial[k])
    if total >= limit:
        return total
    for k in range(streams - 1, -1, -1):
        end -= words[k] << U(1)
        _move_up(begins[k], end, words[k] << U(1))
    for k in range(streams - 1, -1, -1):
        nbytes = data + U(HEADER * (k + 1)) - initial[k]
        end -= nbytes
        _move_up(initial[k], end, nbytes)
    for k in range(streams - 1):
        store_u32(end - U(4 * (streams - 1 - k)), words[k])
    return total


@inlined
def _start(
    state: U, source: U, full: int, size: int, position: U, frequencies: NDArray[np.uint16], byte: Function
) -> U:
    """Seed the lanes with a stream's tail, and code the last step if it is not full. Returns the new position."""
    body = max(0, size - TAIL)
    for lane in range(LANES):
        x = U(65536)
        for i in range(2):
            if 2 * lane + i < size - body:
                x |= load_u8(source + U(body + 2 * lane + i)) << U(8 * i)
        set_state(state, lane, x)
    for lane in range(body - full - 1, -1, -1):
        x, over, word = byte(get_state(state, lane), load_u8(source + U(full + lane)), frequencies)
        set_state(state, lane, x)
        if over:
            position -= U(2)
            store_u16(position, word)
    return position


@inlined
def _move_up(source: U, target: U, nbytes: U) -> None:
    """Copy to a higher address; the areas may overlap."""
    if source != target:
        i = nbytes
        while i >= U(32):
            i -= U(32)
            store(target + i, load(source + i))
        while i > U(0):
            i -= U(1)
            store_u8(target + i, load_u8(source + i))


@inlined
def put_words(p: U, mask: U, a: Register, b: Register) -> U:
    """Put the lanes of `mask` in front of p, in ascending order; the 16 bytes in front of them are lost, too."""
    compress = U(COMPRESS.ctypes.data)
    m0, m1 = mask << U(4) & U(0xFF0), mask >> U(4) & U(0xFF0)  # rows of COMPRESS are 16 bytes
    m2, m3 = mask >> U(12) & U(0xFF0), mask >> U(20) & U(0xFF0)
    store_half(p - U(16), shuffle_half(high_half(b), compress + m3))
    p -= popcount(m3) << U(1)
    store_half(p - U(16), shuffle_half(high_half(a), compress + m2))
    p -= popcount(m2) << U(1)
    store_half(p - U(16), shuffle_half(low_half(b), compress + m1))
    p -= popcount(m1) << U(1)
    store_half(p - U(16), shuffle_half(low_half(a), compress + m0))
    return p - (popcount(m0) << U(1))
