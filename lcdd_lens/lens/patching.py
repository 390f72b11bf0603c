"""Activation patching between two conditions, restricted to the carrier's channels.

    effect = D(target run with a_c ← the source run's a_c for c in a set of channels) − D(target run)
    share  = mean effect / mean (D(source run) − D(target run))

D is the logit of the behaviour's first token less that of the base's. Share 1: these channels at this place alone turn
the target's answer into the source's. The set is the carrier's channels at a site, or at all sites of a layer; beside
it stand as many random channels of the same sites, drawn several times, and all channels there. (In the first layer
that fine-tuning touches, channels outside the carrier read and write with the base's weights and are the base's
already: there random channels restore only what they share with the carrier, and the control says little.)

``transformer_lens.patching`` sweeps whole hook points over positions. This is the same intervention on some channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lcdd_lens.backends.base import backend_of
from lcdd_lens.backends.sites import Site
from lcdd_lens.carrier import Carrier
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.identity import random_carrier
from lcdd_lens.evaluation.statistics import bootstrap_mean
from lcdd_lens.lens.caches import Positions, activations
from lcdd_lens.lens.side_by_side import SideBySide

SETS = ("carrier", "random", "all")
WHOLE_LAYER = "layer"
"""Kind of the places that join all sites of a layer."""
_FLAT = "batch pos ... -> batch pos (...)"


@dataclass(frozen=True)
class PatchPlace:
    """A site, or all sites of a layer (``kind == "layer"``), and how many of its channels the carrier has."""

    layer: int
    kind: str
    hook_names: tuple[str, ...]
    n_carrier: int
    n_channels: int


@dataclass(frozen=True, eq=False)
class PatchSweep:
    """Effects of patching, per place, set of channels, draw and prompt.

    Attributes:
        source: the condition whose activations are taken.
        target: the condition that they are put into.
        places: every site, and every layer as a whole.
        effects: set -> change of the logit difference; NaN where the carrier has no channel.
        source_difference: D of the source run.
        target_difference: D of the target run.
        positions: ``last``: patched at the prompt's last token; ``all``: at all its tokens.
    """

    source: str
    target: str
    places: tuple[PatchPlace, ...]
    effects: Mapping[str, Float[Tensor, "place draw prompt"]]
    source_difference: Float[Tensor, " prompt"]
    target_difference: Float[Tensor, " prompt"]
    positions: Positions

    @property
    def gap(self) -> float:
        """Mean difference of D between source and target: what a complete patch would move."""
        return float((self.source_difference - self.target_difference).mean())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per place and set: mean effect (logits) with its 95 % interval over prompts, and share of the gap.

        ``lowest`` and ``highest`` are the shares of the extreme draws.
        """
        rows = []
        for channels, effects in self.effects.items():
            for place, effect in zip(self.places, effects.double().cpu(), strict=True):
                if bool(effect.isnan().any()):
                    continue
                found, draws = bootstrap_mean(effect.mean(0)), effect.mean(1) / self.gap
                rows.append(
                    {
                        "layer": place.layer,
                        "kind": place.kind,
                        "set": channels,
                        "n_patched": place.n_channels if channels == "all" else place.n_carrier,
                        "effect": found.value,
                        "low": found.low,
                        "high": found.high,
                        "share": found.value / self.gap,
                        "lowest": float(draws.min()),
                        "highest": float(draws.max()),
                        "n": found.n,
                    }
                )
        return pd.DataFrame(rows)

    def plot(self, ax: Any = None) -> Any:
        """Share of the gap per place: the carrier's channels, random ones, all."""
        from lcdd_lens.plotting.lens import plot_patching  # figures stand apart from results

        return plot_patching(self, ax=ax)

    def __repr__(self) -> str:
        n = len(self.target_difference)
        return (
            f"PatchSweep({self.source} into {self.target}; {len(self.places)} places, gap {self.gap:.3g}, {n} prompts)"
        )

    def _repr_html_(self) -> str:
        frame = self.to_dataframe()
        table = frame.pivot_table(index="layer", columns=["kind", "set"], values="share", sort=False)
        return notebook_view(repr(self), "Share of the gap that each patch moves:", table)


def patch_sweep(
    side: SideBySide,
    source: str = "base",
    target: str = "routed",
    *,
    positions: Positions = "all",
    n_random: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> PatchSweep:
    """Patch every site, and every layer as a whole, from one condition into another.

    A site is replaced at all its firings (TransformerLens normalises once for each of queries, keys and values).

    Args:
        side: conditions and prompts.
        source: where activations are taken from.
        target: where they are put.
        positions: ``all``: at all tokens of the prompt; ``last``: at its last token only.
        n_random: draws of random channels with the carrier's counts at every site.
        seed: of those draws.
        progress: show a progress bar.

    Raises:
        ConfigError: a condition does not exist, source and target are one, or n_random is below 1.
    """
    if source == target or n_random < 1:
        raise ConfigError(f"patching {source} into {target} with {n_random} draws: expected two conditions, 1 or more.")
    model = side.condition(target).model
    sites = {site.hook_name: site for site in backend_of(model).sites(model)}
    places = _places(sites, side.carrier)
    taken, source_logits = activations(side, source, list(sites), positions="all")
    flat = {name: rearrange(values, _FLAT) for name, values in taken.items()}
    _, target_logits = activations(side, target, ())
    base_difference, own_difference = side.logit_difference(source_logits), side.logit_difference(target_logits)
    everything = {name: torch.arange(site.n_channels) for name, site in sites.items()}
    choices: dict[str, list[Mapping[str, Tensor]]] = {
        "carrier": [side.carrier.channels],
        "random": [random_carrier(side.carrier, stratified=True, seed=seed + i).channels for i in range(n_random)],
        "all": [everything],
    }
    effects = {
        name: torch.full((len(places), len(draws), side.n_prompts), torch.nan) for name, draws in choices.items()
    }
    jobs = [
        (name, draw, channels, number, place)
        for name, draws in choices.items()
        for draw, channels in enumerate(draws)
        for number, place in enumerate(places)
        if name == "all" or place.n_carrier
    ]
    for name, draw, channels, number, place in tqdm(jobs, desc="patching", disable=not progress, leave=False):
        hooks = {hook: channels[hook] for hook in place.hook_names if len(channels.get(hook, ()))}
        patched = _patched_logits(side, target, flat, hooks, positions)
        effects[name][number, draw] = (side.logit_difference(patched) - own_difference).float().cpu()
    return PatchSweep(source, target, places, effects, base_difference.cpu(), own_difference.cpu(), positions)


def _patched_logits(
    side: SideBySide, target: str, source: Mapping[str, Tensor], channels: Mapping[str, Tensor], positions: Positions
) -> Float[Tensor, "prompt d_vocab"]:
    columns = side.columns(target)
    real = side.prompts.attention_mask.bool()
    if positions == "last":
        real = torch.zeros_like(real)
        real[:, -1] = True
    logits = []
    with side.running(target) as model:
        for rows in side.batches():
            hooks = [
                (name, _write(source[name][rows][..., index], index, columns[rows], real[rows]))
                for name, index in channels.items()
            ]
            with model.hooks(fwd_hooks=hooks):
                logits.append(side.forward(model, rows)[:, -1])
    return torch.cat(logits)


def _write(
    values: Float[Tensor, "batch pos channel"],
    channels: Int[Tensor, " channel"],
    columns: Int[Tensor, "batch pos"],
    chosen: Tensor,
) -> Callable[..., Tensor]:
    row, token = chosen.nonzero(as_tuple=True)
    column = columns[row, token]
    place = channels.to(values.device)

    def hook_fn(activation: Tensor, hook: Any) -> Tensor:
        flat = rearrange(activation, _FLAT).clone()
        flat[row[:, None], column[:, None], place] = values[row, token].to(flat.dtype)
        return flat.reshape(activation.shape)

    return hook_fn


def _places(sites: Mapping[str, Site], carrier: Carrier) -> tuple[PatchPlace, ...]:
    def place(layer: int, kind: str, chosen: Sequence[Site]) -> PatchPlace:
        names = tuple(site.hook_name for site in chosen)
        n_carrier = sum(len(carrier.channels.get(name, ())) for name in names)
        return PatchPlace(layer, kind, names, n_carrier, sum(site.n_channels for site in chosen))

    def found() -> Iterator[PatchPlace]:
        for layer in sorted({site.layer for site in sites.values()}):
            of_layer = [site for site in sites.values() if site.layer == layer]
            yield from (place(layer, site.kind, [site]) for site in of_layer)
            yield place(layer, WHOLE_LAYER, of_layer)

    return tuple(found())
