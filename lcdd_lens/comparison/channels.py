"""Channel by channel: what every method says of the channels that any of the compared sets has.

Pages and notebooks look up single channels with it. Of every set the ``MOST`` first channels are kept, so that the
table of a large model stays small: all of them where sets are smaller than that.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lcdd_lens.attribution.scores import ChannelScores
from lcdd_lens.carrier import Carrier

MOST = 400
"""Channels kept of every set, its first."""
_HEADED = ("attn_q", "attn_k", "attn_v")


def channel_table(
    carrier: Carrier, sets: Mapping[str, Bool[Tensor, " gate"]], scores: Mapping[str, ChannelScores]
) -> dict[str, Any]:
    """``{"methods", "sites": {hook name: {"layer", "kind", "n", "head", "channels", "theta", "sets", "scores",
    "ranks"}}}``.

    ``sites``: every site, with its channels that some set has, ascending. ``theta``: the carrier's own scores of them,
    if it has any. ``sets``: set -> places in ``channels`` of its members. ``scores`` and ``ranks``: one row per
    channel, one column per method; rank 1 is the most important of all channels of the model.

    Args:
        carrier: what LCDD found.
        sets: the carrier and every method's first channels.
        scores: method -> scores of all channels.
    """
    ranks = {name: _ranks(found.order()) for name, found in scores.items()}
    own = torch.cat([carrier.scores[s.hook_name] for s in carrier.sites]) if carrier.scores else None
    first = {name: _first(flags, ranks.get(name), own) for name, flags in sets.items()}
    known = torch.stack(list(first.values())).any(0)
    flat = {name: found.flat() for name, found in scores.items()}
    sites: dict[str, Any] = {}
    start = 0
    for site in carrier.sites:
        here = slice(start, start + site.n_channels)
        start += site.n_channels
        channels = known[here].nonzero().squeeze(-1)
        sites[site.hook_name] = {
            "layer": site.layer,
            "kind": site.kind,
            "n": site.n_channels,
            "head": carrier.dimensions.get("d_head") if site.kind in _HEADED else None,
            "channels": channels.tolist(),
            "theta": [] if own is None else [_short(value) for value in own[here][channels].tolist()],
            "sets": {
                name: flags[here][channels].nonzero().squeeze(-1).tolist()
                for name, flags in first.items()
                if bool(flags[here].any())
            },
            "scores": [[_short(float(flat[name][here][channel])) for name in scores] for channel in channels],
            "ranks": [[int(ranks[name][here][channel]) for name in scores] for channel in channels],
        }
    return {"methods": list(scores), "sites": sites}


def _ranks(order: Int[Tensor, " gate"]) -> Int[Tensor, " gate"]:
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1)
    return ranks


def _first(flags: Bool[Tensor, " gate"], ranks: Tensor | None, own: Tensor | None) -> Bool[Tensor, " gate"]:
    """The first ``MOST`` members of a set, by its method's rank, or by the carrier's own scores."""
    members = flags.nonzero().squeeze(-1)
    if len(members) <= MOST:
        return flags
    keys = -own[members] if ranks is None and own is not None else members if ranks is None else ranks[members]
    kept = torch.zeros_like(flags)
    kept[members[keys.argsort(stable=True)[:MOST]]] = True
    return kept


def _short(value: float) -> float | None:
    return float(f"{value:.3g}") if value == value else None
