"""Channel pricing: LCDD with gates chosen by what closing them would cost (ours).

The problem is the paper's, with binary gates:   min |m|   subject to   L_SFT(W(m)) ≤ ε.   Its Lagrangian is
L + λ|m|, and to first order a gate is worth keeping exactly when closing it costs more than its price:

    S_c = moving average of |∂L/∂m_c| / rms over gates,        θ_c = log(S_c / λ),        m_c = 1[θ_c > 0]

(W(m) is linear in each gate, so ∂L/∂m_c is the slope towards closing c; dividing by the root mean square keeps the
ranking meaningful when the loss is near zero.) λ is the dual variable. It ascends while the budget is kept: every
``every`` steps it rises to the value that closes the ``share`` of the open gates with the lowest S. When the budget is
broken it waits for the weights to recover; after ``patience`` failed checks it falls back to the previous price, which
reopens the gates that closed last, and the share is halved: a dual ascent with backtracking. Every rise that follows a
kept budget lets the share grow again by ``regrowth``, so one early failure does not slow the rest. The last price rise
is undone when settling starts, and the gates then stay fixed while the weights settle.

Unlike the straight-through penalty, nothing random enters: no θ₀ decides, only the loss.

Two restrictions ask where a behaviour *can* live: ``layers`` closes every gate elsewhere for good when the budget is
set, and ``scope="layer"`` closes the same share in every layer.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcdd_lens.errors import ConfigError
from lcdd_lens.routing.masks import RoutingMasks
from lcdd_lens.training.dual import BudgetConfig, LossBudget, Phase

Order = Literal["sensitivity", "random"]
Scope = Literal["global", "layer"]
_FOR_GOOD = -1


@dataclass(frozen=True)
class PriceConfig:
    """How the price of a channel rises."""

    every: int = 5
    """Steps between price rises."""
    share: float = 0.08
    """Share of the open gates that one price rise closes."""
    min_share: float = 0.005
    """Below this share the ascent ends."""
    max_sparsity: float = 1.0
    """Share of closed gates at which the ascent ends (1: only the budget ends it)."""
    decay: float = 0.97
    """Decay of the moving average S."""
    batch_slack: float = 2.0
    """A rise also needs the present batch loss to be at most this multiple of ε."""
    regrowth: float = 1.25
    """Factor by which the share grows with a rise, up to ``share``; 1: it never recovers from a failure."""
    patience: int = 5
    """Failed checks before the price falls back."""
    order: Order = "sensitivity"
    """``random`` closes gates in random order under the same schedule (a control)."""
    scope: Scope = "global"
    """``layer``: gates compete within their layer, so that every layer keeps the same share (an experiment)."""
    layers: tuple[int, ...] | None = None
    """Layers whose gates may stay open; those of all others close when the budget is set (an experiment)."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.patience < 1:
            raise ConfigError("price every and patience must be at least 1.")
        if not 0 < self.min_share <= self.share < 1:
            raise ConfigError(f"price needs 0 < min_share ≤ share < 1; got {self.min_share} and {self.share}.")
        if not 0 <= self.max_sparsity <= 1:
            raise ConfigError(f"price max_sparsity is {self.max_sparsity}: expected a share of gates in [0, 1].")
        if not 0 <= self.decay < 1 or self.batch_slack <= 0:
            raise ConfigError("price decay must be in [0, 1) and batch_slack positive.")
        if self.regrowth < 1:
            raise ConfigError(f"price regrowth is {self.regrowth}: expected at least 1.")
        if self.layers is not None and not self.layers:
            raise ConfigError("price layers is empty: name the layers whose gates may stay open, or None for all.")


class PriceRule:
    """Dual ascent on the price of a channel.

    Args:
        masks: their logits are set to θ = log(S/λ); only the layout of their start is used.
        budget: how ε is set.
        config: how the price rises.
        total_steps: length of the run.
        settle_steps: its last steps, in which the gates stay fixed.
        seed: seed of the random order (control only).
        base_loss: the base's loss on the same data (nats per token).
    """

    def __init__(
        self,
        masks: RoutingMasks,
        budget: BudgetConfig,
        config: PriceConfig,
        total_steps: int,
        settle_steps: int,
        seed: int = 0,
        base_loss: float = 0.0,
    ) -> None:
        if settle_steps < 0 or budget.warmup_steps + settle_steps > total_steps:
            raise ConfigError(
                f"warm-up ({budget.warmup_steps}) and settling ({settle_steps}) do not fit into {total_steps} steps."
            )
        self.masks = masks
        self.config = config
        self._budget = LossBudget(budget, base_loss)
        self._settle_from = total_steps - settle_steps
        self._share = config.share
        self._failed = 0
        # One price per rise that stands: the last one is λ.
        self._prices: list[float] = []
        generator = torch.Generator().manual_seed(seed)
        self._random_order = torch.rand(masks.n_gates, generator=generator)
        self._saliency = torch.zeros(masks.n_gates)
        self._layer = torch.tensor([site.layer for site in masks.layout.sites])[masks.layout.groups()]
        if config.layers is not None and (missing := set(config.layers) - set(self._layer.tolist())):
            raise ConfigError(f"price layers {sorted(missing)}: the model has layers 0 to {int(self._layer.max())}.")
        # The price rise that closed each gate; 0 is open.
        self._closed_at = torch.zeros(masks.n_gates, dtype=torch.long)
        self._publish()

    @property
    def budget(self) -> LossBudget:
        return self._budget

    @property
    def phase(self) -> Phase:
        if self._budget.steps < self._budget.config.warmup_steps:
            return "warm-up"
        return "settling" if self._budget.steps >= self._settle_from else "descent"

    @property
    def price(self) -> float:
        return self._prices[-1] if self._prices else 0.0

    def gates(self, step: int) -> Float[Tensor, " gate"]:
        return (self._closed_at == 0).float()

    def update(self, loss: float, gate_gradients: Float[Tensor, " gate"]) -> None:
        was_settling = self.phase == "settling"
        gradients = gate_gradients.detach().float().cpu()
        relative = gradients.abs() / gradients.square().mean().sqrt().clamp_min(1e-30)
        decay = self.config.decay if self._budget.steps else 0.0
        self._saliency = decay * self._saliency + (1 - decay) * relative
        self._budget.update(loss)
        if self._budget.steps == self._budget.config.warmup_steps and self.config.layers is not None:
            elsewhere = ~torch.isin(self._layer, torch.tensor(self.config.layers))
            self._closed_at[elsewhere] = _FOR_GOOD
        if self.phase == "descent" and self._budget.steps % self.config.every == 0:
            self._check(loss)
        elif self.phase == "settling" and not was_settling:
            self._fall_back()
        self._publish()

    def _check(self, loss: float) -> None:
        epsilon = self._budget.epsilon
        assert epsilon is not None
        if self._budget.is_kept and loss <= self.config.batch_slack * epsilon:
            self._failed = 0
            if self._share >= self.config.min_share:
                self._rise()
                self._share = min(self.config.share, self._share * self.config.regrowth)
            return
        self._failed += 1
        if self._failed >= self.config.patience:
            self._failed = 0
            self._share /= 2
            self._fall_back()

    def _rise(self) -> None:
        is_open = self._closed_at == 0
        n_open = int(is_open.sum())
        may_close = round(self.config.max_sparsity * self.masks.n_gates) - (self.masks.n_gates - n_open)
        n_closing = min(max(1, round(self._share * n_open)), may_close)
        if not 1 <= n_closing < n_open:
            return
        keys = self._saliency if self.config.order == "sensitivity" else self._random_order
        ranked = self._cheapest_first(torch.where(is_open, keys, torch.inf))
        closing = ranked[:n_closing]
        self._prices.append(float(keys[closing].max()))
        self._closed_at[closing] = len(self._prices)

    def _cheapest_first(self, keys: Float[Tensor, " gate"]) -> Int[Tensor, " gate"]:
        """Gates by rising key; within layers, by rising rank in their layer (closed gates have infinite keys)."""
        if self.config.scope == "global":
            return keys.argsort(stable=True)
        standing = torch.full_like(keys, torch.inf)
        for layer in sorted(set(self._layer.tolist())):
            mine = (self._layer == layer).nonzero().squeeze(-1)
            n_open = int(keys[mine].isfinite().sum())
            order = mine[keys[mine].argsort(stable=True)][:n_open]
            standing[order] = torch.arange(1, n_open + 1) / max(n_open, 1)
        return standing.argsort(stable=True)

    def _fall_back(self) -> None:
        if self._prices:
            self._closed_at[self._closed_at == len(self._prices)] = 0
            self._prices.pop()

    def _publish(self) -> None:
        """θ = log(S/λ), with the sign that the gate has: a closed gate stays closed until the price falls back."""
        log_ratio = (self._saliency.clamp_min(1e-12) / max(self.price, 1e-12)).log()
        is_open = self._closed_at == 0
        logits = torch.where(is_open, log_ratio.clamp_min(1e-3), log_ratio.clamp_max(-1e-3))
        with torch.no_grad():
            self.masks.logits.copy_(logits)

    def tensors(self) -> dict[str, Tensor]:
        return {"price.saliency": self._saliency, "price.closed_at": self._closed_at}

    def state(self) -> dict[str, Any]:
        return {
            "budget": self._budget.state(),
            "share": self._share,
            "failed": self._failed,
            "prices": list(self._prices),
        }

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self._saliency, self._closed_at = tensors["price.saliency"], tensors["price.closed_at"]
        self._budget.load_state(state["budget"])
        self._share, self._failed = state["share"], state["failed"]
        self._prices = list(state["prices"])
        self._publish()
