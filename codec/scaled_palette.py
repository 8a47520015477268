"""Floats that are few values times a scale for each group, such as int4 weights turned back into FP16 (SPEC section 3).

That they are is never assumed: the products are compared with what is there, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import records
from .buffers import read_only
from .dequantize import float_dtype
from .errors import CorruptionError, InvalidArgumentError
from .model import UNITS, log_units
from .packing import pack_codes, unpack_codes
from .palette import MAX_VALUES, index_width
from .records import Records
from .tensor import packed_nbytes

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SCALES = Records(((8, 1),) * 4, rotate=True)
"""How scales are split: their low bytes are zeros where they were made of something smaller."""
MIN_GROUP, MAX_GROUP = 16, (1 << 31) - 1
MAX_ROW = 1 << 20  # elements; longer ones are no groups: that takes memory
GROUPS = (1024, 512, 256, 128, 64, 32, 16)  # that a row may be cut into
_PRECISION = {"F32": (24, -126), "F16": (11, -14), "BF16": (8, -126)}  # bits of the mantissa, least exponent
_NAN = {"F32": 0x7FC00000, "F16": 0x7E00, "BF16": 0x7FC0}  # no two machines agree on others
_SLAB = 1 << 16
_SAMPLES, _SAMPLE = 4, 1 << 13  # groups, elements that are looked at, at least
_SCALE_BITS, _MORE_NBYTES = 20, 1 << 9  # of a scale when coded, of tables, index and header, about
_WINDOW, _WINDOWS, _DISTINCT = 32, 64, 29


@dataclass(frozen=True, eq=False)
class ScaledPalette:
    """What a tensor is made of. values: float32 `[p]`, ascending. group: elements in a row that share a scale. dtype: in
    safetensors' names. nbytes: estimated, when coded.
    """

    values: NDArray[np.float32]
    group: int
    dtype: str
    nbytes: int

    @property
    def records(self) -> Records:
        """Elements as records that are not split."""
        return Records(((8, float_dtype(DTYPES[self.dtype]).itemsize),))


def find(data: NDArray[np.uint8], dtype: str, columns: int) -> ScaledPalette | None:
    """The values and the size of the groups of a tensor with rows of `columns` elements; None if it is not made so.

    data: its bytes. Ordinary floats are told from a few thousand of them.
    """
    if dtype not in DTYPES or columns < MIN_GROUP or not _repeats(data.view(float_dtype(DTYPES[dtype]))):
        return None
    group = _best_group(data, dtype, columns)
    return fit(data, dtype, group) if group else None


def fit(data: NDArray[np.uint8], dtype: str, group: int) -> ScaledPalette | None:
    """As `find`, with a scale for every `group` elements."""
    from .kernels.scaled_palette import KEYS

    counts = np.zeros(KEYS, np.int64)
    if data.size == 0 or any(fitted is None for fitted in _slabs(data, dtype, group, counts)):
        return None
    keys = np.flatnonzero(counts)
    if keys.size > MAX_VALUES:
        return None
    return ScaledPalette(_values()[keys], group, dtype, _MORE_NBYTES + _bits(counts, group) // 8)


def split(data: NDArray[np.uint8], palette: ScaledPalette) -> list[NDArray[np.uint8]]:
    """The packed planes of a tensor's bytes: the numbers of its values, `index_width` bits each; the values; the scales.

    Raises InvalidArgumentError if the tensor is not made of these values.
    """
    from .kernels.scaled_palette import KEYS

    dtype = palette.dtype
    size, group = palette.records.nbytes, palette.group
    width, count = index_width(len(palette.values)), data.size // size
    packed, scales = np.empty(packed_nbytes(count, width), np.uint8), np.empty(-(-count // group), np.float32)
    known = np.isin(_values().view(np.uint32), palette.values.view(np.uint32))  # by their bits: 0 is not -0
    places, counts = (np.cumsum(known) - 1).astype(np.uint8), np.zeros(KEYS, np.int64)
    # Slabs may end inside of bytes: the last codes of one are packed with those of the next.
    rest, at, done = np.empty(0, np.uint8), 0, 0
    for fitted in _slabs(data, dtype, group, counts):
        if fitted is None or counts[~known].any():
            raise InvalidArgumentError("an element is not in the palette")
        keys, some = fitted
        scales[done : done + some.size], done = some, done + some.size
        codes = np.concatenate([rest, places[keys]])
        ready = pack_codes(codes[: codes.size // 8 * 8], width)
        packed[at : at + ready.size], at, rest = ready, at + ready.size, codes[codes.size // 8 * 8 :]
    packed[at:] = pack_codes(rest, width)
    scale_bytes = scales.astype("<f4").view(np.uint8)
    return [packed, palette.values.astype("<f4").view(np.uint8), *records.split(scale_bytes, SCALES)]


def restore_jobs(
    packed: NDArray[np.uint8],
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    dtype: str,
    group: int,
    out: NDArray[np.uint8],
    first: int,
    where: str,
) -> list[Callable[[], None]]:
    """Independent calls that together fill `out` (uint8 `[n]`) with the elements of packed indices.

    first: number of the element with which `out` begins; `packed` begins with its index, `scales` with that of its group. where: what messages begin with. The calls raise CorruptionError for an index beyond the values.
    """
    size = float_dtype(DTYPES[dtype]).itemsize
    source, count = read_only(packed), out.size // size
    jobs: list[Callable[[], None]] = []
    for start in range(0, count, _SLAB):
        stop = min(count, start + _SLAB)
        number, inside = divmod(first + start, group)
        own = scales[number - first // group : -(-(first + stop) // group) - first // group]
        target = out[start * size : stop * size]
        jobs.append(partial(_restore, source, start, values, own, dtype, group, inside, target, where))
    return jobs


def _restore(
    packed: NDArray[np.uint8],
    start: int,
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    dtype: str,
    group: int,
    inside: int,
    out: NDArray[np.uint8],
    where: str,
) -> None:
    """Fill `out` from code `start` of `packed` on. inside: how many elements of the first group come before."""
    from .kernels.scaled_palette import restore

    element = float_dtype(DTYPES[dtype])
    codes = unpack_codes(packed, out.size // element.itemsize, index_width(len(values)), start)
    if codes.max() >= len(values):
        raise CorruptionError(f"{where}: a code is larger than the palette")
    with np.errstate(all="ignore"):
        products = np.multiply(scales[:, None], values)
        tables = products.astype(element)
    if (missing := np.isnan(products)).any():
        tables.view(np.dtype(f"<u{element.itemsize}"))[missing] = _NAN[dtype]
    restore(codes, read_only(tables.view(np.uint8)), len(values), element.itemsize, group, inside, out)


def _slabs(
    data: NDArray[np.uint8], dtype: str, group: int, counts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.float32]] | None]:
    """Keys of the values, and scales, of some groups at a time; None for those that have no scale."""
    step = max(1, _SLAB // group) * group * float_dtype(DTYPES[dtype]).itemsize
    for start in range(0, data.size, step):
        yield _fit(data[start : start + step], dtype, group, counts)


def _fit(
    data: NDArray[np.uint8], dtype: str, group: int, counts: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], NDArray[np.float32]] | None:
    from .kernels import scaled_palette as kernels

    with np.errstate(invalid="ignore"):  # NaN of some kinds
        floats = data.view(float_dtype(DTYPES[dtype])).astype(np.float32)
    keys, scales = np.empty(floats.size, np.uint16), np.empty(-(-floats.size // group), np.float32)
    fits = kernels.fit(floats.view(np.uint32), group, *_PRECISION[dtype], scales, keys, counts)
    return (keys, scales) if fits else None


@cache
def _values() -> NDArray[np.float32]:
    """By key."""
    from .kernels.scaled_palette import LIMIT

    whole = np.arange(LIMIT + 1, dtype=np.float32)
    return np.concatenate([-whole[::-1], whole])


def _repeats(floats: NDArray[Any]) -> bool:
    """Whether floats that are near each other are equal, but for the sign, more often than chance has it."""
    count = floats.size // _WINDOW
    if not count:
        return False
    picked = np.linspace(0, count - 1, min(_WINDOWS, count)).astype(np.int64)
    with np.errstate(invalid="ignore"):
        windows = np.abs(floats[: count * _WINDOW].reshape(count, _WINDOW)[picked].astype(np.float32))
    ordered = np.sort(windows, axis=1)
    distinct = 1 + np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1)
    return bool(distinct.mean() <= _DISTINCT)


def _best_group(data: NDArray[np.uint8], dtype: str, columns: int) -> int:
    """The size of groups that promises the fewest bits, from a sample; 0 if none fits."""
    from .kernels.scaled_palette import KEYS

    sizes = (size for size in GROUPS if size < columns and columns % size == 0)
    best, least = 0, 0
    for group in (columns, *sizes) if columns <= MAX_ROW else sizes:
        nbytes, counts = group * float_dtype(DTYPES[dtype]).itemsize, np.zeros(KEYS, np.int64)
        groups = data.size // nbytes
        wanted = min(groups, max(_SAMPLES, _SAMPLE // group))
        picked = {groups * i // wanted for i in range(wanted)}
        if picked and all(_fit(data[i * nbytes : (i + 1) * nbytes], dtype, group, counts) for i in picked):
            price = _bits(counts, group) * (1 << 20) // int(counts.sum())
            if not best or price < least:
                best, least = group, price
    return best


def _bits(counts: NDArray[np.int64], group: int) -> int:
    """What the codes and scales of so many elements take, about: the same number on every machine."""
    total = int(counts.sum())
    return (_times_log(total) - sum(map(_times_log, counts.tolist()))) // UNITS + total * _SCALE_BITS // group


def _times_log(count: int) -> int:
    """n log2(n) in units of 1 / UNITS bit, from the first 12 bits of n."""
    shift = max(count.bit_length() - 12, 0)
    return count * (int(log_units()[count >> shift]) + shift * UNITS)
