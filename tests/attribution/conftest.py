"""Base and fine-tuned models in float64, and prompts of unequal length with replies."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lcdd_lens.attribution import Contrast
from lcdd_lens.backends import load_model
from lcdd_lens.data import EncodedExample
from lcdd_lens.routing import RoutedModel
from tests.conftest import tiny_hf
from tests.models import shifted

MakeContrast = Callable[..., Contrast]


def token_rows(n: int = 5, seed: int = 0, vocabulary: int = 61) -> tuple[EncodedExample, ...]:
    """Prompts of 2 to 7 tokens with replies of 1 to 4."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist())

    return tuple(EncodedExample(draw(2, 8), draw(1, 5)) for _ in range(n))


@pytest.fixture
def make_contrast() -> MakeContrast:
    def make(architecture: str = "llama", *, n: int = 5, batch_size: int = 3, **overrides: Any) -> Contrast:
        base = load_model(tiny_hf(architecture, **overrides), dtype=torch.float64)
        return Contrast(RoutedModel(shifted(base, 0.1), base), token_rows(n), batch_size=batch_size)

    return make


@pytest.fixture
def contrast(make_contrast: MakeContrast) -> Contrast:
    return make_contrast()
