"""Intervals and corrections against numbers worked out elsewhere or by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.evaluation import Estimate, bootstrap_mean, holm, paired_bootstrap, wilson
from lcdd_lens.evaluation.statistics import paired_bootstrap_columns, student_difference, student_mean, student_within


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    estimate = wilson(successes / n, n)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)
    assert estimate.value == successes / n and estimate.n == n


def test_wilson_at_one_hundred_per_cent_has_the_closed_form_n_over_n_plus_z_squared() -> None:
    estimate = wilson(1.0, 80)
    assert estimate.high == 1 and estimate.low == pytest.approx(80 / (80 + 1.959963984540054**2))


@given(st.integers(1, 500), st.data())
def test_wilson_intervals_hold_the_rate_mirror_and_widen_with_confidence(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    estimate, mirror = wilson(successes / n, n), wilson(1 - successes / n, n)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert (mirror.low, mirror.high) == pytest.approx((1 - estimate.high, 1 - estimate.low))
    wider = wilson(successes / n, n, confidence=0.99)
    assert wider.low <= estimate.low and wider.high >= estimate.high


def test_bootstrap_of_a_mean_has_the_width_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    estimate = bootstrap_mean(values, seed=0, n_resamples=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_repeats_with_its_seed_and_does_not_depend_on_how_it_is_chunked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = [float(value) for value in range(30)]
    first = bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) == first != bootstrap_mean(values, seed=6)
    monkeypatch.setattr("lcdd_lens.evaluation.statistics._CHUNK", 100)
    assert bootstrap_mean(values, seed=5) == first
    assert bootstrap_mean([2.5]) == type(first)(2.5, 1, 2.5, 2.5)


def test_paired_bootstrap_sees_a_small_constant_difference_under_large_variation() -> None:
    base = np.random.default_rng(0).normal(0, 100, size=50)
    difference = paired_bootstrap(base + 1, base)
    assert (difference.value, difference.low, difference.high) == pytest.approx((1, 1, 1))
    assert difference.p_value == pytest.approx(2 / 2001)
    same = paired_bootstrap(base, base)
    assert (same.value, same.p_value) == (0, 1)
    other = np.random.default_rng(1).normal(0, 100, size=50)
    assert paired_bootstrap(base, other).p_value > 0.05
    assert paired_bootstrap(other, base).value == -paired_bootstrap(base, other).value


def test_columns_are_bootstrapped_as_each_alone_would_be() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.3, 1, size=(60, 70)), random.normal(0, 1, size=(60, 70))
    a[:, 0] = b[:, 0]
    a[:, 1] = b[:, 1] + 2
    found = paired_bootstrap_columns(a, b)
    for column in (0, 1, 2, 40, 69):
        alone = paired_bootstrap(a[:, column], b[:, column])
        assert (found[column].value, found[column].n) == (pytest.approx(alone.value), 60)
        assert (found[column].low, found[column].high) == pytest.approx((alone.low, alone.high), abs=0.03)
        assert found[column].p_value == pytest.approx(alone.p_value, abs=0.03)
    assert found[0].p_value == 1 and found[1].p_value == pytest.approx(2 / 14_001)
    assert found == paired_bootstrap_columns(a, b)


def test_columns_of_other_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="expected the same prompts"):
        paired_bootstrap_columns(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(DataError, match="all finite"):
        paired_bootstrap_columns(np.zeros((3, 2)), np.full((3, 2), np.nan))


def test_holm_by_hand() -> None:
    # sorted: .005·4, .01·3, .03·2, .04·1 -> .02, .03, .06, max(.06, .04)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_the_raw_p_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, corrected in zip(p_values, adjusted, strict=True):
        assert raw <= corrected <= min(1.0, len(p_values) * raw) + 1e-12
    by_raw = [adjusted[index] for index in np.argsort(p_values, kind="stable")]
    assert by_raw == sorted(by_raw)


def test_nonsense_is_refused() -> None:
    for rate, n in ((0.5, 0), (1.2, 10), (float("nan"), 10)):
        with pytest.raises(ConfigError, match="expected a rate between 0 and 1"):
            wilson(rate, n)
    with pytest.raises(ConfigError, match=r"confidence is 95\.0"):
        wilson(0.5, 10, confidence=95.0)
    for values in ([], [1.0, float("nan")], [float("inf")]):
        with pytest.raises(DataError, match="all finite"):
            bootstrap_mean(values)
    with pytest.raises(DataError, match="differ in number"):
        paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(ConfigError, match="p-values"):
        holm([1.5])
    with pytest.raises(ConfigError, match="n_resamples is 0"):
        bootstrap_mean([1.0], n_resamples=0)


def test_an_estimate_reads_with_its_interval_and_the_worst_of_its_draws() -> None:
    assert str(Estimate(0.5, 20, 0.3, 0.7)) == "0.5 [0.3, 0.7] (n = 20)"
    assert str(Estimate(0.5, 60, 0.3, 0.7, worst=0.25, draws=3)).endswith("(n = 60, worst of 3: 0.25)")


@pytest.mark.parametrize(
    ("t", "degrees"),
    [(12.706, 1), (4.303, 2), (3.182, 3), (2.776, 4), (2.571, 5), (2.262, 9), (2.042, 30)],
)
def test_students_distribution_has_its_published_quantiles(t: float, degrees: int) -> None:
    assert student_within(t, degrees) == pytest.approx(0.95, abs=5e-5)


def test_students_interval_is_that_of_the_textbook() -> None:
    found = student_mean([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (found.low, found.value, found.high) == pytest.approx((3 - half, 3, 3 + half), abs=1e-5)
    assert found.n == 5
    one = student_mean([0.5])
    assert one.low == one.value == one.high == 0.5


def test_a_paired_t_test_knows_the_same_seeds_from_different_ones() -> None:
    found = student_difference([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])
    # differences .1 .2 .3: t = .2 / (.1 / √3) on 2 degrees, P(|T| > t) = 1 − t/√(t² + 2)
    t = 0.2 / (0.1 / math.sqrt(3))
    assert found.value == pytest.approx(0.2) and found.p_value == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert student_difference([1.0, 2.0], [0.0, 1.0]).p_value == 0  # no spread at all
    assert student_difference([1.0], [0.0]).p_value == 1  # one seed is no test
    assert student_difference([1.0, 2.0], [1.0, 2.0]).p_value == 1
    with pytest.raises(DataError, match="same seeds"):
        student_difference([1.0], [0.0, 1.0])
