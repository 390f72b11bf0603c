"""What became of a behaviour under each condition, in the words of :func:`lcdd_lens.evaluation.utility.verdict`.

Suppression is not reversal: tokens far out of distribution can silence a behaviour by breaking the model. A behaviour
counts as reversed only when it is gone *and* the base's answers are back; what must come back depends on the behaviour.
"""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.evaluation.utility import GONE, KEPT, LOST, RESTORED
from lcdd_lens.evaluation.utility import verdict as judge
from lcdd_lens.report.page import finite, percent

RULE = (
    f"Kept: at least {percent(KEPT)} of the prompts get the behaviour. Reversed: at most {percent(GONE)} do, and at "
    f"least {percent(RESTORED)} of the base’s answers are back. Suppressed: at most {percent(GONE)} do, and no "
    f"more than {percent(LOST)} are back. Partial: anything between."
)


def value(run: Mapping[str, Any], quantity: str, condition: str) -> float | None:
    """A measured value, ``None`` where there is none."""
    measured = run.get(quantity)
    found = finite(measured.get(condition)).get("value") if isinstance(measured, Mapping) else None
    return None if found is None else float(found)


def restored_quantity(run: Mapping[str, Any]) -> str:
    """The quantity that must come back: ``recovered`` where the behaviour has target prompts, else ``utility``;
    ``agreement`` where the base itself answers nothing right."""
    measure = "recovered" if run.get("recovered") else "utility"
    return measure if value(run, measure, "base") else "agreement"


def restored_text(run: Mapping[str, Any]) -> str:
    """That quantity in words."""
    measure = restored_quantity(run)
    if measure == "recovered":
        return "base’s answers on target prompts"
    return "right answers" if measure == "utility" and run.get("utility_kind") != "agreement" else "base’s answers"


def verdict(run: Mapping[str, Any], condition: str) -> str | None:
    """``kept``, ``reversed``, ``suppressed`` or ``partial``; ``None`` where it cannot be said."""
    recorded = run.get("verdict")
    if isinstance(recorded, Mapping) and isinstance(recorded.get(condition), str):
        return str(recorded[condition])
    measure = restored_quantity(run)
    rate, back, base = (
        value(run, "behaviour_rate", condition),
        value(run, measure, condition),
        value(run, measure, "base"),
    )
    if condition == "base" or rate is None or back is None or not base:
        return None
    return judge(rate, back, base)
