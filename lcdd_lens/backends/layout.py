"""Which Hugging Face tensor holds which HookedTransformer parameter, for reading and for writing.

Each :class:`Link` names one tensor of a checkpoint and carries one einops pattern. Loading applies it from left to
right, exporting from right to left, so a round trip is the identity and no bias can be lost on one of the two ways:

    lens = rearrange(scale · hf + shift)          hf = (rearrange⁻¹(lens) − shift) / scale

A bias that the checkpoint lacks has no partner: it is reported as absent and stays a frozen zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import EinopsError, rearrange
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.errors import ModelError

UNEMBEDDING = "lm_head.weight"


@dataclass(frozen=True)
class Link:
    """One checkpoint tensor and the parameters that it becomes (several when projections are fused)."""

    hf: str
    lens: tuple[str, ...]  # more than one: they lie along the pattern's first axis on the right
    pattern: str  # einops, checkpoint layout -> HookedTransformer layout
    scale: float = 1.0  # Gemma multiplies its embeddings by √d_model
    shift: float = 0.0  # Gemma stores norm weights minus one

    def to_lens(self, tensor: Float[Tensor, "..."], sizes: Mapping[str, int]) -> dict[str, Float[Tensor, "..."]]:
        """The parameters that a checkpoint tensor becomes."""
        if self.scale != 1.0:
            tensor = tensor * torch.tensor(self.scale, dtype=tensor.dtype, device=tensor.device)
        if self.shift:
            tensor = tensor + self.shift
        arranged = rearrange(tensor, self.pattern, **_named_axes(self.pattern, sizes))
        parts = [arranged] if len(self.lens) == 1 else list(arranged)
        return dict(zip(self.lens, parts, strict=True))

    def to_hf(self, parameters: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Float[Tensor, "..."]:
        """The checkpoint tensor that holds these parameters."""
        parts = [parameters[name] for name in self.lens]
        stacked = parts[0] if len(parts) == 1 else torch.stack(parts)
        left, right = self.pattern.split("->")
        reverse = f"{right} -> {left}"
        tensor: Tensor = rearrange(stacked, reverse, **_named_axes(reverse, sizes))
        if self.shift:
            tensor = tensor - self.shift
        if self.scale != 1.0:
            tensor = tensor / torch.tensor(self.scale, dtype=tensor.dtype, device=tensor.device)
        return tensor.contiguous()


def head_name(hf_model: Any) -> str:
    """The name under which a Hugging Face model keeps its unembedding weight; versions of transformers differ.

    Raises:
        ModelError: the model has no language-modelling head.
    """
    head = hf_model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(hf_model).__name__} has no language-modelling head: expected a causal language model, "
            "for example from AutoModelForCausalLM."
        )
    return next(f"{name}.weight" for name, module in hf_model.named_modules() if module is head)


def checkpoint_tensors(hf_model: Any) -> dict[str, Tensor]:
    """Parameters by name, tied ones under each of their names, the unembedding under one name for all versions."""
    tensors = dict(hf_model.named_parameters(remove_duplicate=False))
    return tensors | {UNEMBEDDING: tensors.pop(head_name(hf_model))}


def refuse_unusable(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse a checkpoint that holds values which no computation survives.

    Raises:
        ModelError: a tensor is not in memory, NaN or infinite.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ModelError(f"{source}: {name} is not in memory (offloaded): load the model without a device map.")
        if not bool(torch.isfinite(tensor).all()):
            n_bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{source}: {name} holds {n_bad} values that are NaN or infinite: the checkpoint is damaged or its "
                "training diverged; use an earlier one."
            )


def read_checkpoint(
    links: Sequence[Link], tensors: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """HookedTransformer parameters from a checkpoint's tensors.

    Raises:
        ModelError: a weight is missing, or a checkpoint tensor has no place in a HookedTransformer.
    """
    missing = sorted(link.hf for link in links if link.hf not in tensors and not link.hf.endswith(".bias"))
    if missing:
        raise ModelError(
            f"the model lacks the weights {_some(missing)}: expected a plain causal language model "
            "(for one with adapters inside, call merge_and_unload() first)."
        )
    unplaced = sorted(set(tensors) - {link.hf for link in links})
    if unplaced:
        raise ModelError(
            f"the model has tensors that HookedTransformer cannot hold: {_some(unplaced)}. "
            "Expected the plain architecture without added modules."
        )
    parameters: dict[str, Tensor] = {}
    for link in links:
        if link.hf in tensors:
            try:
                parameters |= link.to_lens(tensors[link.hf].detach(), sizes)
            except EinopsError as error:
                raise ModelError(
                    f"{link.hf} has shape {tuple(tensors[link.hf].shape)}, which does not divide into {dict(sizes)}: "
                    "config.json and the weights do not belong together."
                ) from error
    return parameters


def _named_axes(pattern: str, sizes: Mapping[str, int]) -> dict[str, int]:
    axes = set(pattern.replace("(", " ").replace(")", " ").replace("->", " ").split())
    return {name: size for name, size in sizes.items() if name in axes}


def _some(names: Sequence[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def axis_sizes(cfg: Any) -> dict[str, int]:
    """Sizes of the axes that the patterns of :mod:`architectures` name."""
    return {
        "qkv": 3,
        "head": cfg.n_heads,
        "kv": cfg.n_key_value_heads or cfg.n_heads,
        "d_head": cfg.d_head,
    }
