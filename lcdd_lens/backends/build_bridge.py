"""A Hugging Face model as a :class:`LensBridge`, without dead parameters and without dropout.

The bridge splits fused projections (GPT-2, GPT-NeoX) and leaves the fused one behind, and 3.9 adds a bias to the
unembedding: parameters that no forward pass reads, or that no checkpoint has. They are removed. Dropout is switched
off, as a HookedTransformer has none.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge.generalized_components import NormalizationBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import PreTrainedModel

from lcdd_lens.backends.architectures import architecture_of, layout_config, settings_of
from lcdd_lens.backends.base import LensModel
from lcdd_lens.backends.layout import axis_sizes, checkpoint_tensors, read_checkpoint, refuse_unusable
from lcdd_lens.backends.lens_bridge import ORIGINAL, LensBridge
from lcdd_lens.backends.origin import Origin
from lcdd_lens.errors import ModelError


def build_bridge(hf_model: PreTrainedModel, source: str, dtype: torch.dtype, device: str) -> LensModel:
    """Wrap the model, which is changed in place, in eval mode, with tied embeddings frozen.

    Raises:
        ModelError: the architecture or an option is not supported, or a weight is missing, misplaced or not finite.
    """
    origin_config, generation = hf_model.config, getattr(hf_model, "generation_config", None)
    settings, layout = settings_of(origin_config), layout_config(origin_config)
    tensors = checkpoint_tensors(hf_model)
    refuse_unusable(tensors, source)
    # The bridge takes any weights: whether these fit the architecture is asked as for a HookedTransformer.
    read_checkpoint(architecture_of(origin_config).links(layout), tensors, axis_sizes(layout))

    hf_model = _prepared(hf_model, dtype, device)
    names: dict[int, list[str]] = {}
    for name, parameter in hf_model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    _bias_fused_projections(hf_model)
    model = build_bridge_from_module(
        hf_model,
        settings["original_architecture"],
        hf_config=hf_model.config,
        dtype=dtype,
        device=device,
        model_name=str(getattr(origin_config, "_name_or_path", "") or "custom"),
    )
    model.__class__ = LensBridge
    _drop_dead_parameters(model, names)
    for module in model.modules():
        if isinstance(module, NormalizationBridge):
            # Else what a norm computes depends, in the last bits, on whether its hooks are in use.
            module.use_native_layernorm_autograd = False
    model.settings = settings
    model.hf_names = {
        name: tuple(names[id(parameter)]) for name, parameter in model.named_parameters() if id(parameter) in names
    }
    _require_complete(model)
    for name in ("n_ctx", "n_key_value_heads", "original_architecture"):
        setattr(model.cfg, name, vars(layout)[name])
    tied = bool(origin_config.tie_word_embeddings)
    if tied:
        model.embed.requires_grad_(False)
    model.origin = Origin(source, origin_config, generation, frozenset(), tied)
    loaded: LensModel = model.eval()
    return loaded


def _prepared(hf_model: PreTrainedModel, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model in the data type and place, computing as a HookedTransformer does."""
    hf_model.config = copy.deepcopy(hf_model.config)
    hf_model.config.use_cache = False
    hf_model.set_attn_implementation("eager")
    for module in hf_model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_pdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    for parameter in hf_model.parameters():
        parameter.requires_grad_(True)
        parameter.data = parameter.data.to(dtype)
    return hf_model.to(device).eval()


def _bias_fused_projections(hf_model: PreTrainedModel) -> None:
    """Zero biases for GPT-NeoX without attention biases, whose projections the bridge cannot split otherwise."""
    for name, module in hf_model.named_modules():
        if name.endswith(".query_key_value") and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(len(module.weight)))


def _drop_dead_parameters(model: Any, names: dict[int, list[str]]) -> None:
    head = model.unembed.original_component
    if head.bias is not None and id(head.bias) not in names:
        head.bias = None
    for block in model.blocks:
        attention = block.attn
        if "qkv" not in attention._modules:
            continue
        for part in (attention.q, attention.k, attention.v):
            module = part.original_component
            if module.bias is not None and id(attention.qkv.original_component.bias) not in names:
                module.bias = None
            # The parts are views of the fused tensor: give them memory of their own.
            for leaf, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, leaf, nn.Parameter(parameter.detach().clone(memory_format=torch.contiguous_format)))
        fused = attention.qkv.original_component
        for leaf in list(fused._parameters):
            fused._parameters[leaf] = None


def _require_complete(model: LensBridge) -> None:
    """Every parameter that a forward pass reads must be under a name."""
    named = {id(parameter) for parameter in model.parameters()}
    missed = [
        name.replace(f".{ORIGINAL}", "")
        for name, parameter in model.original_model.named_parameters()
        if id(parameter) not in named
    ]
    if missed:
        raise ModelError(
            f"TransformerBridge leaves {', '.join(missed[:4])} without a component of its own: this version of "
            "TransformerLens is not one that the bridge backend understands."
        )
