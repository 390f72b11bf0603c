"""What holds over the seeds of a comparison: means with Student's intervals, and differences from the carrier."""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.plotting.methods import CARRIER, method_look
from lcdd_lens.report.comparison_charts import share_number, share_text
from lcdd_lens.report.page import Html, html, number, table

_AT_SIZE = "F of |C| channels, SFT weights"
_ON_LCDD = "F of |C| channels, LCDD weights"
_FAITHFUL = 0.9


def headline_over_seeds(across: Mapping[str, Any]) -> str:
    """How often a ranking of the carrier's size, and the carrier on LCDD's weights, carry the behaviour."""
    own = across["figures"][_AT_SIZE]
    seeds = len(across["seeds"])
    best = max((name for name in own if name != CARRIER), key=lambda name: own[name]["value"])
    reached = sum(value >= _FAITHFUL for value in own[best]["seeds"])
    text = (
        f"The best ranking, {method_look(best).label}, carries the behaviour with the carrier’s number of channels in "
        f"{reached} of {seeds} seeds on the plain fine-tuned weights"
    )
    carrier = across["figures"][_ON_LCDD].get(CARRIER)
    if carrier is None:
        return f"{text}."
    kept = sum(value >= _FAITHFUL for value in carrier["seeds"])
    return f"{text}; on LCDD’s weights the carrier does in {kept} of {seeds}."


def over_seeds(across: Mapping[str, Any]) -> Html:
    """The section with one row per set and one column per figure."""
    figures = across["figures"]
    columns = [title for title in figures if figures[title]]
    names = list(figures[_AT_SIZE])
    rows = []
    for name in names:
        against = across["against_carrier"].get(name)
        rows.append(
            [
                method_look(name).label,
                *(share_text(figures[title].get(name)) for title in columns),
                "–" if against is None else _difference(against),
                "–" if against is None else number(against["holm"], 2),
                "–" if against is None else f"{against['seeds_apart']} of {len(across['seeds'])}",
            ]
        )
    head = ["channels of", *columns, "less the carrier’s F", "p (Holm)", "seeds apart"]
    return html(
        "section",
        html("h3", f"{len(across['seeds'])} seeds", id="seeds-title"),
        html(
            "p",
            "Means over seeds, each with its own fine-tuning, LCDD and prompts; parentheses: Student’s 95 % interval "
            "over seeds. Seeds apart: how many seeds tell ranking and carrier apart by their own test prompts (paired "
            "bootstrap, Holm over rankings, p < 0.05).",
            class_="intro",
        ),
        table(head, rows, caption="Figures over seeds", class_="nowrap"),
        id="seeds",
        aria_labelledby="seeds-title",
    )


def _difference(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{share_number(found['value'])} ({share_number(low)} to {share_number(high)})"
