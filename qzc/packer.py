"""`qzc.pack`: quantize -> entropy-code -> write -> read again, a batch of tensors at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from .base import BaseTensors
from .calibration import Calibration
from .codec.chunks import CHUNK_CODES, EncodedChunk
from .codec.errors import InvalidArgumentError, QzcError, VerificationError
from .codec.planes import EncodedTensor, encode_tensor
from .codec.rate_chunks import encode_rate
from .codec.rate_tensor import LevelTensor
from .codec.run_map import RunMap
from .codec.tensor import QuantizedTensor, matrix_shape
from .formats.atomic import atomic_folder, atomic_writer
from .formats.checkpoint import Checkpoint, is_qzc, open_checkpoint
from .formats.dtypes import file_bytes, is_float
from .formats.layouts.layout import Found
from .formats.profile import SourceFile
from .formats.rate_entry import RateSide, rate_side
from .formats.reader import Reader
from .formats.safetensors import pieces_of
from .formats.writer import Layout, Writer
from .lossless import encode_lossless
from .places import SOURCE_INDEX, check_output, copy_side_files, packed_index_name, packed_name, packed_output
from .planner import FilePlan, PlannedTensor, plan_file, with_estimates
from .progress import Progress
from .quantize.gptq import gptq
from .quantize.rtn import quantize
from .quantize.select import Selection
from .rating import RatedTensors, RateOptions, Rating, factor_of, open_statistics
from .sources import SourceTensors, find_layout, open_source
from .threads import thread_map

LARGE = 1 << 22  # parameters: larger tensors are spread over the threads, smaller ones go one to a thread
BATCH_NBYTES = 1 << 26
CHECKSUM_NBYTES = 8
ENTRY_NBYTES = 250  # of a tensor at a rate in the header, about
RATE_TOLERANCE = 0.003
"""How near to the rate a file has to be not to be written again; the search itself aims a little better."""
RATE_LIMIT = 0.005
RATE_TRIES = 3


@dataclass(frozen=True)
class PackOptions:
    """What to quantize and how to code it.

    selection: grids by tensor name; None for the default grid, and for none if the input is quantized already. lossless:
    quantize nothing; the output then gives the input back byte by byte. base: code lossless tensors as what they differ
    from those of this checkpoint, where that is smaller. rate: quantize at a rate, in place of the grids of the selection.
    method: how codes on a grid are found; `gptq` needs stats, the statistics of `qzc calibrate`. coder: "ans", "huffman" or "raw". chunk_codes: target codes per chunk. nonfinite:
    "error" refuses tensors with NaN or Inf, "keep" stores them as they are. verify: read the file again and compare before
    it takes its place. threads: 0 for all CPUs. overwrite: replace an existing output.
    """

    selection: Selection | None = None
    lossless: bool = False
    base: Path | None = None
    rate: RateOptions | None = None
    method: Literal["rtn", "gptq"] = "rtn"
    stats: Path | None = None
    coder: Literal["ans", "huffman", "raw"] = "ans"
    chunk_codes: int = CHUNK_CODES
    nonfinite: Literal["error", "keep"] = "error"
    verify: bool = True
    threads: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.lossless and self.selection is not None:
            raise InvalidArgumentError("lossless means that nothing is quantized: give either it or a selection")
        if self.rate is not None and (self.lossless or self.method != "rtn" or self.coder != "ans"):
            raise InvalidArgumentError("a rate goes with entropy coding, on grids without a number of bits")
        if self.method not in ("rtn", "gptq"):
            raise InvalidArgumentError(f"unknown method {self.method!r} for grids; choose rtn or gptq")
        if self.method == "gptq" and self.stats is None:
            raise InvalidArgumentError("gptq needs the statistics that `qzc calibrate` gathers")
        if self.stats is not None and self.method == "rtn" and self.rate is None:
            raise InvalidArgumentError("statistics have no use for rounding to nearest: choose gptq, or a rate")
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

    found: in which layout the input is quantized already, None if it is not. unused_rules: what of the selection had no
    effect. skipped: files of the input folder that were not copied, because
    they hold the weights in other formats or variants. rate_method: how tensors were quantized at a rate, None if none was;
    without_statistics: those of them for which there were none.
    """

    output: Path
    files: tuple[PackedFile, ...]
    seconds: float
    verified: bool
    unused_rules: tuple[str, ...] = ()
    skipped: tuple[Path, ...] = ()
    found: str | None = None
    rate_method: str | None = None
    without_statistics: tuple[str, ...] = ()

    @property
    def rated(self) -> list[PlannedTensor]:
        """The tensors that were quantized at a rate."""
        return [t for t in self.quantized if t.is_rated]

    @property
    def rate_bits(self) -> dict[str, float]:
        """Bits per weight of the tensors that were quantized at a rate, by part; all parts together are their rate.

        codes: payloads; vectors: steps and classes of rows and columns; tables: the bank; index: rows of the chunk index;
        header: what the header says of them, and checksums.
        """
        return rate_bits(self.files)

    @property
    def source_nbytes(self) -> int:
        return sum(file.source_nbytes for file in self.files)

    @property
    def nbytes(self) -> int:
        return sum(file.layout.nbytes for file in self.files)

    @property
    def quantized(self) -> list[PlannedTensor]:
        """The tensors that were quantized and coded."""
        return [tensor for file in self.files for tensor in file.plan.quantized]

    @property
    def lossless(self) -> list[PlannedTensor]:
        """The tensors that were coded bit by bit."""
        return [tensor for file in self.files for tensor in file.plan.lossless]

    @property
    def bits_per_weight(self) -> float:
        """Bits of all that the quantized tensors take (codes, scales, zero points, index, tables) per weight; 0 if none.

        Tables count in full, though lossless tensors may share them; at a rate the header counts, too.
        """
        if self.rated:
            return sum(self.rate_bits.values())
        weights = sum(t.parameters for t in self.quantized)
        parts = sum(sum(f.layout.coded[t.name].values()) for f in self.files for t in f.plan.quantized)
        tables = sum(f.layout.tables for f in self.files)
        return 8 * (parts + tables) / weights if weights else 0.0


def rate_bits(files: Sequence[PackedFile]) -> dict[str, float]:
    """As `PackReport.rate_bits`."""
    parts = dict.fromkeys(("codes", "vectors", "tables", "index", "header"), 0)
    weights = 0
    for file in files:
        names = [tensor.name for tensor in file.plan.tensors if tensor.is_rated]
        weights += sum(tensor.parameters for tensor in file.plan.tensors if tensor.is_rated)
        parts["codes"] += sum(file.layout.coded[name]["payload"] for name in names)
        parts["index"] += sum(file.layout.coded[name]["index"] for name in names)
        parts["header"] += sum(file.layout.entries[name] + CHECKSUM_NBYTES for name in names)
        parts["vectors"] += file.layout.vectors
        parts["tables"] += file.layout.classes
    return {what: 8 * nbytes / max(1, weights) for what, nbytes in parts.items()}


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
    found, selection = _choose(checkpoint, options)
    with thread_map(options.threads) as run, ExitStack() as stack:
        base = stack.enter_context(BaseTensors(options.base)) if options.base is not None else None
        statistics = None
        if options.stats is not None:
            statistics = stack.enter_context(open_statistics(options.stats, checkpoint))
        packing = _Packing(checkpoint, options, selection, found, base, statistics, progress, run)
        files = packing.write(target)
    names = (t.name for file in files for t in file.plan.tensors)
    unused = tuple(selection.unused(names)) if selection else ()
    seconds = time.perf_counter() - began
    description = found.description if found else None
    rating = packing.rating
    return PackReport(
        target,
        files,
        seconds,
        options.verify,
        unused,
        checkpoint.skipped,
        description,
        rating.method if rating else None,
        rating.without_statistics if rating else (),
    )


def plan(source: str | Path, options: PackOptions | None = None) -> list[FilePlan]:
    """What `pack` would do, with the sizes that it would give, estimated from a sample of every tensor. Writes nothing.

    Raises as `pack`; NaN and Inf are found only where the sample has them.
    """
    options = options or PackOptions()
    plans: list[FilePlan] = []
    checkpoint = _open_source(source)
    found, selection = _choose(checkpoint, options)
    for path in checkpoint.files:
        with open_source(path) as file:
            bare = _plan_file(file, path, options, selection, found)
            plans.append(bare)
    bits = _first_target(plans, options.rate) if options.rate else 0.0
    for i, bare in enumerate(plans):
        with open_source(bare.source) as file:
            plans[i] = with_estimates(bare, file, options.coder, options.chunk_codes, bits)
    return plans


def _first_target(plans: Sequence[FilePlan], rate: RateOptions) -> float:
    """Bits for each weight that is quantized, if all else takes what the plans estimate."""
    tensors = [tensor for plan in plans for tensor in plan.tensors if not tensor.tied_to]
    weights = sum(tensor.parameters for tensor in tensors if tensor.is_rated)
    if rate.count == "quantized" and rate.bits_per_weight is not None:
        return rate.bits_per_weight
    others = sum(t.lossless.nbytes if t.is_lossless and t.lossless else t.nbytes for t in tensors if not t.is_rated)
    return (_budget(plans, rate) - 8 * others) / max(1, weights)


def _budget(plans: Sequence[FilePlan], rate: RateOptions) -> float:
    """Bits that what is counted may take: the whole output, or the tensors that are quantized."""
    if rate.nbytes is not None:
        return 8.0 * rate.nbytes
    assert rate.bits_per_weight is not None
    tensors = [tensor for plan in plans for tensor in plan.tensors if not tensor.tied_to]
    counted = [t for t in tensors if t.is_rated or (rate.count == "all" and is_float(t.dtype))]
    return rate.bits_per_weight * sum(tensor.parameters for tensor in counted)


def _choose(checkpoint: Checkpoint, options: PackOptions) -> tuple[Found | None, Selection | None]:
    """Whether the input is quantized already, and what is to be quantized: nothing, if it is and nobody asked for it."""
    found = find_layout(checkpoint)
    if options.lossless or (found and options.selection is None and options.rate is None):
        return found, None
    return found, options.selection or Selection()


def _open_source(source: str | Path) -> Checkpoint:
    checkpoint = open_checkpoint(source, "safetensors")
    for path in checkpoint.files:
        if is_qzc(path):
            raise InvalidArgumentError(f"{path}: this is a .qzc file already; unpack it first")
    return checkpoint


def _plan_file(
    file: SourceTensors, path: Path, options: PackOptions, selection: Selection | None, found: Found | None
) -> FilePlan:
    return plan_file(
        file,
        path,
        selection,
        keep_nonfinite=options.nonfinite == "keep",
        code_kept=options.coder != "raw",
        hints=found.hints if found else None,
        rated=options.rate is not None,
    )


class _Packing:
    """One run of `pack`: the options, and how far it got."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: PackOptions,
        selection: Selection | None,
        found: Found | None,
        base: BaseTensors | None,
        statistics: Calibration | None,
        progress: Progress | None,
        run: RunMap,
    ) -> None:
        self._checkpoint, self._options, self._run = checkpoint, options, run
        self._selection, self._found, self._base = selection, found, base
        self._statistics = statistics
        self.rating: Rating | None = None
        self._rated: RatedTensors | None = None
        self._progress = progress or (lambda doing, done, total: None)
        self._done, self._total = 0, sum(path.stat().st_size for path in checkpoint.files)

    def write(self, target: Path) -> tuple[PackedFile, ...]:
        checkpoint, plans = self._checkpoint, []
        for path in checkpoint.files:
            with open_source(path) as file:
                plans.append(_plan_file(file, path, self._options, self._selection, self._found))
        if not checkpoint.is_folder:
            with atomic_writer(target, self._options.overwrite) as stream:
                return self._at_rate(plans, lambda: (self._write_file(plans[0], target, stream),))
        with atomic_folder(target, self._options.overwrite) as folder:

            def write_all() -> tuple[PackedFile, ...]:
                files = []
                for plan in plans:
                    name = packed_name(plan.source.name)
                    with atomic_writer(folder / name, overwrite=True) as stream:
                        files.append(self._write_file(plan, target / name, stream))
                return tuple(files)

            files = self._at_rate(plans, write_all)
            copy_side_files(checkpoint, folder)
            self._write_index(folder, files)
        return files

    def _at_rate(self, plans: list[FilePlan], write: Callable[[], tuple[PackedFile, ...]]) -> tuple[PackedFile, ...]:
        """Write the files; where a rate is asked for, again until they have it."""
        rate = self._options.rate
        if rate is None:
            return write()
        self._progress("reading the weights", 0, self._total)
        self.rating = Rating(plans, rate, self._statistics, self._run)
        budget, weights = _budget(plans, rate), self.rating.weights
        # What a search knows of is less than what the header has for each tensor.
        target = _first_target(plans, rate) - 8 * ENTRY_NBYTES * len(self.rating.designs) / weights
        tries = 0
        while True:
            self._progress("searching for the step", 0, self._total)
            self._rated, self._done = self.rating.solve(_possible(target)), 0
            files = write()
            spent = self._spent(rate, files)
            tries += 1
            if abs(spent - budget) <= RATE_TOLERANCE * budget or tries == RATE_TRIES:
                break
            target += (budget - spent) / weights
        if abs(spent - budget) > RATE_LIMIT * budget:
            raise InvalidArgumentError(
                f"cannot reach this rate: the nearest found is {spent / budget:.4f} of it; quantize more or fewer tensors"
            )
        return files

    def _spent(self, rate: RateOptions, files: Sequence[PackedFile]) -> float:
        """Bits that the output has for what the rate counts."""
        assert self.rating is not None
        if rate.count == "quantized" and rate.nbytes is None:
            return sum(rate_bits(files).values()) * self.rating.weights
        return 8.0 * sum(file.layout.nbytes for file in files)

    def _write_index(self, folder: Path, files: Sequence[PackedFile]) -> None:
        index, index_file = self._checkpoint.index, self._checkpoint.index_file
        if index is None or index_file is None:
            return
        weight_map = {name: packed_name(shard) for name, shard in index["weight_map"].items()}
        metadata = index.get("metadata")
        nbytes = sum(file.layout.nbytes - file.layout.header for file in files)
        total = {**(metadata if isinstance(metadata, dict) else {}), "total_size": nbytes}
        original = {} if self._selection else {SOURCE_INDEX: index_file.read_bytes().decode()}
        text = json.dumps({**index, **original, "metadata": total, "weight_map": weight_map}, indent=2)
        with atomic_writer(folder / packed_index_name(index_file.name)) as stream:
            stream.write(text.encode() + b"\n")

    def _write_file(self, plan: FilePlan, output: Path, stream: BinaryIO) -> PackedFile:
        stream.seek(0)
        stream.truncate()
        with open_source(plan.source) as file:
            if self._selection is None:
                plan = replace(plan, source_file=SourceFile(file.kind, file.nbytes, file.xxh3()))
            side = self._side_of(plan)
            tensors = {t.name: t for t in plan.tensors}
            uncoded = plan.uncoded()
            base = {"name": self._base.path.name} if self._base else None
            profile = plan.profile(base, side.entries if side else None)
            writer = Writer(stream, profile, uncoded, chunk_codes=self._options.chunk_codes, side=side)
            for name in writer.names[: len(uncoded)]:
                writer.write_uncoded(name, pieces_of(file.raw(name)))
                self._advance(file, tensors[name])
            fingerprints: dict[str, int] = {}
            for encoded in self._encode(file, [tensors[name] for name in writer.names[len(uncoded) :]]):
                name = encoded.tensor.name
                if isinstance(encoded.chunks, list):
                    writer.write_rate(name, encoded.chunks)
                elif encoded.quantized is not None:
                    writer.write_quantized(name, encoded.chunks, encoded.quantized)
                else:
                    writer.write_lossless(name, encoded.chunks, encoded.base)
                fingerprints[name] = encoded.fingerprint
                self._advance(file, encoded.tensor)
                del encoded  # before the next one is made
            rest = (file.rest(), {name: file.offset(name) for name in tensors}) if plan.source_file else None
            layout = writer.finish(rest[0], rest[1]) if rest else writer.finish()
            stream.flush()
            if self._options.verify:
                self._read_again(stream, fingerprints, rest, output)
            return PackedFile(output, plan, layout, file.nbytes)

    def _encode(self, file: SourceTensors, tensors: list[PlannedTensor]) -> Iterator[_Encoded]:
        for batch in _batches(tensors):
            spread = len(batch) == 1 and batch[0].parameters >= LARGE

            def encode(tensor: PlannedTensor, spread: bool = spread) -> _Encoded:
                return self._encode_one(file, tensor, self._run if spread else map)

            results = iter(map(encode, batch) if spread else self._run(encode, batch))
            for _ in batch:
                yield next(results)  # kept in no variable: the next tensor needs the memory

    def _encode_one(self, file: SourceTensors, tensor: PlannedTensor, run: RunMap) -> _Encoded:
        coder, chunk_codes = self._options.coder, self._options.chunk_codes
        # Not verified here: the whole file is read again at the end, which proves more.
        if tensor.is_rated:
            assert self._rated is not None
            rated = self._rated.tensors[tensor.name]
            levels = rated.decoded()
            chunks = encode_rate(rated, levels.levels.dtype == np.int16, self._rated.bank, chunk_codes, run=run)
            return _Encoded(tensor, chunks, None, None, _level_fingerprint(levels))
        if tensor.args is not None:
            quantized = self._on_grid(file.array(tensor.name), tensor, run)
            encoded = encode_tensor(quantized, coder, chunk_codes, run=run, verify=False)
            return _Encoded(tensor, encoded, quantized, None, _fingerprint(quantized))
        assert tensor.lossless is not None
        raw, base = file.raw(tensor.name), None
        if self._base is not None and self._base.nbytes(tensor.name) == raw.size:
            base = self._base.tensor(tensor.name)
        encoded, is_delta = encode_lossless(
            raw, tensor.lossless, coder, chunk_codes, base=base, dtype=tensor.dtype, run=run, verify=False
        )
        of_base = xxhash.xxh3_64_intdigest(base) if is_delta and base is not None else None
        return _Encoded(tensor, encoded, None, of_base, xxhash.xxh3_64_intdigest(raw))

    def _on_grid(self, array: NDArray[Any], tensor: PlannedTensor, run: RunMap) -> QuantizedTensor:
        assert tensor.args is not None
        name = f"tensor {tensor.name!r}"
        if self._options.method == "gptq" and self._statistics is not None:
            factor = factor_of(self._statistics, tensor.name, matrix_shape(tensor.shape)[1])
            if factor is not None:
                return gptq(array, tensor.args, tensor.dtype, factor, name=name, run=run)
        return quantize(array, tensor.args, dtype=tensor.dtype, name=name, run=run)

    def _side_of(self, plan: FilePlan) -> RateSide | None:
        """What the tensors of a file on unbounded grids share."""
        names = [tensor.name for tensor in plan.tensors if tensor.is_rated]
        if not names or self._rated is None:
            return None
        return rate_side({name: self._rated.tensors[name] for name in names}, self._rated.bank)

    def _read_again(
        self,
        stream: BinaryIO,
        fingerprints: dict[str, int],
        rest: tuple[bytes, dict[str, int]] | None,
        output: Path,
    ) -> None:
        try:
            with Reader(stream, self._base.tensor if self._base else None) as reader:
                reader.check_tables()
                if reader.profile.source_file and reader.source_file() != rest:
                    raise VerificationError("what the file has besides its tensors comes out as something else")
                for name in reader.keys():
                    self._progress(f"verifying {name}", self._done, self._total)
                    reader.check(name)
                    if name in fingerprints and self._read_fingerprint(reader, name) != fingerprints[name]:
                        raise VerificationError(f"tensor {name!r} decodes to something else")
                    reader.release(name)
        except QzcError as error:
            raise VerificationError(
                f"{output}: what was written does not read back ({error}); nothing was kept"
            ) from error

    def _read_fingerprint(self, reader: Reader, name: str) -> int:
        if reader.info(name).rate:
            return _level_fingerprint(reader.leveled(name, run=self._run))
        if reader.info(name).args:
            return _fingerprint(reader.quantized(name, run=self._run))
        return xxhash.xxh3_64_intdigest(reader.raw(name, self._run))

    def _advance(self, file: SourceTensors, tensor: PlannedTensor) -> None:
        file.release(tensor.name)
        self._done += tensor.nbytes
        self._progress(tensor.name, self._done, self._total)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A coded tensor on its way to the file. base: XXH3-64 of what it is a delta to. fingerprint: of what was coded."""

    tensor: PlannedTensor
    chunks: EncodedTensor | list[EncodedChunk]
    quantized: QuantizedTensor | None
    base: int | None
    fingerprint: int


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


def _possible(bits_per_weight: float) -> float:
    if not 0 < bits_per_weight <= 16:
        raise InvalidArgumentError(
            f"cannot reach this size: it leaves {bits_per_weight:.3g} bits for each weight that is quantized"
        )
    return bits_per_weight


def _level_fingerprint(tensor: LevelTensor) -> int:
    hasher = xxhash.xxh3_64(np.ascontiguousarray(tensor.levels).data)
    hasher.update(tensor.column_scale)
    hasher.update(tensor.row_scale)
    return hasher.intdigest()


def _fingerprint(tensor: QuantizedTensor) -> int:
    hasher = xxhash.xxh3_64(tensor.packed)
    hasher.update(file_bytes(tensor.scale))
    if tensor.zero_point is not None:
        hasher.update(tensor.zero_point)
    return hasher.intdigest()
