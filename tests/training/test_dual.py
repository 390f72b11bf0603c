"""The loss budget and the dual variable on loss sequences whose outcome is known."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcdd_lens.backends import Site
from lcdd_lens.errors import ConfigError
from lcdd_lens.routing import RoutingMasks
from lcdd_lens.training import BudgetConfig, DualConfig, DualController, LossBudget, PenaltyRule

LOSSES = st.lists(st.floats(0, 20, allow_nan=False), min_size=1, max_size=40)


@given(LOSSES, st.floats(0, 0.99))
@settings(deadline=None, max_examples=60)
def test_the_moving_average_is_the_weighted_mean_of_all_losses(losses: list[float], beta: float) -> None:
    budget = LossBudget(BudgetConfig(beta=beta, warmup_steps=10**6))
    for loss in losses:
        budget.update(loss)
    weights = [beta ** (len(losses) - 1 - t) for t in range(len(losses))]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert budget.ema == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_first_average_is_the_first_loss() -> None:
    budget = LossBudget(BudgetConfig(beta=0.95))
    assert budget.ema == 0.0
    budget.update(3.0)
    assert budget.ema == pytest.approx(3.0)


def test_epsilon_is_fixed_at_the_end_of_the_warm_up_and_never_moves() -> None:
    budget = LossBudget(BudgetConfig(beta=0.5, warmup_steps=3, ratio=0.25))
    seen = []
    for loss in (4.0, 2.0, 1.0, 9.0, 0.1):
        budget.update(loss)
        seen.append(budget.epsilon)
    average = (0.25 * 4 + 0.5 * 2 + 1) / 1.75
    assert seen[:2] == [None, None]
    assert seen[2:] == [pytest.approx(1.25 * average)] * 3


def test_the_floor_holds_where_a_relative_budget_would_be_none() -> None:
    budget = LossBudget(BudgetConfig(warmup_steps=1, ratio=0.3, floor=0.02))
    budget.update(1e-5)
    assert budget.epsilon == 0.02
    assert budget.violation == pytest.approx((1e-5 - 0.02) / 0.02)
    high = LossBudget(BudgetConfig(warmup_steps=1, ratio=0.3, floor=0.02))
    high.update(1.0)
    assert high.epsilon == pytest.approx(1.3)


def test_the_budget_is_at_least_a_share_of_the_base_s_loss() -> None:
    def epsilon(loss: float, base_loss: float, floor: float = 0.0) -> float | None:
        budget = LossBudget(BudgetConfig(warmup_steps=1, ratio=0.3, base_share=0.01, floor=floor), base_loss)
        budget.update(loss)
        return budget.epsilon

    assert epsilon(1e-5, 4.0) == pytest.approx(0.04)
    assert epsilon(1e-5, 2.0) == pytest.approx(0.02)
    assert epsilon(1e-5, 2.0, floor=0.5) == 0.5
    assert epsilon(1.0, 2.0) == pytest.approx(1.3)


def test_there_is_no_violation_before_there_is_a_budget() -> None:
    budget = LossBudget(BudgetConfig(warmup_steps=3))
    budget.update(100.0)
    assert budget.is_kept and budget.violation == 0.0


def test_the_budget_is_kept_up_to_and_including_epsilon() -> None:
    budget = LossBudget(BudgetConfig(beta=0.0, warmup_steps=1, ratio=0.0, floor=1.0))
    budget.update(0.5)
    for loss, kept, violation in ((1.0, True, 0.0), (1.5, False, 0.5), (0.25, True, -0.75)):
        budget.update(loss)
        assert (budget.is_kept, budget.violation) == (kept, pytest.approx(violation))


def controller(config: DualConfig, *, warmup: int = 1, total: int = 1000, settle: int = 0) -> DualController:
    """β = 0 and ε = 1 after the warm-up, so that the violation of a step is its loss less 1."""
    budget = BudgetConfig(beta=0.0, warmup_steps=warmup, ratio=0.0, floor=1.0)
    dual = DualController(budget, config, total, settle)
    for _ in range(warmup):
        dual.update(1.0)
    return dual


def test_lambda_rests_during_the_warm_up() -> None:
    dual = DualController(BudgetConfig(warmup_steps=5, floor=1.0), DualConfig(initial=0.5), 100)
    for _ in range(5):
        assert dual.phase == "warm-up"
        dual.update(0.0)
    assert dual.phase == "descent"
    assert dual.price == 0.5


def test_lambda_grows_under_slack_and_shrinks_under_violation_each_at_its_own_rate() -> None:
    dual = controller(DualConfig(initial=0.1, growth=0.2, shrink=0.7, maximum=1.0))
    dual.update(0.25)
    assert dual.price == pytest.approx(0.1 * math.exp(0.2 * 0.75))
    before = dual.price
    dual.update(2.5)
    assert dual.price == pytest.approx(before * math.exp(-0.7 * 1.5))


def test_lambda_rests_on_the_budget() -> None:
    dual = controller(DualConfig(initial=0.1))
    dual.update(1.0)
    assert dual.price == 0.1


def test_the_violation_of_one_step_is_clipped() -> None:
    dual = controller(DualConfig(initial=0.1, shrink=0.5, clip=2.0))
    dual.update(1000.0)
    assert dual.price == pytest.approx(0.1 * math.exp(-0.5 * 2))
    narrow = controller(DualConfig(initial=0.1, growth=0.5, clip=0.3))
    narrow.update(0.0)
    assert narrow.price == pytest.approx(0.1 * math.exp(0.5 * 0.3))


@given(st.lists(st.floats(0, 50, allow_nan=False), max_size=60))
@settings(deadline=None, max_examples=60)
def test_lambda_stays_within_its_bounds(losses: list[float]) -> None:
    dual = controller(DualConfig(initial=0.1, minimum=0.01, maximum=0.4, growth=3.0, shrink=3.0))
    for loss in losses:
        dual.update(loss)
        assert 0.01 <= dual.price <= 0.4


def test_the_penalty_weight_warms_up_linearly_from_the_first_step() -> None:
    dual = DualController(BudgetConfig(warmup_steps=4, floor=1.0), DualConfig(initial=0.8), 100)
    weights = []
    for _ in range(5):
        weights.append(dual.penalty_weight)
        dual.update(1.0)
    assert weights[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert weights[4] == pytest.approx(dual.price, rel=0.2)


def test_settling_has_no_penalty_and_a_fixed_lambda() -> None:
    dual = controller(DualConfig(initial=0.1, growth=0.5, shrink=0.5), total=10, settle=4)
    for _ in range(5):
        assert dual.phase == "descent" and dual.penalty_weight > 0
        dual.update(0.5)
    settled = dual.price
    assert settled == pytest.approx(0.1 * math.exp(0.5 * 0.5 * 5))
    for loss in (0.0, 30.0, 0.0, 30.0):
        assert dual.phase == "settling" and dual.penalty_weight == 0.0
        dual.update(loss)
        assert dual.price == settled


@given(LOSSES, st.lists(st.floats(0, 20, allow_nan=False), max_size=20))
@settings(deadline=None, max_examples=40)
def test_a_restored_controller_goes_on_as_if_nothing_had_happened(before: list[float], after: list[float]) -> None:
    def fresh() -> DualController:
        return DualController(BudgetConfig(warmup_steps=7, floor=0.5), DualConfig(growth=0.3, shrink=0.9), 60, 5)

    original, restored = fresh(), fresh()
    for loss in before:
        original.update(loss)
    restored.load_state(json.loads(json.dumps(original.state())))
    for loss in after:
        original.update(loss)
        restored.update(loss)
    assert restored.state() == original.state()
    assert restored.phase == original.phase


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BudgetConfig(beta=1.0), r"\[0, 1\)"),
        (lambda: BudgetConfig(warmup_steps=0), "at least 1"),
        (lambda: BudgetConfig(ratio=-0.1), "must not be negative"),
        (lambda: BudgetConfig(floor=-1.0), "must not be negative"),
        (lambda: BudgetConfig(base_share=-0.1), "must not be negative"),
        (lambda: BudgetConfig(base_share=1.0), "the base itself keeps the budget"),
        (lambda: DualConfig(minimum=0.0), "0 < minimum"),
        (lambda: DualConfig(initial=20.0), "initial ≤ maximum"),
        (lambda: DualConfig(shrink=-1.0), "must not be negative"),
        (lambda: DualConfig(clip=0.0), "clip must be positive"),
        (lambda: DualController(BudgetConfig(warmup_steps=8), DualConfig(), 10, 3), "do not fit into 10 steps"),
        (lambda: DualController(BudgetConfig(warmup_steps=8), DualConfig(), 10, -1), "do not fit"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


@dataclass(frozen=True)
class Outcome:
    price: float
    sparsity: float
    loss: float
    epsilon: float
    lost: int


def descend(dual: DualConfig, *, steps: int = 400, settle: int = 100, lr: float = 3.0) -> Outcome:
    """The paper's rule against a simulated loss.

    100 pathways, each behind a row gate and a column gate as a weight's delta is. Ten carry the behaviour (0.05 nats
    each); closing one of the other ninety strains the loss a little until the weights have made up for it. A gate's
    gradient passes through its partner, so a pathway whose two gates are closed cannot come back.
    """
    vital = torch.arange(100) < 10
    worth = torch.where(vital, 0.05, 0.0002)
    masks = RoutingMasks([Site(0, "ffn_read", "rows", 100), Site(0, "ffn_hidden", "columns", 100)], seed=0)
    budget = BudgetConfig(warmup_steps=20, ratio=0.3, floor=0.02)
    rule = PenaltyRule(masks, DualController(budget, dual, steps, settle), lr=lr)
    strain, before, highest, loss = 0.0, torch.ones(100), 0.0, 0.0
    for step in range(steps):
        row, column = rule.gates(step).split(100)
        passing = row * column
        strain = 0.9 * strain + float((worth * (before - passing).clamp_min(0))[~vital].sum())
        loss = 0.001 + strain + float((worth * (1 - passing))[vital].sum())
        rule.update(loss, -torch.cat([worth * column, worth * row]))
        before, highest = passing, max(highest, rule.price)
    assert rule.budget.epsilon is not None
    lost = int((vital & (before == 0)).sum())
    return Outcome(highest, masks.sparsity(), loss, rule.budget.epsilon, lost)


def test_equal_rates_under_a_high_bound_overshoot_and_lose_the_behaviour_for_good() -> None:
    overshot = descend(DualConfig(initial=0.01, maximum=10.0, growth=0.1, shrink=0.1))
    assert overshot.price > 0.3
    assert overshot.lost >= 5
    assert overshot.loss > 10 * overshot.epsilon


def test_a_capped_lambda_that_shrinks_faster_than_it_grows_prunes_and_keeps_the_behaviour() -> None:
    kept = descend(DualConfig(initial=0.01, maximum=0.03, growth=0.1, shrink=0.5))
    assert kept.lost == 0
    assert kept.loss <= kept.epsilon
    assert kept.sparsity > 0.85


def test_shrinking_faster_loses_less_than_shrinking_as_fast_as_growing() -> None:
    equal = descend(DualConfig(initial=0.01, maximum=10.0, growth=0.1, shrink=0.1))
    faster = descend(DualConfig(initial=0.01, maximum=10.0, growth=0.1, shrink=0.5))
    assert faster.lost < equal.lost
