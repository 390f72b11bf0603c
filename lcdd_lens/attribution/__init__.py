"""Attribution baselines: post-hoc scores of the same channels that routing masks gate.

One sign convention everywhere: a positive score means that moving the channel from base to fine-tuned raises 𝓜.
"""

from lcdd_lens.attribution.activation_integrated_gradients import ActivationIntegratedGradients
from lcdd_lens.attribution.attribution_patching import AttributionPatching
from lcdd_lens.attribution.contrast import Contrast, contrasting
from lcdd_lens.attribution.exact_patching import ExactPatching, select_channels
from lcdd_lens.attribution.magnitude import Magnitude
from lcdd_lens.attribution.mask_only import MaskOnly
from lcdd_lens.attribution.metric import Metric, response_log_prob
from lcdd_lens.attribution.random_order import RandomOrder
from lcdd_lens.attribution.registry import (
    Attribution,
    Method,
    attribute,
    known_methods,
    method_by_name,
    register_method,
)
from lcdd_lens.attribution.scores import ChannelScores
from lcdd_lens.attribution.weight_delta import WeightDelta
from lcdd_lens.attribution.weight_integrated_gradients import WeightIntegratedGradients

__all__ = [
    "ActivationIntegratedGradients",
    "Attribution",
    "AttributionPatching",
    "ChannelScores",
    "Contrast",
    "ExactPatching",
    "Magnitude",
    "MaskOnly",
    "Method",
    "Metric",
    "RandomOrder",
    "WeightDelta",
    "WeightIntegratedGradients",
    "attribute",
    "contrasting",
    "known_methods",
    "method_by_name",
    "register_method",
    "response_log_prob",
    "select_channels",
]
