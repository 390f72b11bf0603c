"""Rows to examples: JSONL files and data-set rows, checked before any model is loaded.

A row is an object with ``prompt``, and where it has them ``response``, ``label``, ``answer`` and ``id``; other fields
are ignored. Structural faults (a broken line, a missing field, a file that is not text) stop at once and name the line;
rows that are well formed but unusable (empty, not text) are counted by :class:`~lcdd_lens.data.screening.RowScreen`.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lcdd_lens.data.examples import Example
from lcdd_lens.data.screening import MAX_DROPPED_SHARE, RowReport, RowScreen
from lcdd_lens.errors import DataError

logger = logging.getLogger(__name__)

FIELDS = ("prompt", "response", "label", "answer", "id")


def read_jsonl(
    path: str | Path,
    *,
    response: str | None = None,
    needs_response: bool = False,
    columns: Mapping[str, str] | None = None,
    max_dropped_share: float = MAX_DROPPED_SHARE,
) -> tuple[tuple[Example, ...], RowReport]:
    """Read examples from a JSONL file: one JSON object a line, blank lines ignored.

    Args:
        path: the file, UTF-8.
        response: one response for every row, in place of the file's (a fixed-response behaviour).
        needs_response: refuse rows without a response; training files need one.
        columns: the file's names for our fields, for example ``{"prompt": "question"}``.
        max_dropped_share: the largest share of unusable rows that is only reported.

    Returns:
        The examples in file order, and what was dropped.

    Raises:
        DataError: the file is missing, empty, not text, has a broken line or lacks a field (with the line's number),
            or holds too many unusable rows.
    """
    source = str(path)
    return examples_from_rows(
        _json_lines(Path(path)),
        source,
        response=response,
        needs_response=needs_response,
        columns=columns,
        max_dropped_share=max_dropped_share,
    )


def examples_from_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    source: str,
    *,
    response: str | None = None,
    needs_response: bool = False,
    columns: Mapping[str, str] | None = None,
    max_dropped_share: float = MAX_DROPPED_SHARE,
) -> tuple[tuple[Example, ...], RowReport]:
    """Screen rows, each with the place that messages name it by; see :func:`read_jsonl`.

    Raises:
        DataError: a row lacks a required field, or too many rows are unusable.
    """
    names = _column_names(columns or {})
    required = ("prompt", "response") if needs_response and response is None else ("prompt",)
    screen = RowScreen(source, max_dropped_share)
    examples: list[Example] = []
    for place, row in rows:
        missing = [names[name] for name in required if names[name] not in row]
        if missing:
            raise DataError(
                f"{source}, {place}: the field {_quoted(missing)} is missing; found {_quoted(sorted(row))}. "
                "Expected objects with 'prompt' and, for training, 'response': rename the fields in the file, or, in "
                "Python, map these names to the file's with columns={...}."
            )
        values = {name: row.get(column) for name, column in names.items()}
        if response is not None:
            values["response"] = response
        fault = _fault(values, required)
        if fault:
            screen.drop(place, fault)
            continue
        screen.keep()
        examples.append(_example(values))
    hint = "Give one response for all rows with response=..." if "response" in required else ""
    report = screen.report(hint)
    if report.n_dropped:
        logger.warning(report.summary())
    return tuple(examples), report


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error}). Expected one JSON object a line."
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: a JSON {type(row).__name__}, expected an object with the field 'prompt'."
            )
        yield f"line {number}", row


def _read_text(path: Path) -> str:
    if not path.exists():
        raise DataError(f"{path} does not exist: expected a JSONL file.")
    if not path.is_file():
        raise DataError(f"{path} is not a file: expected a JSONL file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not text.strip():
        raise DataError(f"{path} is empty: expected one JSON object a line.")
    return text


def _column_names(columns: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(set(columns) - set(FIELDS))
    if unknown:
        raise DataError(f"columns names the unknown field {_quoted(unknown)}: expected some of {_quoted(FIELDS)}.")
    return {name: columns.get(name, name) for name in FIELDS}


def _fault(values: Mapping[str, Any], required: tuple[str, ...]) -> str:
    for name in ("prompt", "response"):
        value = values[name]
        if value is None:
            if name in required:
                return f"empty {name}"
        elif not _is_text(value):
            return f"{name} not text"
        elif not value.strip() and name in required:
            return f"empty {name}"
    if values["answer"] is not None and not _is_text(values["answer"]):
        return "answer not text"
    return ""


def _is_text(value: object) -> bool:
    """A string that can be written as UTF-8; JSON can smuggle in halves of surrogate pairs, tokenizers cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _example(values: Mapping[str, Any]) -> Example:
    def text(name: str) -> str | None:
        value = values[name]
        return value if value is not None and value.strip() else None

    def tag(name: str, default: str) -> str:
        value = values[name]
        return default if value is None else str(value)

    return Example(
        prompt=str(values["prompt"]),
        response=text("response"),
        label=tag("label", Example.label),
        answer=text("answer"),
        id=tag("id", Example.id),
    )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
