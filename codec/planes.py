"""A quantized tensor into planes of chunks: plane 0 its codes, plane 1 its zero points (SPEC section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from .chunk_index import MAX_CHUNK_CODES
from .chunks import EncodedChunk, encode_run
from .code_order import code_order, run_sizes
from .code_range import range_problem
from .errors import InvalidArgumentError
from .packing import pack_codes, unpack_codes
from .run_map import RunMap
from .tensor import QuantizationArgs, QuantizedTensor, matrix_shape


@dataclass(frozen=True)
class EncodedTensor:
    """The chunks of a tensor in file order: plane 0 holds the codes, plane 1 the zero points (empty if symmetric)."""

    codes: tuple[EncodedChunk, ...]
    zero_points: tuple[EncodedChunk, ...]


def encode_tensor(
    tensor: QuantizedTensor, coder: str, chunk_codes: int, *, run: RunMap = map, verify: bool = True
) -> EncodedTensor:
    """Entropy-code a tensor with `coder` ("ans", "huffman" or "raw") in chunks of about `chunk_codes` codes.

    `run` maps over chunks. With `verify` every chunk is decoded again and compared; a difference raises
    VerificationError. Raises InvalidArgumentError for codes or zero points that are not in the grid, an unknown coder, and
    for `chunk_codes` that are not 1 to 2^23 (a chunk may hold 1.5 times as many, and at most 2^24).
    """
    width = tensor.args.storage_bits
    if not 1 <= chunk_codes <= MAX_CHUNK_CODES // 2:
        raise InvalidArgumentError(f"chunk_codes is {chunk_codes}; it may be 1 to {MAX_CHUNK_CODES // 2}")
    _check_codes("packed", tensor.packed, prod(tensor.shape), tensor.args)
    codes: list[EncodedChunk] = []
    for packed, count in _runs(tensor):
        codes += encode_run(packed, count, width, coder, chunk_codes, run=run, verify=verify)
    zero_points: list[EncodedChunk] = []
    if tensor.zero_point is not None and tensor.zero_point.size:
        packed, count = pack_codes(tensor.zero_point, width), tensor.zero_point.size
        _check_codes("zero_point", packed, count, tensor.args)
        zero_points = encode_run(packed, count, width, coder, chunk_codes, run=run, verify=verify)
    return EncodedTensor(tuple(codes), tuple(zero_points))


def _check_codes(what: str, packed: NDArray[np.uint8], count: int, args: QuantizationArgs) -> None:
    """Refuse what a reader would take for corruption: QuantizedTensor itself checks shapes only."""
    problem = range_problem(packed, count, args)
    if problem:
        raise InvalidArgumentError(f"{what} of a quantized tensor: {problem}")


def _runs(tensor: QuantizedTensor) -> Iterator[tuple[NDArray[np.uint8], int]]:
    rows, columns = matrix_shape(tensor.shape)
    order = code_order(rows, columns, tensor.row_class, tensor.column_class)
    if order is None:
        if rows * columns:
            yield tensor.packed, rows * columns
        return
    width = tensor.args.storage_bits
    codes = unpack_codes(tensor.packed, rows * columns, width)[order]
    start = 0
    for count in run_sizes(rows, columns, tensor.row_class, tensor.column_class):
        yield pack_codes(codes[start : start + count], width), count
        start += count
