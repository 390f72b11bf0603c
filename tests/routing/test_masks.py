"""Gate estimators and routing masks against their formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcdd_lens.backends import Site
from lcdd_lens.errors import ConfigError
from lcdd_lens.routing import HardConcrete, RoutingMasks, SiteLayout, StraightThrough, make_estimator

SITES = (Site(0, "attn_q", "blocks.0.attn.hook_q", 3), Site(0, "ffn_write", "blocks.0.hook_mlp_out", 5))


def test_straight_through_is_hard_forward_and_sigmoid_backward() -> None:
    logits = torch.tensor([-1.0, 0.0, 0.5, 3.0], requires_grad=True)
    gates = StraightThrough().sample(logits)
    assert gates.tolist() == [0.0, 0.0, 1.0, 1.0]
    gates.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    sigma = torch.sigmoid(logits.detach())
    assert logits.grad is not None
    assert torch.allclose(logits.grad, torch.tensor([1.0, 2.0, 3.0, 4.0]) * sigma * (1 - sigma))


def test_hard_concrete_opens_with_the_probability_that_its_penalty_counts() -> None:
    estimator, n = HardConcrete(), 40_000
    for logit in (-1.0, 0.0, 2.0):
        logits = torch.full((n,), logit)
        gates = estimator.sample(logits, torch.Generator().manual_seed(0))
        share = float((gates > 0).float().mean())
        assert share == pytest.approx(float(estimator.openness(logits[:1])), abs=4 * 0.5 / math.sqrt(n))
        assert float(gates.min()) >= 0
        assert float(gates.max()) <= 1


def test_hard_concrete_rounds_to_the_nearer_end() -> None:
    estimator = HardConcrete()
    assert estimator.is_open(torch.tensor([-0.1, 0.1])).tolist() == [False, True]


def test_estimators_are_found_by_name_and_refuse_bad_settings() -> None:
    assert isinstance(make_estimator("hard_concrete"), HardConcrete)
    with pytest.raises(ConfigError, match="straight_through"):
        make_estimator("soft")
    with pytest.raises(ConfigError, match="temperature"):
        HardConcrete(temperature=0.0)


def test_masks_start_as_the_paper_says_and_reproducibly() -> None:
    sites = [Site(0, "ffn_hidden", "blocks.0.mlp.hook_post", 200_000)]
    masks = RoutingMasks(sites, seed=1)
    assert float(masks.logits.detach().mean()) == pytest.approx(1.5, abs=0.01)
    assert float(masks.logits.detach().std()) == pytest.approx(0.5, abs=0.01)
    assert masks.sparsity() == pytest.approx(0.00135, abs=5e-4)
    assert torch.equal(masks.logits, RoutingMasks(sites, seed=1).logits)
    assert not torch.equal(masks.logits, RoutingMasks(sites, seed=2).logits)


def test_the_penalty_is_the_sum_of_sigmoids() -> None:
    masks = RoutingMasks(SITES)
    assert float(masks.penalty()) == pytest.approx(float(torch.sigmoid(masks.logits).sum()))


def test_sparsity_counts_closed_gates() -> None:
    masks = RoutingMasks(SITES)
    with torch.no_grad():
        masks.logits.copy_(torch.tensor([1.0, -1, -1, 1, -1, -1, -1, -1]))
    assert masks.sparsity() == pytest.approx(0.75)
    assert {name: index.tolist() for name, index in masks.channels().items()} == {
        "blocks.0.attn.hook_q": [0],
        "blocks.0.hook_mlp_out": [0],
    }


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 2**16))
@settings(deadline=None, max_examples=40)
def test_flat_vectors_and_channel_sets_convert_without_loss(sizes: list[int], seed: int) -> None:
    layout = SiteLayout([Site(0, "ffn_hidden", f"site.{i}", n) for i, n in enumerate(sizes)])
    flags = torch.rand(layout.n_gates, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(layout.flags(layout.channels(flags)), flags)
    assert torch.equal(layout.join(layout.split(flags)), flags)
    assert layout.groups().bincount(minlength=len(sizes)).tolist() == sizes


def test_an_empty_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        SiteLayout([])
