"""The figures of the comparison page: faithfulness, the 2 × 2, overlap; colours and markers of the methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcdd_lens.evaluation.statistics import student_mean
from lcdd_lens.plotting.methods import CARRIER, FAMILIES, method_look
from lcdd_lens.plotting.style import dress, legend

MOST_PANELS = 6
SFT, LCDD = "#D55E00", "#0072B2"


def draw_figures(pairs: Sequence[Any], folder: Path) -> list[tuple[str, str]]:
    """Draw what there is data for; returns (file name, caption)."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in (
        ("comparison-faithfulness.png", faithfulness),
        ("comparison-two-by-two.png", two_by_two),
        ("comparison-overlap.png", overlap),
    ):
        figure, caption = draw(pairs)
        figure.savefig(folder / name, dpi=110, facecolor="white", metadata={"Software": None})
        drawn.append((name, caption))
    return drawn


def faithfulness(pairs: Sequence[Any]) -> tuple[Any, str]:
    """Mean F over seeds with its interval, the best ranking of every family; one panel a pair."""
    shown = pairs[:MOST_PANELS]
    figure, axes = _panels(len(shown), 4.4)
    for ax, pair in zip(axes, shown, strict=True):
        for name in best_of_families(pair):
            look = method_look(name)
            shares = [100 * share for share in pair.rows[0]["curves"][name]["shares"]]
            points = [
                student_mean(values)
                for values in zip(*(row["curves"][name]["value"] for row in pair.rows), strict=True)
            ]
            low, high = [point.low for point in points], [point.high for point in points]
            ax.fill_between(shares, low, high, color=look.colour, alpha=0.15, linewidth=0)
            mean = [point.value for point in points]
            ax.plot(shares, mean, color=look.colour, ls=look.line, marker=look.marker, ms=4.5, label=look.label)
        at = student_mean([100 * row["carrier_size"] / row["n_gates"] for row in pair.rows]).value
        look = method_look(CARRIER)
        for weights, face, text in (
            ("lcdd", look.colour, "carrier, LCDD weights"),
            ("sft", "white", "carrier, SFT weights"),
        ):
            values = [
                row["two_by_two"][CARRIER][weights]["value"]
                for row in pair.rows
                if weights in row["two_by_two"][CARRIER]
            ]
            if values:
                point = student_mean(values)
                error = [[point.value - point.low], [point.high - point.value]]
                ax.errorbar(
                    [at],
                    [point.value],
                    yerr=error,
                    fmt=look.marker,
                    ms=7,
                    color=look.colour,
                    mfc=face,
                    label=text,
                    zorder=5,
                )
        ax.axhline(1.0, color="#7F7F7F", lw=0.8, ls=(0, (2, 3)))
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_ylim(-0.35, 1.2)
        dress(ax, f"{pair.name}, n = {_seeds(len(pair.rows))}", "open channels, % of all", "F")
        legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    return figure, (
        "F against the share of open channels on the fine-tuned weights: the best ranking of every family, means over "
        "seeds with Student's 95 % bands, and the carrier on both kinds of weights."
    )


def two_by_two(pairs: Sequence[Any]) -> tuple[Any, str]:
    """F of every set of the carrier's size on fine-tuned and on LCDD's weights; one panel a pair."""
    shown = pairs[:MOST_PANELS]
    figure, axes = _panels(len(shown), 4.6, sharey=True)
    names = pairs[0].sets
    for ax, pair in zip(axes, shown, strict=True):
        for weights, colour, offset, hatch, text in (
            ("sft", SFT, -0.2, "", "fine-tuned weights"),
            ("lcdd", LCDD, 0.2, "//", "LCDD's weights"),
        ):
            places, means = [], []
            for place, name in enumerate(names):
                values = [
                    row["two_by_two"][name][weights]["value"] for row in pair.rows if weights in row["two_by_two"][name]
                ]
                if values:
                    places.append(place + offset)
                    means.append(student_mean(values))
                    ax.plot(values, [place + offset] * len(values), ".", color="#303030", ms=3, zorder=4)
            ax.barh(
                places,
                [mean.value for mean in means],
                0.36,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.4,
                label=text,
            )
        ax.set_yticks(range(len(names)), [method_look(name).label for name in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.axvline(1.0, color="#7F7F7F", lw=0.8, ls=(0, (2, 3)))
        dress(ax, f"{pair.name}, n = {_seeds(len(pair.rows))}", "F of |C| channels", "", grid="x")
    legend(axes[0], loc="lower right")
    return figure, (
        "The 2 × 2: F of the carrier and of every ranking's first |C| channels on the fine-tuned and on LCDD's "
        "weights; bars: means over seeds, dots: seeds."
    )


def overlap(pairs: Sequence[Any]) -> tuple[Any, str]:
    """Mean Jaccard of every two sets of the carrier's size, over all runs."""
    rows = [row for pair in pairs for row in pair.rows]
    names = rows[0]["overlap"]["names"]
    n = len(names)
    mean = [[sum(row["overlap"]["jaccard"][a][b] for row in rows) / len(rows) for b in range(n)] for a in range(n)]
    figure, (ax,) = _panels(1, 6.4, width=8.4)
    ax.imshow(mean, cmap="cividis", vmin=0, vmax=1)
    for a, line in enumerate(mean):
        for b, value in enumerate(line):
            text = "1" if a == b else f"{value:.2f}".removeprefix("0")
            ax.text(b, a, text, ha="center", va="center", fontsize=7, color="white" if value < 0.6 else "black")
    labels = [method_look(name).label for name in names]
    ax.set_xticks(range(n), labels, rotation=45, ha="right")
    ax.set_yticks(range(n), labels)
    dress(ax, f"Shared channels of the first |C| (Jaccard), mean of {len(rows)} runs", "", "", grid=None)
    return figure, "Mean Jaccard of every two sets of the carrier's size."


def best_of_families(pair: Any) -> list[str]:
    """Of every family the ranking with the largest mean area over log k."""
    best: dict[str, tuple[float, str]] = {}
    for name in pair.rankings:
        area = student_mean([row["curves"][name]["area_log"]["value"] for row in pair.rows]).value
        family = method_look(name).family
        best[family] = max(best.get(family, (float("-inf"), "")), (area, name))
    return [best[family][1] for family in (*FAMILIES, "own") if family in best]


def _seeds(n: int) -> str:
    return f"{n} seed{'s' if n > 1 else ''}"


def _panels(n: int, height: float, *, width: float | None = None, sharey: bool = False) -> tuple[Any, Sequence[Any]]:
    import matplotlib.pyplot as plt

    columns = min(n, 3)
    lines = -(-n // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(width or 4.1 * columns + 0.6, height * lines),
        layout="constrained",
        squeeze=False,
        sharey=sharey,
    )
    flat = list(axes.flat)
    for unused in flat[n:]:
        unused.set_visible(False)
    return figure, flat[:n]
