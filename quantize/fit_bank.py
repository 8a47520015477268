"""Table banks for given codes: frequencies between what was counted and what such codes usually are, and gains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from ..codec.model import FrequencyTable
from ..codec.rate_tensor import EIGHTHS, UNIT_GAIN, RateTensor
from ..codec.table_bank import CENTER, CLASSES, ESCAPE, PRECISION, TOTAL, TableBank

_SCALE = 16  # counts are multiplied by this, so that the prior can be finer than one of them
_PRIOR = 20  # observations that the prior is worth
_RARE = 2000  # one code in so many may fall outside of the classes of a bank


def fit_bank(
    counts: NDArray[np.int64],
    side_counts: NDArray[np.int64],
    products: NDArray[np.float64],
    powers: NDArray[np.float64],
    trellis: bool,
    *,
    complete: bool,
) -> TableBank:
    """The bank for codes with these statistics.

    counts: int64 `[CLASSES, 2, 256]` by class, set and symbol. side_counts: int64 `[4, 256]`. products, powers:
    float64 `[CLASSES]`, sums of target * value and value^2: their quotient is the gain. complete: these are all the
    codes; else every table can escape.
    """
    total = counts.sum(axis=(1, 2))
    used = np.cumsum(total)
    if used[-1] == 0:
        first = last = CENTER
    else:
        first = int(np.searchsorted(used, used[-1] // _RARE + 1))
        last = int(np.searchsorted(used, used[-1] - used[-1] // _RARE))
    sets = 2 if trellis else 1
    frequencies = np.empty((last - first + 1, sets, 256), np.uint16)
    gain = np.empty(last - first + 1, np.uint8)
    prior = _prior(trellis)
    for i in range(first, last + 1):
        members = slice(0 if i == first else i, CLASSES if i == last else i + 1)
        for which in range(sets):
            here = counts[members, which].sum(axis=0)
            frequencies[i - first, which] = _symmetric(here * _SCALE + prior[i, which], complete and not here[ESCAPE])
        product, power = products[members].sum(), powers[members].sum()
        gain[i - first] = np.clip(np.rint(UNIT_GAIN * product / power), 1, 255) if power > 0 else UNIT_GAIN
    side = np.stack([_symmetric(each * _SCALE, complete and not each[ESCAPE]) for each in side_counts])
    return TableBank(first, frequencies, gain, side)


def bank_of(tensors: Sequence[RateTensor], counts: NDArray[np.int64], side_counts: NDArray[np.int64]) -> TableBank:
    """The bank for tensors as they are, their gains included. Counts: as for `fit_bank`.

    Raises InvalidArgumentError if two columns of one class have different gains, as those of different files may.
    """
    unit = np.ones(CLASSES)
    known = np.full(CLASSES, -1)
    for tensor in tensors:
        column = np.clip(tensor.class_terms[1], 0, CLASSES - 1)
        gain = np.full(len(column), UNIT_GAIN) if tensor.gain is None else tensor.gain.astype(np.int64)
        for number, value in set(zip(column.tolist(), gain.tolist(), strict=True)):
            if known[number] not in (-1, value):
                raise InvalidArgumentError("tensors that were packed at different rates cannot go into one file")
            known[number] = value
    used = np.flatnonzero(known >= 0)
    first, last = (int(used[0]), int(used[-1])) if used.size else (CENTER, CENTER)
    fresh = fit_bank(counts, side_counts, unit, unit, any(tensor.states for tensor in tensors), complete=False)
    at = np.clip(np.arange(first, last + 1) - fresh.first, 0, len(fresh.gain) - 1)
    gains: NDArray[np.uint8] = np.where(known < 0, UNIT_GAIN, known)[first : last + 1].astype(np.uint8)
    bank = TableBank(first, fresh.frequencies[at], gains, fresh.side)
    return refit(bank, counts, side_counts)


def refit(bank: TableBank, tensors_counts: NDArray[np.int64], side_counts: NDArray[np.int64]) -> TableBank:
    """The same classes and gains with the best frequencies for exactly these codes. Counts: as for `fit_bank`."""
    unit = np.zeros(CLASSES)
    fresh = fit_bank(_folded(bank, tensors_counts), side_counts, unit, unit, bank.sets == 2, complete=True)
    frequencies = np.empty_like(bank.frequencies)
    at = np.clip(np.arange(len(bank.gain)) + bank.first - fresh.first, 0, len(fresh.gain) - 1)
    frequencies[:] = fresh.frequencies[at]
    return TableBank(bank.first, frequencies, bank.gain, fresh.side)


def _folded(bank: TableBank, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts with those outside of the bank's classes moved to its first and last one."""
    last = bank.first + len(bank.gain) - 1
    folded = np.zeros_like(counts)
    folded[bank.first : last + 1] = counts[bank.first : last + 1]
    folded[bank.first] += counts[: bank.first].sum(axis=0)
    folded[last] += counts[last + 1 :].sum(axis=0)
    return folded


def _symmetric(counts: NDArray[np.int64], closed: bool) -> NDArray[np.uint16]:
    """The symmetric table for these counts. closed: without an escape, where the rules for tables allow it."""
    both = counts.copy()
    both[1:] += counts[:0:-1]  # code k and -k
    both[ESCAPE] = counts[ESCAPE] if closed else max(counts[ESCAPE], 1)
    both[128] = max(both[128], 1)
    table = FrequencyTable.from_counts(both, PRECISION).frequencies.astype(np.int64)
    table[1:] = np.minimum(table[1:], table[:0:-1])
    table[128] += TOTAL - table.sum()
    if table[128] == TOTAL:
        table[128], table[ESCAPE] = TOTAL - 1, 1
    return table.astype(np.uint16)


@cache
def _prior(trellis: bool) -> NDArray[np.int64]:
    """Counts (times `_SCALE`) of codes of Student's t distribution, 6 degrees of freedom: int64 `[CLASSES, 2, 256]`.

    For an even number of degrees its distribution function needs no more than a square root: it is the same everywhere.
    """
    code = np.arange(128, dtype=np.float64)
    prior = np.zeros((CLASSES, 2, 256), np.int64)
    octaves = np.arange(CLASSES) - CENTER
    sigma = np.ldexp(EIGHTHS[octaves & 7].astype(np.float64), octaves >> 3)[:, None]
    for which in range(2):
        if not trellis:
            edges = code + 0.5
        elif which == 0:
            edges = 2.0 * code + 1.0
        else:
            edges = np.where(code == 0, 0.5, 2.0 * code)
        t = edges / sigma
        cosine = 6.0 / (6.0 + t * t)
        inside = t / np.sqrt(6.0 + t * t) * (1.0 + cosine * (0.5 + 0.375 * cosine))  # P(|x| < edge)
        mass = np.diff(inside, axis=1) / 2
        prior[:, which, 128] = np.rint(inside[:, 0] * _SCALE * _PRIOR)
        prior[:, which, 129:] = np.rint(mass * _SCALE * _PRIOR)
        prior[:, which, 1:128] = prior[:, which, :128:-1]
    return prior
