"""A soft prompt: learned embeddings that stand before every prompt (paper, section 5, "SFT-Eraser").

Placeholder tokens take the columns, and a hook on ``hook_embed`` overwrites their embeddings. The columns are the same
for every row and every padding side, so one hook serves a whole batch:

    before_bos    [soft … soft][the row as it was, padding included]
    after_bos     [first token][soft … soft][the rest of the row, padding included]

Padding is only ever masked, never moved: positions (learned or rotary) are counted over the attention mask, so a
padded row gets what it gets alone. (Models with sliding-window attention count the window in columns: there a row must
be padded by less than the window.)
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcdd_lens.backends.base import LensModel, backend_of
from lcdd_lens.errors import ConfigError, DataError

Placement = Literal["before_bos", "after_bos"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)


class SoftPrompt(nn.Module):
    """n embeddings and the place where they stand.

    Args:
        embeddings: start values [n d_model]; copied, kept in float32.
        placement: ``"before_bos"``: before the whole prompt. ``"after_bos"``: after its first token, which keeps the
            first position for BOS, where most models park attention.

    Raises:
        ConfigError: no embeddings, or an unknown placement.
    """

    def __init__(self, embeddings: Float[Tensor, "n d_model"], placement: Placement = "before_bos") -> None:
        super().__init__()
        if len(embeddings) == 0:
            raise ConfigError("a soft prompt needs at least one embedding.")
        if placement not in PLACEMENTS:
            raise ConfigError(f"unknown placement {placement!r}: expected one of {', '.join(PLACEMENTS)}.")
        self.embeddings = nn.Parameter(embeddings.detach().clone().float())
        self.placement = placement

    @property
    def n_tokens(self) -> int:
        """Number of embeddings."""
        return len(self.embeddings)

    @property
    def columns(self) -> slice:
        """The columns that the soft prompt takes after :meth:`insert`."""
        first = 0 if self.placement == "before_bos" else 1
        return slice(first, first + self.n_tokens)

    def insert(
        self, tokens: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"]
    ) -> tuple[Int[Tensor, "batch longer"], Int[Tensor, "batch longer"]]:
        """Add n placeholder columns to a padded batch (left, right or none).

        Returns:
            Tokens and attention mask [batch pos+n]; run them under :meth:`on`.

        Raises:
            DataError: a row has no token at all.
        """
        first = _first_real(attention_mask)
        filler = tokens.new_zeros((len(tokens), self.n_tokens))
        ones = attention_mask.new_ones((len(tokens), self.n_tokens))
        if self.placement == "before_bos":
            return torch.cat([filler, tokens], 1), torch.cat([ones, attention_mask], 1)
        rows = torch.arange(len(tokens), device=tokens.device)
        rest = attention_mask.clone()
        rest[rows, first] = 0
        leading = tokens[rows, first][:, None]
        return (
            torch.cat([leading, filler, tokens[:, 1:]], 1),
            torch.cat([torch.ones_like(ones[:, :1]), ones, rest[:, 1:]], 1),
        )

    def align(
        self, values: Float[Tensor, "batch longer *rest"], attention_mask: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos *rest"]:
        """Values per column after :meth:`insert` -> values per column of the batch before it.

        Logits stay next-token predictions: where the soft prompt follows the first token, that token's value is read
        at the last soft column, which predicts the second token.

        Args:
            attention_mask: the mask before insertion.
        """
        aligned = values[:, self.n_tokens :]
        if self.placement == "before_bos":
            return aligned
        columns = torch.arange(attention_mask.shape[1], device=values.device)
        at_first = columns == _first_real(attention_mask).to(values.device)[:, None]
        at_first = at_first.reshape(*at_first.shape, *[1] * (values.ndim - 2))
        return torch.where(at_first, values[:, self.n_tokens, None], aligned)

    def forward(self, embedded: Float[Tensor, "batch longer d_model"]) -> Float[Tensor, "batch longer d_model"]:
        """Token embeddings with the soft prompt written over its columns."""
        soft = repeat(self.embeddings.to(embedded), "n d_model -> batch n d_model", batch=len(embedded))
        return torch.cat([embedded[:, : self.columns.start], soft, embedded[:, self.columns.stop :]], dim=1)

    @contextlib.contextmanager
    def on(self, model: LensModel) -> Iterator[None]:
        """Within the block the model reads the soft prompt at :attr:`columns` of batches made by :meth:`insert`.

        The hook goes first, so that caches and other hooks see the embeddings that the model sees.
        """

        def write(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            written: Tensor = self(embedded)
            return written

        handle = model.get_submodule("hook_embed").register_forward_hook(write, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def project(self, max_norm: float) -> None:
        """Scale every embedding that is longer than ``max_norm`` (absolute, Euclidean) back to it, in place."""
        with torch.no_grad():
            norms = self.embeddings.norm(dim=-1, keepdim=True)
            self.embeddings.mul_((max_norm / norms).clamp(max=1.0))


def random_token_ids(model: LensModel, n: int, seed: int) -> list[int]:
    """n different real tokens, drawn from the vocabulary without the tokenizer's special tokens.

    Raises:
        ConfigError: n is below 1 or above the number of such tokens.
    """
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    candidates = torch.tensor([token for token in range(model.cfg.d_vocab) if token not in special])
    if not 1 <= n <= len(candidates):
        raise ConfigError(f"a soft prompt can start from 1 to {len(candidates)} tokens of this model: got {n}.")
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    return [int(token) for token in candidates[order[:n]]]


def mean_embedding_norm(model: LensModel) -> float:
    """Mean Euclidean norm of the model's token embeddings: the unit in which soft-prompt norms are given."""
    return float(backend_of(model).embedding(model).detach().float().norm(dim=-1).mean())


def _first_real(attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    if attention_mask.shape[1] == 0 or not bool((attention_mask != 0).any(dim=1).all()):
        raise DataError("a row of the batch has no token (its attention mask is 0 everywhere): drop it.")
    return (attention_mask != 0).int().argmax(dim=1)
