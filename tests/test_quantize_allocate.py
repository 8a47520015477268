"""One rate over tensors of different importance."""

import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.rate_tensor import reconstruct
from qzc.quantize import rate
from qzc.quantize.allocate import equal_slope, measured_sensitivity
from qzc.quantize.rtn_ec import rtn_ec
from qzc.quantize.unbounded import Design

SENSITIVITIES = [1.0, 16.0, 4.0]


def tensors() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal((300, 100)) * size, np.float32) for size in (0.1, 0.1, 0.7)]


def designs() -> list[Design]:
    return [rtn_ec(w, "F32") for w in tensors()]


def harm(rated: rate.Rated) -> float:
    errors = [
        ((w - reconstruct(t)).astype(np.float64) ** 2).sum() for w, t in zip(tensors(), rated.tensors, strict=True)
    ]
    return float(np.dot(SENSITIVITIES, errors))


def test_steps_go_with_the_root_of_the_sensitivity() -> None:
    assert [design.scale for design in equal_slope(designs(), SENSITIVITIES)] == [1.0, 0.25, 0.5]


def test_equal_slope_beats_equal_rates_and_equal_steps() -> None:
    best = rate.solve(equal_slope(designs(), SENSITIVITIES), 3.0)
    same_step = rate.solve(designs(), 3.0)
    same_rate = rate.solve(designs(), 3.0, uniform=True)
    assert harm(best) < 0.8 * min(harm(same_step), harm(same_rate))


def test_nothing_next_to_it_is_better() -> None:
    best = harm(rate.solve(equal_slope(designs(), SENSITIVITIES), 4.5))
    for i in range(3):
        for factor in (0.5, 2.0):
            other = [s * (factor if i == j else 1) for j, s in enumerate(SENSITIVITIES)]
            assert harm(rate.solve(equal_slope(designs(), other), 4.5)) > best


def test_a_trial_finds_the_sensitivity() -> None:
    rated = rate.solve(designs(), 3.0)
    for w, tensor, loss, expected in zip(tensors(), rated.tensors, rated.losses, SENSITIVITIES, strict=True):
        done = expected * float(((w - reconstruct(tensor)).astype(np.float64) ** 2).sum())
        assert measured_sensitivity(done, loss) == pytest.approx(expected, rel=1e-3)
    assert measured_sensitivity(-1e-12, 1.0) > 0


@pytest.mark.parametrize(("harm", "loss"), [(float("nan"), 1.0), (1.0, 0.0), (1.0, float("inf"))])
def test_trials_that_say_nothing(harm: float, loss: float) -> None:
    with pytest.raises(InvalidArgumentError, match="says nothing"):
        measured_sensitivity(harm, loss)


@pytest.mark.parametrize("wrong", [[1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0], [1.0, 1.0, float("inf")]])
def test_sensitivities_that_make_no_sense(wrong: list[float]) -> None:
    with pytest.raises(InvalidArgumentError, match="needs a sensitivity"):
        equal_slope(designs(), wrong)
