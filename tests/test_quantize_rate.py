"""Bits as a file has them: tables, the coder with a table per symbol, and the search for the step."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.class_coder import decode_rows, decode_side, encode_rows, encode_side, lanes_for
from qzc.codec.errors import CorruptionError, InvalidArgumentError
from qzc.codec.rate_tensor import RateTensor, reconstruct, transitions
from qzc.codec.table_bank import CLASSES, ESCAPE, TableBank
from qzc.codec.trellis import next_states
from qzc.quantize import rate
from qzc.quantize.fit_bank import fit_bank
from qzc.quantize.hessian import factorize
from qzc.quantize.rtn_ec import rtn_ec
from qzc.quantize.unbounded import Design
from qzc.quantize.watersic import watersic

F = np.float32


def tensor_of(rows: int, columns: int, states: int = 0, spread: float = 2.0, seed: int = 0) -> RateTensor:
    """Random codes whose size follows their classes, with steps and classes of all kinds."""
    rng = np.random.default_rng(seed)
    row, column = rng.integers(-8, 8, rows), rng.integers(-20, 20, columns)
    size = 2.0 ** ((row[:, None] - column) / 8) * spread
    codes = np.rint(rng.standard_normal((rows, columns)) * size).astype(np.int16)
    return RateTensor(
        codes,
        F(0.1),
        (rows, columns),
        "F32",
        column_log=column.astype(np.int8),
        row_class=row.astype(np.int8),
        class_offset=104,
        states=states,
        restart=rows if states else 1,
    )


def bank_for(*tensors: RateTensor) -> TableBank:
    counts = sum((rate.class_counts(tensor) for tensor in tensors), np.zeros((CLASSES, 2, 256), np.int64))
    side = rate.side_counts(rate.vectors_of(tensors))
    ones = np.ones(CLASSES)
    return fit_bank(counts, side, ones, ones, any(tensor.states for tensor in tensors), complete=True)


def decoded(
    payload: NDArray[np.uint8], bank: TableBank, tensor: RateTensor, lanes: int | None = None
) -> NDArray[np.int16]:
    row, column = bank.terms(tensor)
    lanes = lanes_for(tensor.codes.size) if lanes is None else lanes
    return decode_rows(payload, lanes, bank, row, column, tensor.states, tensor.restart)


@pytest.mark.parametrize("states", [0, 4, 8, 32, 256])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 70), (70, 1), (33, 129), (300, 260), (600, 450)])
def test_round_trip(rows: int, columns: int, states: int) -> None:
    tensor = tensor_of(rows, columns, states)
    bank = bank_for(tensor)
    payload = encode_rows(tensor, bank)
    np.testing.assert_array_equal(decoded(payload, bank, tensor), tensor.codes)
    promised = rate.coded_bits([tensor], bank).codes
    assert abs(8 * len(payload) - promised) <= 16 * lanes_for(tensor.codes.size) + 0.0005 * promised


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("value", [127, 128, -127, -128, 32767, -32768])
def test_escapes(value: int, states: int) -> None:
    tensor = tensor_of(40, 30, states)
    codes = tensor.codes.copy()
    codes[::7, 3] = value
    codes[-1, -1] = codes[0, 0] = value
    tensor = replace(tensor, codes=codes)
    bank = bank_for(tensor)
    payload = encode_rows(tensor, bank)
    np.testing.assert_array_equal(decoded(payload, bank, tensor), codes)


def test_a_bank_of_other_codes_escapes_or_says_no() -> None:
    small, large = tensor_of(50, 40, spread=0.5), tensor_of(50, 40, spread=9.0)
    closed = bank_for(small)
    with pytest.raises(InvalidArgumentError, match="cannot escape"):
        encode_rows(large, closed)
    assert rate.coded_bits([large], closed).codes == float("inf")
    counts, none = rate.class_counts(small), np.ones(CLASSES)
    side = rate.side_counts(rate.vectors_of([small, large]))
    bank = fit_bank(counts, side, none, none, False, complete=False)
    payload = encode_rows(large, bank)
    np.testing.assert_array_equal(decoded(payload, bank, large), large.codes)
    assert 8 * len(payload) == pytest.approx(rate.coded_bits([large], bank).codes, rel=0.01)


@pytest.mark.parametrize("states", [0, 8])
def test_parts_of_a_tensor(states: int) -> None:
    tensor = replace(tensor_of(100, 50, states), restart=32)
    bank = bank_for(tensor)
    row, column = bank.terms(tensor)
    for first, last in ((0, 32), (32, 100), (96, 100)):
        payload = encode_rows(tensor, bank, slice(first, last))
        part = decode_rows(payload, lanes_for((last - first) * 50), bank, row[first:last], column, states, 32)
        np.testing.assert_array_equal(part, tensor.codes[first:last])
    with pytest.raises(InvalidArgumentError, match="row 33"):
        encode_rows(tensor, bank, slice(33, 64))


def slow_decode(payload: bytes, lanes: int, bank: TableBank, tensor: RateTensor) -> NDArray[np.int16]:
    """The format, straight from its description."""
    words = np.frombuffer(payload, np.uint8)
    x = [int.from_bytes(payload[4 * i : 4 * i + 4], "little") for i in range(lanes)]
    front, back, i = 4 * lanes, len(words), 0
    rows, columns = tensor.codes.shape
    row, column = bank.terms(tensor)
    out, state = np.empty((rows, columns), np.int16), [0] * columns
    after = transitions(tensor.states)
    for r, c in itertools.product(range(rows), range(columns)):
        if r % tensor.restart == 0 and c == 0:
            state = [0] * columns
        table = bank.frequencies[
            np.clip(row[r] + column[c], 0, len(bank.gain) - 1), state[c] & 1 if bank.sets == 2 else 0
        ]
        starts = np.cumsum(table.astype(int)) - table
        slot, lane = x[i % lanes] & 4095, i % lanes
        symbol = int(np.flatnonzero(starts + table > slot)[0])
        x[lane] = int(table[symbol]) * (x[lane] >> 12) + slot - int(starts[symbol])
        if x[lane] < 1 << 16:
            x[lane] = x[lane] << 16 | int(words[front]) | int(words[front + 1]) << 8
            front += 2
        k = symbol - 128
        if symbol == ESCAPE:
            back -= 2
            k = int(np.int16(np.uint16(int(words[back]) | int(words[back + 1]) << 8)))
        out[r, c] = k
        state[c] = int(after[state[c], k & 1])
        i += 1
    assert front == back and x == [1 << 16] * lanes
    return out


@pytest.mark.parametrize("states", [0, 8])
def test_against_a_slow_decoder(states: int) -> None:
    tensor = tensor_of(30, 47, states)
    codes = tensor.codes.copy()
    codes[5, 6], codes[7, 8] = 3000, -129
    tensor = replace(tensor, codes=codes)
    bank = bank_for(tensor)
    payload = encode_rows(tensor, bank).tobytes()
    np.testing.assert_array_equal(slow_decode(payload, lanes_for(codes.size), bank, tensor), codes)


@settings(max_examples=150)
@given(st.data())
def test_any_bytes_decode_or_raise(data: st.DataObject) -> None:
    tensor = tensor_of(12, 25, data.draw(st.sampled_from([0, 8])))
    bank = bank_for(tensor)
    payload = encode_rows(tensor, bank).copy()
    kind = data.draw(st.sampled_from(["flip", "cut", "random", "longer"]))
    if kind == "flip":
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        payload = payload[: data.draw(st.integers(0, len(payload) - 1))]
    elif kind == "longer":
        payload = np.append(payload, np.zeros(data.draw(st.integers(1, 9)), np.uint8))
    else:
        payload = np.frombuffer(data.draw(st.binary(max_size=400)), np.uint8)
    lanes = data.draw(st.sampled_from([-1, 0, 1, 2, 3, 32, 64, 255]))
    try:
        codes = decoded(payload, bank, tensor, lanes)
    except CorruptionError:
        return
    assert kind == "random" or not np.array_equal(codes, tensor.codes)


def test_every_flipped_bit_of_a_state_or_word_is_noticed() -> None:
    """Final states are fixed: all but few wrong payloads end in others."""
    tensor = tensor_of(20, 30)
    bank = bank_for(tensor)
    payload = encode_rows(tensor, bank)
    for i in range(len(payload)):
        broken = payload.copy()
        broken[i] ^= 16
        with pytest.raises(CorruptionError, match="ans_classes"):
            decoded(broken, bank, tensor)


def test_side_information() -> None:
    rng = np.random.default_rng(0)
    tensors = [tensor_of(90, 60, seed=seed) for seed in range(3)]
    same = tensors[0].column_log
    tensors = [replace(tensor, column_log=same, row_log=rng.integers(-9, 9, 90).astype(np.int8)) for tensor in tensors]
    bank = bank_for(*tensors)
    vectors = rate.vectors_of(tensors)
    assert [kind for kind, _ in vectors] == [0, 1, 3, 1, 3, 1, 3]  # one vector of column steps serves all
    payload = encode_side(vectors, bank)
    kinds = np.concatenate([np.full(len(vector), kind) for kind, vector in vectors])
    back = decode_side(payload, lanes_for(len(kinds)), bank, kinds)
    np.testing.assert_array_equal(back, np.concatenate([vector for _, vector in vectors]))
    assert abs(rate.side_bits(tensors, bank) - 8 * len(payload)) < 40


@pytest.mark.parametrize("states", [0, 8])
def test_bank_round_trip(states: int) -> None:
    bank = bank_for(tensor_of(200, 100, states), tensor_of(100, 200, states, spread=9.0))
    data = bank.to_bytes()
    back = TableBank.from_bytes(data)
    assert back.first == bank.first
    for name in ("frequencies", "gain", "side"):
        np.testing.assert_array_equal(getattr(back, name), getattr(bank, name))
    assert len(data) < 50 * bank.sets * len(bank.gain) + 200  # 384 bytes each with 12 bits per symbol


def test_tables_are_symmetric_and_add_up() -> None:
    bank = bank_for(tensor_of(200, 100, 8))
    for table in np.concatenate([bank.frequencies.reshape(-1, 256), bank.side]):
        assert table.sum(dtype=int) == 4096 and table.max() < 4096
        np.testing.assert_array_equal(table[129:], table[127:0:-1])


def test_broken_banks() -> None:
    data = bank_for(tensor_of(30, 40)).to_bytes()
    for cut in range(0, len(data), 7):
        with pytest.raises(CorruptionError):
            TableBank.from_bytes(data[:cut])
    with pytest.raises(CorruptionError, match="left over"):
        TableBank.from_bytes(data + b"\0")
    for i in range(0, len(data), 5):
        for flip in (1, 128):
            broken = bytearray(data)
            broken[i] ^= flip
            try:
                bank = TableBank.from_bytes(bytes(broken))
            except CorruptionError:
                continue
            assert (bank.frequencies.sum(axis=-1) == 4096).all() and bank.frequencies.max() < 4096


def test_restart_resets_all_states() -> None:
    tensor = replace(tensor_of(8, 1, 8), restart=4)
    codes = np.array([[1], [1], [1], [1]] * 2, np.int16)
    tensor = replace(tensor, codes=codes)
    values = reconstruct(tensor)
    np.testing.assert_array_equal(values[:4], values[4:])
    assert (next_states(8)[0] != 0).any()


def model(states: int = 0, scale: int = 1) -> list[Design]:
    """Designs of three layers of different shapes and sizes."""
    rng = np.random.default_rng(1)
    designs = []
    for rows, columns, size in ((200, 96, 0.05), (64 * scale, 300, 0.2), (400, 64, 0.01)):
        mix = rng.standard_normal((columns, columns)) * np.exp(0.5 * rng.standard_normal(columns))
        w = np.asarray(rng.standard_t(5, (rows, columns)) * size, F)
        designs.append(watersic(w, "F32", factorize(mix.T @ mix), states=states))
    return designs


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize(("states", "target"), [(0, 1.2), (0, 2.0), (0, 4.0), (8, 1.5), (8, 3.0)])
def test_the_search_hits_its_target_in_real_bytes(states: int, target: float, uniform: bool) -> None:
    designs = model(states)
    rated = rate.solve(designs, target, uniform=uniform)
    count = sum(design.weights.size for design in designs)
    payloads = [encode_rows(tensor, rated.bank) for tensor in rated.tensors]
    side = encode_side(rate.vectors_of(rated.tensors), rated.bank)
    nbytes = sum(map(len, payloads)) + len(side) + len(rated.bank.to_bytes())
    assert (8 * nbytes + rated.bits.records) / count == pytest.approx(target, rel=0.005)
    assert rated.bits.total / count == pytest.approx(target, rel=0.005)
    if uniform:
        each = [rate.coded_bits([tensor], rated.bank) for tensor in rated.tensors]
        rates = [(own.codes + own.records) / t.codes.size for own, t in zip(each, rated.tensors, strict=True)]
        assert max(rates) - min(rates) < 0.02 * target
    else:
        widths = [float(t.step) / d.scale for t, d in zip(rated.tensors, designs, strict=True)]
        assert max(widths) == pytest.approx(min(widths), rel=1e-6)
    for payload, tensor in zip(payloads, rated.tensors, strict=True):
        np.testing.assert_array_equal(decoded(payload, rated.bank, tensor), tensor.codes)


def test_a_sample_of_the_rows_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "_SAMPLE", 30000)
    designs = model(scale=20)
    rated = rate.solve(designs, 2.5)
    assert rated.bits.total / sum(d.weights.size for d in designs) == pytest.approx(2.5, rel=0.005)


def test_without_statistics() -> None:
    w = np.asarray(np.random.default_rng(0).standard_t(4, (300, 200)), F)
    rated = rate.solve([rtn_ec(w, "F32")], 3.0)
    assert rated.bits.total / w.size == pytest.approx(3.0, rel=0.005)
    noise = 10 * np.log10(float((w**2).sum() / ((w - reconstruct(rated.tensors[0])) ** 2).sum()))
    assert noise > 16  # a Gaussian source has 16.5 at three bits


def test_threads_do_not_change_a_byte() -> None:
    backwards = lambda f, items: list(reversed([f(i) for i in reversed(list(items))]))  # noqa: E731
    one = rate.solve(model(8), 2.0)
    two = rate.solve(model(8), 2.0, run=backwards, run_tensors=backwards)
    assert one.bank.to_bytes() == two.bank.to_bytes()
    for left, right in zip(one.tensors, two.tensors, strict=True):
        np.testing.assert_array_equal(left.codes, right.codes)
        assert left.step == right.step


@pytest.mark.parametrize("target", [0.0, -1.0, 17.0, float("nan")])
def test_rates_that_make_no_sense(target: float) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot spend"):
        rate.solve(model(), target)


def test_a_rate_that_side_information_exceeds() -> None:
    with pytest.raises(InvalidArgumentError, match="cannot reach"):
        rate.solve([rtn_ec(np.asarray(np.random.default_rng(0).standard_normal((4, 4)), F), "F32")], 0.5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_tensors_do_not_break_the_search(value: float) -> None:
    other = np.asarray(np.random.default_rng(0).standard_normal((200, 100)), F)
    designs = [rtn_ec(np.full((30, 50), value, F), "F32"), rtn_ec(other, "F32")]
    rated = rate.solve(designs, 2.0)
    np.testing.assert_allclose(reconstruct(rated.tensors[0]), value, atol=0.3)


def test_gains_of_another_bank_are_refused() -> None:
    rated = rate.solve(model(), 2.0)
    gain = rated.tensors[0].gain
    assert gain is not None
    with pytest.raises(InvalidArgumentError, match="gains"):
        rate.coded_bits([replace(rated.tensors[0], gain=(gain ^ 1).astype(np.uint8))], rated.bank)
