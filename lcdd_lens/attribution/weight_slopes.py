"""Gradient × delta of every weight, gathered at channels: what both weight attributions are made of.

With Δ = W_S − W_B and G = ∂E𝓜/∂W, stored [d_in d_out]:

    row (output channel) j:  Σ_i G_ij Δ_ij        column (input channel) i:  Σ_j G_ij Δ_ij

summed over the matrices and biases that meet the site. G is an average over points θ(α) = θ_B + αΔθ between the models,
with all gates open there: at m = 0 the outer product of two gates would have no gradient.

Positive score: moving the channel's weights from base to fine-tuned raises 𝓜.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lcdd_lens.attribution.contrast import Contrast, gates_at, only_weights_learn


def gradient_times_delta(
    contrast: Contrast, alphas: Sequence[float], progress: bool, description: str
) -> tuple[dict[str, Tensor], float]:
    """Scores per hook name [channel] and Σ G·Δ over all weights, with G averaged over θ(α); positive raises 𝓜."""
    routed = contrast.routed
    base = routed.base_weights()
    fine_tuned = {name: weight.detach().clone() for name, weight in routed.delta_parameters().items()}
    average = {name: torch.zeros_like(weight) for name, weight in fine_tuned.items()}
    for alpha in tqdm(alphas, desc=description, disable=not progress, leave=False):
        between = {name: torch.lerp(base[name], weight, alpha) for name, weight in fine_tuned.items()}
        with routed.with_weights(between), routed.using(gates_at(routed, 1.0)), only_weights_learn(routed) as weights:
            for batch in contrast.batches(progress=progress):
                value = contrast.metric_of(batch.tokens).sum() / (contrast.n_prompts * len(alphas))
                contrast.meter.backward_passes += len(batch.tokens)
                gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        average[name] += gradient
    scores = {s.hook_name: torch.zeros(s.n_channels, dtype=torch.float64) for s in routed.sites}
    total = 0.0
    for weight_site in routed.weight_sites:
        name = weight_site.parameter
        product = (average[name] * (fine_tuned[name] - base[name])).double()
        total += float(product.sum())
        for axis in weight_site.axes:
            scores[axis.site.hook_name] += axis.sum_to_channels(product).cpu()
    return scores, total
