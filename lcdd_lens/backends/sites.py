"""Sites and weight sites: where channels are, and which weights they gate.

A *site* is a hook point whose channels carry routing masks. A *weight site* is a parameter together with the site
of its rows (output channels) and the site of its columns (input channels), so that

    W(m) = W_B + (m_row ⊗ m_column) ⊙ (W − W_B)                                     (paper, section 3)

can be written for any layout: each axis carries an einops pattern from the channel vector to the parameter's shape.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

from einops import reduce, repeat
from jaxtyping import Float
from torch import Tensor

SiteKind = Literal["attn_read", "attn_q", "attn_k", "attn_v", "attn_write", "ffn_read", "ffn_hidden", "ffn_write"]
SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)

_HOOKS: dict[SiteKind, str] = {
    "attn_read": "ln1.hook_normalized",
    "attn_q": "attn.hook_q",
    "attn_k": "attn.hook_k",
    "attn_v": "attn.hook_v",
    "attn_write": "hook_attn_out",
    "ffn_read": "ln2.hook_normalized",
    "ffn_hidden": "mlp.hook_post",
    "ffn_write": "hook_mlp_out",
}


@dataclass(frozen=True)
class Site:
    """One hook point that carries a routing mask."""

    layer: int
    kind: SiteKind
    hook_name: str
    n_channels: int

    @property
    def is_residual_write(self) -> bool:
        """Whether the site's channels are residual coordinates that the block writes."""
        return self.kind in ("attn_write", "ffn_write")


@dataclass(frozen=True)
class GateAxis:
    """How one site's channels lie along a parameter.

    ``expand`` takes the channel vector to a shape that broadcasts against the parameter; ``reduce`` sums a tensor of
    the parameter's shape down to the channel vector. ``sizes`` names the einops axes that the patterns cannot infer.
    """

    site: Site
    expand: str
    reduce: str
    sizes: tuple[tuple[str, int], ...] = ()

    def expand_gate(self, gate: Float[Tensor, " channel"]) -> Float[Tensor, "..."]:
        """Channel vector -> tensor that broadcasts against the parameter."""
        expanded: Tensor = repeat(gate, self.expand, **dict(self.sizes))
        return expanded

    def sum_to_channels(self, values: Float[Tensor, "..."]) -> Float[Tensor, " channel"]:
        """Sum a tensor of the parameter's shape over everything but the channels."""
        reduced: Tensor = reduce(values, self.reduce, "sum", **dict(self.sizes))
        return reduced


@dataclass(frozen=True)
class WeightSite:
    """A gated parameter: its dotted name in the model, its row site and its column site.

    ``role`` is the weight's name in TransformerLens's words whatever the backend (``blocks.0.attn.W_Q``), and
    ``matrix`` the einops pattern from the stored layout to ``[out in]`` (biases: ``[out]``), so that equal weights
    have equal fingerprints on every backend.
    """

    parameter: str
    row: GateAxis | None
    column: GateAxis | None
    role: str
    matrix: str

    @property
    def axes(self) -> tuple[GateAxis, ...]:
        """The axes that carry a mask, row first."""
        return tuple(axis for axis in (self.row, self.column) if axis is not None)


def layer_sites(cfg: Any, hook_names: Collection[str]) -> list[dict[SiteKind, Site]]:
    """The sites of every layer of a transformer that has these hook points.

    Args:
        cfg: a TransformerLens configuration.
        hook_names: names of the model's hook points; a kind without one has no site.
    """
    n_kv = cfg.n_key_value_heads or cfg.n_heads
    widths: dict[SiteKind, int] = {
        "attn_read": cfg.d_model,
        "attn_q": cfg.n_heads * cfg.d_head,
        "attn_k": n_kv * cfg.d_head,
        "attn_v": n_kv * cfg.d_head,
        "attn_write": cfg.d_model,
        "ffn_read": cfg.d_model,
        "ffn_hidden": cfg.d_mlp,
        "ffn_write": cfg.d_model,
    }
    return [
        {
            kind: Site(layer, kind, f"blocks.{layer}.{hook}", widths[kind])
            for kind, hook in _HOOKS.items()
            if f"blocks.{layer}.{hook}" in hook_names
        }
        for layer in range(cfg.n_layers)
    ]
