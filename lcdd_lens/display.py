"""How results show themselves in a notebook: a title, facts, tables, and no text that could be taken for HTML.

One function, so that every ``_repr_html_`` looks alike and none forgets to escape. It sets no style: the notebook's own
style of tables, light or dark, applies.
"""

import html
from collections.abc import Mapping
from typing import TypeAlias

import pandas as pd

Fact: TypeAlias = str | float | int | bool | None
Part: TypeAlias = str | Mapping[str, Fact] | pd.DataFrame


def notebook_view(title: str, *parts: Part) -> str:
    """HTML of a result.

    Args:
        title: one line, in bold.
        parts: a text is a paragraph, a mapping a table of two columns, a DataFrame a table with its index.

    Returns:
        HTML in which every text that was given stands escaped.
    """
    return "".join([f"<p><b>{html.escape(title)}</b></p>", *map(_part, parts)])


def fact(value: Fact) -> str:
    """A value as text: floats with four significant digits, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, pd.DataFrame):
        return str(part.to_html(escape=True, float_format="{:.3g}".format, na_rep="–", border=0))
    rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(fact(value))}</td></tr>" for name, value in part.items())
    return f"<table><tbody>{''.join(rows)}</tbody></table>"
