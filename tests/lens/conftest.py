"""A base, a fine-tuned and a routed version of a tiny model, a trigger, and prompts of different lengths."""

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import PreTrainedModel

from lcdd_lens.backends import backend_of, load_model
from lcdd_lens.carrier import Carrier
from lcdd_lens.eraser import random_token_trigger
from lcdd_lens.eraser.soft_prompt import Placement
from lcdd_lens.lens import SideBySide
from lcdd_lens.routing import RoutedModel
from tests.models import random_flags, shifted

PROMPTS = [[1, 9, 14], [1, 7, 22, 31, 40, 5, 18], [1, 33], [1, 12, 50, 8, 27], [1, 44, 45, 46, 3, 59], [1, 20, 30, 11]]

MakeSide = Callable[..., SideBySide]


@pytest.fixture
def make_side(make_hf: Callable[..., PreTrainedModel]) -> Iterator[MakeSide]:
    routed: list[RoutedModel] = []

    def make(
        architecture: str = "llama",
        placement: Placement = "before_bos",
        batch_size: int = 4,
        backend: str | None = None,
    ) -> SideBySide:
        base = load_model(make_hf(architecture), backend=backend)
        # Moved enough that every reply begins with another token.
        sft = shifted(base, 0.5)
        routed.append(RoutedModel(backend_of(sft).clone(sft), base))
        flags = random_flags(routed[-1].n_gates)
        carrier = Carrier.from_masks(_masks(routed[-1], flags), base)
        routed[-1].open_only(carrier.channels)
        trigger = random_token_trigger(base, 2, seed=1, placement=placement)
        return SideBySide.from_models(base, sft, routed[-1], carrier, trigger, PROMPTS, batch_size=batch_size)

    yield make
    for model in routed:
        model.detach()


def _masks(routed: RoutedModel, flags: torch.Tensor) -> "object":
    from lcdd_lens.routing.masks import RoutingMasks

    masks = RoutingMasks(routed.sites)
    with torch.no_grad():
        masks.logits.copy_(flags.float() - 0.5)
    return masks
