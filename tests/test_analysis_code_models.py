"""Models of codes, against entropies computed pair by pair in plain Python and scipy."""

from collections import Counter
from itertools import pairwise
from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from qzc.analysis.code_models import (
    code_models,
    combine,
    contexts_cost,
    sampling_error,
    table_bits,
)
from qzc.analysis.entropy import shannon_entropy
from qzc.codec.errors import InvalidArgumentError


def some_codes(bits: int, shape: tuple[int, int] = (60, 47), seed: int = 0) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    top = (1 << bits) - 1
    return np.clip(np.rint(random.standard_normal(shape) * top / 6 + top / 2), 0, top).astype(np.uint8)


def corrected(counts: NDArray[np.int64]) -> float:
    return contexts_cost(counts[None], int(counts.sum()), 16).corrected


def conditional(pairs: list[tuple[int, int]]) -> float:
    """Bits of the second given the first, all pairs together."""
    contexts, joint = Counter(a for a, _ in pairs), Counter(pairs)
    return -sum(n * log2(n / contexts[a]) for (a, _), n in joint.items())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_entropies_are_those_of_plain_counting(bits: int) -> None:
    codes = some_codes(bits)
    found = code_models(codes, bits)
    rows, columns = codes.shape
    order0 = float(stats.entropy(np.bincount(codes.reshape(-1)), base=2))
    assert found.order0.plugin == pytest.approx(order0, abs=1e-9)
    along = [(int(a), int(b)) for row in codes for a, b in pairwise(row)]
    down = [(int(a), int(b)) for column in codes.T for a, b in pairwise(column)]
    assert found.row.plugin == pytest.approx((conditional(along) + rows * order0) / codes.size, abs=1e-9)
    assert found.column.plugin == pytest.approx((conditional(down) + columns * order0) / codes.size, abs=1e-9)


def test_slabs_do_not_matter() -> None:
    """More rows than are counted at a time: pairs across the seam count as well."""
    codes = some_codes(4, (700, 1000))
    found = code_models(codes, 4)
    whole = np.zeros((16, 16), np.int64)
    np.add.at(whole, (codes[:-1].reshape(-1), codes[1:].reshape(-1)), 1)
    cost = contexts_cost(whole, codes.size, 4)
    assert found.column.plugin == pytest.approx(cost.plugin + 1000 / codes.size * found.order0.plugin, abs=1e-9)


def test_a_neighbour_that_tells_everything() -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8), (64, 8))
    found = code_models(codes, 4)
    assert found.order0.plugin == pytest.approx(4.0)
    assert found.row.plugin == pytest.approx(4.0 * 64 / codes.size)
    assert found.column.plugin == pytest.approx(4.0 * 128 / codes.size)


def test_classes_find_rows_of_different_scale() -> None:
    random = np.random.default_rng(0)
    scale = np.where(np.arange(512) % 2, 2.5, 0.4)[:, None]
    codes = np.clip(np.rint(random.standard_normal((512, 512)) * scale + 8), 0, 15).astype(np.uint8)
    found = code_models(codes, 4)
    by_row = [float(stats.entropy(np.bincount(part.reshape(-1)), base=2)) for part in (codes[::2], codes[1::2])]
    assert found.classes.plugin <= sum(by_row) / 2 + 1e-3
    assert found.classes.with_tables < found.order0.with_tables - 0.3
    # 512 rows have a class byte each; so have the columns if any of them is off by an eighth of an octave
    told = 8 * 512 / codes.size
    tables = found.classes.tables * table_bits(4) / codes.size
    extra = found.classes.with_tables - found.classes.plugin - tables
    assert extra == pytest.approx(told) or extra == pytest.approx(2 * told)


def test_tables_are_counted() -> None:
    codes = some_codes(4)
    found = code_models(codes, 4)
    assert found.order0.with_tables == pytest.approx(found.order0.plugin + 128 / codes.size)
    assert code_models(some_codes(8), 8).order0.with_tables > found.order0.with_tables + 3072 / codes.size
    assert found.row.tables == 1 + len(np.unique(codes[:, :-1]))


@given(st.lists(st.integers(0, 6000), min_size=1, max_size=40))
def test_correction_is_grassbergers_formula(counts: list[int]) -> None:
    n = np.array([c for c in counts if c], np.float64)
    if n.size < 2:
        return  # nothing to estimate

    def g(n: Any) -> Any:
        return special.digamma(n) + np.where(n % 2, -0.5, 0.5) * (special.digamma((n + 1) / 2) - special.digamma(n / 2))

    expected = max(0.0, (g(n.sum()) - (n * g(n)).sum() / n.sum()) / np.log(2))
    assert corrected(np.array(counts)) == pytest.approx(expected, abs=1e-8)


def test_correction_beats_the_plain_estimate_on_few_codes() -> None:
    random = np.random.default_rng(3)
    p = random.dirichlet(np.ones(256))
    truth = float(stats.entropy(p, base=2))
    drawn = [np.bincount(random.choice(256, 300, p=p), minlength=256) for _ in range(50)]
    plain = np.mean([stats.entropy(c, base=2) for c in drawn])
    first_order = plain + np.mean([(np.count_nonzero(c) - 1) / (2 * 300 * np.log(2)) for c in drawn])
    better = np.mean([corrected(c) for c in drawn])
    assert abs(better - truth) < abs(first_order - truth) < abs(plain - truth)
    assert abs(better - truth) < 0.15 * abs(plain - truth)


def test_independent_codes_have_no_order_1() -> None:
    """The plug-in estimate finds structure in noise, the corrected one much less."""
    found = code_models(some_codes(8, (100, 300)), 8)
    seen = found.order0.plugin - found.row.plugin
    assert seen > 0.5
    assert abs(found.order0.corrected - found.row.corrected) < seen / 3
    assert found.row.with_tables > found.order0.with_tables


def test_error_of_a_sample_is_its_spread() -> None:
    random = np.random.default_rng(5)
    everything = np.clip(np.rint(random.standard_normal((40_000, 16)) * 2 + 8), 0, 15).astype(np.uint8)
    truth = code_models(everything, 4).order0.plugin
    offs, errors = [], []
    for _ in range(40):
        part = everything[np.sort(random.choice(len(everything), 1000, replace=False))]
        counts = np.bincount(part.reshape(-1), minlength=16)
        offs.append(shannon_entropy(counts) - truth)
        errors.append(sampling_error(part, counts, 1000 / len(everything)))
    assert np.std(offs) == pytest.approx(np.mean(errors), rel=0.5)
    assert sampling_error(everything, np.bincount(everything.reshape(-1), minlength=16), 1.0) == 0.0
    one_row = everything.reshape(1, -1)[:, :1000]
    assert 0 < sampling_error(one_row, np.bincount(one_row[0], minlength=16), 0.1) < 0.1


def test_no_codes_cost_nothing() -> None:
    found = code_models(np.zeros((0, 5), np.uint8), 4)
    assert found.count == 0 and found.order0.plugin == 0.0 and combine([found]) is None


def test_tensors_together_weigh_by_their_codes() -> None:
    one, other = code_models(some_codes(4, (10, 20)), 4), code_models(some_codes(4, (30, 20), seed=1), 4)
    both = combine([one, other])
    assert both is not None and both.count == 800
    assert both.order0.plugin == pytest.approx(0.25 * one.order0.plugin + 0.75 * other.order0.plugin)


@pytest.mark.parametrize(
    ("codes", "message"),
    [(np.full((2, 2), 16, np.uint8), "does not fit a grid of 4 bits"), (np.zeros(4, np.uint8), "uint8 matrix")],
)
def test_bad_codes_are_refused(codes: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        code_models(codes, 4)
