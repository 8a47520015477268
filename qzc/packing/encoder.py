"""The tensors of a file on their way into another: quantized and coded, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..base import BaseTensors
from ..calibration import Calibration
from ..codec.chunks import EncodedChunk
from ..codec.errors import InvalidArgumentError
from ..codec.planes import EncodedTensor, encode_tensor
from ..codec.rate_chunks import encode_rate
from ..codec.rate_tensor import LevelTensor, RateTensor, levels_of
from ..codec.run_map import RunMap
from ..codec.tensor import QuantizedTensor, matrix_shape
from ..formats.dtypes import file_bytes
from ..lossless import encode_lossless
from ..planner import PlannedTensor
from ..quantize.gptq import gptq
from ..quantize.rtn import quantize
from ..rating import RatedTensors, factor_of
from ..sources import SourceTensors
from .options import PackOptions

LARGE = 1 << 22  # parameters: larger tensors are spread over the threads, smaller ones go one to a thread
BATCH_NBYTES = 1 << 26
PIECE = 1 << 22  # codes that become levels together


@dataclass(frozen=True, eq=False)
class Encoded:
    """A coded tensor on its way to the file.

    base: XXH3-64 of what it is a delta to. fingerprint: of what was coded. wide: as in `RateEntry`.
    """

    tensor: PlannedTensor
    chunks: EncodedTensor | list[EncodedChunk]
    quantized: QuantizedTensor | None
    base: int | None
    fingerprint: int
    wide: bool = False


class Encoder:
    """What it takes to code a tensor: the options, the base of deltas, and statistics."""

    def __init__(
        self, options: PackOptions, base: BaseTensors | None, statistics: Calibration | None, run: RunMap
    ) -> None:
        self._options, self._base, self._statistics, self._run = options, base, statistics, run

    def encode(
        self, file: SourceTensors, tensors: list[PlannedTensor], rated: RatedTensors | None
    ) -> Iterator[Encoded]:
        """The tensors in their order, coded. rated: those at a rate."""
        for batch in _batches(tensors):
            spread = len(batch) == 1 and batch[0].parameters >= LARGE

            def encode(tensor: PlannedTensor, spread: bool = spread) -> Encoded:
                return self._encode_one(file, tensor, rated, self._run if spread else map)

            results = iter(map(encode, batch) if spread else self._run(encode, batch))
            for _ in batch:
                yield next(results)  # kept in no variable: the next tensor needs the memory

    def _encode_one(
        self, file: SourceTensors, tensor: PlannedTensor, rated: RatedTensors | None, run: RunMap
    ) -> Encoded:
        coder, chunk_codes = self._options.coder, self._options.chunk_codes
        # Not verified here: the whole file is read again at the end, which proves more.
        if tensor.is_rated:
            assert rated is not None
            codes = rated.tensor(tensor.name, run)
            fingerprint, wide = code_fingerprint(codes)
            chunks = encode_rate(codes, wide, rated.bank, chunk_codes, run=run)
            return Encoded(tensor, chunks, None, None, fingerprint, wide)
        if tensor.args is not None:
            quantized = self._on_grid(file.array(tensor.name), tensor, run)
            encoded = encode_tensor(quantized, coder, chunk_codes, run=run, verify=False)
            return Encoded(tensor, encoded, quantized, None, grid_fingerprint(quantized))
        assert tensor.lossless is not None
        raw, base = file.raw(tensor.name), None
        if self._base is not None and self._base.nbytes(tensor.name) == raw.size:
            base = self._base.tensor(tensor.name)
        encoded, is_delta = encode_lossless(
            raw, tensor.lossless, coder, chunk_codes, base=base, dtype=tensor.dtype, run=run, verify=False
        )
        of_base = xxhash.xxh3_64_intdigest(base) if is_delta and base is not None else None
        return Encoded(tensor, encoded, None, of_base, xxhash.xxh3_64_intdigest(raw))

    def _on_grid(self, array: NDArray[Any], tensor: PlannedTensor, run: RunMap) -> QuantizedTensor:
        assert tensor.args is not None
        name = f"tensor {tensor.name!r}"
        if self._options.method == "gptq" and self._statistics is not None:
            factor = factor_of(self._statistics, tensor.name, matrix_shape(tensor.shape)[1])
            if factor is not None:
                return gptq(array, tensor.args, tensor.dtype, factor, name=name, run=run)
        return quantize(array, tensor.args, dtype=tensor.dtype, name=name, run=run)


def code_fingerprint(tensor: RateTensor) -> tuple[int, bool]:
    """`level_fingerprint` of what a reader makes of the codes, and whether its levels need 16 bits.

    Raises InvalidArgumentError for levels beyond that.
    """
    rows, columns = tensor.codes.shape
    step = tensor.restart * max(1, PIECE // max(1, tensor.restart * columns))
    for wide in (False, True):
        hasher = xxhash.xxh3_64()
        for row in range(0, rows, step):
            codes = tensor.codes[row : row + step]
            levels = np.empty(codes.shape, np.int16) if wide else np.empty(codes.shape, np.int8)
            if not levels_of(codes, tensor.states, tensor.restart, levels):
                break
            hasher.update(levels)
        else:
            hasher.update(tensor.column_scale)
            hasher.update(tensor.row_scale)
            return hasher.intdigest(), wide
    raise InvalidArgumentError("levels beyond 16 bits: the step is too small")


def level_fingerprint(tensor: LevelTensor) -> int:
    """XXH3-64 of levels and scales."""
    hasher = xxhash.xxh3_64(np.ascontiguousarray(tensor.levels).data)
    hasher.update(tensor.column_scale)
    hasher.update(tensor.row_scale)
    return hasher.intdigest()


def grid_fingerprint(tensor: QuantizedTensor) -> int:
    """XXH3-64 of packed codes, scales and zero points."""
    hasher = xxhash.xxh3_64(tensor.packed)
    hasher.update(file_bytes(tensor.scale))
    if tensor.zero_point is not None:
        hasher.update(tensor.zero_point)
    return hasher.intdigest()


def _batches(tensors: list[PlannedTensor]) -> Iterator[list[PlannedTensor]]:
    """Runs of small tensors of at most BATCH_NBYTES together; large ones alone."""
    batch: list[PlannedTensor] = []
    for tensor in tensors:
        full = sum(t.nbytes for t in batch) + tensor.nbytes > BATCH_NBYTES
        if batch and (full or tensor.parameters >= LARGE):
            yield batch
            batch = []
        batch.append(tensor)
        if tensor.parameters >= LARGE:
            yield batch
            batch = []
    if batch:
        yield batch
