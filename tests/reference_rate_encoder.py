"""Writer of random valid files with tensors at a rate: what docs/SPEC.md says of them in sections 3 to 6.

See `reference_encoder` for its rules: it takes freedoms that the real writer does not, with any classes, gains, tables and
trellises, escapes without need, and chunks of any number of rows.
"""

import itertools
import json
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.reference_decoder import Decoded
from tests.reference_encoder import (
    NAMES,
    Chunk,
    Coded,
    File,
    Member,
    Object,
    lay_out,
    no_tables,
    random_plain,
    seal,
)

KINDS = ("column_log", "row_log", "column_class", "row_class")
EIGHTHS = (0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7)
FACTORS = {4: "2 5", 8: "4 13", 16: "4 23", 32: "10 45", 64: "24 103", 128: "126 235", 256: "362 515"}

Table = list[int]  # frequencies of symbols 0 .. 255


class Bank(NamedTuple):
    """The bank of coder 7. classes: tables by class and set."""

    first: int
    sets: int
    gains: list[int]
    classes: list[Table]
    side: list[Table]

    def to_bytes(self) -> bytes:
        head = bytes([self.first, len(self.gains) - 1, self.sets, *self.gains])
        return head + b"".join(write_table(table) for table in [*self.classes, *self.side])


class Rated(NamedTuple):
    """A tensor at a rate. vectors: by key, for those it has."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    step: np.float32
    offset: int
    states: int
    restart: int
    wide: bool
    codes: NDArray[np.int64]  # [rows, columns]
    vectors: dict[str, list[int]]

    def vector(self, key: str) -> list[int]:
        return self.vectors[key] if key in self.vectors else [0] * int(self.codes.shape[key.startswith("column")])


def random_rate_file(rng: np.random.Generator, *, any_order: bool = False) -> File:
    names = [str(name) for name in rng.permutation(NAMES)]
    plain = [random_plain(rng, names.pop()) for _ in range(rng.integers(0, 2))]
    expected = {member.name: Decoded(member.dtype, member.shape, member.data) for member in plain}
    trellis = bool(rng.random() < 0.5)
    tensors = [random_rated(rng, names.pop(), trellis) for _ in range(rng.integers(1, 4))]
    for tensor in tensors[1:]:  # vectors that are shared
        for key, vector in tensors[0].vectors.items():
            if rng.random() < 0.5 and len(vector) == len(tensor.vector(key)):
                tensor.vectors[key] = vector
    tensors.sort()
    bank = random_bank(rng, tensors, trellis)
    coded, members = write_rated(tensors, bank, rng)
    expected |= {tensor.name: decoded(tensor, bank) for tensor in tensors}
    ties = {names.pop(): str(rng.choice(list(expected)))} if rng.random() < 0.3 else {}
    expected |= {name: expected[target] for name, target in ties.items()}
    metadata = {"format": "qzc", "qzc.version": "0.2", "qzc.writer": "reference"}
    metadata["qzc.coded"] = json.dumps({tensor.name: tensor.entry for tensor in coded}, ensure_ascii=False)
    if ties:
        metadata["qzc.ties"] = json.dumps(ties)
    laid_out = lay_out(plain, coded, no_tables(), members, rng if any_order else None)
    return File(seal(metadata, laid_out), expected, {}, None)


def write_rated(
    tensors: Sequence[Rated], bank: Bank, rng: np.random.Generator | None = None
) -> tuple[list[Coded], list[Member]]:
    """Tensors in the order of their names, and the members that they share. rng: None for a chunk each, nothing escaped
    that has a symbol, and one lane."""
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    coded = []
    for tensor in tensors:
        rate: Object = {"step": f"{int(tensor.step.view(np.uint32)):08x}", "offset": tensor.offset}
        if tensor.states:
            rate |= {"states": tensor.states, "restart": tensor.restart}
        if tensor.wide:
            rate["wide"] = True
        for key in KINDS:
            if key in tensor.vectors:
                rate[key] = numbers.setdefault((key, tuple(tensor.vectors[key])), len(numbers))
        entry: Object = {"dtype": tensor.dtype, "shape": list(tensor.shape), "rate": rate}
        coded.append(Coded(tensor.name, entry, chunks_of(tensor, bank, rng), []))
    members = [Member("qzc.tables.classes", "U8", (len(data := bank.to_bytes()),), data)]
    elements = [(value, bank.side[KINDS.index(key)]) for key, vector in numbers for value in vector]
    if numbers:
        lanes = random_lanes(rng)
        data = bytes([lanes]) + encode_classes(elements, lanes, rng) if elements else b""
        members.append(Member("qzc.vectors", "U8", (len(data),), data))
    return coded, members


def random_lanes(rng: np.random.Generator | None) -> int:
    return int(rng.choice([1, 2, 4, 8, 16, 32])) if rng is not None else 1


# ---------------------------------------------------------------------------------------------------------------------
# Section 3


def random_rated(rng: np.random.Generator, name: str, trellis: bool) -> Rated:
    shape = tuple(int(rng.integers(rng.random() > 0.05, top)) for top in (30, 30, 5)[: rng.integers(0, 4)])
    if rng.random() < 0.1:
        shape = (0, *shape[1:])
    rows, columns = (shape[0], int(np.prod(shape[1:]))) if shape else (1, 1)
    states = int(rng.choice(list(FACTORS))) if trellis and rng.random() < 0.8 else 0
    wide = bool(rng.random() < 0.3)
    size = rng.choice([0, 0.3, 2, 20]) if not wide else rng.choice([2, 100, 4000])
    codes = np.rint(rng.standard_t(4, (rows, columns)) * size).astype(np.int64)
    limit = (2**15 - 1 if wide else 127) // (2 if states else 1)
    vectors = {}
    for key in KINDS:
        if rng.random() < 0.5:
            spread = int(rng.choice([1, 10, 128]))
            vectors[key] = rng.integers(-spread, spread, (rows, columns)[key.startswith("column")]).tolist()
    return Rated(
        name,
        str(rng.choice(["F64", "F32", "F16", "BF16"])),
        shape,
        np.float32(rng.lognormal(-3, 1)),
        int(rng.integers(0, 256)),
        states,
        int(rng.choice([1, 2, 7, 1000])) if states else 1,
        wide,
        codes.clip(-limit, limit),
        vectors,
    )


def sets_of(tensor: Rated) -> NDArray[np.int64]:
    """The state of the column of each code, modulo 2."""
    found = np.zeros(tensor.codes.shape, np.int64)
    if tensor.states:
        h1, h0 = (int(factor, 8) for factor in FACTORS[tensor.states].split())
        for column in range(tensor.codes.shape[1]):
            state = 0
            for row, code in enumerate(tensor.codes[:, column].tolist()):
                state = 0 if row % tensor.restart == 0 else state
                found[row, column] = state % 2
                state = (state ^ h0 * (state % 2) ^ h1 * (code % 2)) // 2
    return found


def power(eighths: Sequence[int]) -> NDArray[np.float32]:
    mantissas = np.array(EIGHTHS, np.uint32).view(np.float32)
    return np.array([np.ldexp(mantissas[i % 8], i // 8) for i in eighths], np.float32)


def decoded(tensor: Rated, bank: Bank) -> Decoded:
    levels = tensor.codes
    if tensor.states:
        levels = 2 * tensor.codes - sets_of(tensor) * np.sign(tensor.codes)
    gains = [bank.gains[min(max(term, 0), len(bank.gains) - 1)] for term in column_terms(tensor, bank)]
    columns = (tensor.step * power(tensor.vector("column_log"))) * (np.array(gains, np.float32) / np.float32(128))
    rows = power(tensor.vector("row_log"))[:, None]
    weights = ((levels.astype(np.float32) * columns) * rows).astype(np.float32)
    shape = tensor.shape
    return Decoded(tensor.dtype, shape, levels=levels.reshape(shape), dequantized=weights.reshape(shape))


def column_terms(tensor: Rated, bank: Bank) -> list[int]:
    pairs = zip(tensor.vector("column_class"), tensor.vector("column_log"), strict=True)
    return [tensor.offset + size - log - bank.first for size, log in pairs]


# ---------------------------------------------------------------------------------------------------------------------
# Sections 4 and 5


def chunks_of(tensor: Rated, bank: Bank, rng: np.random.Generator | None) -> list[Chunk]:
    rows, columns = tensor.codes.shape
    if not rows * columns:
        return []
    unit = min(tensor.restart, rows)
    starts = range(unit, rows, unit) if rng is not None else range(0)
    cuts = [start for start in starts if rng is not None and rng.random() < 0.3]
    sets, last = sets_of(tensor), len(bank.gains) - 1
    terms = column_terms(tensor, bank)
    chunks = []
    for start, stop in itertools.pairwise([0, *cuts, rows]):
        elements = []
        for row, column in itertools.product(range(start, stop), range(columns)):
            term = tensor.vector("row_class")[row] - tensor.vector("row_log")[row]
            table = bank.sets * min(max(term + terms[column], 0), last)
            which = int(sets[row, column]) if bank.sets == 2 else 0
            elements.append((int(tensor.codes[row, column]), bank.classes[table + which]))
        buffer = tensor.codes[start:stop].astype("<i2" if tensor.wide else "i1").tobytes()
        lanes = random_lanes(rng)
        payload = encode_classes(elements, lanes, rng)
        if len(payload) <= len(buffer) and (rng is None or rng.random() < 0.8):
            chunks.append(Chunk(len(elements), 7, lanes, 0, payload))
        elif len(set(buffer)) == 1:
            chunks.append(Chunk(len(elements), 1, 0, 0, buffer[:1]))
        else:
            chunks.append(Chunk(len(elements), 0, 0, 0, buffer))
    return chunks


def encode_classes(elements: Sequence[tuple[int, Table]], lanes: int, rng: np.random.Generator | None = None) -> bytes:
    """A payload of coder 7: codes, each with its table. rng: escapes some codes that have a symbol."""
    states, words, escaped = [2**16] * lanes, [], []
    for i, (code, table) in reversed(list(enumerate(elements))):
        symbol = code + 128 if -127 <= code <= 127 and table[code + 128] else 0
        if symbol and table[0] and rng is not None and rng.random() < 0.02:
            symbol = 0
        if not symbol:
            escaped.append(code)
        x, f = states[i % lanes], table[symbol]
        if x >= f * 2**20:
            words.append(x % 2**16)
            x //= 2**16
        states[i % lanes] = x // f * 2**12 + x % f + sum(table[:symbol])
    front = struct.pack(f"<{lanes}I{len(words)}H", *states, *reversed(words))
    return front + struct.pack(f"<{len(escaped)}h", *escaped)


# ---------------------------------------------------------------------------------------------------------------------
# Section 6


def random_bank(rng: np.random.Generator, tensors: Sequence[Rated], trellis: bool) -> Bank:
    classes = int(rng.integers(1, 30))
    sets = 2 if trellis else 1
    codes = np.concatenate([tensor.codes.ravel() for tensor in tensors])
    elements = [value for tensor in tensors for vector in tensor.vectors.values() for value in vector]
    return Bank(
        int(rng.integers(0, 257 - classes)),
        sets,
        rng.integers(0, 256, classes).tolist(),
        [random_frequencies(rng, codes) for _ in range(classes * sets)],
        [random_frequencies(rng, np.array(elements, np.int64)) for _ in KINDS],
    )


def random_frequencies(rng: np.random.Generator, codes: NDArray[np.int64]) -> Table:
    """A table that can code these: with an escape, or with a symbol for each."""
    largest = int(np.abs(codes).max(initial=0))
    table = [0] * 256
    if largest <= 127 and rng.random() < 0.3:
        top, least = max(1, largest), 1
    else:
        top, least, table[0] = int(rng.integers(0, 128)), 0, int(rng.integers(1, 50))
    decay, share = rng.uniform(0.3, 1), rng.uniform(0.1, 1800 - 127)
    for code in range(1, top + 1):
        share *= decay
        f = max(least, int(share * (1 - decay) * rng.uniform(0.5, 1)))
        table[128 + code] = table[128 - code] = f if rng.random() < 0.8 else max(least, f // 2)
    table[128] = 4096 - sum(table)
    assert 1 <= table[128] <= 4095
    return table


def write_table(table: Table) -> bytes:
    top = max((code for code in range(1, 128) if table[128 + code]), default=0)
    bits, before = number(table[0], 0), 0
    for code in range(top, 0, -1):
        change = table[128 + code] - before
        bits += number(2 * change if change >= 0 else -2 * change - 1, max(0, before.bit_length() - 1))
        before = table[128 + code]
    bits += "0" * (-len(bits) % 8)
    return bytes([top]) + bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


def number(value: int, order: int) -> str:
    """Its bits in the order of the file."""
    zeros: int = (value + 2**order).bit_length() - 1 - order
    low = value + (1 << order) - (1 << zeros + order)
    return "0" * zeros + "1" + (format(low, f"0{zeros + order}b")[::-1] if zeros + order else "")
