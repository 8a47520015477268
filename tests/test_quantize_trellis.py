"""Dependent quantization: the state machines, the search for a path, and the way back."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.rate_tensor import RateTensor, reconstruct
from qzc.codec.trellis import POLYNOMIALS, next_states, predecessors
from qzc.quantize import kernels_trellis as kernels
from qzc.quantize.hessian import factorize
from qzc.quantize.rtn_ec import rtn_ec
from qzc.quantize.unbounded import RESTART_ROWS, Design, quantize_design
from qzc.quantize.watersic import watersic

F = np.float32
STATES = sorted(POLYNOMIALS)


def levels(codes: NDArray[np.int64], states: int) -> NDArray[np.int64]:
    """What a column of codes stands for, straight from the definition."""
    state, out = 0, []
    for k in codes.tolist():
        out.append(2 * k - (state & 1) * ((k > 0) - (k < 0)))
        state = int(next_states(states)[state, k & 1])
    return np.array(out)


def search(x: NDArray[np.float32], states: int, prices: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    before, flip = predecessors(states)
    prices = np.zeros((1, 2, kernels.PRICES)) if prices is None else prices
    table, out = np.zeros(len(x), np.int64), np.empty(len(x), np.int16)
    candidates, choices = np.empty((len(x), 4), np.int16), np.empty((len(x), states), np.uint8)
    kernels.best_path(x, F(1), before, flip, prices, table, 0, candidates, choices, out)
    return out.astype(np.int64)


@pytest.mark.parametrize("states", STATES)
def test_transitions_follow_the_polynomials(states: int) -> None:
    h1, h0 = POLYNOMIALS[states]
    bits = states.bit_length() - 1
    for s, parity in itertools.product(range(states), range(2)):
        expected = 0
        for i in range(1, bits + 1):
            own = (s >> i) & 1 if i < bits else 0
            expected |= (own ^ ((h0 >> i) & 1 & s) ^ ((h1 >> i) & 1 & parity)) << (i - 1)
        assert next_states(states)[s, parity] == expected


@pytest.mark.parametrize("states", STATES)
def test_predecessors_are_the_inverse(states: int) -> None:
    before, flip = predecessors(states)
    for t in range(states):
        assert next_states(states)[before[t], 0] == t
        assert next_states(states)[before[t] ^ flip, 1] == t
        assert before[t] & 1 == (before[t] ^ flip) & 1 == (t >= states // 2)


def test_number_of_states_that_has_no_trellis() -> None:
    with pytest.raises(InvalidArgumentError, match="no trellis has 5 states"):
        next_states(5)


@pytest.mark.parametrize("states", [4, 8, 32])
@pytest.mark.parametrize("priced", [False, True])
def test_the_best_path_against_all_of_them(states: int, priced: bool) -> None:
    rng = np.random.default_rng(states)
    prices = np.zeros((1, 2, kernels.PRICES))
    if priced:  # grow with the magnitude, as those of real tables do
        prices[0] = np.cumsum(rng.uniform(0, 0.7, (2, kernels.PRICES)), axis=1)
    for _ in range(5):
        x = (rng.standard_normal(5) * 2).astype(F)
        best = np.inf
        for codes in itertools.product(range(-4, 5), repeat=5):
            z, state, cost = np.array(codes), 0, 0.0
            for k, value in zip(codes, x.tolist(), strict=True):
                level = 2 * k - (state & 1) * ((k > 0) - (k < 0))
                cost += (value - level) ** 2 + prices[0, state & 1, abs(k)]
                state = int(next_states(states)[state, k & 1])
            best = min(best, cost)
        z = search(x, states, prices)
        found, state = float(((x - levels(z, states)) ** 2).sum()), 0
        for k in z.tolist():
            found += prices[0, state & 1, abs(k)]
            state = int(next_states(states)[state, k & 1])
        # The search looks at two codes per set and parity; with steep prices a third could be better.
        assert found == pytest.approx(best, rel=0.1 if priced else 1e-6)


@pytest.mark.parametrize(
    ("states", "gain"), [(4, 1.0), (8, 1.1), (16, 1.16), (32, 1.22), (64, 1.28), (128, 1.33), (256, 1.35)]
)
def test_granular_gain(states: int, gain: float) -> None:
    """Over the plain grid of the same rate, whose step is two: errors of 4 / 12. The limit is 1.53 dB."""
    x = (np.random.default_rng(0).standard_normal(20000) * 50).astype(F)
    error = float(np.mean((x - levels(search(x, states), states)) ** 2))
    assert gain < 10 * np.log10(4 / 12 / error) < 1.53


@pytest.mark.parametrize("value", [0.0, 0.4, 1e9, -1e9])
def test_extreme_targets(value: float) -> None:
    z = search(np.full(40, value, F), 8)
    assert np.abs(z).max() <= 32767
    if abs(value) < 1:
        assert np.abs(levels(z, 8) - value).max() <= 1.5


@pytest.mark.parametrize("states", [4, 8, 32, 256])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 40), (300, 7), (2 * RESTART_ROWS + 5, 3)])
def test_round_trip(states: int, rows: int, columns: int) -> None:
    """Codes become weights again by the definition alone, and the errors that the search carried on are theirs."""
    w = np.asarray(np.random.default_rng(3).standard_normal((rows, columns)), F)
    tensor = quantize_design(rtn_ec(w, "F32", states=states), 0.3, None).tensor
    restart = tensor.restart
    assert restart == (rows if rows <= 2 * RESTART_ROWS else RESTART_ROWS)
    for c in range(columns):
        parts = [levels(tensor.codes[r : r + restart, c].astype(np.int64), states) for r in range(0, rows, restart)]
        expected = np.concatenate(parts).astype(F) * F(0.3)
        np.testing.assert_array_equal(reconstruct(tensor)[:, c], expected)


def test_with_feedback_against_a_slow_loop() -> None:
    rng = np.random.default_rng(4)
    mix = rng.standard_normal((20, 20))
    w, factor = np.asarray(rng.standard_normal((60, 20)), F), factorize(mix @ mix.T)
    tensor = quantize_design(watersic(w, "F32", factor, states=8), 1.0, None).tensor
    step = tensor.column_scale
    rebuilt = np.zeros(w.shape, F)
    for c in range(19, -1, -1):
        target = w[:, c] + (w[:, c + 1 :] - rebuilt[:, c + 1 :]) @ factor.unit[c + 1 :, c]
        z = search((target / step[c]).astype(F), 8)
        assert np.mean(z != tensor.codes[:, c]) < 0.1  # paths of nearly equal cost
        rebuilt[:, c] = levels(tensor.codes[:, c].astype(np.int64), 8) * step[c]
    np.testing.assert_array_equal(rebuilt, reconstruct(tensor))


def test_threads_do_not_change_codes() -> None:
    w = np.asarray(np.random.default_rng(5).standard_normal((3 * RESTART_ROWS, 4)), F)
    backwards = lambda f, items: list(reversed([f(i) for i in reversed(list(items))]))  # noqa: E731
    design: Design = rtn_ec(w, "F32", states=8)
    one, two = (quantize_design(design, 0.2, None, run=run) for run in (map, backwards))
    np.testing.assert_array_equal(one.tensor.codes, two.tensor.codes)


def test_a_tensor_of_codes_alone() -> None:
    codes = np.array([[1], [1], [-2], [0], [3]], np.int16)
    tensor = RateTensor(codes, F(0.5), (5, 1), "F32", states=4, restart=5)
    # States 0, 1, 3, 3, 3: next_states(4) is [[0, 1], [2, 3], [1, 0], [3, 2]].
    assert reconstruct(tensor).ravel().tolist() == [1.0, 0.5, -1.5, 0.0, 2.5]
