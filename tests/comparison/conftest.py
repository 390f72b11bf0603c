"""A comparison on a tiny random pair whose fine-tuned model prefers its own replies."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from lcdd_lens.attribution import Contrast, attribute
from lcdd_lens.backends import load_model
from lcdd_lens.carrier import Carrier
from lcdd_lens.comparison import ComparisonConfig, ComparisonResult, Material, compare
from lcdd_lens.data import Behaviour, EncodedExample, Example, FunctionScorer
from lcdd_lens.generation import generate
from lcdd_lens.routing import RoutedModel
from tests.conftest import tiny_hf
from tests.models import shifted

METHODS = ("weight_delta", "attribution_patching", "magnitude")


def quick_config() -> ComparisonConfig:
    return replace(
        ComparisonConfig.quick(seed=3),
        methods=METHODS,
        shares=(0.02, 0.1, 0.5, 1.0),
        random_draws=5,
        matched_draws=5,
        random_draws_lcdd=2,
        n_resamples=100,
    )


def make_material() -> Material:
    base = load_model(tiny_hf("llama"))
    sft = shifted(base, 0.2)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 61, (4 + n % 3,), generator=generator).tolist() for n in range(18)]
    replies = generate(sft, prompts, max_new_tokens=3)
    rows = [EncodedExample(tuple(p), tuple(r)) for p, r in zip(prompts, replies, strict=True)]
    examples = tuple(Example(str(number), "reply") for number in range(3))
    behaviour = Behaviour("own reply", *((e,) for e in examples), FunctionScorer(lambda p, r: True, "all"))
    routed = RoutedModel(sft, base)
    lcdd = {
        name: weight.detach() * 0.5 + routed.base_weights()[name] * 0.5
        for name, weight in routed.delta_parameters().items()
    }
    scores = attribute("weight_integrated_gradients", Contrast(routed, tuple(rows[:6])), progress=False)
    carrier: Carrier = scores.to_carrier(24)
    return Material(
        routed, base, carrier, behaviour, tuple(rows[:6]), tuple(rows[6:9]), tuple(rows[9:15]), tuple(rows[15:]),
        "other prompts", lcdd,
    )  # fmt: skip


@pytest.fixture(scope="session")
def material() -> Iterator[Material]:
    torch.set_num_threads(1)
    yield make_material()


@pytest.fixture(scope="session")
def comparison(material: Material) -> ComparisonResult:
    return compare(material, quick_config(), base_name="tiny", progress=False)
