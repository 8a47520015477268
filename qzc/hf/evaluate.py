"""`qzc eval`: what packing costs a model on text: perplexity and KL divergence, or how far embeddings turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from ..progress import Progress
from .model import HfModel, import_hf, load_model, open_hf, running
from .text import WindowOptions, Windows, read_windows

PASS_TOKENS = 2048  # in one forward pass, or one window if that is more
SLICE = 1 << 22  # logits that are widened to float64 at once
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
    options, began = options or EvalOptions(), time.monotonic()
    original = None if against is None else open_hf(against, "safetensors")
    found = open_hf(model, "safetensors" if against is None else "qzc", original)
    if found.encoder and original is None:
        raise InvalidArgumentError(f"{model}: the embeddings of an encoder are compared with those of its original")
    if original is not None and original.task != found.task:
        raise InvalidArgumentError(f"{model} and {against} are models of different kinds")
    import_hf()
    config = original or found  # a packed file may have come without its tokenizer
    windows = read_windows(texts, options.windows, found.encoder, config.load_tokenizer)
    for one in (found, original):
        if one is not None:
            one.check_ids(windows.ids)
    sizes = [_nbytes(one) for one in (found, original) if one is not None]
    with running(options.device, options.threads):
        models = [load_model(one, options.device, options.threads) for one in (found, original) if one is not None]
        columns = _measure(models, found.encoder, windows.ids, options.device, sum(sizes), progress)
    nll, original_nll, kl, top1, distance = (columns.get(key) for key in ("nll", "original", "kl", "top1", "distance"))
    difference = None if nll is None or original_nll is None else estimate(nll - original_nll)
    return EvalReport(
        model=Path(model),
        against=None if against is None else Path(against),
        task=found.task,
        architecture=",".join(found.config.architectures or []),
        windows=windows,
        nbytes=sizes[0],
        original_nbytes=sizes[1] if original is not None else None,
        perplexity=None if nll is None else estimate(nll).exp(),
        original_perplexity=None if original_nll is None else estimate(original_nll).exp(),
        ratio=None if difference is None else difference.exp(),
        kl=None if kl is None else estimate(kl),
        top1=None if top1 is None else estimate(top1),
        cosine_distance=None if distance is None else estimate(distance),
        seconds=time.monotonic() - began,
    )


def estimate(values: NDArray[np.float64]) -> Estimate:
    """The mean of values [windows] that count the same, and its interval."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, None, None)
    half = Z95 * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def _measure(
    models: list[Any], encoder: bool, ids: NDArray[np.int64], device: str, nbytes: int, progress: Progress | None
) -> dict[str, NDArray[np.float64]]:
    """Means by window: float64 [windows] for each quantity."""
    torch, _ = import_hf()
    size = max(1, PASS_TOKENS // ids.shape[1])
    found: dict[str, list[NDArray[np.float64]]] = {}
    for first in range(0, len(ids), size):
        if progress:
            progress(f"window {first}", nbytes * first // len(ids), nbytes)
        batch = torch.from_numpy(ids[first : first + size]).to(device)
        for key, values in (_embeddings if encoder else _predictions)(torch, models, batch).items():
            found.setdefault(key, []).append(values.double().cpu().numpy())
    if progress:
        progress("", nbytes, nbytes)
    return {key: np.concatenate(values) for key, values in found.items()}


def _predictions(torch: Any, models: list[Any], ids: Any) -> dict[str, Any]:
    """Quantities of causal models, by window: the model's and, with a second one, the original's."""
    logits = [model(input_ids=ids).logits[:, :-1] for model in models]
    targets = ids[:, 1:].reshape(-1, 1)
    flat = [part.reshape(-1, part.shape[-1]) for part in logits]
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


def _embeddings(torch: Any, models: list[Any], ids: Any) -> dict[str, Any]:
    packed, original = (model(input_ids=ids).last_hidden_state.double().mean(1) for model in models)
    cosine = (packed * original).sum(-1) / (packed.norm(dim=-1) * original.norm(dim=-1))
    return {"distance": 1 - cosine}


def _nbytes(model: HfModel) -> int:
    return sum(path.stat().st_size for path in model.checkpoint.files)
