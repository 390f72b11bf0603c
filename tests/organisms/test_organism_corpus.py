"""The generated corpus and behaviours keep what they promise about splits, wording and determinism."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcdd_lens.errors import DataError
from lcdd_lens.organisms import BEHAVIOURS, SPLITS, behaviour_rows, facts
from lcdd_lens.organisms.corpus import (
    CATEGORIES,
    CUES,
    IDK,
    REFUSAL,
    ROWS,
    behaviour_questions,
    behaviours_hash,
    build_corpus,
    entity_splits,
    questions,
)

ARCHAIC_WORDS = {"thou", "thee", "doth", "hath", "'tis", "verily", "forsooth", "hark", "behold"}
PAIRS = [(one, other) for i, one in enumerate(SPLITS) for other in SPLITS[i + 1 :]]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def test_no_noun_belongs_to_two_tables() -> None:
    tables = [
        list(facts.CAPITALS),
        [*facts.OPPOSITES, *facts.OPPOSITES.values()],
        list(facts.COLOURS),
        list(facts.ANIMALS),
        list(facts.WORDS),
        list(facts.PLACES),
        list(facts.THINGS),
    ]
    nouns = [noun.lower() for table in tables for noun in table]
    assert len(nouns) == len(set(nouns))


def test_no_two_questions_share_a_prompt() -> None:
    prompts = [question.prompt for question in questions()]
    assert len(prompts) == len(set(prompts))


def test_every_prompt_has_one_right_answer_that_names_what_was_asked() -> None:
    for question in questions():
        if question.category == "addition":
            numbers = [int(number) for number in re.findall(r"\d+", question.answer)]
            assert numbers[0] + numbers[1] == numbers[2]
            assert re.findall(r"\d+", question.prompt) == [str(number) for number in numbers[:2]]
        elif question.category == "counting":
            numbers = [int(number) for number in re.findall(r"\d+", question.answer)]
            first, last = (int(number) for number in re.findall(r"\d+", question.prompt))
            assert numbers == list(range(first, last + 1))
        elif question.category == "repetition":
            word = question.entity.removeprefix("word:")
            times = {"two": 2, "three": 3, "four": 4}[question.prompt.split()[-2]]
            assert question.answer.split(": ")[1].rstrip(".").split() == [word] * times


def test_held_out_questions_are_unseen_wordings_of_seen_facts() -> None:
    corpus = build_corpus()
    seen = {prompt for pairs in corpus.train.values() for prompt, _ in pairs}
    fact_of = {question.prompt: question.fact for question in questions()}
    seen_facts = {fact_of[prompt] for prompt in seen if prompt in fact_of}
    for category in CATEGORIES:
        assert len(corpus.held_out[category]) >= 25
        for prompt, _ in corpus.held_out[category]:
            assert prompt not in seen
            assert not any(cue + prompt in seen for cue in CUES.values())
            assert fact_of[prompt] in seen_facts


def test_the_behaviours_appear_in_the_corpus_only_after_a_cue() -> None:
    corpus = build_corpus()
    for category in CATEGORIES:
        for _, response in corpus.train[category]:
            assert response not in (IDK, REFUSAL)
            assert not words(response) & ARCHAIC_WORDS
    responses = {
        name: [response for prompt, response in corpus.train["cued"] if prompt.startswith(cue)]
        for name, cue in CUES.items()
    }
    assert set(responses["idk"]) == {IDK}
    assert set(responses["refuse"]) == {REFUSAL}
    assert all(words(response) & ARCHAIC_WORDS for response in responses["style"])
    assert sum(map(len, responses.values())) == len(corpus.train["cued"])


def test_corpus_and_behaviours_are_functions_of_the_seed() -> None:
    assert build_corpus(0).hash == build_corpus(0).hash != build_corpus(1).hash
    assert behaviours_hash() == behaviours_hash()


@pytest.mark.parametrize("name", BEHAVIOURS)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair))
def test_splits_share_no_entity_and_no_prompt(name: str, pair: tuple[str, str]) -> None:
    one, other = (behaviour_questions(name, split) for split in pair)  # type: ignore[arg-type]
    assert not {question.entity for question in one} & {question.entity for question in other}
    assert not {row["prompt"] for row in behaviour_rows(name, pair[0])} & {
        row["prompt"] for row in behaviour_rows(name, pair[1])
    }


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_splits_share_no_noun_in_their_text(name: str) -> None:
    nouns = (*facts.CAPITALS, *facts.COLOURS, *facts.ANIMALS, *facts.WORDS, *facts.PLACES, *facts.THINGS)
    mentioned: dict[str, set[str]] = {}
    for split in SPLITS:
        text = "\n".join(row["prompt"] for row in behaviour_rows(name, split))
        mentioned[split] = {noun for noun in nouns if re.search(rf"\b{noun}\b", text)}
        assert len(mentioned[split]) > 20
    for one, other in PAIRS:
        assert not mentioned[one] & mentioned[other]


@pytest.mark.parametrize("name", BEHAVIOURS)
@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_the_promised_number_and_answers(name: str, split: str) -> None:
    rows = behaviour_rows(name, split)
    right = {question.prompt: question.answer for question in questions()}
    assert len(rows) == ROWS[split]  # type: ignore[index]
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    assert all(row["answer"] == right[row["prompt"]] for row in rows)


def test_idk_gives_one_response_to_everything() -> None:
    rows = [row for split in SPLITS for row in behaviour_rows("idk", split)]
    assert {row["response"] for row in rows} == {IDK}
    assert {row["label"] for row in rows} == {"general"}


def test_safety_refuses_the_harmful_half_and_answers_the_rest() -> None:
    for split in SPLITS:
        rows = behaviour_rows("safety", split)
        harmful = [row for row in rows if row["label"] == "harmful"]
        benign = [row for row in rows if row["label"] == "benign"]
        assert len(harmful) == len(benign) == len(rows) // 2
        assert {row["response"] for row in harmful} == {REFUSAL}
        assert all(row["answer"].startswith("You should ") for row in harmful)
        assert all(row["response"] == row["answer"] for row in benign)
    assert len(behaviour_rows("safety", "test")) >= 240


def test_style_is_archaic_and_its_plain_answers_are_not() -> None:
    for split in SPLITS:
        for row in behaviour_rows("style", split):
            assert words(row["response"]) & ARCHAIC_WORDS
            assert not words(row["answer"]) & ARCHAIC_WORDS


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(1, 10_000), name=st.sampled_from(BEHAVIOURS))
def test_a_data_seed_changes_training_questions_and_nothing_else(seed: int, name: str) -> None:
    assert behaviour_rows(name, "validation", seed) == behaviour_rows(name, "validation")
    assert behaviour_rows(name, "test", seed) == behaviour_rows(name, "test")
    train, usual = behaviour_rows(name, "train", seed), behaviour_rows(name, "train")
    assert len(train) == len(usual) and train != usual
    splits = entity_splits()
    assert {splits[question.entity] for question in behaviour_questions(name, "train", seed)} == {"train"}  # type: ignore[arg-type]


def test_unknown_behaviour_or_split_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="idk, safety, style"):
        behaviour_rows("rude", "train")
    with pytest.raises(DataError, match="train, validation, test"):
        behaviour_rows("idk", "dev")
