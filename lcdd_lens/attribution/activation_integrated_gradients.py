"""Integrated gradients on activations, one site at a time.

    a(α) = a^B + α (a^S − a^B)
    score_c = E Σ_pos (a^S_c − a^B_c) · (1/K) Σ_k ∂𝓜/∂a_c at a(α_k),          α_k = (k − ½)/K

The whole site is moved, in a host model that otherwise stays as it is. Per prompt and site the scores sum to what
moving the whole site does (completeness): 𝓜(S) − 𝓜(S with a ← a^B) in host S, 𝓜(B with a ← a^S) − 𝓜(B) in host B.
The gap is recorded, and shrinks with K.

Positive score: moving the channel's activation from base to fine-tuned raises 𝓜.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lcdd_lens.attribution.activations import Replacement, chunked, metric_with, site_activations
from lcdd_lens.attribution.contrast import Contrast, gates_at
from lcdd_lens.attribution.registry import Attribution, register_method
from lcdd_lens.data.tokens import TokenBatch
from lcdd_lens.errors import ConfigError
from lcdd_lens.frozen import frozen

Host = Literal["sft", "base"]


@dataclass(frozen=True)
class ActivationIntegratedGradients:
    """Integrated gradients at every site in turn; ``steps`` forward and backward passes per prompt and site."""

    steps: int = 8
    """K: points on the line between the activations."""
    host: Host = "sft"
    """The model in which the site is moved."""
    sites_at_once: int | None = None
    """How many sites' activations are held at the same time."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}: expected at least 1.")
        if self.host not in ("sft", "base"):
            raise ConfigError(f"host is {self.host!r}: expected 'sft' or 'base'.")
        if self.sites_at_once is not None and self.sites_at_once < 1:
            raise ConfigError(f"sites_at_once is {self.sites_at_once}: expected at least 1, or None.")

    @property
    def name(self) -> str:
        return "activation_integrated_gradients" + ("" if self.host == "sft" else "_base")

    @property
    def config(self) -> Mapping[str, Any]:
        return {"steps": self.steps, "host": self.host}

    def run(self, contrast: Contrast, progress: bool) -> Attribution:
        """Positive = moving the channel's activation from base to fine-tuned raises 𝓜."""
        routed = contrast.routed
        here, there = (1.0, 0.0) if self.host == "sft" else (0.0, 1.0)
        per_prompt = {site.hook_name: torch.zeros(contrast.n_prompts, site.n_channels) for site in routed.sites}
        change = {site.hook_name: torch.zeros(contrast.n_prompts, dtype=torch.float64) for site in routed.sites}
        for batch in contrast.batches(progress=progress, description=self.name):
            for sites in chunked(routed.sites, self.sites_at_once):
                with routed.using(gates_at(routed, there)), frozen(routed.model):
                    other = site_activations(contrast, batch.tokens, sites)
                with routed.using(gates_at(routed, here)), frozen(routed.model):
                    own = site_activations(contrast, batch.tokens, sites)
                    unmoved = contrast.metric_of(batch.tokens).detach()
                    for site in sites:
                        name = site.hook_name
                        base, sft = (other[name], own[name]) if self.host == "sft" else (own[name], other[name])
                        scores = self._integrate(contrast, batch.tokens, name, base, sft)
                        moved = _metric_at(contrast, batch.tokens, name, own[name], other[name]).detach()
                        step = unmoved - moved if self.host == "sft" else moved - unmoved
                        per_prompt[name][batch.places] = scores.float().cpu()
                        change[name][batch.places] = step.double().cpu()
        gaps = {name: values.double().sum(1) - change[name] for name, values in per_prompt.items()}
        details = {
            "change": {name: float(values.mean()) for name, values in change.items()},
            "gap": {name: float(values.mean()) for name, values in gaps.items()},
            "largest_gap": max(float(values.abs().max()) for values in gaps.values()),
        }
        mean = {name: values.double().mean(0) for name, values in per_prompt.items()}
        return Attribution(mean, per_prompt, details=details)

    def _integrate(
        self,
        contrast: Contrast,
        tokens: TokenBatch,
        hook_name: str,
        base: Float[Tensor, "batch pos channel"],
        sft: Float[Tensor, "batch pos channel"],
    ) -> Float[Tensor, "batch channel"]:
        difference = _on_tokens(sft - base, tokens.attention_mask)
        gradient = torch.zeros_like(base)
        for k in range(1, self.steps + 1):
            between = (base + (k - 0.5) / self.steps * difference).detach().requires_grad_()
            value = metric_with(contrast, tokens, {hook_name: _always(between)}).sum()
            contrast.meter.backward_passes += len(tokens)
            gradient += torch.autograd.grad(value, between)[0] / self.steps
        return einsum(difference, gradient, "batch pos channel, batch pos channel -> batch channel")


def _metric_at(
    contrast: Contrast,
    tokens: TokenBatch,
    hook_name: str,
    own: Float[Tensor, "batch pos channel"],
    other: Float[Tensor, "batch pos channel"],
) -> Float[Tensor, " batch"]:
    moved = own + _on_tokens(other - own, tokens.attention_mask)
    with torch.no_grad():
        return metric_with(contrast, tokens, {hook_name: _always(moved)})


def _always(activation: Float[Tensor, "batch pos channel"]) -> Replacement:
    return lambda _: activation


def _on_tokens(
    values: Float[Tensor, "batch pos channel"], attention_mask: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos channel"]:
    return values * rearrange(attention_mask.to(values), "batch pos -> batch pos 1")


register_method("activation_integrated_gradients", ActivationIntegratedGradients)
