"""SFT-Eraser: training a soft prompt that undoes a fine-tuned behaviour (paper, section 5).

The model's weights and gates are frozen; the only thing that moves is the soft prompt. The step that is kept is the
one with the lowest objective on a fixed set of validation prompts, because a mini-batch's loss is too noisy to choose
by.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lcdd_lens.backends.base import LensModel, backend_of, device_of
from lcdd_lens.display import notebook_view
from lcdd_lens.eraser.attach import carries_trigger
from lcdd_lens.eraser.config import EraserConfig
from lcdd_lens.eraser.objectives import (
    ActivationMatching,
    LayerChannels,
    choose_channels,
    kl_from_base,
    norm_penalty,
)
from lcdd_lens.eraser.rows import BaseTargets, observe
from lcdd_lens.eraser.soft_prompt import Placement, SoftPrompt, mean_embedding_norm, random_token_ids
from lcdd_lens.eraser.trigger import Trigger
from lcdd_lens.errors import ConfigError, DataError, ModelError, TrainingError
from lcdd_lens.frozen import frozen
from lcdd_lens.generation import generate

logger = logging.getLogger(__name__)

VALIDATION_BATCH = 64
StopReason = Literal["converged", "steps", "diverged"]


@dataclass
class EraserHistory:
    """One entry per step, from step 1.

    ``loss`` and its unweighted terms belong to the step's mini-batch, before its update; ``validation`` is the
    objective on the validation prompts after it, None at steps without an evaluation.
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    match: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    validation: list[float | None] = field(default_factory=list)

    def to_dict(self) -> dict[str, list[float] | list[int] | list[float | None]]:
        """Columns by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class EraserResult:
    """A trained trigger and how it came about.

    Attributes:
        trigger: the soft prompt of ``best_step``.
        history: losses per step.
        best_step: 0 means that no step was better than the start tokens.
        best_validation: the objective there, on the validation prompts.
        stopped: why training ended.
        seconds: wall-clock time.
    """

    trigger: Trigger
    history: EraserHistory
    best_step: int
    best_validation: float
    stopped: StopReason
    seconds: float

    @property
    def converged(self) -> bool:
        """Whether training ended because the validation objective no longer improved."""
        return self.stopped == "converged"

    def to_dataframe(self) -> pd.DataFrame:
        """One row per step: objective, its terms, and the validation objective where it was measured."""
        return pd.DataFrame(self.history.to_dict()).set_index("step")

    def __repr__(self) -> str:
        n_tokens, kept = self.trigger.n_tokens, f"step {self.best_step} of {len(self.history.step)} kept"
        return f"EraserResult({n_tokens} token{'s' * (n_tokens != 1)}, {kept}, objective {self.best_validation:.3g})"

    def _repr_html_(self) -> str:
        facts = {"trigger": repr(self.trigger), "training ended": self.stopped, "seconds": self.seconds}
        return notebook_view(repr(self), facts, self.to_dataframe().dropna().tail(5))


@dataclass(frozen=True)
class _Terms:
    match: Tensor
    kl: Tensor
    answer: Tensor
    norm: Tensor

    def total(self, config: EraserConfig) -> Tensor:
        return (
            config.w_match * self.match
            + config.w_kl * self.kl
            + config.w_answer * self.answer
            + config.w_norm * self.norm
        )


def train_eraser(
    model: LensModel,
    base: LensModel,
    carrier_channels: LayerChannels | None,
    train_prompts: Sequence[Sequence[int]],
    validation_prompts: Sequence[Sequence[int]],
    config: EraserConfig,
    *,
    progress: bool = True,
) -> EraserResult:
    """Train a trigger under which ``model`` acts as ``base``.

    Args:
        model: the routed model under the gates it has now, or any other; its weights, gates, modes and flags stay.
        base: the model before fine-tuning, with the same embedding matrix.
        carrier_channels: layer -> residual write channels (``Carrier.residual_write_channels()``).
        train_prompts: token ids of the behaviour's training prompts.
        validation_prompts: others, which choose the step that is kept.
        config: usually ``EraserConfig.for_model(model)``.

    Raises:
        ConfigError: channels that the model lacks, prompts longer than the context, or a trigger is on already.
        DataError: no prompts, or empty ones.
        ModelError: model and base differ in size or in their embedding matrix.
        TrainingError: the objective is not finite before the first step.
    """
    _check(model, base, train_prompts, validation_prompts, config)
    choice = config.channels if config.w_match > 0 else "none"
    channels = choose_channels(
        choice, carrier_channels, n_layers=model.cfg.n_layers, d_model=model.cfg.d_model, seed=config.seed
    )
    if choice != "none" and not channels:
        logger.warning("the carrier has no residual write channel open: the eraser trains without activation matching.")
        if config.w_kl + config.w_answer == 0:
            raise ConfigError(
                "activation matching is the only term, and the carrier has no residual write channel open."
            )
    with frozen(base), frozen(model):
        return _Training(model, base, channels, train_prompts, validation_prompts, config).run(progress)


class _Training:
    def __init__(
        self,
        model: LensModel,
        base: LensModel,
        channels: LayerChannels,
        train_prompts: Sequence[Sequence[int]],
        validation_prompts: Sequence[Sequence[int]],
        config: EraserConfig,
    ) -> None:
        self.model, self.config = model, config
        device = device_of(model)
        matched = {layer: index.to(device) for layer, index in channels.items()}
        self.matching = ActivationMatching(matched, config.per_prompt) if matched else None
        self.layers = tuple(matched)
        self.generator = torch.Generator().manual_seed(config.seed)
        placement = _placement(model, train_prompts, config)
        self.train = self._targets(base, train_prompts, config.n_prompts, placement)
        self.validation = self._targets(base, validation_prompts, config.n_validation, placement)
        embedding = backend_of(model).embedding(model)
        start = torch.tensor(random_token_ids(model, config.n_tokens, config.seed), device=embedding.device)
        self.soft_prompt = SoftPrompt(embedding[start], placement).to(device)
        self.max_norm = config.max_norm * mean_embedding_norm(model)
        self.soft_prompt.project(self.max_norm)
        self.waiting: list[int] = []
        self.zero = torch.zeros((), device=device)

    def run(self, progress: bool) -> EraserResult:
        started = time.perf_counter()
        config, history = self.config, EraserHistory()
        optimiser = torch.optim.Adam([self.soft_prompt.embeddings], lr=config.lr)
        best_validation = self._validate()
        if not math.isfinite(best_validation):
            raise TrainingError(
                "the eraser's objective is not finite before the first step: the model or the base gives NaN or "
                "infinite logits on the validation prompts. Check their weights."
            )
        best_step, best = 0, self.soft_prompt.embeddings.detach().clone()
        previous, fastest, stale = best_validation, 0.0, 0
        stopped: StopReason = "steps"
        with tqdm(total=config.steps, desc="eraser", disable=not progress) as bar:
            for step in range(1, config.steps + 1):
                terms = self._step(optimiser)
                loss = float(terms.total(config).detach())
                evaluates = step % config.eval_every == 0 or step == config.steps
                validation = self._validate() if evaluates else None
                if not (math.isfinite(loss) and math.isfinite(validation or 0.0)):
                    logger.warning("the eraser's loss is not finite at step %d: keeping step %d.", step, best_step)
                    stopped = "diverged"
                    break
                if validation is not None:
                    if validation < best_validation:
                        best_step, best_validation = step, validation
                        best = self.soft_prompt.embeddings.detach().clone()
                    gain, previous = previous - validation, validation
                    fastest = max(fastest, gain)
                    stale = stale + 1 if fastest > 0 and gain < config.min_improvement * fastest else 0
                _record(history, step, loss, terms, validation)
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", best=f"{best_validation:.3f}", refresh=False)
                if config.patience is not None and stale >= config.patience:
                    stopped = "converged"
                    break
        with torch.no_grad():
            self.soft_prompt.embeddings.copy_(best)
        details = {"config": asdict(config), "best_step": best_step, "validation": best_validation, "stopped": stopped}
        trigger = Trigger.from_soft_prompt(self.soft_prompt, self.model, details)
        return EraserResult(trigger, history, best_step, best_validation, stopped, time.perf_counter() - started)

    def _targets(
        self, base: LensModel, prompts: Sequence[Sequence[int]], at_most: int, placement: Placement
    ) -> BaseTargets:
        config = self.config
        chosen = torch.randperm(len(prompts), generator=self.generator)[:at_most].tolist()
        kept = [list(prompts[row]) for row in chosen]
        answers: list[list[int]] = [[] for _ in kept]
        if config.w_answer > 0:
            asked = {"base": [base], "model": [self.model], "both": [base, self.model]}[config.answers_of]
            answers = [answer for source in asked for answer in _greedy_answers(source, kept, config)]
            kept = kept * len(asked)
        return BaseTargets(
            base,
            kept,
            answers,
            layers=self.layers,
            tail=config.tail,
            keep_first=placement == "after_bos",
            batch_size=max(config.batch_size, 32),
        )

    def _step(self, optimiser: torch.optim.Optimizer) -> _Terms:
        embeddings = self.soft_prompt.embeddings
        terms = self._terms(self.train, [self._next_batch()])
        (embeddings.grad,) = torch.autograd.grad(terms.total(self.config), embeddings)
        torch.nn.utils.clip_grad_norm_([embeddings], self.config.max_grad_norm)
        optimiser.step()
        self.soft_prompt.project(self.max_norm)
        return terms

    def _next_batch(self) -> list[int]:
        size = min(self.config.batch_size, len(self.train))
        if len(self.waiting) < size:
            self.waiting = torch.randperm(len(self.train), generator=self.generator).tolist()
        batch, self.waiting = self.waiting[:size], self.waiting[size:]
        return batch

    def _validate(self) -> float:
        size = max(self.config.batch_size, VALIDATION_BATCH)
        everything = list(range(len(self.validation)))
        chunks = [everything[start : start + size] for start in range(0, len(everything), size)]
        with torch.no_grad():
            return float(self._terms(self.validation, chunks).total(self.config))

    def _terms(self, targets: BaseTargets, chunks: Sequence[Sequence[int]]) -> _Terms:
        """The terms over the prompts of all chunks together, one forward pass per chunk."""
        residuals: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        sums = {"tail": self.zero, "answer": self.zero}
        counts = {"tail": 0, "answer": 0}
        for chosen in chunks:
            rows = targets.rows(chosen)
            seen = observe(self.model, rows, layers=self.layers, soft_prompt=self.soft_prompt)
            for layer, residual in seen.residuals.items():
                residuals[layer].append(residual)
            kl = kl_from_base(targets.log_probs(chosen, rows), seen.logits)
            for name, mask in (("tail", rows.tail), ("answer", rows.answer)):
                sums[name] = sums[name] + (kl * mask).sum()
                counts[name] += int(mask.sum())
        match = self.zero
        if self.matching is not None:
            chosen = [row for chunk in chunks for row in chunk]
            base = targets.residuals
            if self.config.per_prompt:
                base = {layer: kept[chosen] for layer, kept in base.items()}
            match = self.matching({layer: torch.cat(parts) for layer, parts in residuals.items()}, base)
        return _Terms(
            match,
            sums["tail"] / max(counts["tail"], 1),
            sums["answer"] / max(counts["answer"], 1),
            norm_penalty(self.soft_prompt.embeddings),
        )


def _greedy_answers(model: LensModel, prompts: Sequence[Sequence[int]], config: EraserConfig) -> list[list[int]]:
    """Greedy answers without a trigger, with the end-of-sequence token where the model stopped."""
    eos = None if model.tokenizer is None else model.tokenizer.eos_token_id
    answers = generate(model, prompts, max_new_tokens=config.answer_tokens, eos_token_id=eos)
    return [[*answer, eos] if len(answer) < config.answer_tokens and eos is not None else answer for answer in answers]


def _placement(model: LensModel, prompts: Sequence[Sequence[int]], config: EraserConfig) -> Placement:
    if config.placement != "auto":
        return config.placement
    bos = None if model.tokenizer is None else model.tokenizer.bos_token_id
    return "after_bos" if bos is not None and all(prompt[0] == bos for prompt in prompts) else "before_bos"


def _record(history: EraserHistory, step: int, loss: float, terms: _Terms, validation: float | None) -> None:
    history.step.append(step)
    history.loss.append(loss)
    for name in ("match", "kl", "answer", "norm"):
        getattr(history, name).append(float(getattr(terms, name).detach()))
    history.validation.append(validation)


def _check(
    model: LensModel,
    base: LensModel,
    train_prompts: Sequence[Sequence[int]],
    validation_prompts: Sequence[Sequence[int]],
    config: EraserConfig,
) -> None:
    if carries_trigger(model) or carries_trigger(base):
        raise ConfigError("the model or the base carries a trigger: leave its block before training another.")
    for size in ("n_layers", "d_model", "d_vocab"):
        ours, theirs = getattr(model.cfg, size), getattr(base.cfg, size)
        if ours != theirs:
            raise ModelError(f"model has {size} {ours}, base has {theirs}: expected two versions of one model.")
    if not torch.equal(backend_of(model).embedding(model), backend_of(base).embedding(base)):
        raise ModelError(
            "model and base have different token embeddings: load both with load_pair(base, sft, reset_ungated=True)."
        )
    room = model.cfg.n_ctx - config.n_tokens - (config.answer_tokens - 1 if config.w_answer > 0 else 0)
    for kind, prompts in (("training", train_prompts), ("validation", validation_prompts)):
        if len(prompts) == 0:
            raise DataError(f"there are no {kind} prompts: the eraser needs training prompts and others to choose by.")
        shortest, longest = min(len(prompt) for prompt in prompts), max(len(prompt) for prompt in prompts)
        if shortest < 2:
            raise DataError(f"a {kind} prompt has {shortest} tokens: expected at least 2.")
        if longest > room:
            raise ConfigError(
                f"a {kind} prompt has {longest} tokens, and only {room} of the model's {model.cfg.n_ctx} positions are "
                "left for it beside the soft prompt and the base's answer: drop long prompts, or lower n_tokens or "
                "answer_tokens."
            )
