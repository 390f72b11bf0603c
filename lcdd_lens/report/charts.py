"""Inline SVG: lines over steps, and bars with intervals.

Everything is drawn here, so that a page shows its figures without scripts; scripts only add the values under the
pointer or the keyboard's focus. Colours come from CSS classes (``c-…``), sizes from a view box of about a column's
width, so that text stays readable on a phone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcdd_lens.report.page import Html, html, number

WIDTH = 480
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 16, 40
_MOST_POINTS = 600


@dataclass(frozen=True)
class Series:
    """One line: ``y`` may hold ``None`` where nothing was measured."""

    label: str
    x: Sequence[float | int]
    y: Sequence[float | int | None]
    css: str
    dashed: bool = False

    def points(self, log: bool = False) -> list[tuple[float, float]]:
        """Finite points (positive ones on a log axis), thinned to what a page can show; the last is kept."""
        kept = [
            (float(x), float(y))
            for x, y in zip(self.x, self.y, strict=False)
            if y is not None and math.isfinite(y) and (not log or y > 0)
        ]
        stride = math.ceil(len(kept) / _MOST_POINTS) or 1
        thinned = kept[::stride]
        return thinned if not kept or thinned[-1] == kept[-1] else [*thinned, kept[-1]]


@dataclass(frozen=True)
class Chart:
    """A figure and what scripts need to read it out."""

    figure: Html
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """One row of :func:`interval_bars`; ``low`` and ``high`` bound the 95 % interval."""

    label: str
    css: str
    value: float | int
    low: float | int | None = None
    high: float | int | None = None
    text: str = ""


class Axis:
    """Data -> view box, linear or logarithmic, with its ticks."""

    def __init__(
        self, low: float | int, high: float | int, start: float | int, end: float | int, *, log: bool = False
    ) -> None:
        self.log = log
        self.low, self.high = (math.log10(low), math.log10(high)) if log else (low, high)
        if self.high <= self.low:
            pad = 0.5 if log else abs(self.low) * 0.1 or 1.0
            self.low, self.high = self.low - pad, self.high + pad
        self.start, self.end = start, end

    def __call__(self, value: float | int) -> float:
        value = math.log10(value) if self.log else value
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    def ticks(self, n: int = 5) -> list[float]:
        if self.log:
            decades = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
            if len(decades) >= 2:
                return [10.0**d for d in decades if (d - decades[0]) % math.ceil(len(decades) / n) == 0]
            within = [m * 10.0**d for d in range(math.floor(self.low), math.ceil(self.high) + 1) for m in (1, 2, 5)]
            return [tick for tick in within if self.low - 1e-9 <= math.log10(tick) <= self.high + 1e-9]
        return nice_ticks(self.low, self.high, n)


def nice_ticks(low: float | int, high: float | int, n: int = 5) -> list[float]:
    """About ``n`` round numbers within [low, high]."""
    raw = (high - low) / max(n, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    identifier: str,
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "step",
    y_label: str,
    log: bool = False,
    y_range: tuple[float | int, float | int] | None = None,
    marks: Sequence[tuple[float | int, str]] = (),
    share: bool = False,
    height: int = 250,
) -> Chart | None:
    """Lines over steps; ``None`` when no series has two points.

    Args:
        identifier: unique on the page.
        log: logarithmic y axis; points at or below 0 are not drawn.
        y_range: fixed axis; otherwise the data's.
        marks: vertical lines (x, label), such as the end of a warm-up.
        share: write y as percent.
    """
    drawn = [(line, line.points(log)) for line in series]
    drawn = [(line, points) for line, points in drawn if len(points) >= 2]
    if not drawn:
        return None
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    low, high = y_range or (min(ys), max(ys))
    if y_range is None and not log:
        low = min(low, 0.0) if low >= 0 else low
        high += 0.04 * (high - low)
    horizontal = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    vertical = Axis(low, high, height - BOTTOM, TOP, log=log)
    parts = [*frame(horizontal, vertical, x_label, y_label, height, y_share=share), *_marks(marks, horizontal, height)]
    for line, points in drawn:
        path = "M" + "L".join(f"{horizontal(x):g},{vertical(y):g}" for x, y in points)
        parts.append(html("path", class_=f"line c-{line.css}{' dashed' if line.dashed else ''}", d=path))
    parts.append(
        html("g", html("line", class_="cross", y1=TOP, y2=height - BOTTOM), class_="cursor", visibility="hidden")
    )
    legend = html(
        "ul",
        (
            html("li", html("span", class_=f"swatch c-{line.css}{' dashed' if line.dashed else ''}"), line.label)
            for line, _ in drawn
        ),
        class_="legend",
    )
    summary = "; ".join(f"{line.label} from {number(p[0][1])} to {number(p[-1][1])}" for line, p in drawn)
    figure = html(
        "figure",
        html("figcaption", html("h4", title), legend),
        html(
            "svg",
            html("title", f"{title}: {summary}. Arrow keys read values."),
            parts,
            viewBox=f"0 0 {WIDTH} {height}",
            role="img",
            tabindex=0,
            data_chart=identifier,
        ),
        html("output", class_="readout", aria_live="polite"),
        class_="chart",
    )
    data = {
        "x": [horizontal.low, horizontal.high, horizontal.start, horizontal.end],
        "xLabel": x_label,
        "share": share,
        "series": [
            {
                "label": line.label,
                "css": line.css,
                "points": [[x, float(f"{y:.5g}"), horizontal(x), vertical(y)] for x, y in points],
            }
            for line, points in drawn
        ],
    }
    return Chart(figure, data)


def interval_bars(
    bars: Sequence[Bar],
    *,
    title: str,
    axis: str,
    note: str = "",
    x_max: float | int | None = None,
    share: bool = True,
    reference: tuple[str, float | int] | None = None,
) -> Html:
    """Horizontal bars with 95 % intervals: the name above each bar, the figure to its right.

    Args:
        x_max: end of the axis; the data's when not given.
        reference: label and value of a dashed vertical line.
    """
    row, left, right = 37, 2, WIDTH - 8
    top = 16 if reference else 4
    height = top + row * len(bars) + 36
    end = x_max if x_max is not None else max([bar.high or bar.value for bar in bars] + [1e-9]) * 1.05
    scale = Axis(0.0, end, left, right)
    parts: list[Html] = []
    for tick in scale.ticks(4):
        label = f"{100 * tick:g} %" if share else f"{tick:g}"
        anchor = "start" if scale(tick) < 12 else "end" if scale(tick) > right - 12 else "middle"
        parts.append(html("line", class_="grid", x1=scale(tick), x2=scale(tick), y1=top, y2=height - 32))
        parts.append(html("text", label, class_="tick", x=scale(tick), y=height - 19, text_anchor=anchor))
    parts.append(html("text", axis, class_="axis", x=(left + right) / 2, y=height - 4, text_anchor="middle"))
    if reference:
        x = scale(reference[1])
        anchor = "end" if x > WIDTH / 2 else "start"
        parts.append(html("line", class_="reference", x1=x, x2=x, y1=top - 4, y2=height - 32))
        parts.append(html("text", reference[0], class_="tick", x=x, y=10, text_anchor=anchor))
    for index, bar in enumerate(bars):
        y = top + row * index
        parts.append(html("text", bar.label, class_="name halo", x=left, y=y + 13))
        parts.append(html("text", bar.text, class_="figure halo", x=right, y=y + 13, text_anchor="end"))
        parts.append(html("rect", class_="track", x=left, y=y + 19, width=right - left, height=10, rx=2))
        width = max(scale(min(bar.value, end)) - left, 1.5)
        parts.append(html("rect", class_=f"bar c-{bar.css}", x=left, y=y + 19, width=round(width, 2), height=10, rx=2))
        if bar.low is not None and bar.high is not None:
            x1, x2, middle = scale(max(bar.low, 0.0)), scale(min(bar.high, end)), y + 24
            parts.append(
                html("path", class_="whisker", d=f"M{x1},{middle}H{x2}M{x1},{middle - 5}v10M{x2},{middle - 5}v10")
            )
    summary = "; ".join(f"{bar.label}: {bar.text}" for bar in bars)
    return html(
        "figure",
        html("figcaption", html("h4", title), html("p", note) if note else None),
        html(
            "svg",
            html("title", f"{title}. {summary}"),
            parts,
            viewBox=f"0 0 {WIDTH} {height}",
            role="img",
            class_="bars",
        ),
        class_="chart",
    )


def frame(
    horizontal: Axis,
    vertical: Axis,
    x_label: str,
    y_label: str,
    height: int,
    *,
    x_share: bool = False,
    y_share: bool = False,
) -> list[Html]:
    """Ticks, horizontal grid lines and axis labels; shares are written as percent."""
    parts: list[Html] = []
    for tick in vertical.ticks():
        y = vertical(tick)
        label = f"{100 * tick:g} %" if y_share else _tick(tick)
        parts.append(html("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(html("text", label, class_="tick", x=LEFT - 7, y=y + 3.5, text_anchor="end"))
    for tick in horizontal.ticks():
        label = f"{100 * tick:g} %" if x_share else _tick(tick)
        parts.append(
            html("text", label, class_="tick", x=horizontal(tick), y=height - BOTTOM + 15, text_anchor="middle")
        )
    middle = (TOP + height - BOTTOM) / 2
    parts.append(html("text", x_label, class_="axis", x=(LEFT + WIDTH - RIGHT) / 2, y=height - 6, text_anchor="middle"))
    parts.append(
        html(
            "text", y_label, class_="axis", x=10, y=middle, text_anchor="middle", transform=f"rotate(-90 10 {middle:g})"
        )
    )
    return parts


def _marks(marks: Sequence[tuple[float | int, str]], horizontal: Axis, height: int) -> list[Html]:
    parts: list[Html] = []
    for x, label in marks:
        if not horizontal.low <= x <= horizontal.high:
            continue
        at = horizontal(x)
        near_end = at > WIDTH * 0.7
        parts.append(html("line", class_="reference", x1=at, x2=at, y1=TOP, y2=height - BOTTOM))
        parts.append(
            html(
                "text",
                label,
                class_="tick",
                x=at - 4 if near_end else at + 4,
                y=TOP - 4,
                text_anchor="end" if near_end else "start",
            )
        )
    return parts


def _tick(value: float | int) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.10g}"
