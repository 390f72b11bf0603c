"""Triggers trained otherwise: what does SFT-Eraser's success rest on?

On the model that LCDD left: other channels in the activation matching, one term of the objective at a time, random real
tokens, and the same trigger on other models. On plain SFT: attacks stronger than the one that the paper lets it face.
"""

from typing import Any

from lcdd_lens.controls.bench import Bench, Outcome
from lcdd_lens.evaluation import Condition, random_condition

RANDOM_DRAWS = 20
LONG_TRIGGER = 20  # tokens, the paper's length
MORE_STEPS = 10


def random_channels(bench: Bench) -> Outcome:
    """Does activation matching need the carrier's channels?

    LCDD's model, as many random residual channels C_l in every layer that the carrier writes to. (Paper's ablation.)
    """
    return _on_routed(bench, "routed+trigger(random)", channels="random")


def all_channels(bench: Bench) -> Outcome:
    """Does activation matching need any choice of channels?

    LCDD's model, every residual channel of every layer. (Ours.)
    """
    return _on_routed(bench, "routed+trigger(all)", channels="all")


def kl_only(bench: Bench) -> Outcome:
    """Does the trigger need activation matching at all?

    LCDD's model, w_match = 0. (Paper's ablation "no matching".)
    """
    return _on_routed(bench, "routed+trigger(kl)", channels="none", w_match=0.0)


def prompt_only(bench: Bench) -> Outcome:
    """Does the published objective do, which sees the prompt and no answer?

    LCDD's model, w_answer = 0. (Paper's objective.)
    """
    return _on_routed(bench, "routed+trigger(prompt)", w_answer=0.0)


def matching_only(bench: Bench) -> Outcome:
    """Does the trigger need the KL terms?

    LCDD's model, w_KL = w_answer = 0. A carrier that writes to no residual channel leaves nothing to match, and so no
    condition. (Paper's ablation "no KL".)
    """
    if not bench.carrier.residual_write_channels():
        return Outcome((), {"skipped": "the carrier writes to no residual channel"})
    return _on_routed(bench, "routed+trigger(matching)", w_kl=0.0, w_answer=0.0, w_match=1.0)


def random_tokens(bench: Bench, draws: int = RANDOM_DRAWS) -> Outcome:
    """Would any token do in the trigger's place, on LCDD's model or on plain SFT?

    As many random real tokens as the trigger has, drawn many times: the mean, and the worst draw. (Ours.)
    """
    shared: dict[str, Any] = {"like": bench.trigger, "draws": draws, "seed": bench.seed + 1}
    return Outcome(
        (
            random_condition("routed+random(many)", bench.routed.model, **shared),
            random_condition("sft+random(many)", bench.sft, **shared),
        ),
        {"draws": draws, "n_tokens": bench.trigger.n_tokens},
    )


def transfer(bench: Bench) -> Outcome:
    """Does the trigger belong to the model that it was trained on?

    The routed model's trigger before the prompts of plain SFT (does it reverse that too?) and of the base (does it do
    harm?). (Ours.)
    """
    return Outcome(
        (
            Condition("sft+routed trigger", bench.sft, bench.trigger),
            Condition("base+routed trigger", bench.base, bench.trigger),
        )
    )


def longer_attack(bench: Bench, n_tokens: int = LONG_TRIGGER) -> Outcome:
    """Does plain SFT give way to a longer trigger?

    KL alone, 20 tokens. (Ours.)
    """
    return _on_sft(bench, "sft+trigger(long)", n_tokens=n_tokens)


def answer_attack(bench: Bench) -> Outcome:
    """Does plain SFT give way to a trigger that is trained on the base's answers alone?

    KL(B ‖ S + trigger) along the base's greedy answers, and nothing else. (Ours.)
    """
    return _on_sft(bench, "sft+trigger(answers)", w_kl=0.0, w_answer=1.0, answers_of="base")


def patient_attack(bench: Bench, more: int = MORE_STEPS) -> Outcome:
    """Does plain SFT give way to more optimisation?

    KL alone, ten times the steps, none of them saved. (Ours.)
    """
    return _on_sft(bench, "sft+trigger(patient)", steps=more * bench.eraser.steps, patience=None)


def strongest_attack(bench: Bench, n_tokens: int = LONG_TRIGGER, more: int = MORE_STEPS) -> Outcome:
    """Does plain SFT give way to all of these together?

    20 tokens, told the answers, ten times the steps. (Ours.)
    """
    return _on_sft(
        bench,
        "sft+trigger(strongest)",
        n_tokens=n_tokens,
        w_answer=1.0,
        answers_of="both",
        steps=more * bench.eraser.steps,
        patience=None,
    )


def _on_routed(bench: Bench, name: str, **changes: Any) -> Outcome:
    result = bench.train_trigger(bench.routed.model, bench.carrier, **changes)
    facts = {"validation": result.best_validation, "best_step": result.best_step}
    return Outcome((Condition(name, bench.routed.model, result.trigger),), facts)


def _on_sft(bench: Bench, name: str, **changes: Any) -> Outcome:
    result = bench.train_trigger(bench.sft, None, **changes)
    facts = {
        "n_tokens": result.trigger.n_tokens,
        "steps": len(result.history.step),
        "validation": result.best_validation,
        "best_step": result.best_step,
    }
    return Outcome((Condition(name, bench.sft, result.trigger),), facts)
