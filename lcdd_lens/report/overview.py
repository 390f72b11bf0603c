"""Several seeds on one page: the figures side by side, and how far their carriers are the same channels.

Chance overlap of two carriers with a and b open among N gates: E|A∩B| = a·b/N, so J = E|A∩B| / (a + b − E|A∩B|). Drawn
uniformly that flatters carriers which merely share their layers and sites; the stratified value sums a_s·b_s/n_s over
sites and is the one to beat.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean, stdev
from typing import Any

from lcdd_lens.plotting.sites import SiteChannels, site_channels
from lcdd_lens.report.page import Html, html, number, percent, table
from lcdd_lens.report.story import sparsity
from lcdd_lens.report.verdict import restored_quantity, restored_text, value, verdict

_COLUMNS = (
    ("behaviour_rate", "sft", "SFT: behaviour"),
    ("behaviour_rate", "routed", "routed: behaviour"),
    ("behaviour_rate", "routed+trigger", "+ trigger: behaviour"),
    ("behaviour_rate", "sft+trigger", "SFT + trigger: behaviour"),
)


def across_runs(runs: Sequence[Mapping[str, Any]]) -> Html:
    """The overview section: one row per seed, mean and standard deviation, overlap of every pair of carriers."""
    back, words = restored_quantity(runs[0]), restored_text(runs[0])
    wanted = [*_COLUMNS, (back, "routed+trigger", f"+ trigger: {words}"), (back, "base", f"base: {words}")]
    columns = [column for column in wanted if any(value(run, column[0], column[1]) is not None for run in runs)]
    rows: list[list[Any]] = []
    for index, run in enumerate(runs):
        judged = verdict(run, "routed+trigger")
        badge = html("span", judged, class_=f"badge {judged}") if judged else "–"
        figures = [percent(value(run, quantity, condition)) for quantity, condition, _ in columns]
        rows.append([f"seed {run.get('seed', index)}", percent(sparsity(run)), *figures, badge])
    spread = [_spread([sparsity(run) for run in runs])]
    spread += [_spread([value(run, quantity, condition) for run in runs]) for quantity, condition, _ in columns]
    rows.append([html("b", "mean ± s.d."), *spread, ""])
    return html(
        "section",
        html("h3", f"{len(runs)} seeds", id="seeds-title"),
        table(
            ["", "gates closed", *(name for _, _, name in columns), "verdict"],
            rows,
            caption="Figures per seed",
            class_="nowrap",
        ),
        _overlaps(runs),
        id="seeds",
        aria_labelledby="seeds-title",
    )


def _spread(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    return f"{percent(mean(known))} ± {100 * stdev(known):.1f}" if len(known) > 1 else percent(known[0])


def _overlaps(runs: Sequence[Mapping[str, Any]]) -> Html | None:
    carriers = [site_channels(run) for run in runs]
    shapes = {tuple((site.hook_name, site.n_channels) for site in sites) for sites in carriers}
    if len(shapes) != 1:
        return html("p", "The runs are of different models: their carriers cannot be compared.", class_="note")
    rows = []
    for (i, a), (j, b) in combinations(enumerate(carriers), 2):
        names = f"seeds {runs[i].get('seed', i)} and {runs[j].get('seed', j)}"
        observed, uniform, stratified = overlap(a, b)
        rows.append([names, number(observed), number(uniform), number(stratified)])
    head = ["carriers of", "Jaccard", "chance, uniform", "chance, per layer and site"]
    return html(
        "details",
        html("summary", "Are they the same channels?"),
        table(head, rows, caption="Overlap of carriers", class_="nowrap"),
        html("p", "Compare with the last column: carriers that only share layers and sites reach it.", class_="note"),
        open=True,
    )


def overlap(a: Sequence[SiteChannels], b: Sequence[SiteChannels]) -> tuple[float, float, float]:
    """Jaccard of two carriers with the same sites, its uniform chance value, and the one stratified by site."""
    both = sum(len(set(one.open) & set(other.open)) for one, other in zip(a, b, strict=True))
    n_a, n_b = sum(len(site.open) for site in a), sum(len(site.open) for site in b)
    gates = sum(site.n_channels for site in a)
    expected = n_a * n_b / gates if gates else 0.0
    by_site = sum(len(one.open) * len(other.open) / one.n_channels for one, other in zip(a, b, strict=True))
    jaccards = [shared / (n_a + n_b - shared) if n_a + n_b > shared else 1.0 for shared in (both, expected, by_site)]
    return jaccards[0], jaccards[1], jaccards[2]
