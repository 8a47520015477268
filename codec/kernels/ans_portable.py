"""Interleaved rANS in plain integer code: the portable twins of the vector kernels (SPEC section 5, coders 2 and 3).

Every module of ANS kernels has these four functions, byte for byte interchangeable:

    encode_ans16(packed u8[n], streams, frequencies u16[16], dst u8[>= encoded_bound]) -> nbytes
    encode_ans256(packed u8[n], streams, frequencies u16[256], dst) -> nbytes
    decode_ans16(payload u8[m], streams, frequencies u16[16], out u8[n]) -> status
    decode_ans256(payload u8[m], streams, frequencies u16[256], out u8[n]) -> status

Encoders expect n >= 1, valid streams and a frequency of at least 1 for every symbol in `packed`; the payload is the
LAST `nbytes` bytes of `dst`, because words come out backwards. `encode_ans16` returns -1 where it meets a symbol of
frequency 0, except among the last 128 bytes. Decoders take any bytes and any number of streams.
Frequencies come from a validated table: their sum is 2^8 or 2^12 and each is smaller than that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ans_header import LANES, I, U, pack_states, put_sizes, read_sizes, stream_share, unpack_states
from .jit import inlined, kernel
from .status import BAD_FINAL_STATE, BAD_PADDING, BAD_STATE, OK, STREAM_EXHAUSTED, STREAM_LEFT_OVER

TAIL = 64  # bytes at the end of a stream that the lanes' end states carry


@kernel
def decode_ans16(
    payload: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], out: NDArray[np.uint8]
) -> int:
    table = np.zeros(256, np.uint32)  # by low byte of the state: frequency | slot - start << 8 | symbol << 16
    low = 128  # the low byte that means slot 0
    for s in range(16):
        for r in range(I(frequencies[s])):
            table[low & 255] = I(frequencies[s]) | r << 8 | s << 16
            low += 1
    return _decode(payload, streams, table, True, out)


@kernel
def decode_ans256(
    payload: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], out: NDArray[np.uint8]
) -> int:
    table = np.zeros(4096, np.uint32)  # by slot: frequency | slot - start << 12 | symbol << 24
    slot = 0
    for s in range(256):
        for r in range(I(frequencies[s])):
            table[slot & 4095] = I(frequencies[s]) | r << 12 | s << 24
            slot += 1
    return _decode(payload, streams, table, False, out)


@inlined
def _decode16(y: np.uint64, table: NDArray[np.uint32]) -> tuple[np.uint64, np.uint64]:
    """Two nibbles of one state, without the refill."""
    e = U(table[y & U(255)])
    y = (e & U(255)) * (y >> U(8)) + ((e >> U(8)) & U(255))
    g = U(table[y & U(255)])
    y = (g & U(255)) * (y >> U(8)) + ((g >> U(8)) & U(255))
    return y, (e >> U(16)) | (g >> U(16)) << U(4)


@inlined
def _decode256(y: np.uint64, table: NDArray[np.uint32]) -> tuple[np.uint64, np.uint64]:
    """One byte of one state, without the refill."""
    e = U(table[y & U(4095)])
    return (e & U(4095)) * (y >> U(12)) + ((e >> U(12)) & U(4095)), e >> U(24)


@inlined
def _refill(y: np.uint64, payload: NDArray[np.uint8], position: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Without a branch: whether a state needs a word is as good as random."""
    word = U(payload[position]) | U(payload[position + U(1)]) << U(8)
    need = (y - U(65536)) >> U(63)  # the borrow bit
    return y << (need << U(4)) | word & (U(0) - need), position + (need << U(1))


@inlined
def _lanes(
    x: NDArray[np.uint64],
    table: NDArray[np.uint32],
    nibbles: bool,
    payload: NDArray[np.uint8],
    position: int,
    stop: int,
    out: NDArray[np.uint8],
    at: int,
    lanes: int,
) -> int:
    """One step of some lanes near the end of a stream: every word is checked. Returns the position, -1 if none is left."""
    for lane in range(lanes):
        y = x[lane]
        y, symbol = _decode16(y, table) if nibbles else _decode256(y, table)
        if y < U(65536):
            if position + 2 > stop:
                return -1
            y = y << U(16) | U(payload[position]) | U(payload[position + 1]) << U(8)
            position += 2
        x[lane] = y
        out[at + lane] = symbol
    return position


@kernel
def _decode(
    payload: NDArray[np.uint8], streams: int, table: NDArray[np.uint32], nibbles: bool, out: NDArray[np.uint8]
) -> int:
    n = out.size
    starts = np.empty(256, np.int64)
    status = read_sizes(payload, streams, n, starts)
    if status != OK:
        return status
    share = stream_share(n, streams)
    states = 4 * (streams - 1)
    x = np.empty(LANES, np.uint64)
    for k in range(streams):
        position, stop = starts[k], starts[k + 1]
        states = unpack_states(payload, states, x)
        if states < 0:
            return BAD_STATE
        at = k * share
        size = min(share, n - at)
        end = at + max(0, size - TAIL)
        while at + LANES <= end and position + 2 * LANES <= stop:
            p, o = U(position), U(at)
            if nibbles:
                for lane in range(LANES):
                    y, symbol = _decode16(x[lane], table)
                    x[lane], p = _refill(y, payload, p)
                    out[o + U(lane)] = symbol
            else:
                for lane in range(LANES):
                    y, symbol = _decode256(x[lane], table)
                    x[lane], p = _refill(y, payload, p)
                    out[o + U(lane)] = symbol
            position = I(p)
            at += LANES
        while at < end:
            lanes = min(LANES, end - at)
            position = _lanes(x, table, nibbles, payload, position, stop, out, at, lanes)
            if position < 0:
                return STREAM_EXHAUSTED
            at += lanes
        if position != stop:
            return STREAM_LEFT_OVER
        tail = size - max(0, size - TAIL)
        for lane in range(LANES):
            if x[lane] >= U(131072) or x[lane] < U(65536):
                return BAD_FINAL_STATE
            for i in range(2):
                byte = x[lane] >> U(8 * i) & U(255)
                if 2 * lane + i < tail:
                    out[at + 2 * lane + i] = byte
                elif byte != U(0):
                    return BAD_PADDING
    return OK


@kernel
def encode_ans16(
    packed: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], dst: NDArray[np.uint8]
) -> int:
    # x // f is x * ceil(2^40 / f) >> 40: exact while x * f < 2^40, and the product fits 64 bits while x < f * 2^24,
    # which hold for both nibbles because a word leaves a state that is not below f_low * f_high * 2^16.
    f = np.zeros(16, np.uint64)
    reciprocal = np.zeros(16, np.uint64)
    bias = np.zeros(16, np.uint64)
    start = 128
    for s in range(16):
        f[s] = frequencies[s]
        bias[s] = start
        start += I(frequencies[s])
        if frequencies[s]:
            reciprocal[s] = ((1 << 40) + I(frequencies[s]) - 1) // I(frequencies[s])
    n = packed.size
    share = stream_share(n, streams)
    x = np.empty((streams, LANES), np.uint64)
    words = np.empty(streams, np.uint64)
    p, least = U(dst.size), U(1)
    for k in range(streams - 1, -1, -1):
        begin, size = k * share, min(share, n - k * share)
        body = _seed(packed, begin, size, x[k])
        top = p
        for at in range((body - 1) // LANES * LANES, -1, -LANES):
            for lane in range(min(LANES, body - at) - 1, -1, -1):
                v = packed[U(begin + at + lane)]
                low, high = U(v) & U(15), U(v) >> U(4)
                y = x[k, U(lane)]
                least = min(least, f[low] * f[high])
                y, p = _spill(y, (f[low] * f[high]) << U(16), dst, p)
                q = (y * reciprocal[high]) >> U(40)
                y = q << U(8) | (y - q * f[high] + bias[high]) & U(255)
                q = (y * reciprocal[low]) >> U(40)
                x[k, U(lane)] = q << U(8) | (y - q * f[low] + bias[low]) & U(255)
        words[k] = (top - p) >> U(1)
    return -1 if least == U(0) else dst.size - _put_header(x, words, dst, I(p))


@kernel
def encode_ans256(
    packed: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], dst: NDArray[np.uint8]
) -> int:
    # As above with ceil(2^44 / f) >> 44: x < f * 2^20 when it is divided.
    f = np.zeros(256, np.uint64)
    reciprocal = np.zeros(256, np.uint64)
    bias = np.zeros(256, np.uint64)
    start = 0
    for s in range(256):
        f[s] = frequencies[s]
        bias[s] = start
        start += I(frequencies[s])
        if frequencies[s]:
            reciprocal[s] = ((1 << 44) + I(frequencies[s]) - 1) // I(frequencies[s])
    n = packed.size
    share = stream_share(n, streams)
    x = np.empty((streams, LANES), np.uint64)
    words = np.empty(streams, np.uint64)
    p = U(dst.size)
    for k in range(streams - 1, -1, -1):
        begin, size = k * share, min(share, n - k * share)
        body = _seed(packed, begin, size, x[k])
        top = p
        for at in range((body - 1) // LANES * LANES, -1, -LANES):
            for lane in range(min(LANES, body - at) - 1, -1, -1):
                s = packed[U(begin + at + lane)]
                y, p = _spill(x[k, U(lane)], f[s] << U(20), dst, p)
                q = (y * reciprocal[s]) >> U(44)
                x[k, U(lane)] = y + q * (U(4096) - f[s]) + bias[s]
        words[k] = (top - p) >> U(1)
    return dst.size - _put_header(x, words, dst, I(p))


@inlined
def _seed(packed: NDArray[np.uint8], begin: int, size: int, x: NDArray[np.uint64]) -> int:
    """Start the lanes at the stream's last bytes. Returns how many bytes remain to be coded."""
    body = max(0, size - TAIL)
    for lane in range(LANES):
        x[lane] = 65536
    for i in range(size - body):
        x[i >> 1] += U(packed[begin + body + i]) << U(8 * (i & 1))
    return body


@inlined
def _spill(y: np.uint64, limit: np.uint64, dst: NDArray[np.uint8], p: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Move the low word of a state to the stream if it is not below `limit`; written always, kept if needed."""
    over = U(1) - ((y - limit) >> U(63))
    dst[p - U(2)] = y & U(255)
    dst[p - U(1)] = (y >> U(8)) & U(255)
    return y >> (over << U(4)), p - (over << U(1))


@inlined
def _put_header(x: NDArray[np.uint64], words: NDArray[np.uint64], dst: NDArray[np.uint8], end: int) -> int:
    """Write sizes and states in front of the streams. Returns where the payload begins."""
    for k in range(words.size - 1, -1, -1):
        end = pack_states(x[k], dst, end)
    return put_sizes(words, dst, end)
