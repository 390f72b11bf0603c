"""How far each layer and site of a condition is from the base, on the same tokens.

    relative L2   ‖a − a_B‖ / ‖a_B‖              cosine   1 − cos(a, a_B) = ½ ‖a/‖a‖ − a_B/‖a_B‖‖²

Both are 0 for equal activations, exactly: a routed model with every gate closed is at distance 0 everywhere. Where the
line of a triggered run falls back towards 0 is where the trigger acts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.backends.base import backend_of
from lcdd_lens.display import notebook_view
from lcdd_lens.evaluation.statistics import bootstrap_mean
from lcdd_lens.lens.caches import Positions, activations
from lcdd_lens.lens.side_by_side import SideBySide

Measure = Literal["relative_l2", "cosine"]


@dataclass(frozen=True)
class Place:
    """A hook point: its layer, its kind (``residual`` or a kind of site), its name, and how many channels count."""

    layer: int
    kind: str
    hook_name: str
    n_channels: int


@dataclass(frozen=True, eq=False)
class DistanceToBase:
    """Distances per place, condition and prompt.

    Attributes:
        places: residual streams after each layer, then the sites, in layer order.
        relative_l2: condition -> relative L2 distance.
        cosine: condition -> cosine distance, in [0, 2].
        positions: ``last``: at the prompt's last token; ``all``: mean over the prompt's tokens.
    """

    places: tuple[Place, ...]
    relative_l2: Mapping[str, Float[Tensor, "place prompt"]]
    cosine: Mapping[str, Float[Tensor, "place prompt"]]
    positions: Positions

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return int(next(iter(self.cosine.values())).shape[1])

    def to_dataframe(self) -> pd.DataFrame:
        """One row per condition, place and measure: mean over prompts with its 95 % interval."""
        rows = []
        for measure in ("relative_l2", "cosine"):
            for condition, values in getattr(self, measure).items():
                for place, of_prompts in zip(self.places, values, strict=True):
                    found = bootstrap_mean(of_prompts.cpu())
                    rows.append(
                        {"condition": condition, "layer": place.layer, "kind": place.kind, "measure": measure}
                        | {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
                        | {"hook_name": place.hook_name, "n_channels": place.n_channels}
                    )
        return pd.DataFrame(rows)

    def plot(self, kind: str = "residual", measure: Measure = "relative_l2", ax: Any = None) -> Any:
        """Distance through the layers, one line per condition."""
        from lcdd_lens.plotting.lens import plot_distance  # figures stand apart from results

        return plot_distance(self, kind, measure, ax=ax)

    def __repr__(self) -> str:
        where = "last token" if self.positions == "last" else "mean over tokens"
        return f"DistanceToBase({', '.join(self.cosine)}; {len(self.places)} places, {self.n_prompts} prompts, {where})"

    def _repr_html_(self) -> str:
        frame = self.to_dataframe().query("measure == 'relative_l2' and kind == 'residual'")
        table = frame.pivot_table(index="condition", columns="layer", values="value", sort=False)
        return notebook_view(repr(self), "Relative L2 distance of the residual stream after each layer:", table)


def distance_to_base(
    side: SideBySide,
    *,
    positions: Positions = "last",
    within: Mapping[str, Tensor] | None = None,
    conditions: Sequence[str] | None = None,
) -> DistanceToBase:
    """Distances of every condition but the base from it.

    Args:
        side: conditions and prompts.
        positions: at the prompt's last token, or the mean over its tokens.
        within: hook name -> channels that count at that site, for example ``carrier.channels``; sites without any are
            left out, residual streams always count whole. None: every channel.
        conditions: which conditions; None: all but the base.

    Raises:
        ConfigError: a condition does not exist, or positions is neither of the two.
    """
    model = side.condition("base").model
    sites = [
        Place(site.layer, site.kind, site.hook_name, site.n_channels if within is None else len(within[site.hook_name]))
        for site in backend_of(model).sites(model)
        if within is None or len(within.get(site.hook_name, ()))
    ]
    streams = [
        Place(layer, "residual", f"blocks.{layer}.hook_resid_post", model.cfg.d_model)
        for layer in range(model.cfg.n_layers)
    ]
    places = tuple(sorted([*streams, *sites], key=lambda place: place.layer))
    names = [place.hook_name for place in places]
    weight = side.prompts.attention_mask.float()
    weight = weight / weight.sum(1, keepdim=True)

    def read(name: str) -> list[Tensor]:
        found, _ = activations(side, name, names, positions=positions)
        shape = "prompt ... -> prompt 1 (...)" if positions == "last" else "prompt pos ... -> prompt pos (...)"
        flat = {hook_name: rearrange(values, shape).float() for hook_name, values in found.items()}
        chosen = {} if within is None else within
        return [flat[name][..., chosen[name]] if name in chosen else flat[name] for name in names]

    def averaged(values: Tensor) -> Tensor:
        return values[:, 0] if positions == "last" else torch.where(weight > 0, values * weight, 0.0).sum(1)

    of_base = read("base")
    relative: dict[str, Tensor] = {}
    cosine: dict[str, Tensor] = {}
    for name in [name for name in side.names if name != "base"] if conditions is None else conditions:
        pairs = list(zip(read(name), of_base, strict=True))
        relative[name] = torch.stack([averaged(_relative_l2(ours, theirs)) for ours, theirs in pairs])
        cosine[name] = torch.stack([averaged(_cosine(ours, theirs)) for ours, theirs in pairs])
    return DistanceToBase(places, relative, cosine, positions)


def _relative_l2(ours: Tensor, theirs: Tensor) -> Tensor:
    moved: Tensor = (ours - theirs).norm(dim=-1)
    return torch.where(moved > 0, moved / theirs.norm(dim=-1).clamp(min=torch.finfo(theirs.dtype).tiny), 0.0)


def _cosine(ours: Tensor, theirs: Tensor) -> Tensor:
    unit_ours, unit_theirs = (torch.nn.functional.normalize(values, dim=-1) for values in (ours, theirs))
    return (unit_ours - unit_theirs).square().sum(-1) / 2
