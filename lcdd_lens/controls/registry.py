"""All controls by name, and how they are measured: every row of a controls table comes from here.

``main`` controls train no weights (seconds to a minute); ``all`` adds those that do.
"""

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lcdd_lens.carrier import Carrier
from lcdd_lens.controls.bench import Bench, Outcome
from lcdd_lens.controls.dense import early_stopped_sft, gentle_sft, longer_sft, matched_sft
from lcdd_lens.controls.gated import (
    magnitude_mask,
    no_loss_gradient,
    own_mask,
    paper_rule,
    random_order,
    stratified_mask,
    uniform_mask,
)
from lcdd_lens.controls.sparsity import reversal_by_sparsity
from lcdd_lens.controls.triggers import (
    all_channels,
    answer_attack,
    kl_only,
    longer_attack,
    matching_only,
    patient_attack,
    prompt_only,
    random_channels,
    random_tokens,
    strongest_attack,
    transfer,
)
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation import Condition, EvaluationResult, evaluate_conditions

Level = Literal["main", "all"]


@dataclass(frozen=True)
class Control:
    """A control.

    Attributes:
        build: makes what is measured; its docstring opens with the question.
        level: ``main`` where no weight is trained.
    """

    build: Callable[[Bench], Outcome]
    level: Level

    @property
    def name(self) -> str:
        """Its function's name."""
        return self.build.__name__

    @property
    def question(self) -> str:
        """What it asks, in one sentence."""
        return (inspect.getdoc(self.build) or "").split("\n\n")[0].replace("\n", " ")


CONTROLS: dict[str, Control] = {
    control.name: control
    for control in (
        Control(prompt_only, "main"),
        Control(kl_only, "main"),
        Control(random_channels, "main"),
        Control(all_channels, "main"),
        Control(matching_only, "main"),
        Control(random_tokens, "main"),
        Control(transfer, "main"),
        Control(answer_attack, "main"),
        Control(longer_attack, "main"),
        Control(patient_attack, "all"),
        Control(strongest_attack, "all"),
        Control(matched_sft, "all"),
        Control(early_stopped_sft, "all"),
        Control(gentle_sft, "all"),
        Control(longer_sft, "all"),
        Control(own_mask, "all"),
        Control(stratified_mask, "all"),
        Control(uniform_mask, "all"),
        Control(magnitude_mask, "all"),
        Control(random_order, "all"),
        Control(paper_rule, "all"),
        Control(no_loss_gradient, "all"),
        Control(reversal_by_sparsity, "all"),
    )
}


def controls_of(level: Level) -> tuple[str, ...]:
    """Names of a level's controls; ``all`` are all of them."""
    return tuple(name for name, control in CONTROLS.items() if level == "all" or control.level == level)


@dataclass(frozen=True)
class ControlResult:
    """A measured control.

    Attributes:
        control: which.
        outcome: what was built.
        evaluation: the figures of all controls measured together, base and SFT among them.
        seconds: time to build it.
    """

    control: Control
    outcome: Outcome
    evaluation: EvaluationResult
    seconds: float

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of its conditions."""
        return tuple(condition.name for condition in self.outcome.conditions)

    @property
    def carrier(self) -> Carrier | None:
        """Its own open channels, if it has any."""
        return self.outcome.carrier

    def __repr__(self) -> str:
        found = ", ".join(f"{name}: {self.evaluation.verdict(name)}" for name in self.conditions)
        return f"ControlResult({self.control.name}; {found})"

    def _repr_html_(self) -> str:
        summary = self.evaluation.summary()
        shown = [name for name in ("base", "sft", *self.conditions) if name in summary.index]
        return notebook_view(self.control.name, self.control.question, dict(self.outcome.facts), summary.loc[shown])

    def to_dict(self) -> dict[str, Any]:
        """Question, facts, and per condition every figure and the verdict: kept, reversed, suppressed or partial."""
        found = self.evaluation
        return {
            "question": self.control.question,
            "facts": dict(self.outcome.facts),
            "conditions": {
                name: {metric: found.estimate(metric, name).to_dict() for metric in found.metrics()}
                | {"verdict": found.verdict(name)}
                for name in self.conditions
            },
            "seconds": round(self.seconds, 2),
        }


def run_controls(bench: Bench, names: Sequence[str] | None = None) -> dict[str, ControlResult]:
    """Build controls one by one, then measure all their conditions on the same test prompts.

    Args:
        bench: the experiment.
        names: which; None: the ``main`` ones.

    Raises:
        ConfigError: a name is unknown.
    """
    chosen = controls_of("main") if names is None else tuple(names)
    unknown = [name for name in chosen if name not in CONTROLS]
    if unknown or not chosen:
        raise ConfigError(f"unknown controls {unknown}: expected some of {', '.join(CONTROLS)}.")
    built: dict[str, tuple[Outcome, float]] = {}
    for name in chosen:
        started = time.perf_counter()
        outcome = CONTROLS[name].build(bench)
        built[name] = outcome, time.perf_counter() - started
    conditions = [Condition("base", bench.base), Condition("sft", bench.sft)]
    conditions += [condition for outcome, _ in built.values() for condition in outcome.conditions]
    evaluation = evaluate_conditions(
        conditions,
        bench.behaviour,
        bench.test,
        max_new_tokens=bench.max_new_tokens,
        seed=bench.seed,
        progress=bench.progress,
    )
    return {
        name: ControlResult(CONTROLS[name], outcome, evaluation, seconds) for name, (outcome, seconds) in built.items()
    }
