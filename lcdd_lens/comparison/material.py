"""What a comparison works on: models, carrier, and prompts of three disjoint kinds.

Discovery prompts (training) are what methods see; tuning prompts (validation) choose the step of a trigger; test
prompts judge. Replies are those that fine-tuning teaches, or the fine-tuned model's own where the data has none, and
both models read the same tokens. Only prompts on which the behaviour belongs count; collateral damage is measured on
the others with the base's replies, or, where a behaviour belongs everywhere, on the test prompts' own tokens.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lcdd_lens.backends.base import LensModel
from lcdd_lens.carrier import Carrier
from lcdd_lens.comparison.config import ComparisonConfig
from lcdd_lens.data import Behaviour, EncodedExample, encode
from lcdd_lens.data.examples import Example
from lcdd_lens.errors import ArtefactError, ConfigError, DataError
from lcdd_lens.evaluation.necessity import prompts_as_replies
from lcdd_lens.generation import generate
from lcdd_lens.routing.routed import RoutedModel

LcddWeights = Literal["raw", "merged"]
N_UNRELATED = 32


@dataclass(frozen=True)
class Material:
    """Models, carrier and prompts.

    Attributes:
        routed: the fine-tuned model S, routed over the base.
        base: the plain base model.
        carrier: what LCDD found.
        behaviour: judges replies.
        lcdd_weights: the weights W that LCDD trained, by parameter name; None: there are none to compare.
        lcdd_kind: ``raw``: W before the gates were merged in; ``merged``: W(m), equal to base off the carrier.
        discovery: prompts that methods see.
        tuning: prompts that choose.
        test: prompts that judge.
        unrelated: rows for collateral divergence.
        unrelated_kind: what those are, for reports.

    Raises:
        DataError: two of the three kinds of prompts share a prompt.
        ArtefactError: the carrier belongs to another model.
    """

    routed: RoutedModel
    base: LensModel
    carrier: Carrier
    behaviour: Behaviour
    discovery: tuple[EncodedExample, ...]
    tuning: tuple[EncodedExample, ...]
    test: tuple[EncodedExample, ...]
    unrelated: tuple[EncodedExample, ...]
    unrelated_kind: str
    lcdd_weights: Mapping[str, Tensor] | None = None
    lcdd_kind: LcddWeights = "raw"

    def __post_init__(self) -> None:
        kinds = {"discovery": self.discovery, "tuning": self.tuning, "test": self.test}
        seen: dict[tuple[int, ...], str] = {}
        for kind, rows in kinds.items():
            for row in rows:
                other = seen.setdefault(row.prompt_ids, kind)
                if other != kind:
                    raise DataError(
                        f"a prompt is among both the {other} and the {kind} prompts: rankings would be judged on what "
                        "they were made from; expected three disjoint sets."
                    )
        if self.carrier.sites != self.routed.sites:
            raise ArtefactError("the carrier has other sites than the fine-tuned model: it belongs to another model.")
        if not self.carrier.n_open:
            raise ConfigError("the carrier has no open channel: there is nothing to compare rankings with.")

    @classmethod
    def prepare(
        cls,
        base: LensModel,
        sft: LensModel,
        carrier: Carrier,
        behaviour: Behaviour,
        config: ComparisonConfig,
        *,
        lcdd_weights: Mapping[str, Tensor] | None = None,
        lcdd_kind: LcddWeights = "raw",
    ) -> "Material":
        """Choose and encode prompts, and route ``sft`` over ``base`` in place.

        Raises:
            DataError: the behaviour has too few prompts.
        """
        discovery = _encoded(base, behaviour, _draw(behaviour, "train", config.n_discovery, config.seed), None, config)
        tuning = _encoded(base, behaviour, _draw(behaviour, "validation", config.n_test, config.seed), sft, config)
        test = _encoded(base, behaviour, _draw(behaviour, "test", config.n_test, config.seed), sft, config)
        others = [example for example in behaviour.test if not behaviour.is_target(example)]
        if others:
            plain = tuple(Example(row.prompt, label=row.label, answer=row.answer) for row in others[:N_UNRELATED])
            unrelated = _encoded(base, behaviour, plain, base, config)
            kind = "test prompts on which the behaviour does not belong, with the base's replies"
        else:
            unrelated, kind = tuple(prompts_as_replies(test[:N_UNRELATED])), "the test prompts' own tokens"
        return cls(
            RoutedModel(sft, base),
            base,
            carrier,
            behaviour,
            discovery,
            tuning,
            test,
            unrelated,
            kind,
            lcdd_weights,
            lcdd_kind,
        )


def _draw(
    behaviour: Behaviour, split: Literal["train", "validation", "test"], n: int, seed: int
) -> tuple[Example, ...]:
    """At most ``n`` target prompts of a split, each prompt once."""
    unique = {row.prompt: row for row in behaviour.split(split) if behaviour.is_target(row)}
    if not unique:
        raise DataError(
            f"behaviour '{behaviour.name}' has no {split} prompt on which it belongs: nothing to compare on."
        )
    chosen = random.Random(f"comparison {split} {seed}").sample(sorted(unique), min(n, len(unique)))
    return tuple(unique[prompt] for prompt in chosen)


def _encoded(
    base: LensModel,
    behaviour: Behaviour,
    examples: Sequence[Example],
    answering: LensModel | None,
    config: ComparisonConfig,
) -> tuple[EncodedExample, ...]:
    """Rows with replies; where an example has none, ``answering`` gives its own greedy one."""
    tokenizer, n_ctx = base.tokenizer, base.cfg.n_ctx
    if tokenizer is None:
        raise ConfigError("the base has no tokenizer: load it with load_model(..., tokenizer=...).")
    if all(example.response is not None for example in examples):
        rows = encode(tokenizer, behaviour.chat_format, examples, n_ctx, source="comparison prompts").rows
    else:
        assert answering is not None
        encoded = encode(
            tokenizer,
            behaviour.chat_format,
            examples,
            n_ctx,
            with_responses=False,
            max_new_tokens=config.max_new_tokens + 1,
            source="comparison prompts",
        )
        with torch.no_grad():
            replies = generate(answering, encoded.prompts, max_new_tokens=config.max_new_tokens)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        closed = [reply + end if len(reply) < config.max_new_tokens else reply for reply in replies]
        rows = tuple(row.with_response(reply) for row, reply in zip(encoded, closed, strict=True) if reply)
    if not rows:
        raise DataError(f"no prompt of behaviour '{behaviour.name}' fits the context with a reply.")
    return rows
