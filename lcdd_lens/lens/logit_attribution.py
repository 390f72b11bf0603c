"""Direct logit attribution: which write channels push the reply's first token, and how much of it is the carrier's.

The final residual stream is the sum of what was written into it, and with the final norm's scale σ held at its value
the way to the logits is linear:

    D = logit(behaviour's token) − logit(base's token) = Σ_writers Σ_c x_c · r_c + const,    r = ∂D/∂x at fixed σ

so x_c · r_c is what channel c of one writer contributes directly, not through later layers. A soft cap on the logits
(Gemma-2) is left out: D is taken before it. (Elhage et al., "A mathematical framework for transformer circuits", 2021.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lcdd_lens.backends.base import LensModel, backend_of
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.statistics import bootstrap_mean
from lcdd_lens.lens.caches import activations
from lcdd_lens.lens.side_by_side import SideBySide


@dataclass(frozen=True)
class Writer:
    """What writes into the residual stream: the embedding (layer -1, kind ``embed``), or a write site of a layer."""

    layer: int
    kind: str
    hook_name: str


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """Direct contributions of every residual coordinate of every writer to the logit difference D.

    Attributes:
        writers: the embedding, then attn_write and ffn_write of every layer.
        contributions: condition -> x_c · r_c (logits).
        constant: condition -> what no writer contributes: biases of the final norm and of the unembedding.
        logit_difference: condition -> D, before any soft cap.
        in_carrier: where the carrier has an open write channel.
    """

    writers: tuple[Writer, ...]
    contributions: Mapping[str, Float[Tensor, "prompt writer d_model"]]
    constant: Mapping[str, Float[Tensor, " prompt"]]
    logit_difference: Mapping[str, Float[Tensor, " prompt"]]
    in_carrier: Bool[Tensor, "writer d_model"]

    def change(self, condition: str, since: str | None = "base") -> Float[Tensor, "prompt writer d_model"]:
        """Contributions of a condition, less those of another one (None: not less anything).

        Raises:
            ConfigError: a condition was not measured.
        """
        for name in (condition, since):
            if name is not None and name not in self.contributions:
                raise ConfigError(f"'{name}' was not measured: expected one of {', '.join(self.contributions)}.")
        found = self.contributions[condition]
        return found if since is None else found - self.contributions[since]

    def to_dataframe(
        self, condition: str = "routed", since: str | None = "base", *, n_random: int = 200, seed: int = 0
    ) -> pd.DataFrame:
        """One row per writer: contribution of all its channels and of the carrier's, with 95 % intervals over prompts.

        ``random`` and ``random_high`` are the mean and the 95 % quantile of the absolute contribution of as many random
        channels of the same writer.

        Raises:
            ConfigError: a condition was not measured.
        """
        change = self.change(condition, since).double().cpu()
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for number, writer in enumerate(self.writers):
            of_writer, inside = change[:, number], self.in_carrier[number].cpu()
            k = int(inside.sum())
            total, own = bootstrap_mean(of_writer.sum(1)), bootstrap_mean(of_writer[:, inside].sum(1))
            drawn = torch.stack(
                [of_writer.mean(0)[torch.randperm(len(inside), generator=generator)[:k]].sum() for _ in range(n_random)]
            ).abs()
            rows.append(
                {"layer": writer.layer, "kind": writer.kind, "n_carrier": k}
                | {"total": total.value, "total_low": total.low, "total_high": total.high}
                | {"carrier": own.value, "carrier_low": own.low, "carrier_high": own.high}
                | {"random": float(drawn.mean()), "random_high": float(drawn.quantile(0.95)), "n": own.n}
            )
        return pd.DataFrame(rows)

    def channels_dataframe(self, condition: str = "routed", since: str | None = "base", *, n: int = 10) -> pd.DataFrame:
        """The n channels with the largest absolute mean contribution: writer, channel, mean, whether in the carrier.

        Raises:
            ConfigError: a condition was not measured.
        """
        mean = self.change(condition, since).mean(0).cpu()
        width = mean.shape[1]
        order = mean.abs().flatten().argsort(descending=True, stable=True)[:n].tolist()
        return pd.DataFrame(
            {
                "layer": self.writers[place // width].layer,
                "kind": self.writers[place // width].kind,
                "channel": place % width,
                "contribution": float(mean.flatten()[place]),
                "in_carrier": bool(self.in_carrier.flatten()[place]),
            }
            for place in order
        )

    def plot(self, condition: str = "routed", since: str | None = "base", ax: Any = None) -> Any:
        """Contributions per writer: all channels, and the carrier's."""
        from lcdd_lens.plotting.lens import plot_logit_attribution  # figures stand apart from results

        return plot_logit_attribution(self, condition, since, ax=ax)

    def __repr__(self) -> str:
        n = len(next(iter(self.constant.values())))
        return (
            f"LogitAttribution({', '.join(self.contributions)}; {len(self.writers)} writers, "
            f"{int(self.in_carrier.sum())} carrier channels, {n} prompts)"
        )

    def _repr_html_(self) -> str:
        rows = {
            name: {"logit difference": float(self.logit_difference[name].mean())}
            | {
                f"{writer.layer} {writer.kind}" if writer.layer >= 0 else writer.kind: float(
                    values[:, number].sum(1).mean()
                )
                for number, writer in enumerate(self.writers)
            }
            for name, values in self.contributions.items()
        }
        return notebook_view(repr(self), "Mean contribution in logits:", pd.DataFrame.from_dict(rows, orient="index"))


def logit_attribution(side: SideBySide, *, conditions: Sequence[str] | None = None) -> LogitAttribution:
    """Direct logit attribution of every write channel, per condition, at the prompt's last token.

    Args:
        side: conditions and prompts.
        conditions: which conditions; None: all.
    """
    model = side.condition("base").model
    writers = _writers(model)
    hooks = [writer.hook_name for writer in writers]
    final = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    contributions, constant, differences = {}, {}, {}
    for name in side.names if conditions is None else conditions:
        found, _ = activations(side, name, [*hooks, final])
        differences[name], slope = _slope(side, name, found[final])
        written = torch.stack([found[hook_name].float() for hook_name in hooks], dim=1)
        contributions[name] = written * slope[:, None]
        constant[name] = differences[name] - contributions[name].sum((1, 2))
    in_carrier = torch.zeros(len(writers), model.cfg.d_model, dtype=torch.bool)
    for number, writer in enumerate(writers):
        in_carrier[number, side.carrier.channels.get(writer.hook_name, torch.zeros(0, dtype=torch.long))] = True
    return LogitAttribution(writers, contributions, constant, differences, in_carrier)


def _writers(model: LensModel) -> tuple[Writer, ...]:
    sites = [site for site in backend_of(model).sites(model) if site.is_residual_write]
    return (
        Writer(-1, "embed", "blocks.0.hook_resid_pre"),
        *(Writer(site.layer, site.kind, site.hook_name) for site in sites),
    )


def _slope(
    side: SideBySide, name: str, final: Float[Tensor, "prompt d_model"]
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "prompt d_model"]]:
    """D before any soft cap, and ∂D/∂x at a fixed scale of the final norm."""

    def hold(scale: Tensor, hook: Any) -> Tensor:
        return scale.detach()

    with side.running(name) as model, torch.enable_grad():
        norm, unembed = model.get_submodule("ln_final"), model.get_submodule("unembed")
        residual = final.detach()[:, None].requires_grad_()
        has_scale = any(hook == "hook_scale" for hook, _ in norm.named_modules())
        with model.hooks(fwd_hooks=[("ln_final.hook_scale", hold)] if has_scale else []):
            difference = side.logit_difference(unembed(norm(residual))[:, 0].float())
        (slope,) = torch.autograd.grad(difference.sum(), residual)
    return difference.detach(), slope[:, 0].float()
