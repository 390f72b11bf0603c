"""Activations of every condition in one call, token by token alike.

TransformerLens's own ``run_with_cache`` gives the same numbers for one condition. What it leaves to its user is here:
the attention mask of padded prompts, the gates, and the columns that a trigger adds. Activations stand at the column of
the token that they belong to; attention patterns keep the trigger's columns on their key axis, since how much a head
looks at the trigger is the interesting part.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import ActivationCache

from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ConfigError
from lcdd_lens.lens.side_by_side import SideBySide

Positions = Literal["last", "all"]
NamesFilter = Sequence[str] | Callable[[str], bool] | None
_OVER_QUERIES = ("hook_pattern", "hook_attn_scores")


@dataclass(frozen=True, eq=False)
class ConditionCaches(Mapping[str, ActivationCache]):
    """A cache per condition: ``caches["routed"]["resid_post", 2]``.

    Attributes:
        caches: condition -> TransformerLens's cache; activations [prompt pos …], patterns [prompt head pos key].
        logits: condition -> logits of the reply's first token [prompt d_vocab].
        attention_mask: 1 on tokens, 0 on padding (where activations mean nothing).
    """

    caches: Mapping[str, ActivationCache]
    logits: Mapping[str, Tensor]
    attention_mask: Int[Tensor, "prompt pos"]

    def __getitem__(self, condition: str) -> ActivationCache:
        return self.caches[condition]

    def __iter__(self) -> Iterator[str]:
        return iter(self.caches)

    def __len__(self) -> int:
        return len(self.caches)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per condition and hook point: shape and megabytes."""
        return pd.DataFrame(
            {
                "condition": name,
                "hook_name": hook_name,
                "shape": " × ".join(map(str, values.shape)),
                "megabytes": values.numel() * values.element_size() / 1e6,
            }
            for name, cache in self.caches.items()
            for hook_name, values in cache.items()
        )

    def __repr__(self) -> str:
        n, width = self.attention_mask.shape
        hooks = len(next(iter(self.caches.values())))
        return f"ConditionCaches({', '.join(self)}; {hooks} hook points, {n} prompts of up to {width} tokens)"

    def _repr_html_(self) -> str:
        frame = self.to_dataframe()
        return notebook_view(repr(self), frame.groupby("condition", sort=False).megabytes.sum().to_frame())


def condition_caches(
    side: SideBySide, names: NamesFilter = None, *, conditions: Sequence[str] | None = None
) -> ConditionCaches:
    """Run every condition once and keep its activations, on the model's device.

    Args:
        side: conditions and prompts.
        names: hook names, or a function of a hook name; None keeps all of them.
        conditions: which conditions; None: all.

    Raises:
        ConfigError: a condition or a hook name does not exist.
    """
    caches, logits = {}, {}
    for name in side.names if conditions is None else conditions:
        found, logits[name] = activations(side, name, names, positions="all")
        caches[name] = ActivationCache(found, side.condition(name).model)
    return ConditionCaches(caches, logits, side.prompts.attention_mask)


def activations(
    side: SideBySide,
    name: str,
    names: NamesFilter,
    *,
    positions: Positions = "last",
    edits: Sequence[tuple[str, Callable[..., Any]]] = (),
) -> tuple[dict[str, Tensor], Tensor]:
    """Activations of one condition by hook name, and the logits of the reply's first token [prompt d_vocab].

    Args:
        side: conditions and prompts.
        name: the condition.
        names: which hook points, as in :func:`condition_caches`.
        positions: ``all``: [prompt pos …]; ``last``: the prompt's last token only, [prompt …].
        edits: hooks that change activations; they act before the activations are read.

    Raises:
        ConfigError: a hook name does not exist, or positions is neither of the two.
    """
    if positions not in ("last", "all"):
        raise ConfigError(f"positions is {positions!r}: expected 'last' or 'all'.")
    columns = side.columns(name)
    width = int(columns[0, -1]) + 1
    chosen = columns[:, -1:] if positions == "last" else columns
    kept: dict[str, list[Tensor]] = {}
    logits = []
    with side.running(name) as model:
        wanted = names if callable(names) else _known(model, names)
        for rows in side.batches():
            found: dict[str, Tensor] = {}

            def keep(activation: Tensor, hook: Any, found: dict[str, Tensor] = found) -> None:
                found[hook.name] = activation.detach()

            with model.hooks(fwd_hooks=[*edits, (wanted, keep)]):
                logits.append(side.forward(model, rows)[:, -1])
            for hook_name, values in found.items():
                by_row = _by_row(values, len(chosen[rows]), width)
                taken = _take(by_row, chosen[rows], 2 if hook_name.endswith(_OVER_QUERIES) else 1)
                kept.setdefault(hook_name, []).append(taken)
    joined = {hook_name: torch.cat(parts) for hook_name, parts in kept.items()}
    if positions == "last":
        joined = {name: v.squeeze(2 if name.endswith(_OVER_QUERIES) else 1) for name, v in joined.items()}
    return joined, torch.cat(logits)


def _known(model: Any, names: Sequence[str] | None) -> Callable[[str], bool]:
    if names is None:
        return lambda name: True
    listed = set(names)
    unknown = listed - set(model.hook_dict)
    if unknown:
        raise ConfigError(f"the model has no hook point {', '.join(sorted(unknown))}: see model.hook_dict.")
    return listed.__contains__


def _by_row(values: Tensor, n_rows: int, width: int) -> Tensor:
    """A batch axis where a hook has none of its own: shared values are repeated, norms of heads are flat."""
    if len(values) == n_rows:
        return values
    if len(values) == 1:
        return values.expand(n_rows, *values.shape[1:])
    return values.reshape(n_rows, width, -1, *values.shape[1:])


def _take(values: Tensor, columns: Int[Tensor, "batch pos"], axis: int) -> Tensor:
    """The given columns of each row along the position axis."""
    shape = [len(columns) if dim == 0 else columns.shape[1] if dim == axis else 1 for dim in range(values.ndim)]
    index = columns.reshape(shape).expand([*values.shape[:axis], columns.shape[1], *values.shape[axis + 1 :]])
    return values.gather(axis, index)
