"""Error feedback: against the definition of GPTQ with an inverse Cholesky factor, and against slow loops."""

import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.rate_tensor import reconstruct
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, Strategy
from qzc.quantize import quantize
from qzc.quantize.gptq import gptq
from qzc.quantize.gptq_ec import gptq_ec
from qzc.quantize.hessian import Factor, Order, factorize
from qzc.quantize.unbounded import quantize_design

F = np.float32


def gram(columns: int, seed: int = 1, rank: int | None = None) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((rank or columns, columns)) * np.exp(rng.standard_normal(columns))
    x = rng.standard_normal((4 * columns, len(mix))) @ mix
    return np.asarray(x.T @ x / len(x))


def weights(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.asarray(np.random.default_rng(seed).standard_normal((rows, columns)) * 0.05, F)


def loss(w: NDArray[np.float32], rebuilt: NDArray[np.float32], h: NDArray[np.float64]) -> float:
    e = w.astype(np.float64) - rebuilt.reshape(w.shape)
    return float(((e @ h) * e).sum())


@pytest.mark.parametrize("columns", [1, 2, 31, 64, 65, 130, 200])
def test_factor_is_that_of_the_damped_matrix(columns: int) -> None:
    h = gram(columns)
    factor = factorize(h, 0.02)
    lower = factor.unit * factor.diagonal
    np.testing.assert_allclose(lower @ lower.T, h + 0.02 * np.diag(h).mean() * np.eye(columns), rtol=1e-4, atol=1e-6)
    assert not np.triu(factor.unit, 1).any()


def test_only_the_lower_triangle_is_read() -> None:
    h = gram(90)
    np.testing.assert_array_equal(factorize(np.tril(h)).unit, factorize(h).unit)


def test_threads_do_not_change_the_factor() -> None:
    h = gram(700)
    backwards = lambda f, items: [f(i) for i in reversed(list(items))]  # noqa: E731
    np.testing.assert_array_equal(factorize(h, run=backwards).unit, factorize(h).unit)


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("kind", ["rank one", "dead inputs", "all dead", "huge", "tiny"])
def test_degenerate_statistics(kind: str, order: Order) -> None:
    h = gram(40, rank=1 if kind == "rank one" else None)
    if kind == "dead inputs":
        h[5:9] = h[:, 5:9] = 0
    h = h * {"all dead": 0.0, "huge": 1e30, "tiny": 1e-30}.get(kind, 1.0)
    factor = factorize(h, order=order)
    assert np.isfinite(factor.unit).all() and (factor.diagonal > 0).all()
    w = weights(6, 40)
    result = quantize_design(gptq_ec(w, "F32", factor), 1e-3 * float(np.sqrt((factor.diagonal**2).mean())), None)
    assert np.abs(w - reconstruct(result.tensor)).max() < 0.2


@pytest.mark.parametrize(
    ("h", "words"),
    [
        (np.ones((3, 4)), "square"),
        (np.full((3, 3), np.nan), "NaN"),
        (np.diag([1.0, -1.0, 1.0]), "negative"),
        (np.array([[1.0, 0.0], [9.0, 1.0]]), "positive semidefinite"),
    ],
)
def test_matrices_that_are_no_statistics(h: NDArray[np.float64], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        factorize(h, name="blk")


def published(
    w: NDArray[np.float64], h: NDArray[np.float64], scale: NDArray[np.float64], lowest: float, highest: float
) -> NDArray[np.float64]:
    """Algorithm 1 of arXiv 2210.17323, without its blocks: levels of columns in natural order, first column first.

    scale: [rows, columns]. The inverse Cholesky factor is upper triangular; rows of it spread the errors.
    """
    inverse = np.linalg.inv(h)
    upper = np.linalg.cholesky(inverse).T
    w = w.copy()
    levels = np.empty_like(w)
    for j in range(w.shape[1]):
        levels[:, j] = np.clip(np.rint(w[:, j] / scale[:, j]), lowest, highest)
        error = (w[:, j] - levels[:, j] * scale[:, j]) / upper[j, j]
        w[:, j:] -= error[:, None] * upper[j, j:]
    return levels


@pytest.mark.parametrize(("strategy", "group"), [("tensor", None), ("channel", None), ("group", 16), ("group", 7)])
def test_gptq_is_the_published_algorithm(strategy: Strategy, group: int | None) -> None:
    """Ours goes from the last column to the first: theirs on columns in reverse order."""
    columns = 70
    w, h = weights(9, columns), gram(columns)
    args = QuantizationArgs(4, True, strategy, group, "mse", "float32")
    result = gptq(w, args, "F32", factorize(h, 0.01))
    damped = h + 0.01 * np.diag(h).mean() * np.eye(columns)
    grid = np.broadcast_to(result.scale.reshape(-1, result.scale.shape[-1]), (9, result.scale.shape[-1]))
    scale = np.repeat(grid, group or columns, axis=1)[:, :columns].astype(np.float64)
    flip = slice(None, None, -1)
    expected = published(w.astype(np.float64)[:, flip], damped[flip, flip], scale[:, flip], -8, 7)[:, flip]
    assert np.mean(result.codes.astype(int) - 8 != expected) < 0.005  # float32 may round a tie the other way


@pytest.mark.parametrize("order", ["natural", "activation"])
def test_errors_solve_the_triangular_system(order: Order) -> None:
    """With the rounding errors d of the targets fixed, the errors of the weights e are those with e L = d diag(L)."""
    columns = 50
    w, h = weights(8, columns), gram(columns)
    factor = factorize(h, order=order)
    step = 0.03
    tensor = quantize_design(gptq_ec(w, "F32", factor), step * float(np.sqrt((factor.diagonal**2).mean())), None).tensor
    p = np.arange(columns) if factor.order is None else factor.order
    e = (w - reconstruct(tensor)).astype(np.float64)[:, p]
    d = e @ factor.unit  # e L / diag(L): the rounding errors of the targets
    assert np.abs(d).max() <= step / 2 * 1.001
    assert np.abs(e).max() > step / 2 * 1.01  # and the weights themselves are not the nearest


@pytest.mark.parametrize("columns", [1, 5, 33, 100])
@pytest.mark.parametrize("rows", [1, 3, 520])
def test_unbounded_feedback_against_a_slow_loop(rows: int, columns: int) -> None:
    w, factor = weights(rows, columns), factorize(gram(columns))
    step = 0.02 * float(np.sqrt((factor.diagonal**2).mean()))
    result = quantize_design(gptq_ec(w, "F32", factor), step, None)
    width = float(result.tensor.step)
    rebuilt = np.zeros(w.shape)
    levels = np.zeros(w.shape)
    for c in range(columns - 1, -1, -1):
        target = w[:, c] + (w[:, c + 1 :] - rebuilt[:, c + 1 :]) @ factor.unit[c + 1 :, c].astype(np.float64)
        levels[:, c] = np.rint(target / width)
        rebuilt[:, c] = levels[:, c] * width
    assert np.mean(levels != result.tensor.codes) <= 0.003
    damped = (factor.unit * factor.diagonal) @ (factor.unit * factor.diagonal).T
    order = np.arange(columns) if factor.order is None else factor.order
    assert result.loss == pytest.approx(loss(w[:, order], reconstruct(result.tensor)[:, order], damped), rel=1e-3)


def test_feedback_helps_and_order_helps() -> None:
    w, h = weights(200, 96), gram(96)
    args = QuantizationArgs(3, True, "channel", None, "mse")

    def error(result: QuantizedTensor) -> float:
        return loss(w, result.dequantize(), h)

    plain = error(quantize(w, args, "F32"))
    natural = error(gptq(w, args, "F32", factorize(h)))
    activation = error(gptq(w, args, "F32", factorize(h, order="activation")))
    assert activation < natural < 0.7 * plain


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_all_grids(bits: int, symmetric: bool) -> None:
    w = weights(30, 45)
    w[4] = 0
    args = QuantizationArgs(bits, symmetric, "group", 16, "mse")
    result = gptq(w, args, "F32", factorize(gram(45)))
    assert result.codes.max() < 2**bits
    np.testing.assert_array_equal(result.scale, quantize(w, args, "F32", all_levels=True).scale)


def test_identity_means_rounding_to_nearest() -> None:
    """Without correlations there is nothing to feed back."""
    w = weights(20, 33)
    for args in (QuantizationArgs(4, True, "channel", None, "mse"), QuantizationArgs(3, False, "group", 8, "absmax")):
        result = gptq(w, args, "F32", factorize(np.eye(33)))
        np.testing.assert_array_equal(result.codes, quantize(w, args, "F32", all_levels=True).codes)


def test_statistics_of_another_layer_are_refused() -> None:
    factor: Factor = factorize(np.eye(5))
    with pytest.raises(InvalidArgumentError, match="blk has 6 inputs"):
        gptq(weights(3, 6), QuantizationArgs(), "F32", factor, name="blk")
    with pytest.raises(InvalidArgumentError, match="blk has 6 inputs"):
        gptq_ec(weights(3, 6), "F32", factor, name="blk")
