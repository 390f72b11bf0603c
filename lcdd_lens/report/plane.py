"""The picture of a run: behaviour across, utility up, one mark per condition.

Suppressed and reversed differ here at a glance: both lie at the left, but only a reversed condition is back at the
height of the base.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lcdd_lens.report.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, frame
from lcdd_lens.report.page import Html, html

_MARKERS: dict[str, str] = {
    "o": "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0Z",
    "s": "M-6,-6h12v12h-12Z",
    "D": "M0,-8L8,0L0,8L-8,0Z",
    "^": "M0,-7.5L7.2,5.7H-7.2Z",
    "v": "M0,7.5L7.2,-5.7H-7.2Z",
    "P": "M-2.4,-7.2h4.8v4.8h4.8v4.8h-4.8v4.8h-4.8v-4.8h-4.8v-4.8h4.8Z",
    "X": "M0,-3.4L3.6,-7L7,-3.6L3.4,0L7,3.6L3.6,7L0,3.4L-3.6,7L-7,3.6L-3.4,0L-7,-3.6L-3.6,-7Z",
    "*": "M0,-8L2,-2.6L7.6,-2.4L3.2,1L4.7,6.5L0,3.3L-4.7,6.5L-3.2,1L-7.6,-2.4L-2,-2.6Z",
}
"""Outlines about the origin, by matplotlib's names."""

_EDGE = 0.03


@dataclass(frozen=True)
class Point:
    """One mark of :func:`plane`: (x, y) with their intervals."""

    label: str
    css: str
    marker: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Region:
    """A named rectangle of :func:`plane` in data coordinates."""

    label: str
    x: tuple[float | int, float | int]
    y: tuple[float | int, float | int]
    css: str = ""


def plane(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    regions: Sequence[Region] = (),
    arrows: Sequence[tuple[str, str]] = (),
    height: int = 440,
) -> Html:
    """Marks on the unit square with crosses for their intervals, and arrows between marks named by label."""
    across = Axis(-_EDGE, 1 + _EDGE, LEFT, WIDTH - RIGHT)
    up = Axis(-_EDGE, 1 + _EDGE, height - BOTTOM, TOP)
    placed = {point.label: (across(point.x), up(point.y)) for point in points}
    colours = {point.label: point.css for point in points}
    parts = [_region(region, across, up) for region in regions]
    parts += frame(across, up, x_label, y_label, height, x_share=True, y_share=True)
    for start, end in arrows:
        if start in placed and end in placed:
            parts += _arrow(placed[start], placed[end], colours[end])
    for point in points:
        x, y = placed[point.label]
        for low, high in [point.x_interval] if point.x_interval else []:
            parts.append(html("line", class_=f"spread c-{point.css}", x1=across(low), x2=across(high), y1=y, y2=y))
        for low, high in [point.y_interval] if point.y_interval else []:
            parts.append(html("line", class_=f"spread c-{point.css}", x1=x, x2=x, y1=up(low), y2=up(high)))
    parts += [_region_name(region, across, up) for region in regions]
    for point in points:
        x, y = placed[point.label]
        outline = _MARKERS.get(point.marker, _MARKERS["o"])
        parts.append(html("path", class_=f"point c-{point.css}", d=outline, transform=f"translate({x:g} {y:g})"))
    parts += _labels(points, across, up, height)
    summary = "; ".join(f"{p.label}: {x_label} {p.x:.2f}, {y_label} {p.y:.2f}" for p in points)
    name = html("title", f"{title}. {summary}")
    drawing = html("svg", name, parts, viewBox=f"0 0 {WIDTH} {height}", role="img", class_="plane")
    return html("figure", html("figcaption", html("h4", title)), drawing, class_="chart")


def _box(region: Region, across: Axis, up: Axis) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a region within the frame."""
    (x1, x2), (y1, y2) = ((max(low, -_EDGE), min(high, 1 + _EDGE)) for low, high in (region.x, region.y))
    return across(x1), across(x2), up(y2), up(y1)


def _region(region: Region, across: Axis, up: Axis) -> Html:
    left, right, top, bottom = _box(region, across, up)
    return html("rect", class_=f"region {region.css}", x=left, y=top, width=right - left, height=bottom - top)


def _region_name(region: Region, across: Axis, up: Axis) -> Html:
    """Where marks are rare: at the inner edge of a region, or half-way up one that spans the frame."""
    left, right, top, bottom = _box(region, across, up)
    at_floor, at_ceiling = region.y[0] <= 0, region.y[1] >= 1
    y = (top + bottom) / 2 if at_floor and at_ceiling else top + 16 if at_floor else bottom - 8
    at_right = left > WIDTH / 2
    x, anchor = (right - 7, "end") if at_right else (left + 7, "start")
    return html("text", region.label, class_=f"region-name {region.css}", x=x, y=y, text_anchor=anchor)


def _arrow(start: tuple[float, float], end: tuple[float, float], css: str) -> list[Html]:
    """A bent arrow between two marks; none where they nearly coincide."""
    length = math.dist(start, end)
    if length < 40:
        return []
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    x1, y1, x2, y2 = start[0] + 12 * ux, start[1] + 12 * uy, end[0] - 13 * ux, end[1] - 13 * uy
    cx, cy = (x1 + x2) / 2 + 0.16 * length * uy, (y1 + y2) / 2 - 0.16 * length * ux
    angle = math.degrees(math.atan2(y2 - cy, x2 - cx))
    shaft = html("path", class_=f"arrow c-{css}", d=f"M{x1:.1f},{y1:.1f}Q{cx:.1f},{cy:.1f} {x2:.1f},{y2:.1f}")
    turn = f"translate({x2:.1f} {y2:.1f}) rotate({angle:.1f})"
    return [shaft, html("path", class_=f"arrow c-{css}", d="M-8,-4L0,0L-8,4", transform=turn)]


def _labels(points: Sequence[Point], across: Axis, up: Axis, height: int, gap: float = 16.0) -> list[Html]:
    """Names beside their marks: inwards, spread so that none covers another, joined by thin lines."""
    parts: list[Html] = []
    floor = float(height - BOTTOM - 8)
    for at_right in (False, True):
        side = sorted((point for point in points if (point.x > 0.5) == at_right), key=lambda point: -point.y)
        anchor = "end" if at_right else "start"
        for point, place in zip(side, _spread([up(point.y) for point in side], floor, gap), strict=True):
            low, high = point.x_interval or (point.x, point.x)
            x, y = across(point.x), up(point.y)
            edge = min(x - 20, across(low) - 6) if at_right else max(x + 15, across(high) + 6)
            if abs(place - y) > 3:
                parts.append(html("line", class_="leader", x1=(x + edge) / 2, y1=y, x2=edge, y2=place))
            parts.append(html("text", point.label, class_="name halo", x=edge, y=place + 4, text_anchor=anchor))
    return parts


def _spread(wanted: Sequence[float], floor: float, gap: float) -> list[float]:
    """Ascending places at least ``gap`` apart, near the wanted ones, none below ``floor``."""
    places: list[float] = []
    for y in wanted:
        places.append(max(y, places[-1] + gap) if places else y)
    limit = floor
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    return places
