"""`qzc calibrate`: run a transformers model on text, and store statistics of the inputs of its linear layers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..calibration import FORMAT, VERSION, fingerprint
from ..codec.errors import CorruptionError, FileAccessError, UnsupportedError
from ..formats.access import naming_os_errors
from ..formats.atomic import atomic_writer
from ..formats.dtypes import file_bytes
from ..formats.safetensors import SafetensorsFile, place, write_safetensors
from ..progress import Progress
from ..version import VERSION as QZC_VERSION
from .blocks import Blocks, NotInBlocks
from .inputs import InputStatistics, InputSums, Stop
from .model import HfModel, Weights, checkpoint_names, import_hf, load_model, open_hf, running
from .text import WindowOptions, Windows, read_windows

PASS_TOKENS = 2048  # in one forward pass, or one window if that is more


@dataclass(frozen=True)
class CalibrateOptions:
    """windows: how the text is cut. grams: X'X of every input; else only its diagonal. in_blocks: load and run one block
    after another, so that memory for one is enough, and an interrupted run can go on; the whole model at once where its
    architecture does not allow that. threads: of torch, 0 for all CPUs. overwrite: replace an existing output.
    """

    windows: WindowOptions = field(default_factory=WindowOptions)
    grams: bool = True
    in_blocks: bool = True
    device: str = "cpu"
    threads: int = 0
    overwrite: bool = False


@dataclass(frozen=True)
class CalibrateReport:
    """What `calibrate` did. inputs: with statistics of their own; tensors: that read them. uncovered: names of layers whose
    weights are under no name in the checkpoint, or whose inputs are not the columns of a matrix. whole: why the model was run at once, None if it was not.
    resumed: blocks that an earlier run had finished. columns: of the widest input. nbytes: of the output.
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
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class _Part:
    """Statistics by input, in memory or in a file of a finished block."""

    inputs: dict[str, tuple[tuple[str, ...], int]]  # tensors and tokens by input
    arrays: dict[str, NDArray[np.float32]]


def calibrate(
    model: str | Path,
    texts: Sequence[str | Path],
    output: str | Path,
    options: CalibrateOptions | None = None,
    progress: Progress | None = None,
) -> CalibrateReport:
    """Run a model on text and write the statistics of the inputs of its linear layers to `output`; see `Calibration`.

    model: a folder that transformers can load: config, safetensors, tokenizer. texts: see `read_windows`.
    progress counts bytes of weights that have seen all of the text. Everything is computed in float32.

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
    job = _Job(found, windows, options, progress)
    partial = output.with_name(output.name + ".partial")
    with running(options.device, options.threads):
        whole = None if options.in_blocks else "asked for"
        resumed = 0
        parts: list[_Part] = []
        if options.in_blocks:
            try:
                parts, resumed = _in_blocks(job, partial, metadata)
            except NotInBlocks as reason:
                shutil.rmtree(partial, ignore_errors=True)
                whole = str(reason)
        if whole is not None:
            parts = _whole(job)
    inputs = {key: entry for part in parts for key, entry in part.inputs.items()}
    if not inputs:
        raise UnsupportedError(f"{model}: none of its linear layers has its weights under a name in the checkpoint")
    nbytes = _write(output, parts, metadata, options.overwrite)
    shutil.rmtree(partial, ignore_errors=True)
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
        nbytes=nbytes,
        seconds=time.monotonic() - began,
    )


class _Job:
    """What both ways of running the model share."""

    def __init__(self, model: HfModel, windows: Windows, options: CalibrateOptions, progress: Progress | None) -> None:
        self.model, self.options, self.progress = model, options, progress
        size = max(1, PASS_TOKENS // windows.ids.shape[1])
        self.batches = [windows.ids[first : first + size] for first in range(0, len(windows.ids), size)]
        self.uncovered: list[str] = []

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


def _whole(job: _Job) -> list[_Part]:
    job.uncovered.clear()
    with Weights(job.model.checkpoint) as weights:
        shapes = weights.shapes()
        total = sum(map(weights.nbytes, shapes))
    model = load_model(job.model, job.options.device)
    torch, _ = import_hf()
    sums = job.sums(model, checkpoint_names(model, shapes))
    with sums.listening():
        for index, batch in enumerate(job.batches):
            job.report("whole model", total * index // len(job.batches), total)
            try:
                model(input_ids=torch.from_numpy(batch).to(job.options.device))
            except Stop:
                pass
            sums.end_pass()
    job.report("", total, total)
    return [_part(sums.results())]


def _in_blocks(job: _Job, partial: Path, metadata: dict[str, str]) -> tuple[list[_Part], int]:
    """The statistics of each block, and how many of them an earlier run had left in `partial`."""
    with Weights(job.model.checkpoint) as weights:
        blocks = Blocks(job.model, weights, job.batches, job.options.device)
        sizes = [blocks.nbytes(index) for index in (*range(len(blocks)), None)]
        parts = _resume(partial, {**metadata, **_versions(job)}, len(blocks))
        resumed, total, done = len(parts), sum(sizes), sum(sizes[: len(parts)])
        job.report("text", done, total)
        blocks.load(None)
        blocks.load(0)
        _keep(partial / _hidden(0), job, blocks.first(resumed == 0), resumed == 0)
        blocks.unload(None)
        if resumed:
            blocks.unload(0)
        linears = [job.sums(blocks.model, blocks.names, f"{blocks.prefix}{i}.") for i in range(len(blocks))]
        for index in range(resumed, len(blocks)):
            if index:
                blocks.load(index)
            sums = linears[index]
            states = _run_block(job, blocks, index, sums, _kept(partial / _hidden(index), job), done, total)
            _keep(partial / _hidden(index + 1), job, states)
            parts.append(_part(sums.results()))
            _write(partial / f"block-{index:05}.safetensors", parts[-1:], {}, True)
            (partial / _hidden(index)).unlink()
            blocks.unload(index)
            parts[-1] = _read_part(partial / f"block-{index:05}.safetensors")
            done += sizes[index]
        blocks.load(None)
        sums = job.sums(blocks.model, blocks.names, outside=blocks.prefix)
        with sums.listening():
            for index, state in enumerate(_kept(partial / _hidden(len(blocks)), job)):
                job.report("what is in no block", done + sizes[-1] * index // len(job.batches), total)
                blocks.finish(index, state)
                sums.end_pass()
        job.report("", total, total)
        return [*parts, _part(sums.results())], resumed


def _run_block(
    job: _Job, blocks: Blocks, index: int, sums: InputSums, states: Iterator[NDArray[np.float32]], done: int, total: int
) -> Iterator[NDArray[np.float32]]:
    with sums.listening():
        for count, state in enumerate(states):
            job.report(f"block {index}", done + blocks.nbytes(index) * count // len(job.batches), total)
            result = blocks.run(index, state)
            sums.end_pass()
            yield result


def _versions(job: _Job) -> dict[str, str]:
    """What else must be the same for a run to go on with the work of another."""
    torch, transformers = import_hf()
    options = replace(job.options, windows=WindowOptions(), overwrite=False)
    return {"torch": torch.__version__, "transformers": transformers.__version__, "options": repr(options)}


def _hidden(index: int) -> str:
    return f"hidden-{index:05}.npy"


def _resume(partial: Path, job: dict[str, str], blocks: int) -> list[_Part]:
    """The finished blocks of an earlier run of the same job; otherwise the folder is begun anew."""
    text = json.dumps(job, sort_keys=True, indent=1)
    with naming_os_errors(partial, "write"):
        note = partial / "job.json"
        if note.is_file() and note.read_text("utf-8") == text:
            parts: list[_Part] = []
            while len(parts) < blocks and (partial / f"block-{len(parts):05}.safetensors").is_file():
                parts.append(_read_part(partial / f"block-{len(parts):05}.safetensors"))
            if (partial / _hidden(len(parts))).is_file():
                return parts
        if partial.exists() and not note.is_file() and any(partial.iterdir()):
            raise FileAccessError(f"{partial} is in the way: unfinished work would be kept there; move it")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    with atomic_writer(note) as stream:
        stream.write(text.encode())
    return []


def _keep(path: Path, job: _Job, states: Iterator[NDArray[np.float32]], write: bool = True) -> None:
    """Write hidden states, batch after batch, as float32 [windows, length, width] in .npy; or only see them pass."""
    if not write:
        for _ in states:
            pass
        return
    with atomic_writer(path, True) as stream:
        windows = sum(map(len, job.batches))
        for count, state in enumerate(states):
            if not count:
                shape = (windows, *state.shape[1:])
                npy.write_array_header_2_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
            stream.write(file_bytes(state.astype(np.float32, copy=False)))


def _kept(path: Path, job: _Job) -> Iterator[NDArray[np.float32]]:
    """The hidden states that `_keep` wrote, batch after batch."""
    with naming_os_errors(path, "read"), path.open("rb") as file:
        npy.read_magic(file)
        shape = npy.read_array_header_2_0(file)[0]
        for batch in job.batches:
            count = len(batch) * shape[1] * shape[2]
            yield np.fromfile(file, np.dtype("<f4"), count).reshape(len(batch), *shape[1:])


def _part(results: list[InputStatistics]) -> _Part:
    """An input has the name of the first tensor that reads it."""
    inputs, arrays = {}, {}
    for result in results:
        key = result.tensors[0].removesuffix(".weight") + ".input"
        inputs[key] = (result.tensors, result.tokens)
        arrays[f"{key}.mean"], arrays[f"{key}.power"] = result.mean, result.power
        if result.triangle is not None:
            arrays[f"{key}.gram"] = result.triangle
    return _Part(inputs, arrays)


def _write(path: Path, parts: list[_Part], metadata: dict[str, str], overwrite: bool) -> int:
    arrays = {name: array for part in parts for name, array in part.arrays.items()}
    entries = {
        tensor: (key, tokens) for part in parts for key, (tensors, tokens) in part.inputs.items() for tensor in tensors
    }
    text = json.dumps(dict(sorted(entries.items())), ensure_ascii=False, separators=(",", ":"))
    members = place((name, "F32", arrays[name].shape, arrays[name].nbytes) for name in sorted(arrays))
    pieces = (file_bytes(arrays[member.name]) for member in members)
    return write_safetensors(path, members, pieces, {**metadata, "tensors": text}, overwrite=overwrite)


def _read_part(path: Path) -> _Part:
    with ExitStack() as stack:
        file = stack.enter_context(SafetensorsFile(path))  # the arrays stay views of the file
        try:
            entries: dict[str, tuple[str, int]] = json.loads(file.metadata["tensors"])
        except (KeyError, ValueError):
            raise CorruptionError(f"{path}: damaged; remove the folder {path.parent} and begin anew") from None
        inputs: dict[str, tuple[tuple[str, ...], int]] = {}
        for tensor, (key, tokens) in entries.items():
            inputs[key] = ((*inputs.get(key, ((), 0))[0], tensor), tokens)
        return _Part(inputs, {name: file.array(name) for name in file.keys()})
