"""`qzc eval`: what packing costs a model on text: perplexity and KL divergence, or how far embeddings turn."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from ..progress import Progress
from .model import HfModel, Task, import_hf, load_model, open_hf, running
from .text import WindowOptions, Windows, read_windows

PASS_TOKENS = 2048  # in one forward pass, or one window if that is more
SLICE = 1 << 22  # logits that are widened to float64 at once
KEPT_NBYTES = 1 << 31  # of the original's outputs, so that it need not run for each model that is compared with it
Z95 = 1.959963984540054


@dataclass(frozen=True)
class EvalOptions:
    """windows: how the text is cut. threads: of torch, 0 for all CPUs."""

    windows: WindowOptions = field(default_factory=WindowOptions)
    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True)
class Estimate:
    """A mean over windows, and the ends of its 95 % confidence interval (normal; None for a single window)."""

    value: float
    low: float | None
    high: float | None

    def exp(self) -> Estimate:
        low, high = (None if end is None else float(np.exp(end)) for end in (self.low, self.high))
        return Estimate(float(np.exp(self.value)), low, high)


@dataclass(frozen=True)
class EvalReport:
    """What `evaluate` measured; None for what there is not. All per predicted token, every token but a window's first.

    perplexity, original_perplexity: exp of the mean negative log-likelihood. ratio: of the two, its interval from the
    differences window by window. kl: of the packed model's distributions from the original's, in nats. top1: how often both
    hold the same token most likely. cosine_distance: 1 - cosine of the mean-pooled embeddings of a window.
    nbytes, original_nbytes: of the files of weights.
    """

    model: Path
    against: Path | None
    task: str
    architecture: str
    windows: Windows
    nbytes: int
    original_nbytes: int | None
    perplexity: Estimate | None
    original_perplexity: Estimate | None
    ratio: Estimate | None
    kl: Estimate | None
    top1: Estimate | None
    cosine_distance: Estimate | None
    seconds: float


def evaluate(
    model: str | Path,
    texts: Sequence[str | Path],
    against: str | Path | None = None,
    options: EvalOptions | None = None,
    progress: Progress | None = None,
) -> EvalReport:
    """Measure a model on text, by itself or against the original that it was packed from.

    model: a folder that transformers can load, or `.qzc` (a folder, or a file whose config lies beside it or beside the
    original). texts: see `read_windows`. Everything is computed in float32, sums over the vocabulary in float64.
    progress counts bytes of weights that have seen all of the text.

    Raises InvalidArgumentError (also for an encoder without an original), UnsupportedError, CorruptionError,
    FileAccessError.
    """
    if against is not None:
        return Comparison(against, texts, options, keep_nbytes=0).measure(model, progress)
    options, began = options or EvalOptions(), time.monotonic()
    found = open_hf(model, "safetensors")
    if found.encoder:
        raise InvalidArgumentError(f"{model}: the embeddings of an encoder are compared with those of its original")
    windows = read_windows(texts, options.windows, found.encoder, found.load_tokenizer)
    found.check_ids(windows.ids)
    with running(options.device, options.threads):
        loaded = load_model(found, options.device, options.threads)
        batches = _batches(windows.ids, options.device, _nbytes(found), progress)
        measured = [_predictions(ids, _outputs(loaded, ids, False)) for ids in batches]
    return _report(Path(model), None, found, None, windows, measured, began)


class Comparison:
    """An original and a text, to measure several models against. The windows are cut once, and what the original makes of
    them is computed once, too, and kept in memory if it takes no more than `keep_nbytes`.

    Raises as `evaluate`.
    """

    def __init__(
        self,
        against: str | Path,
        texts: Sequence[str | Path],
        options: EvalOptions | None = None,
        keep_nbytes: int = KEPT_NBYTES,
    ) -> None:
        self._options, self._path = options or EvalOptions(), Path(against)
        self._original = open_hf(against, "safetensors")
        import_hf()
        self.windows = read_windows(texts, self._options.windows, self._original.encoder, self._original.load_tokenizer)
        self._original.check_ids(self.windows.ids)
        self._keep_nbytes = keep_nbytes
        self._kept: list[Any] | None = None

    @property
    def task(self) -> Task:
        return self._original.task

    def measure(self, model: str | Path, progress: Progress | None = None) -> EvalReport:
        """Measure a model that was packed from the original. Raises as `evaluate`."""
        began, original, device, threads = time.monotonic(), self._original, self._options.device, self._options.threads
        found = open_hf(model, "qzc", original)
        if original.task != found.task:
            raise InvalidArgumentError(f"{model} and {self._path} are models of different kinds")
        found.check_ids(self.windows.ids)
        nbytes = _nbytes(found) + (0 if self._kept else _nbytes(original))
        with running(device, threads):
            loaded = load_model(found, device, threads)
            reference = None if self._kept else load_model(original, device, threads)
            measured, taken = [], 0
            kept: list[Any] = []
            for index, ids in enumerate(_batches(self.windows.ids, device, nbytes, progress)):
                outputs = _outputs(loaded, ids, found.encoder)
                known = self._kept[index] if self._kept else _outputs(reference, ids, found.encoder)
                measured.append(_distances(outputs, known) if found.encoder else _predictions(ids, outputs, known))
                taken += known.nbytes
                kept = [*kept, known] if taken <= self._keep_nbytes else []
            self._kept = kept or None
        return _report(Path(model), self._path, found, original, self.windows, measured, began)


def estimate(values: NDArray[np.float64]) -> Estimate:
    """The mean of values [windows] that count the same, and its interval."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, None, None)
    half = Z95 * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def _batches(ids: NDArray[np.int64], device: str, nbytes: int, progress: Progress | None) -> Iterator[Any]:
    """Windows that go through the model together, as torch tensors."""
    torch, _ = import_hf()
    size = max(1, PASS_TOKENS // ids.shape[1])
    for first in range(0, len(ids), size):
        if progress:
            progress(f"window {first}", nbytes * first // len(ids), nbytes)
        yield torch.from_numpy(ids[first : first + size]).to(device)
    if progress:
        progress("", nbytes, nbytes)


def _outputs(model: Any, ids: Any, encoder: bool) -> Any:
    """Logits [windows, length - 1, vocabulary] of all tokens but the first; of an encoder mean hidden states [windows, width]."""
    if encoder:
        return model(input_ids=ids).last_hidden_state.double().mean(1)
    return model(input_ids=ids).logits[:, :-1]


def _predictions(ids: Any, *outputs: Any) -> dict[str, Any]:
    """Quantities of causal models, by window, from their logits: the model's and, with a second one, the original's."""
    torch, _ = import_hf()
    targets = ids[:, 1:].reshape(-1, 1)
    flat = [part.reshape(-1, part.shape[-1]) for part in outputs]
    step = max(1, SLICE // flat[0].shape[-1])
    found: dict[str, list[Any]] = {}
    for first in range(0, len(targets), step):
        rows = slice(first, first + step)
        logs = [torch.log_softmax(part[rows].double(), -1) for part in flat]
        for key, log in zip(("nll", "original"), logs, strict=False):
            found.setdefault(key, []).append(-log.gather(1, targets[rows]).squeeze(1))
        if len(logs) == 2:
            packed, original = logs
            found.setdefault("kl", []).append((original.exp() * (original - packed)).sum(-1))
            found.setdefault("top1", []).append((original.argmax(-1) == packed.argmax(-1)).double())
    return {key: torch.cat(values).reshape(len(ids), -1).mean(1) for key, values in found.items()}


def _distances(packed: Any, original: Any) -> dict[str, Any]:
    cosine = (packed * original).sum(-1) / (packed.norm(dim=-1) * original.norm(dim=-1))
    return {"distance": 1 - cosine}


def _report(
    model: Path,
    against: Path | None,
    found: HfModel,
    original: HfModel | None,
    windows: Windows,
    measured: list[dict[str, Any]],
    began: float,
) -> EvalReport:
    """measured: of each batch of windows, by window."""
    torch, _ = import_hf()
    columns = {key: torch.cat([part[key] for part in measured]).double().cpu().numpy() for key in measured[0]}
    nll, original_nll, kl, top1, distance = (columns.get(key) for key in ("nll", "original", "kl", "top1", "distance"))
    difference = None if nll is None or original_nll is None else estimate(nll - original_nll)
    return EvalReport(
        model=model,
        against=against,
        task=found.task,
        architecture=",".join(found.config.architectures or []),
        windows=windows,
        nbytes=_nbytes(found),
        original_nbytes=None if original is None else _nbytes(original),
        perplexity=None if nll is None else estimate(nll).exp(),
        original_perplexity=None if original_nll is None else estimate(original_nll).exp(),
        ratio=None if difference is None else difference.exp(),
        kl=None if kl is None else estimate(kl),
        top1=None if top1 is None else estimate(top1),
        cosine_distance=None if distance is None else estimate(distance),
        seconds=time.monotonic() - began,
    )


def _nbytes(model: HfModel) -> int:
    return sum(path.stat().st_size for path in model.checkpoint.files)
