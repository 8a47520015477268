"""What integer codes cost under several static models: order 0, order 1 along rows and columns, classes of rows and columns.

Every model comes with three figures in bits per code: the plug-in estimate (a coder whose tables cost nothing), the same
with its bias removed (the entropy of the source, as well as so many codes can tell), and what a file would pay: plug-in,
tables and class maps together. docs/stats.md defines them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import log, log2, sqrt

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError

_PIECE = 1 << 18  # codes counted at a time, about
_TABLE_OF_G = 1 << 12
_EULER = 0.5772156649015329
CLASS_STEPS = 4  # classes of scale per octave
CLASS_RANGE = 8  # and this many of them to either side


@dataclass(frozen=True)
class ModelCost:
    """Bits per code under one model. tables: how many frequency tables it needs."""

    plugin: float
    corrected: float
    with_tables: float
    tables: int


@dataclass(frozen=True)
class CodeModels:
    """A matrix of codes under every model; `count` codes.

    row, column: order 1, given the code to the left or above (the first of each row or column costs what order 0 does).
    classes: a table for each sum of the scale classes of row and column.
    """

    count: int
    order0: ModelCost
    row: ModelCost
    column: ModelCost
    classes: ModelCost

    @property
    def costs(self) -> dict[str, ModelCost]:
        return {"order0": self.order0, "row": self.row, "column": self.column, "classes": self.classes}


def code_models(codes: NDArray[np.uint8], num_bits: int, zero: float | None = None) -> CodeModels:
    """Measure a matrix of codes, uint8 `[rows, columns]`, each below `2**num_bits`.

    zero: the code that stands for no weight at all (the middle of the grid by default); scale classes measure distances
    from it. Raises InvalidArgumentError for codes outside the grid.
    """
    if codes.ndim != 2 or codes.dtype != np.uint8:
        raise InvalidArgumentError(f"codes must be a uint8 matrix, got {codes.dtype}{list(codes.shape)}")
    levels = 1 << num_bits
    n = codes.size
    if n and int(codes.max()) >= levels:
        raise InvalidArgumentError(f"code {codes.max()} does not fit a grid of {num_bits} bits")
    if n == 0:
        nothing = ModelCost(0.0, 0.0, 0.0, 0)
        return CodeModels(0, nothing, nothing, nothing, nothing)
    slabs = _slabs(codes)
    counts = np.zeros(levels, np.int64)
    for slab in slabs:
        counts += np.bincount(slab.reshape(-1), minlength=levels)
    rows, columns = codes.shape
    along_row = sum((_pairs(slab[:, :-1], slab[:, 1:], levels) for slab in slabs), np.zeros((levels, levels), np.int64))
    down = np.zeros((levels, levels), np.int64)
    for start, slab in zip(_starts(codes), slabs, strict=True):
        down += _pairs(slab[:-1], slab[1:], levels)
        if start:
            down += _pairs(codes[start - 1 : start], slab[:1], levels)
    classes, class_maps = _class_counts(codes, slabs, levels, (levels / 2) if zero is None else zero)
    order0 = contexts_cost(counts[None], n, num_bits)
    return CodeModels(
        n,
        order0,
        _with_first(contexts_cost(along_row, n, num_bits), order0, rows / n),
        _with_first(contexts_cost(down, n, num_bits), order0, columns / n),
        contexts_cost(classes, n, num_bits, map_bits=8.0 * class_maps),
    )


def contexts_cost(counts: NDArray[np.int64], n: int, num_bits: int, map_bits: float = 0.0) -> ModelCost:
    """The cost of codes whose context is known: counts int64 `[contexts, levels]`, in bits per each of `n` codes.

    map_bits: what telling the contexts costs beside the tables. Contexts without codes cost nothing.
    """
    totals = counts.sum(axis=1)
    counts, totals = counts[totals > 0], totals[totals > 0]
    plugin = _bits(totals, totals) - _bits(counts, counts)
    corrected = (_corrected_bits(totals) - _corrected_bits(counts)) if plugin > 0 else 0.0
    tables = len(totals)
    overhead = tables * table_bits(num_bits) + map_bits
    ceiling = n * float(num_bits)
    return ModelCost(plugin / n, min(max(corrected, 0.0), ceiling) / n, (plugin + overhead) / n, tables)


def table_bits(num_bits: int) -> int:
    """Bits of a frequency table in a file: 16 of 8 bits for codes of up to 4 bits, 256 of 12 bits above."""
    return 16 * 8 if num_bits <= 4 else 256 * 12


def sampling_error(codes: NDArray[np.uint8], counts: NDArray[np.int64], share: float) -> float:
    """Standard error of the plug-in entropy of these codes, uint8 `[rows, columns]`, as that of a tensor they are a sample of.

    From how much the mean code length differs between blocks of rows. counts: how often each code occurs. share: of the
    tensor that these codes are, in blocks of rows that were drawn from it evenly.
    """
    if share >= 1.0:
        return 0.0
    n = int(counts.sum())
    lengths = np.zeros(counts.shape, np.float64)
    lengths[counts > 0] = log2(n) - np.log2(counts[counts > 0])
    pieces = [part for slab in _slabs(codes) for part in np.array_split(slab, min(len(slab), 16)) if part.size]
    means = np.array([(np.bincount(p.reshape(-1), minlength=counts.size) * lengths).sum() / p.size for p in pieces])
    if len(means) < 2:  # one row: take its codes for independent
        mean = float((counts * lengths).sum()) / n
        return sqrt(max(0.0, float((counts * lengths**2).sum()) / n - mean**2) / n)
    return float(means.std(ddof=1)) * sqrt((1.0 - share) / len(means))


def combine(parts: Iterable[CodeModels]) -> CodeModels | None:
    """Several tensors together, each with tables of its own: bits add up. None without codes."""
    parts = [part for part in parts if part.count]
    if not parts:
        return None
    n = sum(part.count for part in parts)

    def mean(costs: list[ModelCost]) -> ModelCost:
        def over(values: Iterable[float]) -> float:
            return sum(value * part.count for value, part in zip(values, parts, strict=True)) / n

        return ModelCost(
            over(c.plugin for c in costs),
            over(c.corrected for c in costs),
            over(c.with_tables for c in costs),
            sum(c.tables for c in costs),
        )

    return CodeModels(
        n,
        mean([part.order0 for part in parts]),
        mean([part.row for part in parts]),
        mean([part.column for part in parts]),
        mean([part.classes for part in parts]),
    )


# ---------------------------------------------------------------------------------------------- counting
def _starts(codes: NDArray[np.uint8]) -> range:
    rows, columns = codes.shape
    return range(0, rows, max(1, _PIECE // max(1, columns)))


def _slabs(codes: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    step = _starts(codes).step
    return [codes[start : start + step] for start in _starts(codes)]


def _pairs(context: NDArray[np.uint8], code: NDArray[np.uint8], levels: int) -> NDArray[np.int64]:
    """How often each code follows each context: int64 `[levels, levels]`."""
    joint = context.astype(np.uint16)
    joint *= np.uint16(levels)
    joint += code
    counts: NDArray[np.int64] = np.bincount(joint.reshape(-1), minlength=levels * levels)
    return counts.reshape(levels, levels)


def _class_counts(
    codes: NDArray[np.uint8], slabs: list[NDArray[np.uint8]], levels: int, zero: float
) -> tuple[NDArray[np.int64], int]:
    """Counts by class, int64 `[classes, levels]`, and how many rows and columns have a class that must be told.

    The class of a row or column is the logarithm of its mean distance from `zero`, in quarters of an octave.
    """
    distance = np.abs(np.arange(levels, dtype=np.float32) - np.float32(zero))
    row_sums: list[NDArray[np.float64]] = []
    column_sums = np.zeros(codes.shape[1], np.float64)
    for slab in slabs:
        distances = distance[slab]
        row_sums.append(distances.sum(axis=1, dtype=np.float64))
        column_sums += distances.sum(axis=0, dtype=np.float64)
    by_row = _scale_class(np.concatenate(row_sums) / codes.shape[1])
    by_column = _scale_class(column_sums / codes.shape[0])
    classes = 4 * CLASS_RANGE + 1
    counts = np.zeros((classes, levels), np.int64)
    start = 0
    for slab in slabs:
        joint = (by_row[start : start + len(slab), None] + by_column[None]) * np.int32(levels)
        joint += slab
        counts += np.bincount(joint.reshape(-1), minlength=classes * levels).reshape(classes, levels)
        start += len(slab)
    told = sum(len(each) for each in (by_row, by_column) if (each != each[0]).any())
    return counts, told


def _scale_class(means: NDArray[np.float64]) -> NDArray[np.int32]:
    """0 .. 2 CLASS_RANGE, the middle one for the mean of all."""
    overall = means.mean()
    if overall <= 0:
        return np.full(means.shape, CLASS_RANGE, np.int32)
    steps = CLASS_STEPS * np.log2(np.maximum(means / overall, 2.0**-CLASS_RANGE))
    classes: NDArray[np.int32] = (np.clip(np.rint(steps), -CLASS_RANGE, CLASS_RANGE) + CLASS_RANGE).astype(np.int32)
    return classes


# ---------------------------------------------------------------------------------------------- estimating
def _bits(counts: NDArray[np.int64], weights: NDArray[np.int64]) -> float:
    """`sum(weights * log2(counts))` over what occurs."""
    used = counts > 0
    return float((weights[used] * np.log2(counts[used])).sum())


def _corrected_bits(counts: NDArray[np.int64]) -> float:
    """`sum(n G(n)) / ln 2` over what occurs: Grassberger's estimate of 2003 in place of `sum(n log2(n))`.

    `G(n) = psi(n) + (-1)^n / 2 (psi((n + 1) / 2) - psi(n / 2))` is far less biased than the logarithm, and than a first-order
    (Miller-Madow) correction where many symbols are rare.
    """
    used = counts[counts > 0]
    small = used < _TABLE_OF_G
    large = used[~small].astype(np.float64)
    g = np.empty(used.shape, np.float64)
    g[small] = _g_table()[used[small]]
    half = np.floor(large / 2)  # G of an odd number is that of the even one below
    g[~small] = np.log(2 * half) + 1 / (24 * half * half)
    return float((used * g).sum()) / log(2.0)


@cache
def _g_table() -> NDArray[np.float64]:
    table = np.empty(_TABLE_OF_G, np.float64)
    table[0], table[1] = 0.0, -_EULER - log(2.0)
    steps = 2.0 / (2.0 * np.arange(_TABLE_OF_G // 2) + 1.0)
    even = -_EULER - log(2.0) + np.cumsum(steps)  # G(2), G(4) ..
    table[2::2] = even[: len(table[2::2])]
    table[3::2] = even[: len(table[3::2])]
    return table


def _with_first(cost: ModelCost, order0: ModelCost, first: float) -> ModelCost:
    """Charge the codes that have no neighbour, a share `first` of all, by order 0 and its table."""
    extra = order0.with_tables - order0.plugin
    return ModelCost(
        cost.plugin + first * order0.plugin,
        cost.corrected + first * order0.corrected,
        cost.with_tables + first * order0.plugin + extra,
        cost.tables + 1,
    )
