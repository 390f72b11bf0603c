"""Reversal as a function of sparsity: is there a density from which on a behaviour can be reversed?

LCDD's run with its ascent stopped at given sparsities; everything else, the pull to the base included, stays. At 0 it
is fine-tuning without gates.
"""

from collections.abc import Sequence
from dataclasses import replace

from lcdd_lens.controls.bench import Bench, Fact, Outcome
from lcdd_lens.controls.gated import other_rule
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation import Condition

SPARSITIES = (0.0, 0.3, 0.6, 0.8, 0.95)


def reversal_by_sparsity(bench: Bench, sparsities: Sequence[float] = SPARSITIES) -> Outcome:
    """How sparse must a model be before its behaviour can be reversed?

    One LCDD run per sparsity s, with the price ascent ended at |m| = (1 − s)·N. (Ours.)

    Args:
        bench: the experiment.
        sparsities: shares of closed gates.

    Raises:
        ConfigError: LCDD's rule has no ascent to stop.
    """
    if bench.lcdd.rule != "price":
        raise ConfigError(f"LCDD ran with the rule {bench.lcdd.rule!r}: only the ascent of 'price' can be stopped.")
    conditions: list[Condition] = []
    facts: dict[str, Fact] = {}
    for sparsity in sparsities:
        name = condition_name(sparsity)
        config = replace(bench.lcdd, price=replace(bench.lcdd.price, max_sparsity=sparsity))
        outcome = other_rule(bench, name, config)
        conditions.extend(outcome.conditions)
        for key in ("sparsity", "delta_norm", "loss"):
            facts[f"{key} {name}"] = outcome.facts[key]
    return Outcome(tuple(conditions), facts)


def condition_name(sparsity: float) -> str:
    """What the model of a sparsity is called."""
    return f"sparsity {sparsity:.2f}"
