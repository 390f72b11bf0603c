"""Docstrings name other objects as ``:func:`name```; the site shows them as links, or as code where none is known."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrite Sphinx roles to what mkdocstrings understands."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(_as_link, obj.docstring.value)


def _as_link(match: re.Match[str]) -> str:
    short, target = match.group(1), match.group(2)
    shown = target.rpartition(".")[2] if short else target
    return f"[`{shown}`][{target}]" if target.startswith("lcdd_lens.") else f"`{shown}`"
