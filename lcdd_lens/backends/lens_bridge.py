"""A TransformerBridge that answers like a HookedTransformer where this library, its hooks and its users ask.

TransformerBridge wraps a Hugging Face model in place and shares hook names with HookedTransformer. What differs is
evened out here:

- hooks are told the name that they were registered under, and a hook point that does not exist is an error;
- ``past_kv_cache`` continues a key/value cache, with the attention mask of the new tokens only;
- ``named_parameters`` gives each parameter once, under the component that uses it;
- the tokenizer is kept as it is.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from lcdd_lens.errors import ModelError

ORIGINAL = "_original_component"
"""The wrapped Hugging Face module's name inside a component of the bridge."""


@dataclass(frozen=True)
class NamedHook:
    """What a hook function is told about its hook point."""

    name: str
    point: HookPoint = field(repr=False)

    @property
    def ctx(self) -> dict[str, Any]:
        """The hook point's scratch space."""
        context: dict[str, Any] = self.point.ctx
        return context

    def layer(self) -> int:
        """The layer in the name."""
        return int(self.name.split(".")[1])


class BridgeCache:
    """Keys and values of the positions so far, and the attention mask that goes with them."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.key_values = DynamicCache()
        self.previous_attention_mask = torch.ones((batch_size, 0), dtype=torch.long, device=device)

    def extended(self, attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch whole"]:
        """The mask of the positions so far and the new ones."""
        return torch.cat([self.previous_attention_mask, attention_mask.to(self.previous_attention_mask)], dim=1)


class LensBridge(TransformerBridge):  # type: ignore[misc]
    """Made by :func:`lcdd_lens.load_model` with ``backend="bridge"``; see the module's description."""

    last_hook = "unembed.hook_in"
    """Where positions may be cut; before it, the Hugging Face model may count them."""
    settings: Mapping[str, Any]
    """What the model computes, in the words of a TransformerLens configuration."""
    hf_names: Mapping[str, tuple[str, ...]]
    """Parameter -> its names in the Hugging Face checkpoint; parts of a fused tensor are absent."""

    # -- tokenizer

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or None."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self._tokenizer = value

    # -- parameters

    def places(self) -> tuple[tuple[str, nn.Module], ...]:
        """The wrapped modules that hold weights, each once, by their path in the bridge."""
        known: tuple[tuple[str, nn.Module], ...] | None = self.__dict__.get("_places")
        if known is None:
            known = self.__dict__["_places"] = tuple(_weighted(self, ""))
        return known

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Each parameter under the component that uses it (``blocks.0.attn.q._original_component.weight``)."""
        seen: set[int] = set()
        for path, module in self.places():
            for name, parameter in _own_parameters(module):
                if not (remove_duplicate and id(parameter) in seen):
                    seen.add(id(parameter))
                    yield f"{prefix}{'.' if prefix else ''}{path}.{name}", parameter

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Each parameter once."""
        for _, parameter in self.named_parameters():
            yield parameter

    # -- hooks

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """Every hook point under each of its names."""
        key = len(self._hook_registry)
        known: tuple[int, dict[str, HookPoint]] | None = self.__dict__.get("_points")
        if known is None or known[0] != key:
            known = self.__dict__["_points"] = (key, super().hook_dict)
        return known[1]

    @contextlib.contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[Any] = (),
        bwd_hooks: Sequence[Any] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["LensBridge"]:
        """Within the block these hooks act; each is told the name that it was registered under.

        Raises:
            ModelError: a name is not one of the model's hook points.
        """
        points: Mapping[str, HookPoint] = self.hook_dict
        self.context_level += 1
        level, touched = self.context_level, []
        try:
            for direction, given in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for where, function in given:
                    for name in _matching(points, where):
                        point = points[name]
                        touched.append(point)
                        point.add_hook(_told(function, NamedHook(name, point)), dir=direction, level=level)
            yield self
        finally:
            if reset_hooks_end:
                for point in touched:
                    point.remove_hooks(dir="both", level=level)
                    if clear_contexts:
                        point.clear_context()
            self.context_level -= 1

    def run_with_hooks(
        self,
        *args: Any,
        fwd_hooks: Sequence[Any] = (),
        bwd_hooks: Sequence[Any] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **kwargs: Any,
    ) -> Any:
        """One call of the model under hooks."""
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*args, **kwargs)

    # -- the forward pass

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        attention_mask: Tensor | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: BridgeCache | None = None,
        **options: Any,
    ) -> Any:
        """As TransformerBridge's, with a key/value cache and with ``start_at_layer`` after the last layer.

        Args:
            input: text, token ids [batch pos], or with ``start_at_layer`` a residual stream [batch pos d_model].
            return_type: ``"logits"``, ``"loss"``, ``"both"`` or None.
            loss_per_token: the loss of every position instead of their mean.
            prepend_bos: for text.
            padding_side: for text.
            attention_mask: 1 = token, 0 = padding; with a cache, of the new tokens.
            start_at_layer: the number of layers: only the final norm and the unembedding are applied.
            stop_at_layer: return the residual stream before this layer.
            past_kv_cache: the positions so far; it grows by the new ones.
            options: arguments for the Hugging Face model.

        Raises:
            ModelError: ``start_at_layer`` names a layer; the Hugging Face model runs its layers itself.
        """
        if start_at_layer is not None:
            if start_at_layer != self.cfg.n_layers or return_type != "logits":
                raise ModelError(
                    f"a bridge can start after its last layer only (start_at_layer={self.cfg.n_layers}, "
                    f"return_type='logits'): got {start_at_layer} and {return_type!r}. Load the model with "
                    "backend='hooked' to start in between."
                )
            return self._unembedded(input)
        arguments: dict[str, Any] = {
            "return_type": return_type,
            "loss_per_token": loss_per_token,
            "prepend_bos": prepend_bos,
            "padding_side": padding_side,
            "attention_mask": attention_mask,
            "stop_at_layer": stop_at_layer,
            **options,
        }
        if past_kv_cache is None:
            return super().forward(input, **arguments)
        mask = past_kv_cache.extended(torch.ones_like(input) if attention_mask is None else attention_mask)
        cached = {"attention_mask": mask, "past_key_values": past_kv_cache.key_values, "use_cache": True}
        output = super().forward(input, **(arguments | cached))
        past_kv_cache.previous_attention_mask = mask
        return output

    def _unembedded(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        logits: Tensor = self.unembed(self.ln_final(residual))
        cap = self.settings.get("output_logits_soft_cap", -1.0)
        return logits if cap <= 0 else torch.tanh(logits / cap) * cap


def _weighted(component: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in component._modules.items():
        if child is None:
            continue
        below = f"{path}.{name}" if path else name
        if name != ORIGINAL:
            yield from _weighted(child, below)
        elif any(True for _ in _own_parameters(child)):
            yield below, child


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's parameters without those of its children; a parametrized one as torch names it."""
    yield from module.named_parameters(recurse=False)
    if parametrize.is_parametrized(module):
        for leaf, parametrizations in module.parametrizations.items():  # type: ignore[union-attr, operator]
            yield f"parametrizations.{leaf}.original", parametrizations.original


def _matching(points: Mapping[str, HookPoint], where: str | Callable[[str], bool]) -> list[str]:
    if isinstance(where, str):
        if where not in points:
            raise ModelError(f"the model has no hook point {where!r}: expected one of model.hook_dict.")
        return [where]
    # An alias and its hook point are one place: the first name that matches stands for it.
    first: dict[int, str] = {}
    for name, point in points.items():
        if where(name):
            first.setdefault(id(point), name)
    return list(first.values())


def _told(function: Callable[..., Any], named: NamedHook) -> Callable[..., Any]:
    def hook_fn(values: Tensor, hook: Any) -> Any:
        return function(values, hook=named)

    return hook_fn
