"""Do two rankings, or a ranking and a carrier, pick the same channels? Overlap against what chance gives.

Sets of k_a and k_b among N channels that share s:

    Jaccard   s / (k_a + k_b − s)          chance   k_a k_b / N shared, so k/(2N − k) for equal sizes
    p-value   P(shared ≥ s), hypergeometric

Two carriers that lie in the same layers overlap more than chance without agreeing on a single channel, so every figure
is also given *stratified by site*: chance then draws, at every site, as many channels as the sets have there, and the
p-value is exact (the distribution is the convolution of the sites' hypergeometric ones). Rankings are compared by
Spearman's ρ, and with a set by the AUROC (the probability that a member outranks another channel; ½ is chance).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lcdd_lens.errors import ConfigError

Flags = Bool[np.ndarray, "_"]


@dataclass(frozen=True)
class SetOverlap:
    """Two sets of channels.

    Attributes:
        n: channels there are.
        size_a: size of the first set.
        size_b: size of the second.
        shared: channels in both.
        jaccard: shared / union; 1 for two empty sets.
        chance: Jaccard at the expected number of shared channels, all channels alike.
        p_value: P(at least so many shared), all channels alike.
        stratified_chance: the same as ``chance`` with the sets' counts per site kept.
        stratified_p_value: the same as ``p_value`` with the sets' counts per site kept.
    """

    n: int
    size_a: int
    size_b: int
    shared: int
    jaccard: float
    chance: float
    p_value: float
    stratified_chance: float
    stratified_p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a results file."""
        return asdict(self)


def set_overlap(
    a: Tensor | Flags, b: Tensor | Flags, strata: Tensor | Int[np.ndarray, "_"] | None = None
) -> SetOverlap:
    """Overlap of two sets of channels.

    Args:
        a: True at the first set's channels.
        b: True at the second's.
        strata: site of every channel; None: no strata.

    Raises:
        ConfigError: the three differ in length.
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    groups = np.zeros(len(first), dtype=int) if strata is None else np.asarray(strata)
    if not len(first) == len(second) == len(groups):
        raise ConfigError(f"sets of {len(first)} and {len(second)} channels: expected flags of the same model.")
    n, size_a, size_b, shared = len(first), int(first.sum()), int(second.sum()), int((first & second).sum())
    counts = [
        (int((groups == group).sum()), int(first[groups == group].sum()), int(second[groups == group].sum()))
        for group in np.unique(groups)
    ]
    expected = sum(k_a * k_b / size for size, k_a, k_b in counts)
    return SetOverlap(
        n=n,
        size_a=size_a,
        size_b=size_b,
        shared=shared,
        jaccard=_jaccard(shared, size_a, size_b),
        chance=_jaccard(size_a * size_b / n, size_a, size_b),
        p_value=_tail(hypergeometric(n, size_a, size_b), shared),
        stratified_chance=_jaccard(expected, size_a, size_b),
        stratified_p_value=_tail(_convolved([hypergeometric(*count) for count in counts]), shared),
    )


def hypergeometric(n: int, k_a: int, k_b: int) -> Float[np.ndarray, " shared"]:
    """P(shared = 0, 1, …, min(k_a, k_b)) for two independent random sets of these sizes among n."""

    def log_choose(total: int, chosen: int) -> float:
        return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)

    probabilities = np.zeros(min(k_a, k_b) + 1)
    for shared in range(max(0, k_a + k_b - n), min(k_a, k_b) + 1):
        log_ways = log_choose(k_a, shared) + log_choose(n - k_a, k_b - shared)
        probabilities[shared] = math.exp(log_ways - log_choose(n, k_b))
    return probabilities


def spearman(a: Tensor | Shaped[np.ndarray, " gate"], b: Tensor | Shaped[np.ndarray, " gate"]) -> float | None:
    """Rank correlation, ties at their mean rank, over channels that both scored; None where one does not vary."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    both = np.isfinite(first) & np.isfinite(second)
    ranks = [pd.Series(values[both]).rank().to_numpy() for values in (first, second)]
    if both.sum() < 3 or any(rank.std() == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def auroc(scores: Tensor | Shaped[np.ndarray, " gate"], members: Tensor | Flags) -> float | None:
    """P(a member's score is above another channel's), ties count half; None where all or none are members."""
    values, inside = np.asarray(scores, dtype=np.float64), np.asarray(members, dtype=bool)
    scored = np.isfinite(values)
    ranks, inside = pd.Series(values[scored]).rank().to_numpy(), inside[scored]
    n_in, n_out = int(inside.sum()), int((~inside).sum())
    if not n_in or not n_out:
        return None
    return float((ranks[inside].sum() - n_in * (n_in + 1) / 2) / (n_in * n_out))


def _jaccard(shared: int | float, size_a: int, size_b: int) -> float:
    union = size_a + size_b - shared
    return shared / union if union else 1.0


def _tail(probabilities: Float[np.ndarray, " shared"], at_least: int) -> float:
    return float(min(1.0, probabilities[at_least:].sum()))


def _convolved(distributions: list[Float[np.ndarray, "_"]]) -> Float[np.ndarray, " shared"]:
    total = np.ones(1)
    for distribution in distributions:
        total = np.convolve(total, distribution)
    return total
