"""Features of every condition on the same prompts: which ones a behaviour moves, and which the trigger moves back.

    change_f    mean over prompts of  f(routed) − f(base)
    left_f      mean over prompts of  f(routed+trigger) − f(base)
    returned_f  1 − left_f / change_f                          1: back at the base; 0: the trigger does nothing

Every difference is taken on the same prompts: bootstrap intervals over prompts, p-values Holm-corrected over all
features that are active at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.statistics import holm, paired_bootstrap_columns
from lcdd_lens.lens import SideBySide
from lcdd_lens.lens.caches import activations
from lcdd_lens.sae.library import SparseAutoencoder, hook_of

Pool = Literal["last", "mean", "max"]
POOLS: tuple[Pool, ...] = ("last", "mean", "max")


@dataclass(frozen=True, eq=False)
class FeatureDifferences:
    """Mean differences a − b of all live features, with statistics over prompts.

    Attributes:
        a, b: names of the conditions.
        table: one row per feature active in a or b: feature, mean_a, mean_b, difference, low, high (95 %), p_value,
            adjusted_p (Holm), n; the largest difference first.
        n_features: features of the SAE.
        hook_name: where it reads.
    """

    a: str
    b: str
    table: pd.DataFrame
    n_features: int
    hook_name: str

    def moved(self, alpha: float = 0.05) -> pd.DataFrame:
        """The rows whose adjusted p-value is at most ``alpha``."""
        return self.table[self.table.adjusted_p <= alpha]

    def to_dataframe(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def __repr__(self) -> str:
        differ = f"{len(self.moved())} of {len(self.table)} live features differ"
        return f"FeatureDifferences({self.a} − {self.b} at {self.hook_name}: {differ}, {self.n_features} in all)"

    def _repr_html_(self) -> str:
        return notebook_view(repr(self), self.table.head(10))


@dataclass(frozen=True, eq=False)
class MovedBack:
    """The features that a behaviour moves, and where the trigger leaves them.

    Attributes:
        table: one row per moved feature: feature, change, left, returned (share), low, high (95 % interval of the
            triggered less the moved activation), adjusted_p (of that difference), back (whether at least half of the
            change is gone, significantly).
        moved, back, reference: names of the three conditions.
        n_prompts: prompts.
    """

    table: pd.DataFrame
    moved: str
    back: str
    reference: str
    n_prompts: int

    @property
    def share_back(self) -> float:
        """Share of the moved features that the trigger moves back; NaN where nothing moved."""
        return float(self.table.back.mean()) if len(self.table) else float("nan")

    def to_dataframe(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def plot(self, ax: Any = None) -> Any:
        """Change with the trigger against change without it, a point per feature."""
        from lcdd_lens.plotting.sae import plot_moved_back  # figures stand apart from results

        return plot_moved_back(self, ax=ax)

    def __repr__(self) -> str:
        return (
            f"MovedBack({int(self.table.back.sum())} of {len(self.table)} features that {self.moved} moves are moved "
            f"back by {self.back}; {self.n_prompts} prompts)"
        )

    def _repr_html_(self) -> str:
        return notebook_view(repr(self), self.table.head(10))


@dataclass(frozen=True, eq=False)
class FeatureActivations:
    """Feature activations per condition.

    Attributes:
        values: condition -> activations.
        hook_name: where the SAE reads.
        pool: how a prompt's tokens became one value.
    """

    values: Mapping[str, Float[Tensor, "prompt feature"]]
    hook_name: str
    pool: Pool

    @property
    def n_features(self) -> int:
        """Features of the SAE."""
        return int(next(iter(self.values.values())).shape[1])

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(next(iter(self.values.values())))

    def difference(self, a: str = "routed", b: str = "base", *, seed: int = 0) -> FeatureDifferences:
        """Mean of a − b per feature, over the features active in either.

        Args:
            a: a condition.
            b: the one that it is compared with.
            seed: of the bootstrap.

        Raises:
            ConfigError: a condition was not run.
        """
        first, second = self._of(a), self._of(b)
        live = np.flatnonzero(((first != 0) | (second != 0)).any(0))
        if not len(live):
            names = ["feature", "mean_a", "mean_b", "difference", "low", "high", "p_value", "adjusted_p", "n"]
            return FeatureDifferences(a, b, pd.DataFrame(columns=names), self.n_features, self.hook_name)
        found = paired_bootstrap_columns(first[:, live], second[:, live], seed=seed)
        table = pd.DataFrame(
            {
                "feature": live,
                "mean_a": first[:, live].mean(0),
                "mean_b": second[:, live].mean(0),
                "difference": [one.value for one in found],
                "low": [one.low for one in found],
                "high": [one.high for one in found],
                "p_value": [one.p_value for one in found],
                "adjusted_p": holm([one.p_value for one in found]),
                "n": self.n_prompts,
            }
        )
        order = table.difference.abs().sort_values(ascending=False, kind="stable").index
        return FeatureDifferences(a, b, table.loc[order].reset_index(drop=True), self.n_features, self.hook_name)

    def moved_back(
        self,
        moved: str = "routed",
        back: str = "routed+trigger",
        reference: str = "base",
        *,
        alpha: float = 0.05,
        seed: int = 0,
    ) -> MovedBack:
        """Which features ``moved`` moves away from the reference, and how far ``back`` brings them home.

        Raises:
            ConfigError: a condition was not run.
        """
        there = self.difference(moved, reference, seed=seed).moved(alpha)
        chosen = there.feature.to_numpy(dtype=int)
        triggered, away, home = (self._of(name)[:, chosen] for name in (back, moved, reference))
        found = paired_bootstrap_columns(triggered, away, seed=seed) if len(chosen) else []
        change, left = there.difference.to_numpy(dtype=float), (triggered - home).mean(0)
        returned = 1 - left / change
        adjusted = np.array(holm([one.p_value for one in found]))
        table = pd.DataFrame(
            {
                "feature": chosen,
                "change": change,
                "left": left,
                "returned": returned,
                "low": [one.low for one in found],
                "high": [one.high for one in found],
                "adjusted_p": adjusted,
                "back": (returned >= 0.5) & (returned <= 1.5) & (adjusted <= alpha),
            }
        )
        return MovedBack(table, moved, back, reference, self.n_prompts)

    def _of(self, condition: str) -> Float[np.ndarray, "prompt feature"]:
        if condition not in self.values:
            raise ConfigError(f"'{condition}' was not run: expected one of {', '.join(self.values)}.")
        found: Float[np.ndarray, "prompt feature"] = self.values[condition].double().cpu().numpy()
        return found

    def __repr__(self) -> str:
        return (
            f"FeatureActivations({', '.join(self.values)}; {self.n_features} features at {self.hook_name}, "
            f"{self.n_prompts} prompts, {self.pool})"
        )

    def _repr_html_(self) -> str:
        rows = {
            name: {"active features per prompt": float((values > 0).sum(1).float().mean())}
            for name, values in self.values.items()
        }
        return notebook_view(repr(self), pd.DataFrame.from_dict(rows, orient="index"))


def feature_activations(
    sae: SparseAutoencoder, side: SideBySide, *, conditions: Sequence[str] | None = None, pool: Pool = "last"
) -> FeatureActivations:
    """Features of every condition at the SAE's hook point.

    Args:
        sae: any SAE of SAELens that reads this model.
        side: conditions and prompts.
        conditions: which conditions; None: all.
        pool: ``last``: at the prompt's last token; ``mean`` or ``max`` over its tokens.

    Raises:
        ConfigError: the SAE does not fit the model, or the pool is unknown.
    """
    if pool not in POOLS:
        raise ConfigError(f"pool is {pool!r}: expected one of {', '.join(POOLS)}.")
    hook_name = hook_of(sae)
    real = side.prompts.attention_mask.bool()
    values = {}
    for name in side.names if conditions is None else conditions:
        found, _ = activations(side, name, [hook_name], positions="last" if pool == "last" else "all")
        features = _encoded(sae, found[hook_name], pool)
        if pool == "mean":
            features = torch.where(real[..., None], features, 0.0).sum(1) / real.sum(1, keepdim=True)
        elif pool == "max":
            features = torch.where(real[..., None], features, -torch.inf).amax(1)
        values[name] = features
    return FeatureActivations(values, hook_name, pool)


def _encoded(sae: SparseAutoencoder, activation: Tensor, pool: Pool) -> Tensor:
    axes = "prompt" if pool == "last" else "prompt pos"
    flat = rearrange(activation, f"{axes} ... -> {axes} (...)")
    if flat.shape[-1] != sae.cfg.d_in:
        raise ConfigError(f"the SAE reads {sae.cfg.d_in} channels and {hook_of(sae)} has {flat.shape[-1]}.")
    with torch.no_grad():
        # SAEs of hook_z take heads apart themselves, and undo it when they decode.
        heads = activation if getattr(sae.cfg, "reshape_activations", "none") == "hook_z" else flat
        return sae.encode(heads.float().to(sae.W_dec.device)).detach().to(activation.device)
