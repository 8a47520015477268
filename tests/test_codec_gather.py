"""Codes whose bits lie apart in a record, against a twin that moves one bit after the other."""

import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.gather import MAX_GATHERED_NBYTES, gathered_fields
from qzc.codec.packing import pack_codes
from qzc.codec.records import JOB_NBYTES, Records, gathered, join, join_jobs, split, split_jobs
from qzc.codec.tensor import packed_nbytes
from qzc.formats.gguf_blocks import BLOCKS
from tests.gathers import random_walks

Bytes = NDArray[np.uint8]

LAYOUTS = [
    *(records for records in BLOCKS.values() if records.gather),
    gathered(((32,), (3, 5, 8), (5, 0, 8))),  # bytes whose parts change places
    gathered(((16,), (1, 0, 1)), ((16,), (7, 16, 7))),  # rows of bits across bytes
    gathered(((8,), (3, 1, 3)), ((), (1, 0)), ((7,), (1, 25, 1))),
    gathered(((3,), (8, 4, 8)), ((), (4, 0), (4, 28))),
    gathered(((2, 4), (4, 8, 4, 8), (1, 0, 4, 1))),
    gathered(((2, 4), (8, 0, 8, 16))),  # bytes in another order
    gathered(((8 * MAX_GATHERED_NBYTES,), (1, 0, 1))),
    gathered(((MAX_GATHERED_NBYTES // 2, 2), (8, 0, 16, 8))),
]


def slow_split(data: bytes, records: Records) -> list[bytes]:
    """Bit by bit."""
    assert records.gather is not None
    planes = []
    for (counts, *parts), width in zip(records.gather, records.widths, strict=True):
        codes = []
        for start in range(0, len(data), records.nbytes):
            record = int.from_bytes(data[start : start + records.nbytes], "little")
            for digits in itertools.product(*(range(n) for n in counts)):
                code, at = 0, 0
                for bits, offset, *strides in parts:
                    first = offset + sum(digit * stride for digit, stride in zip(digits, strides, strict=True))
                    code |= (record >> first & (1 << bits) - 1) << at
                    at += bits
                codes.append(code)
        planes.append(pack_codes(np.array(codes, np.uint8), width).tobytes())
    return planes


def random_bytes(nbytes: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def check(data: Bytes, records: Records) -> list[Bytes]:
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
    return planes


def as_walks(walks: list[list[list[int]]]) -> Any:
    return tuple(tuple(tuple(item) for item in walk) for walk in walks)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 4, 8, 18, 22, 110, 210, 300]), st.integers(0, 20))
def test_any_order_of_bits(seed: int, size: int, count: int) -> None:
    records = gathered(*as_walks(random_walks(np.random.default_rng(seed), size)))
    data = random_bytes(count * size, seed)
    assert records.nbytes == size and records.span == size
    assert [plane.tobytes() for plane in check(data, records)] == slow_split(data.tobytes(), records)


@pytest.mark.parametrize(
    "records", LAYOUTS, ids=lambda records: f"{records.nbytes} bytes, {len(records.fields)} fields"
)
def test_the_layouts_that_occur(records: Records) -> None:
    for count in (0, 1, 2, 3, 8, 9, 33):
        data = random_bytes(count * records.nbytes, count)
        assert [plane.tobytes() for plane in check(data, records)] == slow_split(data.tobytes(), records)


@pytest.mark.parametrize(
    "records", LAYOUTS, ids=lambda records: f"{records.nbytes} bytes, {len(records.fields)} fields"
)
def test_many_jobs_in_threads_do_what_one_call_does(records: Records) -> None:
    data = random_bytes(-(-int(2.3 * JOB_NBYTES) // records.nbytes) * records.nbytes)
    planes = check(data, records)
    out, others = np.empty(data.size, np.uint8), [np.empty(plane.size, np.uint8) for plane in planes]
    with ThreadPoolExecutor(4) as threads:
        joined, cut = join_jobs(planes, records, out), split_jobs(data, records, others)
        assert min(len(joined), len(cut)) > 1
        list(threads.map(lambda job: job(), joined + cut))
    assert (out == data).all()
    assert all((plane == other).all() for plane, other in zip(planes, others, strict=True))
    few = slow_split(data[: 9 * records.nbytes].tobytes(), records)
    assert all(plane.tobytes().startswith(some[:-1]) for some, plane in zip(few, planes, strict=True))


@given(st.sampled_from(LAYOUTS), st.integers(0, 30), st.integers(0, 20))
def test_joining_from_the_middle(records: Records, first: int, more: int) -> None:
    whole = random_bytes((first + more) * records.nbytes, first)
    planes = [
        plane[first * codes * width // 8 : packed_nbytes((first + more) * codes, width)]
        for plane, (_, codes), width in zip(split(whole, records), records.fields, records.widths, strict=True)
    ]
    out = np.zeros(more * records.nbytes, np.uint8)
    join(planes, records, out, first)
    assert (out == whole[first * records.nbytes :]).all()


@pytest.mark.parametrize(
    "records", LAYOUTS, ids=lambda records: f"{records.nbytes} bytes, {len(records.fields)} fields"
)
def test_codes_that_are_too_large_stay_inside_the_arrays(records: Records) -> None:
    nbytes = 50 * records.nbytes
    planes = [np.full(size, 0xFF, np.uint8) for size in records.plane_nbytes(nbytes)]
    memory = np.zeros(nbytes + 128, np.uint8)
    join(planes, records, memory[64:-64])
    assert not memory[:64].any() and not memory[-64:].any() and memory[64:-64].all()


def test_one_bit_above_four() -> None:
    data = np.array([0b10011100, 0x01, 0x82, 0x01, 0xEF], np.uint8)
    (codes,) = split(data, gathered(((2, 4), (4, 8, 4, 8), (1, 0, 4, 1))))
    assert codes.tolist() == [1, 2, 17, 31, 16, 8, 0, 30]


EIGHT = ((8, 1),)
PAIR = ((4, 2),)


@pytest.mark.parametrize(
    ("fields", "gather", "message"),
    [
        (EIGHT, (), "0 gathered fields instead of 1"),
        (EIGHT, (((), (8, 0)), ((), (8, 0))), "2 gathered fields instead of 1"),
        (EIGHT, ((),), "do not make codes of 8 bits"),
        (EIGHT, (((),),), "do not make codes of 8 bits"),
        (EIGHT, (((), (7, 0)),), "do not make codes of 8 bits"),
        (EIGHT, (((), (9, 0)),), "1 to 8 bits, an offset"),
        (EIGHT, (((), (0, 0), (8, 0)),), "1 to 8 bits, an offset"),
        (EIGHT, (((), (8,)),), "a stride for each count"),
        (EIGHT, (((), (8, 0, 0)),), "a stride for each count"),
        (EIGHT, (((1,), (8, 0)),), "a stride for each count"),
        (EIGHT, (((), *[(1, i) for i in range(9)]),), "1 to 8 bits, an offset"),
        (EIGHT, (((2,), (8, 0, 0)),), "up to 4 counts with this product"),
        (EIGHT, (((0,), (8, 0, 0)),), "up to 4 counts with this product"),
        (EIGHT, (((1,) * 5, (8, 0) + (0,) * 5),), "up to 4 counts with this product"),
        (EIGHT, (((-1, -1), (8, 0, 0, 0)),), "up to 4 counts with this product"),
        (EIGHT, (((10**30,), (8, 0, 0)),), "up to 4 counts with this product"),
        (EIGHT, (((), (8, 1)),), "not in the record"),
        (EIGHT, (((), (8, -1)),), "not in the record"),
        (EIGHT, (((), (8, 10**30)),), "not in the record"),
        (EIGHT, (((1,), (8, 0, 10**30)),), "not in the record"),
        (PAIR, (((2,), (4, 0, -4)),), "not in the record"),
        (PAIR, (((2,), (4, 4, 4)),), "not in the record"),
        (PAIR, (((2,), (4, 0, 0)),), "every bit of the record once"),
        (PAIR, (((2,), (4, 0, 3)),), "every bit of the record once"),
        (PAIR, (((2,), (2, 0, 2), (2, 2, 4)),), "every bit of the record once"),
        (((8, 1025),), (((1025,), (8, 0, 8)),), "cannot be gathered, only those of 1024"),
    ],
)
def test_what_cannot_be_gathered(fields: Any, gather: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Records(fields, gather=gather)


def test_neither_rotated_nor_interleaved() -> None:
    gather = (((1,), (8, 0, 0)),)
    assert Records(EIGHT, gather=gather).nbytes == 1
    for more in ({"rotate": True}, {"interleave": (1, 1)}):
        options: Any = more
        with pytest.raises(InvalidArgumentError, match="cannot be rotated or interleaved"):
            Records(EIGHT, gather=gather, **options)


@given(st.integers(0, 2**32), st.sampled_from([2, 18, 110]), st.data())
def test_a_bit_twice_is_found(seed: int, size: int, data: st.DataObject) -> None:
    """Any other number in a walk: the twin counts how often each bit is used."""
    walks = random_walks(np.random.default_rng(seed), size)
    walk = data.draw(st.sampled_from(walks))
    part = data.draw(st.sampled_from(walk[1:]))
    number = data.draw(st.integers(1, len(part) - 1))
    part[number] = max(0, part[number] + data.draw(st.integers(-9, 9)))
    used = np.zeros(8 * size * 20, int)
    for counts, *parts in walks:
        for digits in itertools.product(*(range(n) for n in counts)):
            for bits, offset, *strides in parts:
                first = offset + sum(map(math.prod, zip(digits, strides, strict=True)))
                used[min(first, used.size - bits) :][:bits] += 1
    fields = gathered_fields(as_walks(walks))
    fine = (used[: 8 * size] == 1).all() and not used[8 * size :].any()
    if fine and all(n <= 8 * size for _, *parts in walks for part in parts for n in part):
        assert Records(fields, gather=as_walks(walks)).nbytes == size
    else:
        with pytest.raises(InvalidArgumentError, match=r"not in the record|every bit of the record once"):
            Records(fields, gather=as_walks(walks))


def test_what_a_check_costs() -> None:
    """About as much for each character as reading JSON does, whatever the numbers say."""
    total = 8 * MAX_GATHERED_NBYTES
    many = tuple(((2, 2, 2, total // 512), (1, 64 * i, 1, 2, 4, 8)) for i in range(64))
    for gather in ((((total,), (1, 0, 1)),), (((total // 8,), *((1, i, 8) for i in range(8))),), many):
        fields, seconds = gathered_fields(gather), []
        for _ in range(5):
            began = time.perf_counter()
            try:
                Records(fields, gather=gather)
            except InvalidArgumentError:
                assert gather is many
            seconds.append(time.perf_counter() - began)
        assert min(seconds) < 1e-5 * len(str(gather))
