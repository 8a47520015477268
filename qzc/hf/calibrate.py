"""`qzc calibrate`: run a transformers model on text, and store statistics of the inputs of its linear layers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import FORMAT, VERSION, fingerprint
from ..codec.errors import FileAccessError, InvalidArgumentError, UnsupportedError
from ..codec.run_map import RunMap
from ..progress import Progress
from ..threads import thread_map
from ..version import VERSION as QZC_VERSION
from .blocks import Blocks, NotInBlocks
from .inputs import InputSums, Stop
from .model import HfModel, Weights, checkpoint_names, import_hf, is_pooler, load_model, open_hf, running
from .partial import KeptStates, Part, Partial, keep_states, part_of, write_parts
from .sensitivity import Disturber, Harm, Trial, exchanged, matrices, sensitivities, weights_of
from .text import WindowOptions, Windows, read_windows

PASS_TOKENS = 2048  # in one forward pass, or one window if that is more
SENSITIVITY_WINDOWS = 16


@dataclass(frozen=True)
class CalibrateOptions:
    """windows: how the text is cut. grams: X'X of every input; else only its diagonal. in_blocks: load and run one block
    after another, so that memory for one is enough, and an interrupted run can go on; the whole model at once where its
    architecture does not allow that. sensitivity_windows: of the text, evenly spread, on which it is measured what errors in
    each matrix cost the model: one matrix after another is quantized alone. 0 does not measure it. threads: of torch, 0 for
    all CPUs. overwrite: replace an existing output.
    """

    windows: WindowOptions = field(default_factory=WindowOptions)
    grams: bool = True
    in_blocks: bool = True
    sensitivity_windows: int = SENSITIVITY_WINDOWS
    device: str = "cpu"
    threads: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.sensitivity_windows < 0:
            raise InvalidArgumentError(f"{self.sensitivity_windows} windows for sensitivities: 0 or more")


@dataclass(frozen=True)
class CalibrateReport:
    """What `calibrate` did. inputs: with statistics of their own; tensors: that read them. uncovered: names of layers whose
    weights are under no name in the checkpoint, or whose inputs are not the columns of a matrix. whole: why the model was run at once, None if it was not.
    resumed: blocks that an earlier run had finished. sensitivities: tensors that have one. columns: of the widest input.
    nbytes: of the output.
    """

    output: Path
    windows: Windows
    inputs: int
    tensors: int
    tokens: int
    columns: int
    uncovered: tuple[str, ...]
    whole: str | None
    resumed: int
    sensitivities: int
    nbytes: int
    seconds: float


def calibrate(
    model: str | Path,
    texts: Sequence[str | Path],
    output: str | Path,
    options: CalibrateOptions | None = None,
    progress: Progress | None = None,
) -> CalibrateReport:
    """Run a model on text and write the statistics of the inputs of its linear layers to `output`; see `Calibration`.

    model: a folder that transformers can load: config, safetensors, tokenizer. texts: see `read_windows`.
    progress counts bytes of weights, once for each time that they see all of the text. Everything is computed in float32.

    While it runs, finished blocks are kept in the folder `output` + ".partial"; the same call goes on from there.

    Raises UnsupportedError (torch or transformers missing, a model they do not know), InvalidArgumentError, CorruptionError,
    FileAccessError (also if `output` exists and overwriting was not asked for).
    """
    options, output, began = options or CalibrateOptions(), Path(output), time.monotonic()
    found = open_hf(model, "safetensors")
    if found.packed:
        raise UnsupportedError(f"{model}: statistics are taken on the original, not on a .qzc file")
    if output.exists() and not options.overwrite:
        raise FileAccessError(f"{output} already exists; -f/--force overwrites it")
    import_hf()
    windows = read_windows(texts, options.windows, found.encoder, found.load_tokenizer)
    found.check_ids(windows.ids)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "writer": f"qzc {QZC_VERSION}",
        "model_hash": fingerprint(found.checkpoint, progress),
        "text_hash": windows.hash,
        "tokens": str(windows.ids.size),
        "windows": str(len(windows.ids)),
        "window_length": str(windows.ids.shape[1]),
        "tokenization": windows.tokenization,
        "architecture": ",".join(found.config.architectures or []),
    }
    with running(options.device, options.threads), thread_map(options.threads) as run:
        job = _Job(found, windows, options, run, progress)
        partial = Partial(output.with_name(output.name + ".partial"), {**metadata, **_versions(options)})
        whole = None if options.in_blocks else "asked for"
        resumed = 0
        parts: list[Part] = []
        if options.in_blocks:
            try:
                parts, resumed = _in_blocks(job, partial)
            except NotInBlocks as reason:
                partial.remove()
                whole = str(reason)
        if whole is not None:
            parts = _whole(job)
    if options.sensitivity_windows:
        metadata["sensitivities"] = json.dumps(dict(sorted(job.sensitivities.items())), ensure_ascii=False)
        metadata["sensitivity_windows"] = str(len(job.rows))
    inputs = {key: entry for part in parts for key, entry in part.inputs.items()}
    if not inputs:
        raise UnsupportedError(f"{model}: none of its linear layers has its weights under a name in the checkpoint")
    nbytes = write_parts(output, parts, metadata, options.overwrite)
    partial.remove()
    return CalibrateReport(
        output=output,
        windows=windows,
        inputs=len(inputs),
        tensors=sum(len(tensors) for tensors, _ in inputs.values()),
        tokens=windows.ids.size,
        columns=max(len(part.arrays[f"{key}.power"]) for part in parts for key in part.inputs),
        uncovered=tuple(job.uncovered),
        whole=whole,
        resumed=resumed,
        sensitivities=len(job.sensitivities),
        nbytes=nbytes,
        seconds=time.monotonic() - began,
    )


class _Job:
    """What both ways of running the model share. rows: the windows of trials; row_batches: those of each forward
    pass. share: of all windows.
    """

    def __init__(
        self, model: HfModel, windows: Windows, options: CalibrateOptions, run: RunMap, progress: Progress | None
    ) -> None:
        self.model, self.options, self.run, self.progress = model, options, run, progress
        size = max(1, PASS_TOKENS // windows.ids.shape[1])
        self.ids = windows.ids
        self.batches = [windows.ids[first : first + size] for first in range(0, len(windows.ids), size)]
        count = min(options.sensitivity_windows, len(windows.ids))
        self.rows = np.arange(count) * len(windows.ids) // max(1, count)
        self.row_batches = [self.rows[first : first + size] for first in range(0, count, size)]
        self.share = count / len(windows.ids)
        self.uncovered: list[str] = []
        self.sensitivities: dict[str, float] = {}

    def sums(self, model: Any, names: dict[str, str], prefix: str = "", outside: str | None = None) -> InputSums:
        """For the linear layers whose names begin with `prefix`, and not with `outside`."""
        torch, transformers = import_hf()
        transposed = transformers.pytorch_utils.Conv1D  # weights [inputs, outputs]: their columns are not inputs
        modules, last = {}, None
        for name, module in model.named_modules():
            if not name.startswith(prefix) or (outside is not None and name.startswith(outside)):
                continue
            if isinstance(module, torch.nn.Linear) and f"{name}.weight" in names:
                modules[names[f"{name}.weight"]] = module
                last = names[f"{name}.weight"] if module is model.get_output_embeddings() else last
            elif isinstance(module, torch.nn.Linear | transposed) or any(
                parameter.ndim > 2
                for parameter in module.parameters(recurse=False)  # experts in one
            ):
                self.uncovered.append(name)
        return InputSums(modules, self.options.grams, last)

    def report(self, what: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(what, done, total)


def _whole(job: _Job) -> list[Part]:
    job.uncovered.clear()
    with Weights(job.model.checkpoint) as weights:
        shapes = weights.shapes()
        total = sum(map(weights.nbytes, shapes))
    model = load_model(job.model, job.options.device)
    torch, _ = import_hf()
    names = checkpoint_names(model, shapes)
    tried = [item for item in matrices(list(model.named_parameters()), names) if job.share and not is_pooler(item[1])]
    work = total + int(total * job.share * len(tried))
    sums = job.sums(model, names)
    with sums.listening():
        for index, batch in enumerate(job.batches):
            job.report("whole model", total * index // len(job.batches), work)
            try:
                model(input_ids=torch.from_numpy(batch).to(job.options.device))
            except Stop:
                pass
            sums.end_pass()
    results = sums.results()
    if tried:
        disturber, harm, trials = Disturber(results, job.run), Harm(not job.model.encoder, len(job.rows)), []
        batches = [torch.from_numpy(job.ids[rows]).to(job.options.device) for rows in job.row_batches]
        references = [harm.reference(model(input_ids=batch)) for batch in batches]
        for count, (name, parameter, tensor) in enumerate(tried):
            job.report(f"errors in {name}", total + int(total * job.share * count), work)
            trial, disturbed = disturber.trial(name, parameter, tensor)
            trials.append(trial)
            with exchanged(tensor, disturbed):
                for batch, reference in zip(batches, references, strict=True):
                    harm.add(name, reference, model(input_ids=batch))
        job.sensitivities = sensitivities(trials, harm)
    job.report("", work, work)
    return [part_of(results)]


def _in_blocks(job: _Job, partial: Partial) -> tuple[list[Part], int]:
    """The statistics of each block, and how many of them an earlier run had left in `partial`."""
    with Weights(job.model.checkpoint) as weights:
        blocks = Blocks(job.model, weights, job.options.device, head=bool(job.share) and not job.model.encoder)
        parts = partial.resume(len(blocks), bool(job.share))
        resumed = len(parts)
        work = _Work(job, blocks, resumed)
        job.report("text", work.done, work.total)
        blocks.load(None)
        blocks.load(0)
        states = blocks.first(job.batches, not resumed)
        if resumed:
            for _ in states:
                pass
        else:
            keep_states(partial.hidden(0), len(job.ids), states)
        outside = _outside_trials(job, blocks, partial, not resumed) if job.share else []
        blocks.unload(None)
        if resumed:
            blocks.unload(0)
        linears = [job.sums(blocks.model, blocks.names, f"{blocks.prefix}{i}.") for i in range(len(blocks))]
        begun = [*outside, *(trial for part in parts for trial in part.trials)]
        for index in range(resumed, len(blocks)):
            if index:
                blocks.load(index)
            states = _run_block(job, blocks, index, linears[index], partial, work)
            keep_states(partial.hidden(index + 1), len(job.ids), states)
            results = linears[index].results()
            trials: list[Trial] = []
            if job.share:
                disturber = Disturber(results, job.run)
                tried = _try_block(job, blocks, index, disturber, partial, begun, trials, work)
                count = len(begun) + len(blocks.matrices(index))
                keep_states(partial.trials(index + 1), count * len(job.rows), tried)
            parts.append(partial.finish(index, part_of(results, trials)))
            begun += trials
            blocks.unload(index)
        parts.append(_finish(job, blocks, partial, begun, len(outside), work))
        job.report("", work.total, work.total)
        return parts, resumed


class _Work:
    """Bytes of weights that are done, once for each time that they see all of the text; and in all."""

    def __init__(self, job: _Job, blocks: Blocks, resumed: int) -> None:
        self._job = job
        self.done, self.total = 0, 0
        trials = len(blocks.matrices(None)) if job.share else 0
        for index in range(len(blocks)):
            trials += len(blocks.matrices(index)) if job.share else 0
            self.total += int(blocks.nbytes(index) * (1 + job.share * trials))
            self.done = self.total if index < resumed else self.done
        self.total += int(blocks.nbytes(None) * (1 + job.share * trials))

    def report(self, what: str, nbytes: int, part: float) -> None:
        """part: of a pass of all the text through weights of so many bytes, which is done."""
        self._job.report(what, self.done + int(nbytes * part), self.total)

    def add(self, nbytes: int, passes: float) -> None:
        self.done = min(self.total, self.done + int(nbytes * passes))


def _outside_trials(job: _Job, blocks: Blocks, partial: Partial, write: bool) -> list[Trial]:
    """Trials of matrices that are in no block, such as embeddings, up to the first block. Their errors are not yet known."""
    tried = blocks.matrices(None)
    batches = [job.ids[rows] for rows in job.row_batches]
    for _ in blocks.first(batches, False):
        pass
    disturber = Disturber([], job.run)

    def states() -> Iterator[NDArray[np.float32]]:
        for name, _, tensor in tried:
            with exchanged(tensor, disturber.disturb(name, weights_of(tensor))):
                yield from blocks.first(batches)

    if write:
        keep_states(partial.trials(0), len(tried) * len(job.rows), states())
    return [Trial(name, parameter, 0.0) for name, parameter, _ in tried]


def _run_block(
    job: _Job, blocks: Blocks, index: int, sums: InputSums, partial: Partial, work: _Work
) -> Iterator[NDArray[np.float32]]:
    """The hidden states after a block."""
    nbytes, before, first = blocks.nbytes(index), KeptStates(partial.hidden(index)), 0
    with sums.listening():
        for batch in job.batches:
            work.report(f"block {index}", nbytes, first / len(job.ids))
            result = blocks.run(index, before.rows(first, len(batch)))
            first += len(batch)
            sums.end_pass()
            yield result
    work.add(nbytes, 1)


def _try_block(
    job: _Job,
    blocks: Blocks,
    index: int,
    disturber: Disturber,
    partial: Partial,
    begun: Sequence[Trial],
    trials: list[Trial],
    work: _Work,
) -> Iterator[NDArray[np.float32]]:
    """The hidden states after a block in the trials that have begun, and in those of its own, which go to `trials`."""
    nbytes, hidden, before = blocks.nbytes(index), KeptStates(partial.hidden(index)), KeptStates(partial.trials(index))
    first = 0
    for trial in begun:
        work.report(f"errors in {trial.name}, block {index}", nbytes, job.share * first / len(job.rows))
        for rows in job.row_batches:
            yield blocks.run(index, before.rows(first, len(rows)))
            first += len(rows)
    work.add(nbytes, job.share * len(begun))
    for name, parameter, tensor in blocks.matrices(index):
        work.report(f"errors in {name}", nbytes, 0)
        trial, disturbed = disturber.trial(name, parameter, tensor)
        with exchanged(tensor, disturbed):
            for rows in job.row_batches:
                yield blocks.run(index, hidden.picked(rows))
        trials.append(trial)
        work.add(nbytes, job.share)


def _finish(job: _Job, blocks: Blocks, partial: Partial, begun: Sequence[Trial], outside: int, work: _Work) -> Part:
    """Statistics of what is in no block, and the harm of all trials. The first `outside` of them are of what is in no block."""
    blocks.load(None)
    nbytes, hidden, first = blocks.nbytes(None), KeptStates(partial.hidden(len(blocks))), 0
    sums = job.sums(blocks.model, blocks.names, outside=blocks.prefix)
    with sums.listening():
        for batch in job.batches:
            work.report("what is in no block", nbytes, first / len(job.ids))
            blocks.finish(batch, hidden.rows(first, len(batch)))
            first += len(batch)
            sums.end_pass()
    work.add(nbytes, 1)
    results = sums.results()
    if not job.share:
        return part_of(results)
    blocks.load_head()
    disturber, harm = Disturber(results, job.run), Harm(not job.model.encoder, len(job.rows))
    states = KeptStates(partial.trials(len(blocks)))
    trials, changed = list(begun[outside:]), {}
    for name, parameter, tensor in blocks.matrices(None):  # begun before it was known what some of them are given
        weights = weights_of(tensor)
        changed[name] = tensor, disturber.disturb(name, weights, rough=True)
        trials.append(Trial(name, parameter, disturber.squared_error(name, weights, changed[name][1])))
    head = [] if job.model.encoder else blocks.head_matrices()
    for name, parameter, tensor in head:
        trial, disturbed = disturber.trial(name, parameter, tensor)
        changed[name] = tensor, disturbed
        trials.append(trial)
    first = 0
    for rows in job.row_batches:
        ids = job.ids[rows]
        reference = harm.reference(blocks.finish(ids, hidden.picked(rows)))
        for count, trial in enumerate(begun):
            work.report(f"errors in {trial.name}, end", nbytes, job.share * first * len(begun) / len(job.rows))
            after = states.rows(count * len(job.rows) + first, len(rows))
            with exchanged(*changed[trial.name]) if trial.name in changed else nullcontext():
                harm.add(trial.name, reference, blocks.finish(ids, after))
        for name, _, _ in head:
            with exchanged(*changed[name]):
                harm.add(name, reference, blocks.finish(ids, hidden.picked(rows)))
        first += len(rows)
    job.sensitivities = sensitivities(trials, harm)
    return part_of(results)


def _versions(options: CalibrateOptions) -> dict[str, str]:
    """What else must be the same for a run to go on with the work of another."""
    torch, transformers = import_hf()
    chosen = replace(options, windows=WindowOptions(), overwrite=False)
    return {"torch": torch.__version__, "transformers": transformers.__version__, "options": repr(chosen)}
