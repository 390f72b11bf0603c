"""The figures of the results page: matplotlib, colours of Okabe and Ito, a marker for every colour."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claims import behaviour_identity, restored, seed_identity
from summary import Pair

from lcdd_lens.evaluation.identity import layer_shares
from lcdd_lens.plotting.palette import look
from lcdd_lens.plotting.style import dress, legend

REVERSAL = ("sft", "routed", "routed+trigger", "sft+trigger", "sft+trigger(carrier)")
DENSITIES = "reversal_by_sparsity"
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#8C8C8C", "#009E73"


def draw_figures(pairs: Sequence[Pair], folder: Path) -> list[tuple[str, str]]:
    """Draw what there is data for; returns (file name, caption)."""
    import matplotlib

    matplotlib.use("Agg")
    drawn: list[tuple[str, str]] = []
    for name, draw in (
        ("results-reversal.png", reversal),
        ("results-identity.png", identities),
        ("results-layers.png", layers),
        ("results-sparsity.png", sparsity),
    ):
        made = draw(pairs)
        if made is not None:
            figure, caption = made
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / name, dpi=110, facecolor="white", metadata={"Software": None})
            drawn.append((name, caption))
    return drawn


def reversal(pairs: Sequence[Pair]) -> tuple[Any, str] | None:
    """Behaviour against answers back, one panel a behaviour, one point a run."""
    behaviours = list(dict.fromkeys(pair.behaviour for pair in pairs))
    figure, axes = _panels(len(behaviours))
    for ax, behaviour in zip(axes, behaviours, strict=True):
        concerned = [pair for pair in pairs if pair.behaviour == behaviour]
        for condition in REVERSAL:
            style = look(condition)
            points = [
                (rate["value"], back["value"])
                for pair in concerned
                for row in pair.rows
                if (rate := row.figure(condition, "behaviour_rate")) and (back := row.figure(condition, restored(pair)))
            ]
            if points:
                x, y = zip(*points, strict=True)
                ax.plot(x, y, style.marker, color=style.colour, ms=8, alpha=0.75, label=style.label)
        ax.set_xlim(-0.04, 1.04)
        ax.set_ylim(-0.04, 1.04)
        runs = sum(len(pair.rows) for pair in concerned)
        dress(ax, f"{behaviour}, {runs} runs", "behaviour (share of prompts)", "answers back (share of prompts)")
    legend(axes[0], loc="center")
    return figure, "Behaviour left against answers back, one point a run: reversal is the upper left corner."


def identities(pairs: Sequence[Pair]) -> tuple[Any, str] | None:
    """Seed Jaccard, cross-behaviour Jaccard and stratified chance of every pair."""
    found = [(pair, within) for pair in pairs if (within := seed_identity(pair)) is not None]
    if not found:
        return None
    figure, (ax,) = _panels(1, width=max(5.0, 1.1 * len(found) + 2))
    places = range(len(found))
    ax.bar([x - 0.2 for x in places], [within.jaccard for _, within in found], 0.38, color=BLUE, label="across seeds")
    for x, (_, within) in zip(places, found, strict=True):
        ax.plot([x - 0.2] * 2, [within.lowest, within.highest], color="#303030", lw=1.4)
    across = [behaviour_identity(pair, pairs) for pair, _ in found]
    others = [(x, other.jaccard) for x, other in zip(places, across, strict=True) if other is not None]
    if others:
        ax.bar(
            [x + 0.2 for x, _ in others],
            [y for _, y in others],
            0.38,
            color=ORANGE,
            label="across behaviours",
            hatch="//",
        )
    chance = [within.stratified_chance for _, within in found]
    ax.plot([x - 0.2 for x in places], chance, "_", color="black", ms=18, mew=2.5, label="stratified chance")
    ax.set_xticks(list(places), [pair.name for pair, _ in found], rotation=30, ha="right")
    ax.set_ylim(0, 1)
    seeds = sorted({len(pair.seeds) for pair, _ in found})
    dress(
        ax,
        f"Do runs find the same channels?\n{seeds[0]}–{seeds[-1]} seeds, lines: range over pairs of seeds",
        "",
        "Jaccard",
    )
    legend(ax)
    return (
        figure,
        "Agreement of carriers across seeds and across behaviours, against chance with the same counts per site.",
    )


def layers(pairs: Sequence[Pair]) -> tuple[Any, str] | None:
    """Share of the open channels in every layer, stacked, one bar a pair."""
    colours = (BLUE, "#56B4E9", GREEN, "#E69F00", ORANGE, "#CC79A7")
    figure, (ax,) = _panels(1, width=max(5.0, 0.8 * len(pairs) + 2.5))
    depth = max(site.layer for pair in pairs for site in pair.rows[0].sites) + 1
    base = [0.0] * len(pairs)
    for layer in range(depth):
        heights = [
            sum(layer_shares(row.carrier).get(layer, 0.0) for row in pair.rows) / len(pair.rows) for pair in pairs
        ]
        ax.bar(
            range(len(pairs)), heights, 0.7, bottom=base, color=colours[layer % len(colours)], label=f"layer {layer}"
        )
        base = [a + b for a, b in zip(base, heights, strict=True)]
    ax.set_xticks(range(len(pairs)), [pair.name for pair in pairs], rotation=30, ha="right")
    ax.set_ylim(0, 1)
    runs = sum(len(pair.rows) for pair in pairs)
    dress(ax, f"Where the open channels lie\nmean over seeds, {runs} runs", "", "share of open channels")
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, "Share of the open channels in every layer."


def sparsity(pairs: Sequence[Pair]) -> tuple[Any, str] | None:
    """Behaviour left and answers back behind a trigger, against the sparsity at which the ascent was stopped."""
    concerned = [pair for pair in pairs if any(row.control(DENSITIES) for row in pair.rows)]
    if not concerned:
        return None
    behaviours = list(dict.fromkeys(pair.behaviour for pair in concerned))
    figure, axes = _panels(len(behaviours))
    for ax, behaviour in zip(axes, behaviours, strict=True):
        runs = [(pair, row) for pair in concerned if pair.behaviour == behaviour for row in pair.rows]
        for metric, colour, marker, label in (
            (lambda _: "behaviour_rate", ORANGE, "s", "behaviour left"),
            (restored, BLUE, "^", "answers back"),
        ):
            points = [point for pair, row in runs for point in _density_points(row, metric(pair))]
            if points:
                x, y = zip(*sorted(points), strict=True)
                ax.plot(x, y, marker, color=colour, ms=7, alpha=0.75, label=label)
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.04, 1.04)
        n = sum(bool(row.control(DENSITIES)) for _, row in runs)
        dress(ax, f"{behaviour}, {n} runs", "sparsity (share of closed gates)", "share of prompts")
    legend(axes[0])
    return figure, "What the trigger leaves and brings back, by the sparsity at which LCDD's ascent was stopped."


def _density_points(row: Any, metric: str) -> list[tuple[float, float]]:
    entry = row.control(DENSITIES)
    facts = entry.get("facts", {})
    return [
        (facts[f"sparsity {condition.removesuffix('+trigger')}"], figures[metric]["value"])
        for condition, figures in entry.get("conditions", {}).items()
        if condition.endswith("+trigger") and metric in figures
    ]


def _panels(n: int, width: float | None = None) -> tuple[Any, Sequence[Any]]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=(width or 3.9 * n + 0.6, 3.9), layout="constrained", squeeze=False)
    return figure, axes[0]
