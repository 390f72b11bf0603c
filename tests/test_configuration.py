"""Configuration files: what is named is set, what is misnamed is refused with the nearest name."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcdd_lens.configuration import build, nearest, read_settings, updated
from lcdd_lens.errors import ConfigError
from lcdd_lens.pipeline import BehaviourSource, ExperimentConfig
from lcdd_lens.training import LCDDConfig


@dataclass(frozen=True)
class Inner:
    steps: int = 3
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    mode: Literal["fast", "slow"] = "fast"
    words: tuple[str, ...] = ()
    limit: int | None = None
    share: float | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ConfigError("limit is negative")


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_not_named_keeps_its_default() -> None:
    made = build(Outer, {"name": "n", "inner": {"steps": 7}})
    assert made == Outer("n", inner=Inner(steps=7, rate=0.5))


def test_types_of_files_become_types_of_the_dataclass() -> None:
    made = build(Outer, {"name": "n", "words": ["a", "b"], "share": 1, "limit": None, "extra": {"rate": "1e-3"}})
    assert made.words == ("a", "b") and made.share == 1.0 and isinstance(made.share, float)
    assert made.extra == Inner(rate=0.001)


@given(
    st.builds(
        Outer,
        name=st.text(),
        mode=st.sampled_from(["fast", "slow"]),
        words=st.lists(st.text()).map(tuple),
        limit=st.none() | st.integers(0),
        share=st.none() | st.floats(allow_nan=False),
        flag=st.booleans(),
        inner=st.builds(Inner, steps=st.integers(), rate=st.floats(allow_nan=False)),
        extra=st.none() | st.builds(Inner),
    )
)
def test_a_dataclass_comes_back_from_its_dictionary(config: Outer) -> None:
    assert build(Outer, asdict(config)) == config
    assert updated(Outer("other"), asdict(config) | {"inner": asdict(config.inner)}) == config


def test_an_experiment_comes_back_from_json() -> None:
    config = ExperimentConfig("b", BehaviourSource("n", phrases=("x", "y")), lcdd=LCDDConfig.paper()).seeded()
    import json

    assert build(ExperimentConfig, json.loads(json.dumps(asdict(config)))) == config


def test_update_changes_nested_fields_only_where_named() -> None:
    default = Outer("n", inner=Inner(5, 0.25), words=("w",))
    assert updated(default, {"inner": {"rate": 1}}) == Outer("n", inner=Inner(5, 1.0), words=("w",))
    assert default.inner.rate == 0.25


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "n", "mod": "slow"}, r"unknown setting 'mod'\. Did you mean 'mode'\?.*name, mode, words"),
        ({"name": "n", "inner": {"step": 1}}, r"unknown setting 'step' in 'inner'\. Did you mean 'steps'\?"),
        ({"name": "n", "mode": "fsat"}, r"mode is 'fsat': expected one of 'fast', 'slow'\. Did you mean 'fast'\?"),
        ({}, "the setting name is missing"),
        ({"name": 3}, "name is 3, a number: expected text"),
        ({"name": "n", "limit": True}, "limit is True, a true/false value: expected a whole number"),
        ({"name": "n", "limit": 1.5}, "limit is 1.5"),
        ({"name": "n", "share": "much"}, "share is 'much', a text: expected a number"),
        ({"name": "n", "words": "abc"}, "words is 'abc', a text: expected a list"),
        ({"name": "n", "words": ["a", 1]}, r"words\[1\] is 1"),
        ({"name": "n", "inner": 3}, "inner is 3, a number: expected settings"),
        ({"name": "n", "flag": "yes"}, "flag is 'yes'"),
        ({"name": "n", "limit": -1}, "limit is negative"),
        ({"name": None}, "name is None, a null"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, values)


def test_update_refuses_unknown_names_too() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'setle_steps'\. Did you mean 'settle_steps'\?"):
        updated(LCDDConfig(), {"setle_steps": 3})


def test_a_value_out_of_range_is_refused_by_the_dataclass_itself() -> None:
    with pytest.raises(ConfigError, match="warmup_steps is 0"):
        updated(LCDDConfig(), {"budget": {"warmup_steps": 0}})


def test_yaml_and_json_read_alike(tmp_path: Path) -> None:
    expected = {"seed": 1, "lcdd": {"settle_steps": 5}}
    assert read_settings(written(tmp_path, "seed: 1\nlcdd:\n  settle_steps: 5  # short\n")) == expected
    assert read_settings(written(tmp_path, '{"seed": 1, "lcdd": {"settle_steps": 5}}')) == expected
    assert read_settings(written(tmp_path, "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "holds a list"),
        ("a: [1\n", "not valid YAML"),
        ("seed: 1\nseed: 2\n", "'seed' is given twice"),
        ("x: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        read_settings(tmp_path / "none.yaml")


def test_nearest_name() -> None:
    assert nearest("sparisty", ["sparsity", "seed"]) == " Did you mean 'sparsity'?"
    assert nearest("zzz", ["sparsity", "seed"]) == ""
