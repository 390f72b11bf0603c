"""Prompts as the eraser sees them: padded rows, the positions that count, and what a model does there.

A row is a prompt, followed by the base's answer where the objective covers it (without the answer's last token, which
predicts nothing). Rows are padded on the left, so the positions that count lie in the last columns of the batch, with
and without a soft prompt. Only those columns are unembedded.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcdd_lens.backends.base import Hook, LensModel, device_of
from lcdd_lens.eraser.soft_prompt import SoftPrompt
from lcdd_lens.generation import last_logits, pad_left

# Above this the base's log-probabilities are computed again at every step instead of stored.
MAX_STORED_BYTES = 2**30


@dataclass(frozen=True)
class Rows:
    """A padded batch.

    Attributes:
        tokens, attention_mask: [batch pos], padded on the left.
        last: column of every prompt's last token.
        tail: over the last columns, the last k prompt positions.
        answer: over the same columns, the positions that predict an answer token.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]
    tail: Bool[Tensor, "batch column"]
    answer: Bool[Tensor, "batch column"]

    @property
    def n_columns(self) -> int:
        """Number of last columns that count."""
        return self.tail.shape[1]


@dataclass(frozen=True)
class Observation:
    """What a model did on a batch: residual stream at the prompts' last positions, logits at the columns that count."""

    residuals: Mapping[int, Float[Tensor, "batch d_model"]]
    logits: Float[Tensor, "batch column d_vocab"]


def make_rows(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    tail: int,
    keep_first: bool,
    device: torch.device | None = None,
) -> Rows:
    """Pad prompts and answers, and mark the positions that count.

    Args:
        answers: one per prompt; empty where the objective does not cover answers.
        tail: last prompt positions that count.
        keep_first: the first token of a prompt never counts (a soft prompt stands behind it).
    """
    tokens, mask = pad_left([[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)])
    width = tokens.shape[1]
    behind = torch.tensor([max(len(answer) - 1, 0) for answer in answers])
    answered = torch.tensor([len(answer) for answer in answers])
    counted = torch.tensor([min(tail, len(prompt) - keep_first) for prompt in prompts])
    n_columns = int((behind + counted).max())
    last = width - 1 - behind
    columns = torch.arange(width - n_columns, width)
    offset = columns - last[:, None]
    rows = (
        tokens,
        mask,
        last,
        (offset <= 0) & (offset > -counted[:, None]),
        (offset >= 0) & (offset < answered[:, None]),
    )
    return Rows(*(tensor.to(device) for tensor in rows))


def observe(
    model: LensModel, rows: Rows, *, layers: Sequence[int] = (), soft_prompt: SoftPrompt | None = None
) -> Observation:
    """One forward pass, with or without a soft prompt; gradients flow where the model's parameters let them."""
    residuals: dict[int, Tensor] = {}
    tokens, mask, shift = rows.tokens, rows.attention_mask, 0
    if soft_prompt is not None:
        tokens, mask = soft_prompt.insert(tokens, mask)
        shift = soft_prompt.n_tokens
    batch = torch.arange(len(tokens), device=tokens.device)

    def keep(layer: int) -> Callable[[Tensor, Any], None]:
        def hook_fn(residual: Tensor, hook: Any) -> None:
            residuals[layer] = residual[batch, rows.last + shift]

        return hook_fn

    hooks: list[Hook] = [(f"blocks.{layer}.hook_resid_post", keep(layer)) for layer in layers]
    with contextlib.nullcontext() if soft_prompt is None else soft_prompt.on(model), model.hooks(fwd_hooks=hooks):
        logits = last_logits(model, tokens, mask, rows.n_columns)
    return Observation(residuals, logits)


class BaseTargets:
    """The base's side of the objective, computed once for a set of prompts.

    Args:
        base: the base model; it is asked without a soft prompt.
        prompts, answers: as in :func:`make_rows`.
        layers: where residual streams are kept.
        batch_size: prompts per forward pass.
    """

    def __init__(
        self,
        base: LensModel,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        *,
        layers: Sequence[int],
        tail: int,
        keep_first: bool,
        batch_size: int,
    ) -> None:
        self._base, self._prompts, self._answers = base, prompts, answers
        self._tail, self._keep_first, self._device = tail, keep_first, device_of(base)
        everything = self.rows(range(len(prompts)))
        size = len(prompts) * everything.n_columns * base.cfg.d_vocab
        self._stored = torch.zeros(0)
        if 4 * size <= MAX_STORED_BYTES:
            self._stored = torch.zeros(len(prompts), everything.n_columns, base.cfg.d_vocab)
        self.residuals = {layer: torch.zeros(len(prompts), base.cfg.d_model, device=self._device) for layer in layers}
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]) + len(answers[row]))
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                rows = self.rows(chosen)
                seen = observe(base, rows, layers=layers)
                for layer, residual in seen.residuals.items():
                    self.residuals[layer][chosen] = residual.float()
                if len(self._stored):
                    first = everything.n_columns - rows.n_columns
                    self._stored[chosen, first:] = seen.logits.float().log_softmax(-1).cpu()

    def __len__(self) -> int:
        return len(self._prompts)

    def rows(self, chosen: Sequence[int]) -> Rows:
        """The padded batch of these prompts."""
        prompts, answers = [self._prompts[row] for row in chosen], [self._answers[row] for row in chosen]
        return make_rows(prompts, answers, tail=self._tail, keep_first=self._keep_first, device=self._device)

    def log_probs(self, chosen: Sequence[int], rows: Rows) -> Float[Tensor, "batch column d_vocab"]:
        """The base's log-probabilities at the columns of ``rows`` that count."""
        if len(self._stored):
            return self._stored[list(chosen), self._stored.shape[1] - rows.n_columns :].to(self._device)
        with torch.no_grad():
            return observe(self._base, rows).logits.float().log_softmax(-1)
