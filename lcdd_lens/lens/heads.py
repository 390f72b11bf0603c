"""Which attention heads a carrier touches."""

import pandas as pd
from torch import bincount

from lcdd_lens.carrier import Carrier
from lcdd_lens.errors import ConfigError

_KINDS = ("attn_q", "attn_k", "attn_v")


def carrier_heads(carrier: Carrier) -> pd.DataFrame:
    """Open query, key and value channels per head, heads without any left out; the most touched first.

    Key and value channels are counted for the key/value head that they belong to: under grouped-query attention head h
    reads key/value head h // group.

    Returns:
        Columns layer, kind, head, n_open, of (channels of the head).

    Raises:
        ConfigError: the carrier does not know its dimensions (it was made by set algebra without them).
    """
    d_head = carrier.dimensions.get("d_head")
    if d_head is None:
        raise ConfigError("the carrier does not know the model's d_head: expected one that was trained or loaded.")
    rows = [
        {"layer": site.layer, "kind": site.kind, "head": head, "n_open": int(count), "of": d_head}
        for site in carrier.sites
        if site.kind in _KINDS
        for head, count in enumerate(bincount(carrier.channels[site.hook_name] // d_head).tolist())
        if count
    ]
    frame = pd.DataFrame(rows, columns=["layer", "kind", "head", "n_open", "of"])
    return frame.sort_values("n_open", ascending=False, kind="stable", ignore_index=True)
