"""Training the weights on under an imposed mask: does it matter *which* channels are open?

    min_W L_SFT(W(m))   with the gates m given and held

A carrier that LCDD found and a mask of the same size that somebody drew are judged alike: both start at the
fine-tuned weights and train for the same steps. With every gate open it is plain fine-tuning, pulled to the base like
LCDD's weights (a control of the comparison; not in the paper).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lcdd_lens.data.tokens import EncodedSet
from lcdd_lens.errors import ConfigError
from lcdd_lens.routing.masks import RoutingMasks
from lcdd_lens.routing.routed import RoutedModel
from lcdd_lens.training.dual import BudgetConfig, LossBudget, Phase
from lcdd_lens.training.loop import History, Loop, OptimConfig


class FixedGates:
    """A gate rule that never moves a gate, and so knows no budget: ε stays unset.

    Args:
        masks: their logits become +1 at open and −1 at closed gates.
        flags: True at the gates that are open, flat.

    Raises:
        ConfigError: there is not one flag a gate.
    """

    phase: Phase = "settling"
    price: float = 0.0

    def __init__(self, masks: RoutingMasks, flags: Bool[Tensor, "_"]) -> None:
        if len(flags) != masks.n_gates:
            raise ConfigError(f"{len(flags)} flags for {masks.n_gates} gates: expected one a gate.")
        self.masks = masks
        self.budget = LossBudget(BudgetConfig(warmup_steps=1_000_000_000))
        self._gates = flags.cpu().float()
        with torch.no_grad():
            masks.logits.copy_(2 * self._gates - 1)

    def gates(self, step: int) -> Float[Tensor, " gate"]:
        return self._gates.clone()

    def update(self, loss: float, gate_gradients: Float[Tensor, " gate"]) -> None:
        self.budget.update(loss)

    def tensors(self) -> dict[str, Tensor]:
        return {"fixed.gates": self._gates}

    def state(self) -> dict[str, Any]:
        return {"budget": self.budget.state()}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self._gates = tensors["fixed.gates"]
        self.budget.load_state(state["budget"])


def train_under_mask(
    routed: RoutedModel,
    flags: Bool[Tensor, "_"],
    data: EncodedSet,
    config: OptimConfig,
    *,
    pad_id: int,
    progress: bool = True,
) -> History:
    """Train the weights of ``routed`` in place with exactly these gates open; they stay open afterwards.

    Args:
        routed: a routed model, usually at the fine-tuned weights.
        flags: True at the open gates, flat in the order of ``routed.layout``.
        data: encoded rows with responses.
        config: how the weights are trained; a pull goes to the base.
        pad_id: padding token.
        progress: show a progress bar.

    Returns:
        Series ``step``, ``loss`` (nats per counted token), ``ema``, ``lr`` and the rule's.

    Raises:
        ConfigError: there is not one flag a gate.
        TrainingError: the loss became NaN or diverged.
    """
    rule = FixedGates(RoutingMasks(routed.sites), flags)
    loop = Loop(
        routed.model,
        routed.delta_parameters(),
        routed.base_weights(),
        data,
        config,
        pad_id=pad_id,
        routed=routed,
        rule=rule,
        label="weights under a mask",
        progress=progress,
    )
    history = loop.run()
    routed.route_by(rule.masks)
    return history
