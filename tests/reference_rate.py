"""Reference decoder of tensors on unbounded grids: what docs/SPEC.md says of them in sections 3 to 6.

See `reference_decoder` for its rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.reference_header import CLASSES, VECTOR_KINDS, VECTORS, Member, Rated, matrix, must

POLYNOMIALS = {4: (2, 5), 8: (4, 0o13), 16: (4, 0o23), 32: (0o10, 0o45), 64: (0o24, 0o103)}
POLYNOMIALS |= {128: (0o126, 0o235), 256: (0o362, 0o515)}
EIGHTHS = ("3f800000", "3f8b95c2", "3f9837f0", "3fa5fed7", "3fb504f3", "3fc5672a", "3fd744fd", "3feac0c7")

Table = list[int]  # frequencies of symbols 0 .. 255


@dataclass(frozen=True)
class Bank:
    first: int
    sets: int
    gains: list[int]
    classes: list[Table]  # by class and set
    side: list[Table]


# ---------------------------------------------------------------------------------------------------------------------
# 3. From codes to values


def following(states: int, state: int, code: int) -> int:
    if not states:
        return 0
    h1, h0 = POLYNOMIALS[states]
    return (state ^ h0 * (state & 1) ^ h1 * (code & 1)) >> 1


def power(eighths: int) -> np.float32:
    mantissa = np.uint32(int(EIGHTHS[eighths % 8], 16)).view(np.float32)
    return np.float32(mantissa * np.float32(2.0 ** (eighths // 8)))


@dataclass(frozen=True)
class Grid:
    """The numbers of a tensor: its vectors, zeros where it has none, and what follows from them."""

    entry: Rated
    row_log: list[int]
    column_log: list[int]
    row_term: list[int]
    column_term: list[int]
    bank: Bank

    def scales(self) -> tuple[list[np.float32], list[np.float32]]:
        last = len(self.bank.gains) - 1
        columns = []
        for log, term in zip(self.column_log, self.column_term, strict=True):
            gain = np.float32(self.bank.gains[min(max(term, 0), last)]) / np.float32(128)
            columns.append(np.float32(np.float32(self.entry.step * power(log)) * gain))
        return [power(log) for log in self.row_log], columns


def grid_of(entry: Rated, vectors: Sequence[list[int]], bank: Bank) -> Grid:
    rows, columns = matrix(entry.shape)
    length = {"column_log": columns, "row_log": rows, "column_class": columns, "row_class": rows}
    found = {kind: [0] * length[kind] if number is None else vectors[number] for kind, number in entry.vectors.items()}
    row = [c - log for c, log in zip(found["row_class"], found["row_log"], strict=True)]
    offset = entry.offset - bank.first
    column = [offset + c - log for c, log in zip(found["column_class"], found["column_log"], strict=True)]
    return Grid(entry, found["row_log"], found["column_log"], row, column, bank)


def levels_of(codes: list[int], columns: int, entry: Rated, where: str) -> NDArray[np.int64]:
    """Levels of all codes of a tensor, row by row."""
    bits = 16 if entry.wide else 8
    levels, states = [], [0] * columns
    for i, code in enumerate(codes):
        row, column = divmod(i, columns)
        if entry.states and row % entry.restart == 0:
            states[column] = 0
        level = code
        if entry.states:
            level = 2 * code - (states[column] & 1) * ((code > 0) - (code < 0))
        must(-(2 ** (bits - 1)) <= level < 2 ** (bits - 1), where, f"level {level} does not fit {bits} bits")
        levels.append(level)
        states[column] = following(entry.states, states[column], code)
    return np.array(levels, np.int64)


def weights_of(levels: NDArray[np.int64], grid: Grid) -> NDArray[np.float32]:
    rows, columns = (np.array(scale, np.float32) for scale in grid.scales())
    matrix_of = levels.reshape(len(rows), len(columns)).astype(np.float32)
    with np.errstate(all="ignore"):
        product: NDArray[np.float32] = (matrix_of * columns[None, :]) * rows[:, None]
    return product


def read_vectors(entries: Mapping[str, Rated], members: Mapping[str, Member], bank: Bank) -> list[list[int]]:
    uses: list[tuple[str, int]] = []
    for name, entry in entries.items():
        rows, columns = matrix(entry.shape)
        for kind, number in entry.vectors.items():
            if number is None:
                continue
            use = kind, columns if kind.startswith("column") else rows
            where = f"section 3, {name!r} {kind}"
            must(number <= len(uses), where, "vectors are not numbered in the order of their use")
            if number == len(uses):
                uses.append(use)
            must(uses[number] == use, where, "a vector of another kind or length")
    must((VECTORS in members) == bool(uses), "section 1, qzc.vectors", "is there without use, or missing")
    if not uses:
        return []
    data, kinds = members[VECTORS].data, [VECTOR_KINDS.index(kind) for kind, length in uses for _ in range(length)]
    must(members[VECTORS].is_bytes(-1), "section 1, qzc.vectors", "dtype or shape")
    must(len(kinds) <= len(data) << 15, "section 3, qzc.vectors", "too short for so many elements")
    where = "section 3, qzc.vectors"
    must(bool(kinds) == bool(data), where, "bytes without elements, or none")
    values = decode_classes(data[1:], data[0], [bank.side[kind] for kind in kinds], where) if kinds else []
    must(all(-128 <= value <= 127 for value in values), where, "an element does not fit 8 bits")
    vectors, at = [], 0
    for _, length in uses:
        vectors.append(values[at : at + length])
        at += length
    return vectors


# ---------------------------------------------------------------------------------------------------------------------
# 5. Coder 7


class ClassDecoder:
    """One payload, decoded code by code, each with a table of its own."""

    def __init__(self, data: bytes, lanes: int, where: str) -> None:
        must(lanes in (1, 2, 4, 8, 16, 32), f"{where} streams", f"{lanes} is no power of 2 up to 32")
        must(len(data) >= 4 * lanes, f"{where} states", "cut off")
        self.states = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(lanes)]
        must(all(state >= 1 << 16 for state in self.states), f"{where} states", "below 2^16")
        self.data, self.where = data, where
        self.front, self.back, self.count = 4 * lanes, len(data), 0

    def decode(self, table: Table) -> int:
        lane = self.count % len(self.states)
        self.count += 1
        x = self.states[lane]
        slot, symbol, start = x % 4096, 0, 0
        while slot >= start + table[symbol]:
            start += table[symbol]
            symbol += 1
        x = table[symbol] * (x >> 12) + slot - start
        if x < 1 << 16:
            must(self.front + 2 <= self.back, self.where, "words are used up")
            x = x << 16 | int.from_bytes(self.data[self.front : self.front + 2], "little")
            self.front += 2
        self.states[lane] = x
        if symbol:
            return symbol - 128
        must(self.front + 2 <= self.back, self.where, "escaped codes are used up")
        self.back -= 2
        return int.from_bytes(self.data[self.back : self.back + 2], "little", signed=True)

    def end(self) -> None:
        must(self.front == self.back, self.where, "bytes left over")
        must(all(state == 1 << 16 for state in self.states), self.where, "a final state is not 2^16")


def decode_classes(data: bytes, lanes: int, tables: Sequence[Table], where: str) -> list[int]:
    decoder = ClassDecoder(data, lanes, where)
    codes = [decoder.decode(table) for table in tables]
    decoder.end()
    return codes


def decode_rows(data: bytes, lanes: int, grid: Grid, rows: range, where: str) -> list[int]:
    """The codes of some rows, whose first is one in which a trellis begins anew."""
    decoder, codes = ClassDecoder(data, lanes, where), []
    entry, bank = grid.entry, grid.bank
    last, states = len(bank.gains) - 1, [0] * len(grid.column_term)
    for row in rows:
        if entry.states and row % entry.restart == 0:
            states = [0] * len(states)
        for column, term in enumerate(grid.column_term):
            number = min(max(grid.row_term[row] + term, 0), last) * bank.sets
            code = decoder.decode(bank.classes[number + (states[column] & bank.sets - 1)])
            states[column] = following(entry.states, states[column], code)
            codes.append(code)
    decoder.end()
    return codes


# ---------------------------------------------------------------------------------------------------------------------
# 6. The bank of coder 7


def read_class_bank(member: Member) -> Bank:
    where, data = f"section 6, {CLASSES}", member.data
    must(member.is_bytes(-1), where, "dtype or shape")
    must(len(data) >= 3, where, "cut off")
    first, classes, sets = data[0], data[1] + 1, data[2]
    must(first + classes <= 256, f"{where} classes", "beyond class 255")
    must(sets in (1, 2), f"{where} sets", "neither 1 nor 2")
    must(len(data) >= 3 + classes, where, "cut off")
    tables, at = [], 3 + classes
    for number in range(classes * sets + 4):
        table, at = read_frequencies(data, at, f"{where} table {number}")
        tables.append(table)
    must(at == len(data), where, "bytes left over")
    return Bank(first, sets, list(data[3 : 3 + classes]), tables[:-4], tables[-4:])


def read_frequencies(data: bytes, at: int, where: str) -> tuple[Table, int]:
    must(at < len(data), where, "cut off")
    top = data[at]
    must(top <= 127, where, "codes above 127")
    position = 8 * (at + 1)

    def bit() -> int:
        nonlocal position
        must(position < 8 * len(data), where, "cut off")
        position += 1
        return data[(position - 1) // 8] >> (position - 1) % 8 & 1

    def number(order: int) -> int:
        zeros = 0
        while not bit():
            zeros += 1
            must(zeros <= 13, where, "a number above all frequencies")
        low = sum(bit() << i for i in range(zeros + order))
        return low + (1 << zeros + order) - (1 << order)

    table = [0] * 256
    table[0], before = number(0), 0
    for code in range(top, 0, -1):
        change = number(max(0, before.bit_length() - 1))
        before += -(change + 1) // 2 if change % 2 else change // 2
        must(0 <= before < 4096, where, "a frequency out of range")
        table[128 + code] = table[128 - code] = before
    table[128] = 4096 - sum(table)
    must(1 <= table[128] <= 4095, where, "the frequencies do not add up")
    while position % 8:
        must(not bit(), where, "unused bits are not zero")
    return table, position // 8
