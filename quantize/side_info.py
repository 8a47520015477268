"""Tensors on an unbounded integer grid: codes, and the numbers that turn them back into weights, exactly as stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from .trellis import next_states

UNIT_GAIN = 128  # gains are in 128ths

# 2^(i/8) for i = 0 .. 7, rounded to float32.
EIGHTHS = np.array(
    [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7], np.uint32
).view(np.float32)

VECTORS = ("column_log", "row_log", "column_class", "row_class")  # optional side information, in the order it is stored


@dataclass(frozen=True, eq=False)
class RateTensor:
    """A tensor on an unbounded grid, to be coded at a rate rather than packed into a fixed number of bits.

    codes: int16 `[rows, columns]`; rows are dimension 0 of `shape`, all others are columns.
    step: float32, positive and finite. column_log, row_log: int8 `[columns]` / `[rows]` or None, steps as logarithms
    in eighths of an octave. gain: uint8 `[columns]` or None, in 128ths.
    column_class, row_class: int8 or None, how much larger than steps alone say the codes of a column or row are, in
    eighths of an octave: they choose tables and change no weight. class_offset: the table of codes whose logarithms and
    classes are 0 (see `class_terms`).
    states: 0 for a plain grid, else the states of the trellis, which begins anew in every row that is a multiple of
    `restart`.
    dtype: of the float tensor, in safetensors' names.
    """

    codes: NDArray[np.int16]
    step: np.float32
    shape: tuple[int, ...]
    dtype: str
    column_log: NDArray[np.int8] | None = None
    row_log: NDArray[np.int8] | None = None
    gain: NDArray[np.uint8] | None = None
    column_class: NDArray[np.int8] | None = None
    row_class: NDArray[np.int8] | None = None
    class_offset: int = 0
    states: int = 0
    restart: int = 1

    def __post_init__(self) -> None:
        rows, columns = self.codes.shape if self.codes.ndim == 2 else (-1, -1)
        if self.codes.dtype != np.int16 or rows * columns != prod(self.shape):
            raise InvalidArgumentError(
                f"codes must be int16 and fill the shape {list(self.shape)}, got {self.codes.dtype}{self.codes.shape}"
            )
        if not 0 < self.step < np.inf:
            raise InvalidArgumentError(f"the step is {self.step}; it must be positive and finite")
        for name in VECTORS:
            vector, length = getattr(self, name), columns if name.startswith("column") else rows
            if vector is not None and (vector.dtype != np.int8 or vector.shape != (length,)):
                raise InvalidArgumentError(f"{name} must be int8[{length}], got {vector.dtype}{vector.shape}")
        if self.gain is not None and (self.gain.dtype != np.uint8 or self.gain.shape != (columns,)):
            raise InvalidArgumentError(f"gain must be uint8[{columns}], got {self.gain.dtype}{self.gain.shape}")
        if not 0 <= self.class_offset <= 255 or self.restart < 1:
            raise InvalidArgumentError(f"class offset {self.class_offset} or restart {self.restart} is out of range")
        transitions(self.states)

    @property
    def column_scale(self) -> NDArray[np.float32]:
        """What level 1 is worth in each column: float32 `[columns]`, `(step * 2^(column_log / 8)) * (gain / 128)`."""
        scale = self.step * log_scale(self.column_log, self.codes.shape[1])
        if self.gain is not None:
            scale = scale * (self.gain.astype(np.float32) / np.float32(UNIT_GAIN))
        return scale

    @property
    def row_scale(self) -> NDArray[np.float32]:
        """A factor on every row: float32 `[rows]`, `2^(row_log / 8)`."""
        return log_scale(self.row_log, self.codes.shape[0])

    @property
    def class_terms(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64 `[rows]`, `[columns]`: their sum, clipped to the bank, is the table of a code."""
        rows, columns = self.codes.shape
        row, column = np.zeros(rows, np.int64), np.full(columns, self.class_offset, np.int64)
        for vector, terms, sign in (
            (self.row_log, row, -1),
            (self.row_class, row, 1),
            (self.column_log, column, -1),
            (self.column_class, column, 1),
        ):
            if vector is not None:
                terms += sign * vector.astype(np.int64)
        return row, column

    def with_classes(self, class_offset: int, gain: NDArray[np.uint8] | None) -> RateTensor:
        """The same codes with other tables and gains."""
        return replace(self, class_offset=class_offset, gain=gain)


def log_scale(eighths: NDArray[np.int8] | None, length: int) -> NDArray[np.float32]:
    """2^(eighths / 8) as float32 `[length]`: an entry of `EIGHTHS` times a power of two. Ones for None."""
    if eighths is None:
        return np.ones(length, np.float32)
    wide = eighths.astype(np.int32)
    scale: NDArray[np.float32] = np.ldexp(EIGHTHS[wide & 7], wide >> 3).astype(np.float32)
    return scale


def transitions(states: int) -> NDArray[np.uint8]:
    """`trellis.next_states` as kernels take it: a single state stands for a plain grid (0 states)."""
    return next_states(states) if states else np.zeros((1, 2), np.uint8)


def reconstruct(tensor: RateTensor, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The weights: float32 `[rows, columns]`, `(level * column_scale) * row_scale`, IEEE with one rounding per product.

    level: the code; with a trellis 2 * code in set 0 and 2 * code - sign(code) in set 1.
    """
    from . import kernels_rate

    if out is None:
        out = np.empty(tensor.codes.shape, np.float32)
    codes = np.ascontiguousarray(tensor.codes)
    after = transitions(tensor.states)
    kernels_rate.rebuild(codes, tensor.column_scale, tensor.row_scale, after, tensor.restart, out)
    return out
