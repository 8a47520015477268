"""How tensors are split: what the estimate promises, and what coding the planes then really takes."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.ans import SMALL_CODES
from qzc.codec.choose_records import ENTRY_NBYTES, MIN_NBYTES, Choice, choose
from qzc.codec.chunks import CHUNK_CODES, encode_run
from qzc.codec.kernels import plane_costs
from qzc.codec.model import log_units
from qzc.codec.packing import pack_codes
from qzc.codec.palette import index_width, indices, restore
from qzc.codec.records import BYTES, Records, join, split

Bytes = NDArray[np.uint8]
FLOATS: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
NAMES = (*FLOATS, "F4", "F6_E2M3", "C64", "I64", "U32", "I32", "U16", "I16", "U8", "I8", "BOOL", "what is this")


def weights(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Rows of different spread, as in real models."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=count) * np.repeat(rng.lognormal(-3, 0.5, -(-count // 256)), 256)[:count]


def planes_of(data: Bytes, choice: Choice) -> list[tuple[Bytes, int, int]]:
    """Planes with the number and width of their codes."""
    if choice.palette is not None:
        count, size = choice.palette.shape
        values = choice.palette.reshape(-1)
        return [(indices(data, choice.palette), data.size // size, index_width(count)), (values, values.size, 8)]
    records = choice.records
    return list(zip(split(data, records), records.codes(data.size), records.widths, strict=True))


def coded_nbytes(data: Bytes, choice: Choice) -> int:
    """What the choice really takes, with rows of the index, tables and the description; also checks that it is reversible."""
    planes, out = planes_of(data, choice), np.empty(data.size, np.uint8)
    if choice.palette is None:
        join([plane for plane, _, _ in planes], choice.records, out)
    else:
        restore(planes[0][0], choice.palette, out)
    assert (out == data).all()
    if choice.coders == ("raw",):
        return data.size
    total, tables = ENTRY_NBYTES, set()
    for (plane, codes, width), coder in zip(planes, choice.coders, strict=True):
        chunks = encode_run(plane, codes, width, coder)
        total += sum(24 + -(-len(chunk.payload) // 16) * 16 for chunk in chunks)
        tables |= {(chunk.coder, chunk.table) for chunk in chunks}
    return total + sum(len(table) for _, table in tables)


def as_bytes(array: NDArray[Any]) -> Bytes:
    return array.reshape(-1).view(np.uint8)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    # Signs and mantissas are all but noise. Exponents of a normal distribution have 2.5 to 2.7 bits: (2.6 + 8) / 16 of BF16,
    # (2.6 + 24) / 32 of F32, (2.6 + 56) / 64 of F64; F16 has (2.6 + 11) / 16, E4M3 (2.6 + 4) / 8, E5M2 (2.6 + 3) / 8.
    [("F64", 0.93), ("F32", 0.845), ("F16", 0.87), ("BF16", 0.68), ("F8_E4M3", 0.845), ("F8_E5M2", 0.72)],
)
def test_floats(dtype: str, bound: float) -> None:
    data = as_bytes(weights(300_000).astype(FLOATS[dtype]))
    choice = choose(data, dtype)
    real = coded_nbytes(data, choice)
    assert real < bound * data.size
    assert abs(choice.nbytes - real) < 0.01 * data.size
    if dtype in ("F64", "F32", "F16", "BF16"):
        assert choice.records.rotate and "raw" in choice.coders  # noise is not decoded


def test_noise_of_neighbouring_bytes_is_one_plane() -> None:
    choice = choose(as_bytes(weights(300_000).astype(np.float32)), "F32")
    assert choice.records == Records(((8, 3), (8, 1)), rotate=True)
    assert choice.coders == ("raw", "ans")


@pytest.mark.parametrize("narrow", ["BF16", "F16"])
def test_float32_that_came_from_16_bits_takes_no_more_than_those(narrow: str) -> None:
    values = weights(300_000).astype(FLOATS[narrow])
    as_narrow, as_wide = as_bytes(values), as_bytes(values.astype(np.float32))
    small, large = choose(as_narrow, narrow), choose(as_wide, "F32")
    assert coded_nbytes(as_wide, large) < 1.01 * coded_nbytes(as_narrow, small)


def test_integers_have_constant_high_bytes() -> None:
    data = as_bytes(np.random.default_rng(0).integers(0, 1000, 100_000).astype(np.int64))
    choice = choose(data, "I64")
    assert coded_nbytes(data, choice) < 100_000 * 10 / 8 * 1.01 + 500


@pytest.mark.parametrize("dtype", ["I32", "U32", "U8"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_packed_codes_without_a_hint(dtype: str, bits: int) -> None:
    """Codes of these widths, one after the other in words: within 2 % of their entropy."""
    rng = np.random.default_rng(bits)
    levels = 1 << bits
    codes = np.clip(np.rint(rng.normal(levels * 0.4, levels / 6, 768_000)), 0, levels - 1).astype(np.uint8)
    data = np.packbits(
        np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits].reshape(-1), bitorder="little"
    )
    p = np.bincount(codes) / codes.size
    entropy = -float((p[p > 0] * np.log2(p[p > 0])).sum())
    assert entropy < 0.95 * bits
    assert coded_nbytes(data, choose(data, dtype)) < 1.02 * entropy * codes.size / 8


def test_a_hint_is_taken_where_it_is_better() -> None:
    rng = np.random.default_rng(0)
    codes = np.clip(np.rint(rng.normal(3.5, 1.1, (40, 640, 32))), 0, 7).astype(
        np.uint8
    )  # spans, lanes, codes of a record
    words = np.packbits(np.unpackbits(codes[..., None], axis=3, bitorder="little")[..., :3].reshape(40, 640, 96), axis=2,
                        bitorder="little")  # fmt: skip
    data = words.reshape(40, 640, 3, 4).transpose(0, 2, 1, 3).reshape(-1)  # GPTQ: three words, each for all lanes
    hint = Records(((3, 32),), interleave=(4, 640))
    assert choose(data, "I32", [hint]).records == hint
    assert coded_nbytes(data, choose(data, "I32", [hint])) < 0.97 * coded_nbytes(data, choose(data, "I32"))
    assert choose(data[:-4], "I32", [hint]).records != hint  # does not fit
    noise = rng.integers(0, 256, data.size, np.uint8)
    assert choose(noise, "I32", [hint]).coders == ("raw",)


def test_blocks_of_scales_and_codes() -> None:
    """As in GGUF: the scales are floats, the codes nibbles, and only a hint tells them apart."""
    rng = np.random.default_rng(0)
    blocks = np.zeros((20_000, 18), np.uint8)
    blocks[:, :2] = rng.lognormal(-4, 0.3, 20_000).astype(np.float16)[:, None].view(np.uint8)
    blocks[:, 2:] = pack_codes(np.clip(np.rint(rng.normal(8, 2, 640_000)), 0, 15).astype(np.uint8), 4).reshape(-1, 16)
    data = blocks.reshape(-1)
    choice = choose(data, "unknown", [Records(((8, 1), (8, 1), (4, 32))), BYTES])
    assert choice.records.nbytes == 18
    assert coded_nbytes(data, choice) < 0.81 * data.size  # 3.05 bits of 4, 12 of 16


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "I32"])
def test_few_values_make_a_palette(dtype: str) -> None:
    values = (np.random.default_rng(0).integers(-1, 2, 200_000) * 0.75).astype(FLOATS.get(dtype, np.int32))
    data = as_bytes(values)
    choice = choose(data, dtype)
    if dtype == "I32":  # only zeros
        assert choice.palette is not None and len(choice.palette) == 1
    else:
        assert choice.palette is not None and len(choice.palette) == 3
    assert coded_nbytes(data, choice) < 200_000 * 1.61 / 8  # log2(3) = 1.585


def test_truth_values() -> None:
    data = (np.random.default_rng(0).random(200_000) < 0.1).astype(np.uint8)
    assert coded_nbytes(data, choose(data, "BOOL")) < 200_000 * 0.5 / 8  # 0.469 bits, and headers


def test_constant_tensors_and_tails_of_zeros() -> None:
    data = as_bytes(np.full(100_000, 1.5, np.float32))
    assert coded_nbytes(data, choose(data, "F32")) < 400
    half = weights(600_000).astype(np.float32)
    data = as_bytes(half[:300_000])
    half[300_000:] = 0
    assert coded_nbytes(as_bytes(half), choose(as_bytes(half), "F32")) < 1.07 * coded_nbytes(data, choose(data, "F32"))


@pytest.mark.parametrize("dtype", NAMES)
def test_what_does_not_gain_stays_as_it_is(dtype: str) -> None:
    rng = np.random.default_rng(0)
    for nbytes in (0, 1, 7, MIN_NBYTES - 1, MIN_NBYTES, 9_999, 1_000_000):
        assert choose(rng.integers(0, 256, nbytes, np.uint8), dtype) == Choice(BYTES, ("raw",), None, nbytes)
    assert choose(np.zeros(MIN_NBYTES - 1, np.uint8), dtype).coders == ("raw",)


@settings(max_examples=30)
@given(st.sampled_from(NAMES), st.integers(0, 6000), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 3.0, 1e9]))
def test_never_larger_and_always_reversible(dtype: str, nbytes: int, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    data = np.clip(rng.normal(0, spread, -(-nbytes // 4)), -(2**31), 2**31 - 1).astype(np.int32).view(np.uint8)[:nbytes]
    data.flags.writeable = False
    choice = choose(data, dtype, [Records(((4, 2), (8, 3))), Records(((2, 4),), interleave=(1, 3))])
    assert len(choice.coders) == (2 if choice.palette is not None else len(choice.records.fields))
    assert coded_nbytes(data, choice) <= data.size + 64


def test_the_sample_is_spread_over_the_tensor() -> None:
    """The first half is zero, and so is a sample of the beginning."""
    values = weights(2_000_000).astype(np.float32)
    values[:1_000_000] = 0
    data = as_bytes(values)
    sampled, whole = choose(data, "F32"), choose(data, "F32", sample_nbytes=1 << 30)
    real = coded_nbytes(data, sampled)
    assert real < 1.005 * coded_nbytes(data, whole)
    assert abs(sampled.nbytes - real) < 0.02 * real


def test_lanes_are_cut_in_two_only_where_it_pays() -> None:
    """Against all cuts in the middle and whole bytes, priced one by one: a second plane must save CUT more than nothing."""
    codes, rng, near = 1 << 17, np.random.default_rng(11), 0
    high, steps = np.exp(-np.arange(16.0)), np.arange(16) / 16
    for slope in np.linspace(0, 1.2, 25):  # of the low nibbles, which are the less worth coding the evener they are
        low_nibbles = np.exp(-slope * steps)
        lane = rng.choice(16, codes, p=high / high.sum()) * 16 + rng.choice(
            16, codes, p=low_nibbles / low_nibbles.sum()
        )
        lane[:2] = 0, 255  # so that every bit changes, and no cut but that in the middle is looked at
        counts = np.bincount(lane, minlength=256).astype(np.int64).reshape(1, 1, 256)
        table = counts.reshape(1, 16, 16)
        prices = {}
        for low, planes in {
            0: [(counts[0], codes, 8)],
            8: [(table.sum(axis=1) + table.sum(axis=2), 2 * codes, 4)],
            4: [(table.sum(axis=1), codes, 4), (table.sum(axis=2), codes, 4)],
        }.items():
            costs = [np.empty(3) for _ in planes]
            for cost, (some, number, width) in zip(costs, planes, strict=True):
                plane_costs.plane_cost(some, number, width, False, CHUNK_CODES, SMALL_CODES, log_units(), cost)
            prices[low] = sum(float(cost[plane_costs.PRICE]) for cost in costs)
            if low == 0 and not costs[0][plane_costs.CODED]:
                prices = {0: 0.0}
                break
        cut = {low: price + plane_costs.CUT * codes * (low == 4) for low, price in prices.items()}
        lows, rows = np.empty(1, np.int64), np.empty((1, 2, 3))
        plane_costs.cut_lanes(counts, codes, False, CHUNK_CODES, SMALL_CODES, log_units(), lows, rows)
        assert lows[0] == min(cut, key=cut.__getitem__), slope
        near += min(cut, key=cut.__getitem__) != min(prices, key=prices.__getitem__)
    assert near  # some would be cut for less
