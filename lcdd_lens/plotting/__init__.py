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
)
from lcdd_lens.plotting.measured import Measured, ReversalPoint, condition_bars, sparsity_reversal
from lcdd_lens.plotting.palette import CONDITIONS, QUANTITIES
from lcdd_lens.plotting.training import training_curves, training_panel, trigger_trajectory

__all__ = [
    "CONDITIONS",
    "QUANTITIES",
    "Measured",
    "ReversalPoint",
    "carrier_map",
    "channel_raster",
    "condition_bars",
    "plot_faithfulness",
    "plot_necessity_sufficiency",
    "plot_overlap",
    "plot_places",
    "plot_score_stack",
    "sparsity_reversal",
    "training_curves",
    "training_panel",
    "trigger_trajectory",
]
