"""Which distribution weights follow: Gaussian, Laplace and Student-t by maximum likelihood, tails and outliers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from math import erf, exp, lgamma, log, log2, pi, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Law = Literal["gaussian", "laplace", "student-t"]
FIT_WEIGHTS = 1 << 16  # values that a fit looks at; its parameters are then good to a percent or so
_MOST_FREEDOM = 1000.0  # above it Student-t cannot be told from a Gaussian
_LOG_2 = log(2.0)


@dataclass(frozen=True)
class Fit:
    """A distribution with its best parameters.

    location, scale: mean and standard deviation (gaussian), median and mean absolute deviation (laplace), location and
    scale (student-t). freedom: degrees of freedom of Student-t, from 1 to 1000; None for the others.
    log_likelihood: mean of log2 of the density, in bits per weight; a difference of it between two laws is what coding by
    the worse one wastes. ks: largest distance between the distribution functions (Kolmogorov and Smirnov), 0 .. 1.
    """

    law: Law
    location: float
    scale: float
    freedom: float | None
    log_likelihood: float
    ks: float


@dataclass(frozen=True)
class WeightFit:
    """The distribution of a tensor's weights. count, mean .. beyond6: of all finite ones; fits: of `fitted` of them.

    kurtosis: excess, 0 for a Gaussian, 3 for Laplace. beyond3, beyond6: share of weights further than 3 and 6 standard
    deviations from the mean (0.0027 and 2e-9 for a Gaussian). fits: empty where all weights are equal.
    """

    count: int
    mean: float
    std: float
    kurtosis: float | None
    beyond3: float
    beyond6: float
    fitted: int
    fits: tuple[Fit, ...]

    @property
    def best(self) -> Fit | None:
        """The fit of highest likelihood."""
        return max(self.fits, key=lambda fit: fit.log_likelihood, default=None)


def weight_fit(weights: NDArray[Any], fit_weights: int = FIT_WEIGHTS) -> WeightFit:
    """Moments of all weights (any float dtype and shape) and fits to an evenly spaced part of at most `fit_weights`.

    NaN and infinite weights are left out. Works in float64, piece by piece.
    """
    flat = weights.reshape(-1)
    step = 1 << 18
    pieces = range(0, flat.size, step)

    def finite(start: int) -> NDArray[np.float64]:
        return _finite(flat[start : start + step])

    ends = [(piece.size, float(np.abs(piece).max(initial=0.0))) for piece in map(finite, pieces)]
    count, largest = sum(size for size, _ in ends), max((end for _, end in ends), default=0.0)
    if count == 0 or largest == 0.0:
        return WeightFit(count, 0.0, 0.0, None, 0.0, 0.0, 0, ())
    # In units of the largest weight nothing overflows, whatever the dtype holds.
    mean = sum(float((piece / largest).sum()) for piece in map(finite, pieces)) / count
    second = fourth = 0.0
    for piece in map(finite, pieces):
        squares = np.square(piece / largest - mean)
        second += float(squares.sum())
        fourth += float(np.square(squares).sum())
    std = sqrt(second / count)
    if std <= 1e-12:
        return WeightFit(count, mean * largest, std * largest, None, 0.0, 0.0, 0, ())
    beyond = [0, 0]
    for piece in map(finite, pieces):
        distance = np.abs(piece / largest - mean)
        beyond[0] += int(np.count_nonzero(distance > 3 * std))
        beyond[1] += int(np.count_nonzero(distance > 6 * std))
    part = finite_sample(flat, fit_weights) / largest
    part.sort()
    fits = (_gaussian(part), _laplace(part), _student(part)) if part.size > 1 and part[0] < part[-1] else ()
    return WeightFit(
        count,
        mean * largest,
        std * largest,
        fourth / count / std**4 - 3.0,
        beyond[0] / count,
        beyond[1] / count,
        part.size,
        tuple(
            replace(
                fit,
                location=fit.location * largest,
                scale=fit.scale * largest,
                log_likelihood=fit.log_likelihood - log2(largest),
            )
            for fit in fits
        ),
    )


def finite_sample(weights: NDArray[Any], count: int) -> NDArray[np.float64]:
    """At most `count` finite weights, evenly spread, as float64 `[n]` (a copy)."""
    flat = weights.reshape(-1)
    if flat.size > count:
        flat = flat[np.linspace(0, flat.size - 1, count).astype(np.int64)]
    return _finite(flat)


def _finite(weights: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):
        values = weights.astype(np.float64)
    ok = np.isfinite(values)
    return values if ok.all() else values[ok]


def code_shares(counts: NDArray[np.int64], law: Law) -> tuple[NDArray[np.float64], float | None]:
    """The best discrete version of a law for a histogram of codes: shares `[levels]` that add up to 1, and its freedom.

    Code c takes the probability of `c - 1/2 .. c + 1/2`, the first and last one everything beyond. The location is the
    mean code (median for laplace), the scale and the freedom those of highest likelihood.
    """
    n = counts.sum()
    codes = np.arange(counts.size)
    mean = float((counts * codes).sum() / n)
    location = float(np.searchsorted(np.cumsum(counts), n / 2)) if law == "laplace" else mean
    spread = max(sqrt(float((counts * (codes - mean) ** 2).sum() / n)), 1e-3)
    edges = codes[1:] - 0.5 - location
    freedoms = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 50.0) if law == "student-t" else (None,)
    best: tuple[float, NDArray[np.float64], float | None] | None = None
    for freedom in freedoms:
        for ratio in np.exp2(np.linspace(-2.5, 1.5, 65)):
            inner = _cdf(law, edges / (spread * ratio), freedom)
            shares = np.diff(np.concatenate([[0.0], inner, [1.0]]))
            loss = -float((counts * np.log2(np.maximum(shares, 1e-30))).sum())
            if best is None or loss < best[0]:
                best = loss, shares, freedom
    assert best is not None
    return best[1], best[2]


def mean_fit(fits: Iterable[WeightFit]) -> dict[str, float]:
    """How many bits per weight each law stays behind the best one of its tensor, over all tensors, by weights."""
    known = [fit for fit in fits if fit.fits]
    total = sum(fit.count for fit in known)
    behind: dict[str, float] = {}
    for fit in known:
        best = max(one.log_likelihood for one in fit.fits)
        for one in fit.fits:
            behind[one.law] = behind.get(one.law, 0.0) + (best - one.log_likelihood) * fit.count / total
    return behind


# ---------------------------------------------------------------------------------------------- the three laws
def _gaussian(x: NDArray[np.float64]) -> Fit:
    mean, std = float(x.mean()), float(x.std())
    likelihood = -0.5 * log(2 * pi * std * std) - 0.5
    return _fit("gaussian", x, mean, std, None, likelihood)


def _laplace(x: NDArray[np.float64]) -> Fit:
    median = float(np.median(x))
    scale = float(np.abs(x - median).mean())
    return _fit("laplace", x, median, scale, None, -log(2 * scale) - 1.0)


def _student(x: NDArray[np.float64]) -> Fit:
    """ECME (Liu and Rubin, 1995): weights for location and scale, then the freedom of highest likelihood given both."""
    location, scale, freedom = float(np.median(x)), float(x.std()), 8.0
    likelihood = -float("inf")
    for _ in range(200):
        squares = ((x - location) / scale) ** 2
        weights = (freedom + 1) / (freedom + squares)
        location = float((weights * x).sum() / weights.sum())
        scale = sqrt(float((weights * (x - location) ** 2).mean()))
        squares = ((x - location) / scale) ** 2
        freedom, found = _best_freedom(squares, freedom)
        found -= log(scale)
        if found - likelihood < 1e-10:
            likelihood = max(found, likelihood)
            break
        likelihood = found
    return _fit("student-t", x, location, scale, freedom, likelihood)


def _best_freedom(squares: NDArray[np.float64], near: float) -> tuple[float, float]:
    """A step of Newton's method on the logarithm of the freedom; and the likelihood after it (for scale 1)."""

    def likelihood(log_freedom: float) -> float:
        nu = exp(log_freedom)
        constant = lgamma((nu + 1) / 2) - lgamma(nu / 2) - 0.5 * log(nu * pi)
        return constant - (nu + 1) / 2 * float(np.log1p(squares / nu).mean())

    at, h = log(near), 0.01
    below, here, above = likelihood(at - h), likelihood(at), likelihood(at + h)
    slope, bend = (above - below) / (2 * h), (above - 2 * here + below) / (h * h)
    step = -slope / bend if bend < 0 else (1.0 if slope > 0 else -1.0)
    at = min(max(at + min(max(step, -1.0), 1.0), 0.0), log(_MOST_FREEDOM))
    after = likelihood(at)
    return (exp(at), after) if after >= here else (near, here)


def _fit(law: Law, x: NDArray[np.float64], location: float, scale: float, freedom: float | None, nats: float) -> Fit:
    expected = _cdf(law, (x - location) / scale, freedom)
    n = x.size
    above, below = np.arange(1, n + 1) / n - expected, expected - np.arange(n) / n
    return Fit(law, location, scale, freedom, nats / _LOG_2, float(max(above.max(), below.max())))


def _cdf(law: Law, z: NDArray[np.float64], freedom: float | None) -> NDArray[np.float64]:
    """Distribution function at standardised values."""
    if law == "laplace":
        tail = 0.5 * np.exp(-np.abs(z))
        return np.where(z < 0, tail, 1.0 - tail)
    if law == "gaussian":
        return np.interp(z, *_normal_table())
    assert freedom is not None
    return np.interp(np.arctan(z / sqrt(freedom)), *_student_table(round(freedom, 6)))


@cache
def _normal_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Linear between 80,000 places: 2e-9 off at most."""
    z = np.linspace(-10.0, 10.0, 80_001)
    return z, np.array([0.5 * (1.0 + erf(value / sqrt(2.0))) for value in z])


@lru_cache(maxsize=16)
def _student_table(freedom: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """With t = sqrt(nu) tan(angle) the density is cos(angle)^(nu - 1): smooth and bounded, so a fine sum will do."""
    angle = np.linspace(-pi / 2, pi / 2, 40_001)
    density = np.maximum(np.cos(angle), 0.0) ** (freedom - 1.0)
    steps = (density[1:] + density[:-1]) / 2
    cumulative = np.concatenate([[0.0], np.cumsum(steps)])
    return angle, cumulative / cumulative[-1]
