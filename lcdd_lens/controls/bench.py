"""The bench that controls stand on: one finished experiment, with everything that its stages were given.

A control answers "would it also have worked without …?", so it must change that one thing and keep the rest: the same
data, seeds, optimiser settings and prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lcdd_lens.backends.base import LensModel, backend_of, parameter_of
from lcdd_lens.carrier import Carrier
from lcdd_lens.data import Behaviour, EncodedSet, pad_id_of
from lcdd_lens.eraser import EraserConfig, EraserResult, Trigger, train_eraser
from lcdd_lens.evaluation import Condition
from lcdd_lens.pipeline import Experiment, encode_splits
from lcdd_lens.routing import RoutedModel
from lcdd_lens.training import LCDDConfig, OptimConfig, lcdd_config_for, sft_config_for

Fact = float | int | bool | str | None


@dataclass(frozen=True)
class Bench:
    """Models, data and settings of one experiment.

    Attributes:
        base: the model before fine-tuning.
        sft: the plainly fine-tuned model.
        routed: the routed model that LCDD left, its carrier open.
        carrier: which channels are open in it.
        trigger: the trigger trained on it.
        behaviour: judges replies.
        train: training prompts with responses.
        validation: prompts that choose.
        test: prompts that judge.
        sft_training: how ``sft`` was trained.
        lcdd: how ``routed`` was trained.
        eraser: how ``trigger`` was trained.
        final_loss: LCDD's loss at its end (moving average, nats per token).
        max_new_tokens: longest reply.
        seed: of draws.
        progress: show progress bars.
    """

    base: LensModel
    sft: LensModel
    routed: RoutedModel
    carrier: Carrier
    trigger: Trigger
    behaviour: Behaviour
    train: EncodedSet
    validation: EncodedSet
    test: EncodedSet
    sft_training: OptimConfig
    lcdd: LCDDConfig
    eraser: EraserConfig
    final_loss: float
    max_new_tokens: int = 24
    seed: int = 0
    progress: bool = True

    @classmethod
    def of(cls, experiment: Experiment, *, progress: bool = True) -> "Bench":
        """From a finished experiment.

        Raises:
            DataError: its prompts cannot be encoded any more.
        """
        config, base, behaviour = experiment.config, experiment.base, experiment.behaviour
        eraser = config.eraser or replace(EraserConfig.for_model(base), seed=config.seed)
        data = encode_splits(base, behaviour, eraser, config.evaluation)
        return cls(
            base=base,
            sft=experiment.sft,
            routed=experiment.routed,
            carrier=experiment.carrier,
            trigger=experiment.triggers["routed+trigger"],
            behaviour=behaviour,
            train=data["train"],
            validation=data["validation"],
            test=data["test"],
            sft_training=config.sft_training or sft_config_for(base, seed=config.seed),
            lcdd=config.lcdd or lcdd_config_for(base, seed=config.seed),
            eraser=eraser,
            final_loss=experiment.results["carrier"]["budget"]["final_loss"],
            max_new_tokens=config.evaluation.max_new_tokens,
            seed=config.seed,
            progress=progress,
        )

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return pad_id_of(self.base.tokenizer)

    def routed_sft(self) -> RoutedModel:
        """A new copy of the fine-tuned model, routed over the base, every gate open."""
        return RoutedModel(backend_of(self.sft).clone(self.sft), self.base)

    def new_base(self) -> LensModel:
        """A new copy of the base, to train."""
        return backend_of(self.base).clone(self.base)

    def train_trigger(self, model: LensModel, carrier: Carrier | None, **changes: Any) -> EraserResult:
        """A trigger for ``model`` under the experiment's own settings.

        Args:
            model: plain or routed.
            carrier: its residual write channels are matched; None: KL alone.
            changes: fields of :class:`EraserConfig` that differ.
        """
        config = replace(self.eraser, **changes)
        if carrier is None:
            config = replace(config, channels="none", w_match=0.0)
        channels = None if carrier is None else carrier.residual_write_channels()
        prompts = self.train.prompts, self.validation.prompts
        return train_eraser(model, self.base, channels, *prompts, config, progress=self.progress)


@dataclass(frozen=True)
class Outcome:
    """What a control built.

    Attributes:
        conditions: what there is to measure.
        facts: figures about it that no prompt is needed for.
        carrier: its open channels, where it has any of its own.
    """

    conditions: tuple[Condition, ...]
    facts: Mapping[str, Fact] = field(default_factory=dict)
    carrier: Carrier | None = None


def dense_outcome(bench: Bench, name: str, model: LensModel, facts: Mapping[str, Fact]) -> Outcome:
    """A model without gates, without a trigger and behind two: by KL alone, and matching LCDD's carrier as well."""
    by_kl = bench.train_trigger(model, None).trigger
    matching = bench.train_trigger(model, bench.carrier).trigger
    return Outcome(
        (
            Condition(name, model),
            Condition(f"{name}+trigger", model, by_kl),
            Condition(f"{name}+trigger(carrier)", model, matching),
        ),
        {"delta_norm": delta_norm(model, bench.base), **facts},
    )


def gated_outcome(
    bench: Bench, name: str, routed: RoutedModel, flags: Bool[Tensor, " gate"], facts: Mapping[str, Fact]
) -> Outcome:
    """A routed model with exactly these gates open, without a trigger and behind one that matches its own channels."""
    routed.set_gates(flags.float())
    model = routed.merged()
    carrier = Carrier(routed.sites, routed.layout.channels(flags))
    trigger = bench.train_trigger(model, carrier).trigger
    return Outcome(
        (Condition(name, model), Condition(f"{name}+trigger", model, trigger)),
        {
            "sparsity": carrier.sparsity,
            "n_open": carrier.n_open,
            "delta_norm": delta_norm(model, bench.base),
            "jaccard_with_carrier": carrier.jaccard(bench.carrier),
            **facts,
        },
        carrier,
    )


def delta_norm(model: LensModel, base: LensModel) -> float:
    """‖W − W_B‖ over all gated weights; of a routed model ‖W(m) − W_B‖ under its present gates."""
    total = 0.0
    with torch.no_grad():
        for site in backend_of(base).weight_sites(base):
            ours, theirs = parameter_of(model, site.parameter), parameter_of(base, site.parameter)
            total += float((ours.double() - theirs.double()).square().sum())
    return float(total**0.5)
