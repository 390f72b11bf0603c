"""Exact divergence between two models' next-token distributions on given replies.

    KL(p ‖ q) = Σ_v p(v) · (log p(v) − log q(v))      summed over the whole vocabulary, in float32, in nats

Teacher-forced: both models read the prompt and the same reply, and are compared at every reply token; a prompt's value
is the mean over its reply. The paper (section 5) takes the fine-tuned model's replies, where KL(S‖routed) should be
small, KL(S‖routed + trigger) large and KL(B‖routed + trigger) small.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.backends.base import LensModel, backend_of, device_of
from lcdd_lens.data import EncodedExample, TokenBatch, collate
from lcdd_lens.errors import DataError, ModelError
from lcdd_lens.frozen import frozen
from lcdd_lens.generation import Prefix


def forward_logits(
    model: LensModel, batch: TokenBatch, trigger: Prefix | None = None
) -> Float[Tensor, "batch pos d_vocab"]:
    """Next-token logits at the batch's own positions, with a trigger before every row or without."""
    batch = batch.to(device_of(model))
    with contextlib.nullcontext() if trigger is None else trigger.on(model):
        return backend_of(model).logits(model, batch.tokens, batch.attention_mask)


def reply_log_probs(
    model: LensModel, batch: TokenBatch, trigger: Prefix | None = None
) -> Float[Tensor, "reply_token d_vocab"]:
    """log p over the vocabulary for every reply token of the batch, rows in order (float32, on the model's device).

    Raises:
        ModelError: the model's logits are not numbers.
    """
    with torch.no_grad(), frozen(model):
        logits = forward_logits(model, batch, trigger)[:, :-1][batch.response_mask[:, 1:].to(device_of(model))]
    if bool(logits.isnan().any()):
        raise ModelError("the model's logits are NaN: its weights are damaged or training diverged.")
    return logits.float().log_softmax(-1)


def categorical_kl(
    log_p: Float[Tensor, "*rows d_vocab"], log_q: Float[Tensor, "*rows d_vocab"]
) -> Float[Tensor, "*rows"]:
    """KL(p ‖ q) from log-probabilities; tokens with p = 0 add nothing, and rounding cannot make it negative."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0).sum(-1).clamp_min(0)


def mean_per_reply(values: Float[Tensor, " reply_token"], batch: TokenBatch) -> Float[Tensor, " batch"]:
    """Mean of per-token values over each row's reply."""
    rows = torch.nonzero(batch.response_mask[:, 1:])[:, 0].to(values.device)
    sums = torch.zeros(len(batch), dtype=values.dtype, device=values.device).index_add(0, rows, values)
    return sums / batch.response_mask[:, 1:].sum(1).to(values)


def response_kl(
    reference: LensModel,
    model: LensModel,
    rows: Sequence[EncodedExample],
    *,
    reference_trigger: Prefix | None = None,
    trigger: Prefix | None = None,
    pad_id: int = 0,
    batch_size: int = 16,
) -> Float[Tensor, " prompt"]:
    """KL(reference ‖ model) per prompt: exact, teacher-forced on the rows' replies, mean over each reply (nats).

    Raises:
        DataError: a row has no reply.
        ModelError: a model's logits are not numbers.
    """
    parts = []
    for batch in reply_batches(rows, pad_id, batch_size):
        log_p = reply_log_probs(reference, batch, reference_trigger)
        log_q = reply_log_probs(model, batch, trigger).to(log_p.device)
        parts.append(mean_per_reply(categorical_kl(log_p, log_q), batch).cpu())
    return torch.cat(parts)


def reply_batches(rows: Sequence[EncodedExample], pad_id: int, batch_size: int) -> Iterator[TokenBatch]:
    """Padded batches of prompts with their replies, in order.

    Raises:
        DataError: there is no row, or one has no reply.
    """
    if not rows:
        raise DataError("there are no prompts to compare models on.")
    if any(not row.response_ids for row in rows):
        raise DataError("a prompt has no reply to compare models on: give every row one with row.with_response(ids).")
    for start in range(0, len(rows), batch_size):
        yield collate(rows[start : start + batch_size], pad_id)
