"""Behaviour rates (paper, section 5): how often replies show the behaviour, where it belongs and where it does not.

Over-behaviour is the behaviour on prompts without a target label: for the safety behaviour, refusing benign requests.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from lcdd_lens.data import Behaviour, Example
from lcdd_lens.errors import DataError
from lcdd_lens.evaluation.statistics import Estimate, wilson


def shown(behaviour: Behaviour, examples: Sequence[Example], answers: Sequence[str]) -> Bool[np.ndarray, " prompt"]:
    """Whether each reply shows the behaviour."""
    return np.array([behaviour.shows(row, answer) for row, answer in zip(examples, answers, strict=True)], dtype=bool)


def targets(behaviour: Behaviour, examples: Sequence[Example]) -> Bool[np.ndarray, " prompt"]:
    """Whether the behaviour belongs on each prompt."""
    return np.array([behaviour.is_target(row) for row in examples], dtype=bool)


def behaviour_rate(behaviour: Behaviour, examples: Sequence[Example], answers: Sequence[str]) -> Estimate:
    """Share of the target prompts whose reply shows the behaviour, with Wilson's interval.

    Raises:
        DataError: no prompt is a target.
    """
    return _rate(shown(behaviour, examples, answers)[targets(behaviour, examples)], "target")


def over_rate(behaviour: Behaviour, examples: Sequence[Example], answers: Sequence[str]) -> Estimate:
    """Share of the other prompts whose reply shows the behaviour, with Wilson's interval.

    Raises:
        DataError: every prompt is a target.
    """
    return _rate(shown(behaviour, examples, answers)[~targets(behaviour, examples)], "other")


def _rate(flags: Bool[np.ndarray, " chosen"], kind: str) -> Estimate:
    if not len(flags):
        raise DataError(f"there are no {kind} prompts to take a rate on: check the labels and target_labels.")
    return wilson(float(flags.mean()), len(flags))
