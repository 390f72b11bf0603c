"""HookedTransformer (TransformerLens 3.x): where its weights live.

Parameters are stored per head (``W_Q [head d_model d_head]``, ``W_O [head d_head d_model]``) and, under
grouped-query attention, per key/value head in ``_W_K`` and ``_W_V``. Channels of ``attn_k`` and ``attn_v`` are
key/value-head coordinates; W_O's columns repeat each value channel over the query heads that share it.
"""

import copy
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from lcdd_lens.backends.base import LensModel, register_backend
from lcdd_lens.backends.origin import origin_of
from lcdd_lens.backends.sites import GateAxis, Site, SiteKind, WeightSite, layer_sites
from lcdd_lens.errors import ModelError


class HookedBackend:
    """Backend for :class:`transformer_lens.HookedTransformer`."""

    name = "hooked"

    def owns(self, model: object) -> bool:
        return isinstance(model, HookedTransformer)

    def sites(self, model: LensModel) -> tuple[Site, ...]:
        return tuple(site for block in self._blocks(model) for site in block.values())

    def weight_sites(self, model: LensModel) -> tuple[WeightSite, ...]:
        present = {_plain_name(name): parameter for name, parameter in model.named_parameters()}
        origin = origin_of(model)
        absent = _frozen_zero_biases(present) if origin is None else origin.absent
        found = [
            weight_site
            for layer, block in enumerate(self._blocks(model))
            for weight_site in _block_weights(model.cfg, layer, block)
            if weight_site.parameter in present and weight_site.parameter not in absent
        ]
        return tuple(found)

    def clone(self, model: LensModel) -> LensModel:
        assert isinstance(model, HookedTransformer)
        if any(parametrize.is_parametrized(module) for module in model.modules()):
            raise ModelError("A routed model cannot be copied: use RoutedModel.merged() to get plain weights first.")
        # SAELens's HookedSAETransformer wraps MLPs in closures, which a copy would share with the original.
        if any(isinstance(vars(module).get("forward"), FunctionType) for module in list(model.modules())[1:]):
            raise ModelError(
                "modules of the model were wrapped by functions, so that a copy would run the original's weights: make "
                "a HookedSAETransformer with lcdd_lens.sae.sae_transformer(model)."
            )
        shared = {id(model.tokenizer): model.tokenizer}
        duplicate: LensModel = copy.deepcopy(model, shared)
        return duplicate

    def embedding(self, model: LensModel) -> Float[Tensor, "d_vocab d_model"]:
        weight: Tensor = model.W_E  # type: ignore[attr-defined]
        return weight

    def start_cache(self, model: LensModel, batch_size: int) -> Any:
        device = next(iter(model.parameters())).device
        return TransformerLensKeyValueCache.init_cache(model.cfg, device, batch_size)

    def logits(
        self,
        model: LensModel,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        cache: Any = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        logits: Tensor = model(tokens, return_type="logits", attention_mask=attention_mask, past_kv_cache=cache)
        return logits

    def _blocks(self, model: LensModel) -> list[dict[SiteKind, Site]]:
        cfg = model.cfg
        if cfg.attn_only:
            raise ModelError("attention-only models have no MLP sites: expected a model with MLP layers.")
        return layer_sites(cfg, {name for name, _ in model.get_submodule("").named_modules()})


def _block_weights(cfg: Any, layer: int, sites: dict[SiteKind, Site]) -> list[WeightSite]:
    n_heads, d_head = cfg.n_heads, cfg.d_head
    n_kv = cfg.n_key_value_heads or n_heads
    # Blocks with one LayerNorm for both branches have no ln2: the MLP then reads through ln1's site.
    mlp_read = sites.get("ffn_read", sites.get("attn_read"))

    def axis(site: Site | None, expand: str, reduce: str, **sizes: int) -> GateAxis | None:
        return None if site is None else GateAxis(site, expand, reduce, tuple(sizes.items()))

    def weight(module: str, name: str, row: GateAxis | None, column: GateAxis | None, matrix: str) -> WeightSite:
        stored = f"_{name}" if name in ("W_K", "W_V", "b_K", "b_V") and cfg.n_key_value_heads is not None else name
        return WeightSite(f"blocks.{layer}.{module}.{stored}", row, column, f"blocks.{layer}.{module}.{name}", matrix)

    def projection(kind: SiteKind, letter: str, heads: int) -> list[WeightSite]:
        row = axis(sites.get(kind), "(head d_head) -> head 1 d_head", "head d_in d_head -> (head d_head)", head=heads)
        column = axis(sites.get("attn_read"), "d_in -> 1 d_in 1", "head d_in d_head -> d_in")
        bias = axis(sites.get(kind), "(head d_head) -> head d_head", "head d_head -> (head d_head)", head=heads)
        return [
            weight("attn", f"W_{letter}", row, column, "head d_in d_head -> (head d_head) d_in"),
            weight("attn", f"b_{letter}", bias, None, "head d_head -> (head d_head)"),
        ]

    def mlp_weight(name: str, row: Site | None, column: Site | None) -> WeightSite:
        rows = axis(row, "d_out -> 1 d_out", "d_in d_out -> d_out")
        columns = axis(column, "d_in -> d_in 1", "d_in d_out -> d_in")
        return weight("mlp", name, rows, columns, "d_in d_out -> d_out d_in")

    def bias(module: str, name: str, site: Site | None) -> WeightSite:
        return weight(module, name, axis(site, "channel -> channel", "channel -> channel"), None, "channel -> channel")

    value_columns = axis(
        sites.get("attn_v"),
        "(kv d_head) -> (kv group) d_head 1",
        "(kv group) d_head d_out -> (kv d_head)",
        kv=n_kv,
        d_head=d_head,
        group=n_heads // n_kv,
    )
    value_rows = axis(sites.get("attn_write"), "d_out -> 1 1 d_out", "head d_head d_out -> d_out")
    return [
        *projection("attn_q", "Q", n_heads),
        *projection("attn_k", "K", n_kv),
        *projection("attn_v", "V", n_kv),
        weight("attn", "W_O", value_rows, value_columns, "head d_head d_out -> d_out (head d_head)"),
        bias("attn", "b_O", sites.get("attn_write")),
        mlp_weight("W_in", sites.get("ffn_hidden"), mlp_read),
        mlp_weight("W_gate", sites.get("ffn_hidden"), mlp_read),
        bias("mlp", "b_gate", sites.get("ffn_hidden")),
        bias("mlp", "b_in", sites.get("ffn_hidden")),
        mlp_weight("W_out", sites.get("ffn_write"), sites.get("ffn_hidden")),
        bias("mlp", "b_out", sites.get("ffn_write")),
    ]


def _frozen_zero_biases(parameters: Mapping[str, nn.Parameter]) -> frozenset[str]:
    """Biases that a checkpoint of unknown origin presumably lacks; a loaded model's origin knows them."""
    return frozenset(
        name
        for name, parameter in parameters.items()
        if name.rpartition(".")[2].lstrip("_").startswith("b_")
        and not parameter.requires_grad
        and not bool(torch.any(parameter != 0))
    )


def _plain_name(name: str) -> str:
    """``blocks.0.attn.parametrizations.W_Q.original`` -> ``blocks.0.attn.W_Q``."""
    return name.replace(".parametrizations.", ".").removesuffix(".original")


register_backend(HookedBackend())
