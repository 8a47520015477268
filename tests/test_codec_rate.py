"""Coded sizes against the entropy of the data and against constriction's coder."""

from typing import Any, cast

import constriction
import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.chunks import encode_run
from qzc.codec.coder import CODERS, coder_for
from qzc.codec.histogram import byte_counts, code_counts
from qzc.codec.huffman_code import CodeLengths
from qzc.codec.model import FrequencyTable
from qzc.codec.packing import pack_codes

# Net cost of a stream: 4 bytes for its number of words, 128 for its states, of which 64 hold tail bytes, and the
# states hold 8 bits of the stream on average: 132 - 64 - 32 = 36 bytes, at most 16 bits per lane more or less.
STREAM_NBYTES = 36 + 32


# The step of the uniform quantizer with the least squared error on a standard normal distribution (Max, 1960).
BEST_STEP = {2: 0.9957, 3: 0.5860, 4: 0.3352, 8: 0.0308}


def rtn_codes(bits: int, scale_method: str, seed: int) -> NDArray[np.uint8]:
    """Round-to-nearest codes of 2^19 gaussian weights, a scale per group of 128."""
    weights = np.random.default_rng(seed).normal(size=(1 << 12, 128))
    levels = (1 << bits) // 2
    if scale_method == "absmax":
        scale = np.abs(weights).max(axis=1, keepdims=True) / (levels - 0.5)
    else:
        scale = weights.std(axis=1, keepdims=True) * BEST_STEP[bits]
    codes: NDArray[np.uint8] = np.clip(np.floor(weights / scale) + levels, 0, 2 * levels - 1).astype(np.uint8)
    return codes.reshape(-1)


def entropy_bits(counts: NDArray[np.int64]) -> float:
    used = counts[counts > 0]
    return float(-(used * np.log2(used / used.sum())).sum())


@pytest.mark.parametrize(
    ("bits", "scale_method"),
    [(2, "mse"), (3, "mse"), (4, "mse"), (8, "mse"), (3, "absmax"), (4, "absmax"), (8, "absmax")],
)
def test_ans_reaches_the_entropy(bits: int, scale_method: str) -> None:
    width = 1 << (bits - 1).bit_length()
    codes = rtn_codes(bits, scale_method, bits)
    packed = pack_codes(codes, width)
    chunks = encode_run(packed, codes.size, width, "ans")
    assert {c.coder for c in chunks} == ({2} if width <= 4 else {5} if scale_method == "mse" else {3})
    payload = sum(len(c.payload) for c in chunks)
    tables = sum(map(len, {c.table for c in chunks}))
    streams = sum(c.streams for c in chunks)
    entropy = entropy_bits(code_counts(packed, codes.size, width)) / 8
    above = 1.002 if width <= 4 else 1.004  # of 8-bit codes the low nibbles are raw, where that costs 0.2 % at most
    assert payload + tables <= above * entropy + tables + STREAM_NBYTES * streams
    # Nibbles of 2-bit codes see no more than their own counts either: nothing codes below the entropy of its symbols.
    assert payload >= 0.995 * entropy


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_huffman_is_within_the_redundancy_of_whole_bits(bits: int) -> None:
    width = 1 << (bits - 1).bit_length()
    codes = rtn_codes(bits, "mse", bits)
    packed = pack_codes(codes, width)
    chunks = encode_run(packed, codes.size, width, "huffman")
    payload = sum(len(c.payload) for c in chunks)
    floor = entropy_bits(byte_counts(packed)) / 8
    assert all(c.coder == 4 for c in chunks)
    assert floor <= payload <= 1.015 * floor + 50 * len(chunks)  # 40 bytes of sizes, half a byte per stream


@pytest.mark.parametrize("size", [10_000, 100_000])
@pytest.mark.parametrize("coder", [CODERS[2], CODERS[3]], ids=lambda coder: coder.name)
def test_payload_against_constriction(coder: object, size: int) -> None:
    """The same symbols with the same model in an independent ANS coder.

    A lane's state starts between 2^16 and 2^17 and ends between 2^16 and 2^32, so 32 lanes hold 0 to 16 bits each of
    what constriction writes, and one bit may have been there from the start.
    """
    ans = coder_for("ans", 4 if coder is CODERS[2] else 8)
    packed = pack_codes(rtn_codes(4, "absmax", 7)[: 2 * size], 4)
    table = ans.fit(byte_counts(packed))
    assert isinstance(table, FrequencyTable)
    words = (ans.encode(packed, table, 1).size - 4 - 128) // 2
    body = packed[:-64].astype(np.int32)
    symbols = np.stack([body & 15, body >> 4], axis=1).reshape(-1) if ans is CODERS[2] else body
    used = np.flatnonzero(table.frequencies)  # constriction wants probabilities above 0
    stream = cast(Any, constriction).stream  # compiled, and without types
    model = stream.model.Categorical(table.frequencies[used].astype(np.float64) / (1 << table.precision), perfect=False)
    oracle = stream.stack.AnsCoder()
    oracle.encode_reverse(np.searchsorted(used, symbols).astype(np.int32), model)
    bits = 16 * words
    assert oracle.num_valid_bits() - 32 * 16 - 64 <= bits <= 1.00002 * oracle.num_valid_bits() + 32 + 64


@pytest.mark.parametrize("size", [99_999, 1 << 18])
def test_split_payload_is_its_cost(size: int) -> None:
    """Half a byte for each, and what coder 2 takes for the high nibbles: it is compared with constriction above."""
    codes = rtn_codes(8, "mse", 9)[:size]
    counts = byte_counts(codes)
    table = CODERS[5].fit(counts)
    assert isinstance(table, FrequencyTable)
    bits = 4 * size + table.cost_bits(CODERS[5].symbol_counts(counts))
    payload = CODERS[5].encode(codes, table, 2).size
    assert abs(8 * payload - bits) <= 2 * 8 * STREAM_NBYTES
    assert payload <= 1.0045 * entropy_bits(counts) / 8 + 2 * STREAM_NBYTES


def test_huffman_payload_is_its_cost() -> None:
    packed = pack_codes(rtn_codes(4, "absmax", 8)[:99_999], 4)
    table = CODERS[4].fit(byte_counts(packed))
    assert isinstance(table, CodeLengths)
    bits = table.cost_bits(byte_counts(packed))
    assert bits / 8 <= CODERS[4].encode(packed, table, 0).size - 40 <= bits / 8 + 10
