"""One self-contained HTML page: escaping, elements, tables, and the shell that every report shares.

The page loads nothing: styles, scripts and data stand inline, and a Content-Security-Policy that names them by hash
forbids everything else, so that text which slipped through escaping still could not run. Text becomes HTML only through
:func:`html`, which escapes whatever is not :class:`Html` already.
"""

import base64
import hashlib
import html as escaping
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lcdd_lens import __version__
from lcdd_lens.io import write_text_atomic

_NARROW = "\u202f"
_VOID = {"br", "col", "hr", "input", "link", "meta"}


class Html(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


Child = str | int | float | None | Iterable[Any]


def escape(text: str) -> Html:
    """Text -> HTML that shows it, in element content and in quoted attributes."""
    return Html(escaping.escape(text, quote=True))


def html(tag: str, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """An element. Children that are not :class:`Html` are escaped; iterables are flattened; ``None`` is left out.

    Attribute names lose a trailing underscore and take hyphens for underscores (``class_``, ``aria_label``,
    ``stroke_width``); ``True`` writes a bare attribute, ``False`` and ``None`` none.
    """
    written = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        written.append(f" {name}" if value is True else f' {name}="{escape(_text(value))}"')
    opening = f"<{tag}{''.join(written)}>"
    return Html(opening if tag in _VOID else f"{opening}{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after the other, each escaped unless it is :class:`Html`."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str | int | float):
            parts.append(escape(_text(child)))
        else:
            parts.append(join(child))
    return Html("".join(parts))


def _text(value: str | int | float) -> str:
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.6g}"
    return str(value)


def table(
    head: Sequence[Child], rows: Iterable[Sequence[Child]], *, caption: str | None = None, class_: str | None = None
) -> Html:
    """A table whose first column names its rows; wide tables scroll in their own frame."""
    return html(
        "div",
        html(
            "table",
            html("caption", caption) if caption else None,
            html("thead", html("tr", (html("th", cell, scope="col") for cell in head))),
            html(
                "tbody",
                (html("tr", html("th", row[0], scope="row"), (html("td", cell) for cell in row[1:])) for row in rows),
            ),
            class_=class_,
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption or "table",
    )


def section(prefix: str, key: str, title: str, *children: Any, intro: Any = None) -> Html:
    """A titled part of a report with the address ``#prefix-key``."""
    identifier = f"{prefix}-{key}"
    return html(
        "section",
        html("h3", title, id=f"{identifier}-title"),
        html("p", intro, class_="intro") if intro else None,
        children,
        id=identifier,
        aria_labelledby=f"{identifier}-title",
    )


def seed_switch(names: Sequence[str]) -> Html:
    """Radio buttons that ``switch.js`` lets choose one of several ``article.run``."""
    return html(
        "fieldset",
        html("legend", "Seed"),
        (
            html(
                "label",
                html("input", type="radio", name="run", value=index, checked=index == 0),
                html("span", name),
            )
            for index, name in enumerate(names)
        ),
        class_="segments",
        id="runs",
    )


def embed_json(identifier: str, data: Any) -> Html:
    """A data block that scripts read; no text in it can end the block or start another."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')


def asset(name: str) -> str:
    """The text of a style sheet or script of this package."""
    return resources.files("lcdd_lens.report").joinpath("assets", name).read_text(encoding="utf-8")


def document(
    title: str,
    body: Child,
    *,
    data: Any = None,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> str:
    """The whole page.

    Args:
        title: shown in the browser's tab.
        body: what stands in ``<body>``.
        data: what scripts find in the data block ``lcdd-data``.
        styles, scripts: further assets after ``page.css`` and ``page.js``.
    """
    style = "\n".join(asset(name) for name in ("page.css", *styles))
    script = "\n".join(asset(name) for name in ("page.js", *scripts))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    head = html(
        "head",
        html("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        html("meta", name="viewport", content="width=device-width, initial-scale=1"),
        html("meta", name="color-scheme", content="light dark"),
        html("meta", name="generator", content=f"lcdd-lens {__version__}"),
        html("title", title),
        Html(f"<style>{style}</style>"),
    )
    end = join([embed_json("lcdd-data", data), Html(f"<script>{script}</script>")])
    return f'<!doctype html>\n<html lang="en">{head}\n<body>{join([body])}\n{end}</body></html>\n'


def write_page(path: str | Path, page: str) -> Path:
    """Write a page atomically and return its path."""
    path = Path(path)
    write_text_atomic(path, page)
    return path


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# -- figures in words


def percent(value: float | int | None, digits: int = 1) -> str:
    """0.978 -> "97.8 %" with a narrow no-break space; whole figures without a fraction; a dash for what is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{100 * value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{_NARROW}%"


def number(value: float | int | None, digits: int = 3) -> str:
    """A figure with ``digits`` significant digits, without needless zeros; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float | int) -> str:
    """95.3 -> "1 min 35 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def finite(value: Any) -> Mapping[str, Any]:
    """An estimate of ``results.json`` as {"value", "n", "interval"}; empty where nothing was measured."""
    if not isinstance(value, Mapping) or not isinstance(value.get("value"), int | float):
        return {}
    return value if math.isfinite(value["value"]) else {}


def interval(estimate: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of an estimate, where it has one."""
    bounds = estimate.get("interval")
    if not isinstance(bounds, Sequence) or len(bounds) != 2 or None in bounds:
        return None
    return float(bounds[0]), float(bounds[1])
