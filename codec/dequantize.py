"""From packed codes to floats."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .buffers import read_only
from .errors import InvalidArgumentError
from .tensor import QuantizationArgs, QuantizedTensor, matrix_shape, packed_nbytes

SLAB = 1 << 20  # codes per call of the kernel: bounds the float32 copies of scales and of float64 results
_HALF = {"float32": 0, "float16": 1, "bfloat16": 2}  # how the kernel rounds
DTYPES = ("float32", "float16", "bfloat16", "float64")
_CHOICES = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"


def dequantize(tensor: QuantizedTensor, dtype: Any = np.float32, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """`(code - zero_point) * scale` in float32, rounded once to `dtype`: an array of `tensor.shape`.

    dtype: float32, float16, float64 or `ml_dtypes.bfloat16` (or the name of one). `out` (C-contiguous, of the tensor's
    shape and `dtype`) is filled and returned when given. Raises InvalidArgumentError for another dtype or `out`.
    """
    dtype = float_dtype(dtype)
    if out is None:
        out = np.empty(tensor.shape, dtype)
    elif out.shape != tensor.shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise InvalidArgumentError(
            f"out must be writable C-contiguous {dtype}{tensor.shape}, got {out.dtype}{out.shape}"
        )
    for job in dequantize_jobs(tensor, out):
        job()
    return out


def dequantize_jobs(tensor: QuantizedTensor, out: NDArray[Any]) -> list[Callable[[], None]]:
    """Independent calls that together fill `out` (C-contiguous, of the tensor's shape), about SLAB codes each."""
    rows, columns = matrix_shape(tensor.shape)
    result = out.reshape(rows, columns)
    shared = tensor.args.strategy == "tensor"
    step = max(1, SLAB // max(1, columns))
    jobs: list[Callable[[], None]] = []
    for start in range(0, rows if columns else 0, step):
        stop = min(rows, start + step)
        which = slice(None) if shared else slice(start, stop)
        zero_point = None if tensor.zero_point is None else tensor.zero_point[which]
        place = start * columns, tensor.scale[which], zero_point, tensor.args, result[start:stop]
        jobs.append(partial(dequantize_rows, tensor.packed, *place))
    return jobs


def dequantize_rows(
    packed: NDArray[np.uint8],
    start: int,
    scale: NDArray[Any],
    zero_point: NDArray[np.uint8] | None,
    args: QuantizationArgs,
    out: NDArray[Any],
) -> None:
    """Fill `out` (float32, float16, bfloat16 or float64 `[rows, columns]`, C-contiguous) from code `start` of `packed` on.

    scale, and zero_point for asymmetric grids: those of these rows, `args.scale_shape((rows, columns))`.
    Raises InvalidArgumentError if the shapes do not match or `packed` does not hold these codes.
    """
    from .kernels import dequantize as kernels
    from .kernels.select import dequantize4

    rows, columns = out.shape
    if start < 0 or packed_nbytes(start + rows * columns, args.storage_bits) > packed.size:
        raise InvalidArgumentError(f"{packed.size} bytes do not hold {rows * columns} codes from code {start} on")
    want = args.scale_shape((rows, columns))
    if scale.shape != want or (zero_point is None) != args.symmetric:
        raise InvalidArgumentError(f"scale and zero point of these rows must have shape {want}, got {scale.shape}")
    if zero_point is not None and (zero_point.shape != want or zero_point.dtype != np.uint8):
        raise InvalidArgumentError(f"the zero point must be uint8{want}, got {zero_point.dtype}{zero_point.shape}")
    if float_dtype(out.dtype) == np.float64:
        exact = np.empty(out.shape, np.float32)
        dequantize_rows(packed, start, scale, zero_point, args, exact)
        out[...] = exact
        return
    matrix = (1, 1) if args.strategy == "tensor" else want
    half = _half(out.dtype)
    flat = out.reshape(-1)
    scales = np.array(scale, np.float32, order="C").reshape(matrix)  # copies: kernels are compiled for writable arrays
    zero_points = np.empty((0, 0), np.uint8) if zero_point is None else np.array(zero_point, order="C").reshape(matrix)
    source, group_size = read_only(packed), args.group_size or max(1, columns)
    even = not (start | group_size | columns) % 2
    vector_kernel = dequantize4() if half and args.storage_bits == 4 and even else None
    if vector_kernel:
        vector_kernel(
            source,
            start,
            scales,
            zero_points,
            args.symmetric_zero_point,
            group_size,
            columns,
            half,
            flat.view(np.uint16),
        )
        return
    kernels.dequantize(
        source,
        args.storage_bits,
        start,
        scales,
        zero_points,
        args.symmetric_zero_point,
        group_size,
        columns,
        half,
        flat if half == 0 else np.empty(0, np.float32),
        flat.view(np.uint16) if half else np.empty(0, np.uint16),
    )


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """A float dtype that codes can be turned into, from a dtype, a type or a name. Raises InvalidArgumentError."""
    try:
        return _float_dtype(dtype)
    except TypeError:
        raise InvalidArgumentError(f"cannot dequantize to {dtype!r}; choose {_CHOICES}") from None


@lru_cache(maxsize=64)  # numpy takes its time to name a dtype, and small tensors are many
def _float_dtype(dtype: Any) -> np.dtype[Any]:
    if isinstance(dtype, str) and dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    result: np.dtype[Any] = np.dtype(dtype)
    if result.name not in DTYPES:
        raise TypeError(result.name)
    return result


@lru_cache(maxsize=64)
def _half(dtype: np.dtype[Any]) -> int:
    return _HALF[dtype.name]
