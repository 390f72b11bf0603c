"""Gate estimators: how a routing logit θ becomes a gate in [0, 1], and how a gradient passes through it.

Straight-through (the paper's, section 3):   forward m = 1[θ > 0],   backward ∂m/∂θ = σ'(θ).
Hard concrete (Louizos et al. 2018):         m = clamp(s·(ζ − γ) + γ, 0, 1),  s = σ((log u − log(1 − u) + θ) / β).
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lcdd_lens.errors import ConfigError


@runtime_checkable
class GateEstimator(Protocol):
    """Turns routing logits into gates."""

    @property
    def name(self) -> str:
        """What configurations call it."""
        ...

    def sample(
        self, logits: Float[Tensor, " gate"], generator: torch.Generator | None = None
    ) -> Float[Tensor, " gate"]:
        """Gates for a training step, differentiable in the logits."""
        ...

    def openness(self, logits: Float[Tensor, " gate"]) -> Float[Tensor, " gate"]:
        """The differentiable count of a gate: its term in the penalty, in (0, 1)."""
        ...

    def is_open(self, logits: Float[Tensor, " gate"]) -> Bool[Tensor, " gate"]:
        """The gates after training: open or closed."""
        ...


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return (logits > 0).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        openness = torch.sigmoid(logits)
        return grad_outputs[0] * openness * (1 - openness)


@dataclass(frozen=True)
class StraightThrough:
    """Hard gates forward, the sigmoid's derivative backward (paper, section 3)."""

    name: str = "straight_through"

    def sample(
        self, logits: Float[Tensor, " gate"], generator: torch.Generator | None = None
    ) -> Float[Tensor, " gate"]:
        gates: Tensor = _StraightThrough.apply(logits)  # type: ignore[no-untyped-call]
        return gates

    def openness(self, logits: Float[Tensor, " gate"]) -> Float[Tensor, " gate"]:
        return torch.sigmoid(logits)

    def is_open(self, logits: Float[Tensor, " gate"]) -> Bool[Tensor, " gate"]:
        return logits > 0


@dataclass(frozen=True)
class HardConcrete:
    """Stretched and clamped concrete gates (Louizos et al. 2018, arXiv 1712.01312)."""

    temperature: float = 2 / 3
    """β: lower is closer to binary."""
    low: float = -0.1
    """γ < 0: lower end of the stretched interval."""
    high: float = 1.1
    """ζ > 1: upper end of the stretched interval."""
    name: str = "hard_concrete"

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.low < 0 and self.high > 1):
            raise ConfigError(
                "hard concrete needs temperature > 0, low < 0 and high > 1; "
                f"got {self.temperature}, {self.low}, {self.high}."
            )

    def sample(
        self, logits: Float[Tensor, " gate"], generator: torch.Generator | None = None
    ) -> Float[Tensor, " gate"]:
        uniform = torch.rand(logits.shape, generator=generator).to(logits).clamp(1e-6, 1 - 1e-6)
        concrete = torch.sigmoid((torch.logit(uniform) + logits) / self.temperature)
        return (concrete * (self.high - self.low) + self.low).clamp(0, 1)

    def openness(self, logits: Float[Tensor, " gate"]) -> Float[Tensor, " gate"]:
        return torch.sigmoid(logits - self.temperature * math.log(-self.low / self.high))

    def is_open(self, logits: Float[Tensor, " gate"]) -> Bool[Tensor, " gate"]:
        # The deterministic gate clamp(σ(θ)(ζ − γ) + γ, 0, 1) rounded to the nearer end.
        return torch.sigmoid(logits) * (self.high - self.low) + self.low > 0.5


ESTIMATORS: dict[str, type[StraightThrough] | type[HardConcrete]] = {
    "straight_through": StraightThrough,
    "hard_concrete": HardConcrete,
}


def make_estimator(name: str) -> GateEstimator:
    """An estimator by name.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in ESTIMATORS:
        raise ConfigError(f"unknown gate estimator {name!r}: expected one of {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[name]()
