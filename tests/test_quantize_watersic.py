"""Column steps that make every column add the same error, row steps, and gains."""

import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.rate_tensor import reconstruct
from qzc.codec.table_bank import CENTER, CLASSES
from qzc.quantize.fit_bank import fit_bank
from qzc.quantize.gptq_ec import gptq_ec
from qzc.quantize.hessian import factorize
from qzc.quantize.rate import class_counts, solve
from qzc.quantize.rtn_ec import rtn_ec
from qzc.quantize.unbounded import Design, quantize_design
from qzc.quantize.watersic import eighths, watersic

F = np.float32


def gram(columns: int, seed: int = 1) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) * np.exp(rng.standard_normal(columns))
    x = rng.standard_normal((4 * columns, columns)) @ mix
    return np.asarray(x.T @ x / len(x))


def weights(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.asarray(np.random.default_rng(seed).standard_normal((rows, columns)) * 0.05, F)


@pytest.mark.parametrize("columns", [1, 6, 33, 70])
@pytest.mark.parametrize("rows", [1, 9, 600])
def test_against_a_slow_loop(rows: int, columns: int) -> None:
    w, factor = weights(rows, columns), factorize(gram(columns))
    sensitivity = np.exp(np.random.default_rng(2).standard_normal(rows))
    design = watersic(w, "F32", factor, sensitivity=sensitivity)
    tensor = quantize_design(design, 0.02 / design.scale, None).tensor
    step = tensor.column_scale.astype(np.float64) * tensor.row_scale.astype(np.float64)[:, None]
    rebuilt, codes = np.zeros(w.shape), np.zeros(w.shape)
    for c in range(columns - 1, -1, -1):
        target = w[:, c] + (w[:, c + 1 :] - rebuilt[:, c + 1 :]) @ factor.unit[c + 1 :, c].astype(np.float64)
        codes[:, c] = np.rint(target / step[:, c])
        rebuilt[:, c] = codes[:, c] * step[:, c]
    assert np.mean(codes != tensor.codes) <= 0.003


def test_every_column_adds_the_same_error() -> None:
    w, factor = weights(3000, 40), factorize(gram(40))
    design = watersic(w, "F32", factor)
    tensor = quantize_design(design, 0.02 / design.scale, None).tensor
    e = (w - reconstruct(tensor)).astype(np.float64)
    added = ((e @ (factor.unit * factor.diagonal)) ** 2).mean(axis=0)
    assert added.max() / added.min() < 1.25  # steps are rounded to an eighth of an octave: a factor of 1.09 squared


def test_the_order_of_the_factor_does_not_move_columns() -> None:
    w, h = weights(50, 30), gram(30)
    design = watersic(w, "F32", factorize(h, order="activation"))
    tensor = quantize_design(design, 0.002 / design.scale, None).tensor
    assert np.abs(w - reconstruct(tensor)).max() < 0.1 * np.abs(w).max()


def test_row_steps_follow_sensitivities() -> None:
    w = weights(64, 20)
    sensitivity = np.repeat([1.0, 16.0], 32)
    design = watersic(w, "F32", factorize(gram(20)), sensitivity=sensitivity)
    assert design.row_log is not None
    assert design.row_log[0] - design.row_log[63] == 16  # a quarter of the step: two octaves
    tensor = quantize_design(design, 0.05 / design.scale, None).tensor
    assert np.abs(tensor.codes[32:]).mean() > 3 * np.abs(tensor.codes[:32]).mean()


@pytest.mark.parametrize("sensitivity", [np.ones(3), np.array([1.0, np.nan, 1, 1]), np.array([1.0, -1, 1, 1])])
def test_sensitivities_that_make_no_sense(sensitivity: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidArgumentError, match="sensitivity of 4 rows"):
        watersic(weights(4, 5), "F32", factorize(gram(5)), sensitivity=sensitivity)


def test_eighths_of_extremes() -> None:
    log, scale = eighths(np.array([0.0, 1e-30, 1.0, 1e30]))
    assert log is not None and scale > 0 and log.min() >= -120 and log.max() <= 120
    assert eighths(None) == (None, 1.0)
    assert eighths(np.zeros(4)) == (None, 1.0)


def test_gains_are_the_least_squares_factors() -> None:
    w, factor = weights(2000, 24), factorize(gram(24))
    design = watersic(w, "F32", factor)
    step = 0.15 / design.scale  # coarse: gains are well below one
    first = quantize_design(design, step, None)
    none = np.zeros((4, 256), np.int64)
    bank = fit_bank(class_counts(first.tensor), none, first.products, first.powers, False, complete=True)
    second = quantize_design(design, step, bank)
    assert second.tensor.gain is not None and second.tensor.gain.max() <= 128 and second.tensor.gain.mean() < 115
    assert second.loss < 0.97 * first.loss
    # The error is orthogonal to what is rebuilt, nearly: gains are of classes, and the second pass has other targets.
    here = slice(bank.first, bank.first + len(bank.gain))
    rebuilt = float((second.powers[here] * bank.gain / 128).sum())
    assert second.products[here].sum() == pytest.approx(rebuilt, rel=0.03)


def test_the_ladder() -> None:
    """At one rate every step of the ladder has less error than the one before."""
    w, h = weights(450, 96), gram(96)
    w[:150] *= 3
    plain, activation = factorize(h), factorize(h, order="activation")
    full = plain.unit * plain.diagonal

    def error(design: Design) -> float:
        rated = solve([design], 2.5)
        e = (w - reconstruct(rated.tensors[0])).astype(np.float64)
        return float(((e @ full) ** 2).sum())

    losses = [
        error(rtn_ec(w, "F32")),
        error(gptq_ec(w, "F32", plain)),
        error(gptq_ec(w, "F32", activation)),
        error(watersic(w, "F32", plain, states=8)),
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.3 * losses[0]


def test_class_of_a_column_follows_its_step() -> None:
    w, factor = weights(300, 60), factorize(gram(60))
    design = watersic(w, "F32", factor)
    tensor = quantize_design(design, 0.02 / design.scale, None).tensor
    column = tensor.class_terms[1]
    size = np.log2(tensor.codes.std(axis=0)) * 8 + CENTER
    assert np.abs(column - size).mean() < 3
    assert 0 <= column.min() and column.max() < CLASSES
