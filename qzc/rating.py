"""What `pack` does to reach a rate: how each tensor is to be quantized, and the search for the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration
from .codec.errors import InvalidArgumentError
from .codec.rate_tensor import RateGrid, RateTensor
from .codec.run_map import RunMap
from .codec.table_bank import TableBank
from .codec.tensor import matrix_shape
from .factors import Factors
from .planner import FilePlan, PlannedTensor
from .quantize.allocate import equal_slope
from .quantize.diag import diag
from .quantize.gptq_ec import gptq_ec
from .quantize.hessian import Factor, Order, factorize
from .quantize.rate import Search, solve
from .quantize.rtn_ec import rtn_ec
from .quantize.unbounded import Design, typical_size
from .quantize.watersic import watersic
from .sources import SourceTensors, open_source

RateMethod = Literal["rtn-ec", "diag", "gptq-ec", "watersic"]
RATE_METHODS: tuple[RateMethod, ...] = ("rtn-ec", "diag", "gptq-ec", "watersic")
TRELLISES = (4, 8, 16, 32, 64, 128, 256)
BEST_STATES = 32
"""More are better by some hundredths of a bit, and take many times as long to encode."""


IN_MEMORY = 1 << 25
"""Codes that are kept while the step is searched: files of no more weights have tables for exactly their codes."""


@dataclass(frozen=True)
class RateOptions:
    """How much the weights may take.

    bits_per_weight: of the tensors that are quantized, all that the file has for them counted; or nbytes: of the whole
    output. Exactly one is given. count: `quantized`, or `all` for the bits of the whole output per weight of any tensor.
    method: None for `watersic` with statistics and `rtn-ec` without. states: of a trellis; 0 for none.
    uniform: the same rate for every tensor, as without sensitivities.
    """

    bits_per_weight: float | None = None
    nbytes: int | None = None
    count: Literal["quantized", "all"] = "quantized"
    method: RateMethod | None = None
    states: int = 0
    uniform: bool = False

    def __post_init__(self) -> None:
        if (self.bits_per_weight is None) == (self.nbytes is None):
            raise InvalidArgumentError("give either a rate in bits per weight or a size in bytes")
        if self.bits_per_weight is not None and not 0 < self.bits_per_weight <= 16:
            raise InvalidArgumentError(f"the rate is {self.bits_per_weight} bits per weight; it may be up to 16")
        if self.nbytes is not None and self.nbytes <= 0:
            raise InvalidArgumentError(f"the size is {self.nbytes} bytes; it must be positive")
        if self.count not in ("quantized", "all"):
            raise InvalidArgumentError(f"unknown choice {self.count!r} for count; choose quantized or all")
        if self.method is not None and self.method not in RATE_METHODS:
            raise InvalidArgumentError(f"unknown method {self.method!r}; choose {', '.join(RATE_METHODS)}")
        if self.states not in (0, *TRELLISES):
            raise InvalidArgumentError(
                f"no trellis has {self.states} states; choose {', '.join(map(str, TRELLISES))}, or 0 for none"
            )


@dataclass(frozen=True, eq=False)
class RatedTensors:
    """Tensors of a checkpoint at a rate, with the bank for all of them.

    grids: by name, and whether levels may need 16 bits. tensor: quantizes one, or has it already; each is asked for once.
    """

    bank: TableBank
    grids: dict[str, tuple[RateGrid, bool]]
    tensor: Callable[[str, RunMap], RateTensor]


class Rating:
    """The tensors of a checkpoint that are to be quantized at a rate, ready to be quantized at any.

    Their weights stay in their files, which are open until this is closed. scratch: a folder for factors that are too
    large for memory. Raises InvalidArgumentError if no tensor is to be quantized, if one has NaN or Inf, and if the
    method needs statistics that there are not.
    """

    def __init__(
        self,
        plans: Sequence[FilePlan],
        options: RateOptions,
        calibration: Calibration | None,
        run: RunMap,
        scratch: Path,
    ) -> None:
        self._options, self._run = options, run
        method = options.method or ("watersic" if calibration else "rtn-ec")
        self.method: RateMethod = method
        if method != "rtn-ec" and calibration is None:
            raise InvalidArgumentError(f"{method} needs the statistics that `qzc calibrate` gathers: give --stats")
        self._calibration, self._files = calibration, dict[str, SourceTensors]()
        self._search: Search | None = None
        self._reached = 0.0
        with ExitStack() as stack:
            self._factors: Factors | None = None
            if calibration is not None:
                order: Order = "activation" if method == "gptq-ec" else "natural"
                self._factors = stack.enter_context(Factors(calibration, order, run, scratch))
            designs = list(self._designs(plans, stack))
            if not designs:
                raise InvalidArgumentError("no tensor is to be quantized; `qzc pack --dry-run` shows why")
            self._stack = stack.pop_all()
        self.without_statistics = tuple(d.name for d, known in designs if not known) if calibration else ()
        self.designs = _balanced(self._weighed(designs))
        self.weights = sum(design.weights.size for design in self.designs)

    def solve(self, bits_per_weight: float) -> RatedTensors:
        """Everything at this rate, as `coded_bits` counts it. Raises InvalidArgumentError if it cannot be reached.

        Of many weights only a sample is looked at. The next call knows of all of them, if they were asked for.
        """
        # Without sensitivities, errors in the outputs of different layers cannot be weighed against each other.
        uniform = not self.weighed
        numbers = {design.name: number for number, design in enumerate(self.designs)}
        if self.weights <= IN_MEMORY:
            rated = solve(self.designs, bits_per_weight, uniform=uniform, run_tensors=self._run)
            self._reached = rated.bits.total / self.weights
            known = [(tensor.grid, _may_be_wide(tensor)) for tensor in rated.tensors]
            return RatedTensors(
                rated.bank, dict(zip(numbers, known, strict=True)), lambda name, run: rated.tensors[numbers[name]]
            )
        if self._search is None:
            search = self._search = Search(
                self.designs, bits_per_weight, uniform, run_tensors=self._run, done=self._release
            )
            search.find()
        else:
            search = self._search
            search.correct(bits_per_weight)
        assert search.bank is not None
        grids = {name: (search.grid(number), True) for name, number in numbers.items()}
        return RatedTensors(search.bank, grids, lambda name, run: search.quantize(numbers[name], run))

    @property
    def reached(self) -> float:
        """The rate at which `solve` arrived, once all its tensors were asked for."""
        return self._search.reached if self._search else self._reached

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _release(self, design: Design) -> None:
        self._files[design.name].release(design.name)
        if self._factors:
            self._factors.release(design.name)

    @property
    def weighed(self) -> bool:
        """Whether a bit more buys the same in every tensor, by what errors in it were found to cost the model."""
        return not self._options.uniform and self._calibration is not None and self._calibration.has_sensitivities

    def _weighed(self, designs: list[tuple[Design, bool]]) -> list[tuple[Design, bool]]:
        """Steps by sensitivity. Of tensors without one nothing is known."""
        if not self.weighed:
            return designs
        found = [self._sensitivity(design) for design, _ in designs]
        known = iter(equal_slope([d for (d, _), s in zip(designs, found, strict=True) if s], [s for s in found if s]))
        return [(next(known), True) if s else (design, False) for (design, _), s in zip(designs, found, strict=True)]

    def _sensitivity(self, design: Design) -> float | None:
        """To a squared error of one, in the units in which the steps of the design are."""
        assert self._calibration is not None
        found, power = self._calibration.sensitivity(design.name), self._calibration.power(design.name)
        plain = design.factor is None and design.column_log is None
        if found is None or not plain or power is None or len(power) != design.weights.shape[1]:
            return found
        return found * float(power.mean()) or None

    def _designs(self, plans: Sequence[FilePlan], stack: ExitStack) -> Iterator[tuple[Design, bool]]:
        """The design of each tensor, and whether there were statistics for it."""
        for plan in plans:
            file = stack.enter_context(open_source(plan.source))
            for tensor in plan.tensors:
                if tensor.is_rated:
                    self._files[tensor.name] = file
                    design, known = self._design(tensor, file.array(tensor.name))
                    self._release(design)
                    yield design, known

    def _design(self, tensor: PlannedTensor, array: NDArray[Any]) -> tuple[Design, bool]:
        name, dtype, states = tensor.name, tensor.dtype, self._options.states
        columns = matrix_shape(tensor.shape)[1]
        power = self._calibration.power(name) if self._calibration else None
        if power is None or self.method == "rtn-ec" or len(power) != columns:
            return rtn_ec(array, dtype, states=states, name=name), self.method == "rtn-ec"
        if self.method == "diag":
            return diag(array, dtype, power, states=states, name=name), True
        factor = self._factors.of(name) if self._factors else None
        if factor is None:
            return rtn_ec(array, dtype, states=states, name=name), False
        if self.method == "gptq-ec":
            return gptq_ec(array, dtype, factor, states=states, name=name), True
        return watersic(array, dtype, factor, states=states, name=name), True


def _may_be_wide(tensor: RateTensor) -> bool:
    """False if levels certainly fit 8 bits; without a trellis True if they do not."""
    largest = max(int(tensor.codes.max()), -int(tensor.codes.min())) if tensor.codes.size else 0
    return largest > (63 if tensor.states else 127)


def factor_of(calibration: Calibration, name: str, columns: int) -> Factor | None:
    """The statistics of a tensor's inputs for `gptq`; None if there are none that fit."""
    gram = calibration.gram(name)
    return (
        None if gram is None or len(gram) != columns else factorize(gram, order="activation", name=name, overwrite=True)
    )


def open_statistics(path: Path, model: Any) -> Calibration:
    """Statistics that were taken on this checkpoint. Raises InvalidArgumentError for those of another one."""
    calibration = Calibration.open(path)
    try:
        calibration.check_model(model)
    except BaseException:
        calibration.close()
        raise
    return calibration


def _balanced(designs: Sequence[tuple[Design, bool]]) -> list[Design]:
    """Tensors without statistics get about the rate that the others have in the mean: nothing says what they matter."""
    known = [(typical_size(design) - math.log2(design.scale), design.weights.size) for design, has in designs if has]
    if not known or len(known) == len(designs):
        return [design for design, _ in designs]
    sizes, weights = zip(*known, strict=True)
    mean = float(np.average(sizes, weights=weights))
    return [design if has else replace(design, scale=2.0 ** (typical_size(design) - mean)) for design, has in designs]
