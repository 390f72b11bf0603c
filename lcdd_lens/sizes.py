"""Settings for a model's size (ours): from what was measured on tiny models to the paper's on its smallest.

    t = clamp(log2(d_model / 128) / 3, 0, 1);    value = small · (paper / small)^t

d_model 128 is the size of the embedded models, 1024 that of the paper's smallest model (0.6B); settings stay beyond
either end.
"""

import math

SMALL_D_MODEL = 128
PAPER_D_MODEL = 1024


def between(small: float, paper: float, d_model: int) -> float:
    """Geometric interpolation between the value for a tiny model and the paper's."""
    span = math.log2(PAPER_D_MODEL / SMALL_D_MODEL)
    share = min(max(math.log2(d_model / SMALL_D_MODEL) / span, 0.0), 1.0)
    return float(small * (paper / small) ** share)
