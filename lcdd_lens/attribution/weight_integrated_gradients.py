"""Integrated gradients on weights: gradient × delta, with the gradient averaged on the way from base to fine-tuned.

    G = (1/K) Σ_k ∂E𝓜/∂W at θ(α_k),    θ(α) = θ_B + α Δθ,    α_k = (k − ½)/K

Completeness: Σ_ij G_ij Δ_ij over all weights is 𝓜(S) − 𝓜(B) up to the rule's error, which is recorded. (In the scores a
weight with a row and a column site counts on both.) Interpolating input embeddings, as EAP-IG does, would be degenerate
here: both models see the same tokens.

Positive score: moving the channel's weights from base to fine-tuned raises 𝓜.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcdd_lens.attribution.contrast import Contrast
from lcdd_lens.attribution.registry import Attribution, register_method
from lcdd_lens.attribution.weight_slopes import gradient_times_delta
from lcdd_lens.errors import ConfigError


@dataclass(frozen=True)
class WeightIntegratedGradients:
    """Integrated gradients from base to fine-tuned weights; ``steps`` backward passes per prompt for all sites."""

    steps: int = 8
    """K: points on the line between the weights."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}: expected at least 1.")

    @property
    def name(self) -> str:
        return "weight_integrated_gradients"

    @property
    def config(self) -> Mapping[str, Any]:
        return {"steps": self.steps}

    def run(self, contrast: Contrast, progress: bool) -> Attribution:
        """Positive = moving the channel's weights from base to fine-tuned raises 𝓜."""
        alphas = [(k - 0.5) / self.steps for k in range(1, self.steps + 1)]
        scores, total = gradient_times_delta(contrast, alphas, progress, self.name)
        change = float(contrast.sft_values().mean() - contrast.base_values().mean())
        return Attribution(scores, details={"integral": total, "change": change, "gap": total - change})


register_method("weight_integrated_gradients", WeightIntegratedGradients)
