"""All conditions on one set of prompts: who is compared with whom, on which prompts, over how many draws."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lcdd_lens.backends.base import LensModel
from lcdd_lens.data import Behaviour, ChatFormat, EncodedSet, Example, encode
from lcdd_lens.eraser import random_token_trigger
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.evaluation import Condition, EvaluationResult, evaluate_conditions, random_condition, response_kl
from lcdd_lens.generation import generate
from lcdd_lens.routing import RoutedModel

Versions = Callable[[int], list[LensModel]]
NEW = 6


def behaviour(answers: bool = False, targets: bool = False) -> Behaviour:
    """Judged by an arbitrary rule, so that random models show it sometimes."""
    test = tuple(
        Example(
            f"prompt {letter * (index % 4)}",
            label="harmful" if index % 3 == 0 else "benign",
            answer="never this" if answers and index % 2 else None,
            id=f"e{index}",
        )
        for index, letter in enumerate("abcdefghij")
    )
    return Behaviour(
        "toy",
        (Example("train", "r", "harmful"),),
        (Example("validation", "r"),),
        test,
        scorer=_has_an_early_letter,
        chat_format=ChatFormat("plain"),
        target_labels=frozenset({"harmful"}) if targets else None,
    )


class _EarlyLetter:
    name = "early letter"

    def __call__(self, prompt: str, response: str) -> bool:
        return any(letter in response for letter in "abcdefghijk")


_has_an_early_letter = _EarlyLetter()


def encoded(model: LensModel, of: Behaviour) -> EncodedSet:
    return encode(model.tokenizer, of.chat_format, of.test, 40, with_responses=False, max_new_tokens=NEW, reserve=3)


def evaluate(conditions: list[Condition], of: Behaviour, **options: Any) -> EvaluationResult:
    prompts = encoded(conditions[0].model, of)
    return evaluate_conditions(conditions, of, prompts, max_new_tokens=NEW, progress=False, **options)


def test_base_and_sft_are_measured_against_each_other(versions: Versions) -> None:
    base, sft = versions(2)
    result = evaluate([Condition("base", base), Condition("sft", sft), Condition("copy", base)], behaviour())
    for name in ("base", "copy"):
        assert result.estimate("agreement", name).value == 1 == result.estimate("agreement_token", name).value
        assert result.estimate("kl", name).value == 0
    assert result.estimate("kl_from_sft", "sft").value == 0
    assert result.estimate("kl", "sft").value > 0 < result.estimate("kl_from_sft", "base").value
    assert result.estimate("agreement", "sft").value < 1
    assert result.answers["base"] == result.answers["copy"] != result.answers["sft"]


def test_divergences_are_taken_on_the_fine_tuned_models_replies(versions: Versions) -> None:
    base, sft, other = versions(3)
    of = behaviour()
    prompts = encoded(base, of)
    result = evaluate([Condition("base", base), Condition("sft", sft), Condition("x", other)], of, kl_batch_size=3)
    eos = base.tokenizer.eos_token_id
    replies = generate(sft, prompts.prompts, max_new_tokens=NEW, eos_token_id=eos)
    rows = [row.with_response([*r, eos] if len(r) < NEW else r) for row, r in zip(prompts, replies, strict=True)]
    for metric, reference in (("kl", base), ("kl_from_sft", sft)):
        expected = response_kl(reference, other, rows).numpy()
        np.testing.assert_allclose(result.per_prompt(metric, "x")[0], expected, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


def test_a_context_holds_while_its_condition_is_measured_and_only_then(versions: Versions) -> None:
    base, sft = versions(2)
    routed = RoutedModel(versions(2)[1], base)
    result = evaluate(
        [
            Condition("base", base),
            Condition("sft", sft),
            Condition("routed", routed.model),
            Condition("closed", routed.model, context=routed.all_closed),
        ],
        behaviour(),
        batch_size=4,
        kl_batch_size=4,
    )
    assert result.answers["routed"] == result.answers["sft"] and result.answers["closed"] == result.answers["base"]
    assert result.estimate("kl_from_sft", "routed").value == 0 == result.estimate("kl", "closed").value
    assert float(next(iter(routed.gates.values())).min()) == 1


def test_contexts_are_left_when_measuring_fails(versions: Versions) -> None:
    base, sft = versions(2)
    seen: list[str] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        seen.append("in")
        try:
            yield
        finally:
            seen.append("out")

    trigger = random_token_trigger(base, 40)
    with pytest.raises(ConfigError, match="needs"):
        evaluate([Condition("base", base), Condition("sft", sft), Condition("x", sft, trigger, context)], behaviour())
    assert seen == ["in", "out"]


def test_draws_of_a_control_give_their_mean_and_the_worst(versions: Versions) -> None:
    base, sft = versions(2)
    control = random_condition("routed+random", sft, random_token_trigger(sft, 2, placement="after_bos"), draws=3)
    assert [draw.n_tokens for draw in control.draws if draw is not None] == [2, 2, 2] and control.n_tokens == 2
    result = evaluate([Condition("base", base), Condition("sft", sft), control], behaviour())
    singles = [
        evaluate([Condition("base", base), Condition("sft", sft), Condition("one", sft, draw)], behaviour())
        for draw in control.draws
    ]
    for metric, worst in (("behaviour_rate", min), ("agreement_token", min), ("kl", max)):
        values = [single.estimate(metric, "one").value for single in singles]  # type: ignore[arg-type]
        pooled = result.estimate(metric, "routed+random")  # type: ignore[arg-type]
        assert pooled.value == pytest.approx(np.mean(values)) and pooled.worst == pytest.approx(worst(values))
        assert (pooled.n, pooled.draws) == (30, 3)
    assert result.estimate("behaviour_rate", "sft").worst is None
    assert "worst" in result.estimate("kl", "routed+random").to_dict()
    assert set(result.estimate("kl", "sft").to_dict()) == {"value", "n", "interval"}


def test_target_labels_decide_which_prompts_a_figure_stands_on(versions: Versions) -> None:
    base, sft = versions(2)
    conditions = [Condition("base", base), Condition("sft", sft)]
    split, whole = evaluate(conditions, behaviour(targets=True)), evaluate(conditions, behaviour())
    harmful = np.array([index % 3 == 0 for index in range(10)])
    shown, agreement = whole.values["shown"]["sft"][0], whole.values["agreement"]["sft"][0]
    assert split.estimate("behaviour_rate", "sft").value == pytest.approx(shown[harmful].mean())
    assert split.estimate("over_rate", "sft").value == pytest.approx(shown[~harmful].mean())
    assert split.estimate("utility", "sft").value == pytest.approx(agreement[~harmful].mean())
    assert split.estimate("recovered", "sft").value == pytest.approx(agreement[harmful].mean())
    assert split.estimate("kl", "sft").value == pytest.approx(whole.values["kl"]["sft"][0][harmful].mean())
    assert whole.estimate("behaviour_rate", "sft").n == whole.estimate("utility", "sft").n == 10
    assert "over_rate" not in whole.to_dict() and "recovered" not in whole.to_dict()
    with pytest.raises(ConfigError, match="'over_rate' of 'sft' is unknown"):
        whole.estimate("over_rate", "sft")


def test_utility_is_task_accuracy_where_prompts_have_answers(versions: Versions) -> None:
    base, sft = versions(2)
    conditions = [Condition("base", base), Condition("sft", sft)]
    answered = evaluate(conditions, behaviour(answers=True))
    assert answered.utility_kind == "task accuracy"
    assert (answered.estimate("utility", "base").value, answered.estimate("utility", "base").n) == (0, 5)
    plain = evaluate(conditions, behaviour())
    assert plain.utility_kind == "agreement" and plain.estimate("utility", "base").value == 1
    assert answered.verdict("base") == plain.verdict("base")


def test_results_are_strict_json_and_tables(versions: Versions) -> None:
    base, sft = versions(2)
    result = evaluate([Condition("base", base), Condition("sft", sft)], behaviour(targets=True), seed=3)
    content = json.loads(json.dumps(result.to_dict(n_samples=4), allow_nan=False))
    for metric in result.metrics():
        for name in ("base", "sft"):
            low, high = content[metric][name]["interval"]
            assert low <= content[metric][name]["value"] <= high
    assert set(content["verdict"]) == {"sft"}
    labels = [sample["label"] for sample in content["samples"]]
    assert sorted(labels) == ["benign", "benign", "harmful", "harmful"]
    sample = content["samples"][0]
    index = next(i for i, example in enumerate(result.examples) if example.id == sample["id"])
    assert sample["answers"] == {name: result.answers[name][index] for name in ("base", "sft")}
    assert len(result.to_dataframe()) == 2 * len(result.metrics())
    assert len(result.prompts_dataframe()) == 2 * 10
    assert "behaviour_rate" in result._repr_html_() and "sft" in repr(result)


def test_comparisons_pair_prompts_and_correct_for_their_number(versions: Versions) -> None:
    base, sft = versions(2)
    result = evaluate([Condition("base", base), Condition("sft", sft)], behaviour())
    alone = result.compare([("kl", "sft", "base")])[0]
    two = result.compare([("kl", "sft", "base"), ("agreement", "base", "base")])
    expected = result.estimate("kl", "sft").value - result.estimate("kl", "base").value
    assert alone.difference.value == pytest.approx(expected)
    assert alone.adjusted_p == alone.difference.p_value < 0.05
    assert two[0].adjusted_p == pytest.approx(2 * alone.difference.p_value) and two[1].adjusted_p == 1


def test_unusable_sets_of_conditions_are_refused(versions: Versions) -> None:
    base, sft = versions(2)
    with pytest.raises(ConfigError, match="lack 'sft'"):
        evaluate([Condition("base", base)], behaviour())
    with pytest.raises(ConfigError, match="every name must occur once"):
        evaluate([Condition("base", base), Condition("base", sft)], behaviour())
    with pytest.raises(ConfigError, match="has no draws"):
        Condition("none", base, ())
    several = random_condition("sft", sft, random_token_trigger(sft, 1), draws=2)
    with pytest.raises(ConfigError, match="'sft' has several draws"):
        evaluate([Condition("base", base), several], behaviour())
    of = behaviour(targets=True)
    benign = encode(base.tokenizer, of.chat_format, of.test[1:3], 40, with_responses=False, max_new_tokens=NEW)
    with pytest.raises(DataError, match="no prompt has a target label"):
        evaluate_conditions([Condition("base", base), Condition("sft", sft)], of, benign, max_new_tokens=NEW)
    base.tokenizer = None
    with pytest.raises(ConfigError, match="no tokenizer"):
        evaluate_conditions([Condition("base", base), Condition("sft", sft)], of, encoded(sft, of), max_new_tokens=NEW)
