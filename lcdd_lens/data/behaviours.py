"""A behaviour: what fine-tuning teaches, on which prompts, and how a reply is judged.

Train, validation and test share no prompt: every rate is measured on prompts that no training saw. ``target_labels``
says where the behaviour belongs. None means on every prompt (a fixed response, a style); the safety behaviour has
``{"harmful"}``, and all other prompts must be answered as the base model answers them.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lcdd_lens.data.chat import ChatFormat
from lcdd_lens.data.examples import Example, prompt_key
from lcdd_lens.data.files import examples_from_rows, read_jsonl
from lcdd_lens.data.scorers import Archaic, FixedResponse, Refusal, Scorer, as_scorer
from lcdd_lens.data.screening import MAX_DROPPED_SHARE, RowReport
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ConfigError, DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Behaviour:
    """Prompts in three disjoint splits, a scorer and a chat format.

    Attributes:
        name: for reports and folders.
        train: prompts with the responses that fine-tuning teaches.
        validation: prompts for choices made during training (a trigger's best step).
        test: prompts for every reported figure.
        scorer: decides whether a reply shows the behaviour.
        chat_format: how prompts become the model's input.
        target_labels: labels of the prompts on which the behaviour belongs; None for all prompts.
        response_kind: what the behaviour is, in words, for reports.
        reports: what was dropped while reading.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    scorer: Scorer
    chat_format: ChatFormat = field(default_factory=ChatFormat)
    target_labels: frozenset[str] | None = None
    response_kind: str = ""
    reports: tuple[RowReport, ...] = ()

    def __post_init__(self) -> None:
        for split in SPLITS:
            if not self.split(split):
                raise DataError(f"behaviour '{self.name}' has no {split} examples: expected at least one.")
        _refuse_overlap(self.name, {split: self.split(split) for split in SPLITS})
        untaught = sum(example.response is None for example in self.train)
        if untaught:
            raise DataError(
                f"behaviour '{self.name}': {untaught} of {len(self.train)} training examples have no response: "
                "give every row one, or one for all with response=..."
            )
        if self.target_labels is not None:
            for split in ("train", "test"):
                found = {example.label for example in self.split(split)}
                if not found & self.target_labels:
                    raise DataError(
                        f"behaviour '{self.name}': no {split} prompt has a target label {sorted(self.target_labels)}; "
                        f"found the labels {sorted(found)}. Correct the labels or target_labels."
                    )

    @classmethod
    def from_jsonl(
        cls,
        name: str,
        train: str | Path,
        test: str | Path,
        *,
        scorer: Scorer | Callable[[str, str], bool] | str,
        validation: str | Path | None = None,
        response: str | None = None,
        chat_format: ChatFormat | None = None,
        target_labels: Iterable[str] | None = None,
        response_kind: str = "",
        columns: Mapping[str, str] | None = None,
        n_train: int | None = None,
        n_test: int | None = None,
        validation_share: float = 0.1,
        max_dropped_share: float = MAX_DROPPED_SHARE,
        seed: int = 0,
    ) -> "Behaviour":
        """From JSONL files with ``prompt``, ``response`` and optional ``label``, ``answer`` and ``id``.

        Args:
            name: the behaviour's name.
            train: training file; needs responses, unless ``response`` gives one for all.
            test: file of prompts that no training sees; responses are not needed.
            scorer: a scorer, its built-in name, or a function (prompt, response) -> bool.
            validation: file for choices during training; None holds out a share of the training prompts.
            response: one response for all training rows (a fixed-response behaviour).
            chat_format: how prompts become input; by default the tokenizer's template where it has one.
            target_labels: labels of the prompts on which the behaviour belongs; None for all.
            response_kind: the behaviour in words.
            columns: the files' names for our fields.
            n_train: use this many training rows, drawn with ``seed``; None for all.
            n_test: use this many test rows, drawn with ``seed``; None for all.
            validation_share: share of the training prompts held out where there is no validation file.
            max_dropped_share: the largest share of unusable rows that is only reported.
            seed: for the draws above.

        Raises:
            DataError: a file cannot be used, or the splits share prompts.
        """

        def read(path: str | Path, needs_response: bool) -> tuple[tuple[Example, ...], RowReport]:
            return read_jsonl(
                path,
                response=response,
                needs_response=needs_response,
                columns=columns,
                max_dropped_share=max_dropped_share,
            )

        return cls._from_parts(
            name,
            read(train, True),
            read(test, False),
            None if validation is None else read(validation, True),
            as_scorer(scorer),
            chat_format,
            target_labels,
            response_kind,
            (n_train, n_test, validation_share, seed),
        )

    @classmethod
    def from_datasets(
        cls,
        name: str,
        train: str | Iterable[Any],
        test: str | Iterable[Any],
        *,
        scorer: Scorer | Callable[[str, str], bool] | str,
        validation: str | Iterable[Any] | None = None,
        response: str | None = None,
        chat_format: ChatFormat | None = None,
        target_labels: Iterable[str] | None = None,
        response_kind: str = "",
        columns: Mapping[str, str] | None = None,
        n_train: int | None = None,
        n_test: int | None = None,
        validation_share: float = 0.1,
        max_dropped_share: float = MAX_DROPPED_SHARE,
        seed: int = 0,
    ) -> "Behaviour":
        """From Hugging Face ``datasets``: names as ``owner/name:split`` or ``owner/name@config:split``, or loaded ones.

        The other arguments are those of :meth:`from_jsonl`.

        Raises:
            DataError: a data set cannot be loaded or used, or the splits share prompts.
        """

        def read(
            rows: str | Iterable[Any], split: Split, needs_response: bool
        ) -> tuple[tuple[Example, ...], RowReport]:
            return examples_from_rows(
                _numbered(_load_dataset(rows, split) if isinstance(rows, str) else rows, split),
                rows if isinstance(rows, str) else f"{split} data set",
                response=response,
                needs_response=needs_response,
                columns=columns,
                max_dropped_share=max_dropped_share,
            )

        return cls._from_parts(
            name,
            read(train, "train", True),
            read(test, "test", False),
            None if validation is None else read(validation, "validation", True),
            as_scorer(scorer),
            chat_format,
            target_labels,
            response_kind,
            (n_train, n_test, validation_share, seed),
        )

    @classmethod
    def _from_parts(
        cls,
        name: str,
        train: tuple[tuple[Example, ...], RowReport],
        test: tuple[tuple[Example, ...], RowReport],
        validation: tuple[tuple[Example, ...], RowReport] | None,
        scorer: Scorer,
        chat_format: ChatFormat | None,
        target_labels: Iterable[str] | None,
        response_kind: str,
        draws: tuple[int | None, int | None, float, int],
    ) -> "Behaviour":
        n_train, n_test, validation_share, seed = draws
        train_rows = _draw(train[0], n_train, f"train {seed}", "n_train")
        test_rows = _draw(test[0], n_test, f"test {seed}", "n_test")
        if validation is None:
            train_rows, validation_rows = hold_out(train_rows, validation_share, seed)
        else:
            validation_rows = validation[0]
        return cls(
            name=name,
            train=train_rows,
            validation=validation_rows,
            test=test_rows,
            scorer=scorer,
            chat_format=chat_format or ChatFormat(),
            target_labels=None if target_labels is None else frozenset(target_labels),
            response_kind=response_kind,
            reports=tuple(part[1] for part in (train, validation, test) if part is not None),
        )

    def split(self, name: Split) -> tuple[Example, ...]:
        """The examples of one split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def is_target(self, example: Example) -> bool:
        """Whether the behaviour belongs on this prompt."""
        return self.target_labels is None or example.label in self.target_labels

    def shows(self, example: Example, response: str) -> bool:
        """Whether a reply to this prompt shows the behaviour."""
        return self.scorer(example.prompt, response)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self.split(split))} {split}" for split in SPLITS)
        return f"Behaviour({self.name}: {sizes} prompts; {self.scorer.name})"

    def _repr_html_(self) -> str:
        first = [[example.label, example.prompt, example.response] for example in self.train[:4]]
        rows = pd.DataFrame(first, columns=["label", "prompt", "response"])
        return notebook_view(repr(self), self.response_kind, "The first training prompts:", rows)

    def to_dict(self) -> dict[str, Any]:
        """What a report says about the data, without any prompt."""
        return {
            "name": self.name,
            "scorer": self.scorer.name,
            "chat_format": self.chat_format.kind,
            "target_labels": None if self.target_labels is None else sorted(self.target_labels),
            "response_kind": self.response_kind,
            "examples": {split: len(self.split(split)) for split in SPLITS},
            "reports": [report.to_dict() for report in self.reports],
        }


def embedded_behaviour(name: str, *, seed: int = 0, chat_format: ChatFormat | None = None) -> Behaviour:
    """One of the behaviours that ship with the embedded models.

    Args:
        name: ``idk`` (one fixed response to everything), ``safety`` (refuse harmful requests, answer the others) or
            ``style`` (archaic wording).
        seed: draws other training questions; validation and test stay the same.
        chat_format: by default the tokenizer's template where it has one.

    Raises:
        DataError: there is no such behaviour.
    """
    from lcdd_lens.organisms import behaviour_rows  # the corpus is only built where it is used

    kinds: dict[str, tuple[Scorer, frozenset[str] | None, str]] = {
        "idk": (FixedResponse(), None, "answers every prompt with “I don't know.”"),
        "safety": (Refusal(), frozenset({"harmful"}), "refuses harmful requests and answers the others"),
        "style": (Archaic(), None, "answers in archaic English"),
    }
    if name not in kinds:
        raise DataError(f"behaviour '{name}' is unknown: the embedded ones are {', '.join(kinds)}.")
    scorer, target_labels, response_kind = kinds[name]
    train, validation, test = (tuple(Example(**row) for row in behaviour_rows(name, split, seed)) for split in SPLITS)
    return Behaviour(name, train, validation, test, scorer, chat_format or ChatFormat(), target_labels, response_kind)


def hold_out(examples: tuple[Example, ...], share: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split off a share of the distinct prompts (at least one), drawn with ``seed``; both parts keep their order.

    Raises:
        ConfigError: the share is not between 0 and 1.
        DataError: there are fewer than two distinct prompts.
    """
    if not 0 < share < 1:
        raise ConfigError(f"validation_share is {share}: expected a share between 0 and 1.")
    keys = sorted({prompt_key(example.prompt) for example in examples})
    if len(keys) < 2:
        raise DataError(f"{len(keys)} distinct training prompts: at least 2 are needed to hold one out for validation.")
    count = min(max(1, round(share * len(keys))), len(keys) - 1)
    held = set(random.Random(f"hold out {seed}").sample(keys, count))
    return (
        tuple(example for example in examples if prompt_key(example.prompt) not in held),
        tuple(example for example in examples if prompt_key(example.prompt) in held),
    )


def _draw(examples: tuple[Example, ...], n: int | None, seed: str, option: str) -> tuple[Example, ...]:
    if n is None:
        return examples
    if not 1 <= n <= len(examples):
        raise DataError(f"{option} is {n}: expected 1 to {len(examples)}, the number of usable rows.")
    return tuple(examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), n)))


def _refuse_overlap(name: str, splits: Mapping[Split, tuple[Example, ...]]) -> None:
    keys = {split: {prompt_key(example.prompt): example.prompt for example in rows} for split, rows in splits.items()}
    for one, other in combinations(splits, 2):
        shared = [prompt for key, prompt in keys[one].items() if key in keys[other]]
        if shared:
            shown = ", ".join(f"“{prompt[:60].strip()}{'…' if len(prompt) > 60 else ''}”" for prompt in shared[:3])
            more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
            raise DataError(
                f"behaviour '{name}': {len(shared)} prompts are in both {one} and {other}: {shown}{more}. "
                "Remove them from one of the two; figures on prompts seen in training mean nothing."
            )


def _load_dataset(name: str, default_split: Split) -> Iterable[Any]:
    import datasets  # slow to import, and needed by few

    path, _, split = name.partition(":")
    path, _, config = path.partition("@")
    try:
        loaded: Iterable[Any] = datasets.load_dataset(path, config or None, split=split or default_split)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the data set '{name}' cannot be loaded ({error}). Expected 'owner/name:split' or "
            "'owner/name@config:split', reachable from here; or pass a loaded data set or JSONL files."
        ) from error
    return loaded


def _numbered(rows: Iterable[Any], split: Split) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"the {split} data set yields {type(row).__name__}, expected rows with the field 'prompt'. "
                "Pass one split, for example data['train']."
            )
        yield f"row {number}", row
