"""The rate of quantized tensors in bits as a file has them, and the step at which it is what was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..codec.class_coder import lanes_for
from ..codec.errors import InvalidArgumentError
from ..codec.model import cost_units
from ..codec.rate_tensor import VECTORS, RateGrid, RateTensor, transitions
from ..codec.run_map import RunMap
from ..codec.table_bank import CLASSES, ESCAPE, ESCAPED_BITS, PRECISION, UNITS, TableBank, checked
from .fit_bank import bank_of, fit_bank, refit
from .unbounded import Design, Quantized, grid_of, quantize_design, typical_size

LANE_BITS = 24  # what a lane costs: its state, less what is in it
RECORD_BITS = 8 * (24 + 24 + 8)  # record of a tensor, row of the chunk index, and the way to the next multiple of 16

TOLERANCE = 0.002  # of the rate: what the search aims at
_ROUNDS = 8
_CORRECTIONS = 6
_SAMPLE = 1 << 22  # weights that the search looks at, at least a slab of rows of every tensor
_SAMPLE_ROWS = 128


@dataclass(frozen=True)
class Bits:
    """Bits of tensors by part. codes: payloads; side: vectors; records: what has a fixed size; bank: tables."""

    codes: float
    side: float
    records: float
    bank: float

    @property
    def total(self) -> float:
        return self.codes + self.side + self.records + self.bank


@dataclass(frozen=True, eq=False)
class Rated:
    """Tensors at a rate, and a bank for exactly their codes. steps: of each design. losses: as in `Quantized`."""

    tensors: list[RateTensor]
    bank: TableBank
    bits: Bits
    steps: list[float]
    losses: list[float]


def coded_bits(tensors: Sequence[RateTensor], bank: TableBank) -> Bits:
    """What a file with these tensors and this bank spends on them.

    Raises InvalidArgumentError if the bank is not theirs.
    Equal column (or row) steps of several tensors are stored once.
    """
    codes = 0.0
    for tensor in tensors:
        checked(bank, tensor)
        codes += payload_bits(bank, _wide(bank, class_counts(tensor))) + LANE_BITS * lanes_for(tensor.codes.size)
    return Bits(codes, side_bits(tensors, bank), float(RECORD_BITS * len(tensors)), 8.0 * len(bank.to_bytes()))


def bank_for(tensors: Sequence[RateTensor]) -> TableBank:
    """The best bank for tensors as they are. Raises InvalidArgumentError if no bank has all their gains."""
    counts = sum((class_counts(tensor) for tensor in tensors), np.zeros((CLASSES, 2, 256), np.int64))
    return bank_of(tensors, counts, side_counts(vectors_of(tensors)))


def class_counts(tensor: RateTensor) -> NDArray[np.int64]:
    """How often each symbol occurs by class and set: int64 `[CLASSES, 2, 256]`."""
    from . import kernels_rate

    counts = np.zeros((CLASSES, 2, 256), np.int64)
    row, column = tensor.class_terms
    codes = np.ascontiguousarray(tensor.codes)
    kernels_rate.count_classes(codes, row, column, transitions(tensor.states), tensor.restart, counts)
    return counts


def payload_bits(bank: TableBank, counts: NDArray[np.int64]) -> float:
    """Bits of codes with these counts: int64 `[classes, sets, 256]`, classes and sets of the bank."""
    units = cost_units(PRECISION)
    frequencies = bank.frequencies
    known = frequencies > 0
    lost = (counts * ~known).sum(axis=-1) + np.where(known[..., ESCAPE], counts[..., ESCAPE], 0)
    regular = (counts * known * units[frequencies]).sum()
    if ((frequencies[..., ESCAPE] == 0) & (lost > 0)).any():
        return math.inf
    hidden = (counts * ~known).sum(axis=-1)
    return float(regular + (hidden * units[frequencies[..., ESCAPE]]).sum()) / UNITS + ESCAPED_BITS * float(lost.sum())


def vectors_of(tensors: Iterable[RateTensor | Design]) -> list[tuple[int, NDArray[np.int8]]]:
    """The distinct vectors of side information, each with its kind, in the order in which they first occur."""
    found: dict[tuple[int, bytes], NDArray[np.int8]] = {}
    for tensor in tensors:
        for kind, name in enumerate(VECTORS):
            vector = getattr(tensor, name)
            if vector is not None:
                found.setdefault((kind, vector.tobytes()), vector)
    return [(kind, vector) for (kind, _), vector in found.items()]


def side_counts(vectors: Iterable[tuple[int, NDArray[np.int8]]]) -> NDArray[np.int64]:
    """How often each symbol occurs in the vectors of each kind: int64 `[4, 256]`."""
    counts = np.zeros((len(VECTORS), 256), np.int64)
    for kind, vector in vectors:
        counts[kind] += np.bincount(vector.astype(np.int64) + 128, minlength=256)
    return counts


def side_bits(tensors: Iterable[RateTensor], bank: TableBank) -> float:
    """Bits of the vectors of side information."""
    return _side_bits(side_counts(vectors_of(tensors)), bank)


def _side_bits(counts: NDArray[np.int64], bank: TableBank) -> float:
    single = replace(bank, frequencies=bank.side[:, None], gain=np.zeros(len(VECTORS), np.uint8))
    return payload_bits(single, counts[:, None]) + (LANE_BITS * lanes_for(int(counts.sum())) if counts.any() else 0)


def solve(
    designs: Sequence[Design],
    bits_per_weight: float,
    *,
    uniform: bool = False,
    run: RunMap = map,
    run_tensors: RunMap = map,
) -> Rated:
    """Quantize all tensors so that everything counted in `coded_bits` is `bits_per_weight` in the mean, within 0.5 %.

    uniform: every tensor has that rate; else all have one step, times their own `scale`. run: maps over slabs of a
    tensor, run_tensors over tensors; the result depends on neither. The search looks at a sample of the rows.
    Raises InvalidArgumentError for a rate that cannot be reached.
    """
    search = Search(designs, bits_per_weight, uniform, run, run_tensors)
    search.find()
    return search.finish()


class Search:
    """Steps (as log2), bank and the last rates of a search: `find`, and then `finish`, or for tensors that together are
    too much for memory `quantize` one after another, and `correct` until the rate is right.

    Arguments: as for `solve`. done: called with a design that was looked at and will not be for a while.
    """

    def __init__(
        self,
        designs: Sequence[Design],
        target: float,
        uniform: bool = False,
        run: RunMap = map,
        run_tensors: RunMap = map,
        done: Callable[[Design], None] = lambda design: None,
    ) -> None:
        weights = sum(design.weights.size for design in designs)
        if not weights or not 0 < target <= 16:
            raise InvalidArgumentError(f"cannot spend {target} bits on each of {weights} weights")
        self.designs, self.target, self.uniform = list(designs), target, uniform
        self.run, self.run_tensors, self.done = run, run_tensors, done
        self.weights = np.array([design.weights.size for design in designs], np.float64)
        self.sizes = [typical_size(design) for design in designs]
        self.trellis = any(design.states for design in designs)
        self.bank: TableBank | None = None
        # A code of standard deviation s has log2(s) + 2.05 bits; two steps of a trellis are one code apart.
        fits = [
            size - math.log2(design.scale) + 2.05 - target - (design.states > 0)
            for size, design in zip(self.sizes, self.designs, strict=True)
        ]
        self.logs = np.array(fits) if uniform else np.full(len(fits), np.average(fits, weights=self.weights))
        self.slope = np.full(len(fits), -0.9)
        self.before: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self.side = side_counts(vectors_of(self.designs))
        self.chosen: list[Design] = []
        self.spent: dict[int, float] = {}  # bits of the codes of what `quantize` has given

    def find(self) -> None:
        """Find the steps from a sample of the rows."""
        chosen = self.chosen = [self._sample(design) for design in self.designs]
        for _ in range(3 if self.trellis else 2):  # gains and prices settle
            self._pass(chosen)
        for _ in range(_ROUNDS):
            results = self._pass(chosen)
            assert self.bank is not None
            rates = self._rates(results, chosen, self.bank)
            if self._close(rates):
                break
            self._move(rates)
        self.before = None  # the rates of a sample and of the whole do not make a slope

    def grid(self, number: int) -> RateGrid:
        """The grid of a design, with the steps of now."""
        assert self.bank is not None
        return grid_of(self.designs[number], 2.0 ** self.logs[number], self.bank, self.sizes[number])

    def quantize(self, number: int, run: RunMap = map) -> RateTensor:
        """Quantize one design with the steps and the bank of now, which can code it whatever comes out."""
        assert self.bank is not None
        design = self.designs[number]
        result = quantize_design(design, 2.0 ** self.logs[number], self.bank, self.sizes[number], run=run)
        self.spent[number] = payload_bits(self.bank, _wide(self.bank, class_counts(result.tensor)))
        self.done(design)
        return result.tensor

    @property
    def reached(self) -> float:
        """Bits per weight, as `coded_bits` has them, of the tensors as `quantize` gave them: all of them."""
        return float(np.average(self._spent_rates(), weights=self.weights))

    def correct(self, target: float) -> None:
        """Steps for this rate, from what the tensors were when `quantize` gave them: all of them; and a bank for these."""
        self.target = target
        self._move(self._spent_rates())
        self.spent = {}
        for _ in range(2 if self.trellis else 1):
            self._pass(self.chosen)

    def _spent_rates(self) -> NDArray[np.float64]:
        assert self.bank is not None
        return self._per_weight([self.spent[number] for number in range(len(self.designs))], self.bank)

    def _sample(self, design: Design) -> Design:
        total = self.weights.sum()
        if total <= _SAMPLE:
            return design
        sample = design.sample(max(_SAMPLE_ROWS, int(design.weights.shape[0] * _SAMPLE / total)))
        self.done(design)
        return sample

    def finish(self) -> Rated:
        """Quantize everything, and move the step a little where the sample was not like the whole."""
        total = self.weights.sum()
        rated = self._complete()
        for _ in range(_CORRECTIONS):
            if abs(rated.bits.total / total - self.target) <= TOLERANCE * self.target:
                break
            # Rates of small tensors jump where a class begins, so the last try need not be the best.
            rated = min(rated, self._complete(), key=lambda tried: abs(tried.bits.total / total - self.target))
        rate = rated.bits.total / total
        if not abs(rate - self.target) <= 0.005 * self.target:
            raise InvalidArgumentError(
                f"cannot reach {self.target:.4g} bits per weight: tables, steps and records alone need "
                f"{(rated.bits.total - rated.bits.codes) / total:.4g}, and the nearest rate found is {rate:.4g}"
            )
        return rated

    def _complete(self) -> Rated:
        """All tensors with the steps of now, and a bank for exactly their codes; then the next steps."""
        results = self._pass(self.designs, keep_bank=True)
        assert self.bank is not None
        tensors = [result.tensor for result in results]
        counts = sum((class_counts(tensor) for tensor in tensors), np.zeros((CLASSES, 2, 256), np.int64))
        bank = refit(self.bank, counts, self.side)
        steps = [float(2.0**log) for log in self.logs]
        self._move(self._rates(results, self.designs, bank))
        return Rated(tensors, bank, coded_bits(tensors, bank), steps, [result.loss for result in results])

    def _pass(self, designs: Sequence[Design], keep_bank: bool = False) -> list[Quantized]:
        def quantize(number: int) -> Quantized:
            log, size = self.logs[number], self.sizes[number]
            result = quantize_design(designs[number], 2.0**log, self.bank, size, run=self.run)
            self.done(designs[number])
            return result

        results = list(self.run_tensors(quantize, range(len(designs))))
        if not keep_bank:
            tensors = [result.tensor for result in results]
            counts = sum((class_counts(tensor) for tensor in tensors), np.zeros((CLASSES, 2, 256), np.int64))
            products = np.sum([result.products for result in results], axis=0)
            powers = np.sum([result.powers for result in results], axis=0)
            self.bank = fit_bank(counts, self.side, products, powers, self.trellis, complete=False)
        return results

    def _rates(self, results: Sequence[Quantized], chosen: Sequence[Design], bank: TableBank) -> NDArray[np.float64]:
        """Bits per weight of each tensor, shared parts spread evenly over all weights."""
        bits = []
        for design, part, result in zip(self.designs, chosen, results, strict=True):
            share = design.weights.size / max(1, part.weights.size)
            bits.append(payload_bits(bank, _wide(bank, class_counts(result.tensor))) * share)
        return self._per_weight(bits, bank)

    def _per_weight(self, bits: Sequence[float], bank: TableBank) -> NDArray[np.float64]:
        shared = (_side_bits(self.side, bank) + 8 * len(bank.to_bytes())) / self.weights.sum()
        fixed = np.array([LANE_BITS * lanes_for(design.weights.size) + RECORD_BITS for design in self.designs])
        each: NDArray[np.float64] = (np.array(bits) + fixed) / np.maximum(self.weights, 1) + shared
        return each

    def _close(self, rates: NDArray[np.float64]) -> bool:
        mean = np.average(rates, weights=self.weights)
        each = np.abs(rates - self.target).max() if self.uniform else 0.0
        return bool(abs(mean - self.target) <= 0.5 * TOLERANCE * self.target and each <= 2 * TOLERANCE * self.target)

    def _move(self, rates: NDArray[np.float64]) -> None:
        now = rates if self.uniform else np.full(len(rates), np.average(rates, weights=self.weights))
        if self.before is not None:
            moved, changed = self.logs - self.before[0], now - self.before[1]
            useful = np.abs(moved) > 0.02  # smaller ones say more about the noise than about the slope
            self.slope = np.where(useful, np.clip(changed / np.where(useful, moved, 1.0), -1.2, -0.2), self.slope)
        self.before = self.logs.copy(), now
        self.logs = self.logs - np.clip((now - self.target) / self.slope, -3, 3)


def _wide(bank: TableBank, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts by all classes as counts by those of the bank."""
    last = bank.first + len(bank.gain) - 1
    part = counts[bank.first : last + 1, : bank.sets].copy()
    part[0] += counts[: bank.first, : bank.sets].sum(axis=0)
    part[-1] += counts[last + 1 :, : bank.sets].sum(axis=0)
    return part
