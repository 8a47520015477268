"""`qzc.stats`: what quantizing and coding a checkpoint costs and gains, or what a `.qzc` holds, tensor by tensor.

Introduces the rooms to each other: formats reads, quantize and codec do what a pack would do, analysis counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .analysis.baselines import gzip_nbytes, zstd_nbytes
from .analysis.distortion import Distortion, weight_distortion
from .analysis.entropy import level_bits, shannon_entropy
from .analysis.tensor_stats import CodedSize, CodeStats, Sizes, TensorStats, Totals, totals
from .codec.chunk_index import CHUNK_START
from .codec.chunks import CHUNK_CODES, CHUNK_DTYPE, EncodedChunk
from .codec.coder import CODERS
from .codec.errors import InvalidArgumentError
from .codec.histogram import code_counts
from .codec.planes import encode_tensor
from .codec.run_map import RunMap
from .codec.tensor import QuantizedTensor
from .formats.checkpoint import is_qzc, open_checkpoint
from .formats.dtypes import bits_of
from .formats.profile import BANK_ROW_NBYTES
from .formats.reader import Reader
from .formats.safetensors import SafetensorsFile
from .packer import LARGE, Progress
from .planner import PlannedTensor, plan_file
from .quantize.rtn import NonFiniteError, quantize
from .quantize.select import Selection
from .threads import thread_map


@dataclass(frozen=True)
class ModelStats:
    """The figures of a checkpoint; `docs/stats.md` defines each. tensors: sorted by name."""

    source: Path
    kind: Literal["safetensors", "qzc"]
    tensors: tuple[TensorStats, ...]
    totals: Totals

    def to_json(self) -> dict[str, Any]:
        """A document of the schema `qzc.stats/1`: sizes are exact integers, figures that do not exist are null."""
        return {
            "schema": "qzc.stats/1",
            "source": str(self.source),
            "kind": self.kind,
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "totals": self.totals.to_json(),
        }


def stats(
    path: str | Path,
    selection: Selection | None = None,
    *,
    gzip: bool = True,
    chunk_codes: int = CHUNK_CODES,
    threads: int = 0,
    progress: Progress | None = None,
) -> ModelStats:
    """Measure a `.safetensors` checkpoint as `pack` would quantize and code it, or a `.qzc` as it is.

    path: a file or a folder. selection: grids by tensor name, for `.safetensors` only. gzip: also run gzip -6 over the
    original bytes, by far the slowest figure. chunk_codes: as for `pack`. threads: 0 for all CPUs; the result does
    not depend on it. Nothing is written.

    Raises InvalidArgumentError, FileAccessError, CorruptionError, UnsupportedError.
    """
    checkpoint = open_checkpoint(path)
    packed = [is_qzc(file) for file in checkpoint.files]
    if any(packed) and not all(packed):
        raise InvalidArgumentError(f"{path}: some files are .qzc and some are not; measure them one by one")
    total = sum(file.stat().st_size for file in checkpoint.files)
    with thread_map(threads) as run:
        if any(packed):
            work = _Work(run, total, progress)
            return _read_qzc(checkpoint.root, checkpoint.files, work)
        work = _Work(run, total * (3 if gzip else 2), progress)
        return _measure_safetensors(
            checkpoint.root, checkpoint.files, selection or Selection(), gzip, chunk_codes, work
        )


class _Work:
    """How work is run, and how far it got, in bytes read."""

    def __init__(self, run: RunMap, total: int, progress: Progress | None) -> None:
        self.run, self._total, self._done = run, total, 0
        self._progress = progress or (lambda doing, done, total: None)

    def advance(self, doing: str, nbytes: int) -> None:
        self._done += nbytes
        self._progress(doing, self._done, self._total)


# ---------------------------------------------------------------------------------------------- .safetensors
def _measure_safetensors(
    source: Path, paths: Sequence[Path], selection: Selection, gzip: bool, chunk_codes: int, work: _Work
) -> ModelStats:
    tensors: list[TensorStats] = []
    for path in paths:
        with SafetensorsFile(path) as file:
            plan = plan_file(file, path, selection).tensors
            codes = dict(_measure_codes(file, [t for t in plan if t.args and not t.tied_to], chunk_codes, work))
            stored = [t for t in plan if not t.tied_to]
            zstd = _compress(file, stored, "zstd -3", work)
            gzipped = _compress(file, stored, "gzip -6", work) if gzip else {}
            tensors += [_planned(t, codes.get(t.name), gzipped.get(t.name), zstd.get(t.name)) for t in plan]
    tensors.sort(key=lambda tensor: tensor.name)
    return ModelStats(source, "safetensors", tuple(tensors), totals(tensors))


def _planned(tensor: PlannedTensor, codes: CodeStats | None, gzip: int | None, zstd: int | None) -> TensorStats:
    reason = tensor.reason
    if tensor.args and codes is None and not tensor.tied_to:
        reason = "has NaN or Inf"
    stored = codes.final.nbytes + codes.side_nbytes if codes else 0 if tensor.tied_to else tensor.nbytes
    sizes = Sizes(tensor.parameters, tensor.nbytes, stored, gzip, zstd, codes)
    return TensorStats(tensor.name, tensor.dtype, tensor.shape, sizes, None if codes else reason, tensor.tied_to)


def _compress(file: SafetensorsFile, tensors: Sequence[PlannedTensor], tool: str, work: _Work) -> dict[str, int]:
    """The size of each tensor's bytes under a general compressor; the largest tensors first, so that no thread idles."""

    def size(tensor: PlannedTensor) -> int:
        raw = file.raw(tensor.name)
        nbytes = gzip_nbytes(raw, 6) if tool == "gzip -6" else zstd_nbytes(raw, 3)
        file.release(tensor.name)
        return nbytes

    order = sorted(tensors, key=lambda tensor: -tensor.nbytes)
    sizes: dict[str, int] = {}
    for tensor, nbytes in zip(order, work.run(size, order), strict=True):
        sizes[tensor.name] = nbytes
        work.advance(f"{tool} {tensor.name}", tensor.nbytes)
    return sizes


def _measure_codes(
    file: SafetensorsFile, tensors: Sequence[PlannedTensor], chunk_codes: int, work: _Work
) -> Iterator[tuple[str, CodeStats | None]]:
    """Large tensors one after another, each spread over the threads; then the small ones, one to a thread."""
    for large in (True, False):
        group = [tensor for tensor in tensors if (tensor.parameters >= LARGE) == large]
        measure = partial(_measure_tensor, file, chunk_codes, work.run if large else map)
        for tensor, codes in zip(group, (map if large else work.run)(measure, group), strict=True):
            work.advance(tensor.name, tensor.nbytes)
            yield tensor.name, codes


def _measure_tensor(file: SafetensorsFile, chunk_codes: int, run: RunMap, planned: PlannedTensor) -> CodeStats | None:
    """Quantize and code one tensor as a pack would; None if it has values that no grid can hold."""
    assert planned.args is not None
    weights = file.array(planned.name)
    try:
        tensor = quantize(weights, planned.args, dtype=planned.dtype, name=f"tensor {planned.name!r}", run=run)
    except NonFiniteError:
        return None
    distortion = weight_distortion(weights, tensor, run=run)
    file.release(planned.name)
    # One after the other, so that one coded copy is held at a time.
    huffman = coded_size(encode_tensor(tensor, "huffman", chunk_codes, run=run, verify=False).codes)
    ans = encode_tensor(tensor, "ans", chunk_codes, run=run, verify=False)
    coded = {"huffman": huffman, "ans": coded_size(ans.codes)}
    return _code_stats(tensor, coded, coded_size(ans.zero_points), distortion)


def coded_size(chunks: Iterable[EncodedChunk]) -> CodedSize:
    """What chunks take in a file: a table counts once, however many chunks name it; so does each row of the index."""
    chunks = list(chunks)
    return CodedSize(
        payload=sum(len(chunk.payload) for chunk in chunks),
        index=CHUNK_DTYPE.itemsize * len(chunks),
        tables=sum(len(table) for _, table in {(chunk.coder, bytes(chunk.table)) for chunk in chunks}),
        gaps=sum(-len(chunk.payload) % CHUNK_START for chunk in chunks),
        coders=tuple(sorted({CODERS[chunk.coder].name for chunk in chunks})),
    )


# ---------------------------------------------------------------------------------------------- .qzc
def _read_qzc(source: Path, paths: Sequence[Path], work: _Work) -> ModelStats:
    tensors: list[TensorStats] = []
    overhead: dict[str, int] = {"header": 0, "tables": 0, "checksums": 0}
    for path in paths:
        with Reader(path) as reader:
            charged: set[tuple[str, int]] = set()
            for name in reader.keys():
                tensors.append(_stored(reader, name, charged, work.run))
                work.advance(name, tensors[-1].sizes.stored_nbytes)
            for what, nbytes in reader.overhead.items():
                overhead[what] += nbytes
    tensors.sort(key=lambda tensor: tensor.name)
    return ModelStats(source, "qzc", tuple(tensors), totals(tensors, overhead))


def _stored(reader: Reader, name: str, charged: set[tuple[str, int]], run: RunMap) -> TensorStats:
    """A tensor of a `.qzc` file. A table is charged to the first tensor that names it: `charged` collects them."""
    info = reader.info(name)
    parameters = prod(info.shape)
    if info.tied_to or info.args is None:
        nbytes = info.nbytes or -(-parameters * bits_of(info.dtype, 8) // 8)
        sizes = Sizes(parameters, nbytes, info.nbytes)
        return TensorStats(name, info.dtype, info.shape, sizes, "stored as it is", info.tied_to)
    tensor = reader.quantized(name, run=run)
    coded, zero_point = _planes_in_file(reader, name, charged)
    codes = _code_stats(tensor, {"file": coded}, zero_point, None)
    stored = coded.nbytes + codes.side_nbytes
    nbytes = -(-parameters * bits_of(info.dtype) // 8)
    return TensorStats(name, info.dtype, info.shape, Sizes(parameters, nbytes, stored, codes=codes))


def _planes_in_file(reader: Reader, name: str, charged: set[tuple[str, int]]) -> tuple[CodedSize, CodedSize]:
    """Sizes of the codes and of the zero points. Alignment before the first chunk belongs to the codes."""
    rows = reader.planes(name).index.rows
    sizes: list[CodedSize] = []
    for plane in (0, 1):
        mine = rows[rows["plane"] == plane]
        tables = {(CODERS[int(row["coder"])].bank, int(row["table"])) for row in mine} - charged
        charged |= tables
        sizes.append(
            CodedSize(
                payload=int(mine["nbytes"].sum(dtype=np.int64)),
                index=mine.nbytes,
                tables=sum(BANK_ROW_NBYTES.get(bank, 0) for bank, _ in tables),
                gaps=int((-mine["nbytes"].astype(np.int64) % CHUNK_START).sum()),
                coders=tuple(sorted({CODERS[int(coder)].name for coder in mine["coder"]})),
            )
        )
    codes, zero_point = sizes
    before = reader.info(name).stored["payload"] - sum(size.payload + size.gaps for size in sizes)
    return codes + CodedSize(gaps=before), zero_point


# ---------------------------------------------------------------------------------------------- both
def _code_stats(
    tensor: QuantizedTensor, coded: dict[str, CodedSize], zero_point: CodedSize, distortion: Distortion | None
) -> CodeStats:
    args, count = tensor.args, prod(tensor.shape)
    counts = code_counts(tensor.packed, count, args.storage_bits)
    levels = 1 << args.num_bits
    return CodeStats(
        args=args,
        count=count,
        levels=levels,
        levels_used=int(np.count_nonzero(counts)),
        level_bits=count * level_bits(levels),
        entropy_bits=count * shannon_entropy(counts),
        packed_nbytes=tensor.packed.size,
        packed_zstd_nbytes=zstd_nbytes(tensor.packed, 1),
        coded=coded,
        scale_nbytes=tensor.scale.nbytes,
        zero_point=zero_point,
        class_map_nbytes=sum(_nbytes(classes) for classes in (tensor.row_class, tensor.column_class)),
        distortion=distortion,
    )


def _nbytes(array: NDArray[Any] | None) -> int:
    return 0 if array is None else array.nbytes
