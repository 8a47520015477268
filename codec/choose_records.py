"""How to split a tensor that nobody has quantized here: the records, or the palette, that promise the smallest planes.

Everything is estimated from counts of bytes in a sample: every field that lies within a byte follows from them, so no
candidate but those of foreign layouts has to be tried. A plane that is coded has a price above its size, for it has to be
decoded: what saves less is stored as it is, which is as fast as copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .ans import SMALL_CODES
from .buffers import read_only
from .chunks import CHUNK_CODES
from .histogram import byte_counts, nibble_counts
from .model import log_units
from .palette import MAX_VALUES, find_palette, index_width, indices
from .records import BYTES, Records, split

SAMPLE_NBYTES, SAMPLE_LESS = 1 << 17, 1 << 16  # the second of floats of 1 or 2 bytes: they have fewer lanes
PIECES = 8  # of a sample, evenly spaced
ENTRY_NBYTES = 128  # of a coded tensor: what its description is longer than that of one stored as it is
MIN_NBYTES = 1 << 9  # smaller tensors are not looked at: what they could save the header takes
ALIKE = 0.002  # share that apart they may be cheaper: together they are less work

FLOATS = {
    "F64": 8, "C64": 4, "F32": 4, "F16": 2, "BF16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip
INTEGERS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
# Codes of other than 1, 2, 4 or 8 bits, as compressed-tensors and MLX pack them: one after the other, low bits first.
DENSE = tuple(Records((field,)) for field in ((3, 32), (5, 32), (6, 16), (7, 32)))
MAY_BE_DENSE = ("I32", "U32", "U8")
SIX_BIT_FLOATS = ("F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class Choice:
    """How to split a tensor, and what that promises.

    coders: for each plane `ans`, or `raw` where coding gains too little for the time it takes. palette: the values, if
    the tensor has few: uint8 `[p, element]`; the planes are then its indices and the values themselves, and `records`
    one field of an element's bytes. nbytes: estimated size with tables and chunk rows; that of the data if `coders` is
    just `raw`: then the tensor is best stored as it is.
    """

    records: Records
    coders: tuple[str, ...]
    palette: NDArray[np.uint8] | None
    nbytes: int


class _Cost(NamedTuple):
    """Of a plane, in bytes of the whole tensor. price: nbytes and what decoding is worth."""

    price: float
    nbytes: float
    coder: str


class _Field(NamedTuple):
    """One or more lanes, or part of one. number: of lanes. counts: of the bytes of these lanes (`[pieces, 256]`); None for other parts."""

    bits: int
    number: int
    cost: _Cost
    counts: NDArray[np.int64] | None


def choose(
    data: NDArray[np.uint8], dtype: str, hints: Sequence[Records] = (), *, sample_nbytes: int | None = None
) -> Choice:
    """The best way to split the bytes of a tensor (uint8 `[n]`, C-contiguous), as far as a sample of them tells.

    dtype: in safetensors' names, or any other. hints: records that its layout suggests; those that do not fit the size
    are ignored. The sample has `sample_nbytes` bytes, by default 128 KB or half of that, in 8 pieces; smaller tensors are
    looked at as a whole.
    """
    raw = Choice(BYTES, ("raw",), None, data.size)
    if data.size < MIN_NBYTES:
        return raw
    data = read_only(data)
    size = FLOATS.get(dtype) or INTEGERS.get(dtype) or 1
    size = size if data.size % size == 0 else 1
    sample_nbytes = sample_nbytes or (SAMPLE_LESS if size <= 2 and dtype in FLOATS else SAMPLE_NBYTES)
    options = [_by_lanes(data, _records(((8, 1),) * size, dtype in FLOATS), sample_nbytes)]
    values = find_palette(data, size, max(1, min(MAX_VALUES if size > 1 else 16, data.size // (4 * size))))
    if values is not None:
        options.append(_by_palette(data, values, sample_nbytes))
    tried = list(hints)
    if dtype in MAY_BE_DENSE:
        tried += DENSE
    elif dtype in SIX_BIT_FLOATS:
        tried.append(Records(((6, 4),)))
    for records in dict.fromkeys(tried):
        if data.size % records.span == 0:
            options.append(_by_records(data, records, sample_nbytes))
    price, best = min(options, key=lambda option: option[0])
    return best if price < data.size and best.nbytes < data.size else raw


def _by_palette(data: NDArray[np.uint8], values: NDArray[np.uint8], sample_nbytes: int) -> tuple[float, Choice]:
    size, width = values.shape[1], index_width(len(values))
    from .kernels.plane_costs import ROW_NBYTES

    pieces = _sample(data, size, sample_nbytes)
    counts = np.array([_counts(indices(piece, values), width) for piece in pieces])
    cost = _plane_cost(counts, data.size // size, width, sum(piece.size for piece in pieces) < data.size)
    more = values.size + ROW_NBYTES + ENTRY_NBYTES
    choice = Choice(Records(((8, size),)), (cost.coder, "raw"), values, round(cost.nbytes + more))
    return cost.price + more, choice


def _by_records(data: NDArray[np.uint8], records: Records, sample_nbytes: int) -> tuple[float, Choice]:
    """Price and choice of given records."""
    pieces = _sample(data, records.span, sample_nbytes)
    planes = [split(piece, records) for piece in pieces]
    sampled = sum(piece.size for piece in pieces) < data.size
    costs: list[_Cost] = []
    for f, (codes, width) in enumerate(zip(records.codes(data.size), records.widths, strict=True)):
        costs.append(_plane_cost(np.array([_counts(piece[f], width) for piece in planes]), codes, width, sampled))
        if width < 8:  # the coder takes pairs of nibbles where they are cheaper
            pairs = _plane_cost(np.array([byte_counts(piece[f]) for piece in planes]), codes * width // 8, 8, sampled)
            costs[f] = min(costs[f], pairs, key=lambda cost: cost.price)
    return _choice(records, costs)


def _by_lanes(data: NDArray[np.uint8], lanes: Records, sample_nbytes: int) -> tuple[float, Choice]:
    """Price and choice of the best fields that keep to the bytes of a record, each a plane of `lanes`."""
    from .kernels.plane_costs import count_lanes, cut_lanes

    size, (places, nbytes) = lanes.nbytes, _starts(data.size, lanes.span, sample_nbytes)
    sampled, codes = nbytes < data.size, data.size // size
    counts = np.zeros((size, len(places), 256), np.int64)
    count_lanes(data, size, lanes.rotate, places, counts)
    lows, rows = np.empty(size, np.int64), np.empty((size, 2, 3), np.float64)
    cut_lanes(counts, codes, sampled, CHUNK_CODES, SMALL_CODES, log_units(), lows, rows)
    fields: list[_Field] = []
    for low, costs, own in zip(lows.tolist(), rows.tolist(), counts, strict=True):
        for field in _cut(low, costs, own):
            merged = _merge(fields[-1], field, codes, sampled) if fields else None
            fields[-1:] = [merged] if merged else [*fields[-1:], field]
    records = _records(tuple((field.bits, field.number) for field in fields), lanes.rotate)
    if len(fields) == 1:  # all bytes alike: their order does not matter
        records = _records(((8, 1),) if fields[0].bits == 8 else ((4, 2),), False)
    return _choice(records, [field.cost for field in fields])


@lru_cache(64)
def _records(fields: tuple[tuple[int, int], ...], rotate: bool) -> Records:
    """The same object for all tensors: what hangs on it is found out once."""
    return Records(fields, rotate)


def _choice(records: Records, costs: list[_Cost]) -> tuple[float, Choice]:
    price, nbytes = (ENTRY_NBYTES + sum(values) for values in zip(*((c.price, c.nbytes) for c in costs), strict=True))
    return price, Choice(records, tuple(cost.coder for cost in costs), None, round(nbytes))


def _cut(low: int, rows: list[list[float]], counts: NDArray[np.int64]) -> list[_Field]:
    """The cheapest fields of a lane: all of it as bytes or pairs of nibbles, or cut in two. low, rows: see the kernel.

    counts: of its bytes in each piece, int64 `[pieces, 256]`.
    """
    if low in (0, 8):
        return [_Field(4, 2, _cost(rows[0]), counts) if low else _Field(8, 1, _cost(rows[0]), counts)]
    return [_Field(low, 1, _cost(rows[0]), None), _Field(8 - low, 1, _cost(rows[1]), None)]


def _merge(one: _Field, two: _Field, codes: int, sampled: bool) -> _Field | None:
    """Neighbouring lanes as one field, if that is not worse: their bytes then share chunks and tables.

    Not if just one is worth coding: together they have no less information.
    """
    if one.counts is None or two.counts is None or one.bits != two.bits or one.cost.coder != two.cost.coder:
        return None
    count = one.number + two.number
    counts = one.counts + two.counts
    if one.bits == 8:
        cost = _plane_cost(counts, codes * count, 8, sampled)
    else:
        table = counts.reshape(-1, 16, 16)
        cost = _plane_cost(table.sum(axis=1) + table.sum(axis=2), codes * count, 4, sampled)
    if cost.price > (one.cost.price + two.cost.price) * (1 + ALIKE):
        return None
    return _Field(one.bits, count, cost, counts)


def _plane_cost(counts: NDArray[np.int64], codes: int, width: int, sampled: bool) -> _Cost:
    """What a plane of `codes` codes costs, packed by `width` bits. counts: see the kernel."""
    from .kernels.plane_costs import plane_cost

    row = np.empty(3, np.float64)
    plane_cost(counts, codes, width, sampled, CHUNK_CODES, SMALL_CODES, log_units(), row)
    return _cost(row.tolist())


def _cost(row: list[float]) -> _Cost:
    return _Cost(row[0], row[1], "ans" if row[2] else "raw")


def _counts(packed: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    return byte_counts(packed) if width == 8 else nibble_counts(packed)


def _sample(data: NDArray[np.uint8], span: int, nbytes: int) -> list[NDArray[np.uint8]]:
    return [data[start:stop] for start, stop in _places(data.size, span, nbytes)]


@lru_cache(64)
def _starts(size: int, span: int, nbytes: int) -> tuple[NDArray[np.int64], int]:
    """The same, int64 `[pieces, 2]`, and how many bytes they have: models have few shapes."""
    places = _places(size, span, nbytes)
    starts = np.array(places, np.int64)
    starts.flags.writeable = False
    return starts, sum(stop - start for start, stop in places)


def _places(size: int, span: int, nbytes: int) -> list[tuple[int, int]]:
    """Pieces of whole spans, evenly spaced from the first to the last: where they begin and end."""
    spans, length = size // span, max(1, nbytes // PIECES // span)
    if size <= nbytes or spans <= length:
        return [(0, size)]
    pieces = min(PIECES, spans // length)
    starts = [(spans - length) * i // max(1, pieces - 1) * span for i in range(pieces)]
    return [(start, start + length * span) for start in starts]
