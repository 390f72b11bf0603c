"""What an evaluation found: values per prompt, estimates with intervals, tables.

Per-prompt values are kept, so that any two conditions can be compared on the same prompts later. Which prompts a figure
stands on follows from the behaviour. Where it belongs on every prompt: all of them. Where it has target labels, as for
safety: rates and divergences stand on the target prompts, utility and agreement on the others, which must not change,
and ``recovered`` is the share of target prompts on which the base's own reply is back.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from lcdd_lens.data import Example
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.statistics import Difference, Estimate, bootstrap_mean, holm, paired_bootstrap, wilson
from lcdd_lens.evaluation.utility import Verdict, verdict

Metric = Literal[
    "behaviour_rate", "over_rate", "utility", "recovered", "agreement", "agreement_token", "kl", "kl_from_sft"
]
METRICS: tuple[Metric, ...] = (
    "behaviour_rate",
    "over_rate",
    "utility",
    "recovered",
    "agreement",
    "agreement_token",
    "kl",
    "kl_from_sft",
)
_RATES = ("behaviour_rate", "over_rate", "utility", "recovered", "agreement")
_LOW_IS_WORST = ("behaviour_rate", "utility", "recovered", "agreement", "agreement_token")


@dataclass(frozen=True)
class Comparison:
    """One metric of two conditions on the same prompts: a − b, with a p-value corrected for all comparisons made."""

    metric: str
    a: str
    b: str
    difference: Difference
    adjusted_p: float


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Values of every condition on every prompt, and the figures made of them.

    Attributes:
        behaviour: its name.
        examples: the prompts.
        is_target: whether the behaviour belongs on the prompt.
        has_others: whether the behaviour has target labels, so that other prompts must be left alone.
        values: measure -> condition -> [draw prompt]; NaN where a prompt has no such value.
        answers: condition -> replies as text (first draw).
        base_name: the condition that utility refers to.
        sft_name: the fine-tuned one.
        seed: of the bootstrap.
    """

    behaviour: str
    examples: tuple[Example, ...]
    is_target: Bool[np.ndarray, " prompt"]
    has_others: bool
    values: dict[str, dict[str, Float[np.ndarray, "draw prompt"]]]
    answers: dict[str, list[str]]
    base_name: str
    sft_name: str
    seed: int

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names, in the order measured."""
        return tuple(self.answers)

    @property
    def utility_kind(self) -> Literal["task accuracy", "agreement"]:
        """Task accuracy where the prompts have right answers, else exact agreement with the base."""
        accuracy = self.values["accuracy"][self.base_name][:, self._utility_prompts]
        return "agreement" if np.isnan(accuracy).all() else "task accuracy"

    def metrics(self) -> tuple[Metric, ...]:
        """The figures that this behaviour has: over-behaviour and recovery only where it has target labels."""
        has_others = self.has_others and bool((~self.is_target).any())
        skipped = () if has_others else ("over_rate", "recovered")
        return tuple(metric for metric in METRICS if metric not in skipped)

    def per_prompt(self, metric: Metric, condition: str) -> Float[np.ndarray, "draw chosen"]:
        """The values that a figure is the mean of, for the prompts that it stands on.

        Raises:
            ConfigError: the metric or the condition is unknown here.
        """
        if metric not in self.metrics() or condition not in self.conditions:
            raise ConfigError(
                f"'{metric}' of '{condition}' is unknown: expected one of {', '.join(self.metrics())} of one of "
                f"{', '.join(self.conditions)}."
            )
        measure, prompts = self._source(metric)
        return self.values[measure][condition][:, prompts]

    def estimate(self, metric: Metric, condition: str) -> Estimate:
        """A figure with its 95 % interval: Wilson's for rates, else a bootstrap over prompts.

        Over several draws the value is the mean, n counts prompts × draws, and the interval treats the prompts, not the
        draws, as independent. The worst draw is the one with the least behaviour, utility or agreement, or with the
        largest divergence or over-behaviour.

        Raises:
            ConfigError: the metric or the condition is unknown here.
        """
        values = self.per_prompt(metric, condition)
        draws, n = values.shape
        means = values.mean(axis=0)
        plain = wilson(float(means.mean()), n) if metric in _RATES else bootstrap_mean(means, seed=self.seed)
        if draws == 1:
            return plain
        of_draws = values.mean(axis=1)
        worst = float(of_draws.min() if metric in _LOW_IS_WORST else of_draws.max())
        return Estimate(plain.value, n * draws, plain.low, plain.high, worst, draws)

    def verdict(self, condition: str) -> Verdict:
        """Kept, reversed, suppressed or partial; see :func:`lcdd_lens.evaluation.utility.verdict`.

        What must come back is the base on the prompts where the behaviour is: agreement on target prompts for a
        behaviour with target labels, else utility (agreement where the base itself answers nothing right).
        """
        measure: Metric = "recovered" if "recovered" in self.metrics() else "utility"
        if self.estimate(measure, self.base_name).value == 0:
            measure = "agreement"
        rate = self.estimate("behaviour_rate", condition).value
        return verdict(rate, self.estimate(measure, condition).value, self.estimate(measure, self.base_name).value)

    def compare(self, comparisons: Sequence[tuple[Metric, str, str]]) -> list[Comparison]:
        """Paired differences a − b of (metric, a, b), with p-values Holm-corrected over all of them.

        Raises:
            ConfigError: a metric or a condition is unknown here.
        """
        differences = [
            paired_bootstrap(
                self.per_prompt(metric, a).mean(axis=0), self.per_prompt(metric, b).mean(axis=0), seed=self.seed
            )
            for metric, a, b in comparisons
        ]
        adjusted = holm([difference.p_value for difference in differences])
        return [
            Comparison(metric, a, b, difference, p)
            for (metric, a, b), difference, p in zip(comparisons, differences, adjusted, strict=True)
        ]

    def samples(self, n: int = 8) -> list[dict[str, Any]]:
        """Replies of all conditions side by side for n prompts, shared evenly among the labels."""
        order = list(range(len(self.examples)))
        random.Random("samples").shuffle(order)  # whatever the seed: runs show the same prompts
        queues: dict[str, list[int]] = {}
        for index in order:
            queues.setdefault(self.examples[index].label, []).append(index)
        chosen: list[int] = []
        while len(chosen) < min(n, len(order)):
            chosen += [queue.pop() for _, queue in sorted(queues.items()) if queue]
        return [
            {
                "id": self.examples[index].id,
                "prompt": self.examples[index].prompt,
                "label": self.examples[index].label,
                "answers": {name: replies[index] for name, replies in self.answers.items()},
            }
            for index in chosen[:n]
        ]

    def to_dict(self, n_samples: int = 8) -> dict[str, Any]:
        """The evaluation part of ``results.json``: metric -> condition -> estimate, verdicts, samples."""
        figures: dict[str, Any] = {
            metric: {name: self.estimate(metric, name).to_dict() for name in self.conditions}
            for metric in self.metrics()
        }
        return figures | {
            "utility_kind": self.utility_kind,
            "verdict": {name: self.verdict(name) for name in self.conditions if name != self.base_name},
            "samples": self.samples(n_samples),
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row per condition and metric: value, n, low, high, worst, draws."""
        return pd.DataFrame(
            [
                {"condition": name, "metric": metric, **vars(self.estimate(metric, name))}
                for name in self.conditions
                for metric in self.metrics()
            ]
        )

    def prompts_dataframe(self) -> pd.DataFrame:
        """One row per condition, draw and prompt with every value measured: what intervals are made of."""
        rows = []
        for name in self.conditions:
            for draw in range(len(self.values["shown"][name])):
                for index, example in enumerate(self.examples):
                    measured = {measure: float(by[name][draw, index]) for measure, by in self.values.items()}
                    rows.append(
                        {"condition": name, "draw": draw, "id": example.id, "label": example.label}
                        | {"target": bool(self.is_target[index])}
                        | measured
                    )
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """Conditions × metrics as text, ``value [low, high]``, with the verdict."""
        rows = {}
        for name in self.conditions:
            cells = {metric: self.estimate(metric, name) for metric in self.metrics()}
            text = {metric: f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for metric, cell in cells.items()}
            rows[name] = text | {"verdict": "" if name == self.base_name else self.verdict(name)}
        return pd.DataFrame.from_dict(rows, orient="index")

    def _repr_html_(self) -> str:
        title = f"{self.behaviour}: {len(self.examples)} prompts, 95 % intervals; utility is {self.utility_kind}"
        return notebook_view(title, self.summary())

    def __repr__(self) -> str:
        return f"EvaluationResult({self.behaviour}, {len(self.examples)} prompts)\n{self.summary().to_string()}"

    @property
    def _utility_prompts(self) -> Bool[np.ndarray, " prompt"]:
        others = ~self.is_target
        return others if self.has_others and bool(others.any()) else np.ones_like(self.is_target)

    def _source(self, metric: Metric) -> tuple[str, Bool[np.ndarray, " prompt"]]:
        if metric in ("behaviour_rate", "over_rate"):
            return "shown", self.is_target if metric == "behaviour_rate" else ~self.is_target
        if metric == "recovered":
            return "agreement", self.is_target
        if metric in ("kl", "kl_from_sft"):
            return metric, self.is_target
        if metric == "utility" and self.utility_kind == "task accuracy":
            answered = ~np.isnan(self.values["accuracy"][self.base_name][0])
            return "accuracy", self._utility_prompts & answered
        return "agreement" if metric == "utility" else metric, self._utility_prompts
