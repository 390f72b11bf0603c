"""The result: key figures, the plane of behaviour against utility, and a verdict for every condition."""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.evaluation.utility import GONE, KEPT, LOST, RESTORED
from lcdd_lens.plotting.palette import CONDITIONS, in_order, look
from lcdd_lens.report.page import Html, finite, html, interval, percent, section
from lcdd_lens.report.plane import Point, Region, plane
from lcdd_lens.report.story import facts
from lcdd_lens.report.verdict import RULE, restored_quantity, restored_text, value, verdict


def found(run: Mapping[str, Any], prefix: str) -> Html:
    return section(
        prefix,
        "found",
        "What was found",
        html("dl", (_fact(*fact) for fact in facts(run)), class_="facts"),
        html("div", html("div", _plane(run), html("p", RULE, class_="note")), _verdicts(run), class_="columns"),
    )


def _fact(value: str, name: str, detail: str, css: str) -> Html:
    return html("div", html("dt", name), html("dd", html("b", value), html("small", detail)), class_=f"fact {css}")


def _plane(run: Mapping[str, Any]) -> Html | None:
    measure = restored_quantity(run)
    rates, restored = run["behaviour_rate"], run.get(measure, {})
    points = []
    for condition in in_order(list(rates)):
        rate, back = finite(rates.get(condition)), finite(restored.get(condition))
        if rate and back:
            style = look(condition)
            place = float(rate["value"]), float(back["value"])
            points.append(Point(style.label, style.css, style.marker, *place, interval(rate), interval(back)))
    there = value(run, measure, "base")
    if not points or not there:
        return None
    regions = [
        Region("reversed", (-1, GONE), (RESTORED * there, 2), "good"),
        Region("suppressed", (-1, GONE), (-1, LOST * there), "bad"),
        Region("kept", (KEPT, 2), (-1, 2), "warm"),
    ]
    names = {condition: look(condition).label for condition in CONDITIONS}
    return plane(
        points,
        title="Gone is not enough: the base’s answers must come back",
        x_label="prompts that get the behaviour",
        y_label=restored_text(run),
        regions=regions,
        arrows=[(names["routed"], names["routed+trigger"]), (names["sft"], names["sft+trigger"])],
    )


def _verdicts(run: Mapping[str, Any]) -> Html:
    rows = []
    for condition in in_order(list(run["behaviour_rate"])):
        style, judged = look(condition), verdict(run, condition)
        badge = html("span", judged, class_=f"badge {judged}") if judged else None
        rows.append(
            html(
                "li",
                html("span", class_=f"swatch c-{style.css}"),
                html(
                    "div",
                    html("p", html("b", style.label), " ", badge),
                    html("p", style.meaning + "." if style.meaning else None, class_="quiet"),
                    html("p", _figures(run, condition), class_="figures"),
                ),
            )
        )
    return html("ul", rows, class_="verdicts")


def _figures(run: Mapping[str, Any], condition: str) -> str:
    rate, back = value(run, "behaviour_rate", condition), value(run, restored_quantity(run), condition)
    return f"behaviour {percent(rate)}, {restored_text(run)} {percent(back)}"
