"""The result: key figures, the plane of behaviour against utility, and a verdict for every condition."""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.plotting.palette import CONDITIONS, in_order, look
from lcdd_lens.report.page import Html, finite, html, interval, percent, section
from lcdd_lens.report.plane import Point, Region, plane
from lcdd_lens.report.story import facts, value
from lcdd_lens.report.verdict import BACK, GONE, KEPT, PARTLY_BACK, verdict

_RULE = (
    f"A behaviour is gone when at most {percent(GONE)} of it is left (base = 0 %, SFT = 100 %), kept when at least "
    f"{percent(KEPT)} is. It is reversed when it is gone and at least {percent(BACK)} of the base’s right answers are "
    f"back; with less than {percent(PARTLY_BACK)} it is merely suppressed."
)


def found(run: Mapping[str, Any], prefix: str) -> Html:
    return section(
        prefix,
        "found",
        "What was found",
        html("dl", (_fact(*fact) for fact in facts(run)), class_="facts"),
        html("div", html("div", _plane(run), html("p", _RULE, class_="note")), _verdicts(run), class_="columns"),
    )


def _fact(value: str, name: str, detail: str, css: str) -> Html:
    return html("div", html("dt", name), html("dd", html("b", value), html("small", detail)), class_=f"fact {css}")


def _plane(run: Mapping[str, Any]) -> Html | None:
    rates, utilities = run["behaviour_rate"], run.get("utility", {})
    points = []
    for condition in in_order(list(rates)):
        rate, utility = finite(rates.get(condition)), finite(utilities.get(condition))
        if rate and utility:
            style = look(condition)
            points.append(
                Point(
                    style.label,
                    style.css,
                    style.marker,
                    rate["value"],
                    utility["value"],
                    interval(rate),
                    interval(utility),
                )
            )
    base, sft = finite(rates.get("base")), finite(rates.get("sft"))
    there = finite(utilities.get("base"))
    regions = []
    if base and sft and there and sft["value"] - base["value"] >= 0.05:
        span, zero = sft["value"] - base["value"], base["value"]
        gone, kept = zero + GONE * span, zero + KEPT * span
        back, partly = BACK * there["value"], PARTLY_BACK * there["value"]
        regions = [
            Region("reversed", (-1, gone), (back, 2), "good"),
            Region("suppressed", (-1, gone), (-1, partly), "bad"),
            Region("kept", (kept, 2), (-1, 2), "warm"),
        ]
    if not points:
        return None
    names = {condition: look(condition).label for condition in CONDITIONS}
    return plane(
        points,
        title="Gone is not enough: the base’s answers must come back",
        x_label="prompts that get the behaviour",
        y_label="right answers",
        regions=regions,
        arrows=[(names["routed"], names["routed+trigger"]), (names["sft"], names["sft+trigger"])],
    )


def _verdicts(run: Mapping[str, Any]) -> Html:
    rows = []
    for condition in in_order(list(run["behaviour_rate"])):
        style, judged = look(condition), verdict(run, condition)
        badge = html("span", judged.word, class_=f"badge {judged.css}") if judged and condition != "base" else None
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
    rate, utility = (percent(value(run, quantity, condition)) for quantity in ("behaviour_rate", "utility"))
    return f"behaviour {rate}, utility {utility}"
