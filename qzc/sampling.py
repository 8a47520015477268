"""A part of a checkpoint's quantized codes that stands for all of them: blocks of rows, evenly spread."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate
from math import ceil, prod
from pathlib import Path

from .analysis.entropy import shannon_entropy
from .codec.chunks import CHUNK_CODES
from .codec.errors import InvalidArgumentError
from .codec.histogram import code_counts
from .codec.packing import slice_packed
from .codec.tensor import QuantizationArgs, QuantizedTensor, matrix_shape
from .formats.checkpoint import is_qzc, open_checkpoint
from .formats.reader import Reader
from .formats.safetensors import SafetensorsFile
from .planner import PlannedTensor, plan_file
from .quantize.rtn import NonFiniteError, quantize
from .quantize.select import Selection

SAMPLE_CODES = 1 << 22


@dataclass(frozen=True)
class Sample:
    """Blocks of whole rows, each about as large as a chunk. total_codes: of the checkpoint. chunk_codes: target per chunk."""

    source: Path
    blocks: tuple[QuantizedTensor, ...]
    total_codes: int
    chunk_codes: int

    @property
    def codes(self) -> int:
        """Codes in the sample."""
        return sum(prod(block.shape) for block in self.blocks)

    @property
    def entropy_bits(self) -> float:
        """Order-0 entropy in bits per code, each block with a histogram of its own: the floor for one table per block."""
        counts = [code_counts(block.packed, prod(block.shape), block.args.storage_bits) for block in self.blocks]
        return sum(shannon_entropy(c) * int(c.sum()) for c in counts) / self.codes

    @property
    def grids(self) -> tuple[QuantizationArgs, ...]:
        """The grids that occur, in the order of the file."""
        return tuple(dict.fromkeys(block.args for block in self.blocks))


@dataclass(frozen=True)
class _Source:
    """A tensor that has codes. read: the codes of a range of rows; None if they hold NaN or Inf."""

    shape: tuple[int, ...]
    read: Callable[[slice], QuantizedTensor | None]


def take_sample(
    path: str | Path,
    selection: Selection | None = None,
    *,
    sample_codes: int = SAMPLE_CODES,
    chunk_codes: int = CHUNK_CODES,
) -> Sample:
    """About `sample_codes` codes of a checkpoint, in blocks of about `chunk_codes`; all of them if it has no more.

    path: `.safetensors`, which is quantized as `pack` with this selection would, or `.qzc`; a file or a folder. Only the
    sampled rows are read, but for `strategy="tensor"`. A tensor counts by its size: positions among all codes are evenly
    spaced, and the blocks that hold them are taken.

    Raises InvalidArgumentError if no tensor has codes, FileAccessError, CorruptionError, UnsupportedError.
    """
    if sample_codes < 1 or chunk_codes < 1:
        raise InvalidArgumentError("sample_codes and chunk_codes are at least 1")
    checkpoint = open_checkpoint(path)
    with ExitStack() as stack:
        sources = [s for file in checkpoint.files for s in _sources(file, selection or Selection(), stack)]
        places = [(source, rows) for source in sources for rows in _row_blocks(source.shape, chunk_codes)]
        ends = list(accumulate((rows.stop - rows.start) * matrix_shape(s.shape)[1] for s, rows in places))
        total = ends[-1] if ends else 0
        picks = ceil(sample_codes / chunk_codes)
        wanted = {bisect_right(ends, (2 * i + 1) * total // (2 * picks)) for i in range(picks)}
        numbers = sorted(wanted) if total > sample_codes else range(len(places))
        blocks = [source.read(rows) for source, rows in (places[i] for i in numbers)]
    found = tuple(block for block in blocks if block is not None)
    if not found:
        raise InvalidArgumentError(f"{path}: no tensor has quantized codes; `qzc pack --dry-run` shows why")
    return Sample(Path(path), found, total, chunk_codes)


def _row_blocks(shape: tuple[int, ...], chunk_codes: int) -> Iterator[slice]:
    rows, columns = matrix_shape(shape)
    count = min(rows, max(1, round(rows * columns / chunk_codes)))
    for i in range(count):
        yield slice(rows * i // count, rows * (i + 1) // count)


def _sources(path: Path, selection: Selection, stack: ExitStack) -> Iterator[_Source]:
    if is_qzc(path):
        reader = stack.enter_context(Reader(path))
        for name in reader.keys():
            info = reader.info(name)
            if info.args and not info.tied_to and info.shape and prod(info.shape):
                yield _Source(info.shape, partial(reader.quantized, name))
        return
    file = stack.enter_context(SafetensorsFile(path))
    for tensor in plan_file(file, path, selection).tensors:
        if tensor.args and not tensor.tied_to and tensor.shape and prod(tensor.shape):
            yield _Source(tensor.shape, _quantizing(file, tensor, tensor.args))


def _quantizing(
    file: SafetensorsFile, tensor: PlannedTensor, args: QuantizationArgs
) -> Callable[[slice], QuantizedTensor | None]:
    def rounded(rows: slice) -> QuantizedTensor | None:
        try:
            return quantize(file.array(tensor.name)[rows], args, dtype=tensor.dtype, name=tensor.name)
        except NonFiniteError:
            return None

    @cache
    def whole() -> QuantizedTensor | None:
        return rounded(slice(None))

    def cut(rows: slice) -> QuantizedTensor | None:
        """One scale for all rows: it can only be had from all of them."""
        tensor = whole()
        if tensor is None:
            return None
        columns, count = matrix_shape(tensor.shape)[1], rows.stop - rows.start
        packed = slice_packed(tensor.packed, rows.start * columns, count * columns, args.storage_bits)
        return replace(tensor, packed=packed, shape=(count, *tensor.shape[1:]))

    return cut if args.strategy == "tensor" else rounded
