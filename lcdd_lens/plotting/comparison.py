"""Figures of a comparison of carriers and rankings: faithfulness, overlap, necessity and sufficiency, places.

Every function takes a comparison (a ``ComparisonResult`` or the content of ``comparison.json``) and an optional ``ax``,
and returns the axes. F = 1 is the fine-tuned model's behaviour, F = 0 the base's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lcdd_lens.errors import ConfigError
from lcdd_lens.plotting.measured import Measured
from lcdd_lens.plotting.methods import CARRIER, best_of_each_family, method_look
from lcdd_lens.plotting.palette import NEUTRAL, SITE_MEANINGS
from lcdd_lens.plotting.style import as_results, axes_or_new, dress, legend, titled

_KIND_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_HATCHES = ("", "//", "", "..", "", "\\\\", "", "xx")


def plot_faithfulness(comparison: Any, methods: Sequence[str] | None = None, ax: Any = None) -> Any:
    """F(k) of rankings with 95 % bands, on log k; the carrier as a point on each kind of weights.

    Args:
        comparison: a comparison.
        methods: which rankings; by default the best of every family by area on log k.
        ax: axes to draw on; new ones by default.

    Raises:
        ConfigError: a method was not compared.
    """
    record = as_results(comparison)
    curves = record["curves"]
    chosen = best_of_each_family(curves) if methods is None else list(methods)
    _require(chosen, curves)
    ax = axes_or_new(ax, 6.8, 4.2)
    for name in chosen:
        curve, look = curves[name], method_look(name)
        shares = [100 * share for share in curve["shares"]]
        ax.fill_between(shares, curve["low"], curve["high"], color=look.colour, alpha=0.15, linewidth=0)
        ax.plot(shares, curve["value"], color=look.colour, ls=look.line, marker=look.marker, ms=4.5, label=look.label)
    at = 100 * record["carrier_size"] / record["n_gates"]
    look = method_look(CARRIER)
    for weights, filled in (("lcdd", True), ("sft", False)):
        point = Measured.of(record["two_by_two"].get(CARRIER, {}).get(weights))
        if point is not None:
            called = "LCDD" if weights == "lcdd" else "SFT"
            face = look.colour if filled else "none"
            below, above = point.below_and_above
            ax.errorbar(
                [at],
                [point.value],
                yerr=[below, above],
                fmt=look.marker,
                ms=8,
                color=look.colour,
                mfc=face,
                label=f"carrier on {called} weights",
                zorder=5,
            )
    ax.axhline(1.0, color=NEUTRAL, lw=0.8, ls=(0, (2, 3)))
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    legend(ax)
    title = titled(f"Faithfulness: {record['behaviour']}", _n(record), _seed(record), "95 % bands over prompts")
    return dress(ax, title, "open channels, % of all", "F: share of the behaviour's log-probability")


def plot_overlap(comparison: Any, methods: Sequence[str] | None = None, ax: Any = None) -> Any:
    """Jaccard of the first |C| channels of every pair of rankings, as a heatmap with the values.

    Raises:
        ConfigError: a method was not compared.
    """
    record = as_results(comparison)
    names = record["overlap"]["names"]
    chosen = list(names) if methods is None else list(methods)
    _require(chosen, names)
    places = [names.index(name) for name in chosen]
    values = [[record["overlap"]["jaccard"][row][column] for column in places] for row in places]
    ax = axes_or_new(ax, 2.6 + 0.46 * len(chosen), 2.0 + 0.42 * len(chosen))
    ax.imshow(values, cmap="cividis", vmin=0, vmax=1)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            shown = "1" if row == column else f"{value:.2f}".removeprefix("0")
            ax.text(column, row, shown, ha="center", va="center", fontsize=7, color="white" if value < 0.6 else "black")
    labels = [method_look(name).label for name in chosen]
    ax.set_xticks(range(len(chosen)), labels, rotation=45, ha="right")
    ax.set_yticks(range(len(chosen)), labels)
    size = f"first {record['carrier_size']} of {record['n_gates']} channels"
    return dress(ax, titled("Overlap (Jaccard)", size, _seed(record)), "", "", grid=None)


def plot_necessity_sufficiency(comparison: Any, methods: Sequence[str] | None = None, ax: Any = None) -> Any:
    """Sufficiency and necessity of every set of the carrier's size on the fine-tuned weights, with 95 % intervals.

    Raises:
        ConfigError: a method was not compared.
    """
    record = as_results(comparison)
    chosen = list(record["sets"]) if methods is None else list(methods)
    _require(chosen, record["sets"])
    found = {name: record["sets"][name] for name in chosen}
    ax = _pairs_of_bars(found, (("sufficiency", "#0072B2", ""), ("necessity", "#E69F00", "//")), ax)
    size = f"{record['carrier_size']} of {record['n_gates']} channels"
    title = titled("Sufficiency F(C) and necessity 1 − F(rest), SFT weights", size, _n(record), _seed(record))
    return dress(ax, title, "share of the behaviour's log-probability", "", grid="x")


def plot_two_by_two(comparison: Any, methods: Sequence[str] | None = None, ax: Any = None) -> Any:
    """F of every set of the carrier's size on the fine-tuned and on LCDD's weights, with 95 % intervals.

    Raises:
        ConfigError: a method was not compared.
    """
    record = as_results(comparison)
    table = record["two_by_two"]
    chosen = list(table) if methods is None else list(methods)
    _require(chosen, table)
    found = {
        name: {"fine-tuned weights": table[name]["sft"], "LCDD's weights": table[name].get("lcdd")} for name in chosen
    }
    ax = _pairs_of_bars(found, (("fine-tuned weights", "#D55E00", ""), ("LCDD's weights", "#0072B2", "//")), ax)
    size = f"{record['carrier_size']} of {record['n_gates']} channels"
    title = titled("F of each set, by whose weights", size, _n(record), _seed(record))
    return dress(ax, title, "F: share of the behaviour's log-probability", "", grid="x")


def _pairs_of_bars(found: Mapping[str, Mapping[str, Any]], bars: Sequence[tuple[str, str, str]], ax: Any) -> Any:
    """Two horizontal bars a row: row -> bar -> estimate; ``bars`` are (name, colour, hatch)."""
    ax = axes_or_new(ax, 6.4, 1.3 + 0.42 * len(found))
    for (bar, colour, hatch), offset in zip(bars, (-0.2, 0.2), strict=True):
        named = False
        for row, estimates in enumerate(found.values()):
            measured = Measured.of(estimates[bar])
            if measured is None:
                continue
            below, above = measured.below_and_above
            ax.barh(
                row + offset,
                measured.value,
                height=0.36,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.4,
                label=None if named else bar,
                xerr=[below, above],
                error_kw={"ecolor": NEUTRAL, "lw": 1},
            )
            named = True
    ax.set_yticks(range(len(found)), [method_look(name).label for name in found])
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_xlim(right=max(1.05, ax.get_xlim()[1]))  # small shares must look small
    legend(ax)
    return ax


def plot_places(comparison: Any, method: str = CARRIER, ax: Any = None) -> Any:
    """Where the first |C| channels of a ranking lie: stacked bars, one per layer, coloured by kind of site.

    Raises:
        ConfigError: the method was not compared.
    """
    record = as_results(comparison)
    _require([method], record["places"])
    size = f"first {record['carrier_size']} of {record['n_gates']} channels"
    return _stack(record["places"][method], titled(f"Places: {method_look(method).label}", size, _seed(record)), ax)


def plot_score_stack(scores: Any, k: int | None = None, ax: Any = None) -> Any:
    """Where the k most important channels of a :class:`ChannelScores` lie (default: 2 % of all).

    Raises:
        ConfigError: k is out of range.
    """
    count = min(scores.n_scored, max(1, round(0.02 * scores.n_gates))) if k is None else k
    flags = scores.layout.split(scores.top(count))
    places: dict[str, list[int]] = {}
    n_layers = 1 + max(site.layer for site in scores.sites)
    for site in scores.sites:
        counts = places.setdefault(site.kind, [0] * n_layers)
        counts[site.layer] += int(flags[site.hook_name].sum())
    look = method_look(scores.method)
    return _stack(places, titled(f"Places: {look.label}", f"first {count} of {scores.n_gates} channels"), ax)


def _stack(places: Mapping[str, Sequence[int]], title: str, ax: Any) -> Any:
    ax = axes_or_new(ax)
    kinds = list(SITE_MEANINGS)
    bottom = [0] * max((len(counts) for counts in places.values()), default=0)
    for kind, counts in places.items():
        number = kinds.index(kind) if kind in kinds else 0
        ax.bar(
            range(len(counts)),
            counts,
            bottom=bottom,
            color=_KIND_COLOURS[number],
            hatch=_HATCHES[number],
            edgecolor="white",
            linewidth=0.4,
            label=kind,
        )
        bottom = [low + count for low, count in zip(bottom, counts, strict=True)]
    ax.set_xticks(range(len(bottom)))
    legend(ax, ncols=2)
    return dress(ax, title, "layer", "channels")


def _require(chosen: Sequence[str], known: Mapping[str, Any] | Sequence[str]) -> None:
    strangers = [name for name in chosen if name not in known]
    if strangers or not chosen:
        raise ConfigError(f"{strangers or 'no method'} was not compared: expected some of {', '.join(known)}.")


def _n(record: Mapping[str, Any]) -> str:
    return f"n = {record['prompts']['test']} test prompts"


def _seed(record: Mapping[str, Any]) -> str:
    return f"seed {record['seed']}"
