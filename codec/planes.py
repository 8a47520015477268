"""Which planes of codes a coded tensor is made of (SPEC section 4), and how they are coded.

A quantized tensor has its codes, the zero points of an asymmetric grid, and its scales split into planes. A lossless one has
its bytes split into planes, or the numbers of its few values and these values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import CHUNK_DTYPE, EXTRA, EncodedChunk, encode_run
from .code_order import Classes, code_order, run_sizes
from .delta import DIFFERENCE, XOR, differ
from .errors import InvalidArgumentError
from .packing import pack_codes, unpack_codes
from .pages import ALIGNMENT, empty
from .records import Records, is_plain, split, split_jobs
from .run_map import RunMap
from .scaled_palette import SCALES, ScaledPalette
from .scratch import workspace
from .tensor import QuantizationArgs, QuantizedTensor, matrix_shape, packed_nbytes

MAX_CHUNK_CODES = 1 << 24  # so that a small file cannot ask for much memory at once

FAST_EXTRA = 0.0065  # share of the entropy that the planes of floats may take more, to be decoded twice as fast
PLAIN = {size: Records(((8, size),)) for size in (1, 2, 4)}
"""Scales as they are, by their size in bytes."""
SPLIT = {
    "float16": Records(((8, 1), (4, 1), (4, 1))),
    "bfloat16": Records(((8, 1), (4, 1), (4, 1)), rotate=True),
    "float32": Records(((8, 2), (8, 1), (4, 1), (4, 1)), rotate=True),
}
"""Scales with exponent and first bits of the mantissa apart, in nibbles: tables of 16 symbols pay for few scales already."""


@dataclass(frozen=True)
class Plane:
    """A sequence of codes of `bits` bits, 1 to 8. runs: the number of codes in each run, none of them 0."""

    bits: int
    runs: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.runs)

    @property
    def width(self) -> int:
        """Bits per code in a packed buffer: `bits` rounded up to 1, 2, 4 or 8."""
        return 1 << (self.bits - 1).bit_length()


@dataclass(frozen=True)
class EncodedTensor:
    """The chunks of each plane, in file order. records: how the scales, or the bytes of a lossless tensor, are split."""

    planes: tuple[Plane, ...]
    chunks: tuple[tuple[EncodedChunk, ...], ...]
    records: Records

    @property
    def nbytes(self) -> int:
        """Of payloads, index and tables, about: tables that tensors share count for each."""
        return sum(map(_cost, self.chunks))

    def all_chunks(self) -> list[EncodedChunk]:
        """Those of all planes, in file order."""
        return [chunk for chunks in self.chunks for chunk in chunks]


def grid_planes(
    shape: tuple[int, ...], args: QuantizationArgs, scale: Records, row_class: Classes, column_class: Classes
) -> tuple[Plane, ...]:
    """The planes of a quantized tensor: codes, zero points (asymmetric grids), one for each field of `scale`."""
    rows, columns = matrix_shape(shape)
    scales = prod(args.scale_shape(shape))
    codes = Plane(args.num_bits, tuple(run_sizes(rows, columns, row_class, column_class)))
    zero_points = () if args.symmetric else (_one_run(args.num_bits, scales),)
    return (codes, *zero_points, *byte_planes(scales * scale.nbytes, scale))


@lru_cache(256)
def byte_planes(nbytes: int, records: Records, palette: int = 0, group: int = 0) -> tuple[Plane, ...]:
    """The planes of `nbytes` bytes, a whole number of records; palette: how many values there are, if they are listed; group:
    how many elements share a scale, if the values have scales.
    """
    if palette:
        elements = nbytes // records.nbytes
        codes = _one_run(palette_bits(palette), elements)
        if group:
            return codes, _one_run(8, palette * 4), *byte_planes(-(-elements // group) * 4, SCALES)
        return codes, _one_run(8, palette * records.nbytes)
    counts = records.codes(nbytes)
    return tuple(_one_run(bits, count) for (bits, _), count in zip(records.fields, counts, strict=True))


def palette_bits(palette: int) -> int:
    """Bits of a number below `palette`, at least 1."""
    return max(1, (palette - 1).bit_length())


def encode_tensor(
    tensor: QuantizedTensor, coder: str, chunk_codes: int, *, run: RunMap = map, verify: bool = True
) -> EncodedTensor:
    """Entropy-code a tensor with `coder` ("ans", "huffman" or "raw") in chunks of about `chunk_codes` codes.

    `run` maps over chunks. With `verify` every chunk is decoded again and compared; a difference raises
    VerificationError. Raises InvalidArgumentError for codes or zero points that are not in the grid, an unknown coder, and
    for `chunk_codes` that are not 1 to 2^23 (a chunk may hold 1.5 times as many, and at most 2^24).
    """
    coding = _Coding(coder, chunk_codes, run, verify)
    _check_codes("packed", tensor.packed, prod(tensor.shape), tensor.args)
    _, scale_records, scale_chunks = _encode_scale(tensor, coding)
    planes = grid_planes(tensor.shape, tensor.args, scale_records, tensor.row_class, tensor.column_class)
    chunks = [coding.plane(planes[0], _in_code_order(tensor))]
    if tensor.zero_point is not None:
        packed = pack_codes(tensor.zero_point, tensor.args.storage_bits)
        _check_codes("zero_point", packed, tensor.zero_point.size, tensor.args)
        chunks.append(coding.plane(planes[1], packed))
    return EncodedTensor(planes, (*chunks, *scale_chunks), scale_records)


def encode_bytes(
    data: NDArray[np.uint8],
    records: Records,
    coders: Sequence[str],
    chunk_codes: int,
    *,
    base: NDArray[np.uint8] | None = None,
    run: RunMap = map,
    verify: bool = True,
) -> EncodedTensor:
    """Entropy-code the bytes of a tensor (uint8 `[n]`, a whole number of records) without loss; see `encode_tensor`.

    coders: for each field. base: as many bytes of another tensor. Each chunk then holds the codes themselves, or their XOR with or difference to
    those of the base, whichever takes the fewest bytes.
    """
    codings = [_Coding(coder, chunk_codes, run, verify, FAST_EXTRA) for coder in coders]
    planes = byte_planes(data.size, records)
    if base is None:
        return EncodedTensor(planes, _encode_planes(data, records, planes, codings), records)
    parts = zip(codings, planes, split(data, records), strict=True)
    if base.size != data.size:
        raise InvalidArgumentError(f"the base has {base.size} bytes, the tensor {data.size}")
    chunks = tuple(
        coding.plane_against(plane, part, theirs)
        for (coding, plane, part), theirs in zip(parts, split(base, records), strict=True)
    )
    return EncodedTensor(planes, chunks, records)


def _encode_planes(
    data: NDArray[np.uint8], records: Records, planes: Sequence[Plane], codings: Sequence[_Coding]
) -> tuple[tuple[EncodedChunk, ...], ...]:
    """What is not coded is kept as it is split off; all else passes through memory that is used again and again."""
    if is_plain(records):
        return (codings[0].plane(planes[0], data.reshape(-1)),)
    sizes = records.plane_nbytes(data.size)
    coded = [0 if coding.coder == "raw" else size for coding, size in zip(codings, sizes, strict=True)]
    places = [-(-size // ALIGNMENT) * ALIGNMENT for size in coded]
    memory = workspace(sum(places) + max(coded))
    room, parts = memory[sum(places) :], []
    for size, nbytes, place in zip(coded, sizes, places, strict=True):
        parts.append(memory[:size] if size else empty(nbytes))
        memory = memory[place:]
    for _ in codings[0].run(_call, split_jobs(data, records, parts)):
        pass
    chunks: list[tuple[EncodedChunk, ...]] = []
    for coding, plane, part, size in zip(codings, planes, parts, coded, strict=True):
        chunks.append(_kept(coding.plane(plane, part, room[:size])) if size else coding.plane(plane, part))
    return tuple(chunks)


def _kept(chunks: Sequence[EncodedChunk]) -> tuple[EncodedChunk, ...]:
    """Chunks, no deltas, with payloads in memory of their own."""
    memory, begin = empty(sum([len(chunk.payload) for chunk in chunks])).data, 0
    kept: list[EncodedChunk] = []
    for chunk in chunks:
        payload = memory[begin : begin + len(chunk.payload)]
        payload[:] = chunk.payload
        made = chunk.codes, chunk.coder, chunk.streams, chunk.table, payload, chunk.checksum
        kept.append(EncodedChunk.made(*made))
        begin += len(payload)
    return tuple(kept)


def encode_palette(
    indices: NDArray[np.uint8],
    nbytes: int,
    palette: NDArray[np.uint8],
    coder: str,
    chunk_codes: int,
    *,
    run: RunMap = map,
    verify: bool = True,
) -> EncodedTensor:
    """Entropy-code a tensor of `nbytes` bytes that has few values: the packed numbers of its values, and these.

    palette: uint8 `[values, bytes of one]`. See `encode_tensor` for the rest.
    """
    coding = _Coding(coder, chunk_codes, run, verify)
    records = Records(((8, palette.shape[1]),))
    planes = byte_planes(nbytes, records, len(palette))
    chunks = coding.plane(planes[0], indices), coding.plane(planes[1], np.ascontiguousarray(palette).reshape(-1))
    return EncodedTensor(planes, chunks, records)


def encode_scaled(
    packed: Sequence[NDArray[np.uint8]],
    nbytes: int,
    palette: ScaledPalette,
    coder: str,
    chunk_codes: int,
    *,
    run: RunMap = map,
    verify: bool = True,
) -> EncodedTensor:
    """Entropy-code a tensor of `nbytes` bytes that has few values but for scales: its planes, as `scaled_palette.split` gives
    them. See `encode_tensor` for the rest.
    """
    coding = _Coding(coder, chunk_codes, run, verify)
    planes = byte_planes(nbytes, palette.records, len(palette.values), palette.group)
    chunks = tuple(coding.plane(plane, part) for plane, part in zip(planes, packed, strict=True))
    return EncodedTensor(planes, chunks, palette.records)


@dataclass(frozen=True)
class _Coding:
    """How planes are coded."""

    coder: str
    chunk_codes: int
    run: RunMap
    verify: bool
    extra: float = EXTRA
    pairs: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_codes <= MAX_CHUNK_CODES // 2:
            raise InvalidArgumentError(f"chunk_codes is {self.chunk_codes}; it may be 1 to {MAX_CHUNK_CODES // 2}")

    def plane(
        self, plane: Plane, packed: NDArray[np.uint8], room: NDArray[np.uint8] | None = None
    ) -> tuple[EncodedChunk, ...]:
        """packed: its runs one after another, each from a byte of its own on. room: see `encode_run`."""
        chunks: list[EncodedChunk] = []
        at = 0
        for count in plane.runs:
            nbytes = packed_nbytes(count, plane.width)
            part = packed[at : at + nbytes]
            chunks += encode_run(
                part, count, plane.width, self.coder, self.chunk_codes, self.run, self.verify, self.extra, self.pairs,
                None if room is None else room[at : at + nbytes],
            )  # fmt: skip
            at += nbytes
        return tuple(chunks)

    def plane_against(
        self, plane: Plane, packed: NDArray[np.uint8], base: NDArray[np.uint8]
    ) -> tuple[EncodedChunk, ...]:
        """Each chunk in the form that is smallest. The forms of a chunk hold equally many codes."""
        forms = [self.plane(plane, packed)]
        for delta in (XOR, DIFFERENCE):
            chunks = self.plane(plane, differ(packed, base, plane.bits, plane.count, delta))
            forms.append(tuple(replace(chunk, delta=delta) for chunk in chunks))
        return tuple(min(chunks, key=lambda chunk: len(chunk.payload)) for chunks in zip(*forms, strict=True))


def _encode_scale(
    tensor: QuantizedTensor, coding: _Coding
) -> tuple[tuple[Plane, ...], Records, tuple[tuple[EncodedChunk, ...], ...]]:
    """The scales as they are or split, whichever takes less room with index and tables."""
    data = np.ascontiguousarray(tensor.scale).reshape(-1).view(np.uint8)
    best: tuple[tuple[Plane, ...], Records, tuple[tuple[EncodedChunk, ...], ...]] | None = None
    for records in (PLAIN[tensor.scale.dtype.itemsize], SPLIT[tensor.args.scale_dtype]):
        planes = byte_planes(data.size, records)
        # Whole bytes are the low bits of mantissas: noise, which nothing makes smaller. Coders of bytes are not tried: what
        # they could save on a few scales is not worth waiting for their compilation.
        codings = [replace(coding, coder="raw" if plane.bits == 8 else coding.coder, pairs=False) for plane in planes]
        chunks = tuple(
            each.plane(plane, part) for each, plane, part in zip(codings, planes, split(data, records), strict=True)
        )
        if best is None or sum(map(_cost, chunks)) < sum(map(_cost, best[2])):
            best = planes, records, chunks
    assert best is not None
    return best


def _cost(chunks: Sequence[EncodedChunk]) -> int:
    tables = {(chunk.coder, bytes(chunk.table)) for chunk in chunks}
    payloads = sum(-(-len(chunk.payload) // 16) * 16 + CHUNK_DTYPE.itemsize for chunk in chunks)
    return payloads + sum(len(table) for _, table in tables)


def _check_codes(what: str, packed: NDArray[np.uint8], count: int, args: QuantizationArgs) -> None:
    """Refuse what a reader would take for corruption: QuantizedTensor itself checks shapes only."""
    from .code_range import range_problem

    problem = range_problem(packed, count, args)
    if problem:
        raise InvalidArgumentError(f"{what} of a quantized tensor: {problem}")


def _in_code_order(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    rows, columns = matrix_shape(tensor.shape)
    order = code_order(rows, columns, tensor.row_class, tensor.column_class)
    if order is None:
        return tensor.packed
    width = tensor.args.storage_bits
    codes = unpack_codes(tensor.packed, rows * columns, width)[order]
    runs: list[NDArray[Any]] = []
    start = 0
    for count in run_sizes(rows, columns, tensor.row_class, tensor.column_class):
        runs.append(pack_codes(codes[start : start + count], width))
        start += count
    return np.concatenate(runs)


def _one_run(bits: int, count: int) -> Plane:
    return Plane(bits, (count,) if count else ())


def _call(job: Callable[[], None]) -> None:
    job()
