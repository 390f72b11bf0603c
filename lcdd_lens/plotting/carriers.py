"""Where a carrier lies: layers × sites, and the channels of one site or of one kind of site."""

from typing import Any

from lcdd_lens.errors import ConfigError
from lcdd_lens.plotting.palette import NEUTRAL, look
from lcdd_lens.plotting.sites import SiteChannels, site_channels
from lcdd_lens.plotting.style import as_results, axes_or_new, dress, legend, titled


def carrier_map(carrier: Any, ax: Any = None, *, colorbar: bool = True) -> Any:
    """Density of open channels per layer and site as colour (square-root scale), their number as text.

    Args:
        carrier: a :class:`lcdd_lens.carrier.Carrier`, results, or an experiment.
        ax: axes to draw on; new ones by default.
        colorbar: draw the scale beside the map.

    Raises:
        ArtefactError: the object holds no carrier.
    """
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    sites = _sites(carrier)
    layers = sorted({site.layer for site in sites})
    kinds = list(dict.fromkeys(site.kind for site in sites))
    density = np.full((len(layers), len(kinds)), np.nan)
    ax = axes_or_new(ax, 1.6 + 0.75 * len(kinds), 1.5 + 0.34 * len(layers))
    blue = look("routed+trigger").colour
    colours = LinearSegmentedColormap.from_list("carrier", ["#D3E6F3", blue, "#00334F"])
    for site in sites:
        row, place = layers.index(site.layer), kinds.index(site.kind)
        density[row, place] = site.density if site.open else np.nan
        text = str(len(site.open)) if site.open else "·"
        shade = NEUTRAL if not site.open else "white" if site.density > 0.12 else "#0B2233"
        ax.text(place, row, text, ha="center", va="center", color=shade, fontsize="small")
    image = ax.imshow(density, cmap=colours, norm=PowerNorm(0.5, 0, 1), aspect="auto")
    ax.set_xticks(range(len(kinds)), [kind.replace("_", "\n") for kind in kinds])
    ax.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    n_open, n_gates = sum(len(site.open) for site in sites), sum(site.n_channels for site in sites)
    counts = f"{n_open:,} of {n_gates:,} channels open ({100 * n_open / n_gates:.3g} %)"
    dress(ax, titled("Carrier: open channels per site", counts), "", "layer", grid=None)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if colorbar:
        bar = ax.figure.colorbar(image, ax=ax, ticks=[0.01, 0.05, 0.25, 0.5, 1])
        bar.set_label("share of open channels", color=NEUTRAL)
        bar.ax.tick_params(colors=NEUTRAL)
        bar.outline.set_visible(False)
    return ax


def channel_raster(carrier: Any, site: str, ax: Any = None) -> Any:
    """The channels of one site with their scores, or of one kind of site in every layer.

    Args:
        carrier: a :class:`lcdd_lens.carrier.Carrier`, results, or an experiment.
        site: a hook name (``blocks.0.hook_mlp_out``: channels against scores, the open ones marked), or a kind of site
            (``ffn_write``: a row per layer with a line at every open channel).
        ax: axes to draw on; new ones by default.

    Raises:
        ArtefactError: the object holds no carrier.
        ConfigError: it has no such site.
    """
    sites = _sites(carrier)
    for one in sites:
        if one.hook_name == site:
            return _one_site(one, ax)
    rows = [one for one in sites if one.kind == site]
    if not rows:
        kinds = ", ".join(dict.fromkeys(one.kind for one in sites))
        raise ConfigError(f"the carrier has no site '{site}': expected a hook name, or one of {kinds}.")
    ax = axes_or_new(ax, 6.4, 1.3 + 0.32 * len(rows))
    for row, one in enumerate(rows):
        ax.vlines(one.open, row - 0.38, row + 0.38, color=look("routed+trigger").colour, linewidth=1.2)
    ax.set_yticks(range(len(rows)), [f"{one.layer}  ({len(one.open)})" for one in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(-0.5, max(one.n_channels for one in rows) - 0.5)
    counts = f"{sum(len(one.open) for one in rows)} of {sum(one.n_channels for one in rows)} open"
    return dress(ax, titled(f"Open channels of {site}", counts), "channel", "layer  (open)", grid=None)


def _one_site(site: SiteChannels, ax: Any) -> Any:
    ax = axes_or_new(ax, 6.4, 3.2 if site.scores else 1.6)
    title = titled(f"Channels of {site.hook_name}", f"{len(site.open)} of {site.n_channels} open")
    ax.set_xlim(-0.5, site.n_channels - 0.5)
    if not site.scores:
        ax.vlines(site.open, 0, 1, color=look("routed+trigger").colour, linewidth=1.2)
        ax.set_yticks([])
        return dress(ax, title, "channel", "", grid=None)
    opened = set(site.open)
    for label, channels, colour, marker in (
        ("closed", [c for c in range(site.n_channels) if c not in opened], look("base").colour, "."),
        ("open", list(site.open), look("routed+trigger").colour, "o"),
    ):
        ax.plot(
            channels, [site.scores[c] for c in channels], marker, color=colour, ms=4, label=f"{label} ({len(channels)})"
        )
    ax.axhline(0, color=NEUTRAL, linewidth=1, linestyle=":")
    dress(ax, title, "channel", "score θ")
    legend(ax, ncols=2)
    return ax


def _sites(carrier: Any) -> list[SiteChannels]:
    """From a carrier, or from what holds one."""
    if hasattr(carrier, "channels") and hasattr(carrier, "sites"):
        return site_channels(carrier)
    if hasattr(carrier, "carrier"):
        return site_channels(carrier.carrier)
    return site_channels(as_results(carrier))
