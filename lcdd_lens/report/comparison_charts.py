"""Figures of the comparison page: faithfulness on log k with bands, and overlap as a heatmap, both inline SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lcdd_lens.plotting.methods import CARRIER, method_look
from lcdd_lens.report.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, frame
from lcdd_lens.report.page import Html, finite, html, number, percent

_LOW, _HIGH = -0.25, 1.15
_DARK = 0.6  # Jaccard from which a cell is too dark for dark figures


def faithfulness_chart(record: Mapping[str, Any], names: Sequence[str], title: str, *, height: int = 250) -> Html:
    """F(k) of some rankings with 95 % bands, and the carrier as a filled (LCDD weights) and a hollow (SFT) point."""
    curves = {name: record["curves"][name] for name in names}
    shares = [share for curve in curves.values() for share in curve["shares"]]
    horizontal = Axis(min(shares), max(shares), LEFT, WIDTH - RIGHT, log=True)
    vertical = Axis(_LOW, _HIGH, height - BOTTOM, TOP)

    def y(value: float | int) -> float:
        return vertical(min(max(value, _LOW), _HIGH))

    parts = frame(horizontal, vertical, "open channels", "F", height, x_share=True)
    parts.append(html("line", class_="reference", x1=LEFT, x2=WIDTH - RIGHT, y1=y(1), y2=y(1)))
    for name, curve in curves.items():
        look = method_look(name)
        places = [horizontal(share) for share in curve["shares"]]
        upper = [f"{x:g},{y(high):g}" for x, high in zip(places, curve["high"], strict=True)]
        lower = [f"{x:g},{y(low):g}" for x, low in zip(places, curve["low"], strict=True)]
        band = "M" + "L".join([*upper, *reversed(lower)]) + "Z"
        line = "M" + "L".join(f"{x:g},{y(value):g}" for x, value in zip(places, curve["value"], strict=True))
        parts.append(html("path", class_=f"bar c-{look.css}", fill_opacity=0.16, d=band))
        parts.append(html("path", class_=f"line c-{look.css}{'' if look.line == '-' else ' dashed'}", d=line))
    parts += _carrier_points(record, horizontal, y)
    legend = html(
        "ul",
        (
            html(
                "li",
                html("span", class_=f"swatch c-{look.css}{'' if look.line == '-' else ' dashed'}"),
                look.label,
            )
            for look in map(method_look, names)
        ),
        class_="legend",
    )
    summary = "; ".join(
        f"{method_look(name).label}: area on log k {number(curve['area_log']['value'])}"
        for name, curve in curves.items()
    )
    return html(
        "figure",
        html("figcaption", html("h4", title), legend),
        html("svg", html("title", f"{title}. {summary}"), parts, viewBox=f"0 0 {WIDTH} {height}", role="img"),
        class_="chart",
    )


def _carrier_points(record: Mapping[str, Any], horizontal: Axis, y: Any) -> list[Html]:
    share = record["carrier_size"] / record["n_gates"]
    parts = []
    for weights, css in (("sft", "line"), ("lcdd", "point")):
        point = finite(record["two_by_two"].get(CARRIER, {}).get(weights))
        if point and horizontal.low <= math.log10(share) <= horizontal.high:
            called = "LCDD" if weights == "lcdd" else "SFT"
            x, place = horizontal(share), y(point["value"])
            told = html("title", f"carrier on {called} weights: F {share_number(point['value'])}")
            parts.append(html("circle", told, class_=f"{css} c-routed", cx=x, cy=place, r=5.5))
            parts.append(html("text", called, class_="tick halo", x=x - 9, y=place - 6, text_anchor="end"))
    return parts


def overlap_heatmap(record: Mapping[str, Any]) -> Html:
    """Jaccard of every pair of sets of the carrier's size; darker = more channels shared."""
    names = record["overlap"]["names"]
    left, top, cell = 184, 6, 29
    width, height = left + cell * len(names) + 4, top + cell * len(names) + 124
    parts = []
    for row, name in enumerate(names):
        label = method_look(name).label
        middle = top + cell * row + cell / 2
        parts.append(html("text", label, class_="name", x=left - 6, y=middle + 4, text_anchor="end"))
        place = left + cell * row + cell / 2
        under = top + cell * len(names) + 12
        parts.append(
            html(
                "text",
                label,
                class_="tick",
                x=place,
                y=under,
                transform=f"rotate(-55 {place:g} {under:g})",
                text_anchor="end",
            )
        )
        for column, value in enumerate(record["overlap"]["jaccard"][row]):
            chance = record["overlap"]["chance"][row][column]
            x, y = left + cell * column, top + cell * row
            pair = f"{label} and {method_look(names[column]).label}"
            told = f"{pair}: {number(value)}, by chance at these sites {number(chance)}"
            parts.append(html("rect", class_="track", x=x, y=y, width=cell - 2, height=cell - 2))
            parts.append(
                html(
                    "rect",
                    html("title", told),
                    class_="bar c-routed-trigger",
                    fill_opacity=round(0.85 * value, 3),
                    x=x,
                    y=y,
                    width=cell - 2,
                    height=cell - 2,
                )
            )
            if row != column:
                parts.append(
                    html(
                        "text",
                        f"{value:.2f}".removeprefix("0"),
                        class_="figure on" if value >= _DARK else "figure",
                        x=x + cell / 2 - 1,
                        y=y + cell / 2 + 3,
                        text_anchor="middle",
                    )
                )
    return html(
        "figure",
        html("figcaption", html("h4", f"Shared channels among the first {record['carrier_size']} (Jaccard)")),
        html(
            "svg",
            html("title", "Jaccard of every pair of rankings; the table beside it has the carrier's row with chance."),
            parts,
            viewBox=f"0 0 {width} {height}",
            role="img",
        ),
        class_="chart",
    )


def share_text(estimate: Any) -> str:
    """ "0.42 (0.38–0.47)" for an estimate of F; a dash where nothing was measured."""
    found = finite(estimate)
    if not found:
        return "–"
    low, high = found["interval"]
    between = "–" if low >= 0 and high >= 0 else " to "
    return f"{share_number(found['value'])} ({share_number(low)}{between}{share_number(high)})"


def share_number(value: float | int | None) -> str:
    """An F with two decimals, three near zero."""
    if value is None:
        return "–"
    text = f"{value:.2f}" if abs(value) >= 0.0995 else f"{value:.3f}"
    return text.replace("-0.000", "0.000").replace("-", "−")


def rate_text(estimate: Any) -> str:
    """ "97 %" for a rate."""
    found = finite(estimate)
    return percent(found["value"], 0) if found else "–"
