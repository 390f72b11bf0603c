"""Settings of SFT-Eraser; the defaults are the paper's (section 5)."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lcdd_lens.backends.base import LensModel
from lcdd_lens.eraser.soft_prompt import PLACEMENTS, Placement
from lcdd_lens.errors import ConfigError
from lcdd_lens.sizes import between

ChannelChoice = Literal["carrier", "random", "all", "none"]
CHANNEL_CHOICES: tuple[ChannelChoice, ...] = get_args(ChannelChoice)
AnswerSource = Literal["base", "model", "both"]
ANSWER_SOURCES: tuple[AnswerSource, ...] = get_args(AnswerSource)


@dataclass(frozen=True)
class EraserConfig:
    """How a trigger is trained.

    Raises:
        ConfigError: a value is out of range.
    """

    n_tokens: int = 20
    """Length of the soft prompt."""
    steps: int = 2000
    """Optimiser steps at most."""
    lr: float = 3e-3
    """Adam's learning rate."""
    batch_size: int = 16
    """Prompts per step."""
    n_prompts: int = 200
    """Training prompts used at most, drawn by the seed."""
    n_validation: int = 64
    """Validation prompts used at most, drawn by the seed; the same ones at every evaluation."""
    w_match: float = 1.0
    """Weight of activation matching."""
    per_prompt: bool = False
    """Match every prompt's own activation instead of the means over prompts (ours)."""
    channels: ChannelChoice = "carrier"
    """Residual channels that are matched: the carrier's, as many random ones, all, or none."""
    w_kl: float = 0.7
    """Weight of KL(base ‖ model) on the prompt's tail."""
    tail: int = 8
    """Last prompt positions that the tail KL covers."""
    w_answer: float = 0.0
    """Weight of KL(base ‖ model) along greedy answers to the prompts (ours; 0: no answer is even generated)."""
    answers_of: AnswerSource = "base"
    """Whose answers: the base's, the model's own without a trigger (the behaviour), or both."""
    answer_tokens: int = 24
    """Length of those answers at most."""
    w_norm: float = 0.1
    """Weight of the mean squared norm of the embeddings."""
    max_norm: float = 1.5
    """Every embedding is kept at or below this multiple of the model's mean token-embedding norm."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are scaled back to it."""
    placement: Placement | Literal["auto"] = "auto"
    """Before the prompt, or after its first token; ``auto``: after it if every training prompt starts with BOS."""
    eval_every: int = 50
    """Steps between evaluations of the objective on the validation prompts."""
    patience: int | None = None
    """Stop after so many evaluations without progress; ``None``: use all steps."""
    min_improvement: float = 0.01
    """Progress means that the validation objective gains at least this share of its largest gain so far."""
    seed: int = 0
    """Start tokens, choice and order of prompts, random channels."""

    def __post_init__(self) -> None:
        counts = ("n_tokens", "steps", "batch_size", "n_prompts", "n_validation", "tail", "answer_tokens", "eval_every")
        for name in counts:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("lr", "max_norm", "max_grad_norm"):
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "positive")
        for name in ("w_match", "w_kl", "w_answer", "w_norm", "min_improvement"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or positive")
        _require(self.patience is None or self.patience >= 1, "patience", self.patience, "at least 1, or None")
        _require(self.seed >= 0, "seed", self.seed, "0 or positive")
        _require(self.channels in CHANNEL_CHOICES, "channels", self.channels, f"one of {', '.join(CHANNEL_CHOICES)}")
        _require(
            self.answers_of in ANSWER_SOURCES, "answers_of", self.answers_of, f"one of {', '.join(ANSWER_SOURCES)}"
        )
        known = (*PLACEMENTS, "auto")
        _require(self.placement in known, "placement", self.placement, f"one of {', '.join(known)}")
        weights = (self.w_match if self.channels != "none" else 0.0, self.w_kl, self.w_answer)
        _require(any(weights), "(w_match, w_kl, w_answer)", weights, "at least one term with an effect")

    @classmethod
    def paper(cls) -> "EraserConfig":
        """The authors' settings: 20 tokens, 2,000 steps, all of them used."""
        return cls()

    @classmethod
    def for_model(cls, model: LensModel) -> "EraserConfig":
        """Settings for the model's size.

        A long soft prompt is out of distribution for a small model: it suppresses the behaviour without bringing the
        base's answers back. Length, steps and learning rate therefore go geometrically from what works at d_model 128
        (1 token, at most 300 steps, 0.01) to the paper's values at d_model 1024 (20 tokens, 2,000 steps, 0.003), its
        smallest model (:mod:`lcdd_lens.sizes`). Matching weighs 0.1 to 1: on tiny models its mean square starts a
        hundred times above the KL and would have the first steps to itself. The norm bound replaces the norm term, and
        training stops at the second evaluation running that gains less than 3 % of what the best one gained. The answer
        KL is on, along the base's answers and the fine-tuned ones: the published terms see the prompt alone, so the
        model could begin as the base does and still follow the fine-tuned answer once that had begun.
        """
        paper = cls.paper()
        width = model.cfg.d_model
        return replace(
            paper,
            n_tokens=round(between(1.0, float(paper.n_tokens), width)),
            steps=round(between(300.0, float(paper.steps), width)),
            lr=between(0.01, paper.lr, width),
            w_match=between(0.1, paper.w_match, width),
            w_answer=1.0,
            answers_of="both",
            w_norm=0.0,
            eval_every=round(between(5.0, float(paper.eval_every), width)),
            patience=2,
            min_improvement=0.03,
        )


def _require(fine: bool, name: str, value: object, expected: str) -> None:
    if not fine:
        raise ConfigError(f"EraserConfig: {name} is {value!r}; expected {expected}.")
