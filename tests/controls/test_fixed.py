"""Weights that train on under an imposed mask."""

import pytest
import torch

from lcdd_lens.backends import parameter_of
from lcdd_lens.errors import ConfigError
from lcdd_lens.routing import RoutedModel, RoutingMasks
from lcdd_lens.training import FixedGates, GateRule, OptimConfig, train_under_mask
from tests.models import Pair, random_flags, tiny_pair
from tests.training.helpers import DUNNO, PAD, echo_rows

OPTIM = OptimConfig(steps=25, lr=0.02, batch_size=8, warmup_steps=0)


@pytest.fixture
def pair() -> Pair:
    return tiny_pair("llama")


def test_fixed_gates_are_a_gate_rule_that_no_loss_and_no_gradient_moves(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    flags = random_flags(routed.n_gates)
    rule = FixedGates(RoutingMasks(routed.sites), flags)
    assert isinstance(rule, GateRule)
    for step in range(5):
        rule.gates(step).zero_()
        rule.update(1000.0, torch.full((routed.n_gates,), 1e6))
    assert torch.equal(rule.gates(9).bool(), flags)
    assert torch.equal(rule.masks.is_open(), flags)
    assert rule.budget.epsilon is None and rule.price == 0


def test_only_entries_between_open_gates_leave_the_base(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    flags = random_flags(routed.n_gates)
    history = train_under_mask(routed, flags, echo_rows(reply=DUNNO), OPTIM, pad_id=PAD, progress=False)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert torch.equal(routed.layout.join(routed.gates).bool(), flags)
    assert history["sparsity"] == pytest.approx([1 - float(flags.float().mean())] * OPTIM.steps)
    merged = routed.merged()
    for site in routed.weight_sites:
        moved = parameter_of(merged, site.parameter) != parameter_of(pair.base, site.parameter)
        for axis in site.axes:
            is_open = axis.expand_gate(flags[routed.layout.slices[axis.site.hook_name]].float()).bool()
            assert not bool((moved & ~is_open).any())


def test_with_no_gate_open_nothing_can_be_learnt(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    closed = torch.zeros(routed.n_gates, dtype=torch.bool)
    train_under_mask(routed, closed, echo_rows(), OPTIM, pad_id=PAD, progress=False)
    for site in routed.weight_sites:
        assert torch.equal(parameter_of(routed.merged(), site.parameter), parameter_of(pair.base, site.parameter))


def test_with_every_gate_open_the_pull_goes_to_the_base(pair: Pair) -> None:
    def distance(pull: float) -> float:
        routed = RoutedModel(tiny_pair("llama").sft, pair.base)
        config = OptimConfig(steps=25, lr=0.02, batch_size=8, warmup_steps=0, pull=pull)
        everything = torch.ones(routed.n_gates, dtype=torch.bool)
        train_under_mask(routed, everything, echo_rows(), config, pad_id=PAD, progress=False)
        base = routed.base_weights()
        return sum(float((weight - base[name]).square().sum()) for name, weight in routed.effective_weights().items())

    assert distance(10.0) < 0.5 * distance(0.0)


def test_a_mask_of_another_model_is_refused(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    with pytest.raises(ConfigError, match="3 flags for"):
        FixedGates(RoutingMasks(routed.sites), torch.ones(3, dtype=torch.bool))
