"""Is a set of channels the behaviour's? Five tests in one intervention family, gates on fixed weights.

    sufficiency     F(C)                                   only C open: how much of the behaviour is there?
    necessity       1 − F(all but C)                       C closed: how much of it is gone?
    incompleteness  mean over random K ⊂ C of |F(C∖K) − F(all but K)|       does C behave like the whole when damaged?
    minimality      F(C) − F(C∖{c}) for sampled c ∈ C      does every channel matter?
    collateral      KL(B ‖ only C) on other prompts        what does C do where the behaviour does not belong?

F is :mod:`faithfulness`'s; larger sufficiency, necessity and drop effects speak for C, larger incompleteness and
collateral divergence against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from lcdd_lens.attribution.contrast import Contrast, gates_at
from lcdd_lens.data.tokens import EncodedExample
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.divergence import categorical_kl, mean_per_reply, reply_batches, reply_log_probs
from lcdd_lens.evaluation.faithfulness import Anchors
from lcdd_lens.evaluation.statistics import Estimate, bootstrap_mean


@dataclass(frozen=True)
class Minimality:
    """Effects of closing one open channel at a time.

    Attributes:
        mean: mean of F(C) − F(C∖{c}) over the sampled channels.
        effects: the effect of every sampled channel.
        channels: their flat numbers.
        share_needed: share of the sampled channels whose effect exceeds the threshold.
        threshold: smallest effect that counts.
    """

    mean: Estimate
    effects: tuple[float, ...]
    channels: tuple[int, ...]
    share_needed: float
    threshold: float


def sufficiency(contrast: Contrast, flags: Bool[Tensor, " gate"], anchors: Anchors) -> Estimate:
    """F with only these channels open."""
    return anchors.faithfulness(contrast.values(flags.float()))


def necessity(contrast: Contrast, flags: Bool[Tensor, " gate"], anchors: Anchors) -> Estimate:
    """1 − F with only these channels closed."""
    kept = anchors.recovery(contrast.values((~flags).float()))
    return anchors.bootstrap.estimate(1 - kept.value, 1 - kept.resampled)


def incompleteness(
    contrast: Contrast,
    flags: Bool[Tensor, " gate"],
    anchors: Anchors,
    *,
    draws: int = 10,
    share: float = 0.5,
    seed: int = 0,
) -> Estimate:
    """Mean over random K ⊂ C of |F(C∖K) − F(all but K)|, with the interval over draws; 0 is complete.

    Args:
        contrast: models and prompts.
        flags: C.
        anchors: both ends on the same prompts.
        draws: number of sets K.
        share: size of K as a share of C.
        seed: of the draws.

    Raises:
        ConfigError: C is empty, or an argument is out of range.
    """
    members = _members(flags)
    if draws < 1 or not 0 < share < 1:
        raise ConfigError(f"incompleteness needs draws ≥ 1 and 0 < share < 1; got {draws} and {share}.")
    generator = torch.Generator().manual_seed(seed)
    gaps = []
    for _ in range(draws):
        damaged = torch.zeros_like(flags)
        order = torch.randperm(len(members), generator=generator)
        damaged[members[order[: max(1, round(share * len(members)))]]] = True
        of_set = anchors.recovery(contrast.values((flags & ~damaged).float())).value
        of_whole = anchors.recovery(contrast.values((~damaged).float())).value
        gaps.append(abs(of_set - of_whole))
    return bootstrap_mean(gaps, seed=seed)


def minimality(
    contrast: Contrast,
    flags: Bool[Tensor, " gate"],
    anchors: Anchors,
    *,
    sample: int = 32,
    threshold: float = 0.001,
    seed: int = 0,
    progress: bool = True,
) -> Minimality:
    """Close one open channel at a time, for a random sample of them.

    Raises:
        ConfigError: no channel is open, or the sample is empty.
    """
    members = _members(flags)
    if sample < 1:
        raise ConfigError(f"sample is {sample}: expected at least 1 channel.")
    whole = anchors.recovery(contrast.values(flags.float())).value
    generator = torch.Generator().manual_seed(seed)
    chosen = sorted(members[torch.randperm(len(members), generator=generator)[:sample]].tolist())
    effects = []
    for channel in tqdm(chosen, desc="minimality", disable=not progress, leave=False):
        without = flags.clone()
        without[channel] = False
        effects.append(whole - anchors.recovery(contrast.values(without.float())).value)
    needed = float(np.mean([effect > threshold for effect in effects]))
    return Minimality(bootstrap_mean(effects, seed=seed), tuple(effects), tuple(chosen), needed, threshold)


def collateral_kl(
    contrast: Contrast, flags: Bool[Tensor, " gate"], rows: Sequence[EncodedExample], *, seed: int = 0
) -> Estimate:
    """KL(B ‖ only these channels open) on other prompts, teacher-forced on their replies (nats per token)."""
    values = _kl_from_base(contrast, flags, rows)
    return bootstrap_mean(values, seed=seed)


def prompts_as_replies(rows: Sequence[EncodedExample]) -> list[EncodedExample]:
    """The prompts' own tokens as what is read: for behaviours that leave no prompt unrelated."""
    return [
        EncodedExample(row.prompt_ids[:1], row.prompt_ids[1:], row.example) for row in rows if len(row.prompt_ids) > 1
    ]


def _kl_from_base(
    contrast: Contrast, flags: Bool[Tensor, " gate"], rows: Sequence[EncodedExample]
) -> Float[np.ndarray, " prompt"]:
    routed = contrast.routed
    parts = []
    for batch in reply_batches(rows, 0, contrast.batch_size):
        with routed.using(gates_at(routed, 0.0)):
            log_p = reply_log_probs(routed.model, batch)
        with routed.using(flags.float()):
            log_q = reply_log_probs(routed.model, batch)
        parts.append(mean_per_reply(categorical_kl(log_p, log_q), batch).cpu().numpy())
    return np.concatenate(parts).astype(np.float64)


def _members(flags: Bool[Tensor, " gate"]) -> Tensor:
    members = flags.nonzero().squeeze(-1)
    if not len(members):
        raise ConfigError("no channel is open: expected a set of at least one.")
    return members
