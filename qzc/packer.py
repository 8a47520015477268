"""`qzc.pack`: quantize -> entropy-code -> write -> read again, a batch of tensors at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import xxhash

from .codec.chunks import CHUNK_CODES
from .codec.errors import InvalidArgumentError, QzcError, VerificationError
from .codec.planes import EncodedTensor, encode_tensor
from .codec.run_map import RunMap
from .codec.tensor import QuantizedTensor
from .formats.atomic import atomic_folder, atomic_writer
from .formats.checkpoint import Checkpoint, is_qzc, open_checkpoint
from .formats.dtypes import file_bytes
from .formats.reader import Reader
from .formats.safetensors import SafetensorsFile, pieces_of
from .formats.writer import Layout, Writer
from .places import check_output, copy_side_files, packed_index_name, packed_name, packed_output
from .planner import FilePlan, PlannedTensor, plan_file, with_estimates
from .quantize.rtn import quantize
from .quantize.select import Selection
from .threads import thread_map

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes of input done so far, and their total."""

LARGE = 1 << 22  # parameters: larger tensors are spread over the threads, smaller ones go one to a thread
BATCH_NBYTES = 1 << 26


@dataclass(frozen=True)
class PackOptions:
    """What to quantize and how to code it.

    selection: grids by tensor name. coder: "ans", "huffman" or "raw". chunk_codes: target codes per chunk. nonfinite:
    "error" refuses tensors with NaN or Inf, "keep" stores them as they are. verify: read the file again and compare before
    it takes its place. threads: 0 for all CPUs. overwrite: replace an existing output.
    """

    selection: Selection = field(default_factory=Selection)
    coder: Literal["ans", "huffman", "raw"] = "ans"
    chunk_codes: int = CHUNK_CODES
    nonfinite: Literal["error", "keep"] = "error"
    verify: bool = True
    threads: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.coder not in ("ans", "huffman", "raw"):
            raise InvalidArgumentError(f"unknown coder {self.coder!r}; choose ans, huffman or raw")
        if self.nonfinite not in ("error", "keep"):
            raise InvalidArgumentError(f"unknown choice {self.nonfinite!r} for nonfinite; choose error or keep")
        if not 1 << 10 <= self.chunk_codes <= 1 << 23:
            raise InvalidArgumentError(f"chunk_codes is {self.chunk_codes}; it may be 1024 to {1 << 23}")


@dataclass(frozen=True)
class PackedFile:
    """One file of the output. layout: its bytes by part; they add up to `layout.nbytes`."""

    output: Path
    plan: FilePlan
    layout: Layout
    source_nbytes: int


@dataclass(frozen=True)
class PackReport:
    """What `pack` did. All sizes in bytes; `nbytes` and `source_nbytes` are whole files.

    unused_rules: what of the selection had no effect. skipped: files of the input folder that were not copied, because
    they hold the weights in other formats or variants.
    """

    output: Path
    files: tuple[PackedFile, ...]
    seconds: float
    verified: bool
    unused_rules: tuple[str, ...] = ()
    skipped: tuple[Path, ...] = ()

    @property
    def source_nbytes(self) -> int:
        return sum(file.source_nbytes for file in self.files)

    @property
    def nbytes(self) -> int:
        return sum(file.layout.nbytes for file in self.files)

    @property
    def coded(self) -> list[PlannedTensor]:
        """The tensors that were quantized and coded."""
        return [tensor for file in self.files for tensor in file.plan.coded]

    @property
    def bits_per_weight(self) -> float:
        """Bits of all that the coded tensors take (codes, scales, zero points, index, tables) per weight; 0 if none."""
        weights = sum(t.parameters for t in self.coded)
        parts = sum(sum(p.values()) for f in self.files for p in f.layout.coded.values())
        tables = sum(f.layout.tables for f in self.files)
        return 8 * (parts + tables) / weights if weights else 0.0


def pack(
    source: str | Path,
    output: str | Path | None = None,
    options: PackOptions | None = None,
    progress: Progress | None = None,
) -> PackReport:
    """Pack a safetensors file, or a folder with shards and side files, into a `.qzc` file or a folder of them.

    output: by default `model.safetensors` -> `model.qzc`, `folder` -> `folder-qzc`. It appears whole or not at all.
    The same input and options give the same bytes, whatever the number of threads.

    Raises InvalidArgumentError (NaN or Inf, reserved names ...), FileAccessError, CorruptionError, UnsupportedError, and
    VerificationError if what was written does not decode to what was coded.
    """
    options = options or PackOptions()
    began = time.perf_counter()
    checkpoint = _open_source(source)
    target = Path(output) if output is not None else packed_output(checkpoint)
    check_output(checkpoint, target)
    with thread_map(options.threads) as run:
        files = _Packing(checkpoint, options, progress, run).write(target)
    unused = options.selection.unused(t.name for file in files for t in file.plan.tensors)
    seconds = time.perf_counter() - began
    return PackReport(target, files, seconds, options.verify, tuple(unused), checkpoint.skipped)


def plan(source: str | Path, options: PackOptions | None = None) -> list[FilePlan]:
    """What `pack` would do, with the sizes that it would give, estimated from a sample of every tensor. Writes nothing.

    Raises as `pack`; NaN and Inf are found only where the sample has them.
    """
    options = options or PackOptions()
    plans: list[FilePlan] = []
    for path in _open_source(source).files:
        with SafetensorsFile(path) as file:
            bare = _plan_file(file, path, options)
            plans.append(with_estimates(bare, file, options.coder, options.chunk_codes))
    return plans


def _open_source(source: str | Path) -> Checkpoint:
    checkpoint = open_checkpoint(source, "safetensors")
    for path in checkpoint.files:
        if is_qzc(path):
            raise InvalidArgumentError(f"{path}: this is a .qzc file already; unpack it first")
    return checkpoint


def _plan_file(file: SafetensorsFile, path: Path, options: PackOptions) -> FilePlan:
    return plan_file(file, path, options.selection, keep_nonfinite=options.nonfinite == "keep")


class _Packing:
    """One run of `pack`: the options, and how far it got."""

    def __init__(self, checkpoint: Checkpoint, options: PackOptions, progress: Progress | None, run: RunMap) -> None:
        self._checkpoint, self._options, self._run = checkpoint, options, run
        self._progress = progress or (lambda doing, done, total: None)
        self._done, self._total = 0, sum(path.stat().st_size for path in checkpoint.files)

    def write(self, target: Path) -> tuple[PackedFile, ...]:
        checkpoint = self._checkpoint
        if not checkpoint.is_folder:
            with atomic_writer(target, self._options.overwrite) as stream:
                return (self._write_file(checkpoint.files[0], target, stream),)
        with atomic_folder(target, self._options.overwrite) as folder:
            files = []
            for path in checkpoint.files:
                with atomic_writer(folder / packed_name(path.name)) as stream:
                    files.append(self._write_file(path, target / packed_name(path.name), stream))
            copy_side_files(checkpoint, folder)
            self._write_index(folder, files)
        return tuple(files)

    def _write_index(self, folder: Path, files: list[PackedFile]) -> None:
        index, index_file = self._checkpoint.index, self._checkpoint.index_file
        if index is None or index_file is None:
            return
        weight_map = {name: packed_name(shard) for name, shard in index["weight_map"].items()}
        metadata = index.get("metadata")
        nbytes = sum(file.layout.nbytes - file.layout.header for file in files)
        total = {**(metadata if isinstance(metadata, dict) else {}), "total_size": nbytes}
        text = json.dumps({**index, "metadata": total, "weight_map": weight_map}, indent=2)
        with atomic_writer(folder / packed_index_name(index_file.name)) as stream:
            stream.write(text.encode() + b"\n")

    def _write_file(self, path: Path, output: Path, stream: BinaryIO) -> PackedFile:
        with SafetensorsFile(path) as file:
            plan = _plan_file(file, path, self._options)
            tensors = {t.name: t for t in plan.tensors}
            uncoded = plan.uncoded()
            writer = Writer(stream, plan.profile(), uncoded, chunk_codes=self._options.chunk_codes)
            for name in writer.names[: len(uncoded)]:
                writer.write_uncoded(name, pieces_of(file.raw(name)))
                self._advance(file, tensors[name])
            fingerprints: dict[str, int] = {}
            coded = [tensors[name] for name in writer.names[len(uncoded) :]]
            for tensor, quantized, encoded in self._encode(file, coded):
                writer.write_coded(tensor.name, encoded, quantized)
                fingerprints[tensor.name] = _fingerprint(quantized)
                self._advance(file, tensor)
                del quantized, encoded  # before the next one is made
            layout = writer.finish()
            stream.flush()
            if self._options.verify:
                self._read_again(stream, fingerprints, output)
            return PackedFile(output, plan, layout, file.nbytes)

    def _encode(
        self, file: SafetensorsFile, tensors: list[PlannedTensor]
    ) -> Iterator[tuple[PlannedTensor, QuantizedTensor, EncodedTensor]]:
        for batch in _batches(tensors):
            spread = len(batch) == 1 and batch[0].parameters >= LARGE

            def encode(tensor: PlannedTensor, spread: bool = spread) -> tuple[QuantizedTensor, EncodedTensor]:
                return self._encode_one(file, tensor, self._run if spread else map)

            results = iter(map(encode, batch) if spread else self._run(encode, batch))
            for tensor in batch:
                yield tensor, *next(results)  # kept in no variable: the next tensor needs the memory

    def _encode_one(
        self, file: SafetensorsFile, tensor: PlannedTensor, run: RunMap
    ) -> tuple[QuantizedTensor, EncodedTensor]:
        assert tensor.args is not None
        array = file.array(tensor.name)
        quantized = quantize(array, tensor.args, dtype=tensor.dtype, name=f"tensor {tensor.name!r}", run=run)
        # Not verified here: the whole file is read again at the end, which proves more.
        encoded = encode_tensor(quantized, self._options.coder, self._options.chunk_codes, run=run, verify=False)
        return quantized, encoded

    def _read_again(self, stream: BinaryIO, fingerprints: dict[str, int], output: Path) -> None:
        try:
            with Reader(stream) as reader:
                reader.check_tables()
                for name in reader.keys():
                    self._progress(f"verifying {name}", self._done, self._total)
                    reader.check(name)
                    if (
                        name in fingerprints
                        and _fingerprint(reader.quantized(name, run=self._run)) != fingerprints[name]
                    ):
                        raise VerificationError(f"tensor {name!r} decodes to something else")
                    reader.release(name)
        except QzcError as error:
            raise VerificationError(
                f"{output}: what was written does not read back ({error}); nothing was kept"
            ) from error

    def _advance(self, file: SafetensorsFile, tensor: PlannedTensor) -> None:
        file.release(tensor.name)
        self._done += tensor.nbytes
        self._progress(tensor.name, self._done, self._total)


def _batches(tensors: list[PlannedTensor]) -> Iterator[list[PlannedTensor]]:
    """Runs of small tensors of at most BATCH_NBYTES together; large ones alone."""
    batch: list[PlannedTensor] = []
    for tensor in tensors:
        full = sum(t.nbytes for t in batch) + tensor.nbytes > BATCH_NBYTES
        if batch and (full or tensor.parameters >= LARGE):
            yield batch
            batch = []
        batch.append(tensor)
        if tensor.parameters >= LARGE:
            yield batch
            batch = []
    if batch:
        yield batch


def _fingerprint(tensor: QuantizedTensor) -> int:
    hasher = xxhash.xxh3_64(tensor.packed)
    hasher.update(file_bytes(tensor.scale))
    if tensor.zero_point is not None:
        hasher.update(tensor.zero_point)
    return hasher.intdigest()
