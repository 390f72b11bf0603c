"""Training curves: loss under its budget, sparsity, the price of a gate, and the trigger's objective."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcdd_lens.errors import ConfigError
from lcdd_lens.plotting.histories import Columns, Histories, column, histories
from lcdd_lens.plotting.palette import NEUTRAL, look
from lcdd_lens.plotting.style import as_results, as_runs, axes_or_new, dress, legend, seeds_text, titled

_CURVES: dict[str, tuple[str, str]] = {
    "loss": ("LCDD: loss and its budget", "loss (nats per token)"),
    "sparsity": ("LCDD: sparsity", "share of closed gates"),
    "lambda": ("LCDD: price of an open gate", "λ"),
    "sft": ("Fine-tuning", "loss (nats per token)"),
}
_FAINT = f"{NEUTRAL}90"


def training_curves(history: Any, quantity: str = "loss", ax: Any = None) -> Any:
    """One curve of the training over optimiser steps, several seeds as several lines.

    Args:
        history: results, an experiment, the result of LCDD, a ``history`` entry or one stage's columns; or a list of
            them (seeds).
        quantity: ``loss`` (LCDD's batch loss, its moving average and the budget ε), ``sparsity``, ``lambda``, or
            ``sft`` (the loss of plain fine-tuning).
        ax: axes to draw on; new ones by default.

    Raises:
        ConfigError: the quantity is unknown or has no history.
    """
    if quantity not in _CURVES:
        raise ConfigError(f"quantity '{quantity}' is unknown: expected one of {', '.join(_CURVES)}.")
    runs = as_runs(history)
    found = [histories(run) for run in runs]
    stages = [one.sft if quantity == "sft" else one.lcdd for one in found]
    name = "loss" if quantity == "sft" else quantity
    if not any(column(stage, name)[0] for stage in stages):
        raise ConfigError(f"no '{quantity}' was recorded in this history.")
    ax = axes_or_new(ax)
    for index, stage in enumerate(stages):
        _draw(ax, stage, quantity, first=index == 0)
    if quantity != "sparsity":
        ax.set_yscale("log")
    else:
        ax.set_ylim(-0.02, 1.02)
    if quantity != "sft":
        _mark(ax, found[0])
    title, label = _CURVES[quantity]
    dress(ax, titled(title, seeds_text(runs)), "optimiser step", label)
    if quantity == "loss":
        legend(ax, loc="upper left")
    return ax


def training_panel(history: Any) -> Any:
    """A figure with the three curves of LCDD one above the other: loss, sparsity, price.

    Args:
        history: as for :func:`training_curves`.

    Returns:
        The :class:`matplotlib.figure.Figure`.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(6.4, 7.6), sharex=True, layout="constrained")
    figure.patch.set_alpha(0)
    curves = ("loss", "sparsity", "lambda")
    for ax, quantity in zip(axes, curves, strict=True):
        training_curves(history, quantity, ax)
    for ax in axes[:-1]:
        ax.set_xlabel("")
    return figure


def trigger_trajectory(history: Any, ax: Any = None) -> Any:
    """The trigger's objective and its terms over optimiser steps; the step that was kept is marked where known.

    Args:
        history: an eraser's result or history, its columns, results or an experiment (then the routed model's trigger).
        ax: axes to draw on; new ones by default.

    Raises:
        ConfigError: there is no eraser's history.
    """
    columns, best = _eraser(history)
    drawn = (
        ("loss", "batch objective", _FAINT, "-", 0.9),
        ("match", "activation matching", look("sft+trigger(carrier)").colour, "--", 1.5),
        ("kl", "KL(base ‖ model)", look("sft+trigger").colour, "--", 1.5),
        ("validation", "validation objective", look("routed+trigger").colour, "-", 2.0),
    )
    series = {name: _positive(columns, name) for name, *_ in drawn}
    if not any(steps for steps, _ in series.values()):
        raise ConfigError("no eraser's history here: expected an eraser's result, its history, or results of a run.")
    ax = axes_or_new(ax)
    for name, label, colour, dash, width in drawn:
        if series[name][0]:
            ax.plot(*series[name], color=colour, linestyle=dash, linewidth=width, label=label)
    steps, values = series["validation"]
    if steps:
        kept = best if best in steps else steps[values.index(min(values))]
        ax.plot(kept, values[steps.index(kept)], "o", ms=8, mfc="none", mec=NEUTRAL, label=f"kept: step {kept:g}")
    ax.set_yscale("log")
    n_prompts = f"seed {history['seed']}" if isinstance(history, Mapping) and "seed" in history else ""
    dress(ax, titled("Training of the trigger", n_prompts), "optimiser step", "objective (nats; MSE for matching)")
    legend(ax)
    return ax


def _draw(ax: Any, stage: Columns, quantity: str, *, first: bool) -> None:
    colour = {
        "sft": look("sft").colour,
        "sparsity": look("routed+trigger").colour,
        "lambda": look("sft+trigger").colour,
    }
    if quantity != "loss":
        points = column(stage, "loss" if quantity == "sft" else quantity)
        ax.plot(*_kept(points, positive=quantity != "sparsity"), color=colour[quantity], linewidth=1.6)
        return
    lines = (
        ("loss", "batch loss", _FAINT, "-", 0.8),
        ("ema", "moving average", look("routed").colour, "-", 2.0),
        ("epsilon", "budget ε", NEUTRAL, "--", 1.4),
    )
    for name, label, shade, dash, width in lines:
        steps, values = _positive(stage, name)
        ax.plot(steps, values, color=shade, linestyle=dash, linewidth=width, label=label if first else None)


def _mark(ax: Any, found: Histories) -> None:
    for step, label in found.marks:
        ax.axvline(step, color=NEUTRAL, linestyle=":", linewidth=1)
        place = {"xytext": (3, 3), "textcoords": "offset points", "va": "bottom", "fontsize": "x-small"}
        ax.annotate(label, (step, 0), xycoords=("data", "axes fraction"), color=NEUTRAL, **place)


def _eraser(history: Any) -> tuple[Columns, float | None]:
    """Columns of one trigger's training, and the step that was kept where the object says."""
    best = getattr(history, "best_step", None)
    inner = getattr(history, "history", history)
    record = as_results(inner)
    columns = record if "step" in record else histories(record).erasers.get("routed+trigger", {})
    return columns, None if best is None else float(best)


def _positive(history: Columns, name: str) -> tuple[list[float], list[float]]:
    return _kept(column(history, name), positive=True)


def _kept(
    points: tuple[Sequence[float | int], Sequence[float | int | None]], *, positive: bool
) -> tuple[list[float], list[float]]:
    """Points that were measured and that a logarithmic axis can show."""
    pairs = [(float(x), float(y)) for x, y in zip(*points, strict=True) if y is not None and (y > 0 or not positive)]
    return [x for x, _ in pairs], [y for _, y in pairs]
