"""The run report: what it says follows from the results, and it opens without an error."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lcdd_lens.errors import ArtefactError
from lcdd_lens.plotting.sites import SiteChannels, site_channels
from lcdd_lens.report import run_report, write_run_report
from lcdd_lens.report.overview import overlap
from lcdd_lens.report.story import cautions, headline
from lcdd_lens.report.verdict import restored_quantity, verdict
from tests.fake_results import CONDITIONS, carrier, fake_results, rate
from tests.report.browser import needs_chromium, open_page, title_of, with_script

ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"


def text_of(page: str) -> str:
    return re.sub(r"<[^>]*>", " ", page)


def with_values(seed: int = 0, **values: dict[str, float]) -> dict[str, Any]:
    results = fake_results(seed)
    for quantity, changed in values.items():
        for condition, value in changed.items():
            results[quantity][condition] = rate(value)
    return results


def test_report_has_every_section_condition_and_figure() -> None:
    page = run_report(fake_results())
    for key in ("found", "measured", "answers", "carrier", "training", "done", "limits"):
        assert f'id="run-0-{key}"' in page
    for name in (
        "Behaviour",
        "Utility",
        "Distance from the base",
        "Distance from SFT",
        "Fine-tuning",
        "LCDD: sparsity",
    ):
        assert f"<h4>{name}</h4>" in page
    assert page.count('<rect class="bar ') == 6 * len(CONDITIONS)
    assert "99.5\u202f% (97.2–99.9), n 200" in page
    assert "worst 96\u202f%" in page
    assert "2.13.0" in page and "closed gates equal the base" in page and "1 min 40 s" in page


def test_report_opens_with_what_was_found() -> None:
    results = fake_results()
    share = 100 * (1 - results["carrier"]["sparsity"])
    assert headline([results]).startswith(f"{share:.1f}")
    assert headline([results]).endswith("and one trigger token gives the base’s answers back.")


@pytest.mark.parametrize(
    ("behaviour", "utility", "word", "ending"),
    [
        (0.05, 0.8, "reversed", "gives the base’s answers back."),
        (0.05, 0.1, "suppressed", "without giving the base’s answers back."),
        (0.95, 0.0, "kept", "does not remove it."),
        (0.5, 0.4, "partial", "reverses it in part."),
    ],
)
def test_headline_follows_the_verdict(behaviour: float, utility: float, word: str, ending: str) -> None:
    results = with_values(behaviour_rate={"routed+trigger": behaviour}, utility={"routed+trigger": utility})
    assert verdict(results, "routed+trigger") == word
    assert headline([results]).endswith(ending)


def test_recorded_verdict_has_the_last_word_and_base_has_none() -> None:
    results = fake_results() | {"verdict": {"routed+trigger": "partial"}}
    assert verdict(results, "routed+trigger") == "partial"
    assert verdict(results, "base") is None


def test_a_carrier_that_lost_the_behaviour_is_not_praised() -> None:
    assert "does not hold the behaviour" in headline([with_values(behaviour_rate={"routed": 0.4})])


def test_what_must_come_back_depends_on_the_behaviour() -> None:
    results = fake_results()
    assert restored_quantity(results) == "utility"
    assert restored_quantity(results | {"recovered": {"base": rate(1.0)}}) == "recovered"
    assert restored_quantity(with_values(utility={"base": 0.0})) == "agreement"


def test_cautions_come_from_the_figures() -> None:
    plain = " ".join(cautions(fake_results()))
    assert "no contrast" not in plain and "as few as" not in plain and "lie in layer 0" in plain
    assert "1.62 nats" in plain
    weak = with_values(behaviour_rate={"sft+trigger": 0.02, "routed+random": 0.3}, utility={"sft+trigger": 0.0})
    said = " ".join(cautions(weak))
    assert "no contrast" in said and "(suppressed)" in said and "as few as 30\u202f%" in said


def test_carrier_map_counts_every_site() -> None:
    results = fake_results()
    page = run_report(results)
    cells = re.findall(r'data-site="([^"]+)" aria-label="layer (\d+), (\w+): (\d+) of (\d+) open"', page)
    assert len(cells) == len(results["carrier"]["sites"])
    for hook, layer, kind, n_open, n_channels in cells:
        site = results["carrier"]["sites"][hook]
        assert (int(layer), kind, int(n_open), int(n_channels)) == (
            site["layer"],
            site["kind"],
            len(site["open"]),
            site["n_channels"],
        )


def test_data_block_holds_the_open_channels_with_their_scores() -> None:
    results = fake_results()
    block = re.search(r'id="lcdd-data">(.*?)</script>', run_report(results), re.DOTALL)
    assert block is not None
    sites = json.loads(block.group(1))["carriers"]["run-0"]
    hook = "blocks.0.mlp.hook_post"
    recorded = results["carrier"]["sites"][hook]
    assert sites[hook]["open"] == recorded["open"]
    assert sites[hook]["scores"] == pytest.approx([recorded["scores"][i] for i in recorded["open"]], rel=1e-2)
    assert sites["blocks.0.attn.hook_q"]["head"] == 32 and sites[hook]["head"] is None


def test_answers_stand_side_by_side_and_say_when_they_are_the_base_s() -> None:
    page = run_report(fake_results())
    samples = page.split('class="sample"')[1:]
    assert len(samples) == 6
    assert samples[0].count('class="answer ') == len(CONDITIONS)
    assert samples[0].count("= base") == 1 and samples[3].count("= base") == 0
    assert samples[0].count("hidden") == 2


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    results = fake_results()
    results["behaviour"] = ATTACK
    results["data"]["response_kind"] = ATTACK
    results["config"]["base"] = ATTACK
    results["config"][ATTACK] = {ATTACK: ATTACK}
    results["seed"] = ATTACK
    results["samples"][0] = {"prompt": ATTACK, "label": ATTACK, "answers": {"base": ATTACK, ATTACK: ATTACK}}
    results["invariants"] = {ATTACK: True}
    results["versions"] = {ATTACK: ATTACK}
    results["seconds"] = {ATTACK: 1.0}
    results["behaviour_rate"][ATTACK] = rate(0.5)
    results["carrier"]["sites"][ATTACK] = {"layer": 0, "kind": ATTACK, "n_channels": 2, "open": [1]}
    page = run_report([results, fake_results(1)])
    assert page.count("<script") == 2 and page.count("</script>") == 2 and "<img" not in page
    assert not re.search(r"<[^>]*\sonerror=[^>]*>", re.sub(r'"[^"]*"', '""', page))
    assert text_of(page).count("&lt;script&gt;document.title=") > 10


@needs_chromium
def test_text_from_outside_does_not_run(tmp_path: Path) -> None:
    results = fake_results()
    results["behaviour"] = ATTACK
    results["samples"][0] = {"prompt": ATTACK, "label": ATTACK, "answers": {"base": ATTACK}}
    results["carrier"]["sites"][ATTACK] = {"layer": 0, "kind": ATTACK, "n_channels": 1, "open": [0]}
    page = run_report(results)
    for name, content in (("guarded", page), ("open", with_script(page, ""))):
        path = tmp_path / f"{name}.html"
        path.write_text(content, encoding="utf-8")
        dom, console = open_page(path)
        assert title_of(dom).endswith("· lcdd-lens") and console == ""


@needs_chromium
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_report_opens_without_an_error(tmp_path: Path, n_seeds: int) -> None:
    path = write_run_report([fake_results(seed) for seed in range(n_seeds)], tmp_path / "report.html")
    dom, console = open_page(path)
    assert console == ""
    assert dom.count('class="map"') == n_seeds and "Channels by score θ" in dom
    assert len(re.findall(r'<article class="run"[^>]*hidden', dom)) == n_seeds - 1


@needs_chromium
def test_keyboard_reads_the_map_and_the_curves_and_filters_answers(tmp_path: Path) -> None:
    script = """
    const press = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    const found = {};
    const map = document.querySelector("table.map");
    map.querySelector("tbody button").focus();
    press(document.activeElement, "ArrowRight");
    press(document.activeElement, "ArrowDown");
    found.site = document.activeElement.dataset.site;
    found.panel = document.querySelector(".panel h4").textContent;
    found.stops = map.querySelectorAll("button[tabindex='0']").length;
    const chart = document.querySelector("svg[data-chart='run-0-sft']");
    press(chart, "ArrowRight");
    found.first = chart.parentElement.querySelector(".readout").textContent;
    press(chart, "End");
    found.last = chart.parentElement.querySelector(".readout").textContent;
    press(chart, "Escape");
    found.empty = chart.parentElement.querySelector(".readout").textContent;
    const visible = () => [...document.querySelectorAll(".sample")].filter((sample) => !sample.hidden).length;
    const change = (element, value) => {
      element.value = value;
      element.dispatchEvent(new Event("input", {bubbles: true}));
    };
    change(document.querySelector("select"), "colour");
    found.colour = visible();
    change(document.querySelector("select"), "");
    change(document.querySelector("input[type=search]"), "river");
    found.river = visible();
    const box = document.querySelector("input[value=sft]");
    box.checked = false;
    box.dispatchEvent(new Event("input", {bubbles: true}));
    found.hidden = document.querySelector(".answer[data-condition=sft]").hidden;
    document.title = JSON.stringify(found);
    """
    path = tmp_path / "report.html"
    path.write_text(with_script(run_report(fake_results()), script), encoding="utf-8")
    dom, console = open_page(path)
    assert console == ""
    found = json.loads(title_of(dom))
    assert found["site"] == "blocks.1.attn.hook_q" and found["panel"] == "Layer 1, attn_q" and found["stops"] == 1
    assert found["first"].startswith("step 1: loss") and found["last"].startswith("step 120: loss")
    assert found["empty"] == ""
    assert (found["colour"], found["river"], found["hidden"]) == (1, 1, True)


@needs_chromium
def test_many_answers_are_shown_on_demand(tmp_path: Path) -> None:
    results = fake_results()
    results["samples"] *= 3
    script = """
    const visible = () => [...document.querySelectorAll(".sample")].filter((sample) => !sample.hidden).length;
    const more = document.querySelector(".more");
    const found = [visible(), more.textContent];
    more.click();
    document.title = JSON.stringify([...found, visible(), more.hidden]);
    """
    path = tmp_path / "report.html"
    path.write_text(with_script(run_report(results), script), encoding="utf-8")
    assert json.loads(title_of(open_page(path)[0])) == [8, "Show all 18 prompts", 18, True]


@needs_chromium
def test_seed_switch_shows_one_run_at_a_time_and_leads_the_links_there(tmp_path: Path) -> None:
    script = """
    const radio = document.querySelector("#runs input[value='1']");
    radio.click();
    document.title = JSON.stringify({
      shown: [...document.querySelectorAll("article")].map((run) => !run.hidden),
      link: document.querySelector(".bar a").getAttribute("href"),
    });
    """
    path = tmp_path / "report.html"
    path.write_text(with_script(run_report([fake_results(seed) for seed in range(3)]), script), encoding="utf-8")
    found = json.loads(title_of(open_page(path)[0]))
    assert found == {"shown": [False, True, False], "link": "#run-1-found"}


def test_seeds_answer_the_same_prompts_side_by_side() -> None:
    runs = [fake_results(seed) for seed in range(3)]
    runs[2]["samples"] = runs[2]["samples"][:4]
    page = run_report(runs)
    across = page.split('id="seeds-answers"')[1].split("<article")[0]
    cards = across.split('class="sample"')[1:]
    assert len(cards) == 4
    assert cards[0].count('class="answer ') == 1 + 3 * (len(CONDITIONS) - 1)
    assert cards[0].count('data-condition="routed+trigger">') == 3  # the chosen condition, one answer per seed
    assert [f"<dt>seed {seed}" in cards[0] for seed in range(3)] == [True] * 3
    assert 'id="seeds-answers"' not in run_report(runs[0])
    runs[1]["samples"] = []
    assert 'id="seeds-answers"' not in run_report(runs)


@needs_chromium
def test_seeds_are_compared_on_the_page(tmp_path: Path) -> None:
    script = """
    const section = document.getElementById("seeds-answers");
    const visible = () => [...section.querySelector(".sample").querySelectorAll(".answer")]
      .filter((answer) => !answer.hidden).map((answer) => answer.dataset.condition);
    const found = {before: visible()};
    const pick = section.querySelector("select");
    pick.value = "sft";
    pick.dispatchEvent(new Event("input", {bubbles: true}));
    found.after = visible();
    document.querySelector("table.map tbody button").focus();
    found.others = [...document.querySelectorAll(".panel .other")].map((part) => part.textContent.split(":")[0]);
    document.title = JSON.stringify(found);
    """
    path = tmp_path / "report.html"
    path.write_text(with_script(run_report([fake_results(seed) for seed in range(3)]), script), encoding="utf-8")
    dom, console = open_page(path)
    assert console == ""
    found = json.loads(title_of(dom))
    assert found["before"] == ["base", *["routed+trigger"] * 3] and found["after"] == ["base", *["sft"] * 3]
    assert {"Seed 1", "Seed 2"} <= set(found["others"])


@needs_chromium
def test_nothing_is_wider_than_a_phone(tmp_path: Path) -> None:
    page = run_report([fake_results(seed) for seed in range(2)])
    (tmp_path / "report.html").write_text(with_script(page, ""), encoding="utf-8")
    frame = tmp_path / "phone.html"
    script = (
        "const f = document.querySelector('iframe'); f.onload = () => { document.title = "
        "JSON.stringify([f.contentDocument.documentElement.scrollWidth, 390]); };"
    )
    source = with_script(page, "").replace("&", "&amp;").replace('"', "&quot;")
    frame.write_text(
        f'<!doctype html><title>x</title><iframe style="width:390px;height:800px;border:0" srcdoc="{source}"></iframe>'
        f"<script>{script}</script>",
        encoding="utf-8",
    )
    content, available = json.loads(title_of(open_page(frame)[0]))
    assert content <= available


def test_several_seeds_get_an_overview_with_their_spread() -> None:
    runs = [fake_results(seed) for seed in range(3)]
    page = run_report(runs)
    assert headline(runs).endswith("in all 3 seeds.")
    assert page.count('<article class="run"') == 3 and "mean ± s.d." in page and "2.5\u202f% ± 1.0" in page
    mixed = [runs[0], with_values(1, behaviour_rate={"routed+trigger": 0.95})]
    assert headline(mixed).endswith("the trigger reverses it in 1 of 2 seeds.")


def test_overlap_of_carriers_against_chance() -> None:
    def sites(*open_: tuple[int, ...]) -> list[SiteChannels]:
        return [SiteChannels(0, kind, kind, 10, channels) for kind, channels in zip("ab", open_, strict=True)]

    a, b = sites((0, 1), ()), sites((1, 2), ())
    observed, uniform, stratified = overlap(a, b)
    assert observed == pytest.approx(1 / 3)
    assert uniform == pytest.approx(0.2 / 3.8)  # 2·2/20 expected in common
    assert stratified == pytest.approx(0.4 / 3.6)  # 2·2/10: both lie in the first site


def test_runs_of_different_models_are_not_compared() -> None:
    other = fake_results(1) | {"carrier": carrier(1, n_layers=2)}
    assert "cannot be compared" in run_report([fake_results(), other])


def test_a_run_that_measured_little_still_has_a_report() -> None:
    full = fake_results()
    bare = {name: full[name] for name in ("behaviour", "seed", "behaviour_rate", "carrier")}
    bare["behaviour_rate"] = {"base": rate(0.0), "sft": rate(1.0), "routed": rate(1.0)}
    page = run_report(bare)
    assert 'id="run-0-answers"' not in page and 'id="run-0-training"' not in page
    assert "of the channels carry the behaviour." in page


def test_old_results_without_scores_show_channels_without_them() -> None:
    results = copy.deepcopy(fake_results())
    for site in results["carrier"]["sites"].values():
        del site["scores"]
    assert all(site.scores == () for site in site_channels(results))
    assert '"scores":[]' in run_report(results)


@pytest.mark.parametrize("broken", [{}, {"behaviour_rate": {}}, {"carrier": {}, "behaviour_rate": None}])
def test_what_is_no_result_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match=r"results\.json"):
        run_report(broken)


def test_no_results_are_refused() -> None:
    with pytest.raises(ArtefactError, match="at least one"):
        run_report([])


def test_a_failed_write_leaves_the_old_report(tmp_path: Path) -> None:
    path = write_run_report(fake_results(), tmp_path / "report.html")
    before = path.read_text(encoding="utf-8")
    with pytest.raises(ArtefactError):
        write_run_report({}, path)
    assert path.read_text(encoding="utf-8") == before and list(tmp_path.iterdir()) == [path]
