"""Carrier channels as feature directions.

    channel c against feature f     |d_fc|                 cosine between the channel's axis e_c and the decoder row d_f
    carrier C against feature f     ‖P_C d_f‖              cosine between d_f and the carrier's coordinate plane
    change against feature f        cos(d_f, Δ)            Δ: mean change of the activation, routed − base

with ‖d_f‖ = 1. A decoder row of d_in entries lies in any plane of k coordinates to about √(k/d_in), so each figure has
a control: random sets of as many channels, and the same change with its entries dealt to random channels.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lcdd_lens.carrier import Carrier
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ConfigError
from lcdd_lens.lens import SideBySide
from lcdd_lens.lens.caches import activations
from lcdd_lens.sae.library import SparseAutoencoder, decoder_directions, hook_of

_STREAM = re.compile(r"^blocks\.(\d+)\.hook_resid_(pre|mid|post)$")


@dataclass(frozen=True, eq=False)
class CarrierAlignment:
    """Cosines between a carrier and the decoder rows of an SAE.

    Attributes:
        hook_name: where the SAE reads.
        channels: the carrier's channels that write there.
        best_cosine: per channel of the hook point, the largest |d_fc| over features.
        best_feature: per channel, the feature that has it.
        plane: per feature, ‖P_C d_f‖.
        plane_random: the same for random sets of as many channels.
        change: per feature, cos(d_f, Δ).
        change_random: the same with Δ's entries on random channels.
    """

    hook_name: str
    channels: Int[Tensor, " open"]
    best_cosine: Float[Tensor, " d_in"]
    best_feature: Int[Tensor, " d_in"]
    plane: Float[Tensor, " feature"]
    plane_random: Float[Tensor, "draw feature"]
    change: Float[Tensor, " feature"]
    change_random: Float[Tensor, "draw feature"]

    def summary(self) -> pd.DataFrame:
        """One row per question: the carrier's figure, the mean of the random draws, their 95 % range, a p-value.

        The p-value is the share of draws at least as large, counting the carrier's own.
        """
        inside = self.best_cosine[self.channels]
        generator = torch.Generator().manual_seed(0)
        drawn = [
            self.best_cosine[torch.randperm(len(self.best_cosine), generator=generator)[: len(self.channels)]].mean()
            for _ in range(len(self.plane_random))
        ]
        change = self.change.abs().max(), self.change_random.abs().amax(1)
        rows = {
            "channels: mean best |cosine| with a feature": (inside.mean(), torch.stack(drawn)),
            "features: largest share in the carrier's plane": (self.plane.max(), self.plane_random.amax(1)),
            "features: largest |cosine| with the change": change,
        }
        compared = {question: _against(float(own), draws) for question, (own, draws) in rows.items()}
        return pd.DataFrame.from_dict(compared, "index")

    def to_dataframe(self) -> pd.DataFrame:
        """One row per feature: its share in the plane, what random planes give, its cosine with the change."""
        frame = pd.DataFrame(
            {
                "feature": range(len(self.plane)),
                "plane": self.plane.numpy(),
                "plane_random": self.plane_random.mean(0).numpy(),
                "plane_random_high": self.plane_random.quantile(0.95, dim=0).numpy(),
                "change": self.change.numpy(),
                "change_random_high": self.change_random.abs().quantile(0.95, dim=0).numpy(),
            }
        )
        return frame.sort_values("plane", ascending=False, kind="stable", ignore_index=True)

    def channels_dataframe(self) -> pd.DataFrame:
        """One row per carrier channel: the feature closest to its axis, their |cosine|, its rank among all channels."""
        rank = self.best_cosine.argsort(descending=True).argsort() + 1
        return pd.DataFrame(
            {
                "channel": channel,
                "feature": int(self.best_feature[channel]),
                "cosine": float(self.best_cosine[channel]),
                "rank": int(rank[channel]),
                "of": len(self.best_cosine),
            }
            for channel in self.channels.tolist()
        )

    def plot(self, ax: Any = None) -> Any:
        """Features by their share in the carrier's plane, with the range of random planes."""
        from lcdd_lens.plotting.sae import plot_alignment  # figures stand apart from results

        return plot_alignment(self, ax=ax)

    def __repr__(self) -> str:
        k, width = len(self.channels), len(self.best_cosine)
        return f"CarrierAlignment({k} of {width} channels at {self.hook_name}, {len(self.plane)} features)"

    def _repr_html_(self) -> str:
        return notebook_view(repr(self), self.summary())


def carrier_alignment(
    sae: SparseAutoencoder, side: SideBySide, *, n_random: int = 200, seed: int = 0
) -> CarrierAlignment:
    """Compare the carrier's channels, and the change that they make, with an SAE's decoder rows.

    Args:
        sae: any SAE of SAELens at a residual stream or at a site of the model.
        side: conditions ``base`` and ``routed``, prompts, and the carrier.
        n_random: draws of each control.
        seed: of the draws.

    Raises:
        ConfigError: the SAE does not fit, or no channel of the carrier writes where it reads.
    """
    hook_name, directions = hook_of(sae), decoder_directions(sae)
    width = directions.shape[1]
    channels = channels_at(side.carrier, hook_name)
    if not len(channels) or int(channels.max()) >= width:
        raise ConfigError(
            f"{len(channels)} channels of the carrier write into {hook_name}, and the SAE has {width} inputs: "
            "choose an SAE at or behind a layer in which the carrier writes."
        )
    read = {name: activations(side, name, [hook_name])[0][hook_name] for name in ("routed", "base")}
    means = {name: rearrange(found, "prompt ... -> prompt (...)").float().mean(0) for name, found in read.items()}
    change = torch.nn.functional.normalize((means["routed"] - means["base"]).cpu(), dim=0)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(width, generator=generator) for _ in range(n_random)]
    best = directions.abs().max(dim=0)
    return CarrierAlignment(
        hook_name,
        channels,
        best.values,
        best.indices,
        directions[:, channels].norm(dim=1),
        torch.stack([directions[:, order[: len(channels)]].norm(dim=1) for order in orders]),
        directions @ change,
        torch.stack([directions @ change[order] for order in orders]),
    )


def channels_at(carrier: Carrier, hook_name: str) -> Int[Tensor, " open"]:
    """The carrier's channels in the coordinates of a hook point: a site's own, or what writes into a residual stream.

    Into the stream after layer l write attn_write and ffn_write of all layers up to l.

    Raises:
        ConfigError: the hook point is neither a site nor a residual stream.
    """
    if hook_name in carrier.channels:
        return carrier.channels[hook_name]
    stream = _STREAM.match(hook_name)
    if stream is None:
        raise ConfigError(f"{hook_name} is no site and no residual stream: its channels are not the carrier's.")
    layer, point = int(stream[1]), stream[2]
    parts: Mapping[tuple[int, str], Tensor] = {
        (site.layer, site.kind): carrier.channels[site.hook_name] for site in carrier.sites if site.is_residual_write
    }
    written = [
        channels
        for (of_layer, kind), channels in parts.items()
        if of_layer < layer or (of_layer == layer and (point == "post" or (point == "mid" and kind == "attn_write")))
    ]
    union = sorted({channel for channels in written for channel in channels.tolist()})
    return torch.tensor(union, dtype=torch.long)


def _against(own: float, draws: Float[Tensor, " draw"]) -> dict[str, float]:
    low, high = draws.quantile(torch.tensor([0.025, 0.975])).tolist()
    p_value = (1 + int((draws >= own).sum())) / (1 + len(draws))
    return {"carrier": own, "random": float(draws.mean()), "random_low": low, "random_high": high, "p_value": p_value}
