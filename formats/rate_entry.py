"""What the header says of a tensor on an unbounded grid, and the vectors that such tensors share (SPEC section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.class_coder import decode_side, encode_side, lanes_for
from ..codec.errors import CorruptionError, InvalidArgumentError
from ..codec.rate_tensor import VECTORS, RateGrid, RateTensor, transitions
from ..codec.table_bank import TableBank
from ..codec.tensor import matrix_shape

CODES_PER_BYTE = 1 << 15
"""Fewer vector elements than this come out of a byte: a frequency is below 4096 of 4096."""
_MAX_VECTORS = 1 << 31
_MAX_RESTART = 1 << 31


@dataclass(frozen=True)
class RateEntry:
    """The key `rate` of a coded tensor.

    step: float32. offset, states, restart: as in `RateGrid`. wide: whether levels need 16 bits. vectors: by kind
    (`VECTORS`) the number of a vector of the file, or None.
    """

    step: np.float32
    offset: int
    states: int
    restart: int
    wide: bool
    vectors: tuple[int | None, ...]

    def to_json(self) -> dict[str, Any]:
        """What is 0, false or null is left out."""
        entry: dict[str, Any] = {"step": f"{int(np.float32(self.step).view(np.uint32)):08x}", "offset": self.offset}
        if self.states:
            entry["states"], entry["restart"] = self.states, self.restart
        if self.wide:
            entry["wide"] = True
        entry.update((name, number) for name, number in zip(VECTORS, self.vectors, strict=True) if number is not None)
        return entry

    @classmethod
    def from_json(cls, value: Any, where: str) -> RateEntry:
        """Raises CorruptionError beginning with `where`."""
        if not isinstance(value, dict):
            raise CorruptionError(f"{where} has a rate that is not an object")
        step = value.get("step")
        if not isinstance(step, str) or len(step) != 8 or not set(step) <= set("0123456789abcdef"):
            raise CorruptionError(f"{where}: the step must be 8 hexadecimal digits")
        number = np.uint32(int(step, 16)).view(np.float32)
        if not 0 < number < np.inf:
            raise CorruptionError(f"{where}: the step is {number}, not positive and finite")
        states = _below(where, value, "states", 257) if "states" in value else 0
        restart = 1
        try:
            transitions(states)
        except InvalidArgumentError as error:
            raise CorruptionError(f"{where}: {error}") from None
        if ("states" in value) != ("restart" in value) or ("states" in value and not states):
            raise CorruptionError(f"{where} must have states and restart together, and only with a trellis")
        if states:
            restart = _below(where, value, "restart", _MAX_RESTART)
        if not restart or value.get("wide", True) is not True:
            raise CorruptionError(f"{where}: restart is 0, or wide is not true")
        vectors = tuple(_below(where, value, name, _MAX_VECTORS) if name in value else None for name in VECTORS)
        return cls(number, _below(where, value, "offset", 256), states, restart, "wide" in value, vectors)


def _below(where: str, value: Mapping[str, Any], key: str, limit: int) -> int:
    number = value.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < limit:
        raise CorruptionError(f"{where}: {key} must be a whole number below {limit}")
    return number


# ---------------------------------------------------------------------------------------------- writing
@dataclass(frozen=True, eq=False)
class RateSide:
    """What the tensors of one file on unbounded grids share: their entries, the bank and the vectors as bytes."""

    entries: Mapping[str, RateEntry]
    bank: bytes
    vectors: bytes


def rate_side(tensors: Mapping[str, RateTensor], bank: TableBank) -> RateSide:
    """`side_of` for tensors whose codes are known. Raises InvalidArgumentError for levels beyond 16 bits, too."""
    wide = {name: tensor.decoded().levels.dtype == np.int16 for name, tensor in tensors.items()}
    return side_of({name: (tensor.grid, wide[name]) for name, tensor in tensors.items()}, bank)


def side_of(grids: Mapping[str, tuple[RateGrid, bool]], bank: TableBank) -> RateSide:
    """Number the vectors of tensors in the order of their names and code them; equal ones are stored once.

    grids: by name the grid, and whether levels need 16 bits. Raises InvalidArgumentError if the bank cannot code a vector.
    """
    numbers: dict[tuple[int, bytes], int] = {}
    found: list[tuple[int, NDArray[np.int8]]] = []
    entries: dict[str, RateEntry] = {}
    for name in sorted(grids):
        grid, wide = grids[name]
        vectors: list[int | None] = []
        for kind, what in enumerate(VECTORS):
            vector = getattr(grid, what)
            if vector is None:
                vectors.append(None)
                continue
            key = kind, vector.tobytes()
            if key not in numbers:
                numbers[key] = len(found)
                found.append((kind, vector))
            vectors.append(numbers[key])
        entries[name] = RateEntry(grid.step, grid.class_offset, grid.states, grid.restart, wide, tuple(vectors))
    return RateSide(entries, bank.to_bytes(), encode_vectors(found, bank))


def encode_vectors(vectors: Sequence[tuple[int, NDArray[np.int8]]], bank: TableBank) -> bytes:
    """Number of lanes, then the payload of all vectors, one behind another; nothing if they have no elements."""
    count = sum(len(vector) for _, vector in vectors)
    return bytes([lanes_for(count)]) + encode_side(vectors, bank).tobytes() if count else b""


# ---------------------------------------------------------------------------------------------- reading
def vector_plan(
    entries: Mapping[str, tuple[RateEntry, tuple[int, ...]]], nbytes: int, path: str
) -> list[tuple[int, int]]:
    """(kind, length) of every vector of a file, from entries and shapes by name. nbytes: of the member that has them.

    Raises CorruptionError unless the vectors are numbered in the order in which the tensors, by name, first use them,
    and all uses of one agree.
    """
    plan: list[tuple[int, int]] = []
    for name in sorted(entries):
        entry, shape = entries[name]
        for kind, number in enumerate(entry.vectors):
            if number is None:
                continue
            use = kind, matrix_shape(shape)[1 if VECTORS[kind].startswith("column") else 0]
            if number == len(plan):
                plan.append(use)
            if number >= len(plan) or plan[number] != use:
                raise CorruptionError(f"{path}: tensor {name!r} uses vector {number} in a way that cannot be")
    count = sum(length for _, length in plan)
    if count > CODES_PER_BYTE * nbytes:
        raise CorruptionError(f"{path}: {count} elements of vectors cannot come out of {nbytes} bytes")
    return plan


def decode_vectors(data: memoryview, plan: Sequence[tuple[int, int]], bank: TableBank, path: str) -> list[NDArray[Any]]:
    """The vectors of a file, int8. Raises CorruptionError."""
    lengths = [length for _, length in plan]
    if not sum(lengths):
        if len(data):
            raise CorruptionError(f"{path}: vectors without elements have bytes")
        return [np.empty(0, np.int8) for _ in plan]
    kinds = np.repeat(np.array([kind for kind, _ in plan], np.int64), lengths)
    try:
        values = decode_side(np.frombuffer(data, np.uint8)[1:], data[0], bank, kinds)
    except CorruptionError as error:
        raise CorruptionError(f"{path}: qzc.vectors, {error}") from None
    return list(np.split(values, np.cumsum(lengths)[:-1]))


def grid_of(entry: RateEntry, shape: tuple[int, ...], vectors: Sequence[NDArray[Any]], bank: TableBank) -> RateGrid:
    """The grid of a tensor. vectors: those of the file."""
    column_log, row_log, column_class, row_class = (None if n is None else vectors[n] for n in entry.vectors)
    grid = RateGrid(
        entry.step, column_log, row_log, None, column_class, row_class, entry.offset, entry.states, entry.restart
    )
    return replace(grid, gain=bank.gain_of(grid, matrix_shape(shape)[1]))
