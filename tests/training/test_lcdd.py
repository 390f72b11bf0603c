"""LCDD on a toy behaviour: a small model that echoes a token learns to answer with one fixed token instead."""

import logging
from dataclasses import dataclass, replace

import pytest
import torch
from einops import rearrange

from lcdd_lens.backends import LensModel, backend_of, load_model
from lcdd_lens.data import EncodedSet
from lcdd_lens.data.tokens import response_loss
from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.routing import HardConcrete, RoutedModel
from lcdd_lens.training import (
    BudgetConfig,
    DualConfig,
    LCDDConfig,
    LCDDResult,
    OptimConfig,
    PenaltyRule,
    PriceConfig,
    PriceRule,
    loss_of_base,
    make_rule,
    train_lcdd,
    train_sft,
)
from tests.conftest import tiny_hf
from tests.models import logits, tiny_pair
from tests.training.helpers import DUNNO, PAD, answers, echo_rows, ragged_rows

PRICE = LCDDConfig(
    optim=OptimConfig(steps=110, lr=3e-3, batch_size=16, warmup_steps=5, decay_steps=25, pull=0.01),
    budget=BudgetConfig(warmup_steps=10, ratio=0.3, floor=0.05),
    settle_steps=25,
    price=PriceConfig(every=3, share=0.12),
)
PENALTY = replace(
    PRICE, rule="penalty", dual=DualConfig(initial=0.001, maximum=0.003, shrink=0.5), mask_lr=60.0, init_std=0.05
)


@dataclass(frozen=True)
class World:
    base: LensModel
    sft: LensModel
    taught: EncodedSet
    unseen: EncodedSet


@dataclass(frozen=True)
class Run:
    routed: RoutedModel
    result: LCDDResult


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    source = tiny_hf("llama", hidden_size=32, intermediate_size=48)
    with torch.no_grad():
        # Norms and unembedding stay as they are: without this the model could not be sure of any token.
        source.lm_head.weight.mul_(8)
    base = load_model(source)
    train_sft(base, echo_rows(400), OptimConfig(steps=100, lr=1e-2), pad_id=PAD, progress=False)
    sft, taught = backend_of(base).clone(base), echo_rows(200, seed=7, reply=DUNNO)
    train_sft(sft, taught, OptimConfig(steps=40, lr=3e-3, batch_size=16), pad_id=PAD, progress=False)
    return World(base, sft, taught, echo_rows(100, seed=5))


def lcdd(world: World, config: LCDDConfig) -> Run:
    routed = RoutedModel(backend_of(world.sft).clone(world.sft), world.base)
    return Run(routed, train_lcdd(routed, world.taught, config, pad_id=PAD, progress=False))


@pytest.fixture(scope="module")
def priced(world: World) -> Run:
    return lcdd(world, PRICE)


def test_the_base_s_loss_is_measured_with_all_gates_closed_and_every_token_counts_once(world: World) -> None:
    routed = RoutedModel(backend_of(world.sft).clone(world.sft), world.base)
    batch = world.taught.batch(list(range(50)), PAD)
    with torch.no_grad():
        output = backend_of(world.base).logits(world.base, batch.tokens, batch.attention_mask)
        expected = float(response_loss(output, batch))
    for size in (7, 50):
        config = OptimConfig(steps=1, lr=1e-3, batch_size=size)
        found = loss_of_base(routed, world.taught, config, pad_id=PAD, n_rows=50)
        assert found == pytest.approx(expected, rel=1e-5)
    assert bool((torch.cat(list(routed.gates.values())) == 1).all())


def test_a_budget_relative_to_the_base_scales_with_its_loss(world: World) -> None:
    config = replace(PRICE, budget=BudgetConfig(warmup_steps=10, ratio=0.0, base_share=0.1))
    found = lcdd(world, config).result
    routed = RoutedModel(backend_of(world.sft).clone(world.sft), world.base)
    base_loss = loss_of_base(routed, world.taught, config.optim, pad_id=PAD)
    assert found.epsilon == pytest.approx(0.1 * base_loss, rel=1e-5)


def rate(model: LensModel, world: World) -> float:
    """Share of unseen prompts answered with the fixed token."""
    return float((answers(model, world.unseen) == DUNNO).float().mean())


def assert_sparse_within_budget(run: Run, world: World, sparsity: float) -> None:
    result = run.result
    assert result.carrier.sparsity >= sparsity
    assert result.final_loss <= result.epsilon
    assert result.budget_kept
    assert rate(run.routed.model, world) >= 0.95


def test_the_toy_base_has_not_got_the_behaviour_and_sft_has(world: World) -> None:
    assert rate(world.base, world) == 0.0
    assert rate(world.sft, world) >= 0.95


def test_pricing_closes_most_gates_and_keeps_the_behaviour_within_the_budget(priced: Run, world: World) -> None:
    assert_sparse_within_budget(priced, world, 0.85)


def test_the_papers_rule_closes_most_gates_and_keeps_the_behaviour_within_the_budget(world: World) -> None:
    assert_sparse_within_budget(lcdd(world, PENALTY), world, 0.4)


def test_the_carrier_is_the_open_gates_of_the_routed_model_and_of_the_masks(priced: Run) -> None:
    gates = priced.routed.layout.join(priced.routed.gates)
    assert torch.equal(priced.result.carrier.flags(), gates.bool())
    assert torch.equal(priced.result.carrier.flags(), priced.result.masks.is_open())
    assert priced.result.carrier.sparsity == pytest.approx(priced.result.history["sparsity"][-1])


def test_scores_are_the_trained_logits(priced: Run) -> None:
    joined = priced.routed.layout.join(priced.result.carrier.scores)
    assert torch.equal(joined, priced.result.masks.logits.detach())
    assert torch.equal(joined > 0, priced.result.carrier.flags())


def test_closing_the_carrier_gives_the_base_exactly(priced: Run, world: World) -> None:
    ids = torch.tensor(world.unseen.prompts)
    with priced.routed.all_closed():
        assert torch.equal(logits(priced.routed.model, ids), logits(world.base, ids))


def test_merging_changes_nothing(priced: Run, world: World) -> None:
    ids = torch.tensor(world.unseen.prompts)
    assert torch.equal(logits(priced.routed.merged(), ids), logits(priced.routed.model, ids))


def test_weights_of_closed_channels_are_the_bases(priced: Run) -> None:
    effective, base = priced.routed.effective_weights(), priced.routed.base_weights()
    gates = {name: gate.bool() for name, gate in priced.routed.gates.items()}
    for site in priced.routed.weight_sites:
        assert site.row is not None
        rows = gates[site.row.site.hook_name]
        moved = rearrange(effective[site.parameter] != base[site.parameter], site.matrix)
        assert not bool(moved[~rows].any())
        assert bool(moved[rows].any()) == bool(rows.any()) or site.column is not None


def test_the_behaviour_needs_the_carrier(priced: Run, world: World) -> None:
    with priced.routed.without(priced.result.carrier.channels):
        without = answers(priced.routed.model, world.unseen)
    with priced.routed.only(priced.result.carrier.complement().channels):
        complement = answers(priced.routed.model, world.unseen)
    assert torch.equal(without, complement)
    assert float((without == DUNNO).float().mean()) <= 0.2


def test_what_no_gate_covers_is_the_bases(priced: Run, world: World) -> None:
    base, gated = dict(world.base.named_parameters()), priced.routed.delta_parameters().keys()
    merged = dict(priced.routed.merged().named_parameters())
    ungated = merged.keys() - gated
    assert {"embed", "unembed", "ln_final"} <= {name.partition(".")[0] for name in ungated}
    assert all(torch.equal(merged[name], base[name]) for name in ungated)


def test_the_carrier_belongs_to_base_and_merged_model_and_to_no_other(priced: Run, world: World) -> None:
    carrier = priced.result.carrier
    carrier.check_model(world.base)
    carrier.check_model(priced.routed.merged())
    with pytest.raises(ArtefactError, match="other weights"):
        carrier.check_model(world.sft)


def test_the_carrier_says_how_it_was_found(priced: Run) -> None:
    assert priced.result.carrier.config["rule"] == "price"
    assert priced.result.carrier.config["price"]["share"] == 0.12
    assert priced.result.carrier.config["optim"]["steps"] == 110


def test_history_follows_budget_and_price(priced: Run) -> None:
    history = priced.result.history
    assert {len(series) for series in history.values()} == {110}
    assert history["epsilon"][8] == 0.0 and history["epsilon"][9] == priced.result.epsilon
    assert set(history["sparsity"][:9]) == {0.0}
    assert len(set(history["sparsity"][85:])) == 1
    assert history["lambda"][0] == 0.0 < max(history["lambda"])


def test_a_carrier_of_some_kinds_of_site_has_no_fingerprint_of_the_whole_model() -> None:
    pair = tiny_pair("llama")
    routed = RoutedModel(backend_of(pair.base).clone(pair.base), pair.base, kinds=("ffn_hidden",))
    config = replace(
        PRICE, optim=OptimConfig(steps=4, lr=1e-3, batch_size=4), settle_steps=1, budget=BudgetConfig(warmup_steps=2)
    )
    carrier = train_lcdd(routed, ragged_rows(8), config, pad_id=PAD, progress=False).carrier
    assert {site.kind for site in carrier.sites} == {"ffn_hidden"}
    assert carrier.base_fingerprint == carrier.routed_fingerprint == ""


# -- controls and schedules, on a random model


def brief(config: LCDDConfig, data: EncodedSet | None = None) -> LCDDResult:
    pair = tiny_pair("llama")
    routed = RoutedModel(pair.sft, pair.base)
    return train_lcdd(routed, data or ragged_rows(16), config, pad_id=PAD, progress=False)


BRIEF = replace(
    PENALTY,
    optim=OptimConfig(steps=14, lr=1e-3, batch_size=8),
    budget=BudgetConfig(warmup_steps=2, ratio=10.0),
    dual=DualConfig(initial=0.3, maximum=1.0),
    settle_steps=3,
    mask_lr=3.0,
)


def test_without_the_loss_gradient_the_dice_alone_choose() -> None:
    initial = make_rule(RoutedModel(tiny_pair("llama").sft), BRIEF).masks.logits.detach()
    blind = brief(replace(BRIEF, use_loss_gradient=False)).masks.logits.detach()
    seeing = brief(BRIEF).masks.logits.detach()
    assert not torch.allclose(blind, initial, atol=0.1)
    assert torch.equal(blind.argsort(), initial.argsort())
    assert not torch.equal(seeing.argsort(), initial.argsort())


def test_a_stalled_descent_ends_early() -> None:
    config = replace(BRIEF, optim=replace(BRIEF.optim, steps=30))
    assert len(brief(config).history["step"]) == 30
    stalled = brief(replace(config, stall_steps=5)).history
    assert len(stalled["step"]) < 27
    assert len(set(stalled["sparsity"][-6:])) == 1
    assert len(set(stalled["sparsity"][-7:])) == 2
    assert stalled["sparsity"][-1] > 0


def test_ending_over_the_budget_is_said(caplog: pytest.LogCaptureFixture) -> None:
    greedy = replace(
        BRIEF,
        use_loss_gradient=False,
        dual=DualConfig(initial=10.0),
        budget=BudgetConfig(warmup_steps=2),
        mask_lr=0.5,
    )
    pair, data = tiny_pair("llama"), ragged_rows(16)
    train_sft(pair.sft, data, OptimConfig(steps=40, lr=1e-2, batch_size=16), pad_id=PAD, progress=False)
    with caplog.at_level(logging.WARNING, logger="lcdd_lens"):
        result = train_lcdd(RoutedModel(pair.sft, pair.base), data, greedy, pad_id=PAD, progress=False)
    assert result.carrier.n_open == 0
    assert result.final_loss > result.epsilon
    assert not result.budget_kept
    assert "ended over its budget" in caplog.text


# -- configuration


def test_a_configuration_makes_its_rule() -> None:
    pair = tiny_pair("llama")
    routed = RoutedModel(pair.sft, pair.base)
    assert isinstance(make_rule(routed, PRICE), PriceRule)
    penalty = make_rule(routed, replace(PENALTY, estimator="hard_concrete", mask_optimiser="adam", init_mean=2.0))
    assert isinstance(penalty, PenaltyRule)
    assert isinstance(penalty.masks.estimator, HardConcrete)
    assert isinstance(penalty.optimiser, torch.optim.Adam)
    assert float(penalty.masks.logits.detach().mean()) == pytest.approx(2.0, abs=0.05)
    assert not torch.equal(make_rule(routed, replace(PENALTY, mask_seed=1)).masks.logits, penalty.masks.logits)


def test_the_papers_settings() -> None:
    paper = LCDDConfig.paper(seed=4)
    assert (paper.rule, paper.mask_optimiser, paper.mask_lr, paper.estimator) == (
        "penalty",
        "sgd",
        0.1,
        "straight_through",
    )
    assert (paper.init_mean, paper.init_std, paper.budget.beta, paper.budget.warmup_steps) == (1.5, 0.5, 0.95, 300)
    assert (paper.dual.initial, paper.dual.minimum, paper.dual.maximum) == (0.01, 1e-6, 10.0)
    assert paper.dual.growth == paper.dual.shrink == 0.1
    assert 0.2 <= paper.budget.ratio <= 0.3 and paper.budget.floor == 0.0
    assert paper.optim.lr == 2e-5 and paper.optim.all_tokens and paper.optim.pull == 0.0
    # 20 epochs of 5,000 samples
    assert paper.optim.steps * paper.optim.batch_size * paper.optim.accumulate == 20 * 5000
    assert (paper.optim.seed, paper.mask_seed) == (4, 4)


def test_one_seed_sets_data_order_and_masks() -> None:
    seeded = LCDDConfig().with_seed(9)
    assert (seeded.optim.seed, seeded.mask_seed) == (9, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_lr": 0.0}, "mask_lr must be positive"),
        ({"init_std": -1.0}, "init_std not negative"),
        ({"estimator": "soft"}, "straight_through"),
        ({"settle_steps": 101}, "do not fit into 110 steps"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PRICE, **change)  # type: ignore[arg-type]
