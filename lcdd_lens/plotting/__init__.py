"""Figures of a run: matplotlib axes from result objects, readable in light and dark, colour-blind safe.

Every function takes a result and an optional ``ax``, returns the axes, and changes no global setting; matplotlib is
imported only when something is drawn.
"""

from lcdd_lens.plotting.carriers import carrier_map, channel_raster
from lcdd_lens.plotting.comparison import (
    plot_faithfulness,
    plot_necessity_sufficiency,
    plot_overlap,
    plot_places,
    plot_score_stack,
    plot_two_by_two,
)
from lcdd_lens.plotting.lens import plot_distance, plot_logit_attribution, plot_logit_lens, plot_patching
from lcdd_lens.plotting.measured import Measured, ReversalPoint, condition_bars, sparsity_reversal
from lcdd_lens.plotting.palette import CONDITIONS, QUANTITIES
from lcdd_lens.plotting.sae import plot_alignment, plot_moved_back
from lcdd_lens.plotting.training import training_curves, training_panel, trigger_trajectory

__all__ = [
    "CONDITIONS",
    "QUANTITIES",
    "Measured",
    "ReversalPoint",
    "carrier_map",
    "channel_raster",
    "condition_bars",
    "plot_alignment",
    "plot_distance",
    "plot_faithfulness",
    "plot_logit_attribution",
    "plot_logit_lens",
    "plot_moved_back",
    "plot_necessity_sufficiency",
    "plot_overlap",
    "plot_patching",
    "plot_places",
    "plot_score_stack",
    "plot_two_by_two",
    "sparsity_reversal",
    "training_curves",
    "training_panel",
    "trigger_trajectory",
]
