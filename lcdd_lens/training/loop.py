"""The training loop that SFT and LCDD share.

One step: gates from the rule (if any), forward and backward over the micro-batches, gradient clip, AdamW on the
weights, the rule's own update. Every random choice is a function of (seed, step), so a checkpoint needs no generator
state and a resumed run on the CPU is bit-exact.
"""

import contextlib
import hashlib
import logging
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm.auto import tqdm

from lcdd_lens.backends.base import LensModel, backend_of, device_of
from lcdd_lens.data.sampling import BatchSampler
from lcdd_lens.data.tokens import EncodedSet, loss_positions, response_loss
from lcdd_lens.errors import ConfigError, TrainingError
from lcdd_lens.routing.routed import RoutedModel
from lcdd_lens.training.checkpoint import (
    load_checkpoint,
    load_optimiser_tensors,
    optimiser_tensors,
    save_checkpoint,
)
from lcdd_lens.training.dual import BudgetConfig, LossBudget
from lcdd_lens.training.rules import GateRule

logger = logging.getLogger(__name__)

History = dict[str, list[int | float]]
"""Recorded series by name; ``step`` counts from 1."""


@dataclass(frozen=True)
class OptimConfig:
    """How weights are trained."""

    steps: int
    """Optimiser steps."""
    lr: float
    """Peak learning rate of AdamW (paper: 2e-5 at 0.6B-8B; about 1e-3 for models of a million parameters)."""
    batch_size: int = 32
    """Rows of one micro-batch."""
    accumulate: int = 1
    """Micro-batches of one optimiser step."""
    warmup_steps: int = 20
    """Linear warm-up of the learning rate."""
    decay_steps: int | None = None
    """Last steps, over which the learning rate falls to 0 by a cosine; None: all after the warm-up."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    pull: float = 0.0
    """Coefficient of ‖W − W_B‖² in the loss: a pull of the weights to the base."""
    grad_clip: float = 1.0
    """Largest norm of the weights' gradient."""
    all_tokens: bool = False
    """Loss over prompt and response tokens, as the authors' trainer does; default: response tokens only."""
    autocast: Literal["none", "bf16"] = "none"
    """bf16: forward and backward under autocast, weights and optimiser in their own precision."""
    checkpoint_every: int = 100
    """Steps between checkpoints (when an output folder is given)."""
    seed: int = 0
    """Seed of the order of the rows."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected at least 1.")
        for name in ("warmup_steps", "weight_decay", "pull", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 0 or more.")
        if not self.lr > 0 or not self.grad_clip > 0:
            raise ConfigError(f"lr and grad_clip must be positive; got {self.lr} and {self.grad_clip}.")
        if self.decay_steps is not None and not 0 <= self.decay_steps <= self.steps:
            raise ConfigError(f"decay_steps is {self.decay_steps}: expected 0 to {self.steps}.")

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        decay_steps = self.steps - self.warmup_steps if self.decay_steps is None else self.decay_steps
        into_decay = step - (self.steps - decay_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * into_decay / decay_steps)) if into_decay > 0 else 1.0
        return self.lr * warm * cosine


def gated_parameters(model: LensModel) -> dict[str, nn.Parameter]:
    """The parameters of a plain model that gates would cover, by name: what plain SFT trains."""
    names = {site.parameter for site in backend_of(model).weight_sites(model)}
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


@contextlib.contextmanager
def only_trainable(model: LensModel, trained: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within the block only these parameters require gradients; afterwards the former flags return."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    chosen = {id(parameter) for parameter in trained.values()}
    try:
        model.train()
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        model.train(was_training)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class Loop:
    """One training stage: plain (``routed`` and ``rule`` are None) or routed.

    Args:
        model: the model whose weights are trained, in place.
        trained: the trained parameters by name.
        base: the base's weights by the same names, for the pull.
        data: encoded rows with responses.
        config: how to train.
        pad_id: padding token; padding is always masked.
        routed: the routed model around ``model``.
        rule: what chooses the gates.
        out: folder of the checkpoint; None keeps none.
        resume: continue from the checkpoint in ``out`` if there is one.
        label: what the progress bar is called.
        progress: show it.
        identity: what must agree for a resume.
        stall_steps: end the run when the rule's sparsity has not moved for so many steps of its descent.

    Raises:
        ConfigError: ``out`` holds the checkpoint of another configuration, or of any when ``resume`` is False.
    """

    def __init__(
        self,
        model: LensModel,
        trained: Mapping[str, nn.Parameter],
        base: Mapping[str, Tensor],
        data: EncodedSet,
        config: OptimConfig,
        *,
        pad_id: int,
        routed: RoutedModel | None = None,
        rule: GateRule | None = None,
        out: Path | None = None,
        resume: bool = False,
        label: str = "training",
        progress: bool = True,
        identity: Mapping[str, Any] | None = None,
        stall_steps: int | None = None,
    ) -> None:
        if not len(data):
            raise ConfigError("there are no rows to train on.")
        self.model, self.trained, self.base = model, dict(trained), base
        self.data, self.config, self.pad_id = data, config, pad_id
        self.routed, self.rule = routed, rule
        self.label, self.progress, self.stall_steps = label, progress, stall_steps
        self.step = 0
        self.history: History = {"step": [], "loss": [], "ema": [], "lr": []}
        if rule is not None:
            self.history |= {"epsilon": [], "lambda": [], "sparsity": []}
        self._sampler = BatchSampler(len(data), config.batch_size, config.seed)
        self._monitor = LossBudget(BudgetConfig(warmup_steps=config.steps + 1))
        self._optimiser = torch.optim.AdamW(self.trained.values(), lr=config.lr, weight_decay=config.weight_decay)
        self._checkpoint = None if out is None else out / "checkpoint.safetensors"
        self._identity = {
            "optim": asdict(config),
            "rows": _rows_digest(data),
            "parameters": {name: list(parameter.shape) for name, parameter in self.trained.items()},
            **(identity or {}),
        }
        if self._checkpoint is not None and self._checkpoint.exists():
            if not resume:
                raise ConfigError(f"{out} holds a checkpoint of an earlier run: resume it, or choose another folder.")
            self._load(self._checkpoint)

    def run(self) -> History:
        """Train to the last step; weights (and the rule's masks) are changed in place.

        Raises:
            TrainingError: the loss became NaN or diverged; the last checkpoint stays.
            KeyboardInterrupt: after Ctrl-C; the present step is finished and saved first.
        """
        bar = tqdm(total=self.config.steps, initial=self.step, desc=self.label, disable=not self.progress, leave=False)
        with only_trainable(self.model, self.trained), _finish_step_on_interrupt() as interrupted, bar:
            while self.step < self.config.steps:
                self._train_step()
                bar.update()
                if self.step % 10 == 0:
                    bar.set_postfix({name: f"{value:.3g}" for name, value in self._figures().items()}, refresh=False)
                if interrupted.is_set():
                    self._save()
                    raise KeyboardInterrupt
                if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                    self._save()
                if self._has_stalled():
                    logger.info("%s stops at step %d: the number of open gates has stalled", self.label, self.step)
                    break
        return self.history

    def _has_stalled(self) -> bool:
        if self.stall_steps is None or self.rule is None or self.rule.phase != "descent":
            return False
        recent = self.history["sparsity"][-self.stall_steps - 1 :]
        return len(recent) > self.stall_steps and recent[0] > 0 and len(set(recent)) == 1

    def _train_step(self) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        self._optimiser.zero_grad(set_to_none=True)
        if self.routed is None or self.rule is None:
            loss = self._backward()
            gate_gradients = None
        else:
            gates = self.rule.gates(self.step).to(device_of(self.model)).requires_grad_(True)
            with self.routed.using(gates):
                loss = self._backward()
            assert gates.grad is not None
            gate_gradients = gates.grad
        self._apply_pull()
        norm = nn.utils.clip_grad_norm_(list(self.trained.values()), self.config.grad_clip)
        if not math.isfinite(loss) or not bool(torch.isfinite(norm)):
            self._stop(f"the loss or its gradient is not finite (loss {loss})")
        self._optimiser.step()
        if self.rule is not None and gate_gradients is not None:
            self.rule.update(loss, gate_gradients)
        self._monitor.update(loss)
        self.step += 1
        self._record(loss)
        # A uniform guess costs log(d_vocab): an average far above it, and above where it began, has diverged.
        if self._monitor.ema > max(math.log(self.model.cfg.d_vocab), self.history["loss"][0]) + 5:
            self._stop(f"the loss diverged (average {self._monitor.ema:.3g})")

    def _backward(self) -> float:
        backend, device = backend_of(self.model), device_of(self.model)
        all_tokens, first = self.config.all_tokens, self.step * self.config.accumulate
        batches = [
            self.data.batch(self._sampler.indices(first + micro), self.pad_id)
            for micro in range(self.config.accumulate)
        ]
        # Every token weighs the same, as in one large batch, however the tokens fall into micro-batches.
        counts = [int(loss_positions(batch, all_tokens=all_tokens).sum()) for batch in batches]
        total = 0.0
        for batch, count in zip(batches, counts, strict=True):
            batch = batch.to(device)
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.config.autocast == "bf16")
            # A forward pass may read a weight more than once; its gates are applied once.
            with autocast, parametrize.cached():
                logits = backend.logits(self.model, batch.tokens, batch.attention_mask)
            loss = response_loss(logits, batch, all_tokens=all_tokens) * (count / sum(counts))
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _apply_pull(self) -> None:
        if self.config.pull:
            with torch.no_grad():
                for name, parameter in self.trained.items():
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter - self.base[name], alpha=2 * self.config.pull)

    def _record(self, loss: float) -> None:
        self.history["step"].append(self.step)
        self.history["loss"].append(loss)
        self.history["ema"].append(self._monitor.ema)
        self.history["lr"].append(self._optimiser.param_groups[0]["lr"])
        if self.rule is not None:
            self.history["epsilon"].append(self.rule.budget.epsilon or 0.0)
            self.history["lambda"].append(self.rule.price)
            self.history["sparsity"].append(self.rule.masks.sparsity())

    def _figures(self) -> dict[str, float]:
        shown = {"loss": "loss", "ema": "EMA", "epsilon": "ε", "lambda": "λ", "sparsity": "sparsity"}
        return {title: self.history[name][-1] for name, title in shown.items() if name in self.history}

    def _stop(self, reason: str) -> None:
        if self._checkpoint is not None and self._checkpoint.exists():
            kept = f"the checkpoint {self._checkpoint} from an earlier step is kept"
        else:
            kept = "no checkpoint was written yet"
        raise TrainingError(
            f"{self.label} stopped at step {self.step}: {reason}; {kept}. "
            f"Lower lr (now {self.config.lr}), lower grad_clip, or turn autocast off."
        )

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        tensors: dict[str, Tensor] = {f"weight.{name}": parameter for name, parameter in self.trained.items()}
        tensors |= optimiser_tensors(self._optimiser, "optimiser")
        state: dict[str, Any] = {
            "step": self.step,
            "identity": self._identity,
            "history": self.history,
            "monitor": self._monitor.state(),
        }
        if self.rule is not None:
            tensors |= {f"rule.{name}": tensor for name, tensor in self.rule.tensors().items()}
            state["rule"] = self.rule.state()
        save_checkpoint(self._checkpoint, tensors, state)

    def _load(self, path: Path) -> None:
        tensors, state = load_checkpoint(path)
        differing = [key for key in self._identity if state["identity"].get(key) != self._identity[key]]
        if differing:
            raise ConfigError(
                f"{path} belongs to a run with other settings (they differ in: {', '.join(differing)}): resume it with "
                "its own settings, or choose another folder."
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"weight.{name}"])
        load_optimiser_tensors(self._optimiser, "optimiser", tensors)
        if self.rule is not None:
            prefix = "rule."
            ruled = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self.rule.load(ruled, state["rule"])
        self.step, self.history = state["step"], state["history"]
        self._monitor.load_state(state["monitor"])
        logger.info("%s resumes at step %d of %d", self.label, self.step, self.config.steps)


def _rows_digest(data: EncodedSet) -> str:
    rows = [(row.prompt_ids, row.response_ids) for row in data]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


@contextlib.contextmanager
def _finish_step_on_interrupt() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event, so that no step is left half done; a second Ctrl-C interrupts at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
