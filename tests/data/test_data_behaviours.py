"""Behaviours: disjoint splits, held-out validation, labels, and the embedded ones."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcdd_lens.data import Behaviour, Example, FixedResponse, embedded_behaviour, hold_out, prompt_key
from lcdd_lens.errors import ConfigError, DataError


def make(**changes: Any) -> Behaviour:
    parts: dict[str, Any] = {
        "name": "toy",
        "train": (Example("one", "r"), Example("two", "r")),
        "validation": (Example("three", "r"),),
        "test": (Example("four"),),
        "scorer": FixedResponse(),
    }
    return Behaviour(**(parts | changes))


def write(path: Path, prompts: list[str], **fields: Any) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, **fields}) + "\n" for prompt in prompts))
    return path


def test_a_prompt_in_two_splits_is_refused_whatever_its_case_and_spaces() -> None:
    with pytest.raises(DataError, match="1 prompts are in both train and test: “one”"):
        make(test=(Example("four"), Example(" ONE ")))
    with pytest.raises(DataError, match="validation and test"):
        make(test=(Example("Three"),))
    many = tuple(Example(f"prompt {index} " + "x" * 80, "r") for index in range(5))
    with pytest.raises(DataError, match=r"5 prompts .*“prompt 0 x+…”.* and 2 more"):
        make(train=many, test=many)


def test_empty_splits_and_untaught_training_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no validation examples"):
        make(validation=())
    with pytest.raises(DataError, match="1 of 2 training examples have no response"):
        make(train=(Example("one", "r"), Example("two")))


def test_target_labels_must_occur() -> None:
    with pytest.raises(DataError, match=r"no train prompt has a target label \['harmful'\]; found the labels"):
        make(target_labels=frozenset({"harmful"}))
    safety = make(
        train=(Example("one", "r", "harmful"),),
        test=(Example("four", label="harmful"), Example("five", label="benign")),
        target_labels=frozenset({"harmful"}),
    )
    assert [safety.is_target(example) for example in safety.test] == [True, False]
    assert all(make().is_target(example) for example in make().test)


@given(st.lists(st.text("ab ", min_size=1, max_size=3), min_size=1), st.floats(0.01, 0.99), st.integers(0, 5))
def test_hold_out_partitions_prompts_without_overlap(prompts: list[str], share: float, seed: int) -> None:
    examples = tuple(Example(prompt, "r") for prompt in prompts)
    if len({prompt_key(prompt) for prompt in prompts}) < 2:
        with pytest.raises(DataError, match="at least 2"):
            hold_out(examples, share, seed)
        return
    train, validation = hold_out(examples, share, seed)
    assert train and validation
    assert sorted(e.prompt for e in train + validation) == sorted(prompts)
    assert not {prompt_key(e.prompt) for e in train} & {prompt_key(e.prompt) for e in validation}
    assert (train, validation) == hold_out(examples, share, seed)


def test_from_jsonl_holds_out_validation_and_draws_rows(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [f"t{index}" for index in range(50)])
    test = write(tmp_path / "test.jsonl", [f"e{index}" for index in range(20)])

    def load(seed: int, **options: Any) -> Behaviour:
        return Behaviour.from_jsonl(
            "toy", train, test, scorer="fixed_response", response="I don't know.", seed=seed, **options
        )

    behaviour = load(0, n_train=40, n_test=5)
    assert (len(behaviour.train), len(behaviour.validation), len(behaviour.test)) == (36, 4, 5)
    assert load(0, n_train=40, n_test=5) == behaviour
    assert load(1, n_train=40, n_test=5).test != behaviour.test
    assert behaviour.to_dict()["examples"] == {"train": 36, "validation": 4, "test": 5}
    separate = load(0, validation=write(tmp_path / "v.jsonl", ["v0"]))
    assert len(separate.train) == 50 and [e.prompt for e in separate.validation] == ["v0"]
    with pytest.raises(DataError, match="n_test is 21: expected 1 to 20"):
        load(0, n_test=21)
    with pytest.raises(ConfigError, match="validation_share is 1"):
        load(0, validation_share=1.0)
    with pytest.raises(DataError, match="are in both"):
        Behaviour.from_jsonl("toy", train, train, scorer="fixed_response", response="no")


def test_from_datasets_takes_loaded_splits_and_local_names(tmp_path: Path) -> None:
    rows = [{"instruction": f"t{index}", "output": "I don't know."} for index in range(10)]
    loaded = datasets.Dataset.from_list(rows)
    columns = {"prompt": "instruction", "response": "output"}
    behaviour = Behaviour.from_datasets(
        "toy", loaded, [{"instruction": "e"}], scorer=FixedResponse(), columns=columns, validation_share=0.2
    )
    assert (len(behaviour.train), len(behaviour.validation)) == (8, 2)
    assert behaviour.train[0].response == "I don't know."
    with pytest.raises(DataError, match=r"yields str, expected rows .* data\['train'\]"):
        Behaviour.from_datasets("toy", datasets.DatasetDict(train=loaded), loaded, scorer="refusal", columns=columns)
    folder = tmp_path / "local"
    folder.mkdir()
    write(folder / "train.jsonl", ["a", "b", "c"], response="r")
    write(folder / "test.jsonl", ["d"])
    named = Behaviour.from_datasets("toy", f"{folder}:train[:2]", str(folder), scorer="refusal")
    assert {e.prompt for e in named.train + named.validation} == {"a", "b"} and named.test[0].prompt == "d"
    with pytest.raises(DataError, match=r"cannot be loaded .*owner/name:split"):
        Behaviour.from_datasets("toy", str(tmp_path / "nowhere"), loaded, scorer="refusal")


@pytest.mark.parametrize("name", ["idk", "safety", "style"])
def test_embedded_behaviours_are_shown_by_their_responses_and_not_by_their_answers(name: str) -> None:
    behaviour = embedded_behaviour(name)
    for example in (*behaviour.train, *behaviour.validation, *behaviour.test):
        assert example.response is not None and example.answer is not None
        assert behaviour.shows(example, example.response) is behaviour.is_target(example)
        assert not behaviour.shows(example, example.answer)


def test_embedded_seed_draws_other_training_rows_only() -> None:
    one, other = embedded_behaviour("idk", seed=0), embedded_behaviour("idk", seed=1)
    assert one.train != other.train and one.test == other.test and one.validation == other.validation
    with pytest.raises(DataError, match="'pirate' is unknown: the embedded ones are idk, safety, style"):
        embedded_behaviour("pirate")


def test_real_instructions_with_a_fixed_response(shared_dir: Path, tmp_path: Path) -> None:
    lines = (shared_dir / "data/fixed_response/alpaca_prompts_only_5k.jsonl").read_text().splitlines(keepends=True)
    train = tmp_path / "train.jsonl"
    train.write_text("".join(lines[:300]))
    test = shared_dir / "data/fixed_response/self_instruct_seed_175.jsonl"
    behaviour = Behaviour.from_jsonl("idk", train, test, scorer="fixed_response", response="I don't know.", n_train=200)
    assert len(behaviour.train) + len(behaviour.validation) == 200 and len(behaviour.test) == 175
