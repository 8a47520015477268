"""Quantized tensors: what every quantizer and reader yields and every writer takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgumentError

Strategy = Literal["tensor", "channel", "group"]
ScaleMethod = Literal["absmax", "mse"]
ScaleDtype = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True)
class QuantizationArgs:
    """An integer grid, in the field names of compressed-tensors.

    A code `c` in `0 .. 2**num_bits - 1` stands for `(c - zero_point) * scale`, computed in float32.
    Symmetric grids have no stored zero point: it is `2**(num_bits - 1)`, and 0.5 for one bit.

    strategy: one scale per `tensor`, per `channel` (a row: all elements of one index of dimension 0), or per
    `group` of `group_size` consecutive elements of a row (the last group of a row may be shorter).
    scale_method: how the scale was chosen; it does not change what a code means.
    """

    num_bits: int = 4
    symmetric: bool = True
    strategy: Strategy = "group"
    group_size: int | None = 128
    scale_method: ScaleMethod = "mse"
    scale_dtype: ScaleDtype = "float16"

    def __post_init__(self) -> None:
        if not 1 <= self.num_bits <= 8:
            raise InvalidArgumentError(f"num_bits is {self.num_bits}; an integer grid has 1 to 8 bits")
        if self.strategy not in ("tensor", "channel", "group"):
            raise InvalidArgumentError(f"unknown strategy {self.strategy!r}; choose tensor, channel or group")
        if self.strategy == "group" and (self.group_size is None or not 1 <= self.group_size < 2**31):
            raise InvalidArgumentError(f"strategy 'group' needs a group_size of at least 1, got {self.group_size}")
        if self.strategy != "group" and self.group_size is not None:
            raise InvalidArgumentError(f"group_size has no meaning for strategy {self.strategy!r}")
        if self.scale_method not in ("absmax", "mse"):
            raise InvalidArgumentError(f"unknown scale method {self.scale_method!r}; choose absmax or mse")
        if self.scale_dtype not in ("float16", "bfloat16", "float32"):
            raise InvalidArgumentError(f"unknown scale dtype {self.scale_dtype!r}; choose float16, bfloat16 or float32")

    @property
    def storage_bits(self) -> int:
        """Bits per code in a packed buffer: `num_bits` rounded up to 1, 2, 4 or 8."""
        return 1 << (self.num_bits - 1).bit_length()

    @property
    def symmetric_zero_point(self) -> float:
        """The zero point of a symmetric grid: a whole number, but ½ for one bit (levels -s/2 and +s/2)."""
        return 0.5 if self.num_bits == 1 else float(1 << (self.num_bits - 1))

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scale (and zero point) array of a tensor of `shape`: `[1]`, `[rows, 1]` or `[rows, groups]`."""
        rows, columns = matrix_shape(shape)
        if self.strategy == "tensor":
            return (1,)
        return (rows, 1) if self.group_size is None else (rows, -(-columns // self.group_size))


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor as rows x columns: dimension 0, and all others flattened. A 0-d tensor is 1 x 1."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def packed_nbytes(count: int, storage_bits: int) -> int:
    """Bytes of `count` codes at `storage_bits` bits each; the unused high bits of the last byte are zero."""
    return -(-count * storage_bits // 8)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Integer codes in a packed buffer, with the numbers that turn them back into floats.

    packed: uint8 `[packed_nbytes]`, `args.storage_bits` per code, row-major over the whole tensor, low bits first.
    scale: float16, bfloat16 or float32, shape `args.scale_shape(shape)`.
    zero_point: uint8, the shape of `scale`, for asymmetric grids; None for symmetric ones.
    shape, dtype: of the float tensor that was quantized (`dtype` in safetensors' names: "F32", "BF16" ...).
    row_class, column_class: uint8 `[rows]` / `[columns]` or None. Codes whose classes add up to the same number are
    coded together, with frequency tables of their own; the packed buffer does not depend on them.
    """

    packed: NDArray[np.uint8]
    scale: NDArray[Any]
    zero_point: NDArray[np.uint8] | None
    shape: tuple[int, ...]
    dtype: str
    args: QuantizationArgs
    row_class: NDArray[np.uint8] | None = None
    column_class: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        rows, columns = matrix_shape(self.shape)
        want = packed_nbytes(rows * columns, self.args.storage_bits)
        if self.packed.dtype != np.uint8 or self.packed.shape != (want,):
            raise InvalidArgumentError(
                f"packed buffer must be uint8[{want}], got {self.packed.dtype}{self.packed.shape}"
            )
        if self.scale.shape != self.args.scale_shape(self.shape):
            raise InvalidArgumentError(
                f"scale must have shape {self.args.scale_shape(self.shape)}, got {self.scale.shape}"
            )
        if str(self.scale.dtype) != self.args.scale_dtype:
            raise InvalidArgumentError(f"scale must be {self.args.scale_dtype}, got {self.scale.dtype}")
        if (self.zero_point is None) != self.args.symmetric:
            raise InvalidArgumentError("a zero point belongs to asymmetric grids, and only to them")
        if self.zero_point is not None and (
            self.zero_point.dtype != np.uint8 or self.zero_point.shape != self.scale.shape
        ):
            raise InvalidArgumentError(f"zero_point must be uint8 of the scale's shape {self.scale.shape}")
        for name, classes, length in (
            ("row_class", self.row_class, rows),
            ("column_class", self.column_class, columns),
        ):
            if classes is not None and (classes.dtype != np.uint8 or classes.shape != (length,)):
                raise InvalidArgumentError(f"{name} must be uint8[{length}], got {classes.dtype}{classes.shape}")

    @property
    def codes(self) -> NDArray[np.uint8]:
        """One code per byte, uint8 of `shape`. A fresh array."""
        from .packing import unpack_codes

        rows, columns = matrix_shape(self.shape)
        return unpack_codes(self.packed, rows * columns, self.args.storage_bits).reshape(self.shape)

    def dequantize(self, dtype: Any = np.float32, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """`(code - zero_point) * scale` in float32, rounded once to `dtype` (float32, float16, bfloat16 or float64).

        Returns an array of `shape`; `out` (C-contiguous, of `shape` and `dtype`) is filled and returned when given.
        """
        from .dequantize import dequantize

        return dequantize(self, dtype, out)
