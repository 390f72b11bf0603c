"""Weight-delta attribution: the gradient at the fine-tuned weights times what fine-tuning added to them.

    score of row j: Σ_i G_ij Δ_ij        score of column i: Σ_j G_ij Δ_ij        G = ∂E𝓜/∂W at W_S

summed over the matrices that meet the site. It equals the gates' gradient
∂𝓜/∂m at m = 1, so it is the first-order effect of closing a gate of the fine-tuned model.

Positive score: moving the channel's weights from base to fine-tuned raises 𝓜.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcdd_lens.attribution.contrast import Contrast
from lcdd_lens.attribution.registry import Attribution, register_method
from lcdd_lens.attribution.weight_slopes import gradient_times_delta


@dataclass(frozen=True)
class WeightDelta:
    """Weight-delta attribution; one backward pass per prompt for all sites."""

    @property
    def name(self) -> str:
        return "weight_delta"

    @property
    def config(self) -> Mapping[str, Any]:
        return {}

    def run(self, contrast: Contrast, progress: bool) -> Attribution:
        """Positive = moving the channel's weights from base to fine-tuned raises 𝓜."""
        scores, total = gradient_times_delta(contrast, [1.0], progress, self.name)
        return Attribution(scores, details={"linear_total": total})


register_method("weight_delta", WeightDelta)
