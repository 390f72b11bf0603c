"""LCDD: training routing masks together with the weights under a loss budget (paper, section 4).

Two rules choose the gates. ``LCDDConfig.paper()`` is the authors' algorithm: a penalty λ·Σσ(θ), straight-through gates
moved by SGD, λ moved by the budget. The default is channel pricing (``price.py``), which needs no luck with θ₀.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from lcdd_lens.backends.base import backend_of, device_of, weights_fingerprint
from lcdd_lens.carrier import Carrier
from lcdd_lens.data.tokens import EncodedSet, loss_positions, response_loss
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ConfigError
from lcdd_lens.routing.gates import make_estimator
from lcdd_lens.routing.masks import RoutingMasks
from lcdd_lens.routing.routed import RoutedModel
from lcdd_lens.training.dual import BudgetConfig, DualConfig, DualController
from lcdd_lens.training.loop import History, Loop, OptimConfig
from lcdd_lens.training.price import PriceConfig, PriceRule
from lcdd_lens.training.rules import GateRule, PenaltyRule

logger = logging.getLogger(__name__)

BASE_ROWS = 256
"""Rows on which the base's loss is measured for the budget."""


@dataclass(frozen=True)
class LCDDConfig:
    """Everything that LCDD needs beside model and data."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=450, lr=5e-4, warmup_steps=20, decay_steps=90, pull=0.001)
    )
    """How the weights are trained."""
    rule: Literal["price", "penalty"] = "price"
    """``price``: channel pricing (ours). ``penalty``: the paper's."""
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(warmup_steps=20, ratio=0.3, base_share=0.0075))
    """The loss budget ε."""
    settle_steps: int = 90
    """Last steps, with fixed gates."""
    price: PriceConfig = field(default_factory=PriceConfig)
    """Used by the rule ``price``."""
    dual: DualConfig = field(default_factory=DualConfig)
    """How λ moves under the rule ``penalty``."""
    mask_lr: float = 0.1
    """Step size on the logits under ``penalty`` (paper: 0.1)."""
    mask_optimiser: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the logits under ``penalty`` (paper: SGD)."""
    estimator: str = "straight_through"
    """Gate estimator under ``penalty``: ``straight_through`` (paper) or ``hard_concrete``."""
    init_mean: float = 1.5
    """Mean of θ₀ under ``penalty``."""
    init_std: float = 0.5
    """Standard deviation of θ₀ under ``penalty``."""
    use_loss_gradient: bool = True
    """False: gates move by the penalty alone (control)."""
    stall_steps: int | None = None
    """Stop early when the number of open gates has not changed for this many steps of the descent; None: never."""
    mask_seed: int = 0
    """Seed of θ₀ and of stochastic gates."""

    def __post_init__(self) -> None:
        if self.rule not in ("price", "penalty"):
            raise ConfigError(f"unknown LCDD rule {self.rule!r}: expected 'price' or 'penalty'.")
        if self.mask_lr <= 0 or self.init_std < 0:
            raise ConfigError("mask_lr must be positive and init_std not negative.")
        if self.settle_steps < 0 or (self.stall_steps is not None and self.stall_steps < 1):
            raise ConfigError("settle_steps must not be negative, and stall_steps must be at least 1 or None.")
        make_estimator(self.estimator)
        if self.budget.warmup_steps + self.settle_steps > self.optim.steps:
            raise ConfigError(
                f"the budget's warm-up ({self.budget.warmup_steps}) and settle_steps ({self.settle_steps}) do not fit "
                f"into {self.optim.steps} steps."
            )

    @classmethod
    def paper(cls, steps: int = 6250, *, seed: int = 0) -> "LCDDConfig":
        """The authors' hyperparameters for models of 0.6B-8B: 20 epochs of 5,000 samples at batch 16."""
        return cls(
            optim=OptimConfig(steps=steps, lr=2e-5, batch_size=16, warmup_steps=0, all_tokens=True, seed=seed),
            rule="penalty",
            budget=BudgetConfig(warmup_steps=min(300, steps), ratio=0.25),
            settle_steps=0,
            mask_seed=seed,
        )

    def with_seed(self, seed: int) -> "LCDDConfig":
        """The same configuration with one seed for data order and masks."""
        return replace(self, optim=replace(self.optim, seed=seed), mask_seed=seed)


@dataclass(frozen=True)
class LCDDResult:
    """What LCDD leaves: the gates are set in the routed model, the carrier says which.

    Attributes:
        carrier: the open channels.
        masks: the trained logits.
        history: series ``step``, ``loss``, ``ema``, ``lr``, ``epsilon``, ``lambda``, ``sparsity``.
        epsilon: the budget (nats per token).
        final_loss: moving average of the loss at the end (nats per token).
    """

    carrier: Carrier
    masks: RoutingMasks
    history: History
    epsilon: float
    final_loss: float

    @property
    def budget_kept(self) -> bool:
        """The final budget check: EMA of the loss under the final gates ≤ ε."""
        return self.final_loss <= self.epsilon

    def to_dataframe(self) -> pd.DataFrame:
        """One row per step: the series of ``history``."""
        return pd.DataFrame(self.history).set_index("step")

    def __repr__(self) -> str:
        kept = "kept" if self.budget_kept else "broken"
        steps = len(self.history["step"])
        loss = f"loss {self.final_loss:.3g} of {self.epsilon:.3g} nats per token: budget {kept}"
        return f"LCDDResult({self.carrier.n_open} of {self.carrier.n_gates} gates open after {steps} steps, {loss})"

    def _repr_html_(self) -> str:
        return notebook_view(repr(self), self.carrier.counts())


def train_lcdd(
    routed: RoutedModel,
    data: EncodedSet,
    config: LCDDConfig,
    *,
    pad_id: int,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    meta: Mapping[str, str] | None = None,
) -> LCDDResult:
    """Train masks and weights of ``routed`` in place; afterwards exactly the carrier's gates are open.

    Args:
        routed: a routed model at the SFT weights.
        data: encoded rows with responses.
        config: the rule and its settings.
        pad_id: padding token.
        out: folder of the checkpoint; None keeps none.
        resume: continue from the checkpoint in ``out``.
        progress: show a progress bar.
        meta: what else must agree for a resume (names of model and data).

    Raises:
        TrainingError: the loss became NaN or diverged.
    """
    base_loss = loss_of_base(routed, data, config.optim, pad_id=pad_id) if config.budget.base_share else 0.0
    rule = make_rule(routed, config, base_loss)
    loop = Loop(
        routed.model,
        routed.delta_parameters(),
        routed.base_weights(),
        data,
        config.optim,
        pad_id=pad_id,
        routed=routed,
        rule=rule,
        out=out,
        resume=resume,
        label="LCDD",
        progress=progress,
        identity={**(meta or {}), "lcdd": _plain(asdict(config))},
        stall_steps=config.stall_steps,
    )
    history = loop.run()
    routed.route_by(rule.masks)
    epsilon = rule.budget.epsilon
    assert epsilon is not None
    result = LCDDResult(_carrier(routed, rule, config), rule.masks, history, epsilon, rule.budget.ema)
    if not result.budget_kept:
        logger.warning(
            "LCDD ended over its budget (loss %.4g, ε %.4g): give it more settle_steps, a smaller price share, or a "
            "larger budget ratio or base_share.",
            result.final_loss,
            epsilon,
        )
    return result


def loss_of_base(
    routed: RoutedModel, data: EncodedSet, config: OptimConfig, *, pad_id: int, n_rows: int = BASE_ROWS
) -> float:
    """L_B: the base's loss on the first rows of the behaviour's data (nats per token), all gates closed."""
    model, device = routed.model, device_of(routed.model)
    total, tokens = 0.0, 0
    with torch.no_grad(), routed.all_closed():
        for first in range(0, min(n_rows, len(data)), config.batch_size):
            rows = list(range(first, min(first + config.batch_size, n_rows, len(data))))
            batch = data.batch(rows, pad_id).to(device)
            logits = backend_of(model).logits(model, batch.tokens, batch.attention_mask)
            count = int(loss_positions(batch, all_tokens=config.all_tokens).sum())
            total += float(response_loss(logits, batch, all_tokens=config.all_tokens)) * count
            tokens += count
    return total / max(tokens, 1)


def make_rule(routed: RoutedModel, config: LCDDConfig, base_loss: float = 0.0) -> GateRule:
    """The gate rule of a configuration, at its start."""
    masks = RoutingMasks(
        routed.sites,
        estimator=make_estimator(config.estimator),
        init_mean=config.init_mean,
        init_std=config.init_std,
        seed=config.mask_seed,
    )
    steps, settle = config.optim.steps, config.settle_steps
    if config.rule == "price":
        return PriceRule(masks, config.budget, config.price, steps, settle, config.mask_seed, base_loss)
    return PenaltyRule(
        masks,
        DualController(config.budget, config.dual, steps, settle, base_loss),
        lr=config.mask_lr,
        optimiser=config.mask_optimiser,
        use_loss_gradient=config.use_loss_gradient,
        seed=config.mask_seed,
    )


def _carrier(routed: RoutedModel, rule: GateRule, config: LCDDConfig) -> Carrier:
    base = routed.base_weights()
    plain = {site.parameter: base[site.parameter] for site in routed.weight_sites}
    effective = routed.effective_weights()
    everything = {site.parameter for site in backend_of(routed.model).weight_sites(routed.model)}
    complete = everything == plain.keys()
    return Carrier.from_masks(
        rule.masks,
        routed.model,
        base_fingerprint=weights_fingerprint(routed.model, plain) if complete else "",
        routed_fingerprint=weights_fingerprint(routed.model, effective) if complete else "",
        config=_plain(asdict(config)),
    )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) if isinstance(value, dict) else value for key, value in config.items()}
