"""A gated MLP whose gate and up projections have biases.

TransformerLens's gated MLP adds its only inner bias after the product, which no checkpoint does. Llama with
``mlp_bias`` computes

    hook_post = act(x · W_gate + b_gate) ⊙ (x · W_in + b_in)        hook_mlp_out = hook_post · W_out + b_out

This module computes that under the same hook names.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedTransformerConfig
from transformer_lens.components import GatedMLP


class BiasedGatedMLP(GatedMLP):  # type: ignore[misc]
    """Gated MLP with ``b_gate [d_mlp]`` and ``b_in [d_mlp]`` added before the product."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__(cfg)
        self.b_gate = nn.Parameter(torch.zeros(self.d_mlp, dtype=cfg.dtype))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The MLP's output before it is added to the residual stream."""
        gate = self.hook_pre(nn.functional.linear(x, self.W_gate.T.contiguous(), self.b_gate))
        linear = self.hook_pre_linear(nn.functional.linear(x, self.W_in.T.contiguous(), self.b_in))
        post = self.hook_post(self.act_fn(gate) * linear)
        return nn.functional.linear(post, self.W_out.T.contiguous(), self.b_out)
