"""𝓜: how much of the behaviour a model shows on given tokens, one number a prompt.

    𝓜(x) = mean over the reply's tokens t of log p(token_t | tokens before t)

Sign convention: larger is more of the behaviour. The expectation E𝓜 is the mean over prompts. A metric of your own is
any function (logits [batch pos d_vocab], batch) -> [batch] that is differentiable in the logits.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.data.tokens import TokenBatch
from lcdd_lens.errors import ConfigError, DataError

Metric: TypeAlias = Callable[[Tensor, TokenBatch], Any]
"""(logits [batch pos d_vocab], batch) -> one value a prompt [batch], larger = more of the behaviour."""


def response_log_prob(logits: Float[Tensor, "batch pos d_vocab"], batch: TokenBatch) -> Float[Tensor, " batch"]:
    """Mean log-probability of the reply's tokens, per prompt (nats per token, at most 0; larger = more behaviour).

    In the logits' own precision, float32 at least: effects of single channels are far smaller than 𝓜.
    """
    counted = batch.response_mask[:, 1:] & batch.attention_mask[:, :-1].bool()
    rows, columns = torch.nonzero(counted, as_tuple=True)
    precision = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits[rows, columns].to(precision).log_softmax(-1)
    picked = log_probs.gather(1, batch.tokens[rows, columns + 1, None]).squeeze(1)
    return picked.new_zeros(len(batch)).index_add(0, rows, picked) / counted.sum(1)


def metric_name(metric: Metric) -> str:
    """What results call the metric."""
    return str(getattr(metric, "__name__", type(metric).__name__))


def metric_values(
    metric: Metric, logits: Float[Tensor, "batch pos d_vocab"], batch: TokenBatch
) -> Float[Tensor, " batch"]:
    """The metric, with its answer checked.

    Raises:
        ConfigError: it is not one floating-point value per prompt.
        DataError: a value is not finite.
    """
    values = metric(logits, batch)
    name, expected = metric_name(metric), (len(batch),)
    if not isinstance(values, Tensor) or not values.is_floating_point() or tuple(values.shape) != expected:
        shape = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ConfigError(
            f"metric {name} returned {shape} for a batch of {len(batch)} prompts: expected one floating-point value "
            f"per prompt, shape {expected}; average over positions, not over prompts."
        )
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"metric {name} is not finite on some prompt: does every prompt have a reply token?")
    return values
