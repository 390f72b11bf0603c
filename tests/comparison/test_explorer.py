"""Single channels can be looked up: in the record, and on the page by pointer and keyboard."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lcdd_lens.attribution import Contrast, attribute
from lcdd_lens.comparison import CARRIER, ComparisonResult, Material, across_seeds, channels, write_seeds_report
from lcdd_lens.comparison.channels import channel_table
from lcdd_lens.report.comparison import comparison_report, write_comparison_report
from tests.comparison.conftest import METHODS
from tests.report.browser import needs_chromium, open_page, title_of, with_script


def test_every_member_of_every_set_is_listed_with_ranks_that_put_it_there(comparison: ComparisonResult) -> None:
    record = comparison.record
    table = record["channels"]
    assert table["methods"] == list(METHODS)
    for name, places in record["places"].items():
        members = [(site, place) for site in table["sites"].values() for place in site["sets"].get(name, [])]
        assert len(members) == record["carrier_size"]
        for kind, counts in places.items():
            assert sum(site["kind"] == kind for site, _ in members) == sum(counts)
        if name != CARRIER:
            column = table["methods"].index(name)
            ranks = sorted(site["ranks"][place][column] for site, place in members)
            assert ranks == list(range(1, record["carrier_size"] + 1))


def test_scores_and_thetas_are_those_of_the_channels(comparison: ComparisonResult, material: Material) -> None:
    found = attribute("magnitude", Contrast(material.routed, material.discovery), progress=False)
    column = comparison.record["channels"]["methods"].index("magnitude")
    for hook, site in comparison.record["channels"]["sites"].items():
        for place, channel in enumerate(site["channels"]):
            assert site["scores"][place][column] == pytest.approx(float(found.scores[hook][channel]), rel=5e-3)
            assert site["theta"][place] == pytest.approx(float(material.carrier.scores[hook][channel]), rel=5e-3)


def test_large_sets_keep_their_first_channels(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MOST", 5)
    found = attribute("magnitude", Contrast(material.routed, material.discovery), progress=False)
    table = channel_table(material.carrier, {CARRIER: material.carrier.flags(), "magnitude": found.top(24)},
                          {"magnitude": found})  # fmt: skip
    sites = table["sites"].values()
    kept = [site["ranks"][place][0] for site in sites for place in site["sets"].get("magnitude", [])]
    assert sorted(kept) == [1, 2, 3, 4, 5]
    own = [site["theta"][place] for site in sites for place in site["sets"].get(CARRIER, [])]
    theta = torch.cat([material.carrier.scores[site.hook_name] for site in material.carrier.sites])
    best = theta[material.carrier.flags()].sort(descending=True).values[:5]
    assert sorted(own, reverse=True) == pytest.approx(best.tolist(), rel=5e-3)


def seeds(comparison: ComparisonResult, n: int = 2) -> list[Any]:
    records = [copy.deepcopy(comparison.record) for _ in range(n)]
    for seed, record in enumerate(records):
        record["seed"] = seed
    return records


@needs_chromium
def test_a_cell_shows_its_channels_and_the_scores_of_every_method(comparison: ComparisonResult, tmp_path: Path) -> None:
    script = """
    const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    const map = document.querySelector("table.map");
    const text = (query) => document.querySelector(query).textContent;
    const found = {start: text(".panel h4")};
    map.querySelector("tbody button").focus();
    press("ArrowRight");
    press("ArrowDown");
    found.site = document.activeElement.dataset.site;
    found.panel = text(".panel h4");
    found.stops = map.querySelectorAll("button[tabindex='0']").length;
    map.querySelector("button[data-site='FULLEST']").focus();
    found.full = text(".panel h4");
    const detail = document.querySelector(".detail table");
    found.rows = [...detail.tBodies[0].rows].map((row) => row.cells[0].textContent);
    found.heads = [...detail.tHead.rows[0].cells].map((cell) => cell.textContent);
    found.ranks = [...detail.tBodies[0].rows].map((row) => [...row.cells].slice(2).map((cell) => cell.firstChild.data));
    found.marked = [...detail.tBodies[0].rows].map((row) => row.querySelectorAll(".within").length);
    const counts = () => [...map.querySelectorAll("tbody button")].map((button) => Number(button.textContent) || 0);
    found.carrier = counts();
    const select = document.querySelector(".explorer select");
    select.value = "magnitude";
    select.dispatchEvent(new Event("change", {bubbles: true}));
    found.magnitude = counts();
    found.chosen = text(".detail tr.chosen th");
    found.focus = document.querySelector(".panel h4").textContent;
    document.title = JSON.stringify(found);
    """
    record = comparison.record
    sites = record["channels"]["sites"]
    hook = max(sites, key=lambda name: len(sites[name]["channels"]))
    site = sites[hook]
    path = tmp_path / "page.html"
    path.write_text(with_script(comparison_report(record), script.replace("FULLEST", hook)), encoding="utf-8")
    dom, console = open_page(path)
    assert console == ""
    found = json.loads(title_of(dom))
    assert found["site"] == "blocks.1.attn.hook_q" and found["panel"] == "Layer 1, attn_q"
    assert found["full"] == f"Layer {site['layer']}, {site['kind']}" == found["focus"]
    assert found["stops"] == 1
    assert found["rows"] == ["carrier", "weight delta", "attribution patching", "‖Δ‖"]
    assert len(found["heads"]) == 2 + len(site["channels"])
    assert sorted(map(int, found["ranks"][3])) == sorted(rank[2] for rank in site["ranks"])
    assert found["marked"] == [len(site["sets"].get(name, [])) for name in record["sets"]]
    for name in (CARRIER, "magnitude"):
        assert found[name] == [
            record["places"][name][cell["kind"]][cell["layer"]] for cell in record["channels"]["sites"].values()
        ]
    assert found["chosen"] == "‖Δ‖"


@needs_chromium
def test_pages_open_without_an_error_and_switch_between_seeds(comparison: ComparisonResult, tmp_path: Path) -> None:
    single = write_comparison_report(comparison.record, tmp_path / "one.html")
    dom, console = open_page(single)
    assert console == "" and "Channels of carrier here" in dom
    script = """
    document.querySelector("#runs input[value='1']").click();
    document.title = JSON.stringify({
      shown: [...document.querySelectorAll("article")].map((run) => !run.hidden),
      link: document.querySelector(".bar a").getAttribute("href"),
      panels: [...document.querySelectorAll(".panel h4")].length,
    });
    """
    several = write_seeds_report(seeds(comparison), tmp_path / "two.html")
    several.write_text(with_script(several.read_text(encoding="utf-8"), script), encoding="utf-8")
    dom, console = open_page(several)
    assert console == ""
    assert json.loads(title_of(dom)) == {"shown": [False, True], "link": "#run-1-found", "panels": 2}


@needs_chromium
def test_nothing_is_wider_than_a_phone(comparison: ComparisonResult, tmp_path: Path) -> None:
    page = comparison_report(comparison.record)
    script = (
        "const f = document.querySelector('iframe'); f.onload = () => { document.title = "
        "JSON.stringify([f.contentDocument.documentElement.scrollWidth, 390]); };"
    )
    source = with_script(page, "").replace("&", "&amp;").replace('"', "&quot;")
    frame = tmp_path / "phone.html"
    frame.write_text(
        f'<!doctype html><title>x</title><iframe style="width:390px;height:800px;border:0" srcdoc="{source}"></iframe>'
        f"<script>{script}</script>",
        encoding="utf-8",
    )
    content, available = json.loads(title_of(open_page(frame)[0]))
    assert content <= available


def test_a_page_of_seeds_opens_with_what_holds_over_them(comparison: ComparisonResult) -> None:
    records = seeds(comparison, 3)
    page = comparison_report(records, across_seeds(records))
    assert "3 seeds" in page and "of 3 seeds on the plain fine-tuned weights" in page
    assert page.count('<article class="run"') == 3
    assert "seeds apart" in page
