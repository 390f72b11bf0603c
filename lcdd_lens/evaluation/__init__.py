"""Measuring a behaviour: rates, utility, divergences, under every condition, with intervals."""

from lcdd_lens.evaluation.conditions import (
    CONDITIONS,
    N_RANDOM_DRAWS,
    Condition,
    evaluate_conditions,
    random_condition,
)
from lcdd_lens.evaluation.divergence import categorical_kl, forward_logits, response_kl
from lcdd_lens.evaluation.rates import behaviour_rate, over_rate
from lcdd_lens.evaluation.result import METRICS, Comparison, EvaluationResult
from lcdd_lens.evaluation.statistics import Difference, Estimate, bootstrap_mean, holm, paired_bootstrap, wilson
from lcdd_lens.evaluation.utility import exact_agreement, task_accuracy, token_agreement, verdict

__all__ = [
    "CONDITIONS",
    "METRICS",
    "N_RANDOM_DRAWS",
    "Comparison",
    "Condition",
    "Difference",
    "Estimate",
    "EvaluationResult",
    "behaviour_rate",
    "bootstrap_mean",
    "categorical_kl",
    "evaluate_conditions",
    "exact_agreement",
    "forward_logits",
    "holm",
    "over_rate",
    "paired_bootstrap",
    "random_condition",
    "response_kl",
    "task_accuracy",
    "token_agreement",
    "verdict",
    "wilson",
]
