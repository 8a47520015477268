"""Round to nearest: every weight to the closest point of an integer grid, with one scale per tensor, row or group.

The definitions are in docs/quantization.md, the loops in `kernels`; this module feeds them slabs of rows.
"""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from ..codec.run_map import RunMap
from ..codec.tensor import QuantizationArgs, QuantizedTensor, matrix_shape, packed_nbytes

SLAB = 1 << 18  # weights per slab: its float32 copy, where one is needed, fits a second-level cache


class NonFiniteError(InvalidArgumentError):
    """A tensor that was to be quantized has NaN or infinite weights, or float64 ones beyond the range of float32."""


def quantize(
    tensor: NDArray[Any],
    args: QuantizationArgs,
    dtype: str,
    *,
    all_levels: bool = False,
    name: str = "tensor",
    run: RunMap = map,
) -> QuantizedTensor:
    """Round `tensor` to the grid of `args`.

    tensor: float64, float32, float16, bfloat16 or float8 (`ml_dtypes`) of any shape; it is only read. Rows are
    dimension 0. dtype: what to record as the dtype of the source, in safetensors' names ("F32"). all_levels: use code 0 of
    symmetric grids, too, which gives them one more level below zero than above. name: what to call the
    tensor in error messages. run: maps over slabs of rows; the result does not depend on it.

    Memory beyond the result: 1.3 MB for each slab in work (more where a slab of eight rows is larger than that).
    Raises NonFiniteError for NaN and infinite weights, InvalidArgumentError for a dtype that is not floating point and
    for weights whose scale is beyond the range of `args.scale_dtype`.
    """
    if not is_float(tensor.dtype):
        raise InvalidArgumentError(f"{name} is {tensor.dtype}; only floating-point tensors can be quantized")
    work = _Work(tensor, args, all_levels, run)
    if (work.whole_tensor() if args.strategy == "tensor" else work.all_segments()) != work.kernels.OK:
        raise _explain(tensor, args, name, work.slabs)
    scale = _in_scale_dtype(work.scale, args.scale_dtype)
    return QuantizedTensor(work.packed, scale, work.zero_point, tensor.shape, dtype, args)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a floating-point one of numpy or `ml_dtypes`."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


class _Work:
    """The slabs of one tensor on their way through the kernels, and what comes out."""

    def __init__(self, tensor: NDArray[Any], args: QuantizationArgs, all_levels: bool, run: RunMap) -> None:
        from ..codec.kernels import bits
        from . import kernels

        self.kernels, self._pack = kernels, bits.pack
        self._tensor, self._args, self._run = tensor, args, run
        self._levels = kernels.SHIFTED if not args.symmetric else kernels.ALL if all_levels else kernels.BALANCED
        rows, self._columns = matrix_shape(tensor.shape)
        self._count = rows * self._columns
        self.packed = np.empty(packed_nbytes(self._count, args.storage_bits), np.uint8)
        self.scale = np.zeros(args.scale_shape(tensor.shape), np.float32)
        self.zero_point = None if args.symmetric else np.zeros(self.scale.shape, np.uint8)
        self._scale_dtype = {"float16": kernels.FLOAT16, "bfloat16": kernels.BFLOAT16, "float32": kernels.FLOAT32}[
            args.scale_dtype
        ]
        self.slabs: list[slice] = []
        if self._count:
            # A slab must begin on a whole byte of the packed codes, and must not depend on the number of threads:
            # the sums of a search add up slab by slab.
            step = 8 // gcd(8, self._columns * args.storage_bits)
            size = max(SLAB // self._columns // step, 1) * step
            self.slabs = [slice(row, min(row + size, rows)) for row in range(0, rows, size)]

    def all_segments(self) -> int:
        """Quantize by rows or groups. Returns the worst status."""
        return max(self._run(self._segments, self.slabs), default=self.kernels.OK)

    def whole_tensor(self) -> int:
        """Quantize with one scale, in as many passes over the tensor as finding it takes. Returns the status."""
        args, kernels = self._args, self.kernels
        grid = (args.num_bits, self._levels)
        low = high = 0
        for slab_low, slab_high in self._run(self._extremes, self.slabs):
            low, high = max(low, slab_low), max(high, slab_high)
        status, scale, zero = kernels.absmax_scale(low, high, *grid, self._scale_dtype)
        if status == kernels.OK and args.scale_method == "mse" and scale > 0:
            if args.symmetric and args.num_bits == 1:
                mean = sum(self._run(self._magnitude, self.slabs)) / self._count
                scale = kernels.round_scale(np.float32(2 * mean), self._scale_dtype)
                status = kernels.SCALE_OVERFLOW if np.isinf(scale) else kernels.OK
            else:
                scale, zero = self._search(np.float32(scale), zero)
        if status == kernels.OK:
            self.scale[:] = scale
            if self.zero_point is not None:
                self.zero_point[:] = zero
            for _ in self._run(partial(self._codes, np.float32(scale), zero), self.slabs):
                pass
        return int(status)

    def _search(self, scale: np.float32, zero: int) -> tuple[np.float32, int]:
        args, kernels = self._args, self.kernels
        state = np.empty(kernels.STATE, np.float64)
        tried = np.empty(kernels.CANDIDATES, np.float32)
        kernels.begin_search(scale, zero, state)
        for step in range(kernels.search_steps(self._levels)):
            zero = kernels.probe(step, args.num_bits, self._levels, self._scale_dtype, state, tried)
            if zero >= 0:
                errors = np.zeros(kernels.CANDIDATES, np.float64)
                for part in self._run(partial(self._errors, tried, zero), self.slabs):
                    errors += part
                kernels.learn(zero, tried, errors, state)
        return np.float32(state[kernels.SCALE]), int(state[kernels.ZERO])

    def _segments(self, slab: slice) -> int:
        args = self._args
        codes = self._scratch(slab)
        zero_points = np.empty(0, np.uint8) if self.zero_point is None else self.zero_point[slab].reshape(-1)
        weights = float32_weights(self._tensor, slab)
        status = self.kernels.quantize_segments(
            weights,
            weights.view(np.int32),
            self._columns,
            args.group_size or self._columns,
            args.num_bits,
            self._levels,
            args.scale_method == "mse",
            self._scale_dtype,
            self.scale[slab].reshape(-1),
            zero_points,
            codes,
        )
        if status == self.kernels.OK:
            self._store(slab, codes)
        return int(status)

    def _codes(self, scale: np.float32, zero: int, slab: slice) -> None:
        codes = self._scratch(slab)
        weights = float32_weights(self._tensor, slab)
        self.kernels.write_codes(weights, scale, zero, self._args.num_bits, self._levels, codes)
        self._store(slab, codes)

    def _errors(self, tried: NDArray[np.float32], zero: int, slab: slice) -> NDArray[np.float64]:
        errors = np.empty(len(tried), np.float64)
        weights = float32_weights(self._tensor, slab)
        self.kernels.squared_errors(weights, tried, self._args.num_bits, self._levels, zero, errors)
        return errors

    def _extremes(self, slab: slice) -> tuple[int, int]:
        return self.kernels.extremes(float32_weights(self._tensor, slab).view(np.int32))

    def _magnitude(self, slab: slice) -> float:
        return self.kernels.magnitude(float32_weights(self._tensor, slab))

    def _scratch(self, slab: slice) -> NDArray[np.uint8]:
        return np.empty((slab.stop - slab.start) * self._columns, np.uint8)

    def _store(self, slab: slice, codes: NDArray[np.uint8]) -> None:
        width = self._args.storage_bits
        first = slab.start * self._columns * width // 8
        self._pack(codes, width, self.packed[first : first + packed_nbytes(len(codes), width)])


def float32_weights(tensor: NDArray[Any], rows: slice) -> NDArray[np.float32]:
    """Rows of a tensor as float32 `[n]`, row-major and read-only; a view if the tensor is float32, else a copy.

    float64 is rounded (to infinity beyond the range of float32), the others are converted exactly.
    """
    part = tensor[rows] if tensor.ndim else tensor
    if part.dtype.name == "bfloat16" and part.dtype.isnative:
        # ml_dtypes converts one number at a time.
        flat = (np.ascontiguousarray(part).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            flat = np.require(part, np.float32, ["C", "A"])
    flat = flat.reshape(-1)
    flat.flags.writeable = False  # numba compiles for read-only and for writable arrays separately: always the former
    return flat


def _in_scale_dtype(scale: NDArray[np.float32], scale_dtype: str) -> NDArray[Any]:
    """The kernels have rounded already: this is exact."""
    if scale_dtype == "bfloat16":
        import ml_dtypes

        return scale.astype(ml_dtypes.bfloat16)
    return scale.astype(scale_dtype)


def _explain(tensor: NDArray[Any], args: QuantizationArgs, name: str, slabs: list[slice]) -> InvalidArgumentError:
    """Why the kernels gave up: look at the tensor again, slowly."""
    count, first, largest = 0, -1, 0.0
    _, columns = matrix_shape(tensor.shape)
    for slab in slabs:
        weights = float32_weights(tensor, slab)
        bad = ~np.isfinite(weights)
        if bad.any():
            if count == 0:
                first = slab.start * columns + int(bad.argmax())
            count += int(np.count_nonzero(bad))
        largest = max(largest, float(np.max(np.abs(weights), where=~bad, initial=0.0)))
    if count:
        at = [int(i) for i in np.unravel_index(first, tensor.shape)]
        return NonFiniteError(
            f"{name} has {count} of {tensor.size} weights that are NaN or infinite in float32, the first at {at}; "
            "store it losslessly (--nonfinite keep, or exclude it)"
        )
    wider = {"float16": "--scale-dtype bfloat16 or float32", "bfloat16": "--scale-dtype float32"}.get(args.scale_dtype)
    return InvalidArgumentError(
        f"{name} has weights up to {largest:.6g}: the scale of its {args.num_bits}-bit grid is beyond the range of "
        f"{args.scale_dtype}; use {f'{wider}, or ' if wider else ''}exclude the tensor"
    )
