"""Several comparisons (one per seed) as one: means over seeds, and differences from the carrier over the same seeds.

Every comparison has its own fine-tuning, LCDD and discovery prompts, so that a spread over seeds holds all of them.
Intervals and p-values over seeds are Student's; each seed's figure is kept, and for the main difference also how many
seeds show it by themselves (paired bootstrap over prompts, Holm-corrected over rankings).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lcdd_lens.comparison.config import CARRIER
from lcdd_lens.comparison.result import ComparisonRecord, ComparisonResult
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.statistics import holm, student_difference, student_mean
from lcdd_lens.report.comparison import write_comparison_report

SIGNIFICANT = 0.05
Figure = Callable[[ComparisonRecord, str], float | None]


def _at(share: float) -> Figure:
    def figure(record: ComparisonRecord, name: str) -> float | None:
        curve = record["curves"].get(name)
        return None if curve is None else dict(zip(curve["shares"], curve["value"], strict=True)).get(share)

    return figure


def _overlap(key: str) -> Figure:
    return lambda record, name: record["overlap"]["with_carrier"].get(name, {}).get("all", {}).get(key)


FIGURES: Mapping[str, Figure] = {
    "F of |C| channels, SFT weights": lambda record, name: record["sets"][name]["sufficiency"]["value"],
    "F of |C| channels, LCDD weights": lambda r, name: r["two_by_two"][name].get("lcdd", {}).get("value"),
    "necessity of |C| channels, SFT weights": lambda record, name: record["sets"][name]["necessity"]["value"],
    "F at 1 %": _at(0.01),
    "F at 5 %": _at(0.05),
    "F at 20 %": _at(0.2),
    "area, log k": lambda record, name: record["curves"].get(name, {}).get("area_log", {}).get("value"),
    "Jaccard with the carrier": _overlap("jaccard"),
    "Jaccard by chance, same sites": _overlap("stratified_chance"),
    "AUROC of the carrier within sites": _overlap("auroc_within_sites"),
}
"""What is summarised, for the carrier and every ranking."""


def across_seeds(comparisons: Sequence[ComparisonResult | ComparisonRecord]) -> dict[str, Any]:
    """Means over seeds with intervals, every seed's figure, and each ranking's difference from the carrier.

    Args:
        comparisons: one per seed, of the same behaviour and methods.

    Returns:
        ``{"behaviour", "seeds", "figures": {figure: {set: {"value", "n", "interval", "seeds"}}}, "against_carrier":
        {ranking: {"value", "interval", "p", "holm", "seeds_apart"}}}``; the difference is F of |C| channels on
        fine-tuned weights, the ranking's less the carrier's, Holm-corrected over rankings; ``seeds_apart``: seeds whose
        own prompts tell the two apart.

    Raises:
        ConfigError: there is none, two have one seed, or they compare other behaviours or methods.
    """
    records = [c.record if isinstance(c, ComparisonResult) else c for c in comparisons]
    if not records:
        raise ConfigError("no comparisons to summarise: expected one per seed.")
    seeds = [record["seed"] for record in records]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {seeds}: expected every seed once.")
    first = records[0]
    for record in records[1:]:
        if record["behaviour"] != first["behaviour"] or list(record["sets"]) != list(first["sets"]):
            raise ConfigError("the comparisons differ in behaviour or methods: expected seeds of one experiment.")
    figures: dict[str, Any] = {}
    for title, figure in FIGURES.items():
        found = {name: [figure(record, name) for record in records] for name in first["sets"]}
        figures[title] = {
            name: {**student_mean([v for v in values if v is not None]).to_dict(), "seeds": values}
            for name, values in found.items()
            if None not in values
        }
    rankings = [name for name in first["sets"] if name != CARRIER]
    own = figures["F of |C| channels, SFT weights"]
    differences = [student_difference(own[name]["seeds"], own[CARRIER]["seeds"]) for name in rankings]
    adjusted = holm([difference.p_value for difference in differences])
    return {
        "behaviour": first["behaviour"],
        "seeds": seeds,
        "figures": figures,
        "against_carrier": {
            name: {
                "value": difference.value,
                "interval": [difference.low, difference.high],
                "p": difference.p_value,
                "holm": corrected,
                "seeds_apart": sum(r["sets"][name]["against_carrier"]["holm"] < SIGNIFICANT for r in records),
            }
            for name, difference, corrected in zip(rankings, differences, adjusted, strict=True)
        },
    }


def write_seeds_report(comparisons: Sequence[ComparisonResult | ComparisonRecord], path: str | Path) -> Path:
    """Write one page for several seeds: what holds over all of them, and every seed behind a switch.

    Raises:
        ConfigError: the comparisons are not seeds of one experiment.
    """
    records = [c.record if isinstance(c, ComparisonResult) else c for c in comparisons]
    return write_comparison_report(records, path, across=across_seeds(records))


def seeds_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row per set, one column per figure: means over seeds."""
    columns = {
        title: {name: estimate["value"] for name, estimate in found.items()}
        for title, found in summary["figures"].items()
    }
    names = list(summary["figures"]["F of |C| channels, SFT weights"])
    return pd.DataFrame(columns).reindex(names)
