"""TransformerBridge (TransformerLens 3.9 and 4): where its weights live.

Weights are the Hugging Face model's own: Linear ``[out in]``, GPT-2's Conv1D ``[in out]``, heads flattened along the
output axis. Sites, channels and roles are those of a HookedTransformer, so that gates, carriers and triggers mean the
same on both.
"""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from lcdd_lens.backends.architectures import architecture_of, layout_config
from lcdd_lens.backends.base import LensModel, register_backend
from lcdd_lens.backends.build_bridge import build_bridge
from lcdd_lens.backends.layout import axis_sizes
from lcdd_lens.backends.lens_bridge import ORIGINAL, BridgeCache, LensBridge
from lcdd_lens.backends.sites import GateAxis, Site, SiteKind, WeightSite, layer_sites
from lcdd_lens.errors import ModelError

_PROJECTIONS: tuple[tuple[str, str, str, SiteKind, SiteKind], ...] = (
    ("attn.q", "attn.W_Q", "attn.b_Q", "attn_q", "attn_read"),
    ("attn.k", "attn.W_K", "attn.b_K", "attn_k", "attn_read"),
    ("attn.v", "attn.W_V", "attn.b_V", "attn_v", "attn_read"),
    ("attn.o", "attn.W_O", "attn.b_O", "attn_write", "attn_v"),
    ("mlp.in", "mlp.W_in", "mlp.b_in", "ffn_hidden", "ffn_read"),
    ("mlp.gate", "mlp.W_gate", "mlp.b_gate", "ffn_hidden", "ffn_read"),
    ("mlp.out", "mlp.W_out", "mlp.b_out", "ffn_write", "ffn_hidden"),
)
"""Component, the roles of its weight and bias, the kinds of site of its rows and columns."""


class BridgeBackend:
    """Backend for :class:`LensBridge`."""

    name = "bridge"

    def owns(self, model: object) -> bool:
        return isinstance(model, LensBridge)

    def sites(self, model: LensModel) -> tuple[Site, ...]:
        return tuple(site for layer in self._layers(model) for site in layer.values())

    def weight_sites(self, model: LensModel) -> tuple[WeightSite, ...]:
        assert isinstance(model, LensBridge)
        places = dict(model.places())
        return tuple(
            weight_site
            for layer, sites in enumerate(self._layers(model))
            for component, weight, bias, row, column in _PROJECTIONS
            if (path := f"blocks.{layer}.{component}.{ORIGINAL}") in places
            for weight_site in _linear_sites(
                path,
                places[path],
                (f"blocks.{layer}.{weight}", f"blocks.{layer}.{bias}"),
                sites.get(row),
                _column_site(sites, column),
                model.cfg,
            )
        )

    def clone(self, model: LensModel) -> LensModel:
        assert isinstance(model, LensBridge)
        if any(parametrize.is_parametrized(module) for _, module in model.places()):
            raise ModelError("A routed model cannot be copied: use RoutedModel.merged() to get plain weights first.")
        from transformers import AutoModelForCausalLM

        # copy.deepcopy of a bridge loses the components: wrap a new Hugging Face model instead.
        with torch.random.fork_rng(devices=[]):
            hf_model = AutoModelForCausalLM.from_config(model.origin.hf_config, dtype=model.cfg.dtype)
        hf_model.load_state_dict(hf_tensors(model), strict=False)
        hf_model.tie_weights()
        hf_model.generation_config = model.origin.generation_config
        device = str(next(iter(model.parameters())).device)
        twin = build_bridge(hf_model, model.origin.source, model.cfg.dtype, device)
        assert isinstance(twin, LensBridge)
        twin.origin, twin.tokenizer = model.origin, model.tokenizer
        for name in ("tokenizer_prepends_bos", "default_prepend_bos"):
            setattr(twin.cfg, name, getattr(model.cfg, name, None))
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(flags[name])
        copied: LensModel = twin.train(model.training)
        return copied

    def embedding(self, model: LensModel) -> Float[Tensor, "d_vocab d_model"]:
        assert isinstance(model, LensBridge)
        links = architecture_of(model.origin.hf_config).links(layout_config(model.origin.hf_config))
        link = next(link for link in links if link.lens == ("embed.W_E",))
        return link.to_lens(model.embed.original_component.weight, {})["embed.W_E"]

    def start_cache(self, model: LensModel, batch_size: int) -> Any:
        return BridgeCache(batch_size, next(iter(model.parameters())).device)

    def logits(
        self,
        model: LensModel,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        cache: Any = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        logits: Tensor = model(tokens, return_type="logits", attention_mask=attention_mask, past_kv_cache=cache)
        return logits

    def _layers(self, model: LensModel) -> list[dict[SiteKind, Site]]:
        assert isinstance(model, LensBridge)
        return layer_sites(model.cfg, model.hook_dict.keys())


def hf_tensors(model: LensBridge) -> dict[str, Tensor]:
    """The model's weights under their names in a Hugging Face checkpoint, fused projections put together again."""
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors = {hf_name: own[name] for name, hf_names in model.hf_names.items() for hf_name in hf_names}
    hf_config = model.origin.hf_config
    layout = layout_config(hf_config)
    by_role = {site.role: site for site in BridgeBackend().weight_sites(model)}
    for link in architecture_of(hf_config).links(layout):
        if len(link.lens) > 1 and link.lens[0] in by_role:
            parts = {role: _per_head(own[by_role[role].parameter], model.cfg.n_heads) for role in link.lens}
            tensors[link.hf] = link.to_hf(parts, axis_sizes(layout))
    return tensors


def _per_head(tensor: Tensor, n_heads: int) -> Tensor:
    pattern = "(head d_head) d_in -> head d_in d_head" if tensor.ndim == 2 else "(head d_head) -> head d_head"
    per_head: Tensor = rearrange(tensor, pattern, head=n_heads)
    return per_head


def _column_site(sites: Mapping[SiteKind, Site], kind: SiteKind) -> Site | None:
    # Blocks with one norm for both branches have no ln2: the MLP then reads through ln1's site.
    if kind == "ffn_read" and "ffn_read" not in sites:
        return sites.get("attn_read")
    return sites.get(kind)


def _linear_sites(
    path: str, module: nn.Module, roles: tuple[str, str], row: Site | None, column: Site | None, cfg: Any
) -> list[WeightSite]:
    stored = "d_in d_out" if isinstance(module, Conv1D) else "d_out d_in"

    def beside(axis: str, name: str) -> str:
        """The stored pattern with ``axis`` under this name and the other axis of length 1."""
        other = "d_in" if axis == "d_out" else "d_out"
        return stored.replace(axis, name).replace(other, "1")

    row_axis = column_axis = None
    if row is not None:
        row_axis = GateAxis(row, f"d_out -> {beside('d_out', 'd_out')}", f"{stored} -> d_out")
    if column is not None and column.kind == "attn_v":
        n_kv = cfg.n_key_value_heads or cfg.n_heads
        heads = "(kv group d_head)"
        column_axis = GateAxis(
            column,
            f"(kv d_head) -> {beside('d_in', heads)}",
            f"{stored.replace('d_in', heads)} -> (kv d_head)",
            (("kv", n_kv), ("d_head", cfg.d_head), ("group", cfg.n_heads // n_kv)),
        )
    elif column is not None:
        column_axis = GateAxis(column, f"d_in -> {beside('d_in', 'd_in')}", f"{stored} -> d_in")
    found = [WeightSite(f"{path}.weight", row_axis, column_axis, roles[0], f"{stored} -> d_out d_in")]
    if getattr(module, "bias", None) is not None:
        bias_axis = None if row is None else GateAxis(row, "channel -> channel", "channel -> channel")
        found.append(WeightSite(f"{path}.bias", bias_axis, None, roles[1], "channel -> channel"))
    return found


register_backend(BridgeBackend())
