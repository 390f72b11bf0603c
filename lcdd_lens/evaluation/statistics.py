"""How sure a figure is: intervals for rates and means, paired differences, and corrections for many comparisons.

- rates: Wilson's score interval, (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n);
- means of per-prompt values: percentile bootstrap over prompts;
- two conditions on the same prompts: the bootstrap of their per-prompt difference, so that hard prompts cancel;
- means over a few seeds: Student's t, since a bootstrap of five values is too sure of itself;
- several comparisons: Holm's step-down correction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from lcdd_lens.errors import ConfigError, DataError

Values = Sequence[float] | Shaped[np.ndarray, " n"] | Float[Tensor, " n"]
N_RESAMPLES = 2000
_CHUNK = 2_000_000  # resampled values held in memory at a time


@dataclass(frozen=True)
class Estimate:
    """A figure with its uncertainty.

    Attributes:
        value: the point estimate.
        n: how many observations it stands on.
        low: lower end of the interval.
        high: upper end of the interval.
        worst: the worst of several draws, where the figure is a mean over draws.
        draws: number of such draws.
    """

    value: float
    n: int
    low: float
    high: float
    worst: float | None = None
    draws: int = 1

    def to_dict(self) -> dict[str, Any]:
        """``{"value", "n", "interval": [low, high]}``, with ``worst`` and ``draws`` where there are several draws."""
        plain: dict[str, Any] = {"value": self.value, "n": self.n, "interval": [self.low, self.high]}
        return plain if self.worst is None else plain | {"worst": self.worst, "draws": self.draws}

    def __str__(self) -> str:
        worst = "" if self.worst is None else f", worst of {self.draws}: {self.worst:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] (n = {self.n}{worst})"


@dataclass(frozen=True)
class Difference:
    """Mean of a − b over the same prompts, its interval, and a two-sided p-value for "no difference"."""

    value: float
    n: int
    low: float
    high: float
    p_value: float


def wilson(rate: float, n: int, *, confidence: float = 0.95) -> Estimate:
    """A rate with Wilson's score interval.

    Args:
        rate: share of successes.
        n: number of independent trials.
        confidence: coverage of the interval.

    Raises:
        ConfigError: an argument is out of range.
    """
    if n < 1 or not 0 <= rate <= 1:
        raise ConfigError(f"a rate of {rate} with n = {n}: expected a rate between 0 and 1 and at least one trial.")
    z2_over_n = _z(confidence) ** 2 / n
    centre = (rate + z2_over_n / 2) / (1 + z2_over_n)
    half = math.sqrt(z2_over_n * (rate * (1 - rate) + z2_over_n / 4)) / (1 + z2_over_n)
    # At 0 and 1 the formula touches the end exactly; rounding must not move it inside.
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    high = 1.0 if rate == 1 else min(1.0, centre + half)
    return Estimate(float(rate), n, low, high)


def bootstrap_mean(
    values: Values, *, seed: int = 0, confidence: float = 0.95, n_resamples: int = N_RESAMPLES
) -> Estimate:
    """A mean with its percentile bootstrap interval; with one value the interval has no width.

    Args:
        values: one value a prompt.
        seed: of the resampling.
        confidence: coverage of the interval.
        n_resamples: bootstrap samples.

    Raises:
        DataError: there is no value, or one is not finite.
    """
    array = _finite(values)
    low, high = np.quantile(_resampled_means(array, seed, n_resamples), _tails(confidence))
    return Estimate(float(array.mean()), len(array), float(low), float(high))


def paired_bootstrap(
    a: Values, b: Values, *, seed: int = 0, confidence: float = 0.95, n_resamples: int = N_RESAMPLES
) -> Difference:
    """Mean of a − b over prompts that both were measured on.

    The p-value is twice the smaller share of resampled differences at or beyond 0, counting the sample itself.

    Raises:
        DataError: the two differ in length, or a value is not finite.
    """
    first, second = _finite(a), _finite(b)
    if len(first) != len(second):
        raise DataError(f"paired values differ in number ({len(first)} and {len(second)}): give the same prompts.")
    difference = first - second
    means = _resampled_means(difference, seed, n_resamples)
    low, high = np.quantile(means, _tails(confidence))
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (n_resamples + 1))
    return Difference(float(difference.mean()), len(difference), float(low), float(high), p_value)


def student_mean(values: Values, *, confidence: float = 0.95) -> Estimate:
    """A mean over few independent repetitions (seeds) with Student's interval; one value has no width.

    Raises:
        DataError: there is no value, or one is not finite.
    """
    array = _finite(values)
    half = _student_half(array, confidence)
    return Estimate(float(array.mean()), len(array), float(array.mean() - half), float(array.mean() + half))


def student_difference(a: Values, b: Values, *, confidence: float = 0.95) -> Difference:
    """Mean of a − b over the same seeds with Student's interval and the paired t-test's two-sided p-value.

    With a single seed there is no test: p is 1.

    Raises:
        DataError: the two differ in length, or a value is not finite.
    """
    first, second = _finite(a), _finite(b)
    if len(first) != len(second):
        raise DataError(f"paired values differ in number ({len(first)} and {len(second)}): give the same seeds.")
    difference = first - second
    mean, half, p_value = float(difference.mean()), _student_half(difference, confidence), 1.0
    if len(difference) > 1:
        error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
        t = abs(mean) / error if error else math.inf if mean else 0.0
        p_value = 1 - student_within(t, len(difference) - 1)
    return Difference(mean, len(difference), mean - half, mean + half, p_value)


def student_within(t: float, degrees: int) -> float:
    """P(|T| ≤ t) of Student's distribution with a whole number of degrees of freedom, by its finite series.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if math.isinf(t):
        return 1.0
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    total, term = 0.0, cosine if odd else 1.0
    for k in range(1, degrees // 2 + 1):
        total += term
        term *= cosine**2 * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _student_half(values: Float[np.ndarray, " n"], confidence: float) -> float:
    """Half the width of Student's interval: the quantile by bisection, times the standard error."""
    if len(values) < 2:
        return 0.0
    _tails(confidence)
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if student_within(middle, len(values) - 1) > confidence else (middle, high)
    return high * float(values.std(ddof=1)) / math.sqrt(len(values))


def paired_bootstrap_columns(
    a: Float[np.ndarray, "n column"],
    b: Float[np.ndarray, "n_b column_b"],
    *,
    seed: int = 0,
    confidence: float = 0.95,
    n_resamples: int | None = None,
) -> list[Difference]:
    """:func:`paired_bootstrap` of many columns over the same prompts, with the same resamples for all of them.

    Args:
        a: one row a prompt.
        b: the same prompts.
        seed: of the resampling.
        confidence: coverage of the intervals.
        n_resamples: bootstrap samples; None: so many that Holm's correction of all columns can reach 0.01.

    Raises:
        DataError: the two differ in shape, or a value is not finite.
    """
    if a.shape != b.shape or not len(a) or not np.isfinite(a).all() or not np.isfinite(b).all():
        raise DataError(f"paired values of shapes {a.shape} and {b.shape}: expected the same prompts, all finite.")
    difference = a.astype(np.float64) - b.astype(np.float64)
    n, n_columns = difference.shape
    draws = max(N_RESAMPLES, 200 * n_columns) if n_resamples is None else n_resamples
    # How often each prompt is drawn is all that a mean over a resample needs.
    shares = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) / n
    found = []
    for start in range(0, n_columns, 64):
        chosen = difference[:, start : start + 64]
        means = shares @ chosen
        low, high = np.quantile(means, _tails(confidence), axis=0)
        beyond = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
        for column, value in enumerate(chosen.mean(0)):
            p_value = min(1.0, 2 * (int(beyond[column]) + 1) / (draws + 1))
            found.append(Difference(float(value), n, float(low[column]), float(high[column]), p_value))
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given: the i-th smallest of m is multiplied by m − i + 1, kept monotone.

    Raises:
        ConfigError: a p-value is not between 0 and 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ConfigError(f"p-values {list(p_values)}: expected numbers between 0 and 1.")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(_tails(confidence)[1])


def _tails(confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}: expected a number between 0 and 1, for example 0.95.")
    return (1 - confidence) / 2, (1 + confidence) / 2


def _finite(values: Values) -> Float[np.ndarray, " n"]:
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise DataError("a mean needs at least one value, all finite.")
    return array


def _resampled_means(values: Float[np.ndarray, " n"], seed: int, n_resamples: int) -> Float[np.ndarray, " resample"]:
    if n_resamples < 1:
        raise ConfigError(f"n_resamples is {n_resamples}: expected at least 1.")
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(values))
    return np.concatenate(
        [
            values[random.integers(len(values), size=(min(rows, n_resamples - start), len(values)))].mean(axis=1)
            for start in range(0, n_resamples, rows)
        ]
    )
