"""Attribution patching: a first-order estimate of what patching one channel's activation would do.

    score_c = E Σ_pos P · (a^S_c − a^B_c) · ∂𝓜/∂a_c

P is the non-padding mask; products are summed over positions with their signs before anything else. The gradient is
taken at S (an estimate of necessity, 𝓜(S) − 𝓜(S with a_c from B)), at B (of sufficiency), or as their mean.

Positive score: moving the channel's activation from base to fine-tuned raises 𝓜.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import einsum
from torch import Tensor

from lcdd_lens.attribution.activations import Activations, chunked, site_activations, site_gradients
from lcdd_lens.attribution.contrast import Contrast, gates_at
from lcdd_lens.attribution.registry import Attribution, register_method
from lcdd_lens.errors import ConfigError
from lcdd_lens.frozen import frozen

GradientAt = Literal["sft", "base", "mean"]


@dataclass(frozen=True)
class AttributionPatching:
    """(a^S − a^B)·∂𝓜/∂a for every channel of every site, from one or two backward passes per prompt."""

    gradient_at: GradientAt = "sft"
    """Where ∂𝓜/∂a is taken: in the fine-tuned model, in the base, or the mean of both."""
    sites_at_once: int | None = None
    """How many sites' activations and gradients are held at the same time; each chunk costs passes of its own."""

    def __post_init__(self) -> None:
        if self.gradient_at not in get_args(GradientAt):
            known = ", ".join(get_args(GradientAt))
            raise ConfigError(f"gradient_at is {self.gradient_at!r}: expected one of {known}.")
        if self.sites_at_once is not None and self.sites_at_once < 1:
            raise ConfigError(f"sites_at_once is {self.sites_at_once}: expected at least 1, or None.")

    @property
    def name(self) -> str:
        return "attribution_patching" if self.gradient_at == "sft" else f"attribution_patching_{self.gradient_at}"

    @property
    def config(self) -> Mapping[str, Any]:
        return {"gradient_at": self.gradient_at}

    def run(self, contrast: Contrast, progress: bool) -> Attribution:
        """Positive = moving the channel's activation from base to fine-tuned raises 𝓜."""
        routed = contrast.routed
        per_prompt = {site.hook_name: torch.zeros(contrast.n_prompts, site.n_channels) for site in routed.sites}
        for batch in contrast.batches(progress=progress, description=self.name):
            mask = batch.tokens.attention_mask
            for sites in chunked(routed.sites, self.sites_at_once):
                with routed.using(gates_at(routed, 0.0)), frozen(routed.model):
                    if self.gradient_at == "sft":
                        base, slopes = site_activations(contrast, batch.tokens, sites), []
                    else:
                        base, slope, _ = site_gradients(contrast, batch.tokens, sites)
                        slopes = [slope]
                with routed.using(gates_at(routed, 1.0)), frozen(routed.model):
                    if self.gradient_at == "base":
                        sft = site_activations(contrast, batch.tokens, sites)
                    else:
                        sft, slope, _ = site_gradients(contrast, batch.tokens, sites)
                        slopes.append(slope)
                for site in sites:
                    name = site.hook_name
                    gradient = _mean_at(slopes, name)
                    product = (sft[name] - base[name]) * gradient
                    score = einsum(mask.to(gradient), product, "batch pos, batch pos channel -> batch channel")
                    per_prompt[name][batch.places] = score.float().cpu()
        return Attribution({name: values.double().mean(0) for name, values in per_prompt.items()}, per_prompt)


def _mean_at(gradients: list[Activations], name: str) -> Tensor:
    return torch.stack([gradient[name] for gradient in gradients]).mean(0)


register_method("attribution_patching", AttributionPatching)
register_method("attribution_patching_base", lambda: AttributionPatching("base"))
register_method("attribution_patching_mean", lambda: AttributionPatching("mean"))
