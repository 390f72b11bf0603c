"""Figures of what is inside: logit lens, distance to the base, patching, and direct logit attribution."""

from typing import Any

from lcdd_lens.errors import ConfigError
from lcdd_lens.plotting.palette import NEUTRAL, look
from lcdd_lens.plotting.style import axes_or_new, dress, legend, titled

_CLOSED = "closed"
_SETS = {
    "carrier": ("the carrier's channels", "#0072B2", "^"),
    "random": ("as many random channels", "#8C8C8C", "o"),
    "all": ("all channels", "#E69F00", "s"),
}


def plot_logit_lens(lens: Any, token: str = "behaviour", ax: Any = None) -> Any:
    """Mean log-probability of a reply's first token after each layer, one line per condition, with 95 % bands.

    Args:
        lens: a :class:`lcdd_lens.lens.LogitLens`.
        token: ``behaviour`` or ``base``: whose first token.
        ax: axes to draw on; new ones by default.

    Raises:
        ConfigError: the token is neither of the two.
    """
    if token not in lens.log_probs:
        raise ConfigError(f"token is {token!r}: expected one of {', '.join(lens.log_probs)}.")
    frame = lens.to_dataframe()
    ax = axes_or_new(ax)
    for condition in lens.top:
        rows = frame[(frame.condition == condition) & (frame.token == token)]
        _line(ax, range(len(rows)), rows.log_prob, rows.low, rows.high, condition)
    ax.set_xticks(range(len(lens.depths)), lens.depths)
    legend(ax)
    whose = "the fine-tuned model's" if token == "behaviour" else "the base's"
    title = titled(f"Logit lens: {whose} first token", f"n = {lens.n_prompts} prompts", "95 % intervals")
    return dress(ax, title, "after layer", "log-probability (nats)")


def plot_distance(distance: Any, kind: str = "residual", measure: str = "relative_l2", ax: Any = None) -> Any:
    """Mean distance to the base in each layer, one line per condition, with 95 % bands.

    Args:
        distance: a :class:`lcdd_lens.lens.DistanceToBase`.
        kind: ``residual``, or a kind of site.
        measure: ``relative_l2`` or ``cosine``.
        ax: axes to draw on; new ones by default.

    Raises:
        ConfigError: the kind or the measure was not measured.
    """
    frame = distance.to_dataframe()
    chosen = frame[(frame.kind == kind) & (frame.measure == measure)]
    if chosen.empty:
        kinds = ", ".join(dict.fromkeys(frame.kind))
        raise ConfigError(f"no {measure!r} of {kind!r}: expected relative_l2 or cosine of one of {kinds}.")
    ax = axes_or_new(ax)
    for condition, rows in chosen.groupby("condition", sort=False):
        _line(ax, rows.layer, rows.value, rows.low, rows.high, str(condition))
    ax.set_xticks(sorted(set(chosen.layer)))
    ax.set_ylim(0, 1.35 * max(float(chosen.high.max()), 1e-6))
    legend(ax, loc="upper left", ncols=2)
    where = "at the prompt's last token" if distance.positions == "last" else "mean over the prompt's tokens"
    place = "residual stream" if kind == "residual" else kind
    axis = "‖a − a_base‖ / ‖a_base‖" if measure == "relative_l2" else "1 − cosine"
    title = titled(f"Distance to the base: {place}", f"n = {distance.n_prompts} prompts", where, "95 % intervals")
    return dress(ax, title, "after layer" if kind == "residual" else "layer", axis)


def plot_patching(sweep: Any, ax: Any = None) -> Any:
    """Share of the gap that a patch moves, per place where the carrier has channels; random draws as a range.

    Args:
        sweep: a :class:`lcdd_lens.lens.PatchSweep`.
        ax: axes to draw on; new ones by default.

    Raises:
        ConfigError: the carrier has no channel anywhere.
    """
    frame = sweep.to_dataframe()
    of_carrier = frame[frame.set == "carrier"]
    if of_carrier.empty:
        raise ConfigError("the carrier has no open channel: there is nothing to draw.")
    places = list(zip(of_carrier.layer, of_carrier.kind, of_carrier.n_patched, strict=True))
    ax = axes_or_new(ax, 6.8, 1.3 + 0.36 * len(places))
    for offset, (name, (label, colour, marker)) in zip((-0.22, 0.0, 0.22), _SETS.items(), strict=True):
        rows = frame[frame.set == name].set_index(["layer", "kind"])
        points = [rows.loc[(layer, kind)] for layer, kind, _ in places]
        low = [point.lowest if name == "random" else point.low / sweep.gap for point in points]
        high = [point.highest if name == "random" else point.high / sweep.gap for point in points]
        at = [row + offset for row in range(len(places))]
        ax.hlines(at, low, high, color=colour, linewidth=1.6)
        ax.plot([point.share for point in points], at, marker, color=colour, ms=5.5, label=label)
    ax.axvline(0, color=NEUTRAL, linewidth=1, linestyle=":")
    ax.axvline(1, color=NEUTRAL, linewidth=1, linestyle=":")
    ax.set_yticks(range(len(places)), [f"{layer}  {kind}  ({n})" for layer, kind, n in places])
    ax.set_ylim(len(places) - 0.5, -0.5)
    legend(ax)
    details = (f"{sweep.source} into {sweep.target}", f"n = {len(sweep.target_difference)} prompts")
    title = titled("Patching: share of the logit difference moved", *details, "lines: 95 % intervals, range of draws")
    return dress(ax, title, "share of the gap (0: nothing, 1: the source's answer)", "layer, site (channels)", grid="x")


def plot_logit_attribution(
    attribution: Any, condition: str = "routed", since: str | None = "base", ax: Any = None
) -> Any:
    """Direct contribution per writer to the behaviour's first token against the base's, with 95 % intervals.

    Args:
        attribution: a :class:`lcdd_lens.lens.LogitAttribution`.
        condition: whose contributions.
        since: less those of this condition; None: as they are.
        ax: axes to draw on; new ones by default.

    Raises:
        ConfigError: a condition was not measured.
    """
    frame = attribution.to_dataframe(condition, since)
    ax = axes_or_new(ax, 6.8, 1.3 + 0.36 * len(frame))
    for offset, name, label in ((-0.2, "total", "all channels"), (0.2, "carrier", "the carrier's channels")):
        _, colour, _ = _SETS["all" if name == "total" else name]
        low, high = frame[f"{name}_low"], frame[f"{name}_high"]
        ax.barh(
            frame.index + offset,
            frame[name],
            height=0.36,
            color=colour,
            hatch="//" if name == "total" else "",
            edgecolor="white",
            linewidth=0.4,
            label=label,
            xerr=[(frame[name] - low).clip(lower=0), (high - frame[name]).clip(lower=0)],
            error_kw={"ecolor": NEUTRAL, "lw": 1},
        )
    names = [
        f"{layer}  {kind}  ({n})" if layer >= 0 else kind
        for layer, kind, n in zip(frame.layer, frame.kind, frame.n_carrier, strict=True)
    ]
    ax.set_yticks(range(len(frame)), names)
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.axvline(0, color=NEUTRAL, linewidth=1)
    legend(ax)
    what = look(condition).label if since is None else f"{look(condition).label} less {look(since).label}"
    n = f"n = {frame.n.iloc[0]} prompts"
    title = titled(f"Direct logit attribution: {what}", n, "95 % intervals, (carrier channels)")
    return dress(ax, title, "logit of the behaviour's token less that of the base's", "layer, writer", grid="x")


def _line(ax: Any, x: Any, values: Any, low: Any, high: Any, condition: str) -> None:
    """One condition's line with its band; the closed model is dashed, since it lies on the base."""
    closed = condition == _CLOSED
    style = look("base") if closed else look(condition)
    label = "every gate closed" if closed else style.label
    line = "--" if closed else "-"
    ax.fill_between(list(x), list(low), list(high), color=style.colour, alpha=0.15, linewidth=0)
    marker = "x" if closed else style.marker
    ax.plot(list(x), list(values), line, color=style.colour, marker=marker, ms=5, lw=1.6, label=label)
