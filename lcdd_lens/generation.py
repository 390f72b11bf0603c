"""Decoding in batches with a key/value cache, greedy or sampled, with or without a trigger.

Prompts are sorted by length, padded on the left, and given back in their order. A routed model's gates are applied
once for the whole call. What a row gets does not depend on its neighbours: sampling draws from a stream of the row's
own, named by the seed and the row's place in ``prompts``.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lcdd_lens.backends.base import LensModel, backend_of, device_of, last_hook
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.frozen import frozen


@runtime_checkable
class Prefix(Protocol):
    """What can stand before every prompt: a :class:`lcdd_lens.eraser.Trigger`."""

    @property
    def n_tokens(self) -> int: ...
    def on(self, model: LensModel) -> contextlib.AbstractContextManager[Any]: ...


def pad_left(
    sequences: Sequence[Sequence[int]], pad_token_id: int = 0
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Token rows of one length, padded on the left, and their attention mask (1 = token, 0 = padding)."""
    width = max(len(sequence) for sequence in sequences)
    tokens = torch.full((len(sequences), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens[row, width - len(sequence) :] = torch.tensor(list(sequence), dtype=torch.long)
        mask[row, width - len(sequence) :] = 1
    return tokens, mask


def last_logits(
    model: LensModel,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    n: int,
    cache: Any = None,
) -> Float[Tensor, "batch last d_vocab"]:
    """Logits at the last n positions only: with a large vocabulary, those of all positions would fill the memory."""

    def keep_last(residual: Tensor, hook: Any) -> Tensor:
        return residual[:, -n:]

    with model.hooks(fwd_hooks=[(last_hook(model), keep_last)]):
        logits: Tensor = model(tokens, return_type="logits", attention_mask=attention_mask, past_kv_cache=cache)
    return logits


def generate(
    model: LensModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    trigger: Prefix | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    progress: bool = False,
) -> list[list[int]]:
    """Continue every prompt; only the new tokens are returned, without the end-of-sequence token.

    Args:
        prompts: token ids, BOS included where the model expects it.
        max_new_tokens: at most so many tokens per prompt.
        trigger: a soft prompt that stands before every prompt.
        temperature: 0 takes the likeliest token; above 0 samples from softmax(logits / temperature).
        top_k: sample among the k likeliest tokens only.
        seed: names the random streams; the same seed gives the same samples at any batch size.
        eos_token_id: a row stops here. ``None``: the tokenizer's, if the model has a tokenizer.
        pad_token_id: fills the left of short rows; it is masked, so its value does not matter. ``None``: 0.

    Raises:
        ConfigError: an argument is out of range, or a prompt, the trigger and the new tokens exceed the context.
        DataError: a prompt is empty or holds ids that the model does not have.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ConfigError(f"max_new_tokens and batch_size must be at least 1: got {max_new_tokens} and {batch_size}.")
    if not temperature >= 0 or (top_k is not None and top_k < 1) or seed < 0:
        raise ConfigError(
            "temperature and seed must be >= 0 and top_k at least 1 (or None): "
            f"got temperature={temperature}, seed={seed}, top_k={top_k}."
        )
    _check_prompts(model, prompts, max_new_tokens, 0 if trigger is None else trigger.n_tokens)
    if eos_token_id is None and model.tokenizer is not None:
        eos_token_id = model.tokenizer.eos_token_id
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers: list[list[int]] = [[] for _ in prompts]
    with (
        torch.no_grad(),
        frozen(model),
        contextlib.nullcontext() if trigger is None else trigger.on(model),
        tqdm(total=len(prompts), desc="decoding", disable=not progress) as bar,
    ):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            draws = None if temperature == 0 else _draws(seed, rows, max_new_tokens)
            batch = [prompts[row] for row in rows]
            decoded = _decode(model, batch, max_new_tokens, draws, temperature, top_k, eos_token_id, pad_token_id or 0)
            for row, answer in zip(rows, decoded, strict=True):
                answers[row] = answer
            bar.update(len(rows))
    return answers


def _decode(
    model: LensModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    draws: Float[Tensor, "batch step"] | None,
    temperature: float,
    top_k: int | None,
    eos_token_id: int | None,
    pad_token_id: int,
) -> list[list[int]]:
    backend, device = backend_of(model), device_of(model)
    tokens, mask = (tensor.to(device) for tensor in pad_left(prompts, pad_token_id))
    cache = backend.start_cache(model, len(prompts))
    new = torch.zeros((len(prompts), 0), dtype=torch.long, device=device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    # A trigger moves the last position of a row of one token, so there all positions are kept.
    kept = 1 if min(len(prompt) for prompt in prompts) > 1 else model.cfg.n_ctx
    logits = last_logits(model, tokens, mask, kept, cache=cache)[:, -1]
    for step in range(max_new_tokens):
        draw = None if draws is None else draws[:, step].to(device)
        chosen = _choose(logits, draw, temperature, top_k)
        new = torch.cat([new, chosen[:, None]], dim=1)
        if eos_token_id is not None:
            finished |= chosen == eos_token_id
        if bool(finished.all()) or step == max_new_tokens - 1:
            break
        logits = backend.logits(model, chosen[:, None], torch.ones_like(chosen[:, None]), cache=cache)[:, -1]
    return [_until(row, eos_token_id) for row in new.tolist()]


def _choose(
    logits: Float[Tensor, "batch d_vocab"],
    draw: Float[Tensor, " batch"] | None,
    temperature: float,
    top_k: int | None,
) -> Int[Tensor, " batch"]:
    if draw is None:
        return logits.argmax(-1)
    scaled = logits.double() / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        threshold = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < threshold, float("-inf"))
    cumulative = scaled.softmax(-1).cumsum(-1)
    target = draw[:, None].double() * cumulative[:, -1:]
    # the first token whose cumulative probability exceeds the draw; one of probability 0 never does
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _draws(seed: int, rows: Sequence[int], steps: int) -> Float[Tensor, "batch step"]:
    return torch.from_numpy(np.stack([np.random.default_rng([seed, row]).random(steps) for row in rows]))


def _until(tokens: list[int], eos_token_id: int | None) -> list[int]:
    return tokens[: tokens.index(eos_token_id)] if eos_token_id in tokens else tokens


def _check_prompts(model: LensModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, n_trigger: int) -> None:
    vocabulary = model.cfg.d_vocab
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(f"prompt {row} is empty: give it at least one token, for example BOS.")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise DataError(
                f"prompt {row} holds ids outside 0..{vocabulary - 1}: it was encoded with another model's tokenizer."
            )
        # The last new token is never fed back.
        needed = len(prompt) + n_trigger + max_new_tokens - 1
        if needed > model.cfg.n_ctx:
            raise ConfigError(
                f"prompt {row} has {len(prompt)} tokens; with {n_trigger} trigger tokens and max_new_tokens="
                f"{max_new_tokens} it needs {needed} positions, and the model has {model.cfg.n_ctx}. "
                "Shorten the prompt or lower max_new_tokens."
            )
