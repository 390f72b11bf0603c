"""Charts say the numbers: places, lengths and ticks follow the data."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcdd_lens.report.charts import LEFT, RIGHT, TOP, WIDTH, Bar, Series, interval_bars, line_chart, nice_ticks
from lcdd_lens.report.plane import Point, Region, plane


def test_line_goes_through_the_corners_of_its_frame() -> None:
    chart = line_chart(
        "c", [Series("loss", [0, 5, 10], [0.0, 1.0, 2.0], "sft")], title="T", y_label="y", y_range=(0.0, 2.0)
    )
    assert chart is not None
    points = chart.data["series"][0]["points"]
    assert [point[:2] for point in points] == [[0, 0], [5, 1], [10, 2]]
    assert points[0][2:] == [LEFT, 250 - 40] and points[-1][2:] == [WIDTH - RIGHT, TOP]
    assert points[1][2] == pytest.approx((points[0][2] + points[2][2]) / 2)
    assert 'class="line c-sft"' in chart.figure


def test_log_axis_puts_a_decade_at_equal_distances_and_leaves_out_what_is_not_positive() -> None:
    chart = line_chart("c", [Series("l", [0, 1, 2, 3], [0.0, 0.01, 0.1, 1.0], "sft")], title="T", y_label="y", log=True)
    assert chart is not None
    heights = [point[3] for point in chart.data["series"][0]["points"]]
    assert len(heights) == 3 and heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])


def test_gaps_are_left_out_and_two_points_are_needed() -> None:
    assert Series("v", [1, 2, 3], [None, 2.0, float("nan")], "sft").points() == [(2.0, 2.0)]
    assert line_chart("c", [Series("v", [1, 2], [None, 2.0], "sft")], title="T", y_label="y") is None


@given(st.integers(2, 5000))
def test_thinning_keeps_first_and_last_within_the_limit(n: int) -> None:
    points = Series("v", list(range(n)), [float(i) for i in range(n)], "sft").points()
    assert points[0] == (0.0, 0.0) and points[-1] == (n - 1.0, n - 1.0) and len(points) <= 602


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_lie_within_and_are_evenly_spaced(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    steps = [b - a for a, b in pairwise(ticks)]
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    assert 1 <= len(ticks) <= 7 and (not steps or max(steps) == pytest.approx(min(steps), rel=1e-3))


def test_bars_are_as_long_as_their_values_and_carry_their_intervals() -> None:
    bars = [Bar("a", "sft", 0.5, 0.4, 0.6, "50 %"), Bar("b", "base", 1.0, 0.9, 1.0, "100 %")]
    figure = interval_bars(bars, title="T", axis="share", x_max=1.0)
    widths = [float(width) for width in re.findall(r'class="bar c-[a-z]+" x="2" y="\d+" width="([\d.]+)"', figure)]
    assert widths[1] == pytest.approx(WIDTH - 10) and widths[0] == pytest.approx(widths[1] / 2)
    assert len(re.findall('class="whisker"', figure)) == 2 and "a: 50 %; b: 100 %" in figure


def test_bars_without_interval_have_no_whisker() -> None:
    assert "whisker" not in interval_bars([Bar("a", "sft", 0.5)], title="T", axis="x")


def test_plane_marks_every_condition_names_its_regions_and_draws_long_arrows_only() -> None:
    points = [
        Point("a", "sft", "s", 1.0, 0.0, (0.9, 1.0), (0.0, 0.1)),
        Point("b", "base", "o", 0.0, 0.9),
        Point("c", "routed", "D", 0.99, 0.0),
    ]
    figure = plane(
        points,
        title="T",
        x_label="behaviour",
        y_label="utility",
        regions=[Region("reversed", (-1, 0.1), (0.7, 2), "good")],
        arrows=[("a", "b"), ("a", "c"), ("a", "absent")],
    )
    assert figure.count('class="point ') == 3 and figure.count('class="spread ') == 2
    assert figure.count("Q") == 1 and ">reversed</text>" in figure


def test_labels_in_one_place_do_not_cover_each_other() -> None:
    points = [Point(f"p{index}", "sft", "s", 1.0, 0.0) for index in range(4)]
    figure = plane(points, title="T", x_label="x", y_label="y")
    heights = sorted(float(y) for y in re.findall(r'class="name halo" x="[\d.]+" y="([\d.]+)"', figure))
    assert len(heights) == 4 and min(b - a for a, b in pairwise(heights)) >= 15.9
