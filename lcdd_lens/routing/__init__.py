"""Routing masks on hook points: gates, their logits, and the model that they route."""

from lcdd_lens.routing.gates import GateEstimator, HardConcrete, StraightThrough, make_estimator
from lcdd_lens.routing.masks import Channels, RoutingMasks, SiteLayout
from lcdd_lens.routing.routed import GatedDelta, RoutedModel

__all__ = [
    "Channels",
    "GateEstimator",
    "GatedDelta",
    "HardConcrete",
    "RoutedModel",
    "RoutingMasks",
    "SiteLayout",
    "StraightThrough",
    "make_estimator",
]
