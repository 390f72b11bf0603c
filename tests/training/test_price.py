"""Channel pricing on problems whose sensitivities are known."""

import json
import math

import pytest
import torch
from torch import Tensor

from lcdd_lens.backends import Site
from lcdd_lens.errors import ConfigError
from lcdd_lens.routing import RoutingMasks
from lcdd_lens.training import BudgetConfig, GateRule, PriceConfig, PriceRule

N = 100
SITES = (Site(0, "ffn_hidden", "blocks.0.mlp.hook_post", 60), Site(1, "ffn_hidden", "blocks.1.mlp.hook_post", 40))
GOOD, BAD = 0.001, 5.0
SLOPES = torch.linspace(-1, 1, N)[torch.randperm(N, generator=torch.Generator().manual_seed(1))]
"""∂L/∂m of every gate: a gate's sensitivity is its size, whatever its sign."""


def make(
    config: PriceConfig | None = None, *, steps: int = 400, settle: int = 50, warmup: int = 10, seed: int = 0
) -> PriceRule:
    # β = 0: the budget (ε = 0.1) judges the last loss alone.
    budget = BudgetConfig(beta=0.0, warmup_steps=warmup, ratio=0.0, floor=0.1)
    return PriceRule(RoutingMasks(SITES), budget, config or PriceConfig(), steps, settle, seed=seed)


def feed(rule: PriceRule, loss: float, steps: int, slopes: Tensor = SLOPES) -> list[int]:
    """Open gates after each step."""
    counts = []
    for _ in range(steps):
        rule.update(loss, slopes)
        counts.append(int(rule.gates(0).sum()))
    return counts


def test_every_gate_is_open_until_the_budget_is_known() -> None:
    rule = make(PriceConfig(every=6))
    assert rule.gates(0).tolist() == [1.0] * N
    assert feed(rule, GOOD, 10) == [N] * 10
    assert rule.price == 0.0


def test_a_price_rise_closes_exactly_the_least_sensitive_gates() -> None:
    rule = make(PriceConfig(every=6, share=0.2))
    feed(rule, GOOD, 12)
    closed = set((rule.gates(0) == 0).nonzero().flatten().tolist())
    assert closed == set(SLOPES.abs().argsort()[:20].tolist())


def test_open_gates_fall_geometrically_by_the_share() -> None:
    rule = make(PriceConfig(every=5, share=0.1))
    counts = feed(rule, GOOD, 60)
    expected, n = [], N
    for step in range(1, 61):
        if step >= 10 and step % 5 == 0:
            n -= max(1, round(0.1 * n))
        expected.append(n)
    assert counts == expected


def test_the_last_open_gate_is_never_closed() -> None:
    rule = make(PriceConfig(every=1, share=0.5))
    assert min(feed(rule, GOOD, 300)) == 1


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75])
def test_the_ascent_ends_at_the_sparsity_that_is_asked_for(sparsity: float) -> None:
    rule = make(PriceConfig(every=1, share=0.1, max_sparsity=sparsity))
    counts = feed(rule, GOOD, 300)
    assert counts[-1] == N - round(sparsity * N)
    assert counts == sorted(counts, reverse=True)


def test_sensitivity_is_a_moving_average_of_the_slope_relative_to_its_root_mean_square() -> None:
    rule = make(PriceConfig(decay=0.9))
    first, second = SLOPES, 100 * SLOPES.flip(0)
    rule.update(GOOD, first)
    rule.update(GOOD, second)
    rms = math.sqrt(float((SLOPES**2).mean()))
    expected = (0.9 * first.abs() + 0.1 * SLOPES.flip(0).abs()) / rms
    assert torch.allclose(rule.tensors()["price.saliency"], expected, atol=1e-6)


def test_no_slope_at_all_is_no_error() -> None:
    rule = make()
    feed(rule, GOOD, 30, torch.zeros(N))
    assert bool(torch.isfinite(rule.masks.logits).all())


def test_the_sign_of_theta_is_the_gate() -> None:
    rule = make()
    generator = torch.Generator().manual_seed(2)
    for step in range(300):
        rule.update(BAD if step % 70 > 50 else GOOD, SLOPES * torch.rand(N, generator=generator))
        assert torch.equal(rule.masks.is_open().float(), rule.gates(step))
    assert 0 < rule.masks.sparsity() < 1


def test_theta_ranks_open_gates_by_the_logarithm_of_sensitivity_over_price() -> None:
    rule = make(PriceConfig(every=6, share=0.2))
    feed(rule, GOOD, 12)
    sensitivity = SLOPES.abs() / SLOPES.square().mean().sqrt()
    price = float(sensitivity.sort().values[19])
    assert rule.price == pytest.approx(price, rel=1e-5)
    is_open = rule.gates(0) == 1
    expected = (sensitivity / price).log()
    assert torch.allclose(rule.masks.logits[is_open], expected[is_open], atol=1e-5)


def test_the_price_waits_while_the_budget_is_broken() -> None:
    rule = make(PriceConfig(every=5, patience=100))
    before = feed(rule, GOOD, 20)[-1]
    assert set(feed(rule, BAD, 100)) == {before}
    assert feed(rule, GOOD, 5)[-1] < before


def test_one_bad_batch_within_a_kept_budget_also_waits() -> None:
    budget = BudgetConfig(beta=0.999, warmup_steps=10, ratio=0.0, floor=0.1)
    rule = PriceRule(RoutingMasks(SITES), budget, PriceConfig(every=1, batch_slack=2.0, patience=1000), 400, 0)
    feed(rule, GOOD, 40)
    n = int(rule.gates(0).sum())
    assert feed(rule, 0.21, 1) == [n]
    assert rule.budget.is_kept
    assert feed(rule, 0.19, 1)[0] < n


def test_after_patience_failures_the_last_rise_is_undone_and_the_share_halved() -> None:
    rule = make(PriceConfig(every=5, share=0.2, patience=3))
    feed(rule, GOOD, 10)
    first, price = rule.gates(0), rule.price
    feed(rule, GOOD, 5)
    assert int(rule.gates(0).sum()) == 64 and rule.price > price
    assert feed(rule, BAD, 14)[-1] == 64
    feed(rule, BAD, 1)
    assert torch.equal(rule.gates(0), first)
    assert rule.price == price
    assert feed(rule, GOOD, 5)[-1] == 80 - 8


def test_the_share_grows_back_with_every_rise_that_the_budget_bears() -> None:
    rule = make(PriceConfig(every=1, share=0.2, patience=1, regrowth=1.5))
    assert feed(rule, GOOD, 10)[-1] == 80
    assert feed(rule, BAD, 1)[-1] == 100
    # After the failure the share is 0.1, then 0.15, then 0.2 again and no more.
    assert feed(rule, GOOD, 4) == [90, 90 - 14, 76 - 15, 61 - 12]


def test_gates_outside_the_chosen_layers_close_with_the_warm_up_and_never_open_again() -> None:
    rule = make(PriceConfig(every=1, share=0.2, patience=1, layers=(1,)))
    assert feed(rule, GOOD, 9)[-1] == N
    feed(rule, GOOD, 5)
    feed(rule, BAD, 50)
    assert rule.gates(0)[:60].sum() == 0
    assert rule.gates(0)[60:].sum() == 40


def test_within_layers_every_layer_loses_the_same_share_whatever_its_sensitivity() -> None:
    slopes = torch.cat([SLOPES[:60] * 1e-3, SLOPES[60:]])
    rule = make(PriceConfig(every=1, share=0.2, scope="layer"))
    feed(rule, GOOD, 10, slopes)
    assert rule.gates(0)[:60].sum() == 48 and rule.gates(0)[60:].sum() == 32
    closed = (rule.gates(0)[60:] == 0).nonzero().flatten().tolist()
    assert set(closed) == set(slopes[60:].abs().argsort()[:8].tolist())


def test_failures_must_come_in_a_row() -> None:
    rule = make(PriceConfig(every=1, patience=3, share=0.1))
    feed(rule, GOOD, 10)
    for _ in range(10):
        before = feed(rule, BAD, 2)[-1]
        assert feed(rule, GOOD, 1)[-1] < before


def test_falling_back_twice_undoes_two_rises() -> None:
    rule = make(PriceConfig(every=1, share=0.2, patience=1))
    assert feed(rule, GOOD, 11) == [N] * 9 + [80, 64]
    assert feed(rule, BAD, 3) == [80, 100, 100]
    assert rule.price == 0.0


def test_ascent_ends_below_the_smallest_share() -> None:
    rule = make(PriceConfig(every=1, share=0.2, min_share=0.06, patience=1))
    feed(rule, GOOD, 10)
    feed(rule, BAD, 2)
    assert len(set(feed(rule, GOOD, 100))) == 1


def test_settling_undoes_the_last_rise_and_then_nothing_moves() -> None:
    rule = make(PriceConfig(every=5, share=0.1), steps=50, settle=20)
    counts = feed(rule, GOOD, 50)
    assert rule.phase == "settling"
    before_the_last_rise, after_it, settled = counts[23], counts[28], counts[29]
    assert after_it < before_the_last_rise
    assert settled == before_the_last_rise
    assert len(set(counts[29:])) == 1


def test_settling_also_ignores_a_broken_budget() -> None:
    rule = make(PriceConfig(every=1, patience=1), steps=100, settle=50)
    feed(rule, GOOD, 50)
    before = rule.gates(0)
    feed(rule, BAD, 50)
    assert torch.equal(rule.gates(0), before)


def test_random_order_closes_as_many_gates_but_ignores_their_sensitivity() -> None:
    config = PriceConfig(share=0.2, order="random")
    one, other = make(config), make(config)
    assert feed(one, GOOD, 60) == feed(other, GOOD, 60, SLOPES.flip(0)) == feed(make(PriceConfig(share=0.2)), GOOD, 60)
    assert torch.equal(one.gates(0), other.gates(0))
    reseeded = make(config, seed=1)
    feed(reseeded, GOOD, 60)
    assert not torch.equal(one.gates(0), reseeded.gates(0))
    by_sensitivity = make(PriceConfig(share=0.2))
    feed(by_sensitivity, GOOD, 60)
    assert not torch.equal(one.gates(0), by_sensitivity.gates(0))


def test_pricing_needs_no_luck() -> None:
    one, other = make(seed=0), make(seed=5)
    with torch.no_grad():
        other.masks.logits.normal_()
    feed(one, GOOD, 100)
    feed(other, GOOD, 100)
    assert torch.equal(one.masks.logits, other.masks.logits)


@pytest.mark.parametrize("interrupted_at", [1, 9, 37, 77, 130, 351])
def test_a_restored_rule_goes_on_bit_by_bit(interrupted_at: int) -> None:
    def play(rule: PriceRule, first: int, last: int) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            rule.update(BAD if 60 < step < 120 else GOOD, SLOPES * torch.rand(N, generator=generator))

    whole, start, resumed = make(), make(), make()
    play(whole, 0, 400)
    play(start, 0, interrupted_at)
    tensors = {name: tensor.clone() for name, tensor in start.tensors().items()}
    resumed.load(tensors, json.loads(json.dumps(start.state())))
    assert torch.equal(resumed.masks.logits, start.masks.logits)
    play(resumed, interrupted_at, 400)
    assert torch.equal(resumed.masks.logits, whole.masks.logits)
    assert resumed.state() == whole.state()


def test_the_rule_is_a_gate_rule() -> None:
    assert isinstance(make(), GateRule)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "at least 1"),
        ({"patience": 0}, "at least 1"),
        ({"share": 1.0}, "share < 1"),
        ({"share": 0.001}, "min_share ≤ share"),
        ({"min_share": 0.0}, "0 < min_share"),
        ({"decay": 1.0}, "decay"),
        ({"batch_slack": 0.0}, "batch_slack"),
        ({"max_sparsity": 1.2}, "max_sparsity"),
        ({"regrowth": 0.9}, "regrowth"),
        ({"layers": ()}, "layers is empty"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PriceConfig(**settings)  # type: ignore[arg-type]


def test_layers_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers \[7\].*0 to 1"):
        make(PriceConfig(layers=(0, 7)))


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit into 55 steps"):
        make(steps=55, settle=50)
