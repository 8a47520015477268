"""Tensors on an unbounded grid as chunks, and back: whole rows, each chunk from where a trellis begins anew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import xxhash
from numpy.typing import NDArray

from .batch import CodedFile
from .chunks import EncodedChunk
from .class_coder import CLASS_CODER, decode_rows, encode_rows, lanes_for
from .constant import CONSTANT
from .decoding import Decoding
from .errors import CorruptionError, InvalidArgumentError
from .planes import MAX_CHUNK_CODES, Plane
from .rate_tensor import LevelTensor, RateGrid, RateTensor, levels_of
from .raw import RAW
from .run_map import RunMap
from .table_bank import TableBank
from .tensor import matrix_shape


@dataclass(frozen=True)
class CodedRate:
    """A tensor on an unbounded grid in a file. number: that of its plane. wide: whether its levels need 16 bits."""

    file: CodedFile
    number: int
    shape: tuple[int, ...]
    dtype: str
    grid: RateGrid
    bank: TableBank
    wide: bool


def rate_plane(shape: tuple[int, ...], wide: bool) -> Plane:
    """The codes of a tensor, row by row, as integers of 8 or 16 bits."""
    count = prod(shape)
    return Plane(16 if wide else 8, (count,) if count else ())


def chunk_rows(shape: tuple[int, ...], restart: int, chunk_codes: int) -> list[tuple[int, int]]:
    """Cut the rows into ranges (start, stop) of about `chunk_codes` codes that begin at multiples of `restart`.

    Raises InvalidArgumentError if `restart` rows are too much for a chunk.
    """
    rows, columns = matrix_shape(shape)
    if not rows * columns:
        return []
    unit = min(restart, rows)
    if unit * columns > MAX_CHUNK_CODES:
        raise InvalidArgumentError(f"{unit} rows of {columns} codes are too much for a chunk")
    step = restart * max(1, min(round(chunk_codes / (unit * columns)), MAX_CHUNK_CODES // (unit * columns)))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def encode_rate(
    tensor: RateTensor, wide: bool, bank: TableBank, chunk_codes: int, *, run: RunMap = map
) -> list[EncodedChunk]:
    """The chunks of a tensor. wide: whether its levels need 16 bits. `run` maps over chunks.

    Raises InvalidArgumentError if the bank cannot code the tensor.
    """

    def encode(rows: tuple[int, int]) -> EncodedChunk:
        codes = tensor.codes[rows[0] : rows[1]]
        flat = np.ascontiguousarray(codes.astype("<i2" if wide else np.int8)).reshape(-1).view(np.uint8)
        if flat.size > 1 and not (flat != flat[0]).any():
            return _chunk(codes.size, CONSTANT.id, 0, flat[:1].copy())
        payload = encode_rows(tensor, bank, slice(*rows))
        if payload.size >= flat.size:
            return _chunk(codes.size, RAW.id, 0, flat)
        return _chunk(codes.size, CLASS_CODER, lanes_for(codes.size), payload)

    return list(run(encode, chunk_rows(tensor.shape, tensor.restart, chunk_codes)))


def _chunk(codes: int, coder: int, lanes: int, payload: NDArray[np.uint8]) -> EncodedChunk:
    return EncodedChunk(codes, coder, lanes, b"", payload.data, xxhash.xxh3_64_intdigest(payload))


def rate_decoding(coded: CodedRate, rows: tuple[int, int] | None = None) -> Decoding:
    """Plan the decoding of a tensor, or of its rows `start .. stop - 1`: there is a LevelTensor in the end.

    Only chunks that hold these rows are read. Every chunk is a job of its own.
    """
    n_rows, columns = matrix_shape(coded.shape)
    first, last = (0, n_rows) if rows is None else rows
    shape = coded.shape if rows is None else (last - first, *coded.shape[1:])
    levels = _empty((last - first, columns), coded.wide)
    chunks = coded.file.index.overlapping(coded.number, first * columns, last * columns)

    def finish() -> LevelTensor:
        grid = coded.grid if rows is None else coded.grid.of_rows(first, last)
        return LevelTensor(levels, shape, coded.dtype, grid)

    return Decoding((), lambda: [partial(_decode, coded, chunk, first, levels) for chunk in chunks], finish)


def check_rate_chunk(coded: CodedRate, chunk: int) -> None:
    """Decode one chunk and keep nothing, for the errors that this may raise."""
    columns = matrix_shape(coded.shape)[1]
    begin, count = int(coded.file.index.starts[chunk]), int(coded.file.index.rows["codes"][chunk])
    _decode(coded, chunk, begin // columns, _empty((count // columns, columns), coded.wide))


def _empty(shape: tuple[int, int], wide: bool) -> NDArray[np.int8] | NDArray[np.int16]:
    return np.empty(shape, np.int16) if wide else np.empty(shape, np.int8)


def _decode(coded: CodedRate, chunk: int, first: int, out: NDArray[np.int8] | NDArray[np.int16]) -> None:
    """The rows of a chunk that belong into `out`, whose first row is row `first` of the tensor."""
    index, columns = coded.file.index, matrix_shape(coded.shape)[1]
    begin = int(index.starts[chunk]) // columns
    stop = begin + int(index.rows["codes"][chunk]) // columns
    try:
        codes = _codes(coded, chunk, begin, stop)
        skip = max(0, first - begin)
        place = out[max(0, begin - first) : stop - first]
        # Chunks begin where a trellis does, so states are 0 in its first row.
        if not levels_of(codes, coded.grid.states, coded.grid.restart, place, skip):
            raise CorruptionError(f"a level does not fit {8 * out.itemsize} bits")
    except CorruptionError as error:
        raise CorruptionError(f"{index.describe(chunk)}: {error}") from None


def _codes(coded: CodedRate, chunk: int, begin: int, stop: int) -> NDArray[np.int16]:
    file, columns = coded.file, matrix_shape(coded.shape)[1]
    row = file.index.rows[chunk]
    at = int(file.index.offsets[chunk])
    payload = file.data[at : at + int(row["nbytes"])]
    if file.verify and xxhash.xxh3_64_intdigest(payload) != int(row["checksum"]):
        raise CorruptionError("the checksum of the chunk does not match its bytes")
    if row["coder"] == CLASS_CODER:
        terms = coded.grid.row_terms(matrix_shape(coded.shape)[0])[begin:stop]
        column = coded.grid.column_terms(columns) - coded.bank.first
        return decode_rows(
            payload, int(row["streams"]), coded.bank, terms, column, coded.grid.states, coded.grid.restart
        )
    if row["coder"] == CONSTANT.id and payload.size != 1:
        raise CorruptionError(f"a constant chunk has {payload.size} bytes")
    size = (stop - begin) * columns * (2 if coded.wide else 1)
    flat = np.full(size, payload[0], np.uint8) if row["coder"] == CONSTANT.id else payload
    return flat.view("<i2" if coded.wide else np.int8).astype(np.int16).reshape(stop - begin, columns)
