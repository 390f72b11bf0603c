"""Pairs of tiny models for tests: a base and a fine-tuned copy whose gated weights all moved."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lcdd_lens.backends import LensModel, backend_of, load_model, parameter_of
from tests.conftest import VOCABULARY, tiny_hf


@dataclass(frozen=True)
class Pair:
    base: LensModel
    sft: LensModel


def shifted(model: LensModel, scale: float = 0.2, seed: int = 1) -> LensModel:
    """A copy whose gated weights are moved by noise."""
    backend = backend_of(model)
    moved = backend.clone(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for site in backend.weight_sites(moved):
            weight = parameter_of(moved, site.parameter)
            weight.add_((scale * torch.randn(weight.shape, generator=generator)).to(weight.dtype))
    return moved


def tiny_pair(architecture: str, dtype: torch.dtype = torch.float32) -> Pair:
    base = load_model(tiny_hf(architecture), dtype=dtype)
    return Pair(base, shifted(base))


def tokens(batch: int = 3, length: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def logits(model: LensModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return backend_of(model).logits(model, ids, torch.ones_like(ids))


def parameter_name(model: LensModel, role: str) -> str:
    """The model's own name of the weight that TransformerLens calls ``role`` (``blocks.0.attn.W_Q``)."""
    return next(site.parameter for site in backend_of(model).weight_sites(model) if site.role == role)


def random_flags(n_gates: int, seed: int = 3) -> Tensor:
    return torch.rand(n_gates, generator=torch.Generator().manual_seed(seed)) < 0.5


MakePair = Callable[..., Pair]
