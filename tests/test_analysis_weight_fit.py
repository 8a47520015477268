"""Fits of distributions, against scipy's."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from qzc.analysis.weight_fit import Law, code_shares, mean_fit, weight_fit

RANDOM = np.random.default_rng(7)
SAMPLES: dict[str, NDArray[np.float64]] = {
    "gaussian": RANDOM.standard_normal(20_000) * 0.03 + 0.001,
    "laplace": RANDOM.laplace(0.01, 0.2, 20_000),
    "student-t": RANDOM.standard_t(4.0, 20_000) * 0.05,
}
SCIPY = {"gaussian": stats.norm, "laplace": stats.laplace, "student-t": stats.t}


@pytest.mark.parametrize("name", SAMPLES)
def test_fits_are_scipys(name: str) -> None:
    x = SAMPLES[name]
    for fit in weight_fit(x).fits:
        law = SCIPY[fit.law]
        parameters = (fit.location, fit.scale) if fit.freedom is None else (fit.freedom, fit.location, fit.scale)
        own = float(np.mean(law.logpdf(x, *parameters))) / np.log(2)
        assert fit.log_likelihood == pytest.approx(own, abs=1e-9)
        best = float(np.mean(law.logpdf(x, *law.fit(x)))) / np.log(2)
        # Student-t ends at 1000 degrees of freedom, 3e-6 bits short of the Gaussian.
        assert own >= best - 5e-6, "scipy found better parameters"
        assert fit.ks == pytest.approx(stats.kstest(x, law.cdf, args=parameters).statistic, abs=1e-6)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_right_law_wins(name: str) -> None:
    found = weight_fit(SAMPLES[name])
    likelihoods = {fit.law: fit.log_likelihood for fit in found.fits}
    # Student-t contains the Gaussian, so it may only tie there.
    assert likelihoods[found.best.law if found.best else "gaussian"] - likelihoods[_law(name)] < 1e-4


def _law(name: str) -> Law:
    laws: dict[str, Law] = {"gaussian": "gaussian", "laplace": "laplace", "student-t": "student-t"}
    return laws[name]


def test_freedom_is_found() -> None:
    fit = next(fit for fit in weight_fit(SAMPLES["student-t"]).fits if fit.law == "student-t")
    assert fit.freedom == pytest.approx(4.0, rel=0.1)
    assert fit.scale == pytest.approx(0.05, rel=0.05)


def test_moments_and_outliers() -> None:
    x = np.concatenate([SAMPLES["gaussian"], [1.0, -1.0]]).astype(np.float32)
    found = weight_fit(x)
    wide = x.astype(np.float64)
    assert found.mean == pytest.approx(wide.mean(), rel=1e-9)
    assert found.std == pytest.approx(wide.std(), rel=1e-9)
    assert found.kurtosis == pytest.approx(stats.kurtosis(wide), rel=1e-9)
    assert found.beyond6 == 2 / x.size
    assert found.beyond3 == np.mean(np.abs(wide - wide.mean()) > 3 * wide.std())


def test_large_tensors_are_fitted_by_a_part() -> None:
    found = weight_fit(SAMPLES["gaussian"], fit_weights=1000)
    assert (found.count, found.fitted) == (20_000, 1000)


@pytest.mark.parametrize("weights", [np.zeros(50), np.full(50, 0.1), np.zeros(0), np.full(3, np.nan)])
def test_nothing_to_fit(weights: NDArray[np.float64]) -> None:
    found = weight_fit(weights)
    assert found.fits == () and found.best is None and found.kurtosis is None


def test_what_is_not_finite_is_left_out() -> None:
    x = np.array([0.5, np.nan, -0.5, np.inf, 0.25], np.float32)
    found = weight_fit(x)
    assert found.count == 3 and found.mean == pytest.approx(0.25 / 3)


def test_extreme_weights_overflow_nothing() -> None:
    for scale in (1e-160, 1e-300, 1e150, 1e300):
        found = weight_fit(np.array([1.0, -1.0, 0.5, 0.25]) * scale)
        assert np.isfinite(found.mean)


@pytest.mark.parametrize("law", ["gaussian", "laplace", "student-t"])
def test_code_shares_add_up_and_follow_the_histogram(law: Law) -> None:
    codes = np.clip(np.rint(SAMPLES[law] / SAMPLES[law].std() * 2.2 + 8), 0, 15).astype(np.int64)
    counts = np.bincount(codes, minlength=16)
    shares, freedom = code_shares(counts, law)
    assert shares.sum() == pytest.approx(1.0) and (shares >= 0).all()
    assert (freedom is not None) == (law == "student-t")
    assert stats.entropy(counts / counts.sum(), np.maximum(shares, 1e-30), base=2) < 0.02


def test_mean_fit_charges_the_worse_laws() -> None:
    behind = mean_fit([weight_fit(SAMPLES["laplace"]), weight_fit(np.zeros(9))])
    assert behind["laplace"] < 1e-3 < behind["gaussian"]
    assert mean_fit([]) == {}
