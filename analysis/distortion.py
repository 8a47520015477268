"""How far dequantized weights are from the original ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, lcm, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from ..codec.packing import pack_codes, unpack_codes
from ..codec.run_map import RunMap
from ..codec.tensor import QuantizedTensor, matrix_shape, packed_nbytes

# Elements that are compared at a time: 2 MB in float64, which stays in a core's cache.
SLAB_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Distortion:
    """Energy of the weights, `sum(w**2)`, and of the error, `sum((w - w_hat)**2)`. Both add up over tensors."""

    weight_energy: float = 0.0
    error_energy: float = 0.0

    def __add__(self, other: Distortion) -> Distortion:
        return Distortion(self.weight_energy + other.weight_energy, self.error_energy + other.error_energy)

    @property
    def snr_db(self) -> float:
        """`10 log10(weight energy / error energy)` in dB; inf where there is no error, -inf where only error is left."""
        if self.error_energy == 0.0:
            return inf
        if self.weight_energy == 0.0:
            return -inf
        return 10.0 * (log10(self.weight_energy) - log10(self.error_energy))


def weight_distortion(weights: NDArray[Any], tensor: QuantizedTensor, *, run: RunMap = map) -> Distortion:
    """Compare float weights with what `tensor` dequantizes to in float32.

    weights: any float dtype numpy or ml_dtypes know, of the shape of `tensor`; C-contiguous, may be read-only.
    Works through pieces of at most SLAB_ELEMENTS elements (one group at least) and sums in float64: no copy of the
    whole tensor is made. `run` maps over the pieces; the result does not depend on it.
    Raises InvalidArgumentError if the shapes differ.
    """
    if weights.shape != tensor.shape:
        raise InvalidArgumentError(f"weights have shape {weights.shape}, the quantized tensor {tensor.shape}")
    matrix = weights.reshape(matrix_shape(tensor.shape))

    def compare(piece: tuple[slice, slice]) -> Distortion:
        original = matrix[piece].astype(np.float64)
        # ufuncs and their pairwise sum rather than a BLAS dot product, whose result depends on its threads
        energy = float(np.square(original).sum())
        original -= _cut(tensor, *piece).dequantize()
        return Distortion(energy, float(np.square(original, out=original).sum()))

    return sum(run(compare, _pieces(tensor)), Distortion())


def float_distortion(weights: NDArray[Any], restored: NDArray[np.float32]) -> Distortion:
    """Compare float weights with others of the same shape. Raises InvalidArgumentError if the shapes differ."""
    if weights.shape != restored.shape:
        raise InvalidArgumentError(f"weights have shape {weights.shape}, what is restored {restored.shape}")
    total = Distortion()
    original, again = weights.reshape(-1), restored.reshape(-1)
    for start in range(0, original.size, SLAB_ELEMENTS):
        piece = original[start : start + SLAB_ELEMENTS].astype(np.float64)
        energy = float(np.square(piece).sum())
        piece -= again[start : start + SLAB_ELEMENTS]
        total += Distortion(energy, float(np.square(piece, out=piece).sum()))
    return total


def _pieces(tensor: QuantizedTensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of whole rows, or pieces of one row where a row alone is too much."""
    rows, columns = matrix_shape(tensor.shape)
    if rows * columns == 0:
        return
    whole = slice(0, columns)
    if columns <= SLAB_ELEMENTS // 8:
        # Multiples of 8 rows: every block then starts on a whole byte of the packed buffer.
        step = SLAB_ELEMENTS // columns // 8 * 8
        for row in range(0, rows, step):
            yield slice(row, min(row + step, rows)), whole
        return
    # Pieces that start with a group, so that each is a tensor with scales of its own.
    unit = lcm(8, tensor.args.group_size or 8)
    step = max(unit, SLAB_ELEMENTS // unit * unit)
    for row in range(rows):
        for column in range(0, columns, step):
            yield slice(row, row + 1), slice(column, min(column + step, columns))


def _cut(tensor: QuantizedTensor, rows: slice, columns: slice) -> QuantizedTensor:
    """The part of a quantized tensor that `_pieces` names, as a tensor of its own."""
    args = tensor.args
    width = matrix_shape(tensor.shape)[1]
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    count, start = shape[0] * shape[1], rows.start * width + columns.start
    first_bit = start * args.storage_bits
    if first_bit % 8 == 0 and count * args.storage_bits % 8 == 0:
        packed = tensor.packed[first_bit // 8 : first_bit // 8 + packed_nbytes(count, args.storage_bits)]
    else:
        codes = unpack_codes(tensor.packed, count, args.storage_bits, start)
        packed = pack_codes(codes, args.storage_bits)
    scales: tuple[slice, ...] = (slice(None),)
    if args.strategy == "channel":
        scales = (rows, slice(None))
    elif args.group_size is not None:
        first = columns.start // args.group_size
        scales = (rows, slice(first, first + -(-shape[1] // args.group_size)))
    zero_point = None if tensor.zero_point is None else np.ascontiguousarray(tensor.zero_point[scales])
    return QuantizedTensor(packed, np.ascontiguousarray(tensor.scale[scales]), zero_point, shape, tensor.dtype, args)
