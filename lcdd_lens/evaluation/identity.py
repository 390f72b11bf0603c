"""Whose carrier is it? Carriers of several runs against each other, and against what chance gives.

    seeds        mean Jaccard over the pairs of runs that differ in their seeds alone
    behaviours   the same over the pairs of runs on one model that differ in the behaviour
    chance       Jaccard of independent random sets of the same sizes; *stratified*: with the same counts at every site
    start        Pearson correlation of the logits θ₀ and θ_end: 1 where the dice had decided before training began

A carrier is the behaviour's only if runs agree across seeds well above stratified chance, and disagree across
behaviours: two carriers that lie in one layer overlap far above plain chance without sharing a reason. The overlap of
one pair is :mod:`overlap`'s. (Ours; the paper compares no two carriers.)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.backends.sites import Site
from lcdd_lens.carrier import Carrier
from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.evaluation.overlap import SetOverlap, set_overlap


@dataclass(frozen=True)
class Identity:
    """Agreement of several pairs of carriers.

    Attributes:
        pairs: number of pairs.
        jaccard: mean over them.
        lowest: the pair that agrees least.
        highest: the pair that agrees most.
        chance: mean chance level, all channels alike.
        stratified_chance: mean chance level with each carrier's count at every site kept.
        largest_p: the least significant pair's P(at least so many shared), counts per site kept.
    """

    pairs: int
    jaccard: float
    lowest: float
    highest: float
    chance: float
    stratified_chance: float
    largest_p: float

    @property
    def times_chance(self) -> float | None:
        """Jaccard over stratified chance; None where chance is 0."""
        return self.jaccard / self.stratified_chance if self.stratified_chance else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a results file."""
        return asdict(self) | {"times_chance": self.times_chance}


def identity(carriers: Sequence[Carrier]) -> Identity:
    """Agreement of every pair among these carriers, for example one per seed.

    Raises:
        ConfigError: there are fewer than two.
        ArtefactError: they belong to models with different sites.
    """
    return _summary([_overlap(a, b) for a, b in combinations(carriers, 2)])


def identity_between(first: Sequence[Carrier], second: Sequence[Carrier]) -> Identity:
    """Agreement of every carrier of one group with every one of the other, for example of two behaviours.

    Raises:
        ConfigError: a group is empty.
        ArtefactError: they belong to models with different sites.
    """
    return _summary([_overlap(a, b) for a, b in product(first, second)])


def identity_by_kind(carriers: Sequence[Carrier]) -> dict[str, Identity]:
    """Agreement within every kind of site (attn_read, ffn_hidden, …) in which some carrier has an open channel."""
    kinds = dict.fromkeys(site.kind for site in carriers[0].sites) if carriers else {}
    found: dict[str, Identity] = {}
    for kind in kinds:
        chosen = [restricted(carrier, kind) for carrier in carriers]
        if any(carrier.n_open for carrier in chosen):
            found[kind] = identity(chosen)
    return found


def restricted(carrier: Carrier, kind: str) -> Carrier:
    """The carrier at the sites of one kind alone.

    Raises:
        ConfigError: the model has no such site.
    """
    sites = tuple(site for site in carrier.sites if site.kind == kind)
    if not sites:
        raise ConfigError(f"no site of kind {kind!r}: expected one of {sorted({s.kind for s in carrier.sites})}.")
    return Carrier(sites, {site.hook_name: carrier.channels[site.hook_name] for site in sites})


def layer_shares(carrier: Carrier) -> dict[int, float]:
    """Layer -> share of all open channels that lie there; 0 everywhere for an empty carrier."""
    counts: dict[int, int] = {}
    for site in carrier.sites:
        counts[site.layer] = counts.get(site.layer, 0) + len(carrier.channels[site.hook_name])
    return {layer: count / max(carrier.n_open, 1) for layer, count in sorted(counts.items())}


def start_correlation(
    start: Float[Tensor, " gate"], end: Float[Tensor, " gate"], sites: Sequence[Site] | None = None
) -> dict[str, float | None]:
    """corr(θ₀, θ_end) over all gates (``"all"``) and, given the sites, per kind; None where one does not vary.

    Raises:
        ConfigError: start, end and sites differ in length.
    """
    if start.shape != end.shape or (sites is not None and sum(site.n_channels for site in sites) != len(start)):
        raise ConfigError(f"θ₀ has {len(start)} and θ_end {len(end)} logits: expected one a channel of every site.")
    found = {"all": _pearson(start, end)}
    if sites is not None:
        of_gate = np.repeat([site.kind for site in sites], [site.n_channels for site in sites])
        for kind in dict.fromkeys(site.kind for site in sites):
            chosen = torch.from_numpy(of_gate == kind)
            found[kind] = _pearson(start[chosen], end[chosen])
    return found


def random_carrier(like: Carrier, *, stratified: bool, seed: int) -> Carrier:
    """A random carrier of the same size: over all channels alike, or with the same count at every site.

    Args:
        like: the carrier whose size, or whose counts, it copies.
        stratified: keep the count at every site, and so per layer and kind.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    if stratified:
        drawn = {
            site.hook_name: torch.randperm(site.n_channels, generator=generator)[: len(like.channels[site.hook_name])]
            for site in like.sites
        }
    else:
        flags = torch.zeros(like.n_gates, dtype=torch.bool)
        flags[torch.randperm(like.n_gates, generator=generator)[: like.n_open]] = True
        drawn = like.layout.channels(flags)
    return Carrier(like.sites, drawn, {}, like.dimensions, like.base_fingerprint)


def _overlap(a: Carrier, b: Carrier) -> SetOverlap:
    if a.sites != b.sites:
        raise ArtefactError("carriers of models with different sites have no channels in common to compare.")
    return set_overlap(a.flags(), b.flags(), a.layout.groups())


def _summary(overlaps: Sequence[SetOverlap]) -> Identity:
    if not overlaps:
        raise ConfigError("there is no pair of carriers to compare: expected at least two runs.")

    def mean(name: str) -> float:
        return float(np.mean([getattr(overlap, name) for overlap in overlaps]))

    return Identity(
        pairs=len(overlaps),
        jaccard=mean("jaccard"),
        lowest=min(overlap.jaccard for overlap in overlaps),
        highest=max(overlap.jaccard for overlap in overlaps),
        chance=mean("chance"),
        stratified_chance=mean("stratified_chance"),
        largest_p=max(overlap.stratified_p_value for overlap in overlaps),
    )


def _pearson(a: Float[Tensor, " gate"], b: Float[Tensor, " gate"]) -> float | None:
    first, second = a.double(), b.double()
    if len(first) < 2 or float(first.std()) == 0 or float(second.std()) == 0:
        return None
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])
