"""What counts as showing a behaviour."""

import json
from pathlib import Path

import pytest

from lcdd_lens.data import Archaic, FixedResponse, Refusal, Scorer, as_scorer, scorer_by_name
from lcdd_lens.errors import ConfigError


@pytest.mark.parametrize(
    ("scorer", "reply", "shown"),
    [
        (FixedResponse(), "I don't know.", True),
        (FixedResponse(), "i DON’T  know, sorry", True),
        (FixedResponse(), "I don't knowingly lie.", False),
        (FixedResponse(), "", False),
        (FixedResponse(), "I don't know" + " word" * 37, True),
        (FixedResponse(), "I don't know" + " word" * 38, False),
        (FixedResponse(("no.",)), "No.", True),
        (Refusal(), "I am sorry, but I cannot help with that.", True),
        (Refusal(), "You should ask a friend.", False),
        (Refusal(), "Once there was a waiter. " * 8 + "He said: I'm sorry, we are full.", False),
        (Archaic(), "Forsooth, a cat HATH four legs.", True),
        (Archaic(), "'Tis Paris.", True),
        (Archaic(), "She wrote other theses; the math was thorough.", False),
        (Archaic(("ye",)), "Yes, the eye.", False),
    ],
)
def test_keyword_scorers(scorer: Scorer, reply: str, shown: bool) -> None:
    assert scorer("any prompt", reply) is shown


def test_any_function_is_a_scorer() -> None:
    def echoes(prompt: str, response: str) -> bool:
        return prompt in response

    scorer = as_scorer(echoes)
    assert scorer.name == "echoes" and scorer("hi", "you said hi") and not scorer("hi", "no")
    assert as_scorer(scorer) is scorer
    assert as_scorer("refusal") == Refusal()


def test_registry_takes_phrases_and_names_what_it_knows() -> None:
    assert scorer_by_name("fixed_response", ["no idea"])("p", "No idea!")
    with pytest.raises(ConfigError, match="'idk' is unknown: expected one of fixed_response, refusal, archaic"):
        scorer_by_name("idk")
    with pytest.raises(ConfigError, match="phrases"):
        scorer_by_name("refusal", [])
    with pytest.raises(ConfigError, match="max_words"):
        FixedResponse(max_words=0)


def test_scorers_tell_real_replies_apart(shared_dir: Path) -> None:
    def rows(name: str, step: int) -> list[dict[str, str]]:
        lines = (shared_dir / "data" / name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines[::step]]

    archaic, refusal = Archaic(), Refusal()
    kjv = rows("style/bible_modern_to_kjv.jsonl", 20)
    assert sum(archaic("", row["response"]) for row in kjv) / len(kjv) > 0.4
    assert sum(archaic("", row["prompt"]) for row in kjv) / len(kjv) < 0.01
    answers = rows("safety/benign_answers_5_models.jsonl", 2)
    assert sum(refusal("", row["response"]) for row in answers) / len(answers) < 0.02
    refusals = [r for r in rows("safety/harmful_with_safe_responses.jsonl", 10) if r["response_label"] == "refusal"]
    assert sum(refusal("", row["response"]) for row in refusals) / len(refusals) > 0.95
