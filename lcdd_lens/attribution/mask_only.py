"""Mask only: LCDD's gates with the weights held at the fine-tuned model, a learned post-hoc circuit.

The rule, its budget and its dual variable are LCDD's own (``training.rules``); only the weights stay. The loss is

    ce    −log p(reply)                        the behaviour's loss, as in LCDD (SafeSeek-style)
    kl    KL(p_S ‖ p_m) on the reply           what the fine-tuned model does, whatever it is (Edge-Pruning-style)

Straight-through or hard-concrete gates. The score is the logit θ.

Larger score: the gate is kept more firmly; positive = open at the end, negative = closed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from lcdd_lens.attribution.contrast import Contrast, gates_at
from lcdd_lens.attribution.registry import Attribution, register_method
from lcdd_lens.backends.base import device_of
from lcdd_lens.data.sampling import BatchSampler
from lcdd_lens.data.tokens import TokenBatch, collate, response_loss
from lcdd_lens.errors import ConfigError
from lcdd_lens.training.dual import BudgetConfig, DualConfig
from lcdd_lens.training.lcdd import LCDDConfig, make_rule
from lcdd_lens.training.loop import OptimConfig

Loss = Literal["ce", "kl"]


def _small_model_rule() -> LCDDConfig:
    return LCDDConfig(
        optim=OptimConfig(steps=300, lr=1.0, batch_size=16, warmup_steps=0),
        rule="penalty",
        budget=BudgetConfig(warmup_steps=20, ratio=0.3, floor=0.02),
        dual=DualConfig(initial=1e-2, maximum=3e-2, growth=0.1, shrink=0.5),
        settle_steps=0,
        mask_lr=10.0,
        init_std=0.05,
    )


@dataclass(frozen=True)
class MaskOnly:
    """Learns gates on frozen weights."""

    loss: Loss = "ce"
    """What must stay within the budget."""
    rule: LCDDConfig = field(default_factory=_small_model_rule)
    """LCDD's settings; of its optimiser only steps, batch size and seed matter, since no weight moves."""

    def __post_init__(self) -> None:
        if self.loss not in ("ce", "kl"):
            raise ConfigError(f"loss is {self.loss!r}: expected 'ce' or 'kl'.")
        if self.rule.budget.base_share:
            raise ConfigError("mask only measures no base loss: give its budget a floor instead of base_share.")

    @classmethod
    def hard_concrete(cls, loss: Loss = "ce") -> "MaskOnly":
        """The stochastic estimator of Louizos et al., with Adam, as mask-learning methods use it."""
        rule = replace(_small_model_rule(), estimator="hard_concrete", mask_optimiser="adam", mask_lr=0.05)
        return cls(loss, rule)

    def shortened(self, steps: int, seed: int) -> "MaskOnly":
        """The same method with another number of steps and seed; the budget is set after half of them at the latest."""
        rule = self.rule.with_seed(seed)
        budget = replace(rule.budget, warmup_steps=min(rule.budget.warmup_steps, max(1, steps // 2)))
        return replace(self, rule=replace(rule, budget=budget, optim=replace(rule.optim, steps=steps)))

    @property
    def name(self) -> str:
        estimator = "" if self.rule.estimator == "straight_through" else f"_{self.rule.estimator}"
        return f"mask_only_{self.loss}{estimator}"

    @property
    def config(self) -> Mapping[str, Any]:
        return {"loss": self.loss, "rule": asdict(self.rule)}

    def run(self, contrast: Contrast, progress: bool) -> Attribution:
        """Larger = kept more firmly; positive = open at the end."""
        routed, optim = contrast.routed, self.rule.optim
        rule = make_rule(routed, self.rule)
        sampler = BatchSampler(contrast.n_prompts, min(optim.batch_size, contrast.n_prompts), optim.seed)
        history: list[float] = []
        for step in tqdm(range(optim.steps), desc=self.name, disable=not progress, leave=False):
            rows = [contrast.rows[place] for place in sampler.indices(step)]
            batch = collate(rows, pad_id=0).to(device_of(routed.model))
            gates = rule.gates(step).to(device_of(routed.model)).requires_grad_(True)
            loss, slopes = self._loss_and_gradient(contrast, batch, gates)
            rule.update(loss, slopes)
            history.append(loss)
        logits = rule.masks.logits.detach()
        is_open = rule.masks.is_open()
        details = {
            "n_open": int(is_open.sum()),
            "epsilon": rule.budget.epsilon,
            "final_loss": rule.budget.ema,
            "budget_kept": rule.budget.is_kept,
            "loss": history,
        }
        return Attribution(routed.layout.split(logits.clone()), details=details)

    def _loss_and_gradient(
        self, contrast: Contrast, batch: TokenBatch, gates: Float[Tensor, " gate"]
    ) -> tuple[float, Float[Tensor, " gate"]]:
        routed = contrast.routed
        target = None
        if self.loss == "kl":
            with torch.no_grad(), routed.using(gates_at(routed, 1.0)):
                target = contrast.logits(batch)
        with routed.using(gates):
            logits = contrast.logits(batch)
        loss = response_loss(logits, batch) if target is None else _response_kl(target, logits, batch)
        contrast.meter.backward_passes += len(batch)
        (slopes,) = torch.autograd.grad(loss, gates)
        return float(loss.detach()), slopes.float()


def _response_kl(
    target: Float[Tensor, "batch pos d_vocab"], logits: Float[Tensor, "batch pos d_vocab"], batch: TokenBatch
) -> Float[Tensor, ""]:
    """Mean over reply tokens of KL(p_target ‖ p), nats."""
    counted = batch.response_mask[:, 1:] & batch.attention_mask[:, :-1].bool()
    theirs = target[:, :-1][counted].float().log_softmax(-1)
    ours = logits[:, :-1][counted].float().log_softmax(-1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


register_method("mask_only_ce", MaskOnly)
register_method("mask_only_kl", lambda: MaskOnly("kl"))
register_method("mask_only_ce_hard_concrete", MaskOnly.hard_concrete)
