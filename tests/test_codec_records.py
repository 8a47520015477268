"""Bytes into planes of codes and back, against a twin that counts bits in Python's integers."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.packing import pack_codes
from qzc.codec.records import BYTES, JOB_NBYTES, Records, join, join_jobs, split, split_jobs
from qzc.codec.tensor import packed_nbytes

Bytes = NDArray[np.uint8]

LAYOUTS = [
    BYTES,
    Records(((4, 2),)),
    Records(((8, 1), (8, 1)), rotate=True),
    Records(((8, 1), (4, 1), (4, 1)), rotate=True),
    Records(((8, 1), (3, 1), (5, 1)), rotate=True),
    Records(((4, 1), (4, 1)), rotate=True),
    Records(((8, 1),) * 4, rotate=True),
    Records(((8, 3), (8, 1)), rotate=True),
    Records(((8, 2), (8, 1), (4, 1), (4, 1)), rotate=True),
    Records(((1, 1), (8, 2), (7, 1), (8, 1))),
    Records(((8, 6), (5, 1), (8, 1), (3, 1)), rotate=True),
    Records(((8, 1),) * 8),
    Records(((8, 2), (4, 32))),  # GGUF's Q4_0
    Records(((8, 2), (1, 32), (4, 32))),  # Q5_0
    Records(((4, 256), (2, 256), (8, 16), (8, 2))),  # Q6_K
    Records(((8, 4), (6, 16), (4, 256))),  # as Q4_K, with the scales of 6 bits apart
    Records(((3, 32),), interleave=(4, 24)),  # GPTQ of 3 bits
    Records(((3, 32),)),
    Records(((4, 8),), interleave=(4, 3)),
    Records(((8, 1),) * 2, interleave=(1, 5)),
    Records(((8, 1), (8, 1)), rotate=True, interleave=(1, 7)),
    Records(((2, 4), (4, 1), (4, 1)), rotate=True),
    Records(((1, 3), (7, 3))),
    Records(((5, 5), (7, 1))),
    Records(((8, 65536),)),
    Records(((8, 32767), (3, 1), (8, 1), (5, 1))),
]


def slow_split(data: bytes, records: Records) -> list[bytes]:
    size = records.nbytes
    unit, lanes = records.interleave or (size, 1)
    planes: list[list[int]] = [[] for _ in records.fields]
    for start in range(0, len(data), size * lanes):
        span = data[start : start + size * lanes]
        units = [span[i : i + unit] for i in range(0, len(span), unit)]
        for lane in range(lanes):
            record = int.from_bytes(b"".join(units[lane::lanes]), "little")
            if records.rotate:
                record = record << 1 & (1 << 8 * size) - 1 | record >> 8 * size - 1
            digits, end = f"{record:0{8 * size}b}", 8 * size  # the lowest bit is the last one
            for plane, (bits, count) in zip(planes, records.fields, strict=True):
                for _ in range(count):
                    plane.append(int(digits[end - bits : end], 2))
                    end -= bits
    return [slow_pack(plane, width) for plane, width in zip(planes, records.widths, strict=True)]


def slow_pack(codes: list[int], width: int) -> bytes:
    digits = "".join(f"{code:0{width}b}" for code in reversed(codes))
    return int("0" + digits, 2).to_bytes(packed_nbytes(len(codes), width), "little")


def random_bytes(nbytes: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def check(data: Bytes, records: Records) -> None:
    """Whole, by jobs, and joined again into memory that was full of ones."""
    planes = split(data, records)
    assert [plane.size for plane in planes] == list(records.plane_nbytes(data.size))
    others = [np.full(plane.size, 0xFF, np.uint8) for plane in planes]
    for job in reversed(split_jobs(data, records, others)):
        job()
    assert [plane.tobytes() for plane in planes] == [plane.tobytes() for plane in others]
    out = np.full(data.size, 0xFF, np.uint8)
    join(planes, records, out)
    assert (out == data).all()


@st.composite
def layouts(draw: st.DrawFn) -> Records:
    """Any fields: what they lack to whole bytes, and to a size that can be rotated, is one more field, or two."""
    fields = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 20)), max_size=5))
    rotate = draw(st.booleans())
    total = sum(bits * count for bits, count in fields)
    if rotate:
        while total > 64:
            bits, count = fields.pop()
            total -= bits * count
        want = next(8 * size for size in (1, 2, 4, 8) if 8 * size >= max(8, total))
    else:
        want = max(8, -(-total // 8) * 8)
    rest = want - total
    if rest >= 8:
        fields.append((8, rest // 8))
    if rest % 8:
        fields.append((rest % 8, 1))
    order = draw(st.permutations(fields))
    size = want // 8
    unit = draw(st.sampled_from([unit for unit in range(1, size + 1) if size % unit == 0]))
    interleave = (unit, draw(st.integers(1, 20))) if draw(st.booleans()) else None
    return Records(tuple(order), rotate, interleave)


@given(layouts(), st.integers(0, 40), st.integers(0, 1000))
def test_any_records(records: Records, spans: int, seed: int) -> None:
    data = random_bytes(spans * records.span, seed)
    assert [plane.tobytes() for plane in split(data, records)] == slow_split(data.tobytes(), records)
    check(data, records)


@pytest.mark.parametrize("records", LAYOUTS, ids=str)
def test_the_layouts_that_occur(records: Records) -> None:
    for spans in (0, 1, 2, 3, 8, 9, 33):
        data = random_bytes(min(spans, 1 + 100_000 // records.span) * records.span, spans)
        assert [plane.tobytes() for plane in split(data, records)] == slow_split(data.tobytes(), records)
        check(data, records)


@pytest.mark.parametrize("records", LAYOUTS, ids=str)
def test_many_jobs_in_threads_do_what_one_call_does(records: Records) -> None:
    data = random_bytes(-(-int(2.3 * JOB_NBYTES) // records.span) * records.span)
    check(data, records)
    planes = split(data, records)
    out, others = np.empty(data.size, np.uint8), [np.empty(plane.size, np.uint8) for plane in planes]
    with ThreadPoolExecutor(4) as threads:
        joined, cut = join_jobs(planes, records, out), split_jobs(data, records, others)
        assert min(len(joined), len(cut)) > 1
        list(threads.map(lambda job: job(), joined + cut))
    assert (out == data).all()
    assert all((plane == other).all() for plane, other in zip(planes, others, strict=True))
    part = data[: 7 * records.span]  # the first records of many, and those of few, are the same
    if records.span < 1000:
        for few, plane in zip(split(part, records), planes, strict=True):
            assert (few[:-1] == plane[: few.size - 1]).all()


@given(st.sampled_from([r for r in LAYOUTS if r.interleave is None and r.nbytes < 1000]), st.integers(0, 30), st.data())
def test_joining_from_the_middle(records: Records, first: int, data: st.DataObject) -> None:
    count = first + data.draw(st.integers(0, 20))
    whole = random_bytes(count * records.nbytes, first)
    planes = [
        plane[first * codes * width // 8 : packed_nbytes(count * codes, width)]
        for plane, (_, codes), width in zip(split(whole, records), records.fields, records.widths, strict=True)
    ]
    out = np.zeros((count - first) * records.nbytes, np.uint8)
    join(planes, records, out, first)
    assert (out == whole[first * records.nbytes :]).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e4m3fn])
def test_special_floats_survive_bit_by_bit(dtype: Any) -> None:
    size = np.dtype(dtype).itemsize
    values = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, -np.nan], np.float64).astype(dtype)
    limits = [0, 1, 2, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1, (1 << 8 * size) - 2]
    patterns = np.frombuffer(b"".join(n.to_bytes(size, "little") for n in limits), np.uint8)  # subnormals, NaN payloads
    data = np.concatenate([values.view(np.uint8), patterns] * 40)
    for records in LAYOUTS:
        if records.nbytes == size and records.interleave is None:
            assert [plane.tobytes() for plane in split(data, records)] == slow_split(data.tobytes(), records)
            check(data, records)


def test_the_sign_becomes_the_lowest_bit() -> None:
    values = np.array([-1.5, 0.75], np.float32)
    low, exponent = split(values.view(np.uint8), Records(((8, 3), (8, 1)), rotate=True))
    assert exponent.tolist() == [127, 126]
    assert low.reshape(2, 3)[:, 0].tolist() == [1, 0]


def test_a_plane_that_is_the_tensor_is_not_copied() -> None:
    data = random_bytes(64)
    data.flags.writeable = False
    for records in (BYTES, Records(((8, 64),)), Records(((4, 2),)), Records(((1, 16),))):
        (plane,) = split(data, records)
        assert np.shares_memory(plane, data)
        assert plane.tobytes() == slow_split(data.tobytes(), records)[0]
    assert not np.shares_memory(split(data, Records(((4, 2),), rotate=True))[0], data)


def test_read_only_and_unaligned_memory() -> None:
    file = b"\0" + random_bytes(8 * 1001).tobytes()
    data = np.frombuffer(file, np.uint8, offset=1)
    for records in LAYOUTS:
        if 8 * 1001 % records.span == 0:
            planes = split(data, records)
            for plane in planes:
                plane.flags.writeable = False
            out = np.zeros(data.size + 1, np.uint8)
            join(planes, records, out[1:])
            assert out[1:].tobytes() == data.tobytes()


def test_codes_that_are_too_large_stay_inside_the_arrays() -> None:
    for records in LAYOUTS:
        nbytes = -(-5000 // records.span) * records.span
        planes = [np.full(size, 0xFF, np.uint8) for size in records.plane_nbytes(nbytes)]
        memory = np.zeros(nbytes + 128, np.uint8)
        join(planes, records, memory[64:-64])
        assert not memory[:64].any() and not memory[-64:].any()


def test_numbers_of_records() -> None:
    records = Records(((3, 32), (8, 4)), interleave=(4, 10))
    assert (records.nbytes, records.widths, records.span) == (16, (4, 8), 160)
    assert records.codes(320) == (640, 80)
    assert records.plane_nbytes(320) == (320, 80)
    assert records.codes(0) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "rotate", "interleave", "message"),
    [
        ((), False, None, "1 to 64 fields"),
        (((8, 1),) * 65, False, None, "1 to 64 fields"),
        (((9, 8),), False, None, "1 to 8 bits"),
        (((0, 8),), False, None, "1 to 8 bits"),
        (((8, 0),), False, None, "at least one and at most 524288"),
        (((8, 10**30),), False, None, "at least one and at most 524288"),
        (((3, 1), (4, 1)), False, None, "whole bytes, got 7 bits"),
        (((8, 65537),), False, None, "1 to 65536 whole bytes"),
        (((8, 3),), True, None, "cannot be rotated"),
        (((8, 4),), False, (3, 1), "cannot be interleaved"),
        (((8, 4),), False, (0, 1), "cannot be interleaved"),
        (((8, 4),), False, (4, 0), "cannot be interleaved"),
        (((8, 4),), False, (4, 10**30), "cannot be interleaved"),
    ],
)
def test_what_makes_no_records(fields: Any, rotate: bool, interleave: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Records(fields, rotate, interleave)


def test_arrays_of_other_sizes_are_refused() -> None:
    records = Records(((8, 1), (4, 1), (4, 1)))
    planes = split(random_bytes(10), records)
    out = np.zeros(10, np.uint8)
    with pytest.raises(InvalidArgumentError, match="no whole number of records"):
        split(random_bytes(9), records)
    with pytest.raises(InvalidArgumentError, match="no whole number of records"):
        join(planes, records, out[:9])
    for wrong in ([*planes, planes[0]], planes[:2], [planes[0], planes[0], planes[1]]):
        with pytest.raises(InvalidArgumentError, match="have"):
            join(wrong, records, out)
    with pytest.raises(InvalidArgumentError, match="contiguous uint8"):
        signed: Any = planes[0].astype(np.int8)
        join([signed, *planes[1:]], records, out)
    with pytest.raises(InvalidArgumentError, match="out must be"):
        join(planes, records, np.zeros(20, np.uint8)[::2])
    read_only = planes[0].copy()
    read_only.flags.writeable = False
    with pytest.raises(InvalidArgumentError, match="must be writable"):
        split_jobs(out, records, [read_only, *planes[1:]])


def test_codes_are_packed_as_everywhere() -> None:
    codes = np.random.default_rng(0).integers(0, 8, 64, np.uint8)
    words = sum(int(code) << 3 * i for i, code in enumerate(codes)).to_bytes(24, "little")
    (plane,) = split(np.frombuffer(words, np.uint8), Records(((3, 32),)))
    assert (plane == pack_codes(codes, 4)).all()
