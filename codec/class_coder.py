"""Coder 7, `ans_classes`: the codes of a `RateTensor` and its side information as bytes, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptionError, InvalidArgumentError
from .kernels.status import MESSAGES
from .rate_tensor import RateTensor, transitions
from .table_bank import TableBank

CLASS_CODER = 7
"""Its number in the chunk index (SPEC section 5)."""

_LANES = ((1 << 18, 32), (1 << 16, 8), (1 << 12, 4), (1 << 9, 2))  # from so many codes on


def lanes_for(codes: int) -> int:
    """Number of lanes that suits so many codes: each costs some three bytes, and more of them decode faster."""
    return next((lanes for least, lanes in _LANES if codes >= least), 1)


def encode_rows(tensor: RateTensor, bank: TableBank, rows: slice = slice(None)) -> NDArray[np.uint8]:
    """The payload of some rows. Their first must be a multiple of `tensor.restart`.

    Raises InvalidArgumentError if the bank cannot code them.
    """
    codes = np.ascontiguousarray(tensor.codes[rows])
    if (rows.start or 0) % tensor.restart:
        raise InvalidArgumentError(f"row {rows.start} is no row in which the trellis begins anew")
    row, column = bank.terms(tensor)
    frequencies = bank.frequencies.reshape(-1, 256)
    return _encode(codes, frequencies, bank.sets, row[rows], column, transitions(tensor.states), tensor.restart)


def decode_rows(
    payload: NDArray[np.uint8],
    lanes: int,
    bank: TableBank,
    row_terms: NDArray[np.int64],
    column_terms: NDArray[np.int64],
    states: int,
    restart: int,
) -> NDArray[np.int16]:
    """The codes of some rows, int16 `[rows, columns]`. row_terms, column_terms: from `TableBank.terms`.

    Raises CorruptionError for bytes that no encoder wrote. Takes any bytes.
    """
    shape = (len(row_terms), len(column_terms))
    return _decode(payload, lanes, bank.tables, bank.sets, row_terms, column_terms, transitions(states), restart, shape)


def encode_side(vectors: Sequence[tuple[int, NDArray[np.int8]]], bank: TableBank) -> NDArray[np.uint8]:
    """One payload for vectors of side information, each with its kind, a row of `bank.side`."""
    kinds = np.concatenate([np.full(len(vector), kind, np.int64) for kind, vector in vectors])
    codes = np.concatenate([vector for _, vector in vectors]).astype(np.int16)[None]
    return _encode(codes, bank.side, 1, np.zeros(1, np.int64), kinds, transitions(0), 1)


def decode_side(payload: NDArray[np.uint8], lanes: int, bank: TableBank, kinds: NDArray[np.int64]) -> NDArray[np.int8]:
    """The vectors of `encode_side`, one behind another. kinds: int64, the kind of each element.

    Raises CorruptionError for bytes that no encoder wrote.
    """
    zero = np.zeros(1, np.int64)
    codes = _decode(payload, lanes, bank.side_tables, 1, zero, kinds, transitions(0), 1, (1, len(kinds)))[0]
    if codes.size and (codes.min() < -128 or codes.max() > 127):
        raise CorruptionError("ans_classes: side information is out of range")
    vectors: NDArray[np.int8] = codes.astype(np.int8)
    return vectors


def _encode(
    codes: NDArray[np.int16],
    frequencies: NDArray[np.uint16],
    sets: int,
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    after: NDArray[np.uint8],
    restart: int,
) -> NDArray[np.uint8]:
    from .kernels import class_coder as kernels

    lanes = lanes_for(codes.size)
    memory = np.empty(4 * lanes + 4 * codes.size + 8, np.uint8)
    nbytes = kernels.encode_classes(codes, lanes, frequencies, sets, row, column, after, restart, memory)
    if nbytes < 0:
        raise InvalidArgumentError("the table bank lacks a code of the tensor, and cannot escape")
    return memory[:nbytes].copy()


def _decode(
    payload: NDArray[np.uint8],
    lanes: int,
    tables: NDArray[np.uint32],
    sets: int,
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    after: NDArray[np.uint8],
    restart: int,
    shape: tuple[int, int],
) -> NDArray[np.int16]:
    from .kernels import class_coder as kernels

    out = np.empty(shape, np.int16)
    status = kernels.decode_classes(payload, lanes, tables, sets, row, column, after, restart, out)
    if status:
        raise CorruptionError(f"ans_classes: {MESSAGES[status]}")
    return out
