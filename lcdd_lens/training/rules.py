"""What decides which gates are open while weights train: one protocol, and the paper's rule.

A rule gives the gate values of a step, and after the backward pass is told the loss and ∂L/∂m of every gate. The
gates are leaves of the step's graph, so one backward pass serves weights and gates, whatever the rule.
"""

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.routing.masks import RoutingMasks
from lcdd_lens.training.checkpoint import load_optimiser_tensors, optimiser_tensors
from lcdd_lens.training.dual import DualController, LossBudget, Phase


@runtime_checkable
class GateRule(Protocol):
    """Chooses gates during LCDD."""

    masks: RoutingMasks

    @property
    def budget(self) -> LossBudget:
        """The loss budget that the rule keeps."""
        ...

    @property
    def phase(self) -> Phase:
        """Warm-up, descent or settling."""
        ...

    @property
    def price(self) -> float:
        """λ: the present price of an open gate."""
        ...

    def gates(self, step: int) -> Float[Tensor, " gate"]:
        """Gate values of a step, detached."""
        ...

    def update(self, loss: float, gate_gradients: Float[Tensor, " gate"]) -> None:
        """Move the logits and the dual variable after a backward pass."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON state of a checkpoint."""
        ...

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        ...


class PenaltyRule:
    """The paper's rule: gradient descent on L + λ·Σσ(θ), with λ moved by the budget.

    Args:
        masks: the routing logits.
        controller: the dual variable.
        lr: step size on the logits (paper: 0.1).
        optimiser: SGD keeps the size of the gradient, which ranks the gates (paper); Adam equalises it.
        use_loss_gradient: False moves the logits by the penalty alone (a control: is the carrier the behaviour's?).
        seed: seed of stochastic estimators.
    """

    def __init__(
        self,
        masks: RoutingMasks,
        controller: DualController,
        *,
        lr: float,
        optimiser: Literal["sgd", "adam"] = "sgd",
        use_loss_gradient: bool = True,
        seed: int = 0,
    ) -> None:
        self.masks = masks
        self.controller = controller
        kind = torch.optim.SGD if optimiser == "sgd" else torch.optim.Adam
        self.optimiser: torch.optim.Optimizer = kind(masks.parameters(), lr=lr)
        self._use_loss_gradient = use_loss_gradient
        self._seed = seed
        self._sampled: Tensor | None = None

    @property
    def budget(self) -> LossBudget:
        return self.controller.budget

    @property
    def phase(self) -> Phase:
        return self.controller.phase

    @property
    def price(self) -> float:
        return self.controller.price

    def gates(self, step: int) -> Float[Tensor, " gate"]:
        if self.phase == "settling":
            return self.masks.is_open().float()
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        self._sampled = self.masks.sample(generator)
        return self._sampled.detach()

    def update(self, loss: float, gate_gradients: Float[Tensor, " gate"]) -> None:
        if self.phase != "settling" and self._sampled is not None:
            self.optimiser.zero_grad()
            (self.controller.penalty_weight * self.masks.penalty()).backward()  # type: ignore[no-untyped-call]
            if self._use_loss_gradient:
                self._sampled.backward(gate_gradients)  # type: ignore[no-untyped-call]
            self.optimiser.step()
        self._sampled = None
        self.controller.update(loss)

    def tensors(self) -> dict[str, Tensor]:
        return {"masks.logits": self.masks.logits.detach(), **optimiser_tensors(self.optimiser, "masks.optimiser")}

    def state(self) -> dict[str, Any]:
        return {"dual": self.controller.state()}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.masks.logits.copy_(tensors["masks.logits"])
        load_optimiser_tensors(self.optimiser, "masks.optimiser", tensors)
        self.controller.load_state(state["dual"])
