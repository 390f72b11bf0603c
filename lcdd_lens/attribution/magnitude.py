"""Magnitude: how far fine-tuning moved a channel, without asking what the move does. Four variants:

    delta               √ΣΔ² over the entries of every weight that meets the channel
    relative            the same divided by √ΣW_B² over the same entries
    activation          √ΣΔ² · rms(a^S_c) over real positions
    activation_change   mean |a^S_c − a^B_c| over real positions

Scores are never negative: larger = moved further. They have no sign of their own, so a channel that fine-tuning moved
against the behaviour ranks as high as one that it moved towards it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lcdd_lens.attribution.activations import site_activations
from lcdd_lens.attribution.contrast import Contrast, gates_at
from lcdd_lens.attribution.registry import Attribution, register_method
from lcdd_lens.errors import ConfigError
from lcdd_lens.frozen import frozen
from lcdd_lens.routing.routed import RoutedModel

Variant = Literal["delta", "relative", "activation", "activation_change"]


@dataclass(frozen=True)
class Magnitude:
    """Size of the change at every channel; no backward pass."""

    variant: Variant = "delta"
    """What is measured."""

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ConfigError(f"variant is {self.variant!r}: expected one of {', '.join(get_args(Variant))}.")

    @property
    def name(self) -> str:
        return "magnitude" if self.variant == "delta" else f"magnitude_{self.variant}"

    @property
    def config(self) -> Mapping[str, Any]:
        return {"variant": self.variant}

    def run(self, contrast: Contrast, progress: bool) -> Attribution:
        """Never negative; larger = moved further."""
        if self.variant == "activation_change":
            return Attribution(_activation_change(contrast, progress))
        delta = delta_norms(contrast.routed)
        if self.variant == "relative":
            base = _norms(contrast.routed, contrast.routed.base_weights())
            return Attribution({name: norm / base[name].clamp_min(1e-12) for name, norm in delta.items()})
        if self.variant == "activation":
            rms = _rms_activation(contrast, progress)
            return Attribution({name: norm * rms[name] for name, norm in delta.items()})
        return Attribution(delta)


def delta_norms(routed: RoutedModel) -> dict[str, Tensor]:
    """√ΣΔ² per channel over the entries of every weight that meets it (float64)."""
    base = routed.base_weights()
    return _norms(routed, {name: w.detach() - base[name] for name, w in routed.delta_parameters().items()})


def _norms(routed: RoutedModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    squares = {site.hook_name: torch.zeros(site.n_channels, dtype=torch.float64) for site in routed.sites}
    for weight_site in routed.weight_sites:
        for axis in weight_site.axes:
            squares[axis.site.hook_name] += axis.sum_to_channels(weights[weight_site.parameter].double().square()).cpu()
    return {name: square.sqrt() for name, square in squares.items()}


def _rms_activation(contrast: Contrast, progress: bool) -> dict[str, Tensor]:
    routed = contrast.routed
    squares = {site.hook_name: torch.zeros(site.n_channels, dtype=torch.float64) for site in routed.sites}
    n_tokens = 0
    with routed.using(gates_at(routed, 1.0)), frozen(routed.model):
        for batch in contrast.batches(progress=progress, description="activations"):
            real = batch.tokens.attention_mask.bool()
            n_tokens += int(real.sum())
            for name, activation in site_activations(contrast, batch.tokens, routed.sites).items():
                squares[name] += activation[real].double().square().sum(0).cpu()
    return {name: (square / n_tokens).sqrt() for name, square in squares.items()}


def _activation_change(contrast: Contrast, progress: bool) -> dict[str, Tensor]:
    routed = contrast.routed
    sums = {site.hook_name: torch.zeros(site.n_channels, dtype=torch.float64) for site in routed.sites}
    n_tokens = 0
    for batch in contrast.batches(progress=progress, description="activations"):
        real = batch.tokens.attention_mask.bool()
        n_tokens += int(real.sum())
        with routed.using(gates_at(routed, 0.0)), frozen(routed.model):
            base = site_activations(contrast, batch.tokens, routed.sites)
        with routed.using(gates_at(routed, 1.0)), frozen(routed.model):
            sft = site_activations(contrast, batch.tokens, routed.sites)
        for name, activation in sft.items():
            sums[name] += (activation - base[name])[real].double().abs().sum(0).cpu()
    return {name: total / n_tokens for name, total in sums.items()}


register_method("magnitude", Magnitude)
register_method("magnitude_relative", lambda: Magnitude("relative"))
register_method("magnitude_activation", lambda: Magnitude("activation"))
register_method("magnitude_activation_change", lambda: Magnitude("activation_change"))
