"""The report of a run: ``results.json`` as one page that can be read from top to bottom and explored.

The question first (did the trigger reverse the behaviour, and what do the controls say?), then the evidence: the plane
of behaviour against utility, every quantity with its interval, answers side by side, the carrier, the training, and
what was run. Several results (seeds) become one page with a switch and an overview.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcdd_lens import __version__
from lcdd_lens.errors import ArtefactError
from lcdd_lens.plotting.sites import site_channels
from lcdd_lens.report.answers import answers, answers_across
from lcdd_lens.report.carrier_map import carrier_data, carrier_map
from lcdd_lens.report.curves import training, training_charts
from lcdd_lens.report.found import found
from lcdd_lens.report.measured import measured
from lcdd_lens.report.overview import across_runs
from lcdd_lens.report.page import Html, document, html, section, seed_switch, write_page
from lcdd_lens.report.setup import setup
from lcdd_lens.report.story import cautions, headline, lede

SECTIONS = (
    ("found", "Result"),
    ("measured", "Measured"),
    ("answers", "Answers"),
    ("carrier", "Carrier"),
    ("training", "Training"),
    ("done", "Set-up"),
    ("limits", "Limits"),
)

_PAPER = "Method: Crafting Reversible SFT Behaviors in Large Language Models, arXiv 2605.06632."


def write_run_report(results: Mapping[str, Any] | Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write the page.

    Args:
        results: the content of ``results.json``, or of several (one per seed) for a page with a switch.
        path: the file to write, replaced atomically.

    Returns:
        The path written.

    Raises:
        ArtefactError: a result lacks the figures that every run has.
    """
    return write_page(path, run_report(results))


def run_report(results: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """The page of :func:`write_run_report` as text."""
    runs = [results] if isinstance(results, Mapping) else list(results)
    if not runs:
        raise ArtefactError("no results to report: expected the content of at least one results.json.")
    for run in runs:
        _check(run)
    charts: dict[str, Any] = {}
    carriers: dict[str, Any] = {}
    articles = [_article(run, index, len(runs), charts, carriers) for index, run in enumerate(runs)]
    title = f"{runs[0].get('behaviour', 'run')} · lcdd-lens"
    body = [
        html("a", "Skip to the results", class_="skip", href="#main"),
        _masthead(runs),
        _bar(runs),
        html("main", _overview(runs) if len(runs) > 1 else None, articles, id="main"),
        html("footer", html("p", f"lcdd-lens {__version__} · {_PAPER}")),
    ]
    names = {f"run-{index}": f"Seed {run_name(run, index)}" for index, run in enumerate(runs)}
    data = {"charts": charts, "carriers": carriers, "names": names}
    return document(title, body, data=data, styles=("run.css",), scripts=("grid.js", "switch.js", "run.js"))


def _overview(runs: Sequence[Mapping[str, Any]]) -> list[Html | None]:
    names = [f"seed {run_name(run, index)}" for index, run in enumerate(runs)]
    return [across_runs(runs), answers_across(runs, names)]


def _check(results: Mapping[str, Any]) -> None:
    missing = [name for name in ("behaviour_rate", "carrier") if not isinstance(results.get(name), Mapping)]
    if missing:
        raise ArtefactError(f"results lack {' and '.join(missing)}: expected the content of a run's results.json.")


def _masthead(runs: Sequence[Mapping[str, Any]]) -> Html:
    return html(
        "header",
        html(
            "div",
            html("p", "Reversible fine-tuning · run report", class_="eyebrow"),
            html("h1", headline(runs)),
            html("p", lede(runs), class_="lede"),
            class_="inner",
        ),
        class_="masthead",
    )


def _bar(runs: Sequence[Mapping[str, Any]]) -> Html:
    links = html("ul", (html("li", html("a", name, href=f"#run-0-{key}", data_section=key)) for key, name in SECTIONS))
    switch = seed_switch([run_name(run, index) for index, run in enumerate(runs)]) if len(runs) > 1 else None
    return html("nav", html("div", links, switch, class_="inner"), class_="bar", aria_label="Sections")


def run_name(run: Mapping[str, Any], index: int) -> str:
    """What the switch calls a run."""
    return str(run.get("seed", index))


def _article(run: Mapping[str, Any], index: int, n_runs: int, charts: dict[str, Any], carriers: dict[str, Any]) -> Html:
    prefix = f"run-{index}"
    figures = training_charts(run, prefix)
    charts.update({name: chart.data for name, chart in figures.items()})
    sites = site_channels(run)
    carriers[prefix] = carrier_data(sites, run["carrier"])
    return html(
        "article",
        html("h2", f"Seed {run_name(run, index)}", class_="run-title") if n_runs > 1 else None,
        found(run, prefix),
        measured(run, prefix),
        answers(run, prefix),
        carrier_map(run, sites, prefix),
        training(run, figures, prefix),
        setup(run, prefix),
        _limits(run, prefix),
        class_="run",
        id=prefix,
        data_run=index,
    )


def _limits(run: Mapping[str, Any], prefix: str) -> Html:
    return section(
        prefix,
        "limits",
        "What this does not show",
        html("ul", (html("li", text) for text in cautions(run)), class_="limits"),
    )
