"""What `pack` will do with each tensor, decided from the headers before anything is written."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from .codec.chunk_index import CHUNK_START, PAYLOAD_START
from .codec.chunks import CHUNK_CODES, CHUNK_DTYPE
from .codec.errors import InvalidArgumentError
from .codec.planes import PLAIN, encode_tensor
from .codec.records import BYTES, Records
from .codec.tensor import QuantizationArgs, matrix_shape, packed_nbytes
from .formats.profile import CodedTensor, Profile, SourceFile, is_reserved
from .formats.rate_entry import RateEntry
from .formats.writer import UncodedTensor, Writer
from .lossless import MIN_NBYTES, Lossless, as_bytes, plan_lossless
from .quantize.rtn import float32_weights, quantize
from .quantize.select import Selection
from .sources import SourceTensors
from .version import VERSION

TIE_NBYTES = 1 << 16
"""Equal tensors of at least this size are stored once. Small ones (fresh biases, norms) stay under their own names."""
HEADER_NBYTES = 400  # what a coded tensor costs in the header, about; a tensor must gain more than that
SAMPLE_CODES = 1 << 18
PROBE_NBYTES = 4096
MAX_COLUMNS = 1 << 23  # of a tensor that is quantized at a rate: a chunk holds whole rows


@dataclass(frozen=True, eq=False)
class PlannedTensor:
    """One tensor of the input. args: its grid, or None if it has none; rated: whether it is quantized at a rate, on an
    unbounded grid; tied_to: the tensor it equals.

    lossless: how it is entropy-coded bit by bit; None with `args` being None, too: it is stored as it is. nbytes: in the input. estimated_nbytes: in the output without header and checksums, where it has been asked for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    args: QuantizationArgs | None
    reason: str
    tied_to: str | None = None
    estimated_nbytes: int | None = None
    lossless: Lossless | None = None
    rated: bool = False

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    @property
    def is_quantized(self) -> bool:
        """Whether it is quantized and coded under its own name."""
        return (self.args is not None or self.rated) and self.tied_to is None

    @property
    def is_rated(self) -> bool:
        """Whether it is quantized at a rate and coded under its own name."""
        return self.rated and self.tied_to is None

    @property
    def is_lossless(self) -> bool:
        """Whether it is entropy-coded bit by bit under its own name."""
        return self.lossless is not None and not self.is_quantized and self.tied_to is None


@dataclass(frozen=True)
class FilePlan:
    """One file of the input: its tensors in the order of their names, and its metadata.

    estimated_overhead: bytes of header and checksums of the output, where it has been asked for.
    """

    source: Path
    tensors: tuple[PlannedTensor, ...]
    metadata: dict[str, str]
    estimated_overhead: int | None = None

    source_file: SourceFile | None = None

    @property
    def quantized(self) -> list[PlannedTensor]:
        """The tensors that are quantized and coded, second names of others left out."""
        return [t for t in self.tensors if t.is_quantized]

    @property
    def lossless(self) -> list[PlannedTensor]:
        """The tensors that are coded bit by bit, second names of others left out."""
        return [t for t in self.tensors if t.is_lossless]

    def profile(self, base: dict[str, str] | None = None, entries: Mapping[str, RateEntry] | None = None) -> Profile:
        """What the output's metadata will say. base: about the checkpoint that lossless tensors may refer to. entries: of
        the tensors on unbounded grids, which are left out without.
        """
        coded: dict[str, CodedTensor] = {}
        for t in self.tensors:
            if t.args and t.is_quantized:
                records = PLAIN[4 if t.args.scale_dtype == "float32" else 2]
                coded[t.name] = CodedTensor(t.dtype, t.shape, t.args, records)
            elif t.is_rated and entries is not None:
                coded[t.name] = CodedTensor(t.dtype, t.shape, None, BYTES, rate=entries[t.name])
            elif t.lossless and t.is_lossless:
                coded[t.name] = t.lossless.entry(t.dtype, t.shape, t.nbytes)
        return Profile(
            coded=coded,
            ties={t.name: t.tied_to for t in self.tensors if t.tied_to},
            source_metadata=self.metadata or None,
            writer=f"qzc {VERSION}",
            source_file=self.source_file,
            base=base or {},
        )

    def uncoded(self) -> dict[str, UncodedTensor]:
        """The tensors that the output will hold as they are."""
        kept = (t for t in self.tensors if not t.is_quantized and not t.is_lossless and not t.tied_to)
        return {t.name: UncodedTensor(t.dtype, t.shape, t.nbytes) for t in kept}


def plan_file(
    file: SourceTensors,
    source: Path,
    selection: Selection | None,
    *,
    keep_nonfinite: bool = False,
    code_kept: bool = True,
    hints: Mapping[str, Sequence[Records]] | None = None,
    rated: bool = False,
) -> FilePlan:
    """Decide for every tensor of a file. Raises InvalidArgumentError for names that the format reserves.

    selection: what to quantize; None for nothing. rated: at a rate, whatever the grids of the selection.
    code_kept: entropy-code tensors that are not quantized, where that makes them smaller. hints: by the name of a tensor
    how its bytes may be split.
    """
    tensors: list[PlannedTensor] = []
    stored: dict[tuple[Any, ...], list[str]] = {}
    for name in sorted(file.keys()):
        if is_reserved(name):
            raise InvalidArgumentError(
                f"{source}: tensor name {name!r} is reserved by the .qzc format; rename the tensor"
            )
        info = file.info(name)
        args, reason = None, "lossless"
        if selection is not None:
            decision = selection.decide(name, info.dtype, info.shape)
            args, reason = decision.args, decision.reason
        if args and not rated and _coded_floor(info.shape, args) >= info.nbytes:
            args, reason = None, "would not become smaller"
        if args and rated and matrix_shape(info.shape)[1] > MAX_COLUMNS:
            args, reason = None, f"rows of more than {MAX_COLUMNS} weights"
        if args and keep_nonfinite and not _finite(file.array(name)):
            args, reason = None, "has NaN or Inf"
        at_rate = rated and args is not None
        reason = "at a rate" if at_rate else reason
        tied_to = None
        if info.nbytes >= TIE_NBYTES:
            raw = file.raw(name)
            alike = stored.setdefault((info.dtype, info.shape, args, _probe(raw)), [])
            tied_to = next((other for other in alike if _equal(raw, file.raw(other))), None)
            if tied_to is None:
                alike.append(name)
        lossless = None
        if args is None and tied_to is None and code_kept:
            splits = (*(hints or {}).get(name, ()), *file.records(name))
            least = 0 if selection is None else MIN_NBYTES
            lossless = plan_lossless(file.raw(name), info.dtype, splits, info.shape, least)
        if args is None and tied_to is None and lossless is None and info.nbytes and info.dtype.startswith("GGUF_"):
            lossless = as_bytes(info.nbytes)  # no library for safetensors would take its dtype
        grid = None if at_rate else args
        planned = PlannedTensor(
            name, info.dtype, info.shape, info.nbytes, grid, reason, tied_to, lossless=lossless, rated=at_rate
        )
        tensors.append(planned)
        file.release(name)
    return FilePlan(source, tuple(tensors), file.metadata)


def with_estimates(
    plan: FilePlan,
    file: SourceTensors,
    coder: str,
    chunk_codes: int = CHUNK_CODES,
    bits_per_weight: float = 0.0,
) -> FilePlan:
    """The plan with the sizes that a pack would give, from a sample of the rows of each tensor.

    bits_per_weight: of the tensors that are quantized at a rate.

    Exact up to some bytes for tensors of at most SAMPLE_CODES elements, because the sample is then all of them.
    Raises InvalidArgumentError (NonFiniteError) as `quantize` does, for what the sample has.
    """
    tensors = tuple(
        replace(tensor, estimated_nbytes=_estimate(file, tensor, coder, chunk_codes, bits_per_weight))
        for tensor in plan.tensors
    )
    stream, uncoded = io.BytesIO(), plan.uncoded()
    Writer(stream, plan.profile(), uncoded, chunk_codes=chunk_codes)  # reserves its header
    checksums = 8 * (len(plan.quantized) + len(plan.lossless) + len(uncoded) + 6)
    return replace(plan, tensors=tensors, estimated_overhead=stream.tell() + checksums)


def _estimate(file: SourceTensors, tensor: PlannedTensor, coder: str, chunk_codes: int, bits_per_weight: float) -> int:
    """Bytes that a tensor will take: codes, scales, zero points, chunk index and tables."""
    if tensor.tied_to:
        return 0
    if tensor.rated:
        return round(tensor.parameters * bits_per_weight / 8)
    if tensor.args is None:
        return tensor.lossless.nbytes if tensor.lossless else tensor.nbytes
    array = file.array(tensor.name).reshape(matrix_shape(tensor.shape))
    rows = _sample_rows(array, tensor.args)
    sample = quantize(rows, tensor.args, dtype=tensor.dtype, name=f"tensor {tensor.name!r}")
    file.release(tensor.name)
    encoded = encode_tensor(sample, coder, chunk_codes, verify=False)
    chunks = encoded.all_chunks()
    tables = {(chunk.coder, bytes(chunk.table)) for chunk in chunks}
    coded = sum(CHUNK_DTYPE.itemsize + -(-len(c.payload) // CHUNK_START) * CHUNK_START for c in chunks)
    share = prod(tensor.shape) / max(1, prod(sample.shape))
    return round(coded * share) + sum(len(table) for _, table in tables) + PAYLOAD_START // 2


def _sample_rows(array: NDArray[Any], args: QuantizationArgs) -> NDArray[Any]:
    """Whole rows, evenly spread, at least one. With one scale per tensor also those whose weights decide it."""
    rows, columns = array.shape
    take = min(rows, max(1, SAMPLE_CODES // max(1, columns)))
    picked = np.linspace(0, max(0, rows - 1), take).astype(np.int64)
    if args.strategy == "tensor" and take < rows:
        step = max(1, SAMPLE_CODES // max(1, columns))
        highs = np.concatenate([array[i : i + step].max(axis=1) for i in range(0, rows, step)])
        lows = np.concatenate([array[i : i + step].min(axis=1) for i in range(0, rows, step)])
        picked = np.union1d(picked, [int(highs.argmax()), int(lows.argmin())])
    return np.ascontiguousarray(array[picked] if rows else array)


def _coded_floor(shape: tuple[int, ...], args: QuantizationArgs) -> int:
    scale_nbytes = 4 if args.scale_dtype == "float32" else 2
    return packed_nbytes(prod(shape), args.storage_bits) + prod(args.scale_shape(shape)) * scale_nbytes + HEADER_NBYTES


def _finite(array: NDArray[Any]) -> bool:
    """Also in float32, in which quantization works: float64 has larger numbers."""
    flat, step = array.reshape(-1), 1 << 22
    return all(np.isfinite(float32_weights(flat, slice(i, i + step))).all() for i in range(0, flat.size, step))


def _probe(raw: NDArray[np.uint8]) -> int:
    """A hash of a few places: tensors of one shape nearly always differ there, and need not be compared in full."""
    hasher = xxhash.xxh3_64()
    for start in (0, raw.size // 2, max(0, raw.size - PROBE_NBYTES)):
        hasher.update(raw[start : start + PROBE_NBYTES])
    return hasher.intdigest()


def _equal(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    step = 1 << 22
    return all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, a.size, step))
