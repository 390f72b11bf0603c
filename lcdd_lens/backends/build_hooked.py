"""A Hugging Face model as an unprocessed HookedTransformer (TransformerLens 3)."""

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedModel

from lcdd_lens.backends.architectures import architecture_of, settings_of
from lcdd_lens.backends.base import LensModel
from lcdd_lens.backends.biased_mlp import BiasedGatedMLP
from lcdd_lens.backends.layout import axis_sizes, checkpoint_tensors, read_checkpoint, refuse_unusable
from lcdd_lens.backends.origin import Origin
from lcdd_lens.errors import ModelError


def build_hooked(hf_model: PreTrainedModel, source: str, dtype: torch.dtype, device: str) -> LensModel:
    """Copy the weights into a HookedTransformer, in eval mode, with absent biases and tied embeddings frozen.

    Raises:
        ModelError: the architecture or an option is not supported, or a weight is missing, misplaced or not finite.
    """
    hf_config = hf_model.config
    cfg = HookedTransformerConfig(
        **settings_of(hf_config),
        model_name=str(getattr(hf_config, "_name_or_path", "") or "custom"),
        dtype=dtype,
        device=device,
        init_weights=False,
    )
    tensors = checkpoint_tensors(hf_model)
    refuse_unusable(tensors, source)
    parameters = read_checkpoint(architecture_of(hf_config).links(cfg), tensors, axis_sizes(cfg))

    model = HookedTransformer(cfg)
    if getattr(hf_config, "mlp_bias", False):
        for block in model.blocks:
            block.mlp = BiasedGatedMLP(cfg).to(device)
        model.setup()
    absent = frozenset(name for name, _ in model.named_parameters() if name not in parameters)
    _load_parameters(model, parameters, absent)
    tied = bool(hf_config.tie_word_embeddings)
    for name, parameter in model.named_parameters():
        if name in absent or (tied and name in ("embed.W_E", "unembed.W_U")):
            parameter.requires_grad_(False)
    model.origin = Origin(source, hf_config, getattr(hf_model, "generation_config", None), absent, tied)
    loaded: LensModel = model.eval()
    return loaded


def _load_parameters(model: HookedTransformer, parameters: dict[str, Tensor], absent: frozenset[str]) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in parameters.items():
            if own[name].shape != tensor.shape:
                raise ModelError(
                    f"{name} has shape {tuple(tensor.shape)} in the checkpoint, but its configuration says "
                    f"{tuple(own[name].shape)}: config.json and the weights do not belong together."
                )
            own[name].copy_(tensor)
        for name in absent:
            own[name].zero_()
