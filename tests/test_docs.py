"""README and documentation hold what they say: their code runs, their data parse, their figures are those of the run.

The Python blocks of a page are one session, run from top to bottom in an empty folder. A line ``print(...)  # → text``
promises that the text is printed. A comment before a block gives directions:

    <!-- test: slow -->               the block trains: the page's session is one of the slow tests
    <!-- test: skip, the reason -->   the block is not run (it needs a GPU, a network or files that are not here)
"""

import ast
import importlib
import json
import pkgutil
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KNOWN = {"python", "bash", "text", "json", "yaml", "bibtex"}
_FENCE = re.compile(r"^```(\w*)\s*$")
_DIRECTION = re.compile(r"^<!-- test: (slow|skip), ?(.*?) ?-->$|^<!-- test: (slow) -->$")
_PROMISE = re.compile(r"#\s*→\s*(.+?)\s*$")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    direction: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if opening is None:
            number += 1
            continue
        end = next(index for index in range(number + 1, len(lines)) if lines[index] == "```")
        before = lines[number - 1] if number else ""
        direction = _DIRECTION.match(before)
        assert direction or not before.startswith("<!-- test"), f"{page}:{number}: cannot read {before!r}"
        kind = (direction.group(1) or direction.group(3)) if direction else ""
        yield Block(page, number + 1, opening.group(1), "\n".join(lines[number + 1 : end]), kind)
        number = end + 1


BLOCKS = [block for page in PAGES for block in blocks(page)]


def sessions() -> list[Any]:
    """One parameter per page with Python on it, marked slow where a block says so."""
    found = []
    for page in PAGES:
        python = [block for block in BLOCKS if block.page == page and block.language == "python"]
        if any(block.direction != "skip" for block in python):
            marks = [pytest.mark.slow] if any(block.direction == "slow" for block in python) else []
            found.append(pytest.param(python, id=str(page.relative_to(ROOT)), marks=marks))
    return found


@pytest.fixture(scope="session")
def finished_runs() -> dict[str, Path]:
    """Configuration -> folder of a run that a page has made."""
    return {}


@pytest.fixture
def one_run_for_all_pages(
    finished_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that asks for a run which an earlier page has made gets a copy of that one."""
    import lcdd_lens
    from lcdd_lens.pipeline import load_experiment, run_experiment

    def run_once(config: Any, out: str | Path, **options: Any) -> Any:
        known = finished_runs.get(repr(config))
        if known is not None:
            shutil.copytree(known, out)
            return load_experiment(out)
        experiment = run_experiment(config, out, **options)
        finished_runs[repr(config)] = tmp_path_factory.mktemp("runs") / "run"
        shutil.copytree(out, finished_runs[repr(config)])
        return experiment

    monkeypatch.setattr(lcdd_lens, "run_experiment", run_once, raising=False)


@pytest.mark.parametrize("session", sessions())
@pytest.mark.usefixtures("one_run_for_all_pages")
def test_python_on_the_page_runs_and_prints_what_it_promises(
    session: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Dataclasses on a page look themselves up in the module that they are defined in.
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in session:
        if block.direction == "skip":
            continue
        source = "\n" * block.line + block.code
        exec(compile(source, str(block.page), "exec"), module.__dict__)
        printed = iter(capsys.readouterr().out.splitlines())
        for line in block.code.splitlines():
            if promise := _PROMISE.search(line):
                assert any(found.strip() == promise.group(1) for found in printed), f"{block}: no {promise.group(1)!r}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_that_is_not_run_is_at_least_python(block: Block) -> None:
    ast.parse(block.code)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=str)
def test_rows_on_the_page_are_rows_of_a_behaviour(block: Block) -> None:
    from lcdd_lens.data.files import FIELDS

    for line in block.code.splitlines():
        row = json.loads(line)
        assert {"prompt", "response"} <= row.keys() <= set(FIELDS)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_settings_on_the_page_are_settings_of_an_experiment(block: Block) -> None:
    from lcdd_lens.configuration import updated
    from lcdd_lens.pipeline import demo_config

    changed = updated(demo_config(), yaml.safe_load(block.code))
    assert changed != demo_config()


def test_every_block_names_a_language_that_is_checked_or_plainly_none() -> None:
    assert {block.language for block in BLOCKS} <= KNOWN


def commands() -> list[Any]:
    """Every ``lcdd-lens`` command of the documentation, as an argument list."""
    found = []
    for block in BLOCKS:
        if block.language == "bash":
            for part in re.split(r"&&|\n", block.code.replace("\\\n", " ")):
                words = shlex.split(part, comments=True)
                if words[:1] == ["lcdd-lens"]:
                    found.append(pytest.param(words[1:], id=f"{block}:{' '.join(words[:2])}"))
    return found


@pytest.mark.parametrize("arguments", commands())
def test_commands_on_the_page_are_accepted_by_the_command_line(arguments: list[str]) -> None:
    from lcdd_lens.cli import make_parser

    make_parser().parse_args(arguments)


def prose(page: Path) -> str:
    """The page without its code."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Addresses of the headings, as mkdocs makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        is_heading = anchor and there.suffix == ".md" and not anchor.startswith("lcdd_lens.")
        if not there.exists() or (is_heading and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r"^ +- (?:[^:\n]+: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    there = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert len(listed) == len(set(listed)) and set(listed) == there


def test_readme_gives_the_two_commands() -> None:
    lines = [line for block in BLOCKS if block.page.name == "README.md" for line in block.code.splitlines()]
    assert "pip install -c constraints.txt -e . && lcdd-lens demo" in lines
    assert 'pip install -c constraints.txt -e ".[dev]" && pytest' in lines


def test_table_in_readme_is_that_of_the_committed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_figures

    figures = json.loads((ROOT / "docs" / "assets" / "demo.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{make_figures.START}\n{make_figures.table(figures)}\n{make_figures.END}" in readme


def test_every_public_name_is_in_the_reference_once() -> None:
    """Everything that a subpackage exports; a module that is shown whole covers what it defines."""
    import lcdd_lens

    reference = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    shown = re.findall(r"^::: (lcdd_lens[\w.]*)$", reference, re.M)
    short = {name.rpartition(".")[2] for name in shown}
    missing = set(lcdd_lens.__all__) - short
    for room in (room for room in pkgutil.iter_modules(lcdd_lens.__path__) if room.ispkg):
        module = importlib.import_module(f"lcdd_lens.{room.name}")
        for name in getattr(module, "__all__", ()):
            home = getattr(getattr(module, name), "__module__", "")
            if name not in short and home not in shown:
                missing.add(f"{room.name}.{name}")
    assert sorted(missing) == []
    assert sorted({name for name in shown if shown.count(name) > 1}) == []
