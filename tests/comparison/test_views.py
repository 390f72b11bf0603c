"""Figures and the page of a comparison say what the record says."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from lcdd_lens.attribution import Contrast, attribute
from lcdd_lens.comparison import CARRIER, ComparisonResult, Material
from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.plotting.comparison import (
    plot_faithfulness,
    plot_necessity_sufficiency,
    plot_overlap,
    plot_places,
    plot_two_by_two,
)
from lcdd_lens.plotting.methods import METHOD_LOOKS, best_of_each_family
from lcdd_lens.report.comparison import comparison_report, headline, write_comparison_report


def test_the_faithfulness_figure_draws_the_curves_and_states_n(comparison: ComparisonResult) -> None:
    ax = plot_faithfulness(comparison, ["weight_delta", "magnitude"])
    line = next(line for line in ax.get_lines() if line.get_label() == "weight delta")
    assert list(line.get_ydata()) == comparison.record["curves"]["weight_delta"]["value"]
    assert [round(float(x), 6) for x in line.get_xdata()] == [2, 10, 50, 100]
    assert "n = 6 test prompts" in ax.get_title(loc="left") and "seed 3" in ax.get_title(loc="left")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert {"carrier on LCDD weights", "carrier on SFT weights"} <= set(labels)
    plt.close("all")


def test_the_heatmap_shows_every_value_and_bars_stand_at_theirs(comparison: ComparisonResult) -> None:
    ax = plot_overlap(comparison)
    assert ax.images[0].get_array().tolist() == comparison.record["overlap"]["jaccard"]
    ax = plot_necessity_sufficiency(comparison)
    widths = [bar.get_width() for bar in ax.patches]
    expected = [found["sufficiency"]["value"] for found in comparison.record["sets"].values()]
    assert widths[: len(expected)] == pytest.approx(expected)
    plt.close("all")


def test_the_two_by_two_has_a_bar_per_set_and_kind_of_weights(comparison: ComparisonResult) -> None:
    ax = plot_two_by_two(comparison)
    table = comparison.record["two_by_two"]
    expected = [found[weights]["value"] for weights in ("sft", "lcdd") for found in table.values()]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(expected)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fine-tuned weights", "LCDD's weights"]
    bare = {**comparison.record, "two_by_two": {name: {"sft": found["sft"]} for name, found in table.items()}}
    assert len(plot_two_by_two(bare).patches) == len(table)
    plt.close("all")


def test_stacks_add_up_to_the_size(comparison: ComparisonResult, material: Material) -> None:
    ax = plot_places(comparison, "magnitude")
    assert sum(bar.get_height() for bar in ax.patches) == 24
    scores = attribute("magnitude", Contrast(material.routed, material.discovery), progress=False)
    assert sum(bar.get_height() for bar in scores.plot(10).patches) == 10
    plt.close("all")


def test_figures_refuse_methods_that_were_not_compared(comparison: ComparisonResult) -> None:
    for draw in (plot_faithfulness, plot_overlap, plot_necessity_sufficiency, plot_two_by_two):
        with pytest.raises(ConfigError, match="was not compared"):
            draw(comparison, ["mask_only_kl"])


def test_the_best_of_a_family_has_the_largest_area() -> None:
    curves = {name: {"area_log": {"value": area}} for name, area in
              (("magnitude", 0.1), ("magnitude_relative", 0.3), ("weight_delta", 0.2))}  # fmt: skip
    assert best_of_each_family(curves) == ["weight_delta", "magnitude_relative"]


class Parser(HTMLParser):
    """Collects text and attributes, and checks that elements nest."""

    void: ClassVar = {"br", "col", "hr", "input", "link", "meta"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Parser:
    parser = Parser()
    parser.feed(page)
    assert not parser.open
    return parser


def test_the_page_is_one_well_formed_file_that_loads_nothing(comparison: ComparisonResult, tmp_path: Path) -> None:
    page = write_comparison_report(comparison.record, tmp_path / "page.html").read_text()
    found = parsed(page)
    assert not [name for name, value in found.attributes if name in ("src", "style") or name.startswith("on")]
    assert all(value and value.startswith("#") for name, value in found.attributes if name == "href")
    anchors = {value for name, value in found.attributes if name == "id"}
    assert {value[1:] for name, value in found.attributes if name == "href" and value} <= anchors
    text = " ".join(found.text)
    for label in ("carrier", "weight delta", "attribution patching", "‖Δ‖", "24 of", "6 others"):
        assert label in text
    assert not re.search(r"\b(nan|None|inf)\b", text)


def test_the_headline_follows_the_figures(comparison: ComparisonResult) -> None:
    def record(best: float, carrier: float) -> dict[str, Any]:
        sets = {name: {**found, "sufficiency": {"value": 0.0}} for name, found in comparison.record["sets"].items()}
        sets["magnitude"] = {"sufficiency": {"value": best}}
        both = {CARRIER: {"sft": {"value": 0.0}, "lcdd": {"value": carrier, "interval": [0, 1]}}}
        return {**comparison.record, "sets": sets, "two_by_two": both}

    assert "no ranking finds 24 of 240 channels" in headline(record(0.1, 0.95))
    assert headline(record(0.1, 0.95)).endswith("but on LCDD's weights, its carrier's do.")
    assert headline(record(0.95, 0.95)).startswith("‖Δ‖ finds 24 of 240 channels that carry the behaviour")
    assert "do not either" in headline(record(0.1, 0.2))


def test_text_in_a_record_cannot_become_markup(comparison: ComparisonResult) -> None:
    page = comparison_report({**comparison.record, "behaviour": "<script>alert(1)</script>"})
    assert "<script>alert" not in page
    parsed(page)


def test_a_page_of_something_else_is_refused() -> None:
    with pytest.raises(ArtefactError, match="no comparison here: curves"):
        comparison_report({"sets": {}})


def test_the_table_has_one_row_per_set_with_cost_and_overlap(comparison: ComparisonResult) -> None:
    frame = comparison.to_dataframe()
    assert list(frame.index) == [CARRIER, "weight_delta", "attribution_patching", "magnitude"]
    assert frame.loc["weight_delta", "seconds"] > 0
    assert "ComparisonResult" in comparison._repr_html_()
    assert replace(METHOD_LOOKS[CARRIER]).family == "carrier"
