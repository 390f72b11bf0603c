"""The loss budget and the dual variable (paper, section 4: Loss-Constrained Dual Descent).

    min Σ σ(θ)   subject to   L_SFT(W(m)) ≤ ε

The budget ε comes from a bias-corrected moving average of the batch loss at the end of the warm-up. After it the dual
variable λ, the price of an open gate, follows the violation of the budget:

    EMA_t = β·EMA_{t−1} + (1 − β)·L_t,   corrected by 1 − β^t          ε = max((1 + ρ)·EMA, τ·L_B) at t = T_warm
    v = clip((EMA − ε)/ε, −V, V)                                       λ ← clamp(λ·exp(−η·v), λ_min, λ_max)

Two things are ours. A smallest ε, τ·L_B, where L_B is the base's own loss on the same data: a behaviour that
fine-tuning fits perfectly has a loss near zero, and a budget relative to zero is no budget. Measured against the base,
the budget is a share of what fine-tuning gained, whatever the behaviour's loss looks like (an absolute *floor* in nats
can be given as well). Separate rates η for growth and shrink: with equal ones λ overshoots, gates close whose
straight-through derivative then vanishes, and the behaviour is lost for good.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

from lcdd_lens.errors import ConfigError

Phase = Literal["warm-up", "descent", "settling"]


@dataclass(frozen=True)
class BudgetConfig:
    """How ε is set."""

    beta: float = 0.95
    """Decay β of the moving average of the loss, in [0, 1)."""
    warmup_steps: int = 300
    """T_warm: steps before ε is fixed."""
    ratio: float = 0.3
    """ρ: the slack relative to the loss at the end of the warm-up (paper: 0.2-0.3)."""
    base_share: float = 0.0
    """τ: smallest ε as a share of the base's loss on the same data (ours); 0: none."""
    floor: float = 0.0
    """Smallest ε, in nats per token (ours); 0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ConfigError(f"budget beta is {self.beta}: expected a value in [0, 1).")
        if self.warmup_steps < 1:
            raise ConfigError(f"budget warmup_steps is {self.warmup_steps}: expected at least 1.")
        if min(self.ratio, self.base_share, self.floor) < 0:
            raise ConfigError(
                f"budget ratio, base_share and floor must not be negative; got {self.ratio}, {self.base_share} and "
                f"{self.floor}."
            )
        if self.base_share >= 1:
            raise ConfigError(f"budget base_share is {self.base_share}: at 1 the base itself keeps the budget.")


class BudgetState(TypedDict):
    """What a resumed run needs."""

    steps: int
    raw: float
    epsilon: float | None


class LossBudget:
    """Moving average of the loss and the budget ε that it must keep.

    Args:
        config: how ε is set.
        base_loss: L_B, the base's loss on the same data (nats per token), where ``base_share`` needs it.
    """

    def __init__(self, config: BudgetConfig, base_loss: float = 0.0) -> None:
        self.config = config
        self._smallest = max(config.floor, config.base_share * base_loss)
        self.steps = 0
        self.epsilon: float | None = None
        self._raw = 0.0

    def update(self, loss: float) -> None:
        """Take in one batch loss; at the end of the warm-up ε is fixed."""
        beta = self.config.beta
        self.steps += 1
        self._raw = beta * self._raw + (1 - beta) * loss
        if self.steps == self.config.warmup_steps:
            self.epsilon = max(self.ema * (1 + self.config.ratio), self._smallest)

    @property
    def ema(self) -> float:
        """Bias-corrected moving average of the loss (nats per token); 0 before the first step."""
        return self._raw / (1 - self.config.beta**self.steps) if self.steps else 0.0

    @property
    def violation(self) -> float:
        """(EMA − ε)/ε: positive over budget, negative with slack; 0 during the warm-up."""
        if self.epsilon is None:
            return 0.0
        return (self.ema - self.epsilon) / max(self.epsilon, 1e-12)

    @property
    def is_kept(self) -> bool:
        """Whether the loss is within the budget; the warm-up has none to break."""
        return self.epsilon is None or self.ema <= self.epsilon

    def state(self) -> BudgetState:
        """State for a checkpoint."""
        return {"steps": self.steps, "raw": self._raw, "epsilon": self.epsilon}

    def load_state(self, state: BudgetState) -> None:
        """Continue from a checkpoint."""
        self.steps, self._raw, self.epsilon = state["steps"], state["raw"], state["epsilon"]


@dataclass(frozen=True)
class DualConfig:
    """How λ moves."""

    initial: float = 0.01
    """λ₀."""
    minimum: float = 1e-6
    """λ_min > 0."""
    maximum: float = 10.0
    """λ_max; 0.3-0.5 for fragile behaviours, far less for models of a million parameters."""
    growth: float = 0.1
    """η while there is slack."""
    shrink: float = 0.1
    """η while the budget is broken; larger than ``growth`` prevents the overshoot."""
    clip: float = 2.0
    """V: bound of the relative violation in one step."""

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= self.initial <= self.maximum:
            raise ConfigError(
                f"λ needs 0 < minimum ≤ initial ≤ maximum; got {self.minimum}, {self.initial}, {self.maximum}."
            )
        if self.growth < 0 or self.shrink < 0 or self.clip <= 0:
            raise ConfigError("dual growth and shrink must not be negative, and clip must be positive.")


class DualState(TypedDict):
    """What a resumed run needs."""

    budget: BudgetState
    price: float


class DualController:
    """The paper's dual update, with a settling phase at the end in which λ and the gates stay as they are.

    Args:
        budget: how ε is set.
        config: how λ moves.
        total_steps: length of the run.
        settle_steps: its last steps, in which only weights train, so that the run does not stop in mid-oscillation.
        base_loss: the base's loss on the same data (nats per token).
    """

    def __init__(
        self,
        budget: BudgetConfig,
        config: DualConfig,
        total_steps: int,
        settle_steps: int = 0,
        base_loss: float = 0.0,
    ) -> None:
        if settle_steps < 0 or budget.warmup_steps + settle_steps > total_steps:
            raise ConfigError(
                f"warm-up ({budget.warmup_steps}) and settling ({settle_steps}) do not fit into {total_steps} steps."
            )
        self.budget = LossBudget(budget, base_loss)
        self.config = config
        self.price = config.initial
        self._settle_from = total_steps - settle_steps

    @property
    def phase(self) -> Phase:
        """Where the run is, judged by the steps taken in so far."""
        if self.budget.steps < self.budget.config.warmup_steps:
            return "warm-up"
        return "settling" if self.budget.steps >= self._settle_from else "descent"

    @property
    def penalty_weight(self) -> float:
        """λ_t · min(1, t/T_warm) for the coming step; 0 while settling."""
        if self.phase == "settling":
            return 0.0
        return self.price * min(1.0, (self.budget.steps + 1) / self.budget.config.warmup_steps)

    def update(self, loss: float) -> None:
        """Take in one batch loss and move λ."""
        was = self.phase
        self.budget.update(loss)
        if was != "descent":
            return
        v = max(-self.config.clip, min(self.config.clip, self.budget.violation))
        rate = self.config.growth if v < 0 else self.config.shrink
        self.price = max(self.config.minimum, min(self.config.maximum, self.price * math.exp(-rate * v)))

    def state(self) -> DualState:
        """State for a checkpoint."""
        return {"budget": self.budget.state(), "price": self.price}

    def load_state(self, state: DualState) -> None:
        """Continue from a checkpoint."""
        self.budget.load_state(state["budget"])
        self.price = state["price"]
