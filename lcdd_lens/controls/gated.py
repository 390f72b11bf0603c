"""Gates chosen otherwise: does it matter which channels LCDD leaves open, and what chose them?

Two kinds. *Imposed masks* of the carrier's size, under which the weights train on from the fine-tuned ones: the
carrier's own channels, random ones, or those that fine-tuning moved most. *Other rules* that choose while the weights
train: LCDD's schedule in random order, the paper's penalty, and that penalty without the behaviour's loss.
"""

from dataclasses import replace

import torch

from lcdd_lens.attribution.magnitude import delta_norms
from lcdd_lens.carrier import Carrier
from lcdd_lens.controls.bench import Bench, Outcome, gated_outcome
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.identity import random_carrier, start_correlation
from lcdd_lens.training import DualConfig, LCDDConfig, OptimConfig, make_rule, train_lcdd, train_under_mask

RETRAINING = 0.4  # share of LCDD's steps that weights train on for under an imposed mask


def own_mask(bench: Bench) -> Outcome:
    """Does the carrier hold the behaviour when the weights start again from plain fine-tuning?

    min_W L(W(m)) from W_SFT with m the carrier's gates: what the imposed masks below are compared with. (Ours.)
    """
    return imposed_mask(bench, "own_mask", bench.carrier)


def uniform_mask(bench: Bench) -> Outcome:
    """Would any channels do, if there were as many?

    The same under a random mask with |m| open gates anywhere. (Ours.)
    """
    return imposed_mask(bench, "uniform_mask", random_carrier(bench.carrier, stratified=False, seed=bench.seed))


def stratified_mask(bench: Bench) -> Outcome:
    """Would any channels do, if there were as many at every layer and site?

    The same under a random mask with the carrier's count at every site. (Ours.)
    """
    return imposed_mask(bench, "stratified_mask", random_carrier(bench.carrier, stratified=True, seed=bench.seed))


def magnitude_mask(bench: Bench) -> Outcome:
    """Would the channels do that fine-tuning moved most?

    The same under the |m| gates with the largest √ΣΔ² over the weight entries that they meet. (Ours.)
    """
    routed = bench.routed_sft()
    moved = routed.layout.join(delta_norms(routed))
    flags = torch.zeros(routed.n_gates, dtype=torch.bool)
    flags[moved.argsort(descending=True, stable=True)[: bench.carrier.n_open]] = True
    return imposed_mask(bench, "magnitude_mask", Carrier(routed.sites, routed.layout.channels(flags)))


def imposed_mask(bench: Bench, name: str, carrier: Carrier, share: float = RETRAINING) -> Outcome:
    """Does a model with exactly these gates open learn the behaviour?

    Weights train on from the fine-tuned ones under the given mask, with LCDD's optimiser for a share of its steps. Pass
    another seed's or another behaviour's carrier to ask about identity.

    Args:
        bench: the experiment.
        name: what the conditions are called.
        carrier: the gates that are open.
        share: of LCDD's steps.

    Raises:
        ConfigError: the carrier belongs to a model with other sites.
    """
    routed = bench.routed_sft()
    if carrier.sites != routed.sites:
        raise ConfigError(f"{name}: the carrier has other sites than the model; expected a carrier of this model.")
    optim = _shortened(bench.lcdd.optim, share)
    history = train_under_mask(
        routed, carrier.flags(), bench.train, optim, pad_id=bench.pad_id, progress=bench.progress
    )
    return gated_outcome(bench, name, routed, carrier.flags(), {"steps": optim.steps, "loss": history["ema"][-1]})


def random_order(bench: Bench) -> Outcome:
    """Does LCDD's schedule need its ranking, or do gates that close in random order do as well?

    LCDD's own run, except that the gates of a price rise are drawn. How far it gets within the same budget is the
    figure: random order ends less sparse, and its carrier agrees with no other seed's. (Ours.)

    Raises:
        ConfigError: LCDD's rule has no order to draw.
    """
    if bench.lcdd.rule != "price":
        raise ConfigError(f"LCDD ran with the rule {bench.lcdd.rule!r}: random order is a control of 'price' alone.")
    config = replace(bench.lcdd, price=replace(bench.lcdd.price, order="random"))
    return other_rule(bench, "random_order", config)


def paper_rule(bench: Bench) -> Outcome:
    """What does the paper's own rule find here?

    Straight-through gates moved by SGD on L + λ·Σσ(θ), θ₀ ~ N(1.5, 0.5²), no pull; λ capped at 0.3 and shrinking faster
    than it grows, without which the behaviour is lost at this scale. (Paper, section 4.)
    """
    return other_rule(bench, "paper_rule", penalty_config(bench.lcdd))


def no_loss_gradient(bench: Bench) -> Outcome:
    """Does the paper's rule select by the behaviour's loss at all?

    The same with θ moved by the penalty alone, θ ← θ − η·λ·σ'(θ). If sparsity and reversal stay, the dice of θ₀ chose
    the carrier. (Ours.)
    """
    return other_rule(bench, "no_loss_gradient", replace(penalty_config(bench.lcdd), use_loss_gradient=False))


def penalty_config(like: LCDDConfig) -> LCDDConfig:
    """The paper's rule with the budget, data order and steps of another run, for models of about a million
    parameters."""
    return replace(
        like,
        rule="penalty",
        optim=replace(like.optim, pull=0.0),
        dual=DualConfig(initial=0.1, maximum=0.3, growth=0.1, shrink=0.5),
        mask_lr=0.1,
        mask_optimiser="sgd",
        estimator="straight_through",
        init_mean=1.5,
        init_std=0.5,
    )


def other_rule(bench: Bench, name: str, config: LCDDConfig) -> Outcome:
    """What does LCDD find under another configuration, from the same fine-tuned weights on the same data?

    ``start_correlation`` is corr(θ₀, θ_end), where a rule starts from dice.
    """
    routed = bench.routed_sft()
    start = make_rule(routed, config).masks.logits.detach().clone()
    found = train_lcdd(routed, bench.train, config, pad_id=bench.pad_id, progress=bench.progress)
    facts: dict[str, float | bool | None] = {
        "epsilon": found.epsilon,
        "loss": found.final_loss,
        "budget_kept": found.budget_kept,
    }
    if config.rule == "penalty":
        by_kind = start_correlation(start, found.masks.logits.detach(), routed.sites)
        facts |= {f"start_correlation_{kind}": value for kind, value in by_kind.items()}
    return gated_outcome(bench, name, routed, found.carrier.flags(), facts)


def _shortened(optim: OptimConfig, share: float) -> OptimConfig:
    steps = max(1, round(share * optim.steps))
    decay = None if optim.decay_steps is None else min(optim.decay_steps, steps)
    return replace(optim, steps=steps, decay_steps=decay, warmup_steps=min(optim.warmup_steps, steps - 1))
