"""The bytes of any tensor as planes of small integers, and back: what belongs together is coded together (SPEC section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from .buffers import read_only
from .errors import InvalidArgumentError
from .gather import Walk, check_walks, gathered_fields, run_gathered
from .packing import pack_codes, unpack_codes
from .small_records import ROTATABLE, is_small, join_words, split_words
from .tensor import packed_nbytes

JOB_NBYTES = 1 << 21  # of the tensor, in each of the independent calls
MAX_FIELDS = 64
MAX_RECORD_NBYTES = 1 << 16
MAX_LANES = 1 << 24


@dataclass(frozen=True)
class Records:
    """How the bytes of a tensor are split: as records, each an integer of `8 * nbytes` bits, little-endian.

    fields: (bits, count) from the lowest bits of a record up: `count` codes of `bits` bits, 1 to 8. Field f of all records
    makes plane f. rotate: records, of 1, 2, 4 or 8 bytes, are rotated left by one bit first: the sign of a float becomes its
    lowest bit. interleave: (unit, lanes): `lanes` records lie in the tensor as their first units of `unit` bytes, then
    their second units, and so on. gather: for each field where the bits of its codes are, if they do not follow one another;
    then there is no rotate or interleave.
    Raises InvalidArgumentError if that makes no records.

    >>> Records(((8, 1), (8, 1)), rotate=True).nbytes
    2
    """

    fields: tuple[tuple[int, int], ...]
    rotate: bool = False
    interleave: tuple[int, int] | None = None
    gather: tuple[Walk, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.fields) <= MAX_FIELDS:
            raise InvalidArgumentError(f"records have 1 to {MAX_FIELDS} fields, got {len(self.fields)}")
        for bits, count in self.fields:
            if not (1 <= bits <= 8 and 1 <= count <= 8 * MAX_RECORD_NBYTES):
                raise InvalidArgumentError(
                    f"a field has codes of 1 to 8 bits, at least one and at most {8 * MAX_RECORD_NBYTES}"
                )
        total = sum(bits * count for bits, count in self.fields)
        if total % 8 or total > 8 * MAX_RECORD_NBYTES:
            raise InvalidArgumentError(f"a record has 1 to {MAX_RECORD_NBYTES} whole bytes, got {total} bits")
        if self.rotate and self.nbytes not in ROTATABLE:
            raise InvalidArgumentError(f"records of {self.nbytes} bytes cannot be rotated, only those of 1, 2, 4 or 8")
        if self.interleave is not None:
            unit, lanes = self.interleave
            if not (1 <= unit <= self.nbytes and 1 <= lanes <= MAX_LANES) or self.nbytes % unit:
                raise InvalidArgumentError(f"records of {self.nbytes} bytes cannot be interleaved so")
        if self.gather is not None:
            if self.rotate or self.interleave is not None:
                raise InvalidArgumentError("records that are gathered cannot be rotated or interleaved")
            check_walks(self.gather, self.fields, self.nbytes)

    @cached_property
    def nbytes(self) -> int:
        """Size of a record."""
        return sum(bits * count for bits, count in self.fields) // 8

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Bits per code in each packed plane: the field's bits rounded up to 1, 2, 4 or 8."""
        return tuple(1 << (bits - 1).bit_length() for bits, _ in self.fields)

    @cached_property
    def are_words(self) -> bool:
        """Whether they are numbers of 1, 2, 4 or 8 bytes whose fields are one code each, or whole bytes."""
        offsets = accumulate((bits * count for bits, count in self.fields), initial=0)
        return (
            self.nbytes in ROTATABLE
            and self.interleave is None
            and self.gather is None
            and all(
                count == 1 or (bits == 8 and offset % 8 == 0)
                for (bits, count), offset in zip(self.fields, offsets, strict=False)
            )
        )

    @property
    def span(self) -> int:
        """Bytes of which a tensor must be a multiple."""
        return self.nbytes * (self.interleave[1] if self.interleave else 1)

    def codes(self, nbytes: int) -> tuple[int, ...]:
        """Number of codes in each plane of a tensor of `nbytes` bytes. Raises InvalidArgumentError if it has no such records."""
        if nbytes % self.span:
            raise InvalidArgumentError(f"{nbytes} bytes are no whole number of records of {self.span} bytes")
        return tuple(nbytes // self.nbytes * count for _, count in self.fields)

    def plane_nbytes(self, nbytes: int) -> tuple[int, ...]:
        """Size of each packed plane."""
        return tuple(map(packed_nbytes, self.codes(nbytes), self.widths))


BYTES = Records(((8, 1),))


def gathered(*walks: Walk) -> Records:
    """Records whose fields are the codes of these walks."""
    return Records(gathered_fields(walks), gather=walks)


def split(data: NDArray[np.uint8], records: Records) -> list[NDArray[np.uint8]]:
    """The packed planes of the bytes of a tensor: uint8 `[packed_nbytes(codes, width)]` each, low bits first.

    data: uint8 `[n]`, C-contiguous. If the planes are one, and the data itself, it is returned instead of a copy.
    Raises InvalidArgumentError if `data` is no whole number of records.

    >>> [plane.tolist() for plane in split(np.array([0x80, 0x3F], np.uint8), Records(((8, 1), (4, 1), (4, 1)), rotate=True))]
    [[0], [15], [7]]
    """
    sizes = records.plane_nbytes(data.size)
    if is_plain(records):
        return [data.reshape(-1)]
    planes = [np.empty(size, np.uint8) for size in sizes]
    for job in split_jobs(data, records, planes):
        job()
    return planes


def split_jobs(
    data: NDArray[np.uint8], records: Records, planes: Sequence[NDArray[np.uint8]]
) -> list[Callable[[], None]]:
    """Independent calls that together fill `planes`, which have the sizes that `split` gives them."""
    _check_planes(planes, records, data.size)
    if any(not plane.flags.writeable for plane in planes):
        raise InvalidArgumentError("the planes to fill must be writable")
    source = read_only(data)
    if is_plain(records):
        return [
            partial(np.copyto, planes[0][a : a + JOB_NBYTES], source[a : a + JOB_NBYTES])
            for a in range(0, source.size, JOB_NBYTES)
        ]
    if _is_small(records, source.size):
        return [partial(split_words, source, records.fields, records.rotate, planes)]
    kernel = _kernel("split", planes, records)
    return [partial(kernel, source, *place) for place in _places(source.size, records)]


def join(planes: Sequence[NDArray[np.uint8]], records: Records, out: NDArray[np.uint8], first: int = 0) -> None:
    """Fill `out` (uint8 `[n]`, C-contiguous, a whole number of records) from packed planes: undoes `split`.

    first: number of the record with which `out` and the planes begin, for a part of a tensor. A plane then begins with the
    byte in which the first code of this record lies, not always in its lowest bits.
    Codes of `bits` bits and more make other codes wrong, too: who reads them must have checked them.
    Raises InvalidArgumentError for arrays of other sizes.
    """
    starts = [
        first * count * width % 8 // width for (_, count), width in zip(records.fields, records.widths, strict=True)
    ]
    if any(starts):
        planes = [
            pack_codes(unpack_codes(plane, codes, width, start), width) if start else plane
            for plane, codes, width, start in zip(planes, records.codes(out.size), records.widths, starts, strict=True)
        ]
    for job in join_jobs(planes, records, out):
        job()


def join_jobs(
    planes: Sequence[NDArray[np.uint8]], records: Records, out: NDArray[np.uint8]
) -> list[Callable[[], None]]:
    """Independent calls that together do `join`, about JOB_NBYTES bytes of `out` each. They release the GIL."""
    _check_planes(planes, records, out.size)
    if out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
        raise InvalidArgumentError("out must be writable C-contiguous uint8")
    target = out.reshape(-1)
    if is_plain(records):
        return [
            partial(np.copyto, target[a : a + JOB_NBYTES], planes[0][a : a + JOB_NBYTES])
            for a in range(0, target.size, JOB_NBYTES)
        ]
    if _is_small(records, target.size):
        return [partial(join_words, planes, records.fields, records.rotate, target)]
    kernel = _kernel("join", planes, records)
    return [partial(kernel, target, *place) for place in _places(target.size, records)]


def is_plain(records: Records) -> bool:
    """Whether the only plane is the tensor itself: 8 bits are 2 nibbles in both."""
    (bits, _), *more = records.fields
    return not (more or bits not in (1, 2, 4, 8) or records.rotate or records.interleave or records.gather)


def _is_small(records: Records, nbytes: int) -> bool:
    return not (records.interleave or records.gather) and is_small(records.fields, records.nbytes, nbytes)


def _check_planes(planes: Sequence[NDArray[np.uint8]], records: Records, nbytes: int) -> None:
    want = records.plane_nbytes(nbytes)
    if any(plane.dtype != np.uint8 or plane.ndim != 1 or not plane.flags.c_contiguous for plane in planes):
        raise InvalidArgumentError("planes must be contiguous uint8 arrays of one dimension")
    if tuple(plane.size for plane in planes) != want:
        raise InvalidArgumentError(f"the planes of {nbytes} bytes have {want} bytes, got {[p.size for p in planes]}")


def _places(nbytes: int, records: Records) -> list[tuple[int, int]]:
    """Ranges of records. All but the last end on a multiple of 8: on whole bytes in every plane."""
    count, step = nbytes // records.nbytes, max(8, JOB_NBYTES // records.nbytes // 8 * 8)
    return [(begin, min(begin + step, count)) for begin in range(0, count, step)]


def _kernel(
    what: str, planes: Sequence[NDArray[np.uint8]], records: Records
) -> Callable[[NDArray[np.uint8], int, int], None]:
    """What does `what` for records `begin .. end - 1` of a tensor's bytes."""
    from .kernels import record_fields
    from .kernels import records as record_words

    addresses = np.array([plane.ctypes.data for plane in planes], np.uint64)
    fields, rotate, (unit, lanes) = kernel_fields(records), records.rotate, records.interleave or (0, 0)
    words = record_words.join_words if what == "join" else record_words.split_words
    loop = record_fields.join_fields if what == "join" else record_fields.split_fields

    def run(data: NDArray[np.uint8], begin: int, end: int) -> None:
        assert planes  # alive, for the kernels have their addresses
        if records.gather is not None:
            run_gathered(what, records.gather, records.widths, addresses, data, begin, end)
        elif records.are_words:
            words(fields, addresses, data, begin, end, rotate)
        else:
            loop(fields, addresses, data, begin, end, rotate, unit, lanes)

    return run


@lru_cache(maxsize=256)
def kernel_fields(records: Records) -> NDArray[np.int64]:
    """The fields as kernels take them."""
    offset, rows = 0, []
    for (bits, count), width in zip(records.fields, records.widths, strict=True):
        rows.append((offset, bits, count, width))
        offset += bits * count
    fields = np.array(rows, np.int64)
    fields.flags.writeable = False
    return fields
