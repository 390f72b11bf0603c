"""Methods by name, what they leave behind, and what they refuse."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lcdd_lens.attribution import (
    ActivationIntegratedGradients,
    Attribution,
    AttributionPatching,
    Contrast,
    ExactPatching,
    MaskOnly,
    RandomOrder,
    WeightIntegratedGradients,
    attribute,
    contrasting,
    known_methods,
    method_by_name,
    register_method,
)
from lcdd_lens.attribution.random_order import delta_deciles
from lcdd_lens.data import EncodedExample, TokenBatch
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.training import BudgetConfig, DualConfig, LCDDConfig, OptimConfig

CHEAP = [name for name in known_methods() if not name.startswith(("exact", "mask", "activation_integrated"))]


@pytest.mark.parametrize("name", CHEAP)
def test_a_method_leaves_models_gates_and_flags_as_they_were(name: str, contrast: Contrast) -> None:
    routed = contrast.routed
    gates = torch.rand(routed.n_gates)
    routed.set_gates(gates)
    routed.model.train()
    weights = {key: weight.detach().clone() for key, weight in routed.delta_parameters().items()}
    flags = [parameter.requires_grad for parameter in routed.model.parameters()]
    found = attribute(name, contrast, progress=False)
    assert found.method == name and found.n_prompts == contrast.n_prompts and found.n_scored == routed.n_gates
    assert torch.equal(routed.layout.join(routed.gates), gates)
    assert all(torch.equal(weights[key], weight) for key, weight in routed.delta_parameters().items())
    assert [parameter.requires_grad for parameter in routed.model.parameters()] == flags
    assert routed.model.training
    assert all(parameter.grad is None for parameter in routed.model.parameters())


def test_every_method_scores_every_channel_of_every_architecture(
    architecture: str, make_contrast: Callable[..., Contrast]
) -> None:
    contrast = make_contrast(architecture, n=2, batch_size=2)
    one_per_site = {site.hook_name: torch.tensor([0]) for site in contrast.routed.sites}
    scored = {}
    for name in known_methods():
        method = method_by_name(name)
        if isinstance(method, MaskOnly):
            method = method.shortened(4, seed=0)
        elif isinstance(method, ExactPatching):
            method = ExactPatching(method.direction, one_per_site)
        elif isinstance(method, ActivationIntegratedGradients):
            method = ActivationIntegratedGradients(1)
        found = attribute(method, contrast, progress=False)
        scored[name] = found.n_scored
        assert [len(score) for score in found.scores.values()] == [site.n_channels for site in contrast.routed.sites]
        assert float(found.flat().nan_to_num(0.0).abs().max()) > 0, name
    expected = dict.fromkeys(scored, contrast.routed.n_gates)
    assert scored == expected | {name: len(one_per_site) for name in scored if name.startswith("exact")}


def test_the_cost_counts_prompts_through_the_model(contrast: Contrast) -> None:
    n = contrast.n_prompts

    def passes(method: Any) -> tuple[int, int]:
        cost = attribute(method, contrast, progress=False).cost
        return cost["forward_passes"], cost["backward_passes"]

    assert passes("magnitude") == (0, 0)
    assert passes("attribution_patching") == (2 * n, n)
    assert passes("attribution_patching_mean") == (2 * n, 2 * n)
    assert passes("weight_delta") == (n, n)
    assert passes(WeightIntegratedGradients(3)) == (3 * n + 2 * n, 3 * n)
    n_sites = len(contrast.routed.sites)
    assert passes(ActivationIntegratedGradients(2)) == ((3 + 3 * n_sites) * n, 2 * n_sites * n)


def test_sites_in_chunks_give_the_same_scores(contrast: Contrast) -> None:
    whole = attribute(AttributionPatching("mean"), contrast, progress=False)
    chunks = attribute(AttributionPatching("mean", sites_at_once=3), contrast, progress=False)
    assert torch.allclose(whole.flat(), chunks.flat(), atol=1e-7)


def test_scores_are_means_of_the_per_prompt_scores(contrast: Contrast) -> None:
    for method in (AttributionPatching(), ActivationIntegratedGradients(1), ExactPatching()):
        found = attribute(method, contrast, progress=False)
        for name, values in found.per_prompt.items():
            assert torch.allclose(values.double().mean(0), found.scores[name], atol=1e-6)


def test_only_value_and_key_heads_that_exist_are_scored_under_grouped_queries(contrast: Contrast) -> None:
    found = attribute("attribution_patching", contrast, progress=False)
    assert len(found.scores["blocks.0.attn.hook_v"]) == 8 and len(found.scores["blocks.0.attn.hook_q"]) == 16


def test_unknown_methods_and_options_name_what_is_known(contrast: Contrast) -> None:
    with pytest.raises(ConfigError, match=r"unknown attribution method 'eap': expected one of .*weight_delta"):
        attribute("eap", contrast)
    for make, message in (
        (lambda: WeightIntegratedGradients(0), "steps is 0: expected at least 1"),
        (lambda: ActivationIntegratedGradients(0), "steps is 0: expected at least 1"),
        (lambda: AttributionPatching(sites_at_once=0), "sites_at_once is 0"),
        (lambda: ExactPatching(rows_at_once=0), "rows_at_once is 0"),
        (lambda: RandomOrder("site"), "needs a reference"),
        (lambda: RandomOrder("uniform", {}), "takes none"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_a_metric_of_the_wrong_shape_is_refused_with_the_right_one(contrast: Contrast) -> None:
    def per_batch(logits: Tensor, batch: TokenBatch) -> Tensor:
        return logits.mean()

    def a_number(logits: Tensor, batch: TokenBatch) -> float:
        return 1.0

    def undefined(logits: Tensor, batch: TokenBatch) -> Tensor:
        return logits.mean((1, 2)) * float("nan")

    for metric, error, message in (
        (per_batch, ConfigError, r"per_batch returned shape \(\) for a batch of 3 prompts: .* shape \(3,\)"),
        (a_number, ConfigError, "a_number returned float"),
        (undefined, DataError, "undefined is not finite"),
    ):
        with pytest.raises(error, match=message):
            attribute("attribution_patching", replace(contrast, metric=metric), progress=False)


def test_rows_that_cannot_be_attributed_are_refused_before_anything_runs(contrast: Contrast) -> None:
    for rows, message in (
        ((), "there are no prompts"),
        ((EncodedExample((3, 4)),), "row 0 has no reply"),
        ((EncodedExample((), (3,)),), "row 0 has no prompt"),
        ((EncodedExample((3,), (99,)),), "outside 0..60"),
        ((EncodedExample((3,) * 60, (4,)),), "61 tokens and the model's context 48"),
    ):
        with pytest.raises(DataError, match=message):
            contrast.with_rows(rows)


def test_a_method_of_your_own_runs_by_name(contrast: Contrast) -> None:
    @dataclass(frozen=True)
    class LastLayer:
        name: str = "last_layer"

        @property
        def config(self) -> Mapping[str, Any]:
            return {}

        def run(self, contrast: Contrast, progress: bool) -> Attribution:
            last = contrast.routed.sites[-1].layer
            return Attribution(
                {s.hook_name: torch.full((s.n_channels,), float(s.layer == last)) for s in contrast.routed.sites}
            )

    register_method("last_layer", LastLayer)
    try:
        assert "last_layer" in known_methods() and method_by_name("last_layer").name == "last_layer"
        found = attribute("last_layer", contrast, progress=False)
        assert found.to_carrier(found.n_gates // 2).sparsity_by("layer") == {0: 1.0, 1: 0.0}
        with pytest.raises(ConfigError, match="registered already"):
            register_method("last_layer", lambda: LastLayer())
    finally:
        from lcdd_lens.attribution import registry

        del registry._METHODS["last_layer"]


def test_two_plain_models_are_contrasted_and_left_plain(make_contrast: Callable[..., Contrast]) -> None:
    routed = make_contrast("gpt2").routed
    base, rows = make_contrast("gpt2").model, make_contrast("gpt2").rows
    sft = routed.detach()
    plain = [name for name, _ in sft.named_parameters()]
    base = make_contrast("gpt2").routed
    with base.all_closed():
        before = base.merged()
    with contrasting(before, sft, rows) as contrast:
        assert float((contrast.sft_values() - contrast.base_values()).abs().max()) > 0
    assert [name for name, _ in sft.named_parameters()] == plain


def test_matched_random_orders_keep_the_counts_of_their_reference(contrast: Contrast) -> None:
    routed = contrast.routed
    reference = routed.layout.channels(torch.rand(routed.n_gates, generator=torch.Generator().manual_seed(5)) < 0.1)
    flags = routed.layout.flags(reference)
    k = int(flags.sum())
    strata = {"site": routed.layout.groups(), "delta": delta_deciles(routed)}
    for matching, groups in strata.items():
        draws = [attribute(RandomOrder(matching, reference, seed), contrast, progress=False) for seed in (0, 1)]  # type: ignore[arg-type]
        for found in draws:
            counts = torch.bincount(groups[found.top(k)], minlength=int(groups.max()) + 1)
            assert torch.equal(counts, torch.bincount(groups[flags], minlength=int(groups.max()) + 1))
        assert not torch.equal(draws[0].top(k), draws[1].top(k))
        assert not torch.equal(draws[0].top(k), flags)


def small_rule(steps: int = 40, **fields: Any) -> LCDDConfig:
    return LCDDConfig(
        optim=OptimConfig(steps=steps, lr=1.0, batch_size=5),
        rule="penalty",
        budget=BudgetConfig(warmup_steps=5, ratio=0.1, floor=0.05),
        dual=DualConfig(initial=0.1, maximum=1.0, shrink=0.5),
        settle_steps=0,
        mask_lr=2.0,
        init_std=0.3,
        **fields,
    )


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_mask_only_closes_gates_and_moves_no_weight(loss: Any, contrast: Contrast) -> None:
    before = {name: weight.detach().clone() for name, weight in contrast.routed.delta_parameters().items()}
    found = attribute(MaskOnly(loss, small_rule()), contrast, progress=False)
    assert found.details["n_open"] == int((found.flat() > 0).sum()) < contrast.routed.n_gates
    assert len(found.details["loss"]) == 40
    assert all(torch.equal(before[name], weight) for name, weight in contrast.routed.delta_parameters().items())
    again = attribute(MaskOnly(loss, small_rule()), contrast, progress=False)
    assert torch.equal(found.flat(), again.flat())


def test_mask_only_keeps_the_gates_that_the_loss_needs() -> None:
    from lcdd_lens.attribution.toy import toy_pair

    base, sft = toy_pair()
    with torch.no_grad():
        # only hidden channel 0 changes what the model says
        sft.W_in.copy_(base.W_in)
        sft.W_out.copy_(base.W_out)
        sft.W_out[0] += 5.0
    rows = tuple(EncodedExample((token,), (1,)) for token in range(2, 7))
    with contrasting(base, sft, rows) as contrast:
        found = attribute(MaskOnly("kl", small_rule(100)), contrast, progress=False)
    hidden = found.scores["hook_hidden"]
    assert float(hidden[0]) > 0 > float(hidden[1:].max())
    assert found.details["budget_kept"]


def test_hard_concrete_masks_run_and_are_named_for_it(contrast: Contrast) -> None:
    method = MaskOnly("ce", small_rule(estimator="hard_concrete", mask_optimiser="adam"))
    assert method.name == "mask_only_ce_hard_concrete" == MaskOnly.hard_concrete().name
    assert attribute(method, contrast, progress=False).n_scored == contrast.routed.n_gates
