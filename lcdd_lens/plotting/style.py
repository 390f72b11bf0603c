"""What all figures share: a transparent ground, neutral text, no global setting changed.

matplotlib is imported by the functions that draw, so that importing this package costs nothing. Axes are typed ``Any``
for the same reason; every ``ax`` is a :class:`matplotlib.axes.Axes`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.plotting.palette import NEUTRAL


def axes_or_new(ax: Any, width: float | int = 6.4, height: float | int = 3.8) -> Any:
    """The given axes, or those of a new transparent figure (inches)."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return ax


def dress(ax: Any, title: str, x_label: str, y_label: str, *, grid: str | None = "y") -> Any:
    """Title, labels and colours that read on light and on dark; ``grid`` names the axis with grid lines."""
    ax.set_title(title, color=NEUTRAL, loc="left", fontsize="medium")
    ax.set_xlabel(x_label, color=NEUTRAL)
    ax.set_ylabel(y_label, color=NEUTRAL)
    ax.patch.set_alpha(0)
    ax.tick_params(which="both", colors=NEUTRAL)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(NEUTRAL)
    if grid:
        ax.grid(axis=grid, color=NEUTRAL, alpha=0.25, linewidth=0.8)
        ax.set_axisbelow(True)
    return ax


def legend(ax: Any, **options: Any) -> None:
    """A legend without a frame, in neutral text."""
    ax.legend(frameon=False, labelcolor=NEUTRAL, fontsize="small", **options)


def as_results(result: Any) -> Mapping[str, Any]:
    """A results dictionary from itself, from what holds one, or from a result with ``to_dict()``.

    An experiment holds ``results``, the result of LCDD its ``history``.

    Raises:
        ArtefactError: it is none of these.
    """
    for candidate in (result, getattr(result, "results", None), getattr(result, "history", None)):
        if isinstance(candidate, Mapping):
            return candidate
    if callable(getattr(result, "to_dict", None)):
        found: Mapping[str, Any] = result.to_dict()
        return found
    raise ArtefactError(f"cannot draw a {type(result).__name__}: expected results, an experiment, or an evaluation.")


def as_runs(results: Any) -> list[Mapping[str, Any]]:
    """One result or several (seeds) as a list.

    Raises:
        ConfigError: the list is empty.
    """
    several = isinstance(results, Sequence) and not isinstance(results, str)
    runs = [as_results(result) for result in results] if several else [as_results(results)]
    if not runs:
        raise ConfigError("no results to draw: expected at least one.")
    return runs


def seeds_text(runs: Sequence[Mapping[str, Any]]) -> str:
    """ "seed 0" or "3 seeds"; empty where one run does not say."""
    if len(runs) > 1:
        return f"{len(runs)} seeds"
    return f"seed {runs[0]['seed']}" if "seed" in runs[0] else ""


def titled(what: str, *details: str) -> str:
    """A title and, in a second line, the details that are not empty."""
    told = ", ".join(detail for detail in details if detail)
    return f"{what}\n{told}" if told else what
