"""Files of rows: what is read, what is counted, what is refused and how the message helps."""

import json
from pathlib import Path
from typing import Any

import pytest

from lcdd_lens.data import Example, read_jsonl
from lcdd_lens.errors import DataError


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def good(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {index}", "response": "reply"} for index in range(n)]


def test_fields_are_read_and_others_ignored(tmp_path: Path) -> None:
    row = {"prompt": "p", "response": "r", "label": "harmful", "answer": "a", "id": 7, "source": "elsewhere"}
    examples, report = read_jsonl(write(tmp_path / "f.jsonl", row, {"prompt": "q", "response": None}))
    assert examples == (Example("p", "r", "harmful", "a", "7"), Example("q"))
    assert report.n_kept == 2 and report.n_dropped == 0


def test_one_response_replaces_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", {"prompt": "p", "response": "r"}, {"prompt": "q"})
    examples, _ = read_jsonl(path, response="I don't know.", needs_response=True)
    assert [example.response for example in examples] == ["I don't know."] * 2


def test_columns_rename_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", {"question": "p", "prompt": "not this"})
    examples, _ = read_jsonl(path, columns={"prompt": "question"})
    assert examples[0].prompt == "p"
    with pytest.raises(DataError, match="unknown field 'question'"):
        read_jsonl(path, columns={"question": "prompt"})


def test_blank_lines_bom_and_line_separators_inside_strings_are_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('\ufeff{"prompt": "a\u2028b"}\n\n{"prompt": "c"}\r\n', encoding="utf-8")
    assert [example.prompt for example in read_jsonl(path)[0]] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "cut off', r"line 3: not valid JSON"),
        ('["prompt", "response"]', r"line 3: a JSON list, expected an object"),
        ('"just text"', r"line 3: a JSON str, expected an object"),
        ('{"instruction": "p", "response": "r"}', r"line 3: the field 'prompt' is missing; found 'instruction'"),
        ('{"prompt": "p"}', r"line 3: the field 'response' is missing; found 'prompt'"),
        ("[" * 100_000, r"line 3: not valid JSON"),
    ],
)
def test_structural_faults_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "f.jsonl", *good(2), line)
    with pytest.raises(DataError, match=message):
        read_jsonl(path, needs_response=True)


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_jsonl(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="is not a file"):
        read_jsonl(tmp_path)
    (tmp_path / "empty.jsonl").write_text(" \n\n")
    with pytest.raises(DataError, match="is empty"):
        read_jsonl(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b'{"prompt": "\xff\xfe"}')
    with pytest.raises(DataError, match=r"not UTF-8 text .* at byte 12"):
        read_jsonl(tmp_path / "binary.jsonl")


UNUSABLE: list[tuple[dict[str, Any] | str, str]] = [
    ({"prompt": "  ", "response": "r"}, "empty prompt"),
    ({"prompt": None, "response": "r"}, "empty prompt"),
    ({"prompt": 12, "response": "r"}, "prompt not text"),
    ({"prompt": ["p"], "response": "r"}, "prompt not text"),
    ('{"prompt": "half \\ud800 a pair", "response": "r"}', "prompt not text"),
    ({"prompt": "p", "response": ""}, "empty response"),
    ({"prompt": "p", "response": None}, "empty response"),
    ({"prompt": "p", "response": {"text": "r"}}, "response not text"),
    ({"prompt": "p", "response": "r", "answer": 4}, "answer not text"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE)
def test_unusable_rows_are_counted_under_the_share_and_refused_above_it(
    tmp_path: Path, row: dict[str, Any] | str, reason: str
) -> None:
    few = write(tmp_path / "few.jsonl", *good(9), row)
    examples, report = read_jsonl(few, needs_response=True)
    assert len(examples) == 9
    assert report.dropped == {reason: 1} and report.places == (f"line 10 ({reason})",)
    many = write(tmp_path / "many.jsonl", *good(8), row)
    with pytest.raises(DataError, match=f"1 of 9 rows unusable: 1 {reason} .*allowed share of 10%"):
        read_jsonl(many, needs_response=True)
    assert len(read_jsonl(many, needs_response=True, max_dropped_share=0.5)[0]) == 8


def test_a_file_without_responses_hints_at_giving_one(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", {"prompt": "p", "response": None})
    with pytest.raises(DataError, match=r"nothing is left.*response=\.\.\."):
        read_jsonl(path, needs_response=True)


def test_real_files_are_read_whole(shared_dir: Path) -> None:
    for name, rows in (("safety/harmbench_standard", 187), ("fixed_response/self_instruct_seed_175", 175)):
        examples, report = read_jsonl(shared_dir / "data" / f"{name}.jsonl")
        assert len(examples) == report.n_rows == rows
