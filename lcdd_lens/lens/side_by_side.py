"""The conditions of an experiment on the same prompts: what every analysis in this room is given.

    base             the model before fine-tuning
    sft              after plain fine-tuning
    routed           the carrier open
    closed           the routed model with every gate closed: the base, bit for bit
    routed+trigger   the routed model behind its trigger

Prompts are padded on the left, so that every prompt ends in the last column, and always run with their attention mask.
A trigger makes the sequence longer; everything here is given per token of the prompt, at the token's own column. What
a reply begins with is told by two tokens a prompt: the fine-tuned model's and the base's.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcdd_lens.backends.base import LensModel, backend_of, device_of
from lcdd_lens.carrier import Carrier
from lcdd_lens.data import encode, pad_id_of
from lcdd_lens.data.behaviours import Split
from lcdd_lens.data.tokens import TokenBatch, prompt_batch
from lcdd_lens.eraser import Trigger
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.evaluation import Condition
from lcdd_lens.frozen import frozen
from lcdd_lens.pipeline import Experiment
from lcdd_lens.routing import RoutedModel

TRIGGERED = "routed+trigger"


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Conditions, prompts, and the two tokens that a reply could begin with.

    Attributes:
        conditions: what is compared, ``base`` among it.
        prompts: the prompts, padded on the left.
        carrier: the channels that the routed model has open.
        behaviour_tokens: what the fine-tuned model's reply begins with, per prompt.
        base_tokens: what the base's reply begins with, per prompt.
        batch_size: prompts in one forward pass.
        n_left_out: prompts that were given and left out, because both replies begin alike.

    Raises:
        ConfigError: a name occurs twice, ``base`` is missing, or a condition has several draws of its trigger.
    """

    conditions: tuple[Condition, ...]
    prompts: TokenBatch
    carrier: Carrier
    behaviour_tokens: Int[Tensor, " prompt"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    base_tokens: Int[Tensor, " prompt"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    batch_size: int = 32
    n_left_out: int = 0

    def __post_init__(self) -> None:
        names = [condition.name for condition in self.conditions]
        if len(set(names)) < len(names) or "base" not in names:
            raise ConfigError(f"conditions {names}: expected every name once, and 'base' among them.")
        several = [condition.name for condition in self.conditions if len(condition.draws) > 1]
        if several:
            raise ConfigError(f"{', '.join(several)}: expected one trigger, not several draws, to look inside.")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}: expected at least 1.")

    @classmethod
    def of(
        cls, experiment: Experiment, *, n_prompts: int = 64, split: Split = "test", batch_size: int = 32
    ) -> "SideBySide":
        """The five conditions of a finished experiment, on its first prompts where the behaviour belongs.

        Args:
            experiment: a finished experiment.
            n_prompts: at most so many prompts.
            split: where they are from.
            batch_size: prompts in one forward pass.

        Raises:
            DataError: no prompt is left on which the two replies begin with different tokens.
        """
        behaviour, trigger = experiment.behaviour, experiment.triggers[TRIGGERED]
        examples = [example for example in behaviour.split(split) if behaviour.is_target(example)][:n_prompts]
        encoded = encode(
            experiment.base.tokenizer,
            behaviour.chat_format,
            examples,
            experiment.base.cfg.n_ctx,
            with_responses=False,
            reserve=trigger.n_tokens,
            source=f"{split} prompts",
        )
        return cls.from_models(
            experiment.base,
            experiment.sft,
            experiment.routed,
            experiment.carrier,
            trigger,
            encoded.prompts,
            batch_size=batch_size,
        )

    @classmethod
    def from_models(
        cls,
        base: LensModel,
        sft: LensModel,
        routed: RoutedModel,
        carrier: Carrier,
        trigger: Trigger,
        prompts: Sequence[Sequence[int]],
        *,
        batch_size: int = 32,
    ) -> "SideBySide":
        """The five conditions of a base, its fine-tuned and its routed version, on prompts given as token ids.

        Prompts on which both replies begin with the same token are left out: there is nothing to tell apart there.

        Raises:
            DataError: a prompt is too short or too long, or none is left.
        """
        conditions = (
            Condition("base", base),
            Condition("sft", sft),
            Condition("routed", routed.model),
            Condition("closed", routed.model, context=routed.all_closed),
            Condition(TRIGGERED, routed.model, trigger),
        )
        for number, prompt in enumerate(prompts):
            needed = len(prompt) + trigger.n_tokens
            if len(prompt) < 2 or needed > base.cfg.n_ctx:
                raise DataError(
                    f"prompt {number} has {len(prompt)} tokens: expected at least 2, and with the trigger at most "
                    f"{base.cfg.n_ctx}, the model's context (they need {needed})."
                )
        if not prompts:
            raise DataError("there are no prompts: expected at least one, as token ids.")
        batch = prompt_batch(prompts, pad_id_of(base.tokenizer) if base.tokenizer is not None else 0)
        side = cls(conditions, batch.to(device_of(base)), carrier, batch_size=batch_size)
        behaviour, own = (side.next_logits(name).argmax(-1) for name in ("sft", "base"))
        differ = behaviour != own
        if not bool(differ.any()):
            raise DataError(
                f"on all {len(prompts)} prompts base and fine-tuned model begin their replies with the same token: "
                "give prompts on which the behaviour shows."
            )
        kept = side.prompts
        return replace(
            side,
            prompts=TokenBatch(kept.tokens[differ], kept.attention_mask[differ], kept.response_mask[differ]),
            behaviour_tokens=behaviour[differ],
            base_tokens=own[differ],
            n_left_out=int((~differ).sum()),
        )

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conditions, in order."""
        return tuple(condition.name for condition in self.conditions)

    def condition(self, name: str) -> Condition:
        """A condition by its name.

        Raises:
            ConfigError: there is none of that name.
        """
        for condition in self.conditions:
            if condition.name == name:
                return condition
        raise ConfigError(f"there is no condition '{name}': expected one of {', '.join(self.names)}.")

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[LensModel]:
        """Within the block the condition holds: its gates, its trigger, no gradients. Use the model that it gives."""
        condition = self.condition(name)
        trigger, model = condition.draws[0], condition.model
        before = contextlib.nullcontext() if trigger is None else trigger.on(model)
        with torch.no_grad(), condition.context(), frozen(model), before:
            yield model

    def batches(self) -> Iterator[slice]:
        """The rows of each forward pass."""
        for start in range(0, self.n_prompts, self.batch_size):
            yield slice(start, start + self.batch_size)

    def columns(self, name: str) -> Int[Tensor, "prompt pos"]:
        """The column of every token in the activations of a condition: behind a trigger they are moved."""
        mask = self.prompts.attention_mask
        own = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape).clone()
        trigger = self.condition(name).draws[0]
        if trigger is None:
            return own
        own += trigger.n_tokens
        if getattr(trigger, "placement", "before_bos") == "after_bos":
            own[torch.arange(len(mask), device=mask.device), mask.argmax(1)] = 0
        return own

    def next_logits(self, name: str) -> Float[Tensor, "prompt d_vocab"]:
        """Logits of the reply's first token."""
        with self.running(name) as model:
            return torch.cat([self.forward(model, rows)[:, -1] for rows in self.batches()])

    def forward(self, model: LensModel, rows: slice) -> Float[Tensor, "batch pos d_vocab"]:
        """One forward pass over some of the prompts; hooks that are on the model see it."""
        return backend_of(model).logits(model, self.prompts.tokens[rows], self.prompts.attention_mask[rows])

    def logit_difference(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        """Logit of the behaviour's first token less that of the base's: above 0 the behaviour wins."""
        behaviour, base = self.behaviour_tokens[:, None], self.base_tokens[:, None]
        return (logits.gather(1, behaviour) - logits.gather(1, base)).squeeze(1)

    def __repr__(self) -> str:
        left_out = f", {self.n_left_out} left out" if self.n_left_out else ""
        return f"SideBySide({', '.join(self.names)}; {self.n_prompts} prompts{left_out}; {self.carrier})"
