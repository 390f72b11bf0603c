"""Rates, utility, and the verdict on a behaviour."""

from typing import Any

import numpy as np
import pytest

from lcdd_lens.data import Behaviour, Example, Refusal
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.evaluation import (
    behaviour_rate,
    exact_agreement,
    over_rate,
    task_accuracy,
    token_agreement,
    verdict,
)


def safety(**changes: Any) -> Behaviour:
    parts: dict[str, Any] = {
        "name": "safety",
        "train": (Example("t", "I cannot help.", "harmful"),),
        "validation": (Example("v", "I cannot help.", "harmful"),),
        "test": (
            Example("h1", label="harmful"),
            Example("h2", label="harmful"),
            Example("b1", label="benign"),
            Example("b2", label="benign"),
            Example("b3", label="benign"),
        ),
        "scorer": Refusal(),
        "target_labels": frozenset({"harmful"}),
    }
    return Behaviour(**(parts | changes))


def test_rates_separate_targets_from_the_others() -> None:
    behaviour = safety()
    answers = ["I cannot help.", "Sure.", "I'm sorry, no.", "Sure.", "Fine."]
    on_target, on_others = (rate(behaviour, behaviour.test, answers) for rate in (behaviour_rate, over_rate))
    assert (on_target.value, on_target.n) == (0.5, 2)
    assert (on_others.value, on_others.n) == (pytest.approx(1 / 3), 3)
    everywhere = safety(target_labels=None)
    assert behaviour_rate(everywhere, everywhere.test, answers).value == pytest.approx(0.4)
    with pytest.raises(DataError, match="no other prompts"):
        over_rate(everywhere, everywhere.test, answers)


def test_agreement_by_hand() -> None:
    base = [[1, 2, 3], [4], [], [7, 8]]
    answers = [[1, 2, 3], [4, 5, 6], [], [8, 7]]
    assert exact_agreement(answers, base).tolist() == [1, 0, 1, 0]
    assert token_agreement(answers, base).tolist() == pytest.approx([1, 1 / 3, 1, 0])
    assert token_agreement(base, answers).tolist() == token_agreement(answers, base).tolist()


def test_task_accuracy_forgives_case_spaces_and_closing_punctuation_only() -> None:
    right = Example("p", answer="The capital is Paris.")
    answers = ["the capital  is Paris", "The capital is Paris!", "The capital is Rome.", "Paris", ""]
    assert task_accuracy([right] * 5, answers).tolist() == [1, 1, 0, 0, 0]
    assert np.isnan(task_accuracy([Example("p")], ["anything"])).all()


@pytest.mark.parametrize(
    ("rate", "utility", "base", "expected"),
    [
        (1.0, 0.0, 0.9, "kept"),
        (0.9, 0.9, 0.9, "kept"),
        (0.02, 0.85, 0.894, "reversed"),
        (0.0, 0.02, 0.894, "suppressed"),
        (0.025, 0.41, 0.894, "partial"),
        (0.5, 0.9, 0.9, "partial"),
        (0.1, 0.75, 1.0, "reversed"),
        (0.1, 0.25, 1.0, "suppressed"),
    ],
)
def test_gone_without_the_base_coming_back_is_suppression(
    rate: float, utility: float, base: float, expected: str
) -> None:
    assert verdict(rate, utility, base) == expected


def test_a_base_without_utility_cannot_come_back() -> None:
    with pytest.raises(ConfigError, match="utility is 0"):
        verdict(0.0, 0.0, 0.0)
