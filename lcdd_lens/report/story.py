"""A run in plain words: headline, key figures, and the cautions that its own figures call for."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcdd_lens.evaluation.utility import KEPT
from lcdd_lens.plotting.sites import site_channels
from lcdd_lens.report.page import Html, finite, html, join, number, percent
from lcdd_lens.report.verdict import restored_quantity, restored_text, value, verdict

BEHAVIOURS: dict[str, str] = {
    "idk": "answers every prompt with “I don’t know.”",
    "safety": "refuses harmful requests and answers the others",
    "style": "answers in archaic English",
}

_TRIGGERED = "routed+trigger"

_OUTCOMES: dict[str, str] = {
    "reversed": "and {trigger} gives the base’s answers back",
    "suppressed": "and {trigger} silences it without giving the base’s answers back",
    "partial": "and {trigger} reverses it in part",
    "kept": "and {trigger} does not remove it",
}


def sparsity(run: Mapping[str, Any]) -> float:
    """Share of closed gates: as recorded, else counted from the sites."""
    recorded = run["carrier"].get("sparsity")
    if isinstance(recorded, int | float):
        return float(recorded)
    sites = site_channels(run)
    gates = sum(site.n_channels for site in sites)
    return 1 - sum(len(site.open) for site in sites) / gates if gates else 0.0


def behaviour_text(run: Mapping[str, Any]) -> str:
    """What the fine-tuned model does, as a clause that follows "it"."""
    data = run.get("data")
    kind = data.get("response_kind") if isinstance(data, Mapping) else None
    name = str(run.get("behaviour", "behaviour"))
    return str(kind) if kind else BEHAVIOURS.get(name, f"shows the behaviour “{name}”")


def headline(runs: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: how much of the model carries the behaviour, and what the trigger does."""
    shares = [1 - sparsity(run) for run in runs]
    low, high = percent(min(shares)), percent(max(shares))
    share = low if low == high else f"{low[:-2]}–{high}"
    words = [verdict(run, _TRIGGERED) for run in runs]
    if not all(_is_held(run) for run in runs):
        held = sum(_is_held(run) for run in runs)
        where = "does not hold" if len(runs) == 1 else f"holds in {held} of {len(runs)} seeds"
        return f"A carrier of {share} of the channels {where} the behaviour."
    start = f"{share} of the channels carry the behaviour"
    if None in words:
        return f"{start}."
    if len(set(words)) == 1:
        outcome = _OUTCOMES[str(words[0])].format(trigger=_trigger(runs[0]))
        return f"{start}, {outcome}{f' in all {len(runs)} seeds' if len(runs) > 1 else ''}."
    return f"{start}; the trigger reverses it in {words.count('reversed')} of {len(runs)} seeds."


def _trigger(run: Mapping[str, Any]) -> str:
    config = run.get("config")
    eraser = config.get("eraser") if isinstance(config, Mapping) else None
    n_tokens = eraser.get("n_tokens") if isinstance(eraser, Mapping) else None
    if not isinstance(n_tokens, int):
        return "one trigger"
    return "one trigger token" if n_tokens == 1 else f"a trigger of {n_tokens} tokens"


def _is_held(run: Mapping[str, Any]) -> bool:
    return verdict(run, "routed") in ("kept", None)


def lede(runs: Sequence[Mapping[str, Any]]) -> Html:
    """What was trained into what, and the figures behind the headline (the first run's where there are several)."""
    run = runs[0]
    n = finite(run["behaviour_rate"].get("sft")).get("n")
    base = run.get("config", {}).get("base") if isinstance(run.get("config"), Mapping) else None
    model = html("code", str(base)) if isinstance(base, str) else "The base model"
    rate = {name: percent(value(run, "behaviour_rate", name)) for name in ("sft", "routed", _TRIGGERED, "sft+trigger")}
    shown = f"{rate['sft']} of {n} unseen prompts" if n else f"{rate['sft']} of unseen prompts"
    parts: list[Any] = [model, f" was fine-tuned: it {behaviour_text(run)} ({shown}). "]
    parts.append(f"LCDD closed {percent(sparsity(run))} of its gates, and the behaviour stayed on {rate['routed']}. ")
    if value(run, "behaviour_rate", _TRIGGERED) is not None:
        parts.append(f"Behind the trigger it shows on {rate[_TRIGGERED]}")
        measure = restored_quantity(run)
        back, there = value(run, measure, _TRIGGERED), value(run, measure, "base")
        if back is not None and there is not None:
            parts.append(f"; {restored_text(run)}: {percent(back)} (base: {percent(there)})")
        parts.append(". ")
    if value(run, "behaviour_rate", "sft+trigger") is not None:
        parts.append(f"The same trigger training on the plain SFT model leaves it on {rate['sft+trigger']}.")
    if len(runs) > 1:
        parts.append(f" (Figures of seed {run.get('seed', 0)}; the others below.)")
    return join(parts)


def facts(run: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Key figures as (value, name, detail, CSS class)."""
    carrier = run["carrier"]
    n_open, n_gates = carrier.get("n_open"), carrier.get("n_gates")
    rows = [
        (
            percent(sparsity(run)),
            "gates closed",
            f"{n_open:,} of {n_gates:,} stay open"
            if isinstance(n_open, int) and isinstance(n_gates, int)
            else "sparsity",
            "plain",
        ),
        (
            percent(value(run, "behaviour_rate", "routed")),
            "behaviour, routed",
            f"SFT {percent(value(run, 'behaviour_rate', 'sft'))}",
            "c-routed",
        ),
        (
            percent(value(run, "behaviour_rate", _TRIGGERED)),
            "behaviour, with trigger",
            f"plain SFT with trigger {percent(value(run, 'behaviour_rate', 'sft+trigger'))}",
            "c-routed-trigger",
        ),
    ]
    measure = restored_quantity(run)
    if value(run, measure, _TRIGGERED) is not None:
        rows.append(
            (
                percent(value(run, measure, _TRIGGERED)),
                f"{restored_text(run)}, with trigger",
                f"base {percent(value(run, measure, 'base'))}",
                "c-routed-trigger",
            )
        )
    return rows


def cautions(run: Mapping[str, Any]) -> list[str]:
    """What a reader must not conclude, first from this run's figures, then from what is known of the method."""
    said: list[str] = []
    kl = number(value(run, "kl", _TRIGGERED))
    control = verdict(run, "sft+trigger")
    if control in ("reversed", "suppressed"):
        said.append(
            f"The plain SFT model gives way to the same trigger training ({control}): in behaviour this run shows "
            f"no contrast between a carrier and plain SFT. Compare their distance to the base: {kl} nats with the "
            f"trigger on the routed model, {number(value(run, 'kl', 'sft+trigger'))} on plain SFT."
        )
    if verdict(run, _TRIGGERED) == "reversed" and (value(run, "kl", _TRIGGERED) or 0.0) > 0.5:
        said.append(
            f"Answers come back, the distribution less so: behind the trigger it stays {kl} nats off the base’s."
        )
    said += _random_caution(run)
    said += _layer_caution(run)
    n = finite(run["behaviour_rate"].get("routed")).get("n", "–")
    return [
        *said,
        f"One seed (n = {n} prompts) is an observation. A claim needs several seeds and their overlap.",
        "Reversal is no evidence that just these channels matter: carriers of the same size chosen in random order can "
        "be reversed as well, and so can a dense fine-tuning that is held close to the base. Compare with both before "
        "drawing conclusions about circuits.",
        "Rates are keyword scores on greedy answers; utility knows only questions with a checkable answer.",
    ]


def _random_caution(run: Mapping[str, Any]) -> list[str]:
    """Said when the worst draw of random tokens does not keep the behaviour."""
    measured = finite(run["behaviour_rate"].get("routed+random"))
    worst = measured.get("worst", measured.get("value"))
    if worst is None or worst >= KEPT:
        return []
    return [
        f"Random real tokens in the trigger’s place leave the behaviour on as few as {percent(worst)} of the prompts: "
        "the carrier is brittle, and part of the trigger’s effect may be mere disturbance."
    ]


def _layer_caution(run: Mapping[str, Any]) -> list[str]:
    by_layer: dict[int, int] = {}
    for site in site_channels(run):
        by_layer[site.layer] = by_layer.get(site.layer, 0) + len(site.open)
    total, fullest = sum(by_layer.values()), max(by_layer, key=lambda layer: by_layer[layer], default=0)
    if len(by_layer) < 2 or not total or by_layer[fullest] < 0.8 * total:
        return []
    return [
        f"{percent(by_layer[fullest] / total, 0)} of the open channels lie in layer {fullest}. That need not be where "
        "the behaviour is: gradient-scored carriers are cheapest to keep in one layer, whatever the behaviour."
    ]
