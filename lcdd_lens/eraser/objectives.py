"""What SFT-Eraser minimises (paper, section 5), term by term.

    L = w_match · (1/|layers|) Σ_l MSE( mean_batch a_l[C_l], mean_prompts a^B_l[C_l] )      activation matching
        + w_KL · mean over the last k prompt positions of KL( p_B ‖ p )                      tail KL
        + w_answer · mean along greedy answers to the prompts of KL( p_B ‖ p )               answer KL (ours)
        + w_norm · mean_i ‖e_i‖²                                                             norm penalty

a_l is the residual stream after block l at the prompt's last position, C_l the channels that are matched there, B the
base without a soft prompt. The published terms see the prompt only; the answer KL also asks that the model goes on
as the base does once an answer has begun, be it the base's answer or the one that fine-tuning taught.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from lcdd_lens.eraser.config import ChannelChoice
from lcdd_lens.errors import ConfigError

# "_": the layers differ in how many channels they have
LayerChannels = Mapping[int, Int[Tensor, "_"]]


@dataclass(frozen=True)
class ActivationMatching:
    """Mean squared error between residual streams at the prompt's last position, averaged over layers.

    Attributes:
        channels: layer -> residual coordinates that count there; at least one layer, none of them empty.
        per_prompt: compare prompt by prompt instead of the means over the batch and over the base's prompts.
    """

    channels: LayerChannels
    per_prompt: bool = False

    def __post_init__(self) -> None:
        if not self.channels or any(len(channels) == 0 for channels in self.channels.values()):
            raise ConfigError("activation matching needs at least one channel in every layer it names.")

    def __call__(
        self, residuals: Mapping[int, Float[Tensor, "batch d_model"]], base: Mapping[int, Float[Tensor, "_ d_model"]]
    ) -> Float[Tensor, ""]:
        """The term's value.

        Args:
            residuals: layer -> residual stream of the model with the soft prompt, one row per prompt of the batch.
            base: layer -> the base's; the same prompts row by row (``per_prompt``), or all prompts it is averaged over.
        """
        errors = []
        for layer, channels in self.channels.items():
            ours, theirs = residuals[layer][:, channels].float(), base[layer][:, channels].float()
            if not self.per_prompt:
                ours, theirs = ours.mean(0), theirs.mean(0)
            errors.append(functional.mse_loss(ours, theirs))
        return torch.stack(errors).mean()


def kl_from_base(
    base_log_probs: Float[Tensor, "batch pos d_vocab"], logits: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, "batch pos"]:
    """KL( p_B ‖ p ) at every position, in nats: the tail KL and the answer KL are its means over their positions.

    Args:
        base_log_probs: the base's log-probabilities.
        logits: the model's logits with the soft prompt.
    """
    return functional.kl_div(logits.float().log_softmax(-1), base_log_probs, reduction="none", log_target=True).sum(-1)


def norm_penalty(embeddings: Float[Tensor, "n d_model"]) -> Float[Tensor, ""]:
    """Mean squared Euclidean norm of the embeddings."""
    return embeddings.square().sum(-1).mean()


def choose_channels(
    choice: ChannelChoice, carrier: LayerChannels | None, *, n_layers: int, d_model: int, seed: int
) -> dict[int, Int[Tensor, "_"]]:
    """Layer -> residual channels to match; layers without any are left out.

    ``"random"`` draws as many channels in each layer as the carrier has there; ``"all"`` takes every channel of every
    layer; ``"none"`` is empty.

    Raises:
        ConfigError: the choice needs a carrier and there is none, or it names layers or channels that do not exist.
    """
    if choice == "none":
        return {}
    if choice == "all":
        return {layer: torch.arange(d_model) for layer in range(n_layers)}
    if carrier is None:
        raise ConfigError(
            f"channels={choice!r} needs the carrier's residual write channels: pass carrier.residual_write_channels(), "
            'or choose channels="all" or "none".'
        )
    for layer, channels in carrier.items():
        outside = len(channels) > 0 and (int(channels.min()) < 0 or int(channels.max()) >= d_model)
        if not 0 <= layer < n_layers or outside:
            raise ConfigError(
                f"the carrier's channels of layer {layer} do not fit a model of {n_layers} layers, d_model {d_model}."
            )
    present = {layer: channels for layer, channels in sorted(carrier.items()) if len(channels)}
    if choice == "carrier":
        return present
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: torch.randperm(d_model, generator=generator)[: len(channels)].sort().values
        for layer, channels in present.items()
    }
