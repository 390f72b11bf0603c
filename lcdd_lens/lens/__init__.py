"""Looking inside: the conditions of an experiment side by side, layer by layer, with TransformerLens's own words.

SideBySide           base, sft, routed, closed and routed+trigger on the same prompts
condition_caches     an ActivationCache per condition, in one call
logit_lens           what each layer would answer
distance_to_base     how far each layer and site is from the base
patch_sweep          activations of the carrier's channels moved from one run into another
logit_attribution    which write channels push the reply's first token
carrier_heads        which attention heads the carrier touches
"""

from lcdd_lens.lens.caches import ConditionCaches, condition_caches
from lcdd_lens.lens.distance import DistanceToBase, distance_to_base
from lcdd_lens.lens.heads import carrier_heads
from lcdd_lens.lens.logit_attribution import LogitAttribution, logit_attribution
from lcdd_lens.lens.logit_lens import LogitLens, logit_lens
from lcdd_lens.lens.patching import PatchSweep, patch_sweep
from lcdd_lens.lens.side_by_side import SideBySide

__all__ = [
    "ConditionCaches",
    "DistanceToBase",
    "LogitAttribution",
    "LogitLens",
    "PatchSweep",
    "SideBySide",
    "carrier_heads",
    "condition_caches",
    "distance_to_base",
    "logit_attribution",
    "logit_lens",
    "patch_sweep",
]
