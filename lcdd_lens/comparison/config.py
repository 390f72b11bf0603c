"""Settings of a comparison: which methods, on how many prompts, with which controls."""

from dataclasses import dataclass

from lcdd_lens.attribution.activation_integrated_gradients import ActivationIntegratedGradients
from lcdd_lens.attribution.mask_only import MaskOnly
from lcdd_lens.attribution.registry import Method, known_methods, method_by_name
from lcdd_lens.attribution.weight_integrated_gradients import WeightIntegratedGradients
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.faithfulness import SHARES

CARRIER = "carrier"
"""What tables call the carrier among the methods."""
METHODS = (
    "weight_delta",
    "weight_integrated_gradients",
    "attribution_patching",
    "attribution_patching_base",
    "attribution_patching_mean",
    "activation_integrated_gradients",
    "magnitude",
    "magnitude_relative",
    "magnitude_activation",
    "magnitude_activation_change",
    "mask_only_ce",
    "mask_only_kl",
    "mask_only_ce_hard_concrete",
)
"""Every method that ranks all channels without a reference."""
_AT_LEAST_ONE = (
    "n_discovery",
    "n_test",
    "activation_steps",
    "weight_steps",
    "mask_steps",
    "random_draws",
    "matched_draws",
    "oracle_top",
    "completeness_draws",
    "minimality_sample",
    "max_new_tokens",
    "batch_size",
    "n_resamples",
)


@dataclass(frozen=True)
class ComparisonConfig:
    """What a comparison measures."""

    methods: tuple[str, ...] = METHODS
    """Registered attribution methods; each must score every channel."""
    n_discovery: int = 32
    """Training prompts that methods see."""
    n_test: int = 48
    """Test prompts that everything is judged on."""
    shares: tuple[float, ...] = SHARES
    """Shares of all channels at which F is measured."""
    activation_steps: int = 4
    """K of integrated gradients on activations (one forward and backward pass per prompt, site and step)."""
    weight_steps: int = 6
    """K of integrated gradients on weights."""
    mask_steps: int = 150
    """Steps of the mask-only methods."""
    random_draws: int = 280
    """Random sets of the carrier's size on fine-tuned weights; p-values cannot be below 1/(draws + 1) before Holm's
    correction."""
    matched_draws: int = 60
    """The same with the carrier's counts per site, and with its counts per decile of ‖Δ‖."""
    random_draws_lcdd: int = 20
    """The same on LCDD's weights, matched per site."""
    oracle_top: int = 24
    """Channels of the carrier's size whose exact patching effect is measured: the first of the pooled rankings."""
    oracle_sample: int = 1
    """Further channels per site for exact patching."""
    completeness_draws: int = 8
    """Random subsets for incompleteness."""
    minimality_sample: int = 24
    """Channels of the carrier that are closed one at a time."""
    rates: bool = True
    """Decode replies at the carrier's size and measure the behaviour rate."""
    reversal_methods: tuple[str, ...] = (CARRIER, "weight_integrated_gradients", "attribution_patching")
    """Whose channels SFT-Eraser matches on the LCDD model, and whose mask is imposed and retrained, as far as they are
    compared; empty: neither."""
    retrain_steps: int = 150
    """Weight updates under an imposed mask; 0: no retraining."""
    retrain_lr: float = 1e-3
    """Peak learning rate of these updates."""
    retrain_pull: float = 0.01
    """Coefficient of ‖W − W_B‖² in these updates."""
    max_new_tokens: int = 24
    """Longest reply, in tokens."""
    batch_size: int = 32
    """Prompts per forward pass."""
    n_resamples: int = 2000
    """Bootstrap samples over prompts."""
    seed: int = 0
    """Seed of draws, of resampling and of the choice of prompts."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in known_methods()]
        if unknown or not self.methods:
            raise ConfigError(f"unknown attribution methods {unknown}: expected some of {', '.join(known_methods())}.")
        strangers = [name for name in self.reversal_methods if name not in (CARRIER, *known_methods())]
        if strangers:
            known = ", ".join((CARRIER, *known_methods()))
            raise ConfigError(f"unknown reversal_methods {strangers}: expected some of {known}.")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected at least 1.")
        for name in ("random_draws_lcdd", "oracle_sample", "retrain_steps", "retrain_pull", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 0 or more.")
        if self.retrain_lr <= 0:
            raise ConfigError(f"retrain_lr is {self.retrain_lr}: expected a positive number.")

    @classmethod
    def quick(cls, seed: int = 0) -> "ComparisonConfig":
        """Few prompts, cheap methods, no training: a first look in under a minute."""
        return cls(
            methods=("weight_delta", "weight_integrated_gradients", "attribution_patching", "magnitude"),
            n_discovery=16,
            n_test=24,
            weight_steps=3,
            random_draws=100,
            matched_draws=20,
            random_draws_lcdd=0,
            oracle_top=8,
            oracle_sample=0,
            completeness_draws=2,
            minimality_sample=4,
            rates=False,
            reversal_methods=(),
            retrain_steps=0,
            seed=seed,
        )

    def method(self, name: str) -> Method:
        """A method with the options that this configuration gives it."""
        if name == "activation_integrated_gradients":
            return ActivationIntegratedGradients(self.activation_steps)
        if name == "weight_integrated_gradients":
            return WeightIntegratedGradients(self.weight_steps)
        method = method_by_name(name)
        return method.shortened(self.mask_steps, self.seed) if isinstance(method, MaskOnly) else method
