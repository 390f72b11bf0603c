"""Exact patching: the oracle that the cheaper methods estimate, on a selection of channels.

    necessity    E[𝓜(S) − 𝓜(S with a_c ← a^B_c)]          sufficiency    E[𝓜(B with a_c ← a^S_c) − 𝓜(B)]

One channel is replaced at a time, at all real positions and all firings of its hook point; many channels share a
forward pass, each on its own copy of the prompts. Channels outside the selection are not scored (NaN).

Positive score: the channel's fine-tuned activation raises 𝓜.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lcdd_lens.attribution.activations import metric_with, site_activations
from lcdd_lens.attribution.contrast import Contrast, gates_at
from lcdd_lens.attribution.registry import Attribution, register_method
from lcdd_lens.attribution.scores import ChannelScores
from lcdd_lens.data.tokens import TokenBatch
from lcdd_lens.errors import ConfigError
from lcdd_lens.frozen import frozen
from lcdd_lens.routing.masks import Channels, SiteLayout

Direction = Literal["necessity", "sufficiency"]


@dataclass(frozen=True, eq=False)
class ExactPatching:
    """One patched forward pass per selected channel and prompt."""

    direction: Direction = "necessity"
    """``necessity``: base activations into S; ``sufficiency``: fine-tuned activations into B."""
    selection: Channels | None = None
    """Hook name -> channels to patch; None for all of them (one forward pass per channel and prompt!)."""
    rows_at_once: int = 128
    """Most copies of prompts in one forward pass."""

    def __post_init__(self) -> None:
        if self.direction not in ("necessity", "sufficiency"):
            raise ConfigError(f"direction is {self.direction!r}: expected 'necessity' or 'sufficiency'.")
        if self.rows_at_once < 1:
            raise ConfigError(f"rows_at_once is {self.rows_at_once}: expected at least 1.")

    @property
    def name(self) -> str:
        return f"exact_patching_{self.direction}"

    @property
    def config(self) -> Mapping[str, Any]:
        count = None if self.selection is None else sum(len(index) for index in self.selection.values())
        return {"direction": self.direction, "n_selected": count}

    def run(self, contrast: Contrast, progress: bool) -> Attribution:
        """Positive = the channel's fine-tuned activation raises 𝓜."""
        routed = contrast.routed
        everything = torch.ones(routed.n_gates, dtype=torch.bool)
        chosen = routed.layout.channels(everything if self.selection is None else routed.layout.flags(self.selection))
        sites = [site for site in routed.sites if len(chosen[site.hook_name])]
        host, donor, sign = (1.0, 0.0, 1) if self.direction == "necessity" else (0.0, 1.0, -1)
        per_prompt = {
            site.hook_name: torch.full((contrast.n_prompts, site.n_channels), torch.nan) for site in routed.sites
        }
        n_patches = contrast.n_prompts * sum(len(chosen[site.hook_name]) for site in sites)
        with torch.no_grad(), tqdm(total=n_patches, desc=self.name, disable=not progress, leave=False) as bar:
            for batch in contrast.batches():
                with routed.using(gates_at(routed, donor)), frozen(routed.model):
                    donated = site_activations(contrast, batch.tokens, sites)
                with routed.using(gates_at(routed, host)), frozen(routed.model):
                    unpatched = contrast.metric_of(batch.tokens)
                    for site in sites:
                        for channels in torch.split(
                            chosen[site.hook_name], max(1, self.rows_at_once // len(batch.tokens))
                        ):
                            patched = _patched(
                                contrast, batch.tokens, site.hook_name, channels, donated[site.hook_name]
                            )
                            effect = sign * (unpatched[:, None] - patched)
                            per_prompt[site.hook_name][batch.places[:, None], channels] = effect.float().cpu()
                            bar.update(effect.numel())
        return Attribution({name: values.double().mean(0) for name, values in per_prompt.items()}, per_prompt)


def _patched(
    contrast: Contrast,
    tokens: TokenBatch,
    hook_name: str,
    channels: Int[Tensor, " channel"],
    donated: Float[Tensor, "batch pos all_channels"],
) -> Float[Tensor, "batch channel"]:
    """𝓜 of every prompt with one channel at a time taken from ``donated``."""
    n = len(channels)
    copies = TokenBatch(
        repeat(tokens.tokens, "batch pos -> (n batch) pos", n=n),
        repeat(tokens.attention_mask, "batch pos -> (n batch) pos", n=n),
        repeat(tokens.response_mask, "batch pos -> (n batch) pos", n=n),
    )
    index = torch.arange(n)
    real: Bool[Tensor, "batch pos"] = tokens.attention_mask.bool()

    def replace(activation: Tensor) -> Tensor:
        by_channel = rearrange(activation.clone(), "(n batch) pos c -> n batch pos c", n=n)
        own = by_channel[index, :, :, channels]
        by_channel[index, :, :, channels] = torch.where(real, rearrange(donated[..., channels], "b p n -> n b p"), own)
        return rearrange(by_channel, "n batch pos c -> (n batch) pos c")

    values = metric_with(contrast, copies, {hook_name: replace})
    return rearrange(values, "(n batch) -> batch n", n=n)


def select_channels(
    scores: ChannelScores, top_k: int, sample: int, *, seed: int = 0
) -> dict[str, Int[Tensor, " channel"]]:
    """The ``top_k`` most important channels and ``sample`` more per site, drawn from the rest of that site.

    Raises:
        ConfigError: ``top_k`` is out of range.
    """
    flags = scores.top(top_k)
    generator = torch.Generator().manual_seed(seed)
    for place in _per_site(scores.layout):
        rest = place[~flags[place]]
        flags[rest[torch.randperm(len(rest), generator=generator)[:sample]]] = True
    return scores.layout.channels(flags)


def _per_site(layout: SiteLayout) -> Iterator[Int[Tensor, " channel"]]:
    for where in layout.slices.values():
        yield torch.arange(where.start, where.stop)


register_method("exact_patching_necessity", ExactPatching)
register_method("exact_patching_sufficiency", lambda: ExactPatching("sufficiency"))
