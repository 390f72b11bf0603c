"""Write docs/results.md and its figures from the rows of ``reproduce.py``.

    python benchmarks/make_results.py [--rows benchmarks/results/main] [--rules benchmarks/results/rules] [--out docs]

Works with whatever models, behaviours and seeds are there, and says how many. Every figure on the page is in the files,
or is a mean, an interval, a ratio or an overlap of what is.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from claims import CLAIMS, behaviour_identity, restored, seed_identity
from figures import draw_figures
from rules import layers_section, rules_section, triggers_section
from summary import Pair, Row, read_rows
from tables import BLANK, cell, table_row
from targets import TARGETS

from lcdd_lens.controls import CONTROLS
from lcdd_lens.evaluation.identity import layer_shares
from lcdd_lens.io import write_text_atomic

ROOT = Path(__file__).resolve().parents[1]
VERDICTS = ("reversed", "suppressed", "partial", "kept")
WORDS = {"idk": "fixed response", "safety": "safety", "style": "style"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read rows, draw figures, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROOT / "benchmarks" / "results" / "main")
    parser.add_argument("--rules", type=Path, default=ROOT / "benchmarks" / "results" / "rules")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of results.md; figures go to assets/")
    options = parser.parse_args(arguments)
    pairs = read_rows(options.rows)
    if not pairs:
        parser.error(f"{options.rows} holds no rows: run benchmarks/reproduce.py first")
    figures = draw_figures(pairs, options.out / "assets")
    write_text_atomic(options.out / "results.md", page(pairs, figures, options.rules))


def page(pairs: Sequence[Pair], figures: Sequence[tuple[str, str]] = (), rules: Path | None = None) -> str:
    """The page as Markdown.

    Args:
        pairs: what was measured.
        figures: (file in assets/, caption), in the order of the page.
        rules: the folder of ``rule_search.py``'s files, if there are any.
    """
    sections = [
        header(pairs),
        claims_section(pairs),
        targets_section(pairs),
        main_section(pairs),
        "\n\n".join(f"![{caption}](assets/{file})\n\n*{caption}*" for file, caption in figures),
        identity_section(pairs),
        causal_section(pairs),
        controls_section(pairs),
        *(() if rules is None else (layers_section(rules), rules_section(rules), triggers_section(rules))),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


# -- sections


def header(pairs: Sequence[Pair]) -> str:
    rows = [row for pair in pairs for row in pair.rows]
    sizes = sorted({row.content["parameters"] for row in rows})
    size = " to ".join(dict.fromkeys(f"{value / 1e6:.1f}" for value in (sizes[0], sizes[-1])))
    seeds = sorted({len(pair.seeds) for pair in pairs})
    families = list(dict.fromkeys(pair.family for pair in pairs))
    behaviours = [WORDS.get(name, name) for name in dict.fromkeys(pair.behaviour for pair in pairs)]
    versions = rows[0].content["versions"]
    tests = sorted({pair.mean("base", "agreement_token").n for pair in pairs if pair.mean("base", "agreement_token")})
    controlled = sum(row.content["controls_level"] != "none" for row in rows)
    complete = sum(row.content["controls_level"] == "all" for row in rows)
    return f"""# Results

*This page is written by `benchmarks/make_results.py` from the files under `benchmarks/results/main`; change neither by
hand.*

**Scale.** These are models of {size} million parameters, pre-trained on a generated corpus of short questions and
answers. The paper's have 600 to 8,000 million and real data. What holds here need not hold there, and the other way
round; what *fails* here fails as a general claim.

**What ran.** {len(pairs)} pairs of a model and a behaviour ({", ".join(families)}; {", ".join(behaviours)}),
{span(seeds)} seeds each, {len(rows)} runs in all; a seed is that of data order, fine-tuning, LCDD, trigger and every
draw. Every figure stands on {span(tests)} test prompts per run that no stage trained or chose on. {controlled} runs
have the controls that train no weights, {complete} all of them. A figure over several seeds is their mean with
Student's 95 % interval; over one seed it has the interval over prompts.

**Reversed is not suppressed.** A run is *reversed* where the behaviour shows on at most 10 % of its prompts and at
least 75 % of the base's answers are back; *suppressed* where it is gone and at most 25 % are back; *kept* where it
shows on at least 90 %; *partial* otherwise.

```bash
python benchmarks/reproduce.py --pair {pairs[0].name} --seeds {pairs[0].seeds[0]}    # one run, minutes on one core
python benchmarks/reproduce.py --all --seeds 0-4 --jobs 2
python benchmarks/make_results.py
```

lcdd-lens {versions["lcdd-lens"]}, torch {versions["torch"]}, transformer-lens {versions.get("transformer-lens", "?")},
Python {versions["python"]}, on one CPU thread a run."""


def claims_section(pairs: Sequence[Pair]) -> str:
    lines = [
        "## The paper's claims, one by one",
        "",
        "A claim *holds* where every measured pair meets the criterion, *in part* where some do. *Authors*: their "
        "figure, where this project has taken one over. Ours: mean over pairs with its 95 % interval.",
        "",
        "| claim | authors | ours | criterion | pairs | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        found = claim.judge(pairs)
        met = f"{sum(found.met.values())} of {len(found.met)}" if found.met else BLANK
        lines.append(table_row(claim.text, claim.authors, found.ours, claim.criterion, met, f"**{found.verdict}**"))
    return "\n".join(lines)


def targets_section(pairs: Sequence[Pair]) -> str:
    """What the library asks of itself, and which pairs miss it."""
    words = {"holds": "reached", "holds in part": "in part", "does not hold": "not reached"}
    lines = [
        "## What this library aimed at",
        "",
        "Stricter aims than the paper's claims, over the same rows. *Missed by* names the pairs that do not meet one.",
        "",
        "| aim | criterion | ours, mean over pairs | pairs | verdict | missed by |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        found = target.judge(pairs)
        met = f"{sum(found.met.values())} of {len(found.met)}" if found.met else BLANK
        missed = ", ".join(name for name, fine in found.met.items() if not fine)
        verdict = words.get(found.verdict, found.verdict)
        lines.append(table_row(target.text, target.criterion, found.ours, met, f"**{verdict}**", missed))
    return "\n".join(lines)


def main_section(pairs: Sequence[Pair]) -> str:
    kept = [
        "## The main table",
        "",
        "### Sparse carriers",
        "",
        "| pair | seeds | sparsity | open gates | behaviour: SFT | behaviour: routed | KL(S‖routed) | ‖Δ‖: SFT "
        "| ‖Δ‖: routed | false alarms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    back = [
        "### Reversal",
        "",
        "*Answers back*: right answers, or for safety the base's own replies to harmful prompts. *SFT + trigger*: "
        "trained on plain SFT by the KL terms alone, for as many steps; the count after the semicolon is with the "
        "carrier's channels as well.",
        "",
        "| pair | base's answers | behaviour: routed + trigger | answers back | reversed | KL(B‖routed + trigger) | "
        "behaviour: SFT + trigger | answers back | reversed | KL(B‖SFT + trigger) | random tokens: mean (worst) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        measure = restored(pair)
        kept.append(
            table_row(
                pair.name,
                str(len(pair.seeds)),
                cell(pair.over_seeds(lambda row: row.content["carrier"]["sparsity"], share=True)),
                cell(pair.over_seeds(lambda row: row.content["carrier"]["n_open"]), 0),
                cell(pair.mean("sft", "behaviour_rate")),
                cell(pair.mean("routed", "behaviour_rate")),
                cell(pair.mean("routed", "kl_from_sft")),
                cell(pair.over_seeds(lambda row: row.content["delta_norm"]["sft"]), 2),
                cell(pair.over_seeds(lambda row: row.content["delta_norm"]["routed"]), 2),
                cell(pair.mean("routed", "over_rate")),
            )
        )
        back.append(
            table_row(
                pair.name,
                cell(pair.mean("base", measure)),
                cell(pair.mean("routed+trigger", "behaviour_rate")),
                cell(pair.mean("routed+trigger", measure)),
                reversals(pair, "routed+trigger"),
                cell(pair.mean("routed+trigger", "kl")),
                cell(pair.mean("sft+trigger", "behaviour_rate")),
                cell(pair.mean("sft+trigger", measure)),
                f"{reversals(pair, 'sft+trigger')}; {reversals(pair, 'sft+trigger(carrier)')}",
                cell(pair.mean("sft+trigger", "kl")),
                random_tokens(pair),
            )
        )
    return "\n".join([*kept, "", *back])


def identity_section(pairs: Sequence[Pair]) -> str:
    lines = [
        "## Whose carrier is it?",
        "",
        "Jaccard of open channels: across seeds (mean over pairs of seeds, range), against chance with each carrier's "
        "counts at every site kept, and across behaviours on the same model. *p*: the least significant pair of seeds. "
        "*Layers*: share of the open channels in layer 0, 1, …; *paper's rule*: the same figures for carriers found by "
        "the penalty, with corr(θ₀, θ_end).",
        "",
        "| pair | seeds | across seeds | stratified chance | × chance | p | across behaviours | layers "
        "| paper's rule: across seeds (chance) | corr(θ₀, θ_end) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        within, across = seed_identity(pair), behaviour_identity(pair, pairs)
        paper = seed_identity(pair, "paper_rule")
        shares = [layer_shares(row.carrier) for row in pair.rows]
        layers = " ".join(f"{sum(share[layer] for share in shares) / len(shares):.2f}" for layer in shares[0])
        dice = pair.over_seeds(lambda row: row.control("paper_rule").get("facts", {}).get("start_correlation_all"))
        lines.append(
            table_row(
                pair.name,
                str(len(pair.seeds)),
                BLANK if within is None else f"{within.jaccard:.3f} ({within.lowest:.3f}–{within.highest:.3f})",
                BLANK if within is None else f"{within.stratified_chance:.3f}",
                BLANK if within is None or within.times_chance is None else f"{within.times_chance:.1f}",
                BLANK if within is None else f"{within.largest_p:.1g}",
                BLANK if across is None else f"{across.jaccard:.3f}",
                layers,
                BLANK if paper is None else f"{paper.jaccard:.3f} ({paper.stratified_chance:.3f})",
                cell(dice),
            )
        )
    return "\n".join(lines)


def causal_section(pairs: Sequence[Pair]) -> str:
    concerned = [pair for pair in pairs if any(row.content.get("causal") for row in pair.rows)]
    if not concerned:
        return ""
    lines = [
        "## Necessity and sufficiency, on whose weights",
        "",
        "F = 1 is the model with all gates open, 0 the base. *Sufficiency*: F with only these channels open; "
        "*necessity*: 1 − F with only these closed. LCDD's weights are those before the gates are merged in; *random*: "
        "as many channels at every site.",
        "",
        "| pair | weights | sufficiency: carrier | random | necessity: carrier | random |",
        "|---|---|---|---|---|---|",
    ]
    for pair in concerned:
        for weights in ("sft", "lcdd"):
            cells = [
                cell(pair.over_seeds(causal_value(weights, channels, measure)))
                for measure in ("sufficiency", "necessity")
                for channels in ("carrier", "random")
            ]
            lines.append(table_row(pair.name, {"sft": "SFT's", "lcdd": "LCDD's"}[weights], *cells))
    return "\n".join(lines)


def controls_section(pairs: Sequence[Pair]) -> str:
    names = [name for name in CONTROLS if any(row.control(name) for pair in pairs for row in pair.rows)]
    if not names:
        return ""
    parts = [
        "## The controls",
        "",
        "What would also have worked? Each control asks one question; its conditions are measured on the same prompts "
        "as the main table. Figures are means over the runs that have the control; the last columns count those runs.",
        "",
    ]
    parts += ["| control | question |", "|---|---|"]
    parts += [table_row(f"`{name}`", CONTROLS[name].question) for name in names]
    for behaviour in dict.fromkeys(pair.behaviour for pair in pairs):
        concerned = [pair for pair in pairs if pair.behaviour == behaviour]
        merged = Pair(tuple(row for pair in concerned for row in pair.rows))
        parts += [
            "",
            f"### {WORDS.get(behaviour, behaviour).capitalize()}: {', '.join(pair.family for pair in concerned)}",
            "",
            "| control | condition | behaviour | answers back | KL(B‖·) | ‖Δ‖ | sparsity | "
            + " | ".join(VERDICTS)
            + " |",
            "|---|---|---|---|---|---|---|" + "---|" * len(VERDICTS),
        ]
        measured = [("main table", name) for name in merged.rows[0].content["conditions"] if name != "base"]
        for name in names:
            conditions = dict.fromkeys(c for row in merged.rows for c in row.control(name).get("conditions", {}))
            measured += [(f"`{name}`", condition) for condition in conditions]
        parts += [control_row(merged, control, condition) for control, condition in measured]
    return "\n".join(parts)


def control_row(pair: Pair, control: str, condition: str) -> str:
    verdicts = pair.verdicts(condition)
    name = control.strip("`")
    return table_row(
        control,
        condition,
        worst_too(pair, condition),
        cell(pair.mean(condition, restored(pair))),
        cell(pair.mean(condition, "kl")),
        cell(pair.over_seeds(fact(name, "delta_norm", condition)), 2),
        cell(pair.over_seeds(fact(name, "sparsity", condition), share=True)),
        *(str(verdicts.get(verdict, "")) for verdict in VERDICTS),
    )


# -- cells


def span(values: Sequence[int]) -> str:
    if not values:
        return BLANK
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def reversals(pair: Pair, condition: str) -> str:
    verdicts = pair.verdicts(condition)
    return f"{verdicts.get('reversed', 0)} of {sum(verdicts.values())}" if verdicts else BLANK


def random_tokens(pair: Pair) -> str:
    condition = "routed+random(many)" if pair.mean("routed+random(many)", "behaviour_rate") else "routed+random"
    return worst_too(pair, condition)


def worst_too(pair: Pair, condition: str) -> str:
    """The behaviour's mean, and the worst of several draws where there are any."""
    mean = pair.mean(condition, "behaviour_rate")
    worst = [f["worst"] for row in pair.rows if (f := row.figure(condition, "behaviour_rate")) and "worst" in f]
    return cell(mean) + (f" (worst {min(worst):.3f})" if worst else "")


def causal_value(weights: str, channels: str, measure: str) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        cells = row.content.get("causal", [])
        chosen = [c[measure]["value"] for c in cells if c["weights"] == weights and c["channels"] == channels]
        return chosen[0] if chosen else None

    return value


def fact(control: str, name: str, condition: str) -> Callable[[Row], float | None]:
    """A control's fact, where it belongs to this condition: those of several models carry the condition's name."""
    plain = condition.partition("+trigger")[0]

    def value(row: Row) -> float | None:
        facts = row.control(control).get("facts", {})
        found = facts.get(f"{name} {plain}", facts.get(name))
        return None if found is None else float(found)

    return value


if __name__ == "__main__":
    main()
