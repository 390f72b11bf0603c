"""Answers side by side: the same unseen prompts under every condition or in every seed, to filter and to search."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcdd_lens.plotting.palette import in_order, look
from lcdd_lens.report.page import Html, html, section

_SAMPLE_CONDITIONS = ("base", "sft", "routed", "routed+trigger", "sft+trigger")


def answers(run: Mapping[str, Any], prefix: str) -> Html | None:
    samples = [sample for sample in run.get("samples", ()) if _answered(sample)]
    if not samples:
        return None
    conditions = in_order(list(dict.fromkeys(name for sample in samples for name in sample["answers"])))
    shown = [name for name in conditions if name in _SAMPLE_CONDITIONS] or conditions
    labels = list(dict.fromkeys(str(sample.get("label") or "general") for sample in samples))
    boxes = html(
        "fieldset",
        html("legend", "Conditions"),
        (
            html(
                "label",
                html("input", type="checkbox", value=name, checked=name in shown, data_filter="condition"),
                html("span", html("span", class_=f"swatch c-{look(name).css}"), look(name).label),
            )
            for name in conditions
        ),
        class_="chips",
    )
    kinds = html(
        "label",
        html("span", "Prompts"),
        html(
            "select",
            html("option", "all", value=""),
            (html("option", label, value=label) for label in labels),
            data_filter="label",
        ),
    )
    cards = [_sample(sample, conditions, shown) for sample in samples]
    return section(
        prefix,
        "answers",
        "What the models say",
        _listing([boxes, kinds if len(labels) > 1 else None], cards),
        intro="The same unseen prompts under each condition, decoded greedily.",
    )


def answers_across(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Html | None:
    """One condition in every run, side by side, on the prompts that all of them show; ``None`` where there is none."""
    tables = [
        {str(sample.get("prompt", "")): sample for sample in run.get("samples", ()) if _answered(sample)}
        for run in runs
    ]
    prompts = [prompt for prompt in tables[0] if all(prompt in table for table in tables)]
    if not prompts:
        return None
    everywhere = [set(sample["answers"]) for table in tables for sample in table.values()]
    conditions = [name for name in in_order(sorted(set.intersection(*everywhere))) if name != "base"]
    if not conditions:
        return None
    chosen = "routed+trigger" if "routed+trigger" in conditions else conditions[0]
    pick = html(
        "label",
        html("span", "Condition"),
        html(
            "select",
            (html("option", look(name).label, value=name, selected=name == chosen) for name in conditions),
            data_filter="condition",
        ),
    )
    cards = [_across(prompt, [table[prompt] for table in tables], names, conditions, chosen) for prompt in prompts]
    return section(
        "seeds",
        "answers",
        "The same prompts in every seed",
        _listing([pick], cards),
        intro="One condition at a time, each seed’s own models; greedy answers to prompts that no training saw.",
    )


def _listing(filters: Sequence[Html | None], cards: Sequence[Html]) -> list[Html]:
    """Cards under their filters; scripts count them and show the first ones."""
    search = html(
        "label",
        html("span", "Search"),
        html("input", type="search", placeholder="words in prompt or answer", data_filter="text"),
    )
    return [
        html("div", filters, search, class_="controls"),
        html("output", f"{len(cards)} prompts", class_="count", aria_live="polite"),
        html("div", cards, class_="samples"),
        html("button", f"Show all {len(cards)} prompts", type="button", class_="more", hidden=True),
    ]


def _answered(sample: Any) -> bool:
    return isinstance(sample, Mapping) and isinstance(sample.get("answers"), Mapping)


def _across(
    prompt: str, samples: Sequence[Mapping[str, Any]], names: Sequence[str], conditions: Sequence[str], chosen: str
) -> Html:
    base = str(samples[0]["answers"].get("base") or "")
    cells = [_answer("base", look("base").label, base, "")] if base else []
    for name in conditions:
        for sample, run_name in zip(samples, names, strict=True):
            said = str(sample["answers"][name] or "")
            cells.append(_answer(name, run_name, said, base, hidden=name != chosen))
    return _card(prompt, str(samples[0].get("label") or "general"), cells)


def _sample(sample: Mapping[str, Any], conditions: Sequence[str], shown: Sequence[str]) -> Html:
    answers = sample["answers"]
    base = str(answers.get("base") or "")
    cells = [
        _answer(name, look(name).label, str(answers[name] or ""), "" if name == "base" else base, name not in shown)
        for name in conditions
        if name in answers
    ]
    return _card(str(sample.get("prompt", "")), str(sample.get("label") or "general"), cells)


def _answer(condition: str, title: str, text: str, base: str, hidden: bool = False) -> Html:
    """One reply, marked where it is the base's."""
    css, same = look(condition).css, bool(base.strip()) and text.strip() == base.strip()
    return html(
        "div",
        html("dt", title, html("span", "= base", class_="same") if same else None),
        html("dd", text if text.strip() else html("i", "(empty)")),
        class_=f"answer c-{css}",
        data_condition=condition,
        hidden=hidden,
    )


def _card(prompt: str, label: str, cells: Sequence[Html]) -> Html:
    return html(
        "div",
        html("p", html("span", label, class_="tag"), html("span", prompt, class_="said"), class_="prompt"),
        html("dl", cells),
        class_="sample",
        data_label=label,
    )
