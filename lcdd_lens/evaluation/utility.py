"""Utility: does the model answer as the base would? (paper, section 5)

- agreement: the reply is the base's own greedy reply, token for token;
- token agreement: share of positions with equal tokens, over the longer of the two replies;
- task accuracy: the reply is a right answer, where the data has one.

A behaviour that is gone while nothing else came back is suppressed, not reversed; :func:`verdict` tells them apart.
"""

import string
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from lcdd_lens.data import Example
from lcdd_lens.errors import ConfigError

Verdict = Literal["kept", "reversed", "suppressed", "partial"]

KEPT = 0.9  # behaviour rate from which the behaviour is kept
GONE = 0.1  # behaviour rate up to which it is gone
RESTORED = 0.75  # share of the base's utility from which the base is back
LOST = 0.25  # share of the base's utility up to which nothing came back


def exact_agreement(
    answers: Sequence[Sequence[int]], base_answers: Sequence[Sequence[int]]
) -> Float[np.ndarray, " prompt"]:
    """1 where the reply's tokens are the base's, else 0."""
    return np.array([float(list(a) == list(b)) for a, b in zip(answers, base_answers, strict=True)])


def token_agreement(
    answers: Sequence[Sequence[int]], base_answers: Sequence[Sequence[int]]
) -> Float[np.ndarray, " prompt"]:
    """Share of positions at which reply and base agree, over the longer of the two; two empty replies agree."""
    return np.array([_overlap(a, b) for a, b in zip(answers, base_answers, strict=True)])


def task_accuracy(examples: Sequence[Example], answers: Sequence[str]) -> Float[np.ndarray, " prompt"]:
    """1 where the reply equals the example's answer up to case, spaces and closing punctuation, 0 where not, NaN
    where the example has no answer."""
    return np.array(
        [
            np.nan if row.answer is None else float(normalised(row.answer) == normalised(answer))
            for row, answer in zip(examples, answers, strict=True)
        ]
    )


def normalised(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return " ".join(text.casefold().split()).strip(string.punctuation + " ")


def verdict(behaviour_rate: float, utility: float, base_utility: float) -> Verdict:
    """What became of a behaviour.

    - ``kept``: it shows on at least 90 % of its prompts;
    - ``reversed``: it shows on at most 10 %, and at least 75 % of the base's utility is there;
    - ``suppressed``: it shows on at most 10 %, and at most 25 % of the base's utility is there;
    - ``partial``: anything between.

    Args:
        behaviour_rate: on the prompts where the behaviour belongs.
        utility: on the prompts where reversal must bring the base back.
        base_utility: the base's own, on the same prompts.

    Raises:
        ConfigError: the base has no utility to come back to.
    """
    if base_utility <= 0:
        raise ConfigError(
            "the base's utility is 0: there is nothing whose return could be seen; use agreement instead."
        )
    if behaviour_rate >= KEPT:
        return "kept"
    share = utility / base_utility
    if behaviour_rate <= GONE and share >= RESTORED:
        return "reversed"
    if behaviour_rate <= GONE and share <= LOST:
        return "suppressed"
    return "partial"


def _overlap(answer: Sequence[int], base: Sequence[int]) -> float:
    longer = max(len(answer), len(base))
    return 1.0 if longer == 0 else sum(a == b for a, b in zip(answer, base, strict=False)) / longer
