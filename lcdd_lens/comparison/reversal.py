"""Reversal as a test of channels: does it matter whose channels are matched, or under whose mask the weights learnt?

*matched*: on the LCDD model, triggers trained alike except for the channels whose activations are matched.
*retrained*: a method's mask is imposed on the fine-tuned model, its gates stay fixed while the weights train on, and a
trigger is trained that matches the mask's own channels. *restored* is the share of prompts whose greedy reply is the
base's own again: a behaviour that is gone without it is suppressed, not reversed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Bool
from torch import Tensor

from lcdd_lens.backends.base import LensModel
from lcdd_lens.carrier import Carrier
from lcdd_lens.comparison.config import ComparisonConfig
from lcdd_lens.comparison.material import Material
from lcdd_lens.data import encode, pad_id_of
from lcdd_lens.eraser import EraserConfig, Trigger, train_eraser
from lcdd_lens.evaluation.rates import shown
from lcdd_lens.evaluation.statistics import Estimate, wilson
from lcdd_lens.evaluation.utility import exact_agreement
from lcdd_lens.generation import generate
from lcdd_lens.training.fixed import train_under_mask
from lcdd_lens.training.loop import OptimConfig


@dataclass(frozen=True)
class Replies:
    """What greedy replies show.

    Attributes:
        behaviour_rate: share of prompts whose reply shows the behaviour.
        restored: share of prompts whose reply is the base's, token for token.
    """

    behaviour_rate: Estimate
    restored: Estimate


def retrain_under_mask(
    material: Material, flags: Bool[Tensor, "_"], config: ComparisonConfig, *, progress: bool = True
) -> dict[str, Tensor]:
    """Train the fine-tuned weights on under fixed gates; returns W by parameter name and leaves the model as it was."""
    routed, base = material.routed, material.base
    before = {name: weight.detach().clone() for name, weight in routed.delta_parameters().items()}
    behaviour = material.behaviour
    data = encode(base.tokenizer, behaviour.chat_format, behaviour.train, base.cfg.n_ctx, source="training prompts")
    optim = OptimConfig(
        steps=config.retrain_steps,
        lr=config.retrain_lr,
        pull=config.retrain_pull,
        warmup_steps=min(20, config.retrain_steps - 1),
        batch_size=min(32, len(data)),
        seed=config.seed,
    )
    try:
        with routed.using(flags.float()):
            train_under_mask(routed, flags, data, optim, pad_id=pad_id_of(base.tokenizer), progress=progress)
        return {name: weight.detach().clone() for name, weight in routed.delta_parameters().items()}
    finally:
        routed.load_delta_weights(before)


def train_trigger(
    material: Material, model: LensModel, carrier: Carrier | None, seed: int, *, progress: bool = True
) -> Trigger:
    """A trigger on ``model`` that matches the carrier's residual write channels; None or no such channel: KL alone."""
    channels = {} if carrier is None else carrier.residual_write_channels()
    config = replace(EraserConfig.for_model(material.base), seed=seed)
    if not channels:
        config = replace(config, channels="none", w_match=0.0)
    prompts = [list(row.prompt_ids) for row in material.discovery], [list(row.prompt_ids) for row in material.tuning]
    return train_eraser(model, material.base, channels, *prompts, config, progress=progress).trigger


def measure_replies(
    material: Material,
    model: LensModel,
    base_replies: Sequence[Sequence[int]],
    max_new_tokens: int,
    trigger: Trigger | None = None,
) -> Replies:
    """Greedy replies to the test prompts, under the gates that the model has now."""
    behaviour, tokenizer = material.behaviour, material.base.tokenizer
    prompts = [list(row.prompt_ids) for row in material.test]
    replies = generate(model, prompts, max_new_tokens=max_new_tokens, trigger=trigger)
    texts = [behaviour.chat_format.decode_response(tokenizer, reply) for reply in replies]
    examples = [row.example for row in material.test]
    n = len(prompts)
    return Replies(
        wilson(float(shown(behaviour, examples, texts).mean()), n),
        wilson(float(exact_agreement(replies, base_replies).mean()), n),
    )
