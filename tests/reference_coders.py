"""Reference of the coders and table banks of the .qzc format: sections 5 and 6 of docs/SPEC.md, plain and slow.

The half of the reference decoder that knows nothing of files. See `reference_decoder` for its rules.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from tests.reference_header import must

# ---------------------------------------------------------------------------------------------------------------------
# 5. Coders


def decode_payload(data: bytes, coder: int, table: list[int], streams: int, n: int, where: str) -> bytes:
    """The packed buffer, `n` bytes, of the payload of a chunk. table: empty for coders 0 and 1."""
    if coder == 0:
        must(len(data) == n, f"{where} raw", "wrong size")
        return data
    if coder == 1:
        must(len(data) == 1, f"{where} constant", "wrong size")
        return data * n
    if coder == 4:
        return decode_huffman(data, table, n, f"{where} huffman")
    if coder == 5:
        return decode_split(data, table, streams, n, f"{where} split8")
    if coder == 6:
        return decode_escape(data, table, streams, n, f"{where} escape16")
    if coder == 8:
        nibbles = decode_lanes(data, table, 12, streams, 2 * n, f"{where} short16")
        return bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    if coder == 9:
        frequencies, precision, size = read_payload_table(data, f"{where} short256 table")
        return bytes(decode_lanes(data[size:], frequencies, precision, streams, n, f"{where} short256"))
    return decode_ans(data, table, coder, streams, n, f"{where} ans")


def decode_ans(data: bytes, frequencies: list[int], coder: int, streams: int, n: int, where: str) -> bytes:
    q = -(-n // (32 * streams)) * 32
    must((streams - 1) * q < n, f"{where} streams", "one of them covers no byte")
    must(len(data) >= 4 * (streams - 1), where, "too short")
    words = list(struct.unpack_from(f"<{streams - 1}I", data))
    position = 4 * (streams - 1)
    states = []
    for k in range(streams):
        initial, position = read_states(data, position, f"{where} stream {k} states")
        states.append(initial)
    left = len(data) - position - 2 * sum(words)  # for the last stream
    must(left >= 0 and left % 2 == 0, f"{where} words", "do not fill the payload")
    buffer = b""
    for k, count in enumerate([*words, left // 2]):
        stream = struct.unpack_from(f"<{count}H", data, position)
        position += 2 * count
        m = min((k + 1) * q, n) - k * q
        buffer += decode_ans_stream(stream, states[k], frequencies, coder, m, f"{where} stream {k}")
    return buffer


def read_states(data: bytes, position: int, where: str) -> tuple[list[int], int]:
    """The initial states of a stream, all of them in 2^16 .. 2^32 - 1, and where they end."""
    must(position + 80 <= len(data), where, "the payload ends inside them")
    lengths = [e for byte in data[position : position + 16] for e in (byte & 15, byte >> 4)]
    low = struct.unpack_from("<32H", data, position + 16)
    position += 80
    end = position + -(-sum(lengths) // 16) * 2
    must(end <= len(data), where, "the payload ends inside them")
    bits = int.from_bytes(data[position:end], "little")  # the lowest bit of each byte comes first
    states = []
    for e, low_half in zip(lengths, low, strict=True):
        states.append((2**e + bits % 2**e) * 2**16 + low_half)
        bits //= 2**e
    must(bits == 0, where, "unused bits are not zero")
    return states, end


def decode_ans_stream(
    stream: tuple[int, ...], initial: list[int], frequencies: list[int], coder: int, m: int, where: str
) -> bytes:
    bits, bias = (8, 128) if coder == 2 else (12, 0)
    symbols = [symbol for symbol, frequency in enumerate(frequencies) for _ in range(frequency)]
    starts = [sum(frequencies[:symbol]) for symbol in range(len(frequencies))]
    states, words = list(initial), iter(stream)

    def decode_symbol(x: int) -> tuple[int, int]:
        slot = (x + bias) % 2**bits
        symbol = symbols[slot]
        return symbol, frequencies[symbol] * (x // 2**bits) + slot - starts[symbol]

    body = max(0, m - 64)
    out = bytearray()
    for j in range(body):  # steps of 32 bytes, lane after lane: the order of the bytes
        x = states[j % 32]
        byte, x = decode_symbol(x)
        if coder == 2:
            high, x = decode_symbol(x)
            byte |= high << 4
        if x < 2**16:
            word = next(words, None)
            must(word is not None, f"{where} words", "too few")
            x = x * 2**16 + (word or 0)
        states[j % 32] = x
        out.append(byte)
    must(next(words, None) is None, f"{where} words", "too many")
    must(all(2**16 <= x < 2**17 for x in states), f"{where} states", "a final state is not in 2^16 .. 2^17 - 1")
    tail = struct.pack("<32H", *(x - 2**16 for x in states))
    must(not any(tail[m - body :]), f"{where} tail", "not zero beyond the tail")
    return bytes(out) + tail[: m - body]


def decode_huffman(data: bytes, lengths: list[int], n: int, where: str) -> bytes:
    codes: dict[tuple[int, int], int] = {}  # (length, code) -> symbol
    code, last = -1, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        code = (code + 1) << (length - last) if codes else 0
        codes[length, code] = symbol
        last = length
    must(len(data) >= 40, where, "too short")
    sizes = struct.unpack_from("<10I", data)
    must(len(data) == 40 + sum(sizes), f"{where} sizes", "do not fill the payload")
    out, position = bytearray(n), 40
    for k, size in enumerate(sizes):
        stream = data[position : position + size]
        position += size
        used = 0
        for j in range(k, n, 10):
            length = code = 0
            while (length, code) not in codes:
                must(length < 11 and used < 8 * size, f"{where} stream {k}", "no such code")
                code = code << 1 | stream[used // 8] >> used % 8 & 1
                length, used = length + 1, used + 1
            out[j] = codes[length, code]
        must(size == -(-used // 8), f"{where} sizes", f"stream {k} has unused bytes")
        must(used % 8 == 0 or stream[-1] >> used % 8 == 0, f"{where} stream {k}", "unused bits are not zero")
    return bytes(out)


def decode_split(data: bytes, frequencies: list[int], streams: int, n: int, where: str) -> bytes:
    h = -(-n // 2)
    must(len(data) >= h, f"{where} low", "too short")
    high = decode_ans(data[h:], frequencies, 2, streams, h, where)
    nibbles = [[nibble for byte in packed for nibble in (byte & 15, byte >> 4)] for packed in (data[:h], high)]
    must(not any(nibbles[0][n:]), f"{where} low", "unused bits of the last byte are not zero")
    must(not any(nibbles[1][n:]), f"{where} high", "unused bits of the last byte are not zero")
    return bytes((high << 4 | low) - 8 & 255 for low, high in zip(*nibbles, strict=True))[:n]


def decode_escape(data: bytes, table: list[int], streams: int, n: int, where: str) -> bytes:
    count = int.from_bytes(data[:4], "little")
    must(len(data) >= 4 + count, f"{where} escaped", "too short")
    escaped = iter(data[4 : 4 + count])
    packed = decode_ans(data[4 + count :], table[:16], 2, streams, -(-n // 2), where)
    symbols = [symbol for byte in packed for symbol in (byte & 15, byte >> 4)]
    must(not any(symbols[n:]), f"{where} symbols", "unused bits of the last byte are not zero")
    out = bytearray()
    for symbol in symbols[:n]:
        byte = table[16 + symbol] if symbol < 15 else next(escaped, None)
        must(byte is not None, f"{where} escaped", "too few")
        out.append(byte or 0)
    must(next(escaped, None) is None, f"{where} escaped", "too many")
    return bytes(out)


def decode_lanes(data: bytes, frequencies: list[int], precision: int, lanes: int, n: int, where: str) -> list[int]:
    """The `n` symbols of a payload of coder 8, or of coder 9 behind its table."""
    must(lanes in (1, 2, 4), f"{where} streams", str(lanes))
    rest = len(data) - 4 * (lanes - 1)
    size = rest if rest <= 4 else 3 if rest % 2 else 4
    must(rest >= 1, where, "too short")
    must(data[size - 1] > 0, f"{where} state", "its last byte is 0")
    states = [int.from_bytes(data[:size], "little"), *struct.unpack_from(f"<{lanes - 1}I", data, size)]
    must(lanes == 1 or min(states) >= 2**16, f"{where} states", "below 2^16")
    words = [word for (word,) in struct.iter_unpack("<H", data[size + 4 * (lanes - 1) :])][::-1]
    symbols = [symbol for symbol, frequency in enumerate(frequencies) for _ in range(frequency)]
    starts = [sum(frequencies[:symbol]) for symbol in range(len(frequencies))]
    found = []
    for i in range(n):
        x = states[i % lanes]
        slot = x % 2**precision
        symbol = symbols[slot]
        x = frequencies[symbol] * (x // 2**precision) + slot - starts[symbol]
        if x < 2**16 and words:
            x = x * 2**16 + words.pop()
        states[i % lanes] = x
        found.append(symbol)
    must(not words, f"{where} words", "too many")
    must(states == ([1] if lanes == 1 else [2**16] * lanes), f"{where} states", "the final ones are wrong")
    return found


def read_payload_table(data: bytes, where: str) -> tuple[list[int], int, int]:
    """(frequencies, bits of precision, size) of the table that a payload of coder 9 begins with."""
    must(len(data) >= 3, where, "too short")
    first, last, precision, kind = data[0], data[1], data[2] % 16, data[2] // 16
    must(first < last and precision >= 8 and kind < 2, where, "its first bytes")
    bits = "".join(format(byte, "08b")[::-1] for byte in data[3:])
    frequencies, at, a = [0] * 256, 0, 2
    for symbol in range(first, last):
        before = frequencies[symbol - 1] if symbol > first else 0
        m = before if kind else a // 2
        order = max(0, m.bit_length() - 1)
        zeros = bits.find("1", at) - at
        must(0 <= zeros <= 15, where, "no number")
        at += zeros + 1
        digits = bits[at : at + zeros + order]
        must(len(digits) == zeros + order, where, "ends inside a number")
        at += zeros + order
        number = int("0" + digits[::-1], 2) + 2 ** (zeros + order) - 2**order
        if kind or number > 2 * before:
            frequencies[symbol] = number
        else:
            frequencies[symbol] = before - (number + 1) // 2 if number % 2 else before + number // 2
        a = (a + 1) // 2 + number
        must(sum(frequencies) < 2**precision, where, "the sum is too large")
    frequencies[last] = 2**precision - sum(frequencies)
    must(frequencies[last] < 2**precision, where, "only one symbol")
    size = 3 + -(-at // 8)
    must("1" not in bits[at : 8 * (size - 3)], where, "unused bits are not zero")
    return frequencies, precision, size


# ---------------------------------------------------------------------------------------------------------------------
# 6. Table banks


def read_table(coder: int, row: bytes, where: str) -> list[int]:
    """What is in a row of the bank of coder 2, 3, 4, 6 or 8.

    The frequencies or code lengths of all symbols; for coder 6 behind them the bytes that the first 15 stand for.
    """
    if coder == 2:
        table = list(row)
        must(sum(table) == 256, where, "the sum is not 256")
    elif coder in (3, 8):
        pairs = [int.from_bytes(row[i : i + 3], "little") for i in range(0, len(row), 3)]
        table = [value for pair in pairs for value in (pair & 4095, pair >> 12)]
        must(sum(table) == 4096, where, "the sum is not 4096")
    elif coder == 6:
        table = list(row[:31])
        used = sum(frequency > 0 for frequency in table[:15])
        must(sum(table[:16]) == 256, where, "the sum is not 256")
        must(all(table[:used]), where, "a symbol without frequency before others")
        values = table[16 : 16 + used]
        must(all(a < b for a, b in pairwise(values)), where, "bytes out of order")
        must(not any(row[16 + used :]), where, "unused bytes are not zero")
    else:
        table = [length for byte in row for length in (byte & 15, byte >> 4)]
        must(max(table) <= 11, where, "a length above 11")
        kraft = sum(2 ** (11 - length) for length in table if length)
        must(kraft == 2**11 or sorted(table)[-2:] == [0, 1], where, "the Kraft sum is not 1")
    return table
