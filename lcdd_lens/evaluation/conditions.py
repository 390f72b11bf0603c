"""The conditions under which a behaviour is measured, and everything measured on each.

    base                    the model before fine-tuning
    sft                     the fine-tuned model
    routed                  the model that LCDD left, carrier open
    routed+trigger          the same with the trained trigger before every prompt
    sft+trigger             plain SFT with a trigger trained on it by KL alone
    sft+trigger(carrier)    the same, trained with the carrier's channels as well
    routed+random           random real tokens in the trigger's place, several draws

(paper, section 5). All conditions answer the same prompts greedily and are compared on the fine-tuned model's replies.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from lcdd_lens.backends.base import LensModel
from lcdd_lens.data import Behaviour, EncodedExample, EncodedSet, pad_id_of
from lcdd_lens.eraser.trigger import Trigger, random_token_trigger
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.evaluation.divergence import categorical_kl, mean_per_reply, reply_batches, reply_log_probs
from lcdd_lens.evaluation.rates import shown, targets
from lcdd_lens.evaluation.result import EvaluationResult
from lcdd_lens.evaluation.utility import exact_agreement, task_accuracy, token_agreement
from lcdd_lens.generation import Prefix, generate

CONDITIONS = (
    "base",
    "sft",
    "routed",
    "routed+trigger",
    "sft+trigger",
    "sft+trigger(carrier)",
    "routed+random",
)
N_RANDOM_DRAWS = 5


@dataclass(frozen=True)
class Condition:
    """A model, what stands before its prompts, and what else must hold while it is measured.

    Attributes:
        name: one of :data:`CONDITIONS`, or any other name for reports.
        model: plain or routed.
        trigger: what stands before every prompt; several are draws of one control, reported as mean and worst.
        context: makes a context manager to measure within, for example ``routed.all_closed``.
    """

    name: str
    model: LensModel
    trigger: Prefix | tuple[Prefix, ...] | None = None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        if self.trigger == ():
            raise ConfigError(f"condition '{self.name}' has no draws: give at least one trigger, or None.")

    @property
    def draws(self) -> tuple[Prefix | None, ...]:
        """One entry a draw; None where no trigger stands before the prompts."""
        return self.trigger if isinstance(self.trigger, tuple) else (self.trigger,)

    @property
    def n_tokens(self) -> int:
        """Positions that the (longest) trigger takes."""
        return max(0 if draw is None else draw.n_tokens for draw in self.draws)


def random_condition(
    name: str, model: LensModel, like: Trigger, *, draws: int = N_RANDOM_DRAWS, seed: int = 0
) -> Condition:
    """The control for a trigger: as many random real tokens in its place, drawn several times.

    One draw can do by luck what most do not, so all are measured and the worst is reported with the mean.
    """
    triggers = (
        random_token_trigger(model, like.n_tokens, seed=seed * 1000 + draw, placement=like.placement)
        for draw in range(draws)
    )
    return Condition(name, model, tuple(triggers))


def evaluate_conditions(
    conditions: Sequence[Condition],
    behaviour: Behaviour,
    prompts: EncodedSet,
    *,
    base_name: str = "base",
    sft_name: str = "sft",
    max_new_tokens: int = 32,
    batch_size: int = 64,
    kl_batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> EvaluationResult:
    """Measure every condition on the same prompts.

    Replies are greedy. Utility compares them with the base's replies and with right answers; the divergences
    KL(base ‖ condition) and KL(sft ‖ condition) are exact and teacher-forced on the fine-tuned model's replies.

    Args:
        conditions: what to measure; their models share one tokenizer, the first one's.
        behaviour: judges the replies.
        prompts: encoded prompts that no training saw, with room for ``max_new_tokens`` and the longest trigger.
        base_name: the condition that utility and the first divergence refer to.
        sft_name: the condition whose replies are taught, and that the second divergence refers to.
        max_new_tokens: length limit of replies.
        batch_size: prompts decoded together.
        kl_batch_size: prompts whose full next-token distributions are held together.
        seed: of the bootstrap and of the samples shown.
        progress: show a progress bar.

    Raises:
        ConfigError: a name is missing or given twice, or the prompts leave no room for replies and triggers.
        DataError: the behaviour belongs on none of the prompts.
        ModelError: a model's logits are NaN.
    """
    by_name = _by_name(conditions, base_name, sft_name)
    examples = prompts.examples
    is_target = targets(behaviour, examples)
    if not is_target.any():
        raise DataError(f"no prompt has a target label of behaviour '{behaviour.name}': there is no rate to measure.")
    tokenizer = conditions[0].model.tokenizer
    if tokenizer is None:
        raise ConfigError(f"the model of condition '{conditions[0].name}' has no tokenizer: load it with tokenizer=...")
    pad_id, eos_id = pad_id_of(tokenizer), tokenizer.eos_token_id
    steps = sum(len(condition.draws) for condition in conditions) + -(-len(prompts) // kl_batch_size)
    with tqdm(total=steps, desc="evaluation", disable=not progress) as bar:
        replies: dict[str, list[list[list[int]]]] = {}
        for condition in conditions:
            bar.set_postfix_str(condition.name)
            replies[condition.name] = []
            for draw in condition.draws:
                with condition.context():
                    replies[condition.name].append(
                        generate(
                            condition.model,
                            prompts.prompts,
                            max_new_tokens=max_new_tokens,
                            trigger=draw,
                            batch_size=batch_size,
                            eos_token_id=eos_id,
                            pad_token_id=pad_id,
                        )
                    )
                bar.update()
        taught = [
            row.with_response(_closed(reply, max_new_tokens, eos_id))
            for row, reply in zip(prompts, replies[sft_name][0], strict=True)
        ]
        divergences = _divergences(by_name, (base_name, sft_name), taught, pad_id, kl_batch_size, bar)
    texts = {
        name: [[behaviour.chat_format.decode_response(tokenizer, reply) for reply in draw] for draw in draws]
        for name, draws in replies.items()
    }
    base_replies = replies[base_name][0]
    values = {
        "shown": {name: _stack([shown(behaviour, examples, draw) for draw in draws]) for name, draws in texts.items()},
        "agreement": {
            name: _stack([exact_agreement(d, base_replies) for d in draws]) for name, draws in replies.items()
        },
        "agreement_token": {
            name: _stack([token_agreement(d, base_replies) for d in draws]) for name, draws in replies.items()
        },
        "accuracy": {name: _stack([task_accuracy(examples, draw) for draw in draws]) for name, draws in texts.items()},
        "kl": divergences[base_name],
        "kl_from_sft": divergences[sft_name],
    }
    return EvaluationResult(
        behaviour=behaviour.name,
        examples=examples,
        is_target=is_target,
        has_others=behaviour.target_labels is not None,
        values=values,
        answers={name: draws[0] for name, draws in texts.items()},
        base_name=base_name,
        sft_name=sft_name,
        seed=seed,
    )


def _divergences(
    conditions: dict[str, Condition],
    references: tuple[str, str],
    rows: list[EncodedExample],
    pad_id: int,
    batch_size: int,
    bar: Any,
) -> dict[str, dict[str, Float[np.ndarray, "draw prompt"]]]:
    """KL(reference ‖ condition) for both references, each condition run once a batch."""
    bar.set_postfix_str("divergence")
    found: dict[str, dict[str, list[Any]]] = {ref: {name: [] for name in conditions} for ref in references}
    for batch in reply_batches(rows, pad_id, batch_size):
        kept = {}
        for name in references:
            with conditions[name].context():
                kept[name] = reply_log_probs(conditions[name].model, batch, conditions[name].draws[0])
        for name, condition in conditions.items():
            for_draws: dict[str, list[Any]] = {reference: [] for reference in references}
            for draw in condition.draws:
                log_q = kept.get(name)
                if log_q is None:
                    with condition.context():
                        log_q = reply_log_probs(condition.model, batch, draw)
                for reference in references:
                    log_p = kept[reference]
                    values = mean_per_reply(categorical_kl(log_p, log_q.to(log_p.device)), batch)
                    for_draws[reference].append(values.cpu().numpy().astype(np.float64))
            for reference in references:
                found[reference][name].append(np.stack(for_draws[reference]))
        bar.update()
    return {
        reference: {name: np.concatenate(parts, axis=1) for name, parts in by_condition.items()}
        for reference, by_condition in found.items()
    }


def _closed(reply: list[int], max_new_tokens: int, eos_id: int | None) -> list[int]:
    """The reply with the EOS token that ended it; one that ran into the limit has none."""
    return reply if eos_id is None or len(reply) >= max_new_tokens else [*reply, eos_id]


def _stack(draws: list[Any]) -> Float[np.ndarray, "draw prompt"]:
    return np.stack(draws).astype(np.float64)


def _by_name(conditions: Sequence[Condition], base_name: str, sft_name: str) -> dict[str, Condition]:
    by_name = {condition.name: condition for condition in conditions}
    if len(by_name) < len(conditions):
        raise ConfigError(f"conditions {[condition.name for condition in conditions]}: every name must occur once.")
    for name in (base_name, sft_name):
        if name not in by_name:
            raise ConfigError(f"conditions {list(by_name)} lack '{name}': utility and divergences are relative to it.")
        if len(by_name[name].draws) > 1:
            raise ConfigError(f"condition '{name}' has several draws: what others are compared with must be one.")
    return by_name
