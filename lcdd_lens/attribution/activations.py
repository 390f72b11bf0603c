"""Activations and their gradients at sites, and models whose activations are replaced there.

Channels are read as one last axis [batch pos channel], per-head hooks flattened (head d_head), in native key/value
heads. One hook point may fire several times in a forward pass (TransformerLens normalises once for each of queries,
keys and values): the gradient of a site is the sum over its firings, and a replacement acts on all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.attribution.contrast import Contrast
from lcdd_lens.backends.sites import Site
from lcdd_lens.data.tokens import TokenBatch

Activations = dict[str, Tensor]
"""Hook name -> activations [batch pos channel]."""

Replacement = Callable[[Tensor], Tensor]
"""Activations [batch pos channel] -> what stands in their place."""

_FLAT = "batch pos ... -> batch pos (...)"


def site_activations(contrast: Contrast, tokens: TokenBatch, sites: Sequence[Site]) -> Activations:
    """Activations at sites under the present gates, without gradients."""
    found: Activations = {}

    def keep(activation: Tensor, hook: Any) -> None:
        found[hook.name] = rearrange(activation.detach(), _FLAT)

    with torch.no_grad(), contrast.model.hooks(fwd_hooks=[(site.hook_name, keep) for site in sites]):
        contrast.logits(tokens)
    return found


def site_gradients(
    contrast: Contrast, tokens: TokenBatch, sites: Sequence[Site]
) -> tuple[Activations, Activations, Float[Tensor, " batch"]]:
    """Activations a, total derivatives ∂𝓜/∂a of each prompt's own 𝓜, and 𝓜 itself, under the present gates.

    The model must be frozen: the graph then begins at the embedding and holds no weight gradients.
    """
    firings: dict[str, list[Tensor]] = {site.hook_name: [] for site in sites}

    def begin_graph(embedding: Tensor, hook: Any) -> Tensor:
        return embedding.detach().requires_grad_()

    def keep(activation: Tensor, hook: Any) -> Tensor:
        firings[hook.name].append(activation)
        # A bridge shows a view in another shape: returned, the view is what the model goes on with.
        return activation

    hooks = [("hook_embed", begin_graph), *((site.hook_name, keep) for site in sites)]
    with torch.enable_grad(), contrast.model.hooks(fwd_hooks=hooks):
        values = contrast.metric_of(tokens)
    contrast.meter.backward_passes += len(tokens)
    listed = [(name, activation) for name, fired in firings.items() for activation in fired]
    slopes = torch.autograd.grad(values.sum(), [activation for _, activation in listed])
    activations = {name: rearrange(fired[0].detach(), _FLAT) for name, fired in firings.items()}
    gradients: Activations = {}
    for (name, _), slope in zip(listed, slopes, strict=True):
        flat = rearrange(slope, _FLAT)
        gradients[name] = gradients[name] + flat if name in gradients else flat
    return activations, gradients, values.detach()


def metric_with(
    contrast: Contrast, tokens: TokenBatch, replacements: Mapping[str, Replacement]
) -> Float[Tensor, " batch"]:
    """𝓜 of every prompt under the present gates while activations are replaced at some hook points."""

    def replace(activation: Tensor, hook: Any) -> Tensor:
        flat = rearrange(activation, _FLAT)
        return replacements[hook.name](flat).reshape(activation.shape)

    with contrast.model.hooks(fwd_hooks=[(name, replace) for name in replacements]):
        return contrast.metric_of(tokens)


def chunked(sites: Sequence[Site], sites_at_once: int | None) -> list[Sequence[Site]]:
    """The sites in chunks whose activations are held at the same time; ``None``: all at once."""
    size = sites_at_once or len(sites)
    return [sites[start : start + size] for start in range(0, len(sites), size)]
