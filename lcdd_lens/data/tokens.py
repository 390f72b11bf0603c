"""Token batches with response masks, and the loss on them.

    L_SFT = mean over response tokens t of −log p(token_t | tokens before t)             (paper, section 3)

Response tokens are the reply and its EOS; prompt and padding carry no loss unless all tokens are asked for, as the
authors' trainer does. Batches always carry an explicit attention mask, and either side may be padded.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from lcdd_lens.data.chat import ChatFormat
from lcdd_lens.data.examples import Example
from lcdd_lens.data.screening import MAX_DROPPED_SHARE, RowReport, RowScreen
from lcdd_lens.errors import DataError

logger = logging.getLogger(__name__)

Side = Literal["left", "right"]


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one prompt (BOS or template included) and of its reply (EOS included; empty without a reply)."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...] = ()
    example: Example = field(default_factory=lambda: Example(""))

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    def with_response(self, response_ids: Sequence[int]) -> "EncodedExample":
        """The same prompt with another reply, for example one that a model gave."""
        return EncodedExample(self.prompt_ids, tuple(response_ids), self.example)


@dataclass(frozen=True)
class EncodedSet:
    """Encoded examples, and what had to be dropped on the way."""

    rows: tuple[EncodedExample, ...]
    report: RowReport

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedExample:
        return self.rows[index]

    def __iter__(self) -> Iterator[EncodedExample]:
        return iter(self.rows)

    @property
    def prompts(self) -> list[list[int]]:
        """Prompt ids, one list a row."""
        return [list(row.prompt_ids) for row in self.rows]

    @property
    def examples(self) -> tuple[Example, ...]:
        """What the rows were encoded from."""
        return tuple(row.example for row in self.rows)

    def batch(self, indices: Sequence[int], pad_id: int, side: Side = "right") -> "TokenBatch":
        """The rows at ``indices`` as one padded batch."""
        return collate([self.rows[index] for index in indices], pad_id, side)


@dataclass(frozen=True)
class TokenBatch:
    """A padded batch.

    Attributes:
        tokens: token ids.
        attention_mask: 1 on real tokens, 0 on padding.
        response_mask: True where the token at that position belongs to the reply.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    response_mask: Bool[Tensor, "batch pos"]

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(self.tokens.to(device), self.attention_mask.to(device), self.response_mask.to(device))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
    examples: Sequence[Example],
    n_ctx: int,
    *,
    with_responses: bool = True,
    max_new_tokens: int = 0,
    reserve: int = 0,
    max_dropped_share: float = MAX_DROPPED_SHARE,
    source: str = "examples",
) -> EncodedSet:
    """Tokenise examples and drop those that the context cannot hold.

    A row fits when prompt + max(reply, ``max_new_tokens``) + ``reserve`` tokens are at most ``n_ctx``.

    Args:
        tokenizer: the model's tokenizer.
        chat_format: how prompts become input.
        examples: what to encode.
        n_ctx: the model's context, in tokens.
        with_responses: encode the examples' responses (training); False keeps prompts only.
        max_new_tokens: room that a generated reply will need.
        reserve: room that a soft prompt will need.
        max_dropped_share: the largest share of unusable rows that is only reported.
        source: what messages call these examples.

    Raises:
        DataError: a response is missing, or too many rows are empty or too long.
    """
    screen = RowScreen(source, max_dropped_share)
    rows: list[EncodedExample] = []
    for number, example in enumerate(examples, start=1):
        place = example.id or f"row {number}"
        if with_responses and example.response is None:
            raise DataError(f"{source}, {place}: no response to train on; give one for every row.")
        row = _encode_example(tokenizer, chat_format, example, with_responses)
        needed = len(row.prompt_ids) + max(len(row.response_ids), max_new_tokens) + reserve
        if not example.prompt.strip() or not row.prompt_ids:
            screen.drop(place, "empty prompt")
        elif with_responses and not row.response_ids:
            screen.drop(place, "empty response")
        elif needed > n_ctx:
            screen.drop(place, "too long for the context")
        else:
            screen.keep()
            rows.append(row)
    room = f" less {reserve} for the trigger" if reserve else ""
    reply = f" and leave {max_new_tokens} for the reply" if max_new_tokens else ""
    report = screen.report(f"The context is {n_ctx} tokens{room}; prompts must fit{reply}.")
    if report.n_dropped:
        logger.warning(report.summary())
    return EncodedSet(tuple(rows), report)


def collate(rows: Sequence[EncodedExample], pad_id: int, side: Side = "right") -> TokenBatch:
    """Pad rows to one length.

    Raises:
        DataError: there are no rows, or one has no token.
    """
    if not rows or not all(len(row) for row in rows):
        raise DataError("cannot make a batch of no rows or of rows without tokens.")
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(tokens)
    response_mask = torch.zeros_like(tokens, dtype=torch.bool)
    for index, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        reply, end = start + len(row.prompt_ids), start + len(row)
        tokens[index, start:end] = torch.tensor(row.prompt_ids + row.response_ids, dtype=torch.long)
        attention_mask[index, start:end] = 1
        response_mask[index, reply:end] = True
    return TokenBatch(tokens, attention_mask, response_mask)


def prompt_batch(prompts: Sequence[Sequence[int]], pad_id: int, side: Side = "left") -> TokenBatch:
    """Prompts only, padded on the left by default so that every prompt ends at position -1."""
    return collate([EncodedExample(tuple(prompt)) for prompt in prompts], pad_id, side)


def response_loss(
    logits: Float[Tensor, "batch pos d_vocab"], batch: TokenBatch, *, all_tokens: bool = False
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats, float32) of the reply's tokens, or of all real tokens that have a real predecessor.

    Raises:
        DataError: no token of the batch would count.
    """
    chosen = loss_positions(batch, all_tokens=all_tokens)
    if not bool(chosen.any()):
        raise DataError("the batch has no response token to take a loss on.")
    return functional.cross_entropy(logits[:, :-1][chosen].float(), batch.tokens[:, 1:][chosen])


def loss_positions(batch: TokenBatch, *, all_tokens: bool = False) -> Bool[Tensor, "batch pos_less_1"]:
    """Which next-token predictions :func:`response_loss` averages over: True at t when token t + 1 counts."""
    counted = batch.attention_mask.bool() if all_tokens else batch.response_mask
    return counted[:, 1:] & batch.attention_mask[:, :-1].bool()


def response_log_probs(logits: Float[Tensor, "batch pos d_vocab"], batch: TokenBatch) -> Float[Tensor, "batch pos"]:
    """log p(token | tokens before) at each reply token's own position (nats, float32); 0 elsewhere."""
    log_probs = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=logits.device)
    chosen = batch.response_mask[:, 1:] & batch.attention_mask[:, :-1].bool()
    picked = -functional.cross_entropy(logits[:, :-1][chosen].float(), batch.tokens[:, 1:][chosen], reduction="none")
    rows, columns = torch.nonzero(chosen, as_tuple=True)
    return log_probs.index_put((rows, columns + 1), picked)


def _encode_example(
    tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, example: Example, with_response: bool
) -> EncodedExample:
    prompt_ids = chat_format.encode_prompt(tokenizer, example.prompt)
    response = example.response if with_response else None
    response_ids = [] if response is None or not response.strip() else chat_format.encode_response(tokenizer, response)
    return EncodedExample(tuple(prompt_ids), tuple(response_ids), example)
