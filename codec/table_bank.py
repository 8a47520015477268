"""The frequency tables and gains that all tensors of a file share, by the size of their codes.

Class i is for codes whose standard deviation is about 2^((i - CENTER) / 8) steps. A bank holds consecutive classes;
those below and above share its first and last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptionError, InvalidArgumentError
from .model import cost_units
from .rate_tensor import VECTORS, RateGrid, RateTensor

CLASSES = 256
CENTER = 96
PRECISION = 12
TOTAL = 1 << PRECISION
ESCAPE = 0  # symbol of codes beyond +-127, and of codes that a table lacks; code k is symbol k + 128
ESCAPED_BITS = 16  # an escaped code is stored as it is
UNITS = 1 << 20  # per bit, as in `codec.model`


@dataclass(frozen=True, eq=False)
class TableBank:
    """first: the lowest class. frequencies: uint16 `[classes, sets, 256]`, sets 2 with a trellis; gain: uint8, in
    128ths. side: uint16 `[4, 256]`, tables of the side information `rate_tensor.VECTORS`; symbols as for codes.

    All tables are symmetric: code k and -k have one frequency. They add up to 4096, each below it.
    """

    first: int
    frequencies: NDArray[np.uint16]
    gain: NDArray[np.uint8]
    side: NDArray[np.uint16]

    @property
    def sets(self) -> int:
        return int(self.frequencies.shape[1])

    def terms(self, tensor: RateTensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64 `[rows]`, `[columns]`: their sum, clipped to 0 .. classes - 1, is the row of this bank for a code."""
        row, column = tensor.class_terms
        return row, column - self.first

    def gain_of(self, grid: RateGrid, columns: int) -> NDArray[np.uint8]:
        """The gain of every column of a tensor with this grid: that of the class it has in a row of the middle class."""
        column = grid.column_terms(columns) - self.first
        return self.gain[np.clip(column, 0, len(self.gain) - 1)]

    @cached_property
    def tables(self) -> NDArray[np.uint32]:
        """Decoding tables, uint32 `[classes * sets, 4096]`."""
        return _expanded(self.frequencies.reshape(-1, 256))

    @cached_property
    def side_tables(self) -> NDArray[np.uint32]:
        """The same for side information: uint32 `[4, 4096]`."""
        return _expanded(self.side)

    def gains(self, tensor: RateTensor) -> NDArray[np.uint8]:
        """`gain_of` for a tensor."""
        return self.gain_of(tensor.grid, tensor.codes.shape[1])

    def prices(self) -> NDArray[np.float64]:
        """Bits of codes by class, set and magnitude 0 .. 128, which stands for all larger ones: float64 `[.., 129]`."""
        units = cost_units(PRECISION)
        escaped = np.where(self.frequencies[..., ESCAPE] > 0, units[self.frequencies[..., ESCAPE]], PRECISION * UNITS)
        bits = np.empty((*self.frequencies.shape[:2], 129), np.float64)
        positive = self.frequencies[..., 128:]
        bits[..., :128] = np.where(positive > 0, units[positive], escaped[..., None] + ESCAPED_BITS * UNITS) / UNITS
        bits[..., 128] = escaped / UNITS + ESCAPED_BITS
        return bits

    def to_bytes(self) -> bytes:
        """`first` u8, classes - 1 u8, sets u8, gains, then all tables: by class and set, and the four of the side."""
        head = bytes([self.first, len(self.gain) - 1, self.sets]) + self.gain.tobytes()
        tables = np.concatenate([self.frequencies.reshape(-1, 256), self.side])
        return head + b"".join(map(_write_table, tables))

    @classmethod
    def from_bytes(cls, data: bytes) -> TableBank:
        """Raises CorruptionError for anything that `to_bytes` does not write."""
        if len(data) < 3 or data[2] not in (1, 2) or data[0] + data[1] >= CLASSES or len(data) < 4 + data[1]:
            raise CorruptionError("the table bank is damaged: its header makes no sense")
        first, classes, sets = data[0], data[1] + 1, data[2]
        tables, at = [], 3 + classes
        for _ in range(classes * sets + len(VECTORS)):
            table, at = _read_table(data, at)
            tables.append(table)
        if at != len(data):
            raise CorruptionError("the table bank is damaged: bytes are left over")
        body = np.array(tables[: classes * sets], np.uint16).reshape(classes, sets, 256)
        gain = np.frombuffer(data, np.uint8, classes, 3).copy()
        return cls(first, body, gain, np.array(tables[classes * sets :], np.uint16))


def _expanded(frequencies: NDArray[np.uint16]) -> NDArray[np.uint32]:
    from .kernels import class_coder as kernels

    tables = np.empty((len(frequencies), TOTAL), np.uint32)
    kernels.expand(frequencies, tables)
    return tables


def _write_table(table: NDArray[np.uint16]) -> bytes:
    """Largest coded magnitude u8; then bits, lowest first: the escape, and the frequencies from the outside in."""
    positive = table[128:].astype(int).tolist()
    top = max((k for k in range(1, 128) if positive[k]), default=0)
    value, length = _exp_golomb(int(table[ESCAPE]), 0)
    before = 0
    for k in range(top, 0, -1):
        change = positive[k] - before
        bits, width = _exp_golomb(2 * change if change >= 0 else -2 * change - 1, _order(before))
        value |= bits << length
        length += width
        before = positive[k]
    return bytes([top]) + value.to_bytes(-(-length // 8), "little")


def _read_table(data: bytes, at: int) -> tuple[list[int], int]:
    """(frequencies, where the next table begins)."""
    if at >= len(data) or data[at] > 127:
        raise CorruptionError("the table bank is damaged: it ends inside a table, or a table is too large")
    top = data[at]
    bits = int.from_bytes(data[at + 1 : at + 1 + 4 * (top + 1)], "little")  # at most 27 bits each
    limit = 8 * min(4 * (top + 1), len(data) - at - 1)
    escape, used = _read_exp_golomb(bits, 0, 0)
    table = [0] * 256
    table[ESCAPE], before = escape, 0
    for k in range(top, 0, -1):
        change, used = _read_exp_golomb(bits, used, _order(before))
        before += change // 2 if change % 2 == 0 else -(change + 1) // 2
        if not 0 <= before < TOTAL:
            break
        table[128 + k] = table[128 - k] = before
    table[128] = TOTAL - sum(table)
    whole = -(-used // 8)
    if (
        not 0 < table[128] < TOTAL
        or not 0 <= before < TOTAL
        or used > limit
        or bits >> used & ((1 << 8 * whole - used) - 1)
    ):
        raise CorruptionError("the table bank is damaged: a table does not add up")
    return table, at + 1 + whole


def _order(before: int) -> int:
    return max(0, before.bit_length() - 1)


def _exp_golomb(value: int, order: int) -> tuple[int, int]:
    """(bits, number of bits): n zeros, a one, n + order bits of value + 2^order without its highest, lowest first."""
    shifted = value + (1 << order)
    n = shifted.bit_length() - 1 - order
    return (1 << n) | (shifted - (1 << n + order)) << (n + 1), 2 * n + 1 + order


def _read_exp_golomb(bits: int, at: int, order: int) -> tuple[int, int]:
    """(value, position behind it). A run of zeros that no value needs counts as one of 14."""
    n = 0
    while n < 14 and not bits >> (at + n) & 1:
        n += 1
    rest = bits >> (at + n + 1) & ((1 << n + order) - 1)
    return rest + (1 << n + order) - (1 << order), at + 2 * n + 1 + order


def checked(bank: TableBank, tensor: RateTensor) -> None:
    """Raises InvalidArgumentError if the bank cannot rebuild the tensor: gains or sets are not its own."""
    if tensor.gain is not None and not np.array_equal(tensor.gain, bank.gains(tensor)):
        raise InvalidArgumentError("the gains of the tensor are not those of the table bank")
    if tensor.states and bank.sets != 2:
        raise InvalidArgumentError("a tensor with a trellis needs a table bank with two sets")
