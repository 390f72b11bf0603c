"""The committed notebooks: executed, clean, without a trace of the machine that ran them, and pages of the site."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def texts(output: dict[str, Any]) -> str:
    """Everything in an output that is text."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *(part for kind, part in data.items() if kind.startswith("text/"))]
    return "\n".join("".join(part) for part in parts)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_executed_in_order_without_an_error(path: Path) -> None:
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_hold_figures_and_no_logs_bars_or_paths_of_a_machine(path: Path) -> None:
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
    shown = "\n".join(texts(output) for output in outputs)
    assert re.findall(r"/(?:tmp|home|root|work|Users)/\S*|it/s\]|\d+%\|", shown) == []
    assert len(shown) < 200_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_opens_with_a_title_and_follows_every_figure(path: Path) -> None:
    every = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert every[0]["cell_type"] == "markdown" and "".join(every[0]["source"]).startswith("# ")
    prose = sum(len("".join(cell["source"]).split()) for cell in every if cell["cell_type"] == "markdown")
    assert prose > 300
    assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_resolve(path: Path) -> None:
    prose = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_site_shows_the_notebook_with_its_figures(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "extensions"))
    monkeypatch.delitem(sys.modules, "notebooks", raising=False)
    import notebooks

    page = notebooks.markdown_of(path)
    figures = sum("image/png" in output.get("data", {}) for cell in cells(path, "code") for output in cell["outputs"])
    assert page.count('src="data:image/png;base64,') == figures
    assert ".ipynb)" not in page and "../docs/" not in page
    assert page.startswith(f"# {notebooks.title_of(path)}")
    overview = (ROOT / "docs" / notebooks.OVERVIEW).read_text(encoding="utf-8")
    assert f"## {path.stem[0]}. " in overview


def test_tables_stay_one_block_of_html_and_streams_are_escaped() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "extensions"))
    try:
        pytest.importorskip("mkdocs")
        import notebooks
    finally:
        sys.path.pop(0)
    table = {"output_type": "execute_result", "data": {"text/html": ["<table>\n", "\n", "  <tr></tr>\n", "</table>"]}}
    assert "\n" not in notebooks.output_html(table) and "<tr></tr>" in notebooks.output_html(table)
    printed = {"output_type": "stream", "name": "stdout", "text": "<script>"}
    assert "<script>" not in notebooks.output_html(printed)
    assert notebooks.output_html({"output_type": "stream", "name": "stderr", "text": "warning"}) == ""
    assert notebooks.linked("[a](2_b.ipynb) [c](../docs/howto/budget.md)") == "[a](2_b.md) [c](../howto/budget.md)"
