"""SFT-Eraser: soft prompts that undo a fine-tuned behaviour, and the triggers that they become."""

from lcdd_lens.eraser.attach import carries_trigger
from lcdd_lens.eraser.config import EraserConfig
from lcdd_lens.eraser.eraser import EraserHistory, EraserResult, train_eraser
from lcdd_lens.eraser.objectives import ActivationMatching, choose_channels, kl_from_base, norm_penalty
from lcdd_lens.eraser.soft_prompt import SoftPrompt, mean_embedding_norm
from lcdd_lens.eraser.trigger import Trigger, random_token_trigger

__all__ = [
    "ActivationMatching",
    "EraserConfig",
    "EraserHistory",
    "EraserResult",
    "SoftPrompt",
    "Trigger",
    "carries_trigger",
    "choose_channels",
    "kl_from_base",
    "mean_embedding_norm",
    "norm_penalty",
    "random_token_trigger",
    "train_eraser",
]
