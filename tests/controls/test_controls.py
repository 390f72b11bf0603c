"""Every control changes the one thing that it is about."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from lcdd_lens.backends import LensModel, backend_of, parameter_of
from lcdd_lens.carrier import Carrier
from lcdd_lens.controls import (
    CONTROLS,
    Bench,
    Outcome,
    controls_of,
    delta_norm,
    necessity_and_sufficiency,
    reversal_by_sparsity,
    run_controls,
)
from lcdd_lens.controls.dense import early_stopped_sft, first_at_most, longer_sft, matched_sft
from lcdd_lens.controls.gated import (
    imposed_mask,
    magnitude_mask,
    no_loss_gradient,
    other_rule,
    random_order,
    stratified_mask,
    uniform_mask,
)
from lcdd_lens.controls.triggers import kl_only, matching_only, random_channels, random_tokens, transfer
from lcdd_lens.eraser import Trigger
from lcdd_lens.errors import ConfigError
from lcdd_lens.training import LCDDConfig, train_sft


def weights(model: LensModel) -> dict[str, torch.Tensor]:
    return {
        site.parameter: parameter_of(model, site.parameter).detach().clone()
        for site in backend_of(model).weight_sites(model)
    }


@pytest.fixture(autouse=True)
def _the_experiment_stays_as_it_was(finished: Bench) -> Iterator[None]:
    models = {"base": finished.base, "sft": finished.sft, "routed": finished.routed.model}
    before = {name: weights(model) for name, model in models.items()}
    yield
    for name, model in models.items():
        for parameter, weight in weights(model).items():
            assert torch.equal(weight, before[name][parameter]), f"{name}.{parameter} was changed"


def counts(carrier: Carrier) -> list[int]:
    return [len(carrier.channels[site.hook_name]) for site in carrier.sites]


def test_the_experiment_is_worth_controlling(bench: Bench) -> None:
    assert 0.2 < bench.carrier.sparsity < 0.99
    assert bench.carrier.residual_write_channels()


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_opens_with_its_question_and_names_its_source(name: str) -> None:
    control = CONTROLS[name]
    assert control.question.endswith("?")
    assert re.search(r"[Pp]aper|[Oo]urs", control.build.__doc__ or "")


def test_main_controls_are_some_of_all() -> None:
    assert set(controls_of("main")) < set(controls_of("all")) == set(CONTROLS)


# -- weight change


def test_delta_norm_is_the_distance_of_the_gated_weights(bench: Bench) -> None:
    base = weights(bench.base)
    expected = math.sqrt(sum(float((w - base[name]).square().sum()) for name, w in weights(bench.sft).items()))
    assert delta_norm(bench.sft, bench.base) == pytest.approx(expected, rel=1e-5)
    with bench.routed.all_closed():
        assert delta_norm(bench.routed.model, bench.base) == 0
    with bench.routed.all_open():
        whole = delta_norm(bench.routed.model, bench.base)
    assert 0 < delta_norm(bench.routed.model, bench.base) < whole


# -- fine-tuning without gates


def test_matched_sft_moves_the_pull_until_the_distance_is_lcdd_s(bench: Bench) -> None:
    target = delta_norm(bench.routed.model, bench.base)
    once = matched_sft(bench, tolerance=100.0)
    assert (once.facts["runs"], once.facts["pull"]) == (1, bench.lcdd.optim.pull)
    twice = matched_sft(bench, tolerance=0.0, max_runs=2)
    assert twice.facts["runs"] == 2

    def miss(outcome: Outcome) -> float:
        norm = float(outcome.facts["delta_norm"] or 0)
        assert norm == pytest.approx(delta_norm(outcome.conditions[0].model, bench.base))
        return abs(math.log(norm / target))

    assert miss(twice) < miss(once)


def test_dense_controls_face_both_triggers(bench: Bench) -> None:
    outcome = longer_sft(bench)
    assert [c.name for c in outcome.conditions] == ["longer_sft", "longer_sft+trigger", "longer_sft+trigger(carrier)"]
    triggers = [condition.trigger for condition in outcome.conditions]
    assert triggers[0] is None
    assert isinstance(triggers[1], Trigger) and triggers[1].details["config"]["channels"] == "none"
    assert isinstance(triggers[2], Trigger) and triggers[2].details["config"]["channels"] == "carrier"
    assert outcome.carrier is None


def test_early_stopped_sft_is_plain_sft_cut_off_where_its_loss_meets_lcdd_s(bench: Bench) -> None:
    whole = bench.new_base()
    config = replace(bench.sft_training, decay_steps=0)
    history = train_sft(whole, bench.train, config, pad_id=bench.pad_id, progress=False)
    outcome = early_stopped_sft(replace(bench, final_loss=sum(history["loss"][8:13]) / 5))
    stop = outcome.facts["steps"]
    assert isinstance(stop, int) and 4 < stop < 15
    assert outcome.facts["loss"] == pytest.approx(history["loss"][stop - 1], rel=1e-4)
    assert float(outcome.facts["delta_norm"] or 0) < delta_norm(whole, bench.base)


def test_the_stopping_step_is_where_the_average_around_it_meets_the_target() -> None:
    falling = [10.0 - step for step in range(10)]
    assert first_at_most(falling, 7.0, window=1) == 4
    assert first_at_most(falling, 7.0, window=3) == 4
    assert first_at_most([9, 1, 9, 9, 2, 2, 2], 2.0, window=3) == 6
    assert first_at_most(falling, -5.0) == 10


# -- masks and rules


def test_random_masks_copy_the_carrier_s_size_or_its_counts(bench: Bench) -> None:
    uniform, stratified = uniform_mask(bench).carrier, stratified_mask(bench).carrier
    assert uniform is not None and stratified is not None
    assert counts(stratified) == counts(bench.carrier) != counts(uniform)
    assert sum(counts(uniform)) == bench.carrier.n_open
    assert stratified != bench.carrier


def test_an_imposed_mask_learns_with_its_own_gates_alone(bench: Bench) -> None:
    outcome = imposed_mask(bench, "mine", bench.carrier)
    assert outcome.carrier == bench.carrier
    assert outcome.facts["jaccard_with_carrier"] == 1
    assert outcome.facts["sparsity"] == pytest.approx(bench.carrier.sparsity)
    base, found = weights(bench.base), weights(outcome.conditions[0].model)
    routed = bench.routed_sft()
    routed.open_only(bench.carrier.channels)
    reachable = {name: weight != base[name] for name, weight in routed.effective_weights().items()}
    for name, weight in found.items():
        assert not bool(((weight != base[name]) & ~reachable[name]).any())


def test_the_magnitude_mask_holds_the_channels_that_moved_most(bench: Bench) -> None:
    outcome = magnitude_mask(bench)
    assert outcome.carrier is not None and outcome.carrier.n_open == bench.carrier.n_open


def test_a_carrier_of_another_model_cannot_be_imposed(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="other sites"):
        imposed_mask(bench, "foreign", Carrier(bench.carrier.sites[:3], {}))


def test_random_order_keeps_budget_and_schedule_and_loses_the_ranking(bench: Bench) -> None:
    again, drawn = other_rule(bench, "again", bench.lcdd), random_order(bench)
    assert again.carrier == bench.carrier != drawn.carrier
    assert drawn.facts["epsilon"] == pytest.approx(again.facts["epsilon"])
    with pytest.raises(ConfigError, match="'price' alone"):
        random_order(replace(bench, lcdd=LCDDConfig(rule="penalty")))


def test_gates_without_the_behaviour_s_loss_end_as_the_dice_began(bench: Bench) -> None:
    outcome = no_loss_gradient(bench)
    assert float(outcome.facts["start_correlation_all"] or 0) > 0.9


# -- triggers


def details(outcome_trigger: object) -> dict[str, object]:
    assert isinstance(outcome_trigger, Trigger)
    return dict(outcome_trigger.details["config"])


def test_each_ablation_of_the_trigger_leaves_one_thing_out(bench: Bench) -> None:
    kl, random, matching = (build(bench).conditions[0] for build in (kl_only, random_channels, matching_only))
    own = dict(bench.trigger.details["config"])
    assert details(kl.trigger) == own | {"channels": "none", "w_match": 0.0}
    assert details(random.trigger) == own | {"channels": "random"}
    assert details(matching.trigger) == own | {"w_kl": 0.0, "w_match": 1.0}
    assert all(condition.model is bench.routed.model for condition in (kl, random, matching))


def test_matching_alone_is_left_out_where_there_is_nothing_to_match(bench: Bench) -> None:
    reads = [site.hook_name for site in bench.carrier.sites if not site.is_residual_write]
    outcome = matching_only(replace(bench, carrier=Carrier(bench.carrier.sites, {reads[0]: torch.tensor([0])})))
    assert outcome.conditions == () and "skipped" in outcome.facts


def test_random_tokens_are_drawn_on_both_models_and_transfer_moves_the_one_trigger(bench: Bench) -> None:
    random = random_tokens(bench, draws=3)
    assert [len(condition.draws) for condition in random.conditions] == [3, 3]
    assert {condition.model for condition in random.conditions} == {bench.routed.model, bench.sft}
    moved = transfer(bench).conditions
    assert [condition.model for condition in moved] == [bench.sft, bench.base]
    assert all(condition.trigger is bench.trigger for condition in moved)


# -- sparsity and causality


def test_the_ascent_is_stopped_at_each_sparsity(bench: Bench) -> None:
    outcome = reversal_by_sparsity(bench, (0.0, 0.3))
    names = ["sparsity 0.00", "sparsity 0.00+trigger", "sparsity 0.30", "sparsity 0.30+trigger"]
    assert [condition.name for condition in outcome.conditions] == names
    assert outcome.facts["sparsity sparsity 0.00"] == 0
    assert 0.1 < float(outcome.facts["sparsity sparsity 0.30"] or 0) <= 0.3 + 1 / bench.carrier.n_gates


def test_all_channels_together_are_necessary_and_sufficient_on_either_weights(bench: Bench) -> None:
    everything = Carrier(bench.carrier.sites, bench.routed.layout.channels(torch.ones(bench.carrier.n_gates).bool()))
    cells = necessity_and_sufficiency(replace(bench, carrier=everything))
    assert [(cell.weights, cell.channels) for cell in cells] == [
        ("sft", "carrier"),
        ("sft", "random"),
        ("lcdd", "carrier"),
        ("lcdd", "random"),
    ]
    for cell in cells:
        assert cell.sufficiency.value == pytest.approx(1) == cell.necessity.value


# -- measuring them


def test_measured_controls_carry_question_facts_figures_and_a_verdict(bench: Bench) -> None:
    found = run_controls(bench, ["transfer", "kl_only"])
    assert list(found) == ["transfer", "kl_only"]
    row = found["kl_only"].to_dict()
    assert row["question"] == CONTROLS["kl_only"].question
    figures = row["conditions"]["routed+trigger(kl)"]
    assert figures["behaviour_rate"]["n"] == len(bench.test)
    assert figures["verdict"] in ("kept", "reversed", "suppressed", "partial")
    assert set(found["transfer"].to_dict()["conditions"]) == {"sft+routed trigger", "base+routed trigger"}
    with pytest.raises(ConfigError, match="unknown controls"):
        run_controls(bench, ["nothing"])
