"""SFT and LCDD settings for a model's size, by the rule of ``lcdd_lens.sizes``."""

from dataclasses import replace

from lcdd_lens.backends.base import LensModel
from lcdd_lens.sizes import between
from lcdd_lens.training.lcdd import LCDDConfig
from lcdd_lens.training.loop import OptimConfig


def sft_config_for(model: LensModel, *, seed: int = 0) -> OptimConfig:
    """Plain SFT: learning rate 1e-3 and 200 steps at d_model 128 to 2e-5 and 940 (three epochs of 5,000) at 1024."""
    width = model.cfg.d_model
    return OptimConfig(
        steps=round(between(200.0, 940.0, width)),
        lr=between(1e-3, 2e-5, width),
        batch_size=round(between(32.0, 16.0, width)),
        seed=seed,
    )


def lcdd_config_for(model: LensModel, *, seed: int = 0) -> LCDDConfig:
    """LCDD by channel pricing: the defaults at d_model 128, with 2e-5 and 12 times the steps at 1024."""
    width, small = model.cfg.d_model, LCDDConfig()
    longer = between(1.0, 12.0, width)
    settle = round(small.settle_steps * longer)
    optim = replace(
        small.optim,
        steps=round(small.optim.steps * longer),
        lr=between(small.optim.lr, 2e-5, width),
        batch_size=round(between(float(small.optim.batch_size), 16.0, width)),
        warmup_steps=round(small.optim.warmup_steps * longer),
        decay_steps=settle,
    )
    return replace(
        small,
        optim=optim,
        budget=replace(small.budget, warmup_steps=round(between(float(small.budget.warmup_steps), 300.0, width))),
        price=replace(small.price, every=round(small.price.every * longer)),
        settle_steps=settle,
    ).with_seed(seed)
