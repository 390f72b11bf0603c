"""How well an SAE explains activations: read this before reading its features.

explained variance   1 − Σ‖x − x̂‖² / Σ‖x − mean x‖²          L0   features active per token
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.display import notebook_view
from lcdd_lens.sae.library import SparseAutoencoder


@dataclass(frozen=True)
class SAEQuality:
    """Fit of an SAE on some activations.

    Attributes:
        explained_variance: 1 is a perfect reconstruction, 0 as good as the mean.
        l0: mean number of active features per activation.
        n_live: features active on at least one activation.
        n_features: all features.
        n: activations.
    """

    explained_variance: float
    l0: float
    n_live: int
    n_features: int
    n: int

    def _repr_html_(self) -> str:
        return notebook_view("SAEQuality", vars(self))


def sae_quality(sae: SparseAutoencoder, activations: Float[Tensor, "token d_in"]) -> SAEQuality:
    """Measure an SAE on activations, best on ones that it was not trained on.

    Args:
        sae: any SAE of SAELens.
        activations: for example :func:`lcdd_lens.sae.training.token_activations` of test prompts.
    """
    with torch.no_grad():
        features = sae.encode(activations)
        error = (activations - sae.decode(features)).double().square().sum()
        total = (activations - activations.mean(0)).double().square().sum()
    active = features > 0
    return SAEQuality(
        1 - float(error / total),
        float(active.sum(1).double().mean()),
        int(active.any(0).sum()),
        features.shape[1],
        len(activations),
    )
