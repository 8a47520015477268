"""Tensors on an unbounded integer grid: codes, and the numbers that turn them back into weights, exactly as stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .dequantize import SLAB, float_dtype
from .errors import InvalidArgumentError
from .tensor import matrix_shape
from .trellis import next_states

UNIT_GAIN = 128  # gains are in 128ths

# 2^(i/8) for i = 0 .. 7, rounded to float32.
EIGHTHS = np.array(
    [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7], np.uint32
).view(np.float32)

VECTORS = ("column_log", "row_log", "column_class", "row_class")  # optional side information, in the order it is stored

Vector: TypeAlias = NDArray[np.int8] | None


@dataclass(frozen=True, eq=False)
class RateGrid:
    """An unbounded grid: what its levels are worth in every row and column.

    step: float32, positive and finite. column_log, row_log: int8 `[columns]` / `[rows]` or None, steps as logarithms
    in eighths of an octave. gain: uint8 `[columns]` or None, in 128ths.
    column_class, row_class: int8 or None, how much larger than steps alone say the codes of a column or row are, in
    eighths of an octave: they choose tables and change no weight. class_offset: the table of codes whose logarithms and
    classes are 0 (see `column_terms`).
    states: 0 for a plain grid, else the states of the trellis, which begins anew in every row that is a multiple of
    `restart`.
    """

    step: np.float32
    column_log: Vector = None
    row_log: Vector = None
    gain: NDArray[np.uint8] | None = None
    column_class: Vector = None
    row_class: Vector = None
    class_offset: int = 0
    states: int = 0
    restart: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.step < np.inf:
            raise InvalidArgumentError(f"the step is {self.step}; it must be positive and finite")
        if not 0 <= self.class_offset <= 255 or self.restart < 1:
            raise InvalidArgumentError(f"class offset {self.class_offset} or restart {self.restart} is out of range")
        transitions(self.states)

    def check(self, rows: int, columns: int) -> None:
        """Raises InvalidArgumentError for vectors that do not fit a matrix of this shape."""
        for name in VECTORS:
            vector, length = getattr(self, name), columns if name.startswith("column") else rows
            if vector is not None and (vector.dtype != np.int8 or vector.shape != (length,)):
                raise InvalidArgumentError(f"{name} must be int8[{length}], got {vector.dtype}{vector.shape}")
        if self.gain is not None and (self.gain.dtype != np.uint8 or self.gain.shape != (columns,)):
            raise InvalidArgumentError(f"gain must be uint8[{columns}], got {self.gain.dtype}{self.gain.shape}")

    def column_scale(self, columns: int) -> NDArray[np.float32]:
        """What level 1 is worth in each column: float32 `[columns]`, `(step * 2^(column_log / 8)) * (gain / 128)`."""
        scale = self.step * log_scale(self.column_log, columns)
        if self.gain is not None:
            scale = scale * (self.gain.astype(np.float32) / np.float32(UNIT_GAIN))
        return scale

    def row_scale(self, rows: int) -> NDArray[np.float32]:
        """A factor on every row: float32 `[rows]`, `2^(row_log / 8)`."""
        return log_scale(self.row_log, rows)

    def row_terms(self, rows: int) -> NDArray[np.int64]:
        """What rows add to the number of the table of a code: int64 `[rows]`."""
        return _minus(np.zeros(rows, np.int64), self.row_log, self.row_class)

    def column_terms(self, columns: int) -> NDArray[np.int64]:
        """What columns add to it: int64 `[columns]`. The sum, clipped to the bank, is the table."""
        return _minus(np.full(columns, self.class_offset, np.int64), self.column_log, self.column_class)

    def of_rows(self, first: int, last: int) -> RateGrid:
        """The grid of rows `first .. last - 1`."""
        rows = slice(first, last)
        row_log = None if self.row_log is None else self.row_log[rows]
        return replace(self, row_log=row_log, row_class=None if self.row_class is None else self.row_class[rows])


@dataclass(frozen=True, eq=False)
class LevelTensor:
    """A tensor that was packed at a rate: integers, and what they are worth in every row and column.

    levels: int8, or int16 where they do not fit, `[rows, columns]`; rows are dimension 0 of `shape`, all others are
    columns. Element (r, c) is `levels[r, c] * column_scale[c] * row_scale[r]`. shape, dtype: of the float tensor
    (`dtype` in safetensors' names). grid: where the scales come from.
    """

    levels: NDArray[np.int8] | NDArray[np.int16]
    shape: tuple[int, ...]
    dtype: str
    grid: RateGrid

    def __post_init__(self) -> None:
        if self.levels.dtype not in (np.int8, np.int16) or self.levels.shape != matrix_shape(self.shape):
            raise InvalidArgumentError(
                f"levels must be int8 or int16 {list(matrix_shape(self.shape))}, got {self.levels.dtype}"
                f"{list(self.levels.shape)}"
            )
        self.grid.check(*self.levels.shape)

    @property
    def column_scale(self) -> NDArray[np.float32]:
        """float32 `[columns]`."""
        return self.grid.column_scale(self.levels.shape[1])

    @property
    def row_scale(self) -> NDArray[np.float32]:
        """float32 `[rows]`; ones where rows have no scale of their own."""
        return self.grid.row_scale(self.levels.shape[0])

    def dequantize(self, dtype: Any = np.float32, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """`(level * column_scale) * row_scale` in float32, rounded once to `dtype` (float32, float16, bfloat16, float64).

        Returns an array of `shape`; `out` (C-contiguous, of `shape` and `dtype`) is filled and returned when given.
        """
        dtype = float_dtype(dtype)
        if out is None:
            out = np.empty(self.shape, dtype)
        elif out.shape != self.shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
            raise InvalidArgumentError(
                f"out must be writable C-contiguous {dtype}{self.shape}, got {out.dtype}{out.shape}"
            )
        for job in level_jobs(self, out):
            job()
        return out


def level_jobs(tensor: LevelTensor, out: NDArray[Any]) -> list[Callable[[], None]]:
    """Independent calls that together fill `out` (C-contiguous, of the tensor's shape) with floats."""
    rows, columns = tensor.levels.shape
    result, column_scale, row_scale = out.reshape(rows, columns), tensor.column_scale, tensor.row_scale
    step = max(1, SLAB // max(1, columns))
    slabs = [slice(row, min(row + step, rows)) for row in range(0, rows if columns else 0, step)]
    return [partial(_scale, tensor.levels[s], column_scale, row_scale[s], result[s]) for s in slabs]


def _scale(
    levels: NDArray[Any], column_scale: NDArray[np.float32], row_scale: NDArray[np.float32], out: NDArray[Any]
) -> None:
    from .kernels import levels as kernels

    floats = out if out.dtype == np.float32 else np.empty(out.shape, np.float32)
    kernels.scale_levels(levels, column_scale, row_scale, floats)
    if floats is not out:
        with np.errstate(over="ignore"):
            out[...] = floats.astype(out.dtype)


@dataclass(frozen=True, eq=False)
class RateTensor:
    """A tensor as it is coded: codes int16 `[rows, columns]`, from which the states of a trellis make levels.

    The other fields: as in `RateGrid` and `LevelTensor`.
    """

    codes: NDArray[np.int16]
    step: np.float32
    shape: tuple[int, ...]
    dtype: str
    column_log: Vector = None
    row_log: Vector = None
    gain: NDArray[np.uint8] | None = None
    column_class: Vector = None
    row_class: Vector = None
    class_offset: int = 0
    states: int = 0
    restart: int = 1

    def __post_init__(self) -> None:
        rows, columns = self.codes.shape if self.codes.ndim == 2 else (-1, -1)
        if self.codes.dtype != np.int16 or rows * columns != prod(self.shape):
            raise InvalidArgumentError(
                f"codes must be int16 and fill the shape {list(self.shape)}, got {self.codes.dtype}{self.codes.shape}"
            )
        self.grid.check(rows, columns)

    @property
    def grid(self) -> RateGrid:
        """All of it but codes and shape."""
        return RateGrid(
            self.step, self.column_log, self.row_log, self.gain, self.column_class, self.row_class, self.class_offset,
            self.states, self.restart,
        )  # fmt: skip

    @property
    def column_scale(self) -> NDArray[np.float32]:
        """As `RateGrid.column_scale`."""
        return self.grid.column_scale(self.codes.shape[1])

    @property
    def row_scale(self) -> NDArray[np.float32]:
        """As `RateGrid.row_scale`."""
        return self.grid.row_scale(self.codes.shape[0])

    @property
    def class_terms(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`RateGrid.row_terms` and `column_terms`."""
        rows, columns = self.codes.shape
        return self.grid.row_terms(rows), self.grid.column_terms(columns)

    def with_classes(self, class_offset: int, gain: NDArray[np.uint8] | None) -> RateTensor:
        """The same codes with other tables and gains."""
        return replace(self, class_offset=class_offset, gain=gain)

    def decoded(self) -> LevelTensor:
        """What a reader makes of it. Raises InvalidArgumentError if levels do not fit 16 bits."""
        wide = np.empty(self.codes.shape, np.int16)
        if not levels_of(self.codes, self.states, self.restart, wide):
            raise InvalidArgumentError("levels beyond 16 bits: the step is too small")
        narrow = not wide.size or (int(wide.min()) >= -128 and int(wide.max()) <= 127)
        return LevelTensor(wide.astype(np.int8) if narrow else wide, self.shape, self.dtype, self.grid)


def levels_of(
    codes: NDArray[np.int16], states: int, restart: int, out: NDArray[np.int8] | NDArray[np.int16], skip: int = 0
) -> bool:
    """Levels of codes (int16 `[rows, columns]`, from a row in which the trellis begins anew) into `out`.

    skip: rows that `out` lacks at the beginning; it may end sooner, too. Returns whether all of `out` fits its dtype.
    """
    from .kernels import levels as kernels

    limits = np.iinfo(out.dtype)
    fits: bool = kernels.levels_of(np.ascontiguousarray(codes), transitions(states), restart, skip, limits.max, out)
    return fits


def codes_of(tensor: LevelTensor) -> RateTensor:
    """The inverse of `RateTensor.decoded`.

    Raises InvalidArgumentError for levels that the trellis does not lead to, such as those of some rows alone.
    """
    grid, levels = tensor.grid, tensor.levels.astype(np.int16)
    codes = np.sign(levels) * ((np.abs(levels.astype(np.int32)) + 1) // 2).astype(np.int16) if grid.states else levels
    again = RateTensor(
        codes.astype(np.int16), grid.step, tensor.shape, tensor.dtype, grid.column_log, grid.row_log, grid.gain,
        grid.column_class, grid.row_class, grid.class_offset, grid.states, grid.restart,
    )  # fmt: skip
    if grid.states:
        check = np.empty(levels.shape, np.int16)
        if not levels_of(again.codes, grid.states, grid.restart, check) or not np.array_equal(check, levels):
            raise InvalidArgumentError("these levels are not those of a trellis from its beginning: save whole tensors")
    return again


def log_scale(eighths: Vector, length: int) -> NDArray[np.float32]:
    """2^(eighths / 8) as float32 `[length]`: an entry of `EIGHTHS` times a power of two. Ones for None."""
    if eighths is None:
        return np.ones(length, np.float32)
    wide = eighths.astype(np.int32)
    scale: NDArray[np.float32] = np.ldexp(EIGHTHS[wide & 7], wide >> 3).astype(np.float32)
    return scale


def _minus(terms: NDArray[np.int64], log: Vector, classes: Vector) -> NDArray[np.int64]:
    if log is not None:
        terms -= log
    if classes is not None:
        terms += classes
    return terms


def transitions(states: int) -> NDArray[np.uint8]:
    """`trellis.next_states` as kernels take it: a single state stands for a plain grid (0 states)."""
    return next_states(states) if states else np.zeros((1, 2), np.uint8)


def reconstruct(tensor: RateTensor, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The weights: float32 `[rows, columns]`, `(level * column_scale) * row_scale`, IEEE with one rounding per product.

    level: the code; with a trellis 2 * code in set 0 and 2 * code - sign(code) in set 1.
    """
    if out is None:
        out = np.empty(tensor.codes.shape, np.float32)
    tensor.decoded().dequantize(np.float32, out.reshape(tensor.shape))
    return out
