"""Coded sizes against the entropy of the data and against constriction's coder."""

from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any, cast

import constriction
import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.chunks import EncodedChunk, encode_run
from qzc.codec.coder import CODERS, coder_for
from qzc.codec.histogram import byte_counts, code_counts
from qzc.codec.huffman_code import CodeLengths
from qzc.codec.model import FrequencyTable
from qzc.codec.packing import pack_codes
from qzc.codec.short256 import table_nbytes
from qzc.codec.tensor import QuantizationArgs, ScaleMethod, Strategy
from qzc.formats.safetensors import SafetensorsFile
from qzc.quantize.rtn import quantize

MODEL = Path(__file__).parent.parent / "fixtures" / "model" / "model.safetensors"
GRIDS: tuple[tuple[Strategy, int | None, ScaleMethod], ...] = (
    ("channel", None, "absmax"),
    ("channel", None, "mse"),
    ("group", 32, "mse"),
    ("group", 128, "mse"),
    ("tensor", None, "absmax"),
)

# What a stream takes beyond the information in it. A state x is stored in 16 + e bits, e = floor(log2(x)) - 16, and starts
# from 2^16 + 16 tail bits: beside the tail it holds log2(x) - log2(start), which is up to a bit more or less than e. So: 16
# bytes of lengths, 32 bits at most for the fractions, and up to 15 bits that fill the last u16. Typically 14 bytes.
STATES_NBYTES = 16 + 4 + 2
# The last 64 bytes of a stream are not coded: they replace 64 bytes that states would take anyway.
TAIL = 64


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
    assert {c.coder for c in chunks} == {2 if width <= 4 else 3}
    payload = sum(len(c.payload) for c in chunks)
    tables = sum(map(len, {c.table for c in chunks}))
    entropy = entropy_bits(code_counts(packed, codes.size, width)) / 8
    stream = STATES_NBYTES + TAIL * (1 - entropy / packed.size)
    assert payload + tables <= 1.002 * entropy + tables + stream * sum(c.streams for c in chunks)
    # Nibbles of 2-bit codes see no more than their own counts either: nothing codes below the entropy of its symbols.
    assert payload >= 0.995 * entropy


@dataclass(frozen=True)
class Run:
    """A tensor's codes. All sizes are bytes."""

    packed: NDArray[np.uint8]
    codes: int
    width: int

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        return code_counts(self.packed, self.codes, self.width)

    @cached_property
    def entropy(self) -> float:
        return entropy_bits(self.counts) / 8

    @cached_property
    def chunks(self) -> list[EncodedChunk]:
        return encode_run(self.packed, self.codes, self.width, "ans")

    @property
    def payload(self) -> int:
        """All but tables: codes, states, sizes."""
        return sum(len(chunk.payload) for chunk in self.chunks) - self.tables_in_payloads

    @property
    def tables(self) -> int:
        return sum(map(len, {chunk.table for chunk in self.chunks})) + self.tables_in_payloads

    @cached_property
    def tables_in_payloads(self) -> int:
        return sum(table_nbytes(chunk.payload) for chunk in self.chunks if chunk.coder == 9)


@cache
def fixture_runs(bits: int, strategy: Strategy, group_size: int | None, scale_method: ScaleMethod) -> list[Run]:
    """All matrices of the model in `fixtures`, from 64 x 256 to 384 x 256."""
    args = QuantizationArgs(
        num_bits=bits, strategy=strategy, group_size=group_size, scale_method=scale_method, scale_dtype="float16"
    )
    runs = []
    with SafetensorsFile(MODEL) as file:
        for name in file.keys():
            if len(file.info(name).shape) == 2:
                tensor = quantize(file.array(name), args, dtype="F32", name=name)
                runs.append(Run(tensor.packed.copy(), prod(tensor.shape), args.storage_bits))
    return runs


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("strategy", "group_size", "scale_method"), GRIDS)
def test_the_fixture_is_coded_to_its_entropy(
    bits: int, strategy: Strategy, group_size: int | None, scale_method: ScaleMethod
) -> None:
    """Every matrix, and so their sum: all but the table within 0.2 % of the entropy of the codes, to the byte."""
    runs = fixture_runs(bits, strategy, group_size, scale_method)
    assert len(runs) == 15
    for run in runs:
        assert run.payload <= 1.002 * run.entropy
        assert run.tables <= 24 + np.count_nonzero(byte_counts(run.packed))
    assert sum(run.payload for run in runs) <= 1.002 * sum(run.entropy for run in runs)


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
    payload = ans.encode(packed, table, 1)
    high = -(-int((payload[:16] & 15).sum() + (payload[:16] >> 4).sum()) // 16) * 2
    words = (payload.size - 80 - high) // 2
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
    assert 0 <= 8 * payload - bits <= 2 * 8 * (STATES_NBYTES + TAIL)
    assert payload <= 1.0045 * entropy_bits(counts) / 8 + 2 * STATES_NBYTES


def test_huffman_payload_is_its_cost() -> None:
    packed = pack_codes(rtn_codes(4, "absmax", 8)[:99_999], 4)
    table = CODERS[4].fit(byte_counts(packed))
    assert isinstance(table, CodeLengths)
    bits = table.cost_bits(byte_counts(packed))
    assert bits / 8 <= CODERS[4].encode(packed, table, 0).size - 40 <= bits / 8 + 10
