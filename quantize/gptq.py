"""`gptq`: error feedback on a grid of a fixed number of bits (arXiv 2210.17323), the baseline of the field."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.packing import pack_codes
from ..codec.run_map import RunMap
from ..codec.tensor import QuantizationArgs, QuantizedTensor, matrix_shape
from .hessian import Factor
from .rtn import float32_weights, quantize
from .unbounded import SLAB_ROWS, check_columns


def gptq(
    tensor: NDArray[Any],
    args: QuantizationArgs,
    dtype: str,
    factor: Factor,
    *,
    name: str = "tensor",
    run: RunMap = map,
) -> QuantizedTensor:
    """Quantize on the grid that `rtn.quantize` finds for the weights; scales and zero points are the same.

    Symmetric grids have all levels of their bits, one more below zero than above, as the field's GPTQ has them.

    factor: of the layer's inputs; `activation` order is what the field calls act-order. Groups are of columns as they
    are stored, in any order (static groups). The other arguments and errors: as for `rtn.quantize`.

    Raises InvalidArgumentError if the factor is of another number of inputs.
    """
    rows, columns = matrix_shape(tensor.shape)
    check_columns(name, columns, factor)
    grid = quantize(tensor, args, dtype, all_levels=True, name=name, run=run)
    scale = np.broadcast_to(
        grid.scale.astype(np.float32).reshape(-1, grid.scale.shape[-1]), (rows, grid.scale.shape[-1])
    )
    if grid.zero_point is None:
        zero = np.full(scale.shape, args.symmetric_zero_point, np.float32)
    else:
        zero = np.broadcast_to(grid.zero_point.astype(np.float32).reshape(-1, scale.shape[1]), scale.shape)
    codes = np.empty((rows, columns), np.uint8)
    weights = float32_weights(tensor, slice(None)).reshape(rows, columns)
    slabs = [slice(row, min(row + SLAB_ROWS, rows)) for row in range(0, rows, SLAB_ROWS)]
    for _ in run(partial(_slab, weights, scale, zero, args, factor, codes), slabs):
        pass
    packed = pack_codes(codes.reshape(-1), args.storage_bits)
    return QuantizedTensor(packed, grid.scale, grid.zero_point, grid.shape, dtype, args)


def _slab(
    weights: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    args: QuantizationArgs,
    factor: Factor,
    codes: NDArray[np.uint8],
    rows: slice,
) -> None:
    from . import kernels_feedback as kernels

    columns = weights.shape[1]
    order = np.arange(columns) if factor.order is None else factor.order
    slab = np.array(weights[rows].T[order], np.float32, order="C")
    out = np.empty(slab.shape, np.uint8)
    group = order // (args.group_size or max(columns, 1))
    kernels.feedback_fixed(
        slab,
        factor.unit,
        np.array(scale[rows].T, np.float32, order="C"),
        np.array(zero[rows].T, np.float32, order="C"),
        group,
        np.float32((1 << args.num_bits) - 1),
        out,
    )
    block = np.empty(out.T.shape, np.uint8)
    block[:, order] = out.T
    codes[rows] = block
