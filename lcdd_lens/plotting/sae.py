"""Figures of features: what the trigger moves back, and how carriers lie among decoder rows."""

from typing import Any

from lcdd_lens.errors import ConfigError
from lcdd_lens.plotting.palette import NEUTRAL, look
from lcdd_lens.plotting.style import axes_or_new, dress, legend, titled


def plot_moved_back(moved: Any, ax: Any = None) -> Any:
    """Change with the trigger against change without it, a point per moved feature; on the line 0 the trigger undid it.

    Args:
        moved: a :class:`lcdd_lens.sae.MovedBack`.
        ax: axes to draw on; new ones by default.

    Raises:
        ConfigError: no feature moved.
    """
    table = moved.table
    if not len(table):
        raise ConfigError("no feature moved: there is nothing to draw.")
    ax = axes_or_new(ax, 5.6, 4.6)
    reach = 1.05 * float(max(table.change.abs().max(), table.left.abs().max()))
    ax.plot([-reach, reach], [-reach, reach], color=NEUTRAL, lw=1, ls="--", label="as without the trigger")
    ax.axhline(0, color=NEUTRAL, lw=1, ls=":", label="back at the base")
    for back, name, label in ((True, "routed+trigger", "moved back"), (False, "routed", "not moved back")):
        rows, style = table[table.back == back], look(name)
        options = dict(color=style.colour, marker=style.marker, s=28, label=f"{label} ({len(rows)})")
        ax.scatter(rows.change, rows.left, alpha=0.8, linewidths=0, **options)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    legend(ax)
    title = titled("Features that the behaviour moves", f"{len(table)} features", f"n = {moved.n_prompts} prompts")
    return dress(ax, title, f"{moved.moved} − {moved.reference} (mean activation)", f"{moved.back} − {moved.reference}")


def plot_alignment(alignment: Any, ax: Any = None) -> Any:
    """Features in order of their share in the carrier's plane, with what random channels give.

    Args:
        alignment: a :class:`lcdd_lens.sae.CarrierAlignment`.
        ax: axes to draw on; new ones by default.
    """
    ax = axes_or_new(ax)
    own, style = alignment.plane.sort(descending=True).values, look("routed+trigger")
    drawn = alignment.plane_random.sort(dim=1, descending=True).values
    ranks = range(1, len(own) + 1)
    low, high = drawn.quantile(0.025, dim=0), drawn.quantile(0.975, dim=0)
    grey = look("base").colour
    ax.fill_between(ranks, low, high, color=grey, alpha=0.3, lw=0, label="random channels, 95 % of draws")
    ax.plot(ranks, drawn.mean(0), color=grey, lw=1.4, ls="--", label="random channels, mean")
    ax.plot(ranks, own, color=style.colour, lw=1.8, label="the carrier's channels")
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    legend(ax)
    channels = f"{len(alignment.channels)} of {len(alignment.best_cosine)} channels"
    title = titled(f"Features in the carrier's plane at {alignment.hook_name}", channels, f"{len(own)} features")
    return dress(ax, title, "feature, by rank", "‖P_C d‖ of decoder rows, ‖d‖ = 1")
