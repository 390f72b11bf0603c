"""Controls: every claim about carriers and triggers beside what would also have worked.

    dense.py      fine-tuning without gates: small change, early stop, gentle rate, more steps
    gated.py      imposed masks, random order, the paper's rule, gates without the behaviour's loss
    triggers.py   other channels and terms, random tokens, transfer, stronger attacks on plain SFT
    sparsity.py   reversal as a function of sparsity
    causal.py     necessity and sufficiency on SFT's and on LCDD's weights

A control is a function of a :class:`Bench`; :func:`run_controls` measures any of them by name.
"""

from lcdd_lens.controls.bench import Bench, Outcome, delta_norm
from lcdd_lens.controls.causal import CausalCell, necessity_and_sufficiency
from lcdd_lens.controls.gated import imposed_mask, other_rule, penalty_config
from lcdd_lens.controls.registry import CONTROLS, Control, ControlResult, Level, controls_of, run_controls
from lcdd_lens.controls.sparsity import reversal_by_sparsity

__all__ = [
    "CONTROLS",
    "Bench",
    "CausalCell",
    "Control",
    "ControlResult",
    "Level",
    "Outcome",
    "controls_of",
    "delta_norm",
    "imposed_mask",
    "necessity_and_sufficiency",
    "other_rule",
    "penalty_config",
    "reversal_by_sparsity",
    "run_controls",
]
