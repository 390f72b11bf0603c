"""Overlap against chance, with strata and without."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.overlap import auroc, hypergeometric, set_overlap, spearman


def flags(n: int, *members: int) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[list(members)] = True
    return found


def test_jaccard_and_its_chance_value() -> None:
    found = set_overlap(flags(10, 0, 1, 2), flags(10, 1, 2, 3))
    assert found.shared == 2 and found.jaccard == pytest.approx(2 / 4)
    assert found.chance == pytest.approx(3 / (2 * 10 - 3))
    # 3 of 10 against 3 of 10: (C(3,2)·C(7,1) + 1) / C(10,3)
    assert found.p_value == pytest.approx((3 * 7 + 1) / math.comb(10, 3))
    assert found.stratified_p_value == pytest.approx(found.p_value)


def test_two_sets_that_share_a_site_but_no_choice_are_at_stratified_chance() -> None:
    strata = np.repeat([0, 1], [4, 96])
    found = set_overlap(flags(100, 0, 1), flags(100, 1, 2), strata)
    assert found.jaccard == pytest.approx(1 / 3)
    assert found.chance < 0.02 < found.stratified_chance == pytest.approx(1 / 3)
    assert found.p_value < 0.05 < found.stratified_p_value == pytest.approx(1 - 1 / 6)


def test_the_stratified_p_value_is_the_share_of_draws_that_overlap_as_much() -> None:
    random = np.random.default_rng(0)
    strata = np.repeat([0, 1, 2], [5, 8, 12])
    a, b = random.random(25) < 0.4, random.random(25) < 0.4
    found = set_overlap(a, b, strata)
    shuffled = []
    for _ in range(4000):
        c = b.copy()
        for group in range(3):
            c[strata == group] = random.permutation(b[strata == group])
        shuffled.append(int((a & c).sum()))
    assert found.stratified_p_value == pytest.approx(np.mean(np.array(shuffled) >= found.shared), abs=0.03)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.data())
def test_hypergeometric_probabilities_sum_to_one_with_the_known_mean(n: int, data: st.DataObject) -> None:
    k_a, k_b = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    probabilities = hypergeometric(n, k_a, k_b)
    assert probabilities.sum() == pytest.approx(1.0)
    assert (probabilities * np.arange(len(probabilities))).sum() == pytest.approx(k_a * k_b / n)


def test_rank_correlation_and_auroc_of_simple_cases() -> None:
    assert spearman(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1.0)
    assert spearman(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1.0)
    assert spearman(np.array([1.0, 2, 3, np.nan]), np.array([1.0, 2, 3, -9])) == pytest.approx(1.0)
    assert spearman(np.ones(5), np.arange(5.0)) is None
    assert auroc(np.array([3.0, 2, 1, 0]), flags(4, 0, 1)) == 1.0
    assert auroc(np.array([0.0, 1, 2, 3]), flags(4, 0, 1)) == 0.0
    assert auroc(np.ones(4), flags(4, 0)) == 0.5
    assert auroc(np.ones(4), flags(4)) is None


def test_sets_of_different_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="sets of 4 and 5 channels"):
        set_overlap(flags(4, 0), flags(5, 0))
