"""The page of a comparison: do post-hoc attribution and a constructed carrier name the same channels?

The answer first, then the evidence: faithfulness of every ranking, sets of the carrier's size on both kinds of weights,
overlap against chance, exact patching, reversal, what it cost, and what it does not show. F = 1 is the fine-tuned
model's behaviour and F = 0 the base's, everywhere on the page.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcdd_lens import __version__
from lcdd_lens.errors import ArtefactError
from lcdd_lens.plotting.methods import CARRIER, FAMILIES, method_look
from lcdd_lens.plotting.palette import SITE_MEANINGS
from lcdd_lens.report.charts import Bar, interval_bars
from lcdd_lens.report.comparison_charts import (
    faithfulness_chart,
    overlap_heatmap,
    rate_text,
    share_number,
    share_text,
)
from lcdd_lens.report.comparison_seeds import headline_over_seeds, over_seeds
from lcdd_lens.report.explorer import explorer, explorer_data
from lcdd_lens.report.page import (
    Html,
    document,
    duration,
    finite,
    html,
    interval,
    number,
    percent,
    section,
    seed_switch,
    table,
    write_page,
)

SECTIONS = (
    ("found", "Result"),
    ("curves", "Faithfulness"),
    ("sets", "Same size"),
    ("overlap", "Overlap"),
    ("channels", "Channels"),
    ("oracle", "Exact patching"),
    ("reversal", "Reversal"),
    ("cost", "Cost"),
    ("limits", "Limits"),
)
_FAMILY_TITLES = {
    "weights": "Weight attributions",
    "activations": "Activation attributions",
    "magnitude": "Magnitude",
    "masks": "Masks learnt on frozen weights",
    "own": "Other methods",
}


def write_comparison_report(
    record: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    across: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page of a comparison.

    Args:
        record: the content of ``comparison.json``, or of several (one per seed) for a page with a switch.
        path: the file to write, replaced atomically.
        across: what holds over the seeds (:func:`lcdd_lens.comparison.across_seeds`); None: no such section.

    Returns:
        The path written.

    Raises:
        ArtefactError: a record is not a comparison's.
    """
    return write_page(path, comparison_report(record, across))


def comparison_report(
    record: Mapping[str, Any] | Sequence[Mapping[str, Any]], across: Mapping[str, Any] | None = None
) -> str:
    """The page of :func:`write_comparison_report` as text."""
    records = [record] if isinstance(record, Mapping) else list(record)
    if not records:
        raise ArtefactError("no comparisons to report: expected the content of at least one comparison.json.")
    for one in records:
        _check(one)
    first = records[0]
    seeds = f"seed {first['seed']}" if len(records) == 1 else f"{len(records)} seeds"
    body = [
        html("a", "Skip to the results", class_="skip", href="#main"),
        html(
            "header",
            html(
                "div",
                html("p", f"Carrier against circuits · {first['behaviour']} · {seeds}", class_="eyebrow"),
                html("h1", headline(first) if across is None else headline_over_seeds(across)),
                html("p", _lede(first), class_="lede"),
                class_="inner",
            ),
            class_="masthead",
        ),
        _bar(records),
        html(
            "main",
            None if across is None else over_seeds(across),
            (_article(one, index, len(records)) for index, one in enumerate(records)),
            id="main",
        ),
        html("footer", html("p", f"lcdd-lens {__version__}")),
    ]
    data = {"comparisons": {f"run-{index}": explorer_data(one) for index, one in enumerate(records)}}
    return document(
        f"{first['behaviour']} · carrier against circuits",
        body,
        data=data,
        styles=("run.css", "comparison.css"),
        scripts=("grid.js", "switch.js", "comparison.js"),
    )


def _check(record: Mapping[str, Any]) -> None:
    needed = ("curves", "sets", "overlap", "two_by_two", "channels")
    missing = [name for name in needed if not isinstance(record.get(name), Mapping)]
    if missing:
        raise ArtefactError(
            f"no comparison here: {', '.join(missing)} missing; expected the content of comparison.json."
        )


def _bar(records: Sequence[Mapping[str, Any]]) -> Html:
    present = [(key, name) for key, name in SECTIONS if key != "reversal" or any(one["reversal"] for one in records)]
    links = html("ul", (html("li", html("a", name, href=f"#run-0-{key}", data_section=key)) for key, name in present))
    seeds = [str(one["seed"]) for one in records]
    switch = seed_switch(seeds) if len(records) > 1 else None
    return html("nav", html("div", links, switch, class_="inner"), class_="bar", aria_label="Sections")


def _article(record: Mapping[str, Any], index: int, n_records: int) -> Html:
    prefix = f"run-{index}"
    return html(
        "article",
        html("h2", f"Seed {record['seed']}: {headline(record)}", class_="run-title") if n_records > 1 else None,
        _found(record, prefix),
        _curves(record, prefix),
        _sets(record, prefix),
        _overlap(record, prefix),
        explorer(record, prefix),
        _oracle(record, prefix),
        _reversal(record, prefix) if record["reversal"] else None,
        _cost(record, prefix),
        _limits(record, prefix),
        class_="run",
        id=prefix,
        data_run=index,
    )


def headline(record: Mapping[str, Any]) -> str:
    """The main finding in one sentence."""
    name, best = best_at_size(record)
    carrier = finite(record["two_by_two"][CARRIER].get("lcdd"))
    size = f"{record['carrier_size']} of {record['n_gates']:,} channels"
    label = method_look(name).label
    if best >= 0.9:
        start = f"{label} finds {size} that carry the behaviour on the plain fine-tuned weights"
    elif best >= 0.5:
        start = f"{label} finds {size} that carry part of the behaviour on the plain fine-tuned weights"
    else:
        start = f"On the plain fine-tuned weights no ranking finds {size} that carry the behaviour"
    if not carrier:
        return f"{start}."
    holds = "do" if carrier["value"] >= 0.9 else "do in part" if carrier["value"] >= 0.5 else "do not either"
    joint = "and" if (best >= 0.5) == (carrier["value"] >= 0.5) else "but"
    return f"{start}; {joint} on LCDD's weights, its carrier's {holds}."


def best_at_size(record: Mapping[str, Any]) -> tuple[str, float]:
    """The ranking whose first |C| channels have the largest F on fine-tuned weights."""
    values = {name: record["sets"][name]["sufficiency"]["value"] for name in record["curves"]}
    name = max(values, key=lambda key: values[key])
    return name, values[name]


def _lede(record: Mapping[str, Any]) -> str:
    prompts = record["prompts"]
    base = f" ({record['base']})" if record["base"] else ""
    return (
        f"{len(record['curves'])} attribution methods rank the same channels that routing masks gate{base}. They saw "
        f"{prompts['discovery']} training prompts; all are judged on {prompts['test']} others by opening gates: F is "
        "the share of the behaviour's log-probability that comes back, 1 as after fine-tuning, 0 as in the base."
    )


def _found(record: Mapping[str, Any], prefix: str) -> Html:
    name, best = best_at_size(record)
    carrier = record["two_by_two"][CARRIER]
    overlap = record["overlap"]["with_carrier"]
    closest = max(overlap, key=lambda key: overlap[key]["all"]["jaccard"])
    shared = overlap[closest]["all"]
    smallest = {key: curve["smallest_share"] for key, curve in record["curves"].items() if curve["smallest_share"]}
    leanest = min(smallest, key=lambda key: smallest[key]) if smallest else None
    facts = [
        (
            "carrier, LCDD weights" if "lcdd" in carrier else "carrier, SFT weights",
            share_number(carrier.get("lcdd", carrier["sft"])["value"]),
            f"F with {record['carrier_size']} channels ({percent(record['carrier_size'] / record['n_gates'])})",
            "c-routed",
        ),
        ("carrier, SFT weights", share_number(carrier["sft"]["value"]), "F of the same channels", "c-sft"),
        (
            "best ranking of that size",
            share_number(best),
            f"F of {method_look(name).label}, SFT weights",
            "c-routed-trigger",
        ),
        (
            "smallest faithful ranking",
            percent(smallest[leanest]) if leanest else "none",
            f"of all channels for F ≥ 0.9: {method_look(leanest).label}" if leanest else "no ranking reaches F ≥ 0.9",
            "c-sft-trigger-carrier",
        ),
        (
            "closest to the carrier",
            share_number(shared["jaccard"]),
            f"Jaccard of {method_look(closest).label}; by chance {share_number(shared['stratified_chance'])}",
            "plain",
        ),
    ]
    shown = facts if "lcdd" in carrier else facts[1:]
    return section(
        prefix,
        "found",
        "What was found",
        html(
            "dl",
            (
                html("div", html("dt", term), html("dd", html("b", value), html("small", told)), class_=f"fact {css}")
                for term, value, told, css in shown
            ),
            class_="facts",
        ),
    )


def _curves(record: Mapping[str, Any], prefix: str) -> Html:
    families: dict[str, list[str]] = {}
    for name in record["curves"]:
        families.setdefault(method_look(name).family, []).append(name)
    ordered = sorted(families, key=lambda family: [*FAMILIES, "own"].index(family))
    charts = [faithfulness_chart(record, families[f], _FAMILY_TITLES.get(f, f)) for f in ordered]
    by_area = sorted(record["curves"], key=lambda name: -record["curves"][name]["area_log"]["value"])
    rows = []
    for name in by_area:
        curve = record["curves"][name]
        at = dict(zip(curve["shares"], curve["value"], strict=True))
        rows.append(
            [
                method_look(name).label,
                *(share_number(at.get(share)) for share in (0.01, 0.05, 0.2)),
                share_text(curve["area_log"]),
                share_text(curve["area_linear"]),
                share_text(curve["distance_log"]),
                percent(curve["smallest_share"]) if curve["smallest_share"] else "–",
            ]
        )
    head = [
        "ranking",
        "F at 1 %",
        "F at 5 %",
        "F at 20 %",
        "area, log k",
        "area, linear k",
        "|1 − F|, log k",
        "F ≥ 0.9 from",
    ]
    return section(
        prefix,
        "curves",
        "How much of the behaviour do the first channels of a ranking carry?",
        html("div", charts, class_="grid-2"),
        html(
            "p",
            "Bands and parentheses: 95 % intervals over prompts. Circles: the carrier, filled on LCDD's weights and "
            "hollow on the plain fine-tuned ones.",
            class_="note",
        ),
        table(head, rows, caption="Areas under the faithfulness curves", class_="nowrap"),
        intro="The most important channels of each ranking are opened on the plain fine-tuned weights, more and more "
        "of them; the others stay at the base.",
    )


def _bars(record: Mapping[str, Any], test: str, title: str, note: str) -> Html:
    bars = []
    for name, found in record["sets"].items():
        low, high = interval(found[test]) or (None, None)
        look = method_look(name)
        bars.append(Bar(look.label, look.css, max(found[test]["value"], 0.0), low, high, share_text(found[test])))
    return interval_bars(bars, title=title, axis="share of the behaviour", note=note, x_max=1.1, share=False)


def _sets(record: Mapping[str, Any], prefix: str) -> Html:
    rows = []
    for name, found in record["sets"].items():
        against = found.get("against_carrier")
        rows.append(
            [
                method_look(name).label,
                share_text(found["sufficiency"]),
                share_text(record["two_by_two"][name].get("lcdd")),
                share_text(found["necessity"]),
                rate_text(found.get("behaviour_rate")),
                number(found["collateral_kl"]["value"], 2),
                number(found["against_random"]["holm"], 2),
                number(against["holm"], 2) if against else "–",
            ]
        )
    head = [
        "channels of",
        "F, SFT weights",
        "F, LCDD weights",
        "necessity, SFT weights",
        "behaviour in replies",
        "collateral KL",
        "p against random",
        "p against carrier",
    ]
    chance = [
        [
            name.replace("random_uniform", "random")
            .replace("random_site", "random, same sites")
            .replace("random_delta", "random, same ‖Δ‖"),
            found["draws"],
            share_number(found["mean"]),
            f"{share_number(found['interval'][0])} to {share_number(found['interval'][1])}",
            share_number(found["max"]),
            number(found["p_of_carrier"], 2),
        ]
        for name, found in record["random"].items()
    ]
    own = record["carrier"]
    weights = "LCDD's weights" if own["weights"] == "lcdd" else "the fine-tuned weights"
    drop = own["minimality"]
    kind = {"raw": "as trained, gates not merged", "merged": "merged, so equal to the base off the carrier"}
    trained = kind.get(str(record["lcdd_weights"]), "not compared")
    return section(
        prefix,
        "sets",
        f"The first {record['carrier_size']} channels of everyone",
        html(
            "div",
            _bars(
                record, "sufficiency", "Sufficiency", "Only these channels open: how much of the behaviour is there?"
            ),
            _bars(record, "necessity", "Necessity", "Only these channels closed: how much of it is gone?"),
            class_="grid-2",
        ),
        html(
            "details",
            html("summary", "All figures"),
            table(head, rows, caption="Sets of the carrier's size", class_="nowrap"),
            open=True,
        ),
        html(
            "details",
            html("summary", "Chance, and the carrier's own tests"),
            html(
                "div",
                html(
                    "div",
                    html("h4", "Chance"),
                    table(
                        ["sets", "draws", "mean F", "95 % of draws", "largest", "p of the carrier"],
                        chance,
                        caption="Chance",
                    ),
                ),
                html(
                    "div",
                    html("h4", f"The carrier on {weights}"),
                    table(
                        ["test", "value"],
                        [
                            ["sufficiency", share_text(own["sufficiency"])],
                            ["necessity", share_text(own["necessity"])],
                            ["incompleteness", share_text(own["incompleteness"])],
                            ["effect of closing one channel", share_text(drop["mean"])],
                            [
                                f"channels whose closing costs more than {drop['threshold']:g}",
                                f"{percent(drop['share_needed'], 0)} of {len(drop['effects'])}",
                            ],
                            ["collateral KL, nats per token", number(own["collateral_kl"]["value"], 2)],
                        ],
                        caption="The carrier's own tests",
                    ),
                ),
                class_="grid-2",
            ),
            open=True,
        ),
        html(
            "p",
            "p-values are Holm-corrected over the rows: against random sets of the same size (share of draws at least "
            "as faithful), and against the carrier on the same weights (paired bootstrap over prompts). Collateral KL: "
            f"nats per token from the base on {record['prompts']['unrelated_kind']}.",
            class_="note",
        ),
        intro="LCDD moves weights as well as gates, so every set is judged on both kinds of weights; LCDD's are "
        f"{trained}. F has the same two ends everywhere.",
    )


def _overlap(record: Mapping[str, Any], prefix: str) -> Html:
    def rows_of(found: Mapping[str, Any]) -> list[list[str]]:
        rows = []
        for name, parts in found.items():
            whole = parts["all"]
            rows.append(
                [
                    method_look(name).label,
                    share_number(whole["jaccard"]),
                    share_number(whole["chance"]),
                    share_number(whole["stratified_chance"]),
                    number(whole["stratified_p_value"], 2),
                    share_number(whole["auroc"]),
                    share_number(whole["auroc_within_sites"]),
                ]
            )
        return rows

    head = ["ranking", "Jaccard", "chance", "chance, same sites", "p, same sites", "AUROC", "AUROC within sites"]
    kinds = [
        kind for kind in SITE_MEANINGS if any(kind in p["by_kind"] for p in record["overlap"]["with_carrier"].values())
    ]
    by_kind = [
        [method_look(name).label, *(share_number(parts["by_kind"].get(kind, {}).get("auroc")) for kind in kinds)]
        for name, parts in record["overlap"]["with_carrier"].items()
    ]
    on_lcdd = record["overlap"]["with_carrier_on_lcdd_weights"]
    return section(
        prefix,
        "overlap",
        "Do they name the same channels?",
        html("div", overlap_heatmap(record), _places(record), class_="columns"),
        html(
            "details",
            html("summary", "With the carrier"),
            table(
                head,
                rows_of(record["overlap"]["with_carrier"]),
                caption="Overlap with the carrier",
                class_="nowrap",
            ),
            open=True,
        ),
        html(
            "details",
            html("summary", "Attribution on LCDD's own weights: does it find the carrier that is there?"),
            table(head, rows_of(on_lcdd), caption="Overlap with the carrier on LCDD's weights", class_="nowrap"),
            open=True,
        )
        if on_lcdd
        else None,
        html(
            "details",
            html("summary", "AUROC by kind of site"),
            table(["ranking", *kinds], by_kind, caption="AUROC by kind", class_="nowrap"),
        ),
        intro="Jaccard of the first channels with the carrier, what chance gives, and what chance gives when every "
        "site keeps its count; AUROC: the probability that a carrier channel outranks another (0.5 is chance).",
    )


def _places(record: Mapping[str, Any]) -> Html:
    """Layers of the first |C| channels of every set, and the kinds of site that hold most of them."""
    n_layers = max(len(counts) for places in record["places"].values() for counts in places.values())
    rows = []
    for name, places in record["places"].items():
        layers = [sum(counts[layer] for counts in places.values()) for layer in range(n_layers)]
        kinds = sorted(places, key=lambda kind: -sum(places[kind]))
        most = f"{kinds[0]} {sum(places[kinds[0]])}"
        rows.append([method_look(name).label, " · ".join(map(str, layers)), most])
    head = ["channels of", f"in layers 0–{n_layers - 1}", "most in"]
    return html("div", html("h4", "Where they lie"), table(head, rows, caption="Places", class_="nowrap"))


def _oracle(record: Mapping[str, Any], prefix: str) -> Html:
    oracle = record["oracle"]
    rows = [
        [
            method_look(name).label,
            *(
                share_number(found[direction][kind])
                for direction in ("necessity", "sufficiency")
                for kind in ("spearman", "pearson")
            ),
        ]
        for name, found in oracle["methods"].items()
    ]
    head = ["ranking", "necessity, rank ρ", "necessity, r", "sufficiency, rank ρ", "sufficiency, r"]
    return section(
        prefix,
        "oracle",
        "Do scores predict what patching one channel does?",
        table(head, rows, caption="Agreement with exact patching", class_="nowrap"),
        intro=f"{oracle['n_selected']} channels (the first of the pooled rankings and a sample of every site) were "
        "patched one at a time: base activations into the fine-tuned model, and the other way round.",
    )


def _reversal(record: Mapping[str, Any], prefix: str) -> Html:
    def row(name: str, found: Mapping[str, Any]) -> list[str]:
        before, after = found["without_trigger"], found["with_trigger"]
        return [
            method_look(name).label,
            str(found["n_matched"]),
            rate_text(before["behaviour_rate"]),
            rate_text(after["behaviour_rate"]),
            rate_text(after["restored"]),
        ]

    head = ["channels of", "matched", "behaviour", "behaviour with trigger", "base's replies restored"]
    matched = [row(name, found) for name, found in record["reversal"]["matched"].items()]
    retrained = [
        [*row(name, found), share_text(found["faithfulness"])]
        for name, found in record["reversal"]["retrained"].items()
    ]
    return section(
        prefix,
        "reversal",
        "Does it matter whose channels are used for reversal?",
        html(
            "div",
            html(
                "div", html("h4", "Matched by the trigger, on the LCDD model"), table(head, matched, caption="Matched")
            )
            if matched
            else None,
            html(
                "div",
                html("h4", "Imposed as mask, weights retrained"),
                table([*head, "F after retraining"], retrained, caption="Retrained"),
            )
            if retrained
            else None,
            class_="grid-2",
        ),
        html(
            "p",
            "Matched: residual channels whose activations the trigger is trained to bring back to the base's. A "
            "behaviour that is gone while the base's replies are not restored is suppressed, not reversed.",
            class_="note",
        ),
    )


def _cost(record: Mapping[str, Any], prefix: str) -> Html:
    rows = [
        [
            method_look(name).label,
            method_look(name).meaning or "–",
            duration(found["cost"]["seconds"]),
            number(found["cost"]["forward_passes"] / max(found["n_prompts"], 1)),
            number(found["cost"]["backward_passes"] / max(found["n_prompts"], 1)),
        ]
        for name, found in record["methods"].items()
    ]
    stages = [[stage.replace("_", " "), duration(seconds)] for stage, seconds in record["seconds"].items()]
    total = duration(sum(record["seconds"].values()))
    settings = [[key, _setting(value)] for key, value in record["config"].items()]
    return section(
        prefix,
        "cost",
        "What it cost",
        table(["method", "score", "time", "forward", "backward"], rows, caption="Cost per method"),
        html("p", "Forward and backward: passes per discovery prompt.", class_="note"),
        html(
            "details",
            html("summary", f"Time per stage ({total}) and every setting"),
            html(
                "div",
                table(["stage", "time"], stages, caption="Stages"),
                html("div", table(["setting", "value"], settings, caption="Settings"), class_="settings"),
                class_="grid-2",
            ),
        ),
    )


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _limits(record: Mapping[str, Any], prefix: str) -> Html:
    cautions = [
        "One seed, one model: whether channels have an identity needs several seeds and the chance levels above.",
        "F measures log-probability of given replies; the behaviour in free replies is in its own column.",
        "Opening gates is one intervention family. Patching activations is another, and the two need not agree.",
        "A small set that restores the behaviour was found, not proven unique: rankings may find others.",
    ]
    if record["lcdd_weights"] == "merged":
        cautions.append(
            "LCDD's weights were read from the merged model, whose delta is zero off the carrier: other rankings can "
            "only lose there."
        )
    return section(
        prefix, "limits", "What this does not show", html("ul", (html("li", c) for c in cautions), class_="limits")
    )
