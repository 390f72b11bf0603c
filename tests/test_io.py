"""Artefact files: written whole or not at all, and checked before they are believed."""

import json
import math
from pathlib import Path
from typing import Any, TypedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcdd_lens.errors import ArtefactError
from lcdd_lens.io import (
    atomic_path,
    fingerprint,
    load_tensors,
    read_json,
    read_sealed_json,
    record_digest,
    save_tensors_atomic,
    write_json_atomic,
    write_sealed_json,
    write_text_atomic,
)


class Record(TypedDict):
    schema: int
    names: list[str]


# -- atomic writes


def test_a_failing_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text_atomic(path, "old")
    with pytest.raises(OSError, match="on purpose"), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError("on purpose")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_the_first_time_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "new.txt"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/file.txt"
    write_text_atomic(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"


# -- JSON


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_that_other_readers_would_refuse_is_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "f.json"
    write_json_atomic(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"loss": value})
    assert json.loads(path.read_text()) == {"loss": 1.0}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
@settings(deadline=None, max_examples=30)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "f.json"
    write_json_atomic(path, content)
    assert read_json(path, dict) == content


def test_json_is_checked_to_the_last_item(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json_atomic(path, {"schema": 1, "names": ["a"] * 100 + [3]})
    with pytest.raises(ArtefactError, match="fields of Record"):
        read_json(path, Record)
    write_json_atomic(path, {"schema": 1})
    with pytest.raises(ArtefactError, match="names"):
        read_json(path, Record)


def test_a_type_may_have_parameters(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "f.json", {"a": 1})
    assert read_json(tmp_path / "f.json", dict[str, int]) == {"a": 1}
    with pytest.raises(ArtefactError, match="fields of dict"):
        read_json(tmp_path / "f.json", dict[str, str])


def test_unreadable_json_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    with pytest.raises(ArtefactError, match="does not exist"):
        read_json(path, dict)
    path.write_text('{"schema": 1, "na')
    with pytest.raises(ArtefactError, match="not valid JSON"):
        read_json(path, dict)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtefactError, match="damaged"):
        read_json(path, dict)


# -- sealed records


@given(st.dictionaries(st.text(), JSON, max_size=4), st.text(), JSON)
@settings(deadline=None, max_examples=30)
def test_any_edit_of_a_sealed_record_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], key: str, value: Any
) -> None:
    path = tmp_path_factory.mktemp("sealed") / "f.json"
    record = {name: entry for name, entry in content.items() if name != "record_sha256"} | {"schema": 1}
    write_sealed_json(path, record)
    stored = read_sealed_json(path, dict, 1)
    assert {name: entry for name, entry in stored.items() if name != "record_sha256"} == record
    edited = stored | {key: value}
    write_json_atomic(path, edited)
    if json.dumps(edited, sort_keys=True) == json.dumps(stored, sort_keys=True):
        read_sealed_json(path, dict, 1)
    else:
        with pytest.raises(ArtefactError):
            read_sealed_json(path, dict, 1)


def test_a_record_without_a_seal_is_not_believed(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "f.json", {"schema": 1, "names": []})
    with pytest.raises(ArtefactError, match="altered after it was saved"):
        read_sealed_json(tmp_path / "f.json", Record, 1)


def test_a_newer_record_asks_for_an_update_whatever_its_fields(tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "f.json", {"schema": 3, "library_version": "9.1", "other": {}})
    with pytest.raises(ArtefactError, match=r"lcdd_lens 9\.1 \(schema 3\).*reads schema 2: update"):
        read_sealed_json(tmp_path / "f.json", Record, 2)


def test_the_digest_is_of_what_json_gives_back() -> None:
    given_ = {"shape": (1, 2), "by step": {10: 0.5, 9: 1.0}}
    assert record_digest(given_) == record_digest(json.loads(json.dumps(given_)))
    assert record_digest({"a": 1, "b": 2}) == record_digest({"b": 2, "a": 1, "record_sha256": "anything"})
    with pytest.raises(ValueError, match="JSON compliant"):
        record_digest({"loss": math.nan})


# -- tensors


def test_tensors_come_back_bit_by_bit_whatever_their_memory_layout(tmp_path: Path) -> None:
    square = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "transposed": square.T,
        "view": square[:, 1],
        "same": square,
        "bf16": square.bfloat16(),
        "one": torch.tensor(7),
    }
    save_tensors_atomic(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == tensors[name].dtype for name in tensors
    )


def test_unreadable_tensors_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(ArtefactError, match="does not exist"):
        load_tensors(path)
    with pytest.raises(ArtefactError, match="does not exist"):
        load_tensors(tmp_path)
    save_tensors_atomic(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="damaged or cut off"):
        load_tensors(path)


# -- fingerprints

WEIGHTS = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}


def test_equal_weights_have_equal_fingerprints_in_any_order_and_layout() -> None:
    square = torch.arange(4.0).reshape(2, 2)
    assert fingerprint({"w": square.T}) == fingerprint({"w": square.T.contiguous()})
    assert fingerprint(dict(reversed(WEIGHTS.items()))) == fingerprint(WEIGHTS)


@pytest.mark.parametrize(
    "other",
    [
        WEIGHTS | {"a": torch.tensor([1.0, 2.0 + 2e-7])},
        {"a": WEIGHTS["a"], "c": WEIGHTS["b"]},
        {"b": WEIGHTS["a"], "a": WEIGHTS["b"]},
        WEIGHTS | {"a": WEIGHTS["a"][None]},
        WEIGHTS | {"a": WEIGHTS["a"].double()},
        WEIGHTS | {"a": WEIGHTS["a"].view(torch.int32)},
        {"a": WEIGHTS["a"]},
        WEIGHTS | {"c": torch.empty(0)},
    ],
    ids=["value", "name", "swapped", "shape", "precision", "same bytes, other dtype", "missing", "extra"],
)
def test_any_difference_changes_the_fingerprint(other: dict[str, torch.Tensor]) -> None:
    assert fingerprint(other) != fingerprint(WEIGHTS)


def test_every_dtype_has_a_fingerprint() -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8)
    assert len({fingerprint({"w": torch.ones(3, dtype=dtype)}) for dtype in dtypes}) == len(dtypes)
