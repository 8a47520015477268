"""What coded tensors take in a file, to the byte, without the file: the writer itself lays them out, and nothing is kept."""

from __future__ import annotations

import io
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis.baselines import zstd_nbytes
from ..analysis.code_stats import CodedSize, CodeStats, LosslessStats
from ..analysis.distortion import Distortion
from ..analysis.entropy import level_bits, shannon_entropy
from ..analysis.float_fields import FORMATS, FloatFields, count_words, float_fields
from ..analysis.tensor_stats import Sizes, TensorStats
from ..codec.chunk_index import CHUNK_START
from ..codec.chunks import CHUNK_DTYPE, EncodedChunk
from ..codec.coder import CODERS
from ..codec.histogram import code_counts
from ..codec.planes import EncodedTensor, encode_tensor
from ..codec.run_map import RunMap
from ..codec.tensor import QuantizedTensor
from ..formats.profile import SourceFile
from ..formats.writer import Layout, Writer
from ..lossless import Lossless, encode_lossless
from ..planner import FilePlan, PlannedTensor
from ..sources import SourceTensors


@dataclass(frozen=True, eq=False)
class Coded:
    """A tensor that was coded, and the figures of it. hollow: its chunks, which know their sizes and have lost their bytes."""

    hollow: EncodedTensor
    codes: CodeStats | None = None
    lossless: LosslessStats | None = None


def code_tensor(
    tensor: QuantizedTensor, distortion: Distortion, chunk_codes: int, run: RunMap = map
) -> tuple[Coded, NDArray[np.int64]]:
    """Code a quantized tensor as a pack would; and how often each code occurs, int64 `[levels]`."""
    # One after the other, so that one coded copy is held at a time.
    huffman = coded_size(encode_tensor(tensor, "huffman", chunk_codes, run=run, verify=False).chunks[0])
    hollow = _hollow(encode_tensor(tensor, "ans", chunk_codes, run=run, verify=False))
    sizes = [coded_size(chunks) for chunks in hollow.chunks]
    codes, counts = code_stats(tensor, {"huffman": huffman, "ans": CodedSize()}, distortion)
    return Coded(hollow, with_planes(codes, "ans", sizes)), counts


def code_stats(
    tensor: QuantizedTensor, coded: Mapping[str, CodedSize], distortion: Distortion | None
) -> tuple[CodeStats, NDArray[np.int64]]:
    """The figures of the codes; and how often each occurs. The sizes of scales and zero points are still missing."""
    args, count = tensor.args, int(np.prod(tensor.shape, dtype=np.int64))
    levels = 1 << args.num_bits
    counts = code_counts(tensor.packed, count, args.storage_bits)[:levels]
    stats = CodeStats(
        args=args,
        count=count,
        levels=levels,
        levels_used=int(np.count_nonzero(counts)),
        level_bits=count * level_bits(levels),
        entropy_bits=count * shannon_entropy(counts),
        packed_nbytes=tensor.packed.size,
        packed_zstd_nbytes=zstd_nbytes(tensor.packed, 1),
        coded=coded,
        scale=CodedSize(),
        class_map_nbytes=sum(0 if c is None else c.nbytes for c in (tensor.row_class, tensor.column_class)),
        distortion=distortion,
    )
    return stats, counts


def with_planes(codes: CodeStats, way: str, planes: Sequence[CodedSize]) -> CodeStats:
    """With the sizes of all planes: codes, zero points, scales."""
    assert codes.args is not None
    first, *others = planes
    zero_point = CodedSize() if codes.args.symmetric else others.pop(0)
    coded = {**codes.coded, way: first}
    return replace(codes, coded=coded, zero_point=zero_point, scale=sum(others, CodedSize()))


def code_lossless(
    raw: NDArray[np.uint8], dtype: str, count: int, plan: Lossless, chunk_codes: int, run: RunMap = map
) -> Coded:
    """Code the bytes of a tensor of `count` elements as a pack would that keeps them."""
    encoded, _ = encode_lossless(raw, plan, "ans", chunk_codes, run=run, verify=False)
    hollow = _hollow(encoded)
    planes = zip(encoded.planes, plan.split(raw), strict=True)
    entropy = sum(plane.count * shannon_entropy(code_counts(data, plane.count, plane.width)) for plane, data in planes)
    figures = tuple((plane.bits, plane.count) for plane in encoded.planes)
    size = coded_size(hollow.all_chunks())
    return Coded(hollow, lossless=LosslessStats(count, figures, entropy, size, fields_of(raw, dtype)))


def fields_of(raw: NDArray[np.uint8], dtype: str) -> FloatFields | None:
    """Where the information of floats sits; None for what has no sign, exponent and mantissa."""
    return float_fields(count_words(raw, dtype), dtype) if dtype in FORMATS and raw.size else None


def coded_size(chunks: Iterable[EncodedChunk]) -> CodedSize:
    """What chunks take in a file of their own: a table counts once, however many chunks name it."""
    return plane_size(map(_row, chunks), set())


def plane_size(chunks: Iterable[tuple[int, int, Hashable]], charged: set[tuple[str, Hashable]]) -> CodedSize:
    """What the chunks of a plane take. chunks: payload bytes, coder, and the table or its number. A table is charged to the
    first that names it: `charged` collects them."""
    chunks = list(chunks)
    tables = 0
    for _, number, table in chunks:
        coder = CODERS[number]
        if coder.table_nbytes and (coder.bank, table) not in charged:
            charged.add((coder.bank, table))
            tables += coder.table_nbytes
    return CodedSize(
        payload=sum(nbytes for nbytes, _, _ in chunks),
        index=CHUNK_DTYPE.itemsize * len(chunks),
        tables=tables,
        gaps=sum(-nbytes % CHUNK_START for nbytes, _, _ in chunks),
        coders=tuple(sorted({CODERS[number].name for _, number, _ in chunks})),
    )


def file_stats(
    file: SourceTensors, plan: FilePlan, coded: Mapping[str, Coded], chunk_codes: int, restorable: bool
) -> tuple[list[TensorStats], dict[str, int]]:
    """All tensors of the file that a pack would write, and its bytes that belong to no tensor.

    coded: all tensors that are coded. restorable: the file has what it takes to restore its source.
    """
    layout = _lay_out(file, plan, coded, chunk_codes, restorable)
    charged: set[tuple[str, Hashable]] = set()
    tensors = {t.name: t for t in plan.tensors}
    found = []
    for name in sorted(tensors):
        planned, one = tensors[name], coded.get(name)
        if one is None:
            stored = 0 if planned.tied_to else planned.nbytes
            found.append(planned_stats(planned, stored))
            continue
        planes = [plane_size(map(_row, chunks), charged) for chunks in one.hollow.chunks]
        # Alignment before the first chunk belongs to the first plane.
        planes[0] += CodedSize(gaps=layout.coded[name]["payload"] - sum(p.payload + p.gaps for p in planes))
        codes = None if one.codes is None else with_planes(one.codes, "ans", planes)
        lossless = None if one.lossless is None else replace(one.lossless, coded=sum(planes, CodedSize()))
        found.append(planned_stats(planned, None, codes, lossless))
    overhead = {"header": layout.header, "tables": layout.tables, "checksums": layout.checksums}
    return found, {**overhead, "source": layout.source} if layout.source else overhead


def planned_stats(
    planned: PlannedTensor,
    stored_nbytes: int | None,
    codes: CodeStats | None = None,
    lossless: LosslessStats | None = None,
) -> TensorStats:
    """stored_nbytes: of a tensor that is not coded."""
    nbytes = stored_nbytes or 0
    if codes is not None:
        nbytes = codes.final.nbytes + codes.side_nbytes
    elif lossless is not None:
        nbytes = lossless.coded.nbytes
    sizes = Sizes(planned.parameters, planned.nbytes, nbytes, codes=codes, lossless=lossless)
    reason = None if codes else planned.reason
    return TensorStats(planned.name, planned.dtype, planned.shape, sizes, reason, planned.tied_to)


def _lay_out(
    file: SourceTensors, plan: FilePlan, coded: Mapping[str, Coded], chunk_codes: int, restorable: bool
) -> Layout:
    if restorable:  # the hash is as long as any
        plan = replace(plan, source_file=SourceFile(file.kind, file.nbytes, 0))
    uncoded = plan.uncoded()
    writer = Writer(_Nowhere(), plan.profile(), uncoded, chunk_codes=chunk_codes)
    for name in writer.names[: len(uncoded)]:
        writer.write_uncoded(name, _zeros(uncoded[name].nbytes))
    for name in writer.names[len(uncoded) :]:
        writer.write_lossless(name, coded[name].hollow)
    if not restorable:
        return writer.finish()
    return writer.finish(file.rest(), {t.name: file.offset(t.name) for t in plan.tensors})


class _Nowhere(io.BytesIO):
    """A stream that forgets what is written to it."""

    def write(self, data: Any, /) -> int:
        return len(memoryview(data))


def _zeros(nbytes: int) -> Iterator[memoryview]:
    piece = memoryview(bytes(min(nbytes, 1 << 20)))
    for start in range(0, nbytes, 1 << 20):
        yield piece[: nbytes - start]


def _hollow(encoded: EncodedTensor) -> EncodedTensor:
    def emptied(chunk: EncodedChunk) -> EncodedChunk:
        return replace(chunk, payload=np.broadcast_to(np.zeros(1, np.uint8), len(chunk.payload)).data)

    return replace(encoded, chunks=tuple(tuple(map(emptied, chunks)) for chunks in encoded.chunks))


def _row(chunk: EncodedChunk) -> tuple[int, int, Hashable]:
    return len(chunk.payload), chunk.coder, bytes(chunk.table)
