"""Faithfulness: how much of the behaviour comes back when only some channels are open.

    F(m) = (𝓜(m) − 𝓜(0)) / (𝓜(1) − 𝓜(0))          𝓜(·) = mean over prompts (ratio of means)

m = 1 is the fine-tuned model, m = 0 the base, and m_k opens the k most important channels of a ranking; weights stay.
F = 1: as much behaviour as after fine-tuning; 0: as in the base; below 0 or above 1 is possible. Of the curve F(k) are
reported its area on linear and on log k (MIB's CPR), the area of |1 − F| (MIB's CMD; small is good), and the smallest
k with F ≥ 0.9. Intervals resample prompts, the same resamples for everything that is compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lcdd_lens.attribution.contrast import Contrast
from lcdd_lens.attribution.scores import ChannelScores, Ranking
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.evaluation.statistics import Difference, Estimate

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all channels at which F is measured."""
Area: TypeAlias = Callable[[np.ndarray, Sequence[float]], np.ndarray]
FAITHFUL = 0.9
"""The F that counts as faithful."""


class PromptBootstrap:
    """Resamples of the same prompts, shared by everything that is compared.

    Args:
        n_prompts: number of prompts.
        seed: of the resampling.
        n_resamples: bootstrap samples.
        confidence: coverage of intervals.
    """

    def __init__(self, n_prompts: int, *, seed: int = 0, n_resamples: int = 2000, confidence: float = 0.95) -> None:
        if n_prompts < 1 or n_resamples < 1 or not 0 < confidence < 1:
            raise ConfigError(
                "a bootstrap needs prompts, resamples and a confidence between 0 and 1; "
                f"got {n_prompts}, {n_resamples} and {confidence}."
            )
        self.n_prompts, self.confidence = n_prompts, confidence
        drawn = np.random.default_rng(seed).integers(n_prompts, size=(n_resamples, n_prompts))
        counts = np.stack([np.bincount(row, minlength=n_prompts) for row in drawn])
        self._weights = counts / n_prompts

    def means(self, values: Float[np.ndarray, "prompt *rest"]) -> Float[np.ndarray, "resample *rest"]:
        """Mean over prompts in every resample."""
        if len(values) != self.n_prompts:
            raise DataError(f"{len(values)} values for {self.n_prompts} prompts: expected one per prompt.")
        return np.tensordot(self._weights, values, axes=1)

    def interval(self, resampled: Float[np.ndarray, " resample"]) -> tuple[float, float]:
        """Percentile interval."""
        low, high = np.quantile(resampled, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return float(low), float(high)

    def estimate(self, value: float, resampled: Float[np.ndarray, " resample"]) -> Estimate:
        """A figure with its interval."""
        return Estimate(float(value), self.n_prompts, *self.interval(resampled))

    def difference(self, value: float, resampled: Float[np.ndarray, " resample"]) -> Difference:
        """A difference with its interval and a two-sided p-value, as in :func:`paired_bootstrap`."""
        beyond = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
        p_value = min(1.0, 2 * (beyond + 1) / (len(resampled) + 1))
        return Difference(float(value), self.n_prompts, *self.interval(resampled), p_value)


@dataclass(frozen=True)
class Recovery:
    """F and its resamples."""

    value: float
    resampled: Float[np.ndarray, " resample"]


@dataclass(frozen=True)
class Anchors:
    """𝓜 of the fine-tuned model and of the base on the same prompts: where F is 1 and where it is 0.

    Raises:
        DataError: the fine-tuned model does not show more of the behaviour than the base.
    """

    full: Float[np.ndarray, " prompt"]
    empty: Float[np.ndarray, " prompt"]
    bootstrap: PromptBootstrap

    def __post_init__(self) -> None:
        if self.full.mean() <= self.empty.mean():
            raise DataError(
                f"the fine-tuned model shows no more of the behaviour than the base (𝓜 {self.full.mean():.4g} against "
                f"{self.empty.mean():.4g}): faithfulness needs replies that the fine-tuned model prefers."
            )

    @classmethod
    def of(cls, contrast: Contrast, *, seed: int = 0, n_resamples: int = 2000) -> "Anchors":
        """Measure both ends on a contrast's prompts."""
        bootstrap = PromptBootstrap(contrast.n_prompts, seed=seed, n_resamples=n_resamples)
        return cls(contrast.sft_values().numpy(), contrast.base_values().numpy(), bootstrap)

    def recovery(self, values: Tensor | Float[np.ndarray, " prompt"]) -> Recovery:
        """F of one choice of gates from its 𝓜 per prompt, in every resample too."""
        measured = np.asarray(values, dtype=np.float64)
        if len(measured) != len(self.full):
            raise DataError(f"{len(measured)} values for {len(self.full)} prompts: expected one per prompt.")
        means = self.bootstrap.means(np.stack([measured, self.full, self.empty], axis=1))
        span = means[:, 1] - means[:, 2]
        # Resamples in which the two ends do not differ, the same for every choice of gates, have no share to speak of.
        usable = span > 1e-6 * abs(self.full.mean() - self.empty.mean())
        value = (measured.mean() - self.empty.mean()) / (self.full.mean() - self.empty.mean())
        return Recovery(float(value), (means[usable, 0] - means[usable, 2]) / span[usable])

    def faithfulness(self, values: Tensor | Float[np.ndarray, " prompt"]) -> Estimate:
        """F with its interval."""
        recovery = self.recovery(values)
        return self.bootstrap.estimate(recovery.value, recovery.resampled)


@dataclass(frozen=True)
class FaithfulnessCurve:
    """F(k) of one ranking.

    Attributes:
        method: whose ranking.
        shares: k as a share of all channels.
        counts: k.
        faithfulness: F at every k.
        area_linear: ∫F dk over shares from 0 (where F = 0) to 1.
        area_log: mean of F over log k, between the smallest and the largest share.
        distance_linear: ∫|1 − F| dk.
        distance_log: mean of |1 − F| over log k.
        smallest_share: the smallest measured share with F ≥ 0.9; None if there is none.
    """

    method: str
    shares: tuple[float, ...]
    counts: tuple[int, ...]
    faithfulness: tuple[Estimate, ...]
    area_linear: Estimate
    area_log: Estimate
    distance_linear: Estimate
    distance_log: Estimate
    smallest_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a results file."""
        return {
            "shares": list(self.shares),
            "counts": list(self.counts),
            "value": [point.value for point in self.faithfulness],
            "low": [point.low for point in self.faithfulness],
            "high": [point.high for point in self.faithfulness],
            "area_linear": self.area_linear.to_dict(),
            "area_log": self.area_log.to_dict(),
            "distance_linear": self.distance_linear.to_dict(),
            "distance_log": self.distance_log.to_dict(),
            "smallest_share": self.smallest_share,
        }


def count_at(share: float, n_gates: int) -> int:
    """Number of channels at a share of all: rounded, at least one.

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}: expected a share of all channels in (0, 1].")
    return max(1, round(share * n_gates))


def faithfulness_curve(
    contrast: Contrast,
    scores: ChannelScores,
    anchors: Anchors,
    *,
    shares: Sequence[float] = SHARES,
    ranking: Ranking | None = None,
    progress: bool = True,
) -> FaithfulnessCurve:
    """Open the most important channels of a ranking, more and more of them, and measure F.

    Args:
        contrast: models and held-out prompts.
        scores: the ranking, larger = more important.
        anchors: 𝓜 at both ends on the same prompts.
        shares: rising shares of all channels.
        ranking: signed or absolute; None: the method's own.
        progress: show a progress bar.

    Raises:
        ConfigError: shares do not rise, are out of range, or exceed what was scored.
    """
    if list(shares) != sorted(set(shares)) or len(shares) < 2:
        raise ConfigError(f"shares {list(shares)}: expected at least two, rising.")
    counts = [count_at(share, scores.n_gates) for share in shares]
    points = []
    for count in tqdm(counts, desc=scores.method, disable=not progress, leave=False):
        points.append(anchors.recovery(contrast.values(scores.top(count, ranking).float())))
    value = np.array([[point.value for point in points]])
    resampled = np.stack([point.resampled for point in points], axis=1)

    def summary(function: Area) -> Estimate:
        return anchors.bootstrap.estimate(function(value, shares)[0], function(resampled, shares))

    faithful = [share for share, point in zip(shares, points, strict=True) if point.value >= FAITHFUL]
    return FaithfulnessCurve(
        method=scores.method,
        shares=tuple(float(share) for share in shares),
        counts=tuple(counts),
        faithfulness=tuple(anchors.bootstrap.estimate(point.value, point.resampled) for point in points),
        area_linear=summary(area_linear),
        area_log=summary(area_log),
        distance_linear=summary(lambda f, s: _linear(np.abs(1 - f), s, start=1.0)),
        distance_log=summary(lambda f, s: area_log(np.abs(1 - f), s)),
        smallest_share=min(faithful, default=None),
    )


def area_linear(values: Float[np.ndarray, "row point"], shares: Sequence[float]) -> Float[np.ndarray, " row"]:
    """∫F dk by trapezoids over the share of channels, from (0, 0)."""
    return _linear(values, shares, start=0.0)


def area_log(values: Float[np.ndarray, "row point"], shares: Sequence[float]) -> Float[np.ndarray, " row"]:
    """Mean of F over log k by trapezoids, between the smallest and the largest share."""
    places = np.log(np.asarray(shares, dtype=np.float64))
    area: Float[np.ndarray, " row"] = np.trapezoid(values, places, axis=1) / (places[-1] - places[0])
    return area


def _linear(values: Float[np.ndarray, "row point"], shares: Sequence[float], start: float) -> Float[np.ndarray, " row"]:
    places = np.concatenate([[0.0], np.asarray(shares, dtype=np.float64)])
    area: Float[np.ndarray, " row"] = np.trapezoid(
        np.concatenate([np.full((len(values), 1), start), values], axis=1), places, axis=1
    )
    return area
