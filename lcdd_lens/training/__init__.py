"""Training: plain SFT and LCDD in one resumable loop."""

from lcdd_lens.training.dual import BudgetConfig, DualConfig, DualController, LossBudget
from lcdd_lens.training.fixed import FixedGates, train_under_mask
from lcdd_lens.training.lcdd import LCDDConfig, LCDDResult, loss_of_base, make_rule, train_lcdd
from lcdd_lens.training.loop import History, OptimConfig, gated_parameters
from lcdd_lens.training.price import PriceConfig, PriceRule
from lcdd_lens.training.rules import GateRule, PenaltyRule
from lcdd_lens.training.scaling import lcdd_config_for, sft_config_for
from lcdd_lens.training.sft import train_sft

__all__ = [
    "BudgetConfig",
    "DualConfig",
    "DualController",
    "FixedGates",
    "GateRule",
    "History",
    "LCDDConfig",
    "LCDDResult",
    "LossBudget",
    "OptimConfig",
    "PenaltyRule",
    "PriceConfig",
    "PriceRule",
    "gated_parameters",
    "lcdd_config_for",
    "loss_of_base",
    "make_rule",
    "sft_config_for",
    "train_lcdd",
    "train_sft",
    "train_under_mask",
]
