"""Toy data and small routed models for training tests."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lcdd_lens.backends import LensModel, backend_of
from lcdd_lens.data import EncodedExample, EncodedSet
from lcdd_lens.data.sampling import BatchSampler
from lcdd_lens.data.screening import RowReport
from tests.conftest import VOCABULARY

PAD, BOS, EOS, ASK = 0, 1, 2, 3
DUNNO = 60


def encoded(rows: list[tuple[list[int], list[int]]]) -> EncodedSet:
    """Rows of prompt and response ids as the training loop takes them."""
    examples = tuple(EncodedExample(tuple(prompt), tuple(response)) for prompt, response in rows)
    return EncodedSet(examples, RowReport("toy rows", len(rows)))


def ragged_rows(n: int = 23, seed: int = 0) -> EncodedSet:
    """Random prompts and responses of random lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()

    lengths = torch.randint(1, 6, (n, 2), generator=generator).tolist()
    return encoded([([BOS, *draw(prompt)], [*draw(response), EOS]) for prompt, response in lengths])


def echo_rows(n: int = 60, seed: int = 0, *, reply: int | None = None) -> EncodedSet:
    """ "x y ?" answered by "y", or by one fixed token."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(4, DUNNO, (n, 2), generator=generator).tolist()
    return encoded([([BOS, x, y, ASK], [y if reply is None else reply, EOS]) for x, y in pairs])


def answers(model: LensModel, data: EncodedSet) -> Tensor:
    """The token that the model puts after each prompt."""
    tokens = torch.tensor(data.prompts)
    with torch.no_grad():
        picked: Tensor = backend_of(model).logits(model, tokens, torch.ones_like(tokens))[:, -1].argmax(-1)
    return picked


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Call ``act`` when the training loop asks for the rows of one step."""
    original = BatchSampler.indices

    def indices(self: BatchSampler, asked: int) -> list[int]:
        if asked == step:
            act()
        return original(self, asked)

    monkeypatch.setattr(BatchSampler, "indices", indices)
