"""Every coder: round trips, agreement with the slow reference, golden bytes, refusal of what it cannot code."""

from collections.abc import Iterator

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.ans import encoded_bound
from qzc.codec.coder import CODERS, Coder, Table, coder_for
from qzc.codec.errors import InvalidArgumentError
from qzc.codec.histogram import byte_counts
from qzc.codec.huffman_code import CodeLengths
from qzc.codec.kernels.select import ans_kernels, batch_kernels
from qzc.codec.model import FrequencyTable
from tests import reference_coders, reference_encoder

ANS16, ANS256, HUFFMAN, SPLIT8, SHORT16, SHORT256 = (CODERS[id] for id in (2, 3, 4, 5, 8, 9))
CODED = (ANS16, ANS256, HUFFMAN, SPLIT8, SHORT16, SHORT256)
SHORT = (SHORT16, SHORT256)
SIZES = (1, 2, 9, 10, 11, 31, 32, 33, 49, 50, 51, 63, 64, 65, 66, 95, 96, 97, 127, 128, 129, 160, 500, 4999)


@pytest.fixture(params=["auto", "portable"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything here holds for the kernels of this machine and for the portable ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QZC_KERNELS", request.param)
        ans_kernels.cache_clear()
        batch_kernels.cache_clear()
        yield request.param
    ans_kernels.cache_clear()
    batch_kernels.cache_clear()


def skewed(rng: np.random.Generator, size: int, symbols: int, skew: float) -> NDArray[np.uint8]:
    """Two nibbles below `symbols` in each byte, or `symbols` > 16 different bytes; the larger `skew`, the less entropy."""
    weights = np.exp(-(skew if symbols <= 16 else skew / 8) * np.arange(symbols))
    picks: NDArray[np.int64] = rng.choice(symbols, (2, size), p=weights / weights.sum())
    data: NDArray[np.int64] = picks[0] | picks[1] << 4 if symbols <= 16 else rng.permutation(256)[picks[0]]
    return data.astype(np.uint8)


def reference_encode(coder: Coder, data: bytes, table: Table, streams: int) -> bytes:
    if isinstance(table, CodeLengths):
        return reference_encoder.encode_huffman(data, table.lengths.tolist())
    if coder is SPLIT8:
        low, high = reference_encoder.split(data)
        return low + reference_encoder.encode_ans(high, table.frequencies.tolist(), ANS16.id, streams)
    if coder is SHORT16:
        return reference_encoder.encode_short16(data, table.frequencies.tolist(), streams)
    if coder is SHORT256:
        assert isinstance(table, FrequencyTable)
        return shorter_short256(data, table.frequencies.tolist(), table.precision, streams)
    return reference_encoder.encode_ans(data, table.frequencies.tolist(), coder.id, streams)


def shorter_short256(data: bytes, frequencies: list[int], precision: int, lanes: int) -> bytes:
    kinds = (reference_encoder.encode_short256(data, frequencies, precision, kind, lanes) for kind in (0, 1))
    return min(kinds, key=len)


def reference_decode(coder: Coder, payload: bytes, table: Table, streams: int, size: int) -> bytes:
    if isinstance(table, CodeLengths):
        return reference_coders.decode_huffman(payload, table.lengths.tolist(), size, "")
    if coder is SPLIT8:
        return reference_coders.decode_split(payload, table.frequencies.tolist(), streams, size, "")
    if coder in SHORT:
        return reference_coders.decode_payload(payload, coder.id, table.frequencies.tolist(), streams, size, "")
    return reference_coders.decode_ans(payload, table.frequencies.tolist(), coder.id, streams, size, "")


def assert_round_trip(coder: Coder, data: NDArray[np.uint8], streams: int) -> None:
    table = coder.fit(byte_counts(data))
    assert table is not None
    payload = coder.encode(data, table, streams)
    out = np.full(data.size, 0xA5, np.uint8)
    read = coder.table_from_bytes(table.to_bytes() if coder.bank else b"")
    coder.decode(payload.tobytes(), read, out, streams)
    assert out.tobytes() == data.tobytes()
    assert payload.tobytes() == reference_encode(coder, data.tobytes(), table, streams)
    assert reference_decode(coder, payload.tobytes(), table, streams, data.size) == data.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("coder", CODED, ids=lambda coder: coder.name)
def test_round_trip_and_reference_at_every_edge(coder: Coder, size: int) -> None:
    rng = np.random.default_rng(size)
    for symbols, skew in ((2, 0.3), (16, 0.0), (16, 0.6), (256, 0.2)):
        for streams in (1, 2, 4) if coder in SHORT else (0 if coder is HUFFMAN else 1,):
            assert_round_trip(coder, skewed(rng, size, symbols, skew), streams)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 1200),
    symbols=st.sampled_from([1, 2, 3, 8, 16, 100, 256]),
    skew=st.floats(0.0, 3.0),
    streams=st.integers(1, 6),
    coder=st.sampled_from(CODED),
)
def test_round_trip_and_reference(seed: int, size: int, symbols: int, skew: float, streams: int, coder: Coder) -> None:
    if coder in SHORT:
        streams = (1, 2, 4)[streams % 3]
    coded = -(-size // 2) if coder is SPLIT8 else max(size, 200) if coder in SHORT else size
    if (streams - 1) * (-(-coded // (32 * streams)) * 32) >= coded:
        streams = 1
    data = skewed(np.random.default_rng(seed), size, symbols, skew)
    assert_round_trip(coder, data, 0 if coder is HUFFMAN else streams)


@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5, 8, 255])
@pytest.mark.parametrize("coder", [ANS16, ANS256, SPLIT8], ids=lambda coder: coder.name)
def test_large_buffers_with_many_streams(coder: Coder, streams: int) -> None:
    rng = np.random.default_rng(streams)
    for size in (32 * 255 * 6, 32 * 255 * 18 - 1):
        data = skewed(rng, size, 16, 0.4)
        table = coder.fit(byte_counts(data))
        payload = coder.encode(data, table, streams)
        out = np.zeros(size, np.uint8)
        coder.decode(payload, table, out, streams)
        assert (out == data).all()


def test_both_sets_of_kernels_write_the_same_bytes() -> None:
    from qzc.codec.kernels import ans_portable

    rng = np.random.default_rng(3)
    current = ans_kernels()
    for size, streams in ((70, 1), (5000, 3), (131072, 4), (100_003, 2)):
        data = skewed(rng, size, 16, 0.3)
        for coder, ours, portable in (
            (ANS16, current.encode_ans16, ans_portable.encode_ans16),
            (ANS256, current.encode_ans256, ans_portable.encode_ans256),
        ):
            table = coder.fit(byte_counts(data))
            assert isinstance(table, FrequencyTable)
            found = []
            for encode in (ours, portable):
                scratch = np.zeros(encoded_bound(size, streams), np.uint8)
                found.append(scratch[-encode(data, streams, table.frequencies, scratch) :].tobytes())
            assert found[0] == found[1]


def test_extreme_frequencies_keep_the_arithmetic_exact() -> None:
    """Frequencies of 1 and of all but one slot, next to each other: the ends of the ranges of quotients."""
    for coder, f in (
        (ANS16, [255, 1] + [0] * 14),
        (ANS16, [1, 0, 0, 255] + [0] * 12),
        (ANS256, [1] + [0] * 254 + [4095]),
        (SHORT16, [4095] + [0] * 14 + [1]),
        (SHORT256, [1, 4095] + [0] * 254),
        (SHORT256, [1] + [0] * 254 + [32767]),
        (SHORT256, [32640, *[0] * 127, *[1] * 128]),
    ):
        table = FrequencyTable(np.array(f, np.uint16), sum(f).bit_length() - 1)
        used = np.flatnonzero(f)
        for rare in (0.0, 0.004, 0.5, 1.0):
            picks = used[(np.random.default_rng(0).random((2, 9000)) < rare).astype(int)]
            data = (picks[0] | picks[1] << 4 if len(f) == 16 else picks[0]).astype(np.uint8)
            payload = coder.encode(data, table, 1)
            assert payload.tobytes() == reference_encode(coder, data.tobytes(), table, 1)
            out = np.zeros_like(data)
            coder.decode(payload, table, out, 1)
            assert (out == data).all()


GOLDEN_BUFFER = bytes([0x88, 0x87, 0x98, 0x78]) * 17  # 68 bytes: 4 coded by lanes 0..3, the rest in the tail

# Numbers of bits in the states of the four coded lanes, low halves of all states (most are just the tail), high bits.
GOLDEN = {
    "ans16": "3134" + "00" * 14 + "28e998684893186a" + "88879878" * 14 + "3301",
    "ans256": "2222" + "00" * 14 + "881b98e4881f98e0" + "88879878" * 14 + "6600",
    "huffman": "02000000" * 10 + "dd1d222277378808dd1d222277378808dd0d2202",
    "short16": "a62b680198961b7df83d40df922d8a84de1de74c1d8801d4",
    "short256": "789818c020f0ff818180c0ff0f988d8d0dd8d8d8d8d8d8d8d8d8d8d8d8c1d8",
    "split8": "f000" * 17 + "00" * 16 + "898a" * 17 + "0000" * 15,  # low nibbles, then all in the tail
}


@pytest.mark.parametrize("coder", CODED, ids=lambda coder: coder.name)
def test_golden_bytes(coder: Coder) -> None:
    table = coder.fit(byte_counts(GOLDEN_BUFFER))
    payload = coder.encode(GOLDEN_BUFFER, table, 0 if coder is HUFFMAN else 1)
    assert payload.tobytes().hex() == GOLDEN[coder.name]


@pytest.mark.parametrize(
    ("coder", "checksum"),
    [
        (ANS16, 960506996938332254),
        (ANS256, 12189966026244085044),
        (HUFFMAN, 4724230036772573159),
        (SPLIT8, 13933901257464316415),
        (SHORT16, 1208867978319563554),
        (SHORT256, 2389901747973560946),
    ],
)
def test_golden_checksums_of_a_longer_buffer(coder: Coder, checksum: int) -> None:
    i = np.arange(5000)
    data = (136 + i * i % 7 * (i % 5 - 2) + 16 * (i % 3) * (i % 4)).astype(np.uint8)
    payload = coder.encode(data, coder.fit(byte_counts(data)), 0 if coder is HUFFMAN else 2)
    assert xxhash.xxh3_64_intdigest(payload.tobytes()) == checksum


def test_raw_and_constant() -> None:
    out = np.zeros(3, np.uint8)
    CODERS[0].decode(CODERS[0].encode(b"abc", None, 0), None, out, 0)
    assert out.tobytes() == b"abc"
    CODERS[1].decode(CODERS[1].encode(b"zzz", None, 0), None, out, 0)
    assert out.tobytes() == b"zzz"
    with pytest.raises(InvalidArgumentError, match="all the same"):
        CODERS[1].encode(b"zzy", None, 0)


def test_encoders_refuse_symbols_without_a_code() -> None:
    for coder in CODED:
        table = coder.fit(byte_counts(bytes([0x11, 0x12, 0x21] * 50)))
        with pytest.raises(InvalidArgumentError, match=r"frequency 0|without a code"):
            coder.encode(bytes([0x11, 0x34] * 50), table, 1)


@pytest.mark.parametrize(("size", "streams"), [(100, 0), (100, 3), (32, 2), (10_000, 256), (1, 2), (100, -1)])
def test_encoders_refuse_streams_without_a_byte(size: int, streams: int) -> None:
    data = bytes(range(100)) * (size // 100 + 1)
    table = ANS256.fit(byte_counts(data))
    with pytest.raises(InvalidArgumentError, match="streams"):
        ANS256.encode(data[:size], table, streams)
    with pytest.raises(InvalidArgumentError, match="streams"):
        SPLIT8.encode(data[:size], SPLIT8.fit(byte_counts(data)), streams)


@pytest.mark.parametrize("coder", SHORT, ids=lambda coder: coder.name)
def test_short_encoders_refuse_other_numbers_of_lanes(coder: Coder) -> None:
    data = bytes(range(100))
    table = coder.fit(byte_counts(data))
    for streams in (-1, 0, 3, 5, 8):
        with pytest.raises(InvalidArgumentError, match="streams"):
            coder.encode(data, table, streams)
    with pytest.raises(InvalidArgumentError, match="at least one byte"):
        coder.encode(b"", table, 1)


def test_coders_refuse_the_table_of_another_coder() -> None:
    counts = byte_counts(bytes(range(200)))
    with pytest.raises(InvalidArgumentError, match="needs a"):
        SHORT256.encode(bytes(200), ANS16.fit(counts), 1)
    pairs = ((ANS16, ANS256), (ANS256, HUFFMAN), (HUFFMAN, ANS16), (SPLIT8, ANS256), (SHORT16, ANS16))
    for coder, other in pairs:
        with pytest.raises(InvalidArgumentError, match="needs a"):
            coder.encode(bytes(200), other.fit(counts), 1)
        with pytest.raises(InvalidArgumentError, match="needs a"):
            coder.decode(bytes(200), other.fit(counts), np.zeros(9, np.uint8), 1)


def test_choices() -> None:
    assert [coder_for("ans", w).name for w in (1, 2, 4, 8)] == ["ans16", "ans16", "ans16", "ans256"]
    assert coder_for("huffman", 4) is HUFFMAN and coder_for("raw", 8) is CODERS[0]
    with pytest.raises(InvalidArgumentError, match="unknown coder 'zip'; choose ans, huffman or raw"):
        coder_for("zip", 4)
    assert {coder.id: coder.name for coder in CODERS.values()} == {
        0: "raw", 1: "constant", 2: "ans16", 3: "ans256", 4: "huffman", 5: "split8", 6: "escape16",
        8: "short16", 9: "short256",
    }  # fmt: skip
