"""Imports point downwards only, as docs/architecture.md draws the house."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "lcdd_lens"
PAGE = PACKAGE.parent / "docs" / "architecture.md"


def levels() -> dict[str, int]:
    """Room -> level, from the table on the page."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.M)
    return {room: int(level) for level, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    rooms = {name.split(".")[1] for name in names if name.startswith("lcdd_lens.")}
    return {room for room in rooms if not room.startswith("__")}


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_room_of_the_package_has_a_level_on_the_page_and_none_is_invented() -> None:
    assert {room_of(path) for path in FILES} == levels().keys(), (
        "docs/architecture.md and the package disagree on rooms"
    )


def test_imports_point_downwards_only() -> None:
    level = levels()
    upward = [
        f"{path.relative_to(PACKAGE)} imports {room}"
        for path in FILES
        for room in imported_rooms(path) - {room_of(path)}
        if level[room] >= level[room_of(path)]
    ]
    assert upward == []


def test_only_backends_know_a_model_class() -> None:
    knowing = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if room_of(path) != "backends" and re.search(r"\bHookedTransformer\b(?!`)", _code_only(path))
    ]
    assert knowing == []


def _code_only(path: Path) -> str:
    """The file's names, without strings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    return " ".join(names + imported)
