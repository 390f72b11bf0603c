"""Training settings for a model's size (ours): from what was measured on tiny models to the paper's at its smallest.

    t = clamp(log2(d_model / 128) / 3, 0, 1);    value = small · (paper / small)^t

d_model 128 is the size of the embedded models, 1024 that of the paper's smallest model (0.6B); beyond either end the
settings stay. The same rule gives SFT-Eraser's (``EraserConfig.for_model``).
"""

import math
from dataclasses import replace

from lcdd_lens.backends.base import LensModel
from lcdd_lens.training.lcdd import LCDDConfig
from lcdd_lens.training.loop import OptimConfig

SMALL_D_MODEL = 128
PAPER_D_MODEL = 1024


def between(small: float, paper: float, d_model: int) -> float:
    """Geometric interpolation between the value for a tiny model and the paper's."""
    span = math.log2(PAPER_D_MODEL / SMALL_D_MODEL)
    share = min(max(math.log2(d_model / SMALL_D_MODEL) / span, 0.0), 1.0)
    return float(small * (paper / small) ** share)


def sft_config_for(model: LensModel, *, seed: int = 0) -> OptimConfig:
    """Plain SFT: learning rate 1e-3 and 200 steps at d_model 128 to 2e-5 and 940 (three epochs of 5,000) at 1024."""
    width = model.cfg.d_model
    return OptimConfig(
        steps=round(between(200, 940, width)),
        lr=between(1e-3, 2e-5, width),
        batch_size=round(between(32, 16, width)),
        seed=seed,
    )


def lcdd_config_for(model: LensModel, *, seed: int = 0) -> LCDDConfig:
    """LCDD by channel pricing: the defaults at d_model 128, with 2e-5 and 12 times the steps at 1024."""
    width, small = model.cfg.d_model, LCDDConfig()
    longer = between(1, 12, width)
    settle = round(small.settle_steps * longer)
    optim = replace(
        small.optim,
        steps=round(small.optim.steps * longer),
        lr=between(small.optim.lr, 2e-5, width),
        batch_size=round(between(small.optim.batch_size, 16, width)),
        warmup_steps=round(small.optim.warmup_steps * longer),
        decay_steps=settle,
    )
    return replace(
        small,
        optim=optim,
        budget=replace(small.budget, warmup_steps=round(between(small.budget.warmup_steps, 300, width))),
        price=replace(small.price, every=round(small.price.every * longer)),
        settle_steps=settle,
    ).with_seed(seed)
