"""Write docs/comparison.md and its figures from the rows of ``compare_seeds.py``.

    python benchmarks/make_comparison.py [--rows benchmarks/results/comparison] [--out docs]

Works with whatever models, behaviours and seeds are there, and says how many. Every figure on the page is in the files,
or is a mean or an interval of what is; every verdict follows from the figures by the criterion beside it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from comparison_figures import draw_figures
from make_results import table_row

from lcdd_lens.comparison.config import CARRIER
from lcdd_lens.errors import ArtefactError
from lcdd_lens.evaluation.statistics import Difference, Estimate, holm, student_difference, student_mean
from lcdd_lens.io import write_text_atomic
from lcdd_lens.plotting.methods import method_look

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = 1
BLANK = "–"
SHARES = (0.01, 0.05, 0.2)
FAITHFUL = 0.9  # F that counts as carrying the behaviour
SAME = 0.5  # Jaccard that counts as the same channels
TIMES_CHANCE = 2.0  # Jaccard over stratified chance that counts as overlap
LEVEL = 0.05  # p after Holm's correction
ENOUGH_SEEDS = 5
LESS = 0.1  # share of replies that counts as less reversal

Value = Callable[[Mapping[str, Any]], float | None]


@dataclass(frozen=True)
class Pair:
    """All seeds of a model and a behaviour."""

    name: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def seeds(self) -> list[int]:
        """Seeds, ascending."""
        return [row["seed"] for row in self.rows]

    @cached_property
    def sets(self) -> list[str]:
        """The carrier and every ranking."""
        return list(self.rows[0]["sets"])

    @property
    def rankings(self) -> list[str]:
        """Every ranking."""
        return [name for name in self.sets if name != CARRIER]

    def values(self, value: Value) -> list[float]:
        """A figure of every seed that has it."""
        return [float(found) for row in self.rows if (found := value(row)) is not None]

    def mean(self, value: Value) -> Estimate | None:
        """Mean over seeds with Student's interval; None where no seed has the figure."""
        found = self.values(value)
        return student_mean(found) if found else None

    def best(self, names: Sequence[str], value: Callable[[str], Value]) -> tuple[str, Estimate]:
        """Of some sets the one with the largest mean."""
        means = {name: mean for name in names if (mean := self.mean(value(name))) is not None}
        name = max(means, key=lambda key: means[key].value)
        return name, means[name]

    def against_carrier(self) -> dict[str, tuple[Difference, float]]:
        """Ranking -> difference of F at the carrier's size on fine-tuned weights over seeds, and p after Holm."""
        own = self.values(sufficiency(CARRIER))
        differences = [student_difference(self.values(sufficiency(name)), own) for name in self.rankings]
        adjusted = holm([difference.p_value for difference in differences])
        return {name: pair for name, *pair in zip(self.rankings, differences, adjusted, strict=True)}  # type: ignore[misc]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read rows, draw figures, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--rows", type=Path, default=results / "comparison")
    parser.add_argument("--tools", type=Path, default=results, help="folder of attribution_*.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of comparison.md; figures in assets/")
    options = parser.parse_args(arguments)
    pairs = read_pairs(options.rows)
    if not pairs:
        parser.error(f"{options.rows} holds no rows: run benchmarks/compare_seeds.py first")
    figures = draw_figures(pairs, options.out / "assets")
    tools = {name: read_json(options.tools / f"{name}.json") for name in ("attribution_tools", "attribution_scale")}
    write_text_atomic(options.out / "comparison.md", page(pairs, figures, tools))


def read_json(path: Path) -> dict[str, Any]:
    """A file's content; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_pairs(folder: Path) -> list[Pair]:
    """All rows of a folder, grouped by pair, seeds in order.

    Raises:
        ArtefactError: a file is of another schema, or the seeds of a pair ran under different settings.
    """
    grouped: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        row = read_json(path)
        if row.get("schema") != SCHEMA or "sets" not in row:
            raise ArtefactError(f"{path} is no row of compare_seeds.py: remove it, or run it again.")
        grouped.setdefault(row["pair"], []).append(row)
    for name, rows in grouped.items():
        if len({row["config_sha256"] for row in rows}) > 1:
            raise ArtefactError(
                f"{name}: its seeds ran under different settings and cannot be averaged: run them again."
            )
    return [Pair(name, tuple(sorted(rows, key=lambda row: row["seed"]))) for name, rows in sorted(grouped.items())]


# -- figures of a row


def sufficiency(name: str) -> Value:
    return lambda row: row["sets"][name]["sufficiency"]["value"]


def necessity(name: str) -> Value:
    return lambda row: row["sets"][name]["necessity"]["value"]


def rate(name: str) -> Value:
    return lambda row: (row["sets"][name].get("behaviour_rate") or {}).get("value")


def on_lcdd(name: str) -> Value:
    return lambda row: row["two_by_two"][name].get("lcdd", {}).get("value")


def at_share(share: float) -> Callable[[str], Value]:
    def of(name: str) -> Value:
        def value(row: Mapping[str, Any]) -> float | None:
            curve = row["curves"].get(name)
            return None if curve is None else dict(zip(curve["shares"], curve["value"], strict=True)).get(share)

        return value

    return of


def area(name: str) -> Value:
    return lambda row: row["curves"].get(name, {}).get("area_log", {}).get("value")


def overlap(key: str) -> Callable[[str], Value]:
    return lambda name: lambda row: row["overlap"]["with_carrier"].get(name, {}).get("all", {}).get(key)


def overlap_on_lcdd(key: str) -> Callable[[str], Value]:
    return lambda name: lambda row: row["overlap"]["with_carrier_on_lcdd_weights"].get(name, {}).get(key)


def oracle(name: str, direction: str) -> Value:
    return lambda row: row["oracle"]["methods"].get(name, {}).get(direction, {}).get("spearman")


def reversal(part: str, name: str, when: str, what: str) -> Value:
    return lambda row: (
        row["reversal"].get(part, {}).get(name, {}).get(when, {}).get(what, {}).get("value")
        if row["reversal"]
        else None
    )


def retrained(name: str) -> Value:
    return lambda row: row["reversal"].get("retrained", {}).get(name, {}).get("faithfulness", {}).get("value")


# -- verdicts


@dataclass(frozen=True)
class Finding:
    """A question, what was found, and in how many pairs the criterion is met."""

    question: str
    criterion: str
    ours: str
    met: Mapping[str, bool]

    @property
    def verdict(self) -> str:
        if not self.met:
            return "not measured"
        if all(self.met.values()):
            return "yes"
        return "in part" if any(self.met.values()) else "no"


def findings(pairs: Sequence[Pair]) -> list[Finding]:
    """The questions of the page, answered by the rows."""
    return [
        _overlaps(pairs),
        _same(pairs),
        _finds_it_on_lcdd(pairs),
        _ranking_carries(pairs),
        _beats_carrier(pairs),
        _carrier_on(pairs, "fine-tuned", sufficiency),
        _carrier_on(pairs, "LCDD’s", on_lcdd),
        _others_on_lcdd(pairs),
        _matching_matters(pairs),
        _mask_matters(pairs),
    ]


def _overlaps(pairs: Sequence[Pair]) -> Finding:
    met, told = {}, []
    for pair in pairs:
        name, jaccard = pair.best(pair.rankings, overlap("jaccard"))
        chance = pair.mean(overlap("stratified_chance")(name))
        assert chance is not None
        largest_p = max(_holm_row(row)[name] for row in pair.rows)
        met[pair.name] = jaccard.value >= TIMES_CHANCE * chance.value and largest_p < LEVEL
        told.append(f"{pair.name}: {label(name)} {short(jaccard)}, chance {short(chance)}")
    return Finding(
        "Does some ranking of the carrier’s size overlap with the carrier beyond chance?",
        f"the closest ranking’s Jaccard ≥ {TIMES_CHANCE:g} × chance with equal counts per site, and hypergeometric "
        f"p < {LEVEL} (Holm over rankings) in every seed",
        "<br>".join(told),
        met,
    )


def _holm_row(row: Mapping[str, Any]) -> dict[str, float]:
    found = row["overlap"]["with_carrier"]
    return dict(
        zip(found, holm([min(1.0, entry["all"]["stratified_p_value"]) for entry in found.values()]), strict=True)
    )


def _same(pairs: Sequence[Pair]) -> Finding:
    best = {pair.name: pair.best(pair.rankings, overlap("jaccard"))[1] for pair in pairs}
    return Finding(
        "Are they the same channels?",
        f"the closest ranking’s Jaccard ≥ {SAME}",
        f"largest Jaccard of any pair {max(found.value for found in best.values()):.2f}",
        {name: found.value >= SAME for name, found in best.items()},
    )


def _finds_it_on_lcdd(pairs: Sequence[Pair]) -> Finding:
    met, told = {}, []
    for pair in pairs:
        names = list(pair.rows[0]["overlap"]["with_carrier_on_lcdd_weights"])
        if names:
            name, jaccard = pair.best(names, overlap_on_lcdd("jaccard"))
            met[pair.name] = jaccard.value >= SAME
            told.append(f"{pair.name}: {label(name)} {short(jaccard)}")
    return Finding(
        "Does attribution on LCDD’s own weights find the carrier that is there?",
        f"Jaccard ≥ {SAME}",
        "<br>".join(told),
        met,
    )


def _ranking_carries(pairs: Sequence[Pair]) -> Finding:
    best = {pair.name: pair.best(pair.rankings, sufficiency) for pair in pairs}
    return Finding(
        "Do as many channels as the carrier’s, chosen by some ranking, carry the behaviour on the fine-tuned weights?",
        f"F ≥ {FAITHFUL}",
        "<br>".join(f"{name}: {label(method)} {short(found)}" for name, (method, found) in best.items()),
        {name: found.value >= FAITHFUL for name, (_, found) in best.items()},
    )


def _beats_carrier(pairs: Sequence[Pair]) -> Finding:
    met, told = {}, []
    for pair in pairs:
        if len(pair.rows) < 2:
            continue
        differences = pair.against_carrier()
        better = [name for name, (gap, p) in differences.items() if gap.value > 0 and p < LEVEL]
        met[pair.name] = bool(better)
        told.append(f"{pair.name}: {len(better)} of {len(differences)} rankings")
    return Finding(
        "Is some ranking of that size more faithful than the carrier on the fine-tuned weights?",
        f"difference of F over seeds > 0, paired t-test p < {LEVEL} (Holm over rankings)",
        "<br>".join(told) or "needs two seeds",
        met,
    )


def _carrier_on(pairs: Sequence[Pair], weights: str, value: Callable[[str], Value]) -> Finding:
    means = {pair.name: mean for pair in pairs if (mean := pair.mean(value(CARRIER))) is not None}
    return Finding(
        f"Does the carrier carry the behaviour on {weights} weights?",
        f"F ≥ {FAITHFUL}",
        "<br>".join(f"{name}: {short(mean)}" for name, mean in means.items()),
        {name: mean.value >= FAITHFUL for name, mean in means.items()},
    )


def _others_on_lcdd(pairs: Sequence[Pair]) -> Finding:
    best = {pair.name: pair.best(pair.rankings, on_lcdd) for pair in pairs if pair.values(on_lcdd(CARRIER))}
    return Finding(
        "Do another ranking’s channels carry it on LCDD’s weights?",
        f"F ≥ {FAITHFUL} of the best ranking",
        "<br>".join(f"{name}: {label(method)} {short(found)}" for name, (method, found) in best.items()),
        {name: found.value >= FAITHFUL for name, (_, found) in best.items()},
    )


def _matching_matters(pairs: Sequence[Pair]) -> Finding:
    return _reversal_finding(
        pairs,
        "matched",
        lambda name: reversal("matched", name, "with_trigger", "restored"),
        "Does it matter whose channels a trigger matches?",
        "with every other set (or none) fewer of the base’s replies come back than with the carrier’s channels, by "
        f"{LESS}",
    )


def _mask_matters(pairs: Sequence[Pair]) -> Finding:
    return _reversal_finding(
        pairs,
        "retrained",
        retrained,
        "Does it matter whose mask is imposed before the weights train on?",
        f"under every other mask (and a random one with equal counts per site) F after retraining is lower by {LESS} "
        "than under the carrier’s",
    )


def _reversal_finding(
    pairs: Sequence[Pair], part: str, value: Callable[[str], Value], question: str, criterion: str
) -> Finding:
    met, told = {}, []
    for pair in pairs:
        names = reversal_sets(pair, part)
        if CARRIER not in names:
            continue
        means = {name: pair.mean(value(name)) for name in names}
        own = means[CARRIER]
        others = {name: mean for name, mean in means.items() if name != CARRIER and mean is not None}
        if own is None or not others:
            continue
        met[pair.name] = all(mean.value <= own.value - LESS for mean in others.values())
        least, most = (pick(mean.value for mean in others.values()) for pick in (min, max))
        told.append(f"{pair.name}: carrier {own.value:.2f}, others {least:.2f} to {most:.2f}")
    return Finding(question, criterion, "<br>".join(told) or BLANK, met)


def reversal_sets(pair: Pair, part: str) -> list[str]:
    """Sets of channels whose reversal was measured in some seed."""
    return list(dict.fromkeys(name for row in pair.rows if row["reversal"] for name in row["reversal"].get(part, {})))


# -- the page


def page(pairs: Sequence[Pair], figures: Sequence[tuple[str, str]], tools: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown.

    Args:
        pairs: what was measured.
        figures: (file in assets/, caption).
        tools: name -> content of the benchmarks against other tools and of scale; empty where they did not run.
    """
    drawn = {file: f"![{caption}](assets/{file})\n\n*{caption}*" for file, caption in figures}
    sections = [
        header(pairs),
        answers_section(pairs),
        faithful_section(pairs),
        drawn.get("comparison-faithfulness.png", ""),
        size_section(pairs),
        drawn.get("comparison-two-by-two.png", ""),
        overlap_section(pairs),
        drawn.get("comparison-overlap.png", ""),
        oracle_section(pairs),
        reversal_section(pairs),
        cost_section(pairs),
        tools_section(tools["attribution_tools"]),
        scale_section(tools["attribution_scale"]),
        method_section(pairs),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def header(pairs: Sequence[Pair]) -> str:
    rows = [row for pair in pairs for row in pair.rows]
    settings, versions = rows[0]["settings"], rows[0]["versions"]
    families = list(dict.fromkeys(row["family"] for row in rows))
    prompts = {key: span([row["n_prompts"][key] for row in rows]) for key in ("discovery", "tuning", "test")}
    reversed_rows = sum(bool(row["reversal"]) for row in rows)
    behaviours = ", ".join(dict.fromkeys(row["behaviour"] for row in rows))
    seeds = counted(sorted({len(pair.rows) for pair in pairs}), "seed")
    few = min(len(pair.rows) for pair in pairs) < ENOUGH_SEEDS
    draws = settings["random_draws"]
    caution = "**Some pairs have fewer than five seeds: read their figures as examples, not as findings.**\n\n"
    caution = caution if few else ""
    some = counted([reversed_rows], "run")
    chosen = " ".join(f"--family {name}" for name in families)
    return f"""# Carriers against circuits

*This page is written by `benchmarks/make_comparison.py` from the files under `benchmarks/results/comparison`; change
neither by hand.*

LCDD *constructs* a carrier: it moves weights and closes gates until few channels are enough. Attribution *looks for* a
circuit in a model that is there. Both name channels of the same sites, so they can be compared one by one:
{len(rows[0]["curves"])} rankings against the carrier, on {counted([len(pairs)], "pair")} of an embedded model and a
behaviour ({", ".join(families)}; {behaviours}), {seeds} each, {counted([len(rows)], "run")} in all.

Methods see {prompts["discovery"]} training prompts, triggers are chosen on {prompts["tuning"]} validation prompts, and
everything is judged on {prompts["test"]} test prompts; the three never meet. F is the share of the behaviour's
log-probability that is there when only some channels are open: 1 as in the fine-tuned model, 0 as in the base. Figures
are means over seeds; ± is half of Student's 95 % interval over seeds.

```bash
python benchmarks/compare_seeds.py {chosen} --seeds {seed_list(pairs[0].seeds)}
python benchmarks/make_comparison.py
lcdd-lens compare RUN                 # one finished run of your own, as an explorable page
```

{caution}Reversal and retraining are measured in {some} of {len(rows)}. Every run has {draws} random sets;
lcdd-lens {versions["lcdd-lens"]}, torch {versions["torch"]}, Python {versions["python"]}, one CPU thread."""


def answers_section(pairs: Sequence[Pair]) -> str:
    lines = ["## In short", "", "| question | answer | pairs | what was found | criterion |", "|---|---|---|---|---|"]
    for finding in findings(pairs):
        met = f"{sum(finding.met.values())} of {len(finding.met)}" if finding.met else BLANK
        lines.append(table_row(finding.question, f"**{finding.verdict}**", met, finding.ours, finding.criterion))
    return "\n".join([*lines, "", most_faithful(pairs)])


def most_faithful(pairs: Sequence[Pair]) -> str:
    """Which ranking has the largest F at each share, pair by pair."""
    lines = [
        "**Which ranking is most faithful?** The largest mean F on the fine-tuned weights when so many of all channels "
        "are open:",
        "",
        "| pair | carrier’s size | " + " | ".join(f"{100 * share:g} %" for share in SHARES) + " |",
        "|---|---|" + "---|" * len(SHARES),
    ]
    for pair in pairs:
        at_size = pair.best(pair.rankings, sufficiency)
        size = pair.mean(lambda row: row["carrier_size"] / row["n_gates"])
        assert size is not None
        cells = [pair.best(pair.rankings, at_share(share)) for share in SHARES]
        lines.append(
            table_row(
                pair.name,
                f"{100 * size.value:.1f} %: {label(at_size[0])} {short(at_size[1])}",
                *(f"{label(name)} {short(mean)}" for name, mean in cells),
            )
        )
    return "\n".join(lines)


def grid(pairs: Sequence[Pair], names: Sequence[str], value: Callable[[str], Value]) -> list[str]:
    """One row per set, one column per pair."""
    lines = ["| channels of | " + " | ".join(pair.name for pair in pairs) + " |", "|---|" + "---|" * len(pairs)]
    for name in names:
        lines.append(table_row(label(name), *(cell(pair.mean(value(name))) for pair in pairs)))
    return lines


def faithful_section(pairs: Sequence[Pair]) -> str:
    names = by_mean(pairs, pairs[0].rankings, area)
    lines = ["## How much do the first channels of a ranking carry?", ""]
    for share in SHARES:
        lines += [f"F with the first {100 * share:g} % of all channels open, fine-tuned weights:", ""]
        lines += [*grid(pairs, names, at_share(share)), ""]
    lines += ["Area under F over log k, from 0.1 % to 100 %:", "", *grid(pairs, names, area)]
    return "\n".join(lines)


def size_section(pairs: Sequence[Pair]) -> str:
    names = [CARRIER, *by_mean(pairs, pairs[0].rankings, sufficiency)]
    random = [
        table_row(
            pair.name,
            *(cell(pair.mean(random_value(kind, "mean"))) for kind in RANDOM),
            cell(pair.mean(random_value("random_uniform", "max"))),
        )
        for pair in pairs
    ]
    return "\n".join(
        [
            "## The first |C| channels of everyone, on both kinds of weights",
            "",
            "*Sufficiency* on the fine-tuned weights: F with only these channels open.",
            "",
            *grid(pairs, names, sufficiency),
            "",
            "*Necessity* on the fine-tuned weights: 1 − F with only these closed.",
            "",
            *grid(pairs, names, necessity),
            "",
            "The other half of the 2 × 2: F with only these channels open on *LCDD's* weights (before the gates are "
            "merged in).",
            "",
            *grid(pairs, names, on_lcdd),
            "",
            "Behaviour in free replies with only these channels open, fine-tuned weights (share of prompts):",
            "",
            *grid(pairs, names, rate),
            "",
            "Random sets of that size (mean F): any, with the carrier's counts per site, with its counts per decile of "
            "‖Δ‖, the second on LCDD's weights, and the best of all uniform draws.",
            "",
            "| pair | random | same sites | same ‖Δ‖ | same sites, LCDD's weights | best random |",
            "|---|---|---|---|---|---|",
            *random,
        ]
    )


RANDOM = ("random_uniform", "random_site", "random_delta", "random_site on LCDD weights")


def random_value(kind: str, key: str) -> Value:
    return lambda row: row["random"].get(kind, {}).get(key)


def overlap_section(pairs: Sequence[Pair]) -> str:
    names = by_mean(pairs, pairs[0].rankings, overlap("jaccard"))
    lines = [
        "## Do they name the same channels?",
        "",
        "Jaccard of a ranking's first |C| channels with the carrier; in brackets chance with equal counts per site.",
        "",
        "| channels of | " + " | ".join(pair.name for pair in pairs) + " |",
        "|---|" + "---|" * len(pairs),
    ]
    for name in names:
        cells = []
        for pair in pairs:
            chance = pair.mean(overlap("stratified_chance")(name))
            cells.append(f"{cell(pair.mean(overlap('jaccard')(name)))} [{BLANK if chance is None else short(chance)}]")
        lines.append(table_row(label(name), *cells))
    lines += [
        "",
        "AUROC within sites: the probability that a carrier channel outranks another of its site (0.5 is chance).",
        "",
        *grid(pairs, names, overlap("auroc_within_sites")),
    ]
    found = list(pairs[0].rows[0]["overlap"]["with_carrier_on_lcdd_weights"])
    if found:
        lines += [
            "",
            "The same methods run on LCDD's own weights, Jaccard with the carrier. (While LCDD trains, a pull to the "
            "base shrinks what closed gates hold, so that the size of the change alone shows the carrier there.)",
            "",
        ]
        lines += grid(pairs, found, overlap_on_lcdd("jaccard"))
    return "\n".join(lines)


def oracle_section(pairs: Sequence[Pair]) -> str:
    names = by_mean(pairs, pairs[0].rankings, lambda name: oracle(name, "necessity"))
    lines = [
        "## Do scores predict what patching one channel does?",
        "",
        "Spearman's ρ with exact patching on a selection of channels (the first of the pooled rankings and a sample of "
        "every site); left: base activations into the fine-tuned model, right: fine-tuned ones into the base.",
        "",
        "| ranking | " + " | ".join(pair.name for pair in pairs) + " |",
        "|---|" + "---|" * len(pairs),
    ]
    for name in names:
        cells = []
        for pair in pairs:
            left, right = (pair.mean(oracle(name, direction)) for direction in ("necessity", "sufficiency"))
            cells.append(f"{cell(left)}, {cell(right)}")
        lines.append(table_row(label(name), *cells))
    return "\n".join(lines)


def reversal_section(pairs: Sequence[Pair]) -> str:
    concerned = [pair for pair in pairs if any(row["reversal"] for row in pair.rows)]
    if not concerned:
        return ""
    lines = [
        "## Does it matter whose channels are used for reversal?",
        "",
        "*Matched*: triggers on the LCDD model, trained alike except for the channels whose activations they match. "
        "*Retrained*: a mask is imposed on the fine-tuned model, the weights train on under it, and a trigger matches "
        "its own channels; where F stays low there is no behaviour to reverse. *Back*: greedy replies that are the "
        f"base's again, token for token. {retraining(concerned)}",
    ]
    for part, title in (("matched", "Matched"), ("retrained", "Retrained")):
        lines += [
            "",
            f"### {title}",
            "",
            "| pair | runs | channels of | behaviour | with trigger | back"
            + (" | F |" if part == "retrained" else " |"),
            "|---|---|---|---|---|---|" + ("---|" if part == "retrained" else ""),
        ]
        for pair in concerned:
            for name in reversal_sets(pair, part):
                left, after, back = (
                    pair.mean(reversal(part, name, *where))
                    for where in (
                        ("without_trigger", "behaviour_rate"),
                        ("with_trigger", "behaviour_rate"),
                        ("with_trigger", "restored"),
                    )
                )
                runs = 0 if left is None else left.n
                extra = [cell(pair.mean(retrained(name)))] if part == "retrained" else []
                lines.append(table_row(pair.name, str(runs), label(name), cell(left), cell(after), cell(back), *extra))
    return "\n".join(lines)


def retraining(pairs: Sequence[Pair]) -> str:
    """How many steps weights trained under an imposed mask."""
    rows = [row for pair in pairs for row in pair.rows if row["reversal"].get("retrained")]
    return (
        f"Weights train on for {span([row['reversal_settings']['retrain_steps'] for row in rows])} steps."
        if rows
        else ""
    )


def cost_section(pairs: Sequence[Pair]) -> str:
    rows = [row for pair in pairs for row in pair.rows]
    lines = [
        "## What it costs",
        "",
        "Per discovery prompt: passes through the model, and milliseconds on one thread (median of "
        f"{counted([len(rows)], 'run')} on a shared machine).",
        "",
        "| method | score | forward | backward | ms |",
        "|---|---|---|---|---|",
    ]
    for name in pairs[0].rankings:
        costs = [(row["methods"][name]["cost"], row["methods"][name]["n_prompts"]) for row in rows]
        forward, backward = (costs[0][0][f"{way}_passes"] / costs[0][1] for way in ("forward", "backward"))
        taken = sorted(1000 * cost["seconds"] / n for cost, n in costs)[len(costs) // 2]
        look = method_look(name)
        lines.append(table_row(look.label, look.meaning, f"{forward:.0f}", f"{backward:.0f}", f"{taken:.0f}"))
    return "\n".join(lines)


def tools_section(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    settings, names = found["settings"], list(found["nodes"])
    lines = [
        "## Against the tools themselves",
        "",
        "TransformerLens 4 and auto-circuit score nodes (an attention head's or an MLP's output), not channels, and "
        "contrast two prompts in one model. Given the base's activations on the same prompts instead, both must give "
        "what our channel scores sum to over a node; TransformerLens points from fine-tuned to base, so its sign is "
        "turned, and auto-circuit's edges are summed over a node's destinations. On a GPT-2-shaped pair of "
        f"{settings['n_layers']} layers, d_model {settings['d_model']}, {settings['prompts']} prompts of "
        f"{settings['length']} tokens:",
        "",
        "| node | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for node in sorted(found["nodes"][names[0]], key=lambda node: (int(node.partition(".")[2]), node)):
        lines.append(table_row(f"`{node}`", *(f"{found['nodes'][name][node]:.6f}" for name in names)))
    difference = [f"{found['summary'][name]['largest_difference_relative']:.1e}" for name in names]
    seconds = [f"{found['summary'][name]['processor_seconds']:.2f}" for name in names]
    channels = ["every channel of every site", "nodes", "edges"]
    lines += [
        table_row("*largest difference, relative*", *difference),
        table_row("*processor seconds*", *seconds),
        table_row("*what is scored*", *channels[: len(names)]),
        "",
        "```bash",
        "python -m venv tl4 && tl4/bin/pip install transformer-lens==4.3.0",
        "python -m venv ac",
        'ac/bin/pip install auto-circuit==1.0.0 transformer-lens==1.19.0 "transformers<4.47" "numpy<2"',
        "python benchmarks/attribution_tools.py --transformer-lens-4 tl4/bin/python --auto-circuit ac/bin/python",
        "```",
    ]
    return "\n".join(lines)


def scale_section(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    settings = found["settings"]
    lines = [
        "## At the size of GPT-2",
        "",
        f"{settings['parameters'] / 1e6:.0f} million parameters, {settings['n_layers']} layers, "
        f"{found['n_channels']:,} channels, random weights, {settings['prompts']} prompts of {settings['length']} "
        "tokens, one thread. Sums are streamed over batches and sites can be taken in chunks, so that memory does not "
        f"grow with the number of prompts: the whole process took {found['peak_gb']:.1f} GB. Weight IG with "
        f"{settings['weight_steps']} steps, activation IG with {settings['activation_steps']}, masks for "
        f"{settings['mask_steps']} steps, exact patching of {settings['exact_channels']} channels.",
        "",
        "| method | processor seconds |",
        "|---|---|",
    ]
    lines += [table_row(label(name), f"{seconds:.0f}") for name, seconds in found["processor_seconds"].items()]
    lines += ["", "```bash", "python benchmarks/attribution_scale.py", "```"]
    return "\n".join(lines)


def method_section(pairs: Sequence[Pair]) -> str:
    row = pairs[0].rows[0]
    settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
    return f"""## How it was measured

All sets are judged in one intervention family: gates on fixed weights. Means over seeds come with Student's interval;
differences from the carrier are paired by seed, and within a seed by prompt (bootstrap); p-values are Holm-corrected
over rankings. Overlap is tested by hypergeometric p with the sets' counts per site kept, so that sharing layers alone
does not count. With few seeds, a p-value over seeds is coarse: read the intervals.

Settings: {settings}.

What this does not show: these are models of {row["parameters"] / 1e6:.1f} million parameters or so on generated
prompts; F measures the log-probability of given replies; gates are one intervention family among several; and a set
that carries the behaviour was found, not proven unique."""


# -- cells


def by_mean(pairs: Sequence[Pair], names: Sequence[str], value: Callable[[str], Value]) -> list[str]:
    """Names by their mean over pairs, largest first."""

    def over_pairs(name: str) -> float:
        found = [mean.value for pair in pairs if (mean := pair.mean(value(name))) is not None]
        return sum(found) / len(found) if found else float("-inf")

    return sorted(names, key=lambda name: -over_pairs(name))


def label(name: str) -> str:
    return method_look(name).label


def cell(mean: Estimate | None) -> str:
    """``0.42 ± 0.05``."""
    if mean is None:
        return BLANK
    return short(mean) if mean.n < 2 else f"{short(mean)} ± {(mean.high - mean.low) / 2:.2f}"


def short(mean: Estimate) -> str:
    """``0.42``, with a true minus and without a negative zero."""
    return f"{mean.value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def counted(numbers: Sequence[int], noun: str) -> str:
    """``1 seed``, ``5 seeds``, ``3 to 5 seeds``."""
    return f"{span(numbers)} {noun}{'' if max(numbers) == 1 else 's'}"


def seed_list(seeds: Sequence[int]) -> str:
    contiguous = list(seeds) == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 1
    return f"{seeds[0]}-{seeds[-1]}" if contiguous else ",".join(map(str, seeds))


if __name__ == "__main__":
    main()
