"""What was run: time per stage, invariants, versions, configuration."""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.report.page import Html, duration, html, section, table


def setup(run: Mapping[str, Any], prefix: str) -> Html:
    """The section."""
    seconds = {str(stage): float(value) for stage, value in (run.get("seconds") or {}).items()}
    checks = [[str(name).replace("_", " "), _holds(held)] for name, held in (run.get("invariants") or {}).items()]
    versions = [[str(name), str(version)] for name, version in (run.get("versions") or {}).items()]
    settings = dict(run.get("config") or {})
    if isinstance(run.get("data"), Mapping):
        settings["data"] = run["data"]
    return section(
        prefix,
        "done",
        "What was run",
        _stages(seconds),
        html(
            "div",
            _titled("Checks of this run", ["invariant", "holds"], checks),
            _titled("Versions", ["package", "version"], versions),
            class_="grid-2",
        ),
        html("details", html("summary", "Every setting"), _settings(settings)) if settings else None,
    )


def _titled(title: str, head: list[str], rows: list[Any]) -> Html | None:
    return html("div", html("h4", title), table(head, rows, caption=title)) if rows else None


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
            _titled(f"{name[0].upper()}{name[1:].replace('_', ' ')}", ["setting", "value"], _rows(values))
            for name, values in groups
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
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_setting(entry)}" for key, entry in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value)
