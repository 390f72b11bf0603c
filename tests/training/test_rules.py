"""The paper's gate rule against the step computed by hand."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from lcdd_lens.backends import Site
from lcdd_lens.routing import HardConcrete, RoutingMasks
from lcdd_lens.training import BudgetConfig, DualConfig, DualController, GateRule, PenaltyRule

N = 12
SITES = (Site(0, "ffn_hidden", "blocks.0.mlp.hook_post", N),)


def make(*, steps: int = 20, settle: int = 5, warmup: int = 4, **options: Any) -> PenaltyRule:
    masks = RoutingMasks(SITES, init_mean=0.2, init_std=1.0, estimator=options.pop("estimator", None))
    budget = BudgetConfig(warmup_steps=warmup, floor=1.0)
    dual = DualConfig(initial=0.3, maximum=1.0, growth=0.2, shrink=0.5)
    return PenaltyRule(masks, DualController(budget, dual, steps, settle), lr=0.5, **options)


def slopes(step: int = 0) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(step))


def theta(rule: PenaltyRule) -> Tensor:
    return rule.masks.logits.detach().clone()


def sigma_slope(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits) * torch.sigmoid(-logits)


def test_gates_are_the_signs_of_theta_and_carry_no_graph() -> None:
    rule = make()
    gates = rule.gates(0)
    assert torch.equal(gates, (theta(rule) > 0).float())
    assert not gates.requires_grad


def test_theta_moves_by_plain_sgd_on_penalty_and_loss() -> None:
    rule = make()
    for step in range(10):
        before, weight, gradient = theta(rule), rule.controller.penalty_weight, slopes(step)
        rule.gates(step)
        rule.update(0.7, gradient)
        expected = before - 0.5 * sigma_slope(before) * (weight + gradient)
        assert torch.allclose(theta(rule), expected, atol=1e-7)


def test_the_penalty_warms_up() -> None:
    rule = make(warmup=4)
    before = theta(rule)
    rule.gates(0)
    rule.update(0.7, torch.zeros(N))
    assert torch.allclose(theta(rule), before - 0.5 * (0.3 / 4) * sigma_slope(before), atol=1e-7)


def test_without_the_loss_gradient_only_the_penalty_moves_theta() -> None:
    rule, blind = make(use_loss_gradient=False), make(use_loss_gradient=False)
    for step in range(8):
        rule.gates(step)
        rule.update(0.7, slopes(step))
        blind.gates(step)
        blind.update(0.7, torch.full((N,), 1e3))
    assert torch.equal(theta(rule), theta(blind))
    assert not torch.equal(theta(rule), theta(make()))


def test_adam_equalises_what_sgd_ranks() -> None:
    gradient = torch.logspace(-3, 3, N)
    moves = {}
    for optimiser in ("sgd", "adam"):
        rule = make(optimiser=optimiser)
        before = theta(rule)
        rule.gates(0)
        rule.update(0.7, gradient)
        moves[optimiser] = (before - theta(rule)).abs()
    assert float(moves["adam"].max() / moves["adam"].min()) < 1.01
    assert float(moves["sgd"].max() / moves["sgd"].min()) > 1e3


def test_settling_freezes_theta_and_hardens_the_gates() -> None:
    rule = make(estimator=HardConcrete())
    for step in range(15):
        assert rule.phase != "settling"
        rule.gates(step)
        rule.update(0.7, slopes(step))
    frozen = theta(rule)
    for step in range(15, 20):
        assert rule.phase == "settling"
        assert torch.equal(rule.gates(step), rule.masks.is_open().float())
        rule.update(0.7, slopes(step))
    assert torch.equal(theta(rule), frozen)


def test_the_dual_variable_follows_the_loss() -> None:
    rule = make()
    for _ in range(4):
        rule.update(1.0, slopes())
    before = rule.price
    rule.update(0.2, slopes())
    assert rule.price > before


def test_stochastic_gates_are_a_function_of_seed_and_step() -> None:
    rule, again = make(estimator=HardConcrete(), seed=3), make(estimator=HardConcrete(), seed=3)
    assert torch.equal(rule.gates(7), again.gates(7))
    assert not torch.equal(rule.gates(7), rule.gates(8))
    assert not torch.equal(rule.gates(7), make(estimator=HardConcrete(), seed=4).gates(7))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("interrupted_at", [2, 9, 17])
def test_a_restored_rule_goes_on_bit_by_bit(optimiser: str, interrupted_at: int) -> None:
    def play(rule: PenaltyRule, first: int, last: int) -> None:
        for step in range(first, last):
            rule.gates(step)
            rule.update(0.5 + step / 10, slopes(step))

    whole, start, resumed = (make(optimiser=optimiser, estimator=HardConcrete()) for _ in range(3))
    play(whole, 0, 20)
    play(start, 0, interrupted_at)
    with torch.no_grad():
        resumed.masks.logits.zero_()
    resumed.load({name: t.clone() for name, t in start.tensors().items()}, json.loads(json.dumps(start.state())))
    play(resumed, interrupted_at, 20)
    assert torch.equal(theta(resumed), theta(whole))
    assert resumed.state() == whole.state()


def test_the_rule_is_a_gate_rule() -> None:
    assert isinstance(make(), GateRule)
