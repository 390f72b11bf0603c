"""The logit lens: what the reply's first token would be if the model ended after a layer.

    lens_l = unembed(final norm(residual stream after layer l))        at the prompt's last token

(nostalgebraist, "interpreting GPT: the logit lens", 2020). After the last layer this is the model's own answer exactly:
the residual stream goes through the model's own last steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcdd_lens.display import notebook_view
from lcdd_lens.evaluation.statistics import bootstrap_mean
from lcdd_lens.lens.caches import activations
from lcdd_lens.lens.side_by_side import SideBySide

Token = Literal["behaviour", "base"]
TOKENS: tuple[Token, ...] = ("behaviour", "base")


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What each layer would answer, per condition and prompt.

    Attributes:
        log_probs: token -> condition -> log-probability of the behaviour's or the base's first token (nats), after the
            embedding (row 0) and after each layer.
        top: condition -> the likeliest token there.
        behaviour_tokens: the behaviour's first token per prompt.
        base_tokens: the base's first token per prompt.
    """

    log_probs: Mapping[str, Mapping[str, Float[Tensor, "depth prompt"]]]
    top: Mapping[str, Int[Tensor, "depth prompt"]]
    behaviour_tokens: Int[Tensor, " prompt"]
    base_tokens: Int[Tensor, " prompt"]

    @property
    def depths(self) -> tuple[str, ...]:
        """Names of the rows: ``embed``, then the layers."""
        rows = len(next(iter(self.top.values())))
        return ("embed", *map(str, range(rows - 1)))

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self.base_tokens)

    def is_top(self, condition: str, token: Token) -> Bool[Tensor, "depth prompt"]:
        """Where that token is the likeliest one."""
        wanted = self.behaviour_tokens if token == "behaviour" else self.base_tokens
        return self.top[condition] == wanted.to(self.top[condition].device)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per condition, depth and token: mean log-probability with its interval, share of prompts on top."""
        rows = []
        for token, by_condition in self.log_probs.items():
            for condition, values in by_condition.items():
                on_top = self.is_top(condition, token).float().mean(1)  # type: ignore[arg-type]
                for depth, name in enumerate(self.depths):
                    found = bootstrap_mean(values[depth].cpu())
                    rows.append(
                        {
                            "condition": condition,
                            "depth": name,
                            "token": token,
                            "log_prob": found.value,
                            "low": found.low,
                            "high": found.high,
                            "top_share": float(on_top[depth]),
                            "n": found.n,
                        }
                    )
        return pd.DataFrame(rows)

    def plot(self, token: Token = "behaviour", ax: Any = None) -> Any:
        """Log-probability of a token through the layers, one line per condition."""
        from lcdd_lens.plotting.lens import plot_logit_lens  # figures stand apart from results

        return plot_logit_lens(self, token, ax=ax)

    def __repr__(self) -> str:
        return f"LogitLens({', '.join(self.top)}; {len(self.depths)} depths, {self.n_prompts} prompts)"

    def _repr_html_(self) -> str:
        frame = self.to_dataframe().query("token == 'behaviour'")
        table = frame.pivot_table(index="condition", columns="depth", values="log_prob", sort=False)
        return notebook_view(repr(self), "Mean log-probability (nats) of the behaviour's first token:", table)


def logit_lens(side: SideBySide, *, conditions: Sequence[str] | None = None) -> LogitLens:
    """The logit lens of every condition at the prompt's last token.

    Args:
        side: conditions and prompts.
        conditions: which conditions; None: all.
    """
    log_probs: dict[str, dict[str, Tensor]] = {token: {} for token in TOKENS}
    top = {}
    for name in side.names if conditions is None else conditions:
        n_layers = side.condition(name).model.cfg.n_layers
        hooks = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(n_layers))]
        residuals, _ = activations(side, name, hooks)
        logits = torch.stack([unembedded(side, name, residuals[hook_name]) for hook_name in hooks])
        log_p = logits.float().log_softmax(-1)
        top[name] = logits.argmax(-1)
        for token, ids in (("behaviour", side.behaviour_tokens), ("base", side.base_tokens)):
            log_probs[token][name] = log_p.gather(2, ids.expand(len(hooks), -1)[..., None]).squeeze(-1)
    return LogitLens(log_probs, top, side.behaviour_tokens, side.base_tokens)


def unembedded(side: SideBySide, name: str, residual: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt vocab"]:
    """A residual stream through the model's own last steps: final norm, unembedding, and a soft cap if it has one."""
    with side.running(name) as model:
        logits: Tensor = model(residual[:, None], start_at_layer=model.cfg.n_layers, return_type="logits")
    return logits[:, 0]
