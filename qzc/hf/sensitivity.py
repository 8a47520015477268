"""What errors in a matrix cost a model: the matrix alone is quantized, and the harm at the model's end measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import symmetric
from ..codec.rate_tensor import reconstruct
from ..codec.run_map import RunMap
from ..quantize.allocate import measured_sensitivity
from ..quantize.diag import diag
from ..quantize.hessian import Factor, factorize
from ..quantize.rtn_ec import rtn_ec
from ..quantize.unbounded import quantize_design, typical_size
from ..quantize.watersic import watersic
from .inputs import InputStatistics
from .model import import_hf, to_torch

TRIAL_BITS = 2.0
NO_HARM = 1e-12  # below it the matrix is not used, or not for what is measured


@dataclass(frozen=True)
class Trial:
    """A matrix that is quantized alone. name: in the checkpoint; parameter: in the model. error: its squared error, as in
    `Calibration.sensitivity`.
    """

    name: str
    parameter: str
    error: float


class Disturber:
    """Quantizes matrices for trials. inputs: the statistics of their inputs, those that there are."""

    def __init__(self, inputs: list[InputStatistics], run: RunMap) -> None:
        self._inputs: Mapping[str, InputStatistics] = {name: one for one in inputs for name in one.tensors}
        self._run = run
        self._latest: tuple[InputStatistics, NDArray[np.float32], Factor] | None = None

    def trial(self, name: str, parameter: str, tensor: Any) -> tuple[Trial, NDArray[np.float32]]:
        """Of a parameter of the model, and what it is exchanged for."""
        weights = weights_of(tensor)
        disturbed = self.disturb(name, weights)
        return Trial(name, parameter, self.squared_error(name, weights, disturbed)), disturbed

    def disturb(self, name: str, weights: NDArray[np.float32], rough: bool = False) -> NDArray[np.float32]:
        """The weights at about TRIAL_BITS. rough: as if there were no statistics."""
        known = None if rough else self._fitting(name, weights)
        if known is None:
            design = rtn_ec(weights, "F32", name=name)
        elif known.triangle is None:
            design = diag(weights, "F32", known.power, name=name)
        else:
            design = watersic(weights, "F32", self._matrices(known)[1], name=name)
        size = typical_size(design)
        step = 2.0 ** (size + 2.05 - TRIAL_BITS) / design.scale
        return reconstruct(quantize_design(design, step, None, size, run=self._run).tensor).reshape(weights.shape)

    def squared_error(self, name: str, weights: NDArray[np.float32], disturbed: NDArray[np.float32]) -> float:
        """What the difference adds to a mean token's outputs."""
        error = (disturbed - weights).reshape(len(weights), -1)
        known = self._fitting(name, weights)
        if known is None:
            return float(np.square(error, dtype=np.float64).sum())
        if known.triangle is None:
            return float(np.square(error, dtype=np.float64).sum(axis=0) @ known.power)
        return float(np.multiply(error @ self._matrices(known)[0], error, dtype=np.float64).sum())

    def _fitting(self, name: str, weights: NDArray[np.float32]) -> InputStatistics | None:
        known = self._inputs.get(name)
        fits = known is not None and weights.ndim == 2 and len(known.power) == weights.shape[1]
        return known if fits else None

    def _matrices(self, known: InputStatistics) -> tuple[NDArray[np.float32], Factor]:
        """The Gram matrix of an input and its factor. Tensors that share an input follow each other: one is kept."""
        if self._latest is None or self._latest[0] is not known:
            self._latest = None
            assert known.triangle is not None
            gram = symmetric(known.triangle, len(known.power))
            single = gram.astype(np.float32)
            factor = factorize(gram, name=known.tensors[0], run=self._run, overwrite=True)
            self._latest = known, single, factor
        return self._latest[1], self._latest[2]


class Harm:
    """Means over the windows of a text of what trials do: KL divergence of next-token distributions in nats, or
    1 - cosine of mean-pooled embeddings, as in `evaluate`.
    """

    def __init__(self, causal: bool, windows: int) -> None:
        self._torch, _ = import_hf()
        self._causal, self._windows = causal, windows
        self._sums: dict[str, float] = {}

    def reference(self, output: Any) -> list[Any]:
        """What trials are compared with, by window, from the original's output for some windows."""
        return [self._outcome(row) for row in self._rows(output)]

    def add(self, name: str, reference: list[Any], output: Any) -> None:
        """The output of the model for these windows in the trial of this matrix."""
        for known, row in zip(reference, self._rows(output), strict=True):
            found = self._outcome(row)
            if self._causal:
                each = (known.exp() * (known - found)).sum(-1, dtype=self._torch.float64)
                harm = float(each.mean())
            else:
                harm = 1 - float((known * found).sum())
            self._sums[name] = self._sums.get(name, 0.0) + harm

    def of(self, name: str) -> float:
        """The mean over all windows, which must have been added."""
        return self._sums[name] / self._windows

    def _rows(self, output: Any) -> Any:
        return output.logits if self._causal else output.last_hidden_state

    def _outcome(self, row: Any) -> Any:
        """Of one window: its logits [length, vocabulary], or its last hidden states [length, width]."""
        if self._causal:
            return self._torch.log_softmax(row[:-1].float(), -1)
        pooled = row.double().mean(0)
        return pooled / pooled.norm()


def sensitivities(trials: Sequence[Trial], harm: Harm) -> dict[str, float]:
    """Harm for a squared error of one, by name, to four digits; without the trials that did no harm."""
    known = ((trial, harm.of(trial.name)) for trial in trials if trial.error > 0)
    return {t.name: float(f"{measured_sensitivity(found, t.error):.4g}") for t, found in known if found > NO_HARM}


def matrices(parameters: list[tuple[str, Any]], names: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    """(name in the checkpoint, name in the model, parameter) of all that are not vectors, each tensor once."""
    found: dict[str, tuple[str, str, Any]] = {}
    for parameter, tensor in parameters:
        if parameter in names and tensor.ndim > 1 and tensor.is_floating_point():
            found.setdefault(names[parameter], (names[parameter], parameter, tensor))
    return list(found.values())


def weights_of(parameter: Any) -> NDArray[np.float32]:
    weights: NDArray[np.float32] = parameter.detach().float().cpu().numpy()
    return weights


@contextmanager
def exchanged(parameter: Any, weights: NDArray[np.float32]) -> Iterator[None]:
    """The model with other weights in the place of a parameter's."""
    original = parameter.data
    parameter.data = to_torch(weights).to(original)
    try:
        yield
    finally:
        parameter.data = original
