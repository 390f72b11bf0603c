"""What was run: time per stage, invariants, versions, configuration."""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.report.page import Html, duration, html, section, table

INVARIANTS: dict[str, str] = {
    "closed_is_base": "All gates closed: logits equal the base model’s exactly.",
    "open_is_ungated": "All gates open: logits equal the ungated model’s exactly.",
    "merged_is_routed": "The merged model answers as the routed one.",
    "trigger_removed": "After the trigger is taken off, logits are what they were before.",
}


def setup(run: Mapping[str, Any], prefix: str) -> Html:
    seconds = {str(stage): float(value) for stage, value in (run.get("seconds") or {}).items()}
    invariants = run.get("invariants") or {}
    config = run.get("config") or {}
    versions = run.get("versions") or {}
    return section(
        prefix,
        "done",
        "What was run",
        _stages(seconds),
        html(
            "div",
            html(
                "div",
                html("h4", "Checks"),
                table(
                    ["invariant", "holds"],
                    [[_invariant(name), _holds(value)] for name, value in invariants.items()],
                    caption="Invariants of this run",
                ),
            )
            if invariants
            else None,
            html(
                "div",
                html("h4", "Versions"),
                table(["package", "version"], [[k, str(v)] for k, v in versions.items()], caption="Versions"),
            )
            if versions
            else None,
            class_="grid-2",
        ),
        html("details", html("summary", "Configuration"), _settings(config)) if config else None,
    )


def _invariant(name: str) -> str:
    return INVARIANTS.get(name) or name.replace("_", " ")


def _holds(value: Any) -> Html:
    return html("span", "✓ yes" if value else "✗ no", class_="yes" if value else "no")


def _stages(seconds: Mapping[str, float]) -> Html | None:
    total = sum(seconds.values())
    if not total:
        return None
    x, parts, items = 0.0, [], []
    for index, (stage, value) in enumerate(seconds.items()):
        width = 480 * value / total
        parts.append(
            html(
                "rect", class_=f"stage s{index % 6}", x=round(x, 2), y=0, width=max(round(width - 1, 2), 0.5), height=14
            )
        )
        items.append(html("li", html("span", class_=f"swatch s{index % 6}"), stage, html("b", duration(value))))
        x += width
    return html(
        "figure",
        html("figcaption", html("h4", f"Time: {duration(total)}")),
        html(
            "svg",
            html("title", "Seconds per stage"),
            parts,
            viewBox="0 0 480 14",
            role="img",
            preserveAspectRatio="none",
            class_="stages",
        ),
        html("ul", items, class_="legend"),
        class_="chart full",
    )


def _settings(config: Mapping[str, Any]) -> Html:
    flat = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    groups: list[tuple[str, Mapping[str, Any]]] = [("experiment", flat)] if flat else []
    groups += [(str(key), value) for key, value in config.items() if isinstance(value, Mapping)]
    return html(
        "div",
        (
            html("div", html("h4", name), table(["setting", "value"], _rows(values), caption=f"{name} settings"))
            for name, values in groups
            if values
        ),
        class_="grid-2 settings",
    )


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _rows(value, f"{prefix}{key}.")
        else:
            rows.append([f"{prefix}{key}", _setting(value)])
    return rows


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value)) or "–"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None or value == {} else str(value)
