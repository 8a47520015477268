"""What `pack` does to reach a rate: how each tensor is to be quantized, and the search for the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration
from .codec.errors import InvalidArgumentError
from .codec.rate_tensor import RateTensor
from .codec.run_map import RunMap
from .codec.table_bank import TableBank
from .codec.tensor import matrix_shape
from .planner import FilePlan, PlannedTensor
from .quantize.diag import diag
from .quantize.gptq_ec import gptq_ec
from .quantize.hessian import Factor, Order, factorize
from .quantize.rate import solve
from .quantize.rtn_ec import rtn_ec
from .quantize.unbounded import Design, typical_size
from .quantize.watersic import watersic
from .sources import open_source

RateMethod = Literal["rtn-ec", "diag", "gptq-ec", "watersic"]
RATE_METHODS: tuple[RateMethod, ...] = ("rtn-ec", "diag", "gptq-ec", "watersic")
TRELLISES = (4, 8, 16, 32, 64, 128, 256)
BEST_STATES = 32
"""More are better by some hundredths of a bit, and take many times as long to encode."""


@dataclass(frozen=True)
class RateOptions:
    """How much the weights may take.

    bits_per_weight: of the tensors that are quantized, all that the file has for them counted; or nbytes: of the whole
    output. Exactly one is given. count: `quantized`, or `all` for the bits of the whole output per weight of any tensor.
    method: None for `watersic` with statistics and `rtn-ec` without. states: of a trellis; 0 for none.
    uniform: the same rate for every tensor.
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
    """Tensors of a checkpoint at a rate, by name, with the bank for all of them."""

    tensors: dict[str, RateTensor]
    bank: TableBank


class Rating:
    """The tensors of a checkpoint that are to be quantized at a rate, ready to be quantized at any.

    They are held in float32, for each try has to see all of them. Raises InvalidArgumentError if no tensor is to be
    quantized, if one has NaN or Inf, and if the method needs statistics that there are not.
    """

    def __init__(
        self, plans: Sequence[FilePlan], options: RateOptions, calibration: Calibration | None, run: RunMap
    ) -> None:
        self._options, self._run = options, run
        method = options.method or ("watersic" if calibration else "rtn-ec")
        self.method: RateMethod = method
        if method != "rtn-ec" and calibration is None:
            raise InvalidArgumentError(f"{method} needs the statistics that `qzc calibrate` gathers: give --stats")
        self._factors: dict[str, Factor] = {}
        self._calibration = calibration
        with ExitStack() as stack:
            designs = list(self._designs(plans, stack))
        if not designs:
            raise InvalidArgumentError("no tensor is to be quantized; `qzc pack --dry-run` shows why")
        self.without_statistics = tuple(d.name for d, known in designs if not known) if calibration else ()
        self._factors.clear()
        self.designs = _balanced(designs)
        self.weights = sum(design.weights.size for design in self.designs)

    def solve(self, bits_per_weight: float) -> RatedTensors:
        """Quantize everything at this rate. Raises InvalidArgumentError if it cannot be reached."""
        # Without sensitivities, errors in the outputs of different layers cannot be weighed against each other.
        uniform = self._options.uniform or self.method in ("gptq-ec", "watersic")
        rated = solve(self.designs, bits_per_weight, uniform=uniform, run_tensors=self._run)
        names = [design.name for design in self.designs]
        return RatedTensors(dict(zip(names, rated.tensors, strict=True)), rated.bank)

    def _designs(self, plans: Sequence[FilePlan], stack: ExitStack) -> Iterator[tuple[Design, bool]]:
        """The design of each tensor, and whether there were statistics for it."""
        for plan in plans:
            file = stack.enter_context(open_source(plan.source))
            for tensor in plan.tensors:
                if tensor.is_rated:
                    yield self._design(tensor, file.array(tensor.name))
                    file.release(tensor.name)

    def _design(self, tensor: PlannedTensor, array: NDArray[Any]) -> tuple[Design, bool]:
        name, dtype, states = tensor.name, tensor.dtype, self._options.states
        columns = matrix_shape(tensor.shape)[1]
        power = self._calibration.power(name) if self._calibration else None
        if power is None or self.method == "rtn-ec" or len(power) != columns:
            return rtn_ec(array, dtype, states=states, name=name), self.method == "rtn-ec"
        if self.method == "diag":
            return diag(array, dtype, power, states=states, name=name), True
        factor = self._factor(name, "activation" if self.method == "gptq-ec" else "natural")
        if factor is None:
            return rtn_ec(array, dtype, states=states, name=name), False
        if self.method == "gptq-ec":
            return gptq_ec(array, dtype, factor, states=states, name=name), True
        return watersic(array, dtype, factor, states=states, name=name), True

    def _factor(self, name: str, order: Order) -> Factor | None:
        """Of the input that the tensor reads; tensors with one input share it."""
        assert self._calibration is not None
        key = self._calibration.input_of(name) or name
        if key not in self._factors:
            gram = self._calibration.gram(name)
            if gram is None:
                return None
            self._factors[key] = factorize(gram, order=order, name=name, run=self._run)
        return self._factors[key]


def factor_of(calibration: Calibration, name: str, columns: int) -> Factor | None:
    """The statistics of a tensor's inputs for `gptq`; None if there are none that fit."""
    gram = calibration.gram(name)
    return None if gram is None or len(gram) != columns else factorize(gram, order="activation", name=name)


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
