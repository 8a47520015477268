"""One run of `qzc.pack`: files are written, read again and compared before they take their places."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import xxhash

from ..base import BaseTensors
from ..calibration import Calibration
from ..codec.errors import QzcError, VerificationError
from ..codec.pages import shared_pages
from ..codec.run_map import RunMap
from ..formats.atomic import atomic_folder, atomic_writer
from ..formats.checkpoint import Checkpoint
from ..formats.profile import SourceFile
from ..formats.rate_entry import RateSide, side_of
from ..formats.reader import Reader
from ..formats.safetensors import pieces_of
from ..formats.writer import Writer
from ..places import SOURCE_INDEX, copy_side_files, packed_index_name, packed_name
from ..planner import FilePlan, PlannedTensor
from ..progress import Progress
from ..quantize.select import Selection
from ..rating import RatedTensors, Rating
from ..sources import SourceTensors, open_source
from .encoder import Encoder, grid_fingerprint, level_fingerprint
from .options import PackOptions
from .report import PackedFile
from .to_rate import write_at_rate


class PackJob:
    """The options, and how far the run got. rating: of the tensors at a rate, once there are any."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: PackOptions,
        selection: Selection | None,
        base: BaseTensors | None,
        statistics: Calibration | None,
        progress: Progress | None,
        run: RunMap,
    ) -> None:
        self._checkpoint, self._options, self._run = checkpoint, options, run
        self._selection, self._base, self._statistics = selection, base, statistics
        self._encoder = Encoder(options, base, statistics, run)
        self.rating: Rating | None = None
        self._rated: RatedTensors | None = None
        self._progress = progress or (lambda doing, done, total: None)
        self._done, self._total = 0, sum(path.stat().st_size for path in checkpoint.files)

    def write(self, plans: Sequence[FilePlan], target: Path) -> tuple[PackedFile, ...]:
        """Pack the files of the checkpoint as planned into the file, or the folder, `target`."""
        checkpoint = self._checkpoint
        if not checkpoint.is_folder:
            with atomic_writer(target, self._options.overwrite) as stream:
                return self._at_rate(plans, target.parent, lambda: (self._write_file(plans[0], target, stream),))
        with atomic_folder(target, self._options.overwrite) as folder:

            def write_all() -> tuple[PackedFile, ...]:
                files = []
                for plan in plans:
                    name = packed_name(plan.source.name)
                    with atomic_writer(folder / name, overwrite=True) as stream:
                        files.append(self._write_file(plan, target / name, stream))
                return tuple(files)

            files = self._at_rate(plans, target.parent, write_all)
            copy_side_files(checkpoint, folder)
            self._write_index(folder, files)
        return files

    def _at_rate(
        self, plans: Sequence[FilePlan], scratch: Path, write: Callable[[], tuple[PackedFile, ...]]
    ) -> tuple[PackedFile, ...]:
        """Write the files; where a rate is asked for, again until they have it. scratch: a folder with room."""
        rate = self._options.rate
        if rate is None:
            return write()
        self._progress("reading the weights", 0, self._total)
        with Rating(plans, rate, self._statistics, self._run, scratch) as rating:
            self.rating = rating

            def write_at(bits_per_weight: float) -> tuple[PackedFile, ...]:
                self._progress("searching for the step", 0, self._total)
                self._rated, self._done = rating.solve(bits_per_weight), 0
                return write()

            return write_at_rate(plans, rate, rating, write_at)

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
            order = [tensors[name] for name in writer.names[len(uncoded) :]]
            with shared_pages():
                for encoded in self._encoder.encode(file, order, self._rated):
                    name = encoded.tensor.name
                    if isinstance(encoded.chunks, list):
                        writer.write_rate(name, encoded.chunks, encoded.wide)
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

    def _side_of(self, plan: FilePlan) -> RateSide | None:
        """What the tensors of a file on unbounded grids share."""
        names = [tensor.name for tensor in plan.tensors if tensor.is_rated]
        if not names or self._rated is None:
            return None
        return side_of({name: self._rated.grids[name] for name in names}, self._rated.bank)

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
            return level_fingerprint(reader.leveled(name, run=self._run))
        if reader.info(name).args:
            return grid_fingerprint(reader.quantized(name, run=self._run))
        return xxhash.xxh3_64_intdigest(reader.raw(name, self._run))

    def _advance(self, file: SourceTensors, tensor: PlannedTensor) -> None:
        file.release(tensor.name)
        self._done += tensor.nbytes
        self._progress(tensor.name, self._done, self._total)
