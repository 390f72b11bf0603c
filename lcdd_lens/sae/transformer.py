"""A model as SAELens's HookedSAETransformer, so that SAEs can be spliced into it, also when it is routed."""

from types import MethodType
from typing import Any

from torch import Tensor

from lcdd_lens.backends.base import LensModel
from lcdd_lens.errors import ModelError
from lcdd_lens.sae.library import sae_lens


def sae_transformer(model: LensModel) -> LensModel:
    """A copy of a plain model as ``sae_lens.HookedSAETransformer``: ``run_with_saes``, ``run_with_cache_with_saes``.

    Weights, frozen flags, tokenizer and origin are those of the model. A ``RoutedModel`` takes the copy like any other
    model; with ``use_error_term=True`` splicing an SAE changes no logit, so that only edits of features do.

    Raises:
        ModelError: the model is routed: copy it before, or pass ``RoutedModel.merged()``.
        ConfigError: sae-lens is missing.
    """
    if any(".parametrizations." in name for name, _ in model.named_parameters()):
        raise ModelError("a routed model cannot be copied: copy the plain model and route the copy, or pass merged().")
    copy: Any = sae_lens().HookedSAETransformer(model.cfg)
    copy.load_state_dict(model.get_submodule("").state_dict())
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in copy.named_parameters():
        parameter.requires_grad_(flags[name])
    for block in copy.blocks:
        # SAELens closes over the MLP that it wraps, and a copy of the model would run the original's MLPs.
        block.mlp.forward = MethodType(_through_hook_in, block.mlp)
    copy.tokenizer = model.tokenizer
    if hasattr(model, "origin"):
        copy.origin = model.origin
    made: LensModel = copy.train(model.training)
    return made


def _through_hook_in(mlp: Any, x: Tensor) -> Tensor:
    written: Tensor = type(mlp).forward(mlp, mlp.hook_in(x))
    return written
