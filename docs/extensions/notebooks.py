"""Notebooks as pages: what stands in ``tutorials/`` becomes part of the built site, with its outputs.

Markdown cells are taken as they are, code cells become code blocks, and of each output the richest form is kept:
figures, tables, or text. Links between notebooks and to the documentation are turned into links between pages. Nothing
is executed.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FOLDER = Path(__file__).resolve().parents[2] / "tutorials"
OVERVIEW = "tutorials.md"


def notebooks() -> dict[str, Path]:
    """Number -> notebook."""
    return {path.name.partition("_")[0]: path for path in sorted(FOLDER.glob("[0-9]_*.ipynb"))}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put one page per notebook under the overview's entry of the navigation."""
    pages = [{title_of(path): page_of(path)} for path in notebooks().values()]
    config.nav = with_pages(config.nav, pages)
    return config


def with_pages(nav: Any, pages: list[dict[str, str]]) -> Any:
    """The navigation, with the overview's entry opened into a section."""
    if isinstance(nav, list):
        return [with_pages(entry, pages) for entry in nav]
    if isinstance(nav, dict):
        return {
            title: [OVERVIEW, *pages] if entry == OVERVIEW else with_pages(entry, pages) for title, entry in nav.items()
        }
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path in notebooks().values():
        files.append(File.generated(config, page_of(path), content=markdown_of(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """On the overview, link every heading ``## 1. Title`` to its notebook's page."""
    if page.file.src_uri != OVERVIEW:
        return markdown
    for number, path in notebooks().items():
        markdown = re.sub(rf"^## {number}\. (.+)$", rf"## {number}. [\1]({page_of(path)})", markdown, flags=re.M)
    return markdown


def page_of(path: Path) -> str:
    """Address of a notebook's page below ``docs``."""
    return f"tutorials/{path.stem}.md"


def title_of(path: Path) -> str:
    """The first heading."""
    first = source(json.loads(path.read_text(encoding="utf-8"))["cells"][0])
    return first.splitlines()[0].removeprefix("# ")


def markdown_of(path: Path) -> str:
    """The whole notebook."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(linked(source(cell)))
        elif cell["cell_type"] == "code" and source(cell).strip():
            parts.append(f"```python\n{source(cell)}\n```")
            parts += [shown for output in cell["outputs"] if (shown := output_html(output))]
    return "\n\n".join(parts)


def source(cell: dict[str, Any]) -> str:
    """A cell's text, which is stored as one string or as lines."""
    return "".join(cell["source"])


def linked(text: str) -> str:
    """Links as they are from the site: other notebooks are pages, ``../docs/x.md`` lies one folder up."""
    text = re.sub(r"\]\(\./?([\w.]+)\.ipynb\)|\]\(([\w.]+)\.ipynb\)", lambda m: f"]({m[1] or m[2]}.md)", text)
    return text.replace("](../docs/", "](../")


def output_html(output: dict[str, Any]) -> str:
    """The richest form of an output; errors' and warnings' streams are left out."""
    if output["output_type"] == "stream":
        text = "".join(output["text"]) if output["name"] == "stdout" else ""
        return f'<div class="cell-output"><pre>{html.escape(text)}</pre></div>' if text else ""
    data = output.get("data", {})
    if "image/png" in data:
        image = "".join(data["image/png"]).replace("\n", "")
        return f'<div class="cell-output"><img alt="figure" src="data:image/png;base64,{image}"></div>'
    if "text/html" in data:
        # A blank line would end the block of HTML, and indented lines would be code.
        rich = "".join(data["text/html"])
        lines = (line.strip() for line in rich.splitlines())
        return f'<div class="cell-output">{"".join(f"{line} " for line in lines if line)}</div>'
    text = "".join(data.get("text/plain", ""))
    return f'<div class="cell-output"><pre>{html.escape(text)}</pre></div>' if text else ""
