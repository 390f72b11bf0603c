"""A linear two-layer model whose every attribution score has a closed form on paper.

    e = E[token],   h = e·W_in,   y = h·W_out,   logits = y·U
    𝓜 = mean over reply tokens t of logit_t at position t − 1

Its three sites (ffn_read = e, ffn_hidden = h, ffn_write = y) and two matrices meet as in a transformer's MLP. Since 𝓜
is linear in e, h and y, patching, attribution patching and integrated gradients agree exactly; since it is bilinear in
the weights, integrated gradients on weights are exact at any K.
"""

from types import SimpleNamespace
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from lcdd_lens.backends.base import LensModel, register_backend
from lcdd_lens.backends.sites import GateAxis, Site, WeightSite
from lcdd_lens.data.tokens import TokenBatch
from lcdd_lens.errors import ModelError


class ToyLinear(HookedRootModule):  # type: ignore[misc]
    """The model above, in float64.

    Args:
        embedding: E.
        w_in: W_in.
        w_out: W_out.
        unembedding: U.
    """

    def __init__(
        self,
        embedding: Float[Tensor, "d_vocab d_model"],
        w_in: Float[Tensor, "d_model d_mlp"],
        w_out: Float[Tensor, "d_mlp d_model"],
        unembedding: Float[Tensor, "d_model d_vocab"],
    ) -> None:
        super().__init__()
        (d_vocab, d_model), d_mlp = embedding.shape, w_in.shape[1]
        self.cfg = SimpleNamespace(
            n_layers=1, d_model=d_model, n_heads=1, d_head=d_model, d_mlp=d_mlp, d_vocab=d_vocab, n_ctx=64
        )
        self.tokenizer = None
        self.W_E, self.W_U = nn.Parameter(embedding.double()), nn.Parameter(unembedding.double())
        self.W_in, self.W_out = nn.Parameter(w_in.double()), nn.Parameter(w_out.double())
        self.hook_embed, self.hook_read = HookPoint(), HookPoint()
        self.hook_hidden, self.hook_write = HookPoint(), HookPoint()
        self.setup()

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        read = self.hook_read(self.hook_embed(self.W_E[tokens]))
        write = self.hook_write(self.hook_hidden(read @ self.W_in) @ self.W_out)
        logits: Tensor = write @ self.W_U
        return logits


class ToyBackend:
    """Where the toy model's weights live."""

    name = "toy"

    def owns(self, model: object) -> bool:
        return isinstance(model, ToyLinear)

    def sites(self, model: LensModel) -> tuple[Site, ...]:
        cfg = model.cfg
        return (
            Site(0, "ffn_read", "hook_read", cfg.d_model),
            Site(0, "ffn_hidden", "hook_hidden", cfg.d_mlp),
            Site(0, "ffn_write", "hook_write", cfg.d_model),
        )

    def weight_sites(self, model: LensModel) -> tuple[WeightSite, ...]:
        read, hidden, write = self.sites(model)
        matrix = "d_in d_out -> d_out d_in"

        def axes(row: Site, column: Site) -> tuple[GateAxis, GateAxis]:
            return (
                GateAxis(row, "d_out -> 1 d_out", "d_in d_out -> d_out"),
                GateAxis(column, "d_in -> d_in 1", "d_in d_out -> d_in"),
            )

        return (
            WeightSite("W_in", *axes(hidden, read), "blocks.0.mlp.W_in", matrix),
            WeightSite("W_out", *axes(write, hidden), "blocks.0.mlp.W_out", matrix),
        )

    def clone(self, model: LensModel) -> LensModel:
        assert isinstance(model, ToyLinear)
        weights = (model.W_E, model.W_in, model.W_out, model.W_U)
        copied: LensModel = ToyLinear(*(weight.detach().clone() for weight in weights))
        return copied

    def embedding(self, model: LensModel) -> Float[Tensor, "d_vocab d_model"]:
        assert isinstance(model, ToyLinear)
        return model.W_E

    def start_cache(self, model: LensModel, batch_size: int) -> Any:
        raise ModelError("the toy model has no key/value cache.")

    def logits(
        self,
        model: LensModel,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        cache: Any = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        logits: Tensor = model(tokens)
        return logits


def reply_logit(logits: Float[Tensor, "batch pos d_vocab"], batch: TokenBatch) -> Float[Tensor, " batch"]:
    """Mean logit of the reply's tokens, per prompt: a metric that is linear in the logits; larger = more behaviour."""
    chosen = batch.response_mask[:, 1:].to(logits)
    picked = logits[:, :-1].gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
    return einsum(picked, chosen, "batch pos, batch pos -> batch") / chosen.sum(1)


def toy_pair(seed: int = 0, *, d_model: int = 3, d_mlp: int = 5, d_vocab: int = 7) -> tuple[ToyLinear, ToyLinear]:
    """A random base and fine-tuned toy model that share embedding and unembedding."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    embedding, unembedding = random(d_vocab, d_model), random(d_model, d_vocab)
    w_in, w_out = random(d_model, d_mlp), random(d_mlp, d_model)
    base = ToyLinear(embedding, w_in, w_out, unembedding)
    moved = w_in + 0.3 * random(d_model, d_mlp), w_out + 0.3 * random(d_mlp, d_model)
    return base, ToyLinear(embedding, *moved, unembedding)


register_backend(ToyBackend())
