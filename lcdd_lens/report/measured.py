"""Every measured quantity, condition by condition, with 95 % intervals: as bars and as a table."""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.plotting.palette import QUANTITIES, in_order, look
from lcdd_lens.report.charts import Bar, interval_bars
from lcdd_lens.report.page import Html, finite, html, interval, number, percent, section, table


def estimate_text(estimate: Mapping[str, Any], share: bool) -> str:
    """ "1.5 % (0.5–4.3), n 200": value, 95 % interval, sample size, and the worst of several draws."""
    if not estimate:
        return "–"
    bounds = interval(estimate)
    value = percent(estimate["value"]) if share else number(estimate["value"])
    if bounds and share:
        value += f" ({percent(bounds[0])[:-2]}–{percent(bounds[1])[:-2]})"
    elif bounds:
        value += f" ({number(bounds[0])}–{number(bounds[1])})"
    if "n" in estimate:
        value += f", n {estimate['n']:,}"
    worst = estimate.get("worst")
    if isinstance(worst, int | float):
        value += f", worst {percent(worst) if share else number(worst)}"
    return value


def measured(run: Mapping[str, Any], prefix: str) -> Html:
    panels = []
    for name, quantity in QUANTITIES.items():
        measured = run.get(name) or {}
        bars = []
        for condition in in_order(list(measured)):
            estimate = finite(measured[condition])
            if estimate:
                low, high = interval(estimate) or (None, None)
                style = look(condition)
                text = estimate_text(estimate, quantity.share)
                bars.append(Bar(style.label, style.css, float(estimate["value"]), low, high, text))
        if not bars:
            continue
        base = finite(measured.get("base"))
        panels.append(
            interval_bars(
                bars,
                title=quantity.title,
                axis=quantity.axis,
                note=quantity.reading,
                x_max=1.0 if quantity.share else None,
                share=quantity.share,
                reference=("base", base["value"]) if base and name in ("utility",) else None,
            )
        )
    return section(
        prefix,
        "measured",
        "What was measured",
        html("div", panels, class_="grid-2"),
        html("details", html("summary", "The same as a table"), _table_of(run)),
        intro="On prompts that no training saw. Whiskers and parentheses: 95 % intervals. n: number of prompts.",
    )


def _table_of(run: Mapping[str, Any]) -> Html:
    present = [name for name in QUANTITIES if run.get(name)]
    conditions = in_order(list(dict.fromkeys(condition for name in present for condition in run[name])))
    rows = [
        [
            look(condition).label,
            *(estimate_text(finite(run[name].get(condition)), QUANTITIES[name].share) for name in present),
        ]
        for condition in conditions
    ]
    return table(["condition", *(QUANTITIES[name].title for name in present)], rows, caption="All conditions")
