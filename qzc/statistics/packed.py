"""What `.qzc` files hold, tensor by tensor: every byte is accounted for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import prod
from pathlib import Path

from ..analysis.code_stats import CodedSize, LosslessStats
from ..analysis.entropy import shannon_entropy
from ..analysis.tensor_stats import Sizes, TensorStats
from ..codec.histogram import code_counts
from ..codec.run_map import RunMap
from ..formats.dtypes import bits_of
from ..formats.reader import Reader
from .coded import code_stats, fields_of, plane_size, with_planes


def packed_stats(
    paths: Sequence[Path], run: RunMap, advance: Callable[[str, int], None]
) -> tuple[list[TensorStats], dict[str, int]]:
    """All tensors of the files, and the bytes that belong to none. Every coded tensor is decoded."""
    tensors: list[TensorStats] = []
    overhead: dict[str, int] = {"header": 0, "index": 0, "tables": 0, "checksums": 0}
    for path in paths:
        with Reader(path) as reader:
            charged: set[tuple[str, Hashable]] = set()
            for name in reader.keys():
                tensors.append(_stored(reader, name, charged, run))
                advance(name, tensors[-1].sizes.stored_nbytes)
            for what, nbytes in reader.overhead.items():
                overhead[what] = overhead.get(what, 0) + nbytes
    return tensors, overhead


def _stored(reader: Reader, name: str, charged: set[tuple[str, Hashable]], run: RunMap) -> TensorStats:
    info = reader.info(name)
    parameters = prod(info.shape)
    if info.tied_to or info.coding == "plain":
        nbytes = info.nbytes or -(-parameters * bits_of(info.dtype, 8) // 8)
        sizes = Sizes(parameters, nbytes, info.nbytes)
        return TensorStats(name, info.dtype, info.shape, sizes, "stored as it is", info.tied_to)
    if info.rate:
        nbytes = -(-parameters * bits_of(info.dtype) // 8)
        return TensorStats(
            name, info.dtype, info.shape, Sizes(parameters, nbytes, info.nbytes, rated=True), "quantized at a rate"
        )
    planes = _planes_in_file(reader, name, charged)
    if info.args is None:
        lossless = _lossless(reader, name, sum(planes, CodedSize()), run)
        sizes = Sizes(parameters, reader.tensor_nbytes(name), lossless.coded.nbytes, lossless=lossless)
        return TensorStats(name, info.dtype, info.shape, sizes, "coded without loss")
    codes, _ = code_stats(reader.quantized(name, run=run), {}, None)
    codes = with_planes(codes, "file", planes)
    nbytes = -(-parameters * bits_of(info.dtype) // 8)
    sizes = Sizes(parameters, nbytes, codes.final.nbytes + codes.side_nbytes, codes=codes)
    return TensorStats(name, info.dtype, info.shape, sizes)


def _lossless(reader: Reader, name: str, coded: CodedSize, run: RunMap) -> LosslessStats:
    _, planes, first = reader.chunks(name)
    entropy = 0.0
    for number in range(first, first + len(planes)):
        packed, width, count = reader.plane(number, run)
        entropy += count * shannon_entropy(code_counts(packed, count, width))
    info = reader.info(name)
    fields = None if info.coding == "delta" else fields_of(reader.raw(name, run), info.dtype)
    figures = tuple((plane.bits, plane.count) for plane in planes)
    return LosslessStats(prod(info.shape), figures, entropy, coded, fields)


def _planes_in_file(reader: Reader, name: str, charged: set[tuple[str, Hashable]]) -> list[CodedSize]:
    """Sizes of the planes. Alignment before the first chunk belongs to the first."""
    _, planes, first = reader.chunks(name)
    index = reader.coded_file.index
    sizes: list[CodedSize] = []
    for number in range(first, first + len(planes)):
        mine = index.rows[index.planes[number] : index.planes[number + 1]]
        rows = zip(mine["nbytes"].tolist(), mine["coder"].tolist(), mine["table"].tolist(), strict=True)
        sizes.append(plane_size(rows, charged))
    before = reader.info(name).stored["payload"] - sum(size.payload + size.gaps for size in sizes)
    return [sizes[0] + CodedSize(gaps=before), *sizes[1:]]
