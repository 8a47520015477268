"""In which order the codes of a tensor are coded: by class, so that each class can have tables of its own (SPEC section 3)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Classes: TypeAlias = NDArray[np.uint8] | None


def run_sizes(rows: int, columns: int, row_class: Classes, column_class: Classes) -> list[int]:
    """Number of codes in each run of plane 0, in order of the class; runs without codes are left out."""
    return [size for size in _sizes(rows, columns, row_class, column_class) if size]


def run_ranges(
    rows: int, columns: int, row_class: Classes, column_class: Classes, first: int, last: int
) -> list[tuple[int, int, int]]:
    """Where plane 0 holds the codes of rows `first .. last - 1`: (start of a run, start of theirs in it, stop of theirs).

    Positions are those in the plane. The codes of a run are sorted by row, so those of neighbouring rows lie together.
    Runs that hold none of them are left out.
    """
    before, upto, all_rows = (_sizes(stop, columns, row_class, column_class) for stop in (first, last, rows))
    ranges: list[tuple[int, int, int]] = []
    run = 0
    for low, high, size in zip(before, upto, all_rows, strict=True):
        if low < high:
            ranges.append((run, run + low, run + high))
        run += size
    return ranges


def code_order(rows: int, columns: int, row_class: Classes, column_class: Classes) -> NDArray[np.int64] | None:
    """Row-major positions of the codes in the order in which they are coded; None where that is row-major order.

    int64 `[rows * columns]`. Works as well for some rows of a tensor, with their part of `row_class`.
    """
    if (row_class is None and column_class is None) or rows * columns == 0:
        return None
    by_row = np.zeros(rows, np.uint16) if row_class is None else row_class.astype(np.uint16)
    by_column = np.zeros(columns, np.uint16) if column_class is None else column_class.astype(np.uint16)
    return np.argsort((by_row[:, None] + by_column[None, :]).ravel(), kind="stable")


def _sizes(rows: int, columns: int, row_class: Classes, column_class: Classes) -> list[int]:
    """How many codes of the first `rows` rows each class has: one number for each of the 511 sums of two classes.

    Without class maps there is one class, and one number.
    """
    if row_class is None and column_class is None:
        return [rows * columns]
    sizes: list[int] = np.convolve(_counts(row_class, rows), _counts(column_class, columns)).tolist()
    return sizes


def _counts(classes: Classes, length: int) -> NDArray[np.int64]:
    """How often each class occurs in the first `length` places: int64 `[256]`. Without a map all are of class 0."""
    if classes is not None:
        return np.bincount(classes[:length], minlength=256)
    counts = np.zeros(256, np.int64)
    counts[0] = length
    return counts
