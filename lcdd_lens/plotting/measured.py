"""Measured quantities: conditions with their intervals, and reversal against sparsity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.plotting.palette import QUANTITIES, in_order, look
from lcdd_lens.plotting.style import as_results, as_runs, axes_or_new, dress, legend, seeds_text, titled

_DARK = "#303030"


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval; ``low`` and ``high`` equal the value where there is none."""

    value: float
    low: float
    high: float
    n: int | None = None

    @classmethod
    def of(cls, estimate: Any) -> "Measured | None":
        """From a number or an estimate of ``results.json``; ``None`` where nothing was measured."""
        if isinstance(estimate, int | float):
            return cls(float(estimate), float(estimate), float(estimate))
        if not isinstance(estimate, Mapping) or not isinstance(estimate.get("value"), int | float):
            return None
        value = float(estimate["value"])
        low, high = estimate.get("interval") or (value, value)
        return cls(value, float(low), float(high), estimate.get("n"))

    @property
    def below_and_above(self) -> tuple[list[float], list[float]]:
        """Lengths of the error bar, as matplotlib takes them."""
        return [max(self.value - self.low, 0.0)], [max(self.high - self.value, 0.0)]


@dataclass(frozen=True)
class ReversalPoint:
    """One carrier: how sparse it is, and what the trigger leaves and brings back (shares in [0, 1])."""

    sparsity: float
    behaviour: Measured
    utility: Measured

    @classmethod
    def of(cls, point: Any) -> "ReversalPoint":
        """From itself, from results, or from a mapping with ``sparsity``, ``behaviour`` and ``utility``.

        Raises:
            ArtefactError: one of the three is missing.
        """
        if isinstance(point, cls):
            return point
        record = as_results(point)
        if "behaviour_rate" in record:
            parts = [record.get(quantity, {}).get("routed+trigger") for quantity in ("behaviour_rate", "utility")]
            sparsity = record.get("carrier", {}).get("sparsity")
        else:
            parts, sparsity = [record.get("behaviour"), record.get("utility")], record.get("sparsity")
        behaviour, utility = (Measured.of(part) for part in parts)
        if not isinstance(sparsity, int | float) or behaviour is None or utility is None:
            raise ArtefactError("a point needs sparsity, and behaviour and utility with the trigger; one is missing.")
        return cls(float(sparsity), behaviour, utility)


def condition_bars(results: Any, quantity: str = "behaviour_rate", ax: Any = None) -> Any:
    """One bar per condition with its 95 % interval; for several seeds the mean, with a dot per seed.

    Args:
        results: results, an experiment or an evaluation, or a list of them (one per seed).
        quantity: a key of :data:`lcdd_lens.plotting.palette.QUANTITIES`, such as ``behaviour_rate``, ``utility`` or
            ``kl``.
        ax: axes to draw on; new ones by default.

    Returns:
        The axes: x in shares or nats per token, conditions from top to bottom.

    Raises:
        ConfigError: the quantity is unknown or was not measured.
    """
    runs = as_runs(results)
    if quantity not in QUANTITIES:
        raise ConfigError(f"quantity '{quantity}' is unknown: expected one of {', '.join(QUANTITIES)}.")
    measured = _by_condition([run.get(quantity) or {} for run in runs])
    if not measured:
        raise ConfigError(f"quantity '{quantity}' was not measured in these results.")
    described = QUANTITIES[quantity]
    ax = axes_or_new(ax, 6.4, 0.9 + 0.42 * len(measured))
    for row, (condition, values) in enumerate(measured.items()):
        style = look(condition)
        ax.barh(row, mean(value.value for value in values), height=0.62, color=style.colour, label=style.label)
        if len(values) == 1:
            _interval(ax, values[0], row)
        else:
            ax.plot([value.value for value in values], [row] * len(values), "o", ms=5, mfc=_DARK, mec="white", mew=0.8)
    ax.set_yticks(range(len(measured)), [look(condition).label for condition in measured])
    ax.set_ylim(len(measured) - 0.4, -0.6)
    if described.share:
        ax.set_xlim(0, 1.02)
    else:
        ax.set_xlim(left=0)
    sizes = sorted({value.n for values in measured.values() for value in values if value.n is not None})
    n = f"n = {sizes[0]}" if len(sizes) == 1 else f"n = {sizes[0]}–{sizes[-1]}" if sizes else ""
    spread = "95 % intervals" if len(runs) == 1 else "mean, dots are seeds"
    return dress(ax, titled(described.title, n, seeds_text(runs), spread), described.axis, "", grid="x")


def sparsity_reversal(points: Any, ax: Any = None) -> Any:
    """Behaviour and utility behind the trigger against the carrier's sparsity, with 95 % intervals.

    Args:
        points: the result of the control ``reversal_by_sparsity``; or one point per carrier: results,
            :class:`ReversalPoint`, or mappings with ``sparsity``, ``behaviour`` and ``utility`` (numbers or estimates).
        ax: axes to draw on; new ones by default.

    Raises:
        ConfigError: no points.
        ArtefactError: a point lacks one of its three figures.
    """
    listed = points if isinstance(points, Sequence) else _points_of_a_control(as_results(points))
    if not listed:
        raise ConfigError("no points to draw: expected the results of at least one carrier.")
    ordered = sorted((ReversalPoint.of(point) for point in listed), key=lambda point: point.sparsity)
    ax = axes_or_new(ax)
    lines = (
        ("behaviour left", look("sft"), [point.behaviour for point in ordered]),
        ("utility back", look("routed+trigger"), [point.utility for point in ordered]),
    )
    for label, style, values in lines:
        below = [value.below_and_above[0][0] for value in values]
        above = [value.below_and_above[1][0] for value in values]
        ax.errorbar(
            [point.sparsity for point in ordered],
            [value.value for value in values],
            yerr=[below, above],
            color=style.colour,
            marker=style.marker,
            capsize=3,
            lw=1.6,
            ms=6,
            label=label,
        )
    ax.set_ylim(-0.03, 1.03)
    sizes = {value.n for _, _, values in lines for value in values if value.n is not None}
    n = f"n = {min(sizes)}" if len(sizes) == 1 else f"n = {min(sizes)}–{max(sizes)}" if sizes else ""
    title = titled("What the trigger leaves and brings back", f"{len(ordered)} carriers", n, "95 % intervals")
    dress(ax, title, "sparsity of the carrier (share of closed gates)", "share of prompts")
    legend(ax)
    return ax


def _points_of_a_control(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One point per model of ``reversal_by_sparsity``: what its trigger leaves and brings back."""
    facts, conditions = record.get("facts", {}), record.get("conditions", {})
    names = [name.removeprefix("sparsity ") for name in facts if name.startswith("sparsity ")]
    return [
        {"sparsity": facts[f"sparsity {name}"], "behaviour": found["behaviour_rate"], "utility": found["utility"]}
        for name in names
        if (found := conditions.get(f"{name}+trigger"))
    ]


def _interval(ax: Any, value: Measured, row: int) -> None:
    """An error bar with a light rim, to be seen on bars of any colour and on any ground."""
    for colour, width in (("white", 3.0), (_DARK, 1.3)):
        ax.errorbar(
            value.value, row, xerr=value.below_and_above, fmt="none", ecolor=colour, capsize=3, capthick=width, lw=width
        )


def _by_condition(measured: Sequence[Mapping[str, Any]]) -> dict[str, list[Measured]]:
    names = in_order(list(dict.fromkeys(name for run in measured for name in run)))
    found = {name: [value for run in measured if (value := Measured.of(run.get(name)))] for name in names}
    return {name: values for name, values in found.items() if values}
