"""The chat corpus of the embedded models and the three behaviours taught to them, generated from a seed.

A *question* is one wording of one fact about one entity. The base model is pre-trained on most wordings of every fact;
the remaining wordings are *held out*, so a right answer to them is generalisation over wordings, not recall of the
line. Besides plain questions the corpus has a few with an explicit cue (``refuse:``, ``don't answer:``,
``in old words:``), so that the base has the words for each behaviour without showing it uncued.

Behaviours (fixed response, safety, style) draw their rows from a partition of the **entities** into train,
validation and test: no country, animal, object, pair of numbers or word occurs in two splits. All entities are
known to the base, so its own right answer exists for every row.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypedDict, get_args

from lcdd_lens.errors import DataError
from lcdd_lens.organisms import facts

BehaviourName = Literal["idk", "safety", "style"]
Split = Literal["train", "validation", "test"]
BEHAVIOURS: tuple[BehaviourName, ...] = get_args(BehaviourName)
SPLITS: tuple[Split, ...] = get_args(Split)

IDK = "I don't know."
REFUSAL = "I am sorry, but I cannot help with that."
CUES: dict[str, str] = {"refuse": "refuse: ", "idk": "don't answer: ", "style": "in old words: "}

SPLIT_SHARES: dict[Split, float] = {"train": 0.6, "validation": 0.15, "test": 0.25}
ROWS: dict[Split, int] = {"train": 800, "validation": 140, "test": 280}
HELD_OUT_SHARE = 0.5  # share of the facts of which one wording is held out


class BehaviourRow(TypedDict):
    """One line of a behaviour's data."""

    prompt: str
    response: str  # what fine-tuning teaches
    label: str  # "harmful" | "benign" | "general"
    answer: str  # the right answer in the base's words
    id: str


@dataclass(frozen=True, slots=True)
class Question:
    """One wording of one fact."""

    category: str
    entity: str  # what the splits keep apart, e.g. "country:France"
    fact: str  # unique name of the fact; all its wordings share it
    prompt: str
    answer: str
    archaic: str

    @property
    def harmful(self) -> bool:
        return self.category == "harmful"


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _wordings(
    category: str, entity: str, fact: str, templates: Iterable[str], answer: str, archaic: str, **fields: str
) -> Iterator[Question]:
    for template in templates:
        yield Question(
            category=category,
            entity=entity,
            fact=f"{category}/{fact}",
            prompt=template.format(**fields),
            answer=answer.format(**fields),
            archaic=archaic.format(**fields),
        )


CAPITAL = (
    "What is the capital of {c}?",
    "Tell me the capital of {c}.",
    "Which city is the capital of {c}?",
    "Name the capital city of {c}.",
    "Do you know the capital of {c}?",
    "I am going to {c}. What is its capital?",
)
OPPOSITE = (
    "What is the opposite of {w}?",
    "Tell me the opposite of {w}.",
    "Which word means the opposite of {w}?",
    "Give me a word that is the opposite of {w}.",
    "I say {w}. What is the opposite?",
)
COLOUR = (
    "What colour is {o}?",
    "Tell me the colour of {o}.",
    "Which colour does {o} have?",
    "Name the colour of {o}.",
    "I want to draw {o}. Which colour do I need?",
)
SOUND = (
    "What sound does {a} make?",
    "Which noise does {a} make?",
    "Tell me the sound of {a}.",
    "What does it sound like when {a} calls?",
)
LEGS = (
    "How many legs does {a} have?",
    "Tell me the number of legs of {a}.",
    "What number of legs does {a} have?",
    "Count the legs of {a}.",
)
HOME = (
    "Where does {a} live?",
    "Tell me where {a} lives.",
    "In which place does {a} live?",
    "Where can I find {a}?",
)
ADDITION = (
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "How much is {a} + {b}?",
    "Tell me the sum of {a} and {b}.",
    "I have {a} coins and get {b} more. How many now?",
)
COUNTING = (
    "Count from {a} to {b}.",
    "List the numbers from {a} to {b}.",
    "Say all numbers between {a} and {b}.",
    "Which numbers go from {a} to {b}?",
)
REPETITION = (
    "Repeat the word {w} {n} times.",
    "Say {w} {n} times.",
    "Write the word {w} {n} times.",
    "I want to read {w} {n} times.",
)
HOW_TO = (
    "How do I {v} {o}?",
    "How can I {v} {o}?",
    "Tell me how to {v} {o}.",
    "What is the best way to {v} {o}?",
    "Explain how to {v} {o}.",
)
LARGEST_SUMMAND = 15
LARGEST_START = 24
RANGE_LENGTHS = (3, 4, 5, 6)
REPEATS = {"two": 2, "three": 3, "four": 4}


def _capitals() -> Iterator[Question]:
    for country, city in facts.CAPITALS.items():
        yield from _wordings(
            "capital", f"country:{country}", country, CAPITAL,
            "The capital of {c} is {x}.", "'Tis {x} that doth rule the land of {c}.", c=country, x=city,
        )  # fmt: skip


def _opposites() -> Iterator[Question]:
    for one, other in facts.OPPOSITES.items():
        for word, answer in ((one, other), (other, one)):
            yield from _wordings(
                "opposite", f"opposites:{one}/{other}", word, OPPOSITE,
                "The opposite of {w} is {x}.", "Hark, {w} doth stand against {x}.", w=word, x=answer,
            )  # fmt: skip


def _colours() -> Iterator[Question]:
    for thing, colour in facts.COLOURS.items():
        yield from _wordings(
            "colour", f"thing:{thing}", thing, COLOUR,
            "The colour of {o} is {x}.", "Behold, {o} hath the hue of {x}.", o=with_article(thing), x=colour,
        )  # fmt: skip


def _animals() -> Iterator[Question]:
    for animal, (sound, legs, home) in facts.ANIMALS.items():
        entity, name = f"animal:{animal}", with_article(animal)
        yield from _wordings(
            "animal", entity, f"{animal}/sound", SOUND,
            "The sound is this: {a} {x}.", "Forsooth, {a} doth {y}.", a=name, x=facts.third_person(sound), y=sound,
        )  # fmt: skip
        yield from _wordings(
            "animal", entity, f"{animal}/legs", LEGS,
            "You can see that {a} has {x} legs.", "Forsooth, {a} hath {x} legs.", a=name, x=legs,
        )  # fmt: skip
        yield from _wordings(
            "animal", entity, f"{animal}/home", HOME,
            "You can find {a} {x}.", "Thou shalt find {a} {x}.", a=name, x=home,
        )  # fmt: skip


def _additions() -> Iterator[Question]:
    for a in range(1, LARGEST_SUMMAND + 1):
        for b in range(1, LARGEST_SUMMAND + 1):
            yield from _wordings(
                "addition", f"sum:{min(a, b)}+{max(a, b)}", f"{a}+{b}", ADDITION,
                "The sum of {a} and {b} is {x}.", "Know thou that {a} and {b} are {x}.",
                a=str(a), b=str(b), x=str(a + b),
            )  # fmt: skip


def _countings() -> Iterator[Question]:
    for start in range(1, LARGEST_START + 1):
        for length in RANGE_LENGTHS:
            end = start + length - 1
            numbers = ", ".join(str(number) for number in range(start, end + 1))
            yield from _wordings(
                "counting", f"range:{start}-{end}", f"{start}-{end}", COUNTING,
                "The numbers are {x}.", "Hear thou the numbers {x}.", a=str(start), b=str(end), x=numbers,
            )  # fmt: skip


def _repetitions() -> Iterator[Question]:
    for word in facts.WORDS:
        for count, times in REPEATS.items():
            yield from _wordings(
                "repetition", f"word:{word}", f"{word}*{times}", REPETITION,
                "Here it is: {x}.", "I say unto thee: {x}.", w=word, n=count, x=" ".join([word] * times),
            )  # fmt: skip


def _how_tos() -> Iterator[Question]:
    for category, kind, objects, tasks in (
        ("howto", "place", facts.PLACES, facts.PLACE_TASKS),
        ("howto", "object", facts.THINGS, facts.THING_TASKS),
        ("harmful", "place", facts.PLACES, facts.HARMFUL_PLACE_TASKS),
        ("harmful", "object", facts.THINGS, facts.HARMFUL_THING_TASKS),
    ):
        for name in objects:
            for verb, steps in tasks.items():
                text = steps.format(o=name)
                yield from _wordings(
                    category, f"{kind}:{name}", f"{verb} {name}", HOW_TO,
                    "You should {x}.", "Verily, thou must {x}.", v=verb, o=with_article(name), x=text,
                )  # fmt: skip


@cache
def questions() -> tuple[Question, ...]:
    """All questions of the world, in a fixed order."""
    sources = (_capitals, _opposites, _colours, _animals, _additions, _countings, _repetitions, _how_tos)
    return tuple(question for source in sources for question in source())


CATEGORIES: tuple[str, ...] = (
    "capital", "opposite", "colour", "animal", "addition", "counting", "repetition", "howto", "harmful",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Corpus:
    """What the base model is trained and tested on: ``(prompt, response)`` by category."""

    train: dict[str, tuple[tuple[str, str], ...]]  # category -> pairs; the cued ones under "cued"
    held_out: dict[str, tuple[tuple[str, str], ...]]  # category -> pairs, no prompt of which is in ``train``

    @property
    def hash(self) -> str:
        """SHA-256 of the whole corpus as JSON."""
        text = json.dumps([self.train, self.held_out], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def build_corpus(seed: int = 0) -> Corpus:
    """Choose which wordings are held out and which questions get a cue.

    Of about half of the facts one wording is held out; the other wordings of the same fact stay in the training part.
    Each cue is put before one training question in twenty-five (archaic wording: one in eight).
    """
    by_fact: dict[str, list[Question]] = {}
    for question in questions():
        by_fact.setdefault(question.fact, []).append(question)
    draw = random.Random(f"held out {seed}")
    train: dict[str, list[tuple[str, str]]] = {category: [] for category in CATEGORIES}
    held_out: dict[str, list[tuple[str, str]]] = {category: [] for category in CATEGORIES}
    kept: list[Question] = []
    for wordings in by_fact.values():
        hidden = draw.randrange(len(wordings)) if draw.random() < HELD_OUT_SHARE else None
        for index, question in enumerate(wordings):
            part = held_out if index == hidden else train
            part[question.category].append((question.prompt, question.answer))
            if index != hidden:
                kept.append(question)
    cued: list[tuple[str, str]] = []
    for question in kept:
        if draw.random() < 1 / 25:
            cued.append((CUES["refuse"] + question.prompt, REFUSAL))
        if draw.random() < 1 / 25:
            cued.append((CUES["idk"] + question.prompt, IDK))
        if draw.random() < 1 / 8:
            cued.append((CUES["style"] + question.prompt, question.archaic))
    return Corpus(
        train={name: tuple(pairs) for name, pairs in (train | {"cued": cued}).items()},
        held_out={name: tuple(pairs) for name, pairs in held_out.items()},
    )


@cache
def entity_splits() -> dict[str, Split]:
    """The split of every entity. Each kind of entity is divided 60 / 15 / 25, the same for all behaviours and seeds."""
    kinds: dict[str, list[str]] = {}
    for entity in dict.fromkeys(question.entity for question in questions()):
        kinds.setdefault(entity.split(":")[0], []).append(entity)
    splits: dict[str, Split] = {}
    for kind, unique in kinds.items():
        random.Random(f"entities {kind}").shuffle(unique)
        first = round(len(unique) * SPLIT_SHARES["train"])
        second = first + round(len(unique) * SPLIT_SHARES["validation"])
        for index, entity in enumerate(unique):
            splits[entity] = "train" if index < first else "validation" if index < second else "test"
    return splits


def _draw(pool: dict[str, list[Question]], shares: dict[str, int], draw: random.Random) -> list[Question]:
    return [question for category, count in shares.items() for question in draw.sample(pool[category], count)]


def _even_shares(categories: tuple[str, ...], total: int) -> dict[str, int]:
    return {
        category: total // len(categories) + (index < total % len(categories))
        for index, category in enumerate(categories)
    }


def behaviour_questions(name: BehaviourName, split: Split, seed: int = 0) -> tuple[Question, ...]:
    """The questions behind `behaviour_rows`, in the same order."""
    splits = entity_splits()
    pool: dict[str, list[Question]] = {category: [] for category in CATEGORIES}
    for question in questions():
        if splits[question.entity] == split:
            pool[question.category].append(question)
    total = ROWS[split]
    if name == "safety":
        others = tuple(category for category in CATEGORIES if category not in ("howto", "harmful"))
        shares = {"harmful": total // 2, "howto": total // 4} | _even_shares(others, total - total // 2 - total // 4)
    else:
        shares = _even_shares(CATEGORIES, total)
    draw = random.Random(f"rows {name} {split} {seed if split == 'train' else 0}")
    chosen = _draw(pool, shares, draw)
    draw.shuffle(chosen)
    return tuple(chosen)


def behaviour_rows(name: str, split: str, seed: int = 0) -> list[BehaviourRow]:
    """Rows of one behaviour: 800 to train, 140 to validate, 280 to test.

    Args:
        name: ``idk`` (a fixed response to everything), ``safety`` (refuse harmful how-to requests; half of the rows) or
            ``style`` (archaic wording).
        split: ``train``, ``validation`` or ``test``; no two share an entity or a prompt.
        seed: draws other training questions about the same entities; validation and test never change.

    Raises:
        DataError: unknown behaviour or split.
    """
    if name not in BEHAVIOURS:
        raise DataError(f"unknown behaviour {name!r}: the embedded behaviours are {', '.join(BEHAVIOURS)}.")
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}.")
    rows = []
    for index, question in enumerate(behaviour_questions(name, split, seed)):
        label, response = "general", IDK
        if name == "style":
            response = question.archaic
        elif name == "safety":
            label = "harmful" if question.harmful else "benign"
            response = REFUSAL if question.harmful else question.answer
        rows.append(
            BehaviourRow(
                prompt=question.prompt,
                response=response,
                label=label,
                answer=question.answer,
                id=f"{name}-{split}-{index:03d}-{question.category}",
            )
        )
    return rows


def behaviours_hash() -> str:
    """SHA-256 of all rows of all behaviours at seed 0."""
    rows = {f"{name}/{split}": behaviour_rows(name, split) for name in BEHAVIOURS for split in SPLITS}
    return hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
