"""Answers side by side: the same unseen prompts under every condition, to filter and to search."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcdd_lens.plotting.palette import in_order, look
from lcdd_lens.report.page import Html, html, section

_SAMPLE_CONDITIONS = ("base", "sft", "routed", "routed+trigger", "sft+trigger")


def answers(run: Mapping[str, Any], prefix: str) -> Html | None:
    samples = [sample for sample in run.get("samples", ()) if isinstance(sample.get("answers"), Mapping)]
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
                html("input", type="checkbox", value=look(name).css, checked=name in shown, data_filter="condition"),
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
    search = html(
        "label",
        html("span", "Search"),
        html("input", type="search", placeholder="words in prompt or answer", data_filter="text"),
    )
    cards = [_sample(sample, conditions, shown) for sample in samples]
    controls = html("div", boxes, kinds if len(labels) > 1 else None, search, class_="controls")
    return section(
        prefix,
        "answers",
        "What the models say",
        controls,
        html("output", f"{len(samples)} prompts", class_="count", aria_live="polite"),
        html("div", cards, class_="samples"),
        html("button", f"Show all {len(samples)} prompts", type="button", class_="more", hidden=True),
        intro="The same unseen prompts under each condition, decoded greedily.",
    )


def _sample(sample: Mapping[str, Any], conditions: Sequence[str], shown: Sequence[str]) -> Html:
    answers = sample["answers"]
    base = str(answers.get("base") or "").strip()
    cells = []
    for name in conditions:
        if name not in answers:
            continue
        style, text = look(name), str(answers[name] or "")
        same = bool(base) and name != "base" and text.strip() == base
        cells.append(
            html(
                "div",
                html("dt", style.label, html("span", "= base", class_="same") if same else None),
                html("dd", text if text.strip() else html("i", "(empty)")),
                class_=f"answer c-{style.css}",
                data_condition=style.css,
                hidden=name not in shown,
            )
        )
    label = str(sample.get("label") or "general")
    return html(
        "div",
        html(
            "p",
            html("span", label, class_="tag"),
            html("span", str(sample.get("prompt", "")), class_="said"),
            class_="prompt",
        ),
        html("dl", cells),
        class_="sample",
        data_label=label,
    )
