"""Conditions side by side: the same numbers as one prompt alone gives, whatever its neighbours, gates and trigger."""

import pytest
import torch

from lcdd_lens.backends import backend_of
from lcdd_lens.eraser import random_token_trigger
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.evaluation import Condition
from lcdd_lens.lens import SideBySide, carrier_heads, condition_caches
from lcdd_lens.lens.caches import activations
from lcdd_lens.routing import RoutedModel
from tests.lens.conftest import PROMPTS, MakeSide


def unpadded(side: SideBySide, row: int) -> torch.Tensor:
    return side.prompts.tokens[row][side.prompts.attention_mask[row].bool()][None]


def test_closed_gates_give_the_base_in_every_activation_exactly(architecture: str, make_side: MakeSide) -> None:
    caches = condition_caches(make_side(architecture), conditions=["base", "closed"])
    assert set(caches["base"]) == set(caches["closed"]) and len(caches["base"]) > 20
    assert all(torch.equal(values, caches["closed"][name]) for name, values in caches["base"].items())
    assert torch.equal(caches.logits["base"], caches.logits["closed"])


def test_a_padded_prompt_has_the_activations_that_it_has_alone(architecture: str, make_side: MakeSide) -> None:
    side = make_side(architecture)
    caches = condition_caches(side, lambda name: name.endswith(("hook_resid_post", "hook_k", "hook_pattern")))
    for row in range(side.n_prompts):
        tokens = unpadded(side, row)
        length = tokens.shape[1]
        logits, alone = side.condition("sft").model.run_with_cache(tokens, attention_mask=torch.ones_like(tokens))
        for name, values in caches["sft"].items():
            own = values[row, :, -length:, -length:] if "pattern" in name else values[row, -length:]
            assert torch.allclose(own, alone[name][0], atol=2e-4), name
        assert torch.allclose(caches.logits["sft"][row], logits[0, -1], atol=2e-4)


@pytest.mark.parametrize("placement", ["before_bos", "after_bos"])
def test_behind_a_trigger_every_token_keeps_its_own_activations(placement: str, make_side: MakeSide) -> None:
    side = make_side("gpt2", placement)
    caches = condition_caches(side, ["blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern"])
    condition = side.condition("routed+trigger")
    trigger = condition.draws[0]
    assert trigger is not None
    for row in range(side.n_prompts):
        tokens = unpadded(side, row)
        with trigger.on(condition.model):
            _, alone = condition.model.run_with_cache(tokens, attention_mask=torch.ones_like(tokens))
        own = [0, *range(3, tokens.shape[1] + 2)] if placement == "after_bos" else list(range(2, tokens.shape[1] + 2))
        expected = alone["blocks.1.hook_resid_post"][0, own]
        found = caches["routed+trigger"]["blocks.1.hook_resid_post"][row, -tokens.shape[1] :]
        assert torch.allclose(found, expected, atol=1e-4)
    pattern = caches["routed+trigger"]["blocks.1.attn.hook_pattern"]
    width = side.prompts.tokens.shape[1]
    assert pattern.shape[2:] == (width, width + 2)
    last = pattern[:, :, -1]
    assert torch.allclose(last.sum(-1), torch.ones(last.shape[:2]), atol=1e-5)


def test_batches_do_not_matter(make_side: MakeSide) -> None:
    one, all_at_once = make_side(batch_size=1), make_side(batch_size=64)
    for name in one.names:
        first, _ = activations(one, name, ["blocks.1.hook_mlp_out"])
        second, _ = activations(all_at_once, name, ["blocks.1.hook_mlp_out"])
        assert torch.allclose(first["blocks.1.hook_mlp_out"], second["blocks.1.hook_mlp_out"], atol=1e-5)


def test_a_cache_is_a_transformer_lens_cache(make_side: MakeSide) -> None:
    caches = condition_caches(make_side("llama"), conditions=["routed"])
    streams = caches["routed"].accumulated_resid(layer=-1, pos_slice=-1)
    assert streams.shape[0] == 3
    assert torch.equal(streams[-1], caches["routed"]["resid_post", 1][:, -1])
    assert caches.to_dataframe().condition.unique().tolist() == ["routed"]
    assert "hook points" in repr(caches) and "routed" in caches._repr_html_()


def test_prompts_on_which_nothing_differs_are_left_out(make_side: MakeSide) -> None:
    side = make_side()
    assert side.n_prompts + side.n_left_out == len(PROMPTS)
    assert not bool((side.behaviour_tokens == side.base_tokens).any())
    assert torch.equal(side.next_logits("sft").argmax(-1), side.behaviour_tokens)
    assert torch.equal(side.next_logits("base").argmax(-1), side.base_tokens)


def test_the_model_is_left_as_it_was(make_side: MakeSide) -> None:
    side = make_side()
    model = side.condition("routed").model
    before = side.next_logits("routed")
    with pytest.raises(RuntimeError, match="on purpose"), side.running("closed"):
        raise RuntimeError("on purpose")
    condition_caches(side)
    assert torch.equal(side.next_logits("routed"), before)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_compared_is_refused(make_side: MakeSide) -> None:
    side = make_side()
    base = side.condition("base").model
    with pytest.raises(ConfigError, match="'base' among them"):
        SideBySide((Condition("sft", base),), side.prompts, side.carrier)
    with pytest.raises(ConfigError, match="no condition 'tuned'"):
        side.condition("tuned")
    with pytest.raises(ConfigError, match=r"no hook point blocks\.9\.hook_mlp_out"):
        condition_caches(side, ["blocks.9.hook_mlp_out"])
    routed = RoutedModel(backend_of(base).clone(base), base)
    trigger = random_token_trigger(base, 2)
    told = {"expected at least 2": [[1]], "at most 48": [[1] * 47], "no prompts": [], "with the same token": [[1, 2]]}
    for message, prompts in told.items():
        with pytest.raises(DataError, match=message):
            SideBySide.from_models(base, base, routed, side.carrier, trigger, prompts)


def test_heads_are_counted_in_their_own_coordinates(make_side: MakeSide) -> None:
    carrier = make_side("llama").carrier
    frame = carrier_heads(carrier)
    assert frame.n_open.is_monotonic_decreasing
    for row in frame.itertuples():
        open_ = carrier.channels[f"blocks.{row.layer}.attn.hook_{row.kind[-1]}"]
        assert row.n_open == int(((open_ >= 4 * row.head) & (open_ < 4 * row.head + 4)).sum()) > 0
    n_heads = {kind: int(frame[frame.kind == kind]["head"].max()) + 1 for kind in ("attn_q", "attn_k")}
    assert n_heads["attn_q"] <= 4 and n_heads["attn_k"] <= 2
    total = sum(len(carrier.channels[s.hook_name]) for s in carrier.sites if s.kind in ("attn_q", "attn_k", "attn_v"))
    assert frame.n_open.sum() == total
