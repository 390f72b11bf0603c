"""The four analyses in closed form: what must come out exactly, and what a constructed change must show."""

import math

import pytest
import torch

from lcdd_lens.errors import ConfigError
from lcdd_lens.lens import distance_to_base, logit_attribution, logit_lens, patch_sweep
from lcdd_lens.lens.caches import activations
from lcdd_lens.lens.logit_lens import unembedded
from lcdd_lens.plotting.lens import plot_logit_lens
from tests.lens.conftest import MakeSide

# -- logit lens


def test_after_the_last_layer_the_lens_is_the_model(architecture: str, make_side: MakeSide) -> None:
    side = make_side(architecture, "after_bos")
    lens = logit_lens(side)
    for name in side.names:
        log_p = side.next_logits(name).log_softmax(-1)
        assert torch.allclose(lens.log_probs["base"][name][-1], log_p.gather(1, side.base_tokens[:, None])[:, 0])
        assert torch.equal(lens.top[name][-1], log_p.argmax(-1))
    assert lens.depths == ("embed", "0", "1")
    assert bool(lens.is_top("base", "base")[-1].all()) and bool(lens.is_top("sft", "behaviour")[-1].all())


def test_the_lens_of_closed_gates_is_the_base_at_every_depth(make_side: MakeSide) -> None:
    lens = logit_lens(make_side("gpt2"), conditions=["base", "closed", "sft"])
    for values in lens.log_probs.values():
        assert torch.equal(values["closed"], values["base"])
        assert not torch.equal(values["sft"], values["base"])
    # Before the first layer all conditions read the same embedding.
    assert torch.equal(lens.log_probs["base"]["sft"][0], lens.log_probs["base"]["base"][0])
    frame = lens.to_dataframe()
    assert len(frame) == 3 * 3 * 2 and ((frame.low <= frame.log_prob) & (frame.log_prob <= frame.high)).all()
    assert (frame.log_prob < 0).all() and frame.top_share.between(0, 1).all()


# -- distance


@pytest.mark.parametrize("positions", ["last", "all"])
def test_closed_gates_are_at_distance_zero_exactly(architecture: str, positions: str, make_side: MakeSide) -> None:
    side = make_side(architecture)
    distance = distance_to_base(side, positions=positions)  # type: ignore[arg-type]
    for measure in (distance.relative_l2, distance.cosine):
        assert list(measure) == ["sft", "routed", "closed", "routed+trigger"]
        assert float(measure["closed"].abs().max()) == 0.0
        assert float(measure["sft"][-1].min()) > 0
    kinds = {place.kind for place in distance.places}
    assert kinds == {"residual", *(site.kind for site in side.carrier.sites)}


def test_distances_are_the_formulas(make_side: MakeSide) -> None:
    side = make_side("llama")
    distance = distance_to_base(side, conditions=["sft"])
    number = next(i for i, place in enumerate(distance.places) if place.hook_name == "blocks.1.hook_resid_post")
    ours, theirs = (
        activations(side, name, ["blocks.1.hook_resid_post"])[0]["blocks.1.hook_resid_post"] for name in ("sft", "base")
    )
    expected = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    assert torch.allclose(distance.relative_l2["sft"][number], expected)
    cosine = 1 - torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
    assert torch.allclose(distance.cosine["sft"][number], cosine, atol=1e-6)


def test_distances_over_all_tokens_ignore_padding(make_side: MakeSide) -> None:
    side = make_side("gpt2")
    distance = distance_to_base(side, positions="all", conditions=["sft"])
    found = {
        name: activations(side, name, ["blocks.0.hook_mlp_out"], positions="all")[0]["blocks.0.hook_mlp_out"]
        for name in ("sft", "base")
    }
    number = next(i for i, place in enumerate(distance.places) if place.hook_name == "blocks.0.hook_mlp_out")
    for row, mask in enumerate(side.prompts.attention_mask.bool()):
        ours, theirs = found["sft"][row, mask], found["base"][row, mask]
        expected = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).mean()
        assert math.isclose(distance.relative_l2["sft"][number, row], float(expected), rel_tol=1e-5)


def test_distances_within_the_carrier_look_at_its_channels_only(make_side: MakeSide) -> None:
    side = make_side("llama")
    channels = {"blocks.0.hook_mlp_out": torch.tensor([2, 5])}
    distance = distance_to_base(side, within=channels, conditions=["sft"])
    assert [place.kind for place in distance.places if place.kind != "residual"] == ["ffn_write"]
    ours, theirs = (
        activations(side, name, list(channels))[0]["blocks.0.hook_mlp_out"][:, [2, 5]] for name in ("sft", "base")
    )
    number = next(i for i, place in enumerate(distance.places) if place.kind == "ffn_write")
    assert torch.allclose(distance.relative_l2["sft"][number], (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1))
    assert (distance.to_dataframe().query("kind == 'ffn_write'").n_channels == 2).all()


# -- patching


def test_patching_every_channel_of_a_layer_gives_the_other_run_from_there_on(
    architecture: str, make_side: MakeSide
) -> None:
    """Behind the last layer there is nothing left: all its sites patched move the gap less what came before it."""
    side = make_side(architecture)
    sweep = patch_sweep(side, n_random=1, progress=False)
    last = next(i for i, place in enumerate(sweep.places) if (place.layer, place.kind) == (1, "layer"))
    entering = "blocks.1.hook_resid_pre"
    found = {name: activations(side, name, [entering, "blocks.1.hook_resid_post"])[0] for name in ("base", "routed")}
    # The routed stream into the layer, plus what the base's layer writes.
    stream = found["routed"][entering] + found["base"]["blocks.1.hook_resid_post"] - found["base"][entering]
    expected = side.logit_difference(unembedded(side, "base", stream)) - sweep.target_difference
    assert torch.allclose(sweep.effects["all"][last, 0], expected, atol=1e-4)


def test_patching_a_run_into_its_equal_changes_nothing(make_side: MakeSide) -> None:
    side = make_side("llama")
    sweep = patch_sweep(side, "closed", "base", n_random=1, progress=False)
    assert all(float(effect.nan_to_num().abs().max()) < 1e-5 for effect in sweep.effects.values())
    assert sweep.gap == 0.0


def test_carrier_patches_take_the_carriers_channels_and_random_ones_the_same_number(make_side: MakeSide) -> None:
    side = make_side("llama")
    sweep = patch_sweep(side, n_random=3, progress=False)
    number, place = next((i, place) for i, place in enumerate(sweep.places) if place.kind == "ffn_write")
    name, channels = place.hook_names[0], side.carrier.channels[place.hook_names[0]]
    source = activations(side, "base", [name], positions="all")[0][name]

    def write(activation: torch.Tensor, hook: object) -> torch.Tensor:
        kept = torch.ones(activation.shape[-1], dtype=torch.bool)
        kept[channels] = False
        return torch.where(kept, activation, source[rows])

    effects = []
    with side.running("routed") as model:
        for rows in side.batches():
            with model.hooks(fwd_hooks=[(name, write)]):
                effects.append(side.forward(model, rows)[:, -1])
    expected = side.logit_difference(torch.cat(effects)) - sweep.target_difference
    assert torch.allclose(sweep.effects["carrier"][number, 0], expected, atol=1e-4)
    assert place.n_carrier == len(channels)
    assert {name: effect.shape[1] for name, effect in sweep.effects.items()} == {"carrier": 1, "random": 3, "all": 1}
    frame = sweep.to_dataframe().set_index(["layer", "kind", "set"])
    assert frame.loc[(0, "ffn_write", "random")].n_patched == len(channels)
    assert frame.loc[(0, "ffn_write", "all")].n_patched == 16
    row = frame.loc[(0, "ffn_write", "carrier")]
    assert math.isclose(row.share, row.effect / sweep.gap) and row.low <= row.effect <= row.high


def test_patching_only_the_last_token_leaves_the_others(make_side: MakeSide) -> None:
    side = make_side("gpt2")
    everywhere = patch_sweep(side, n_random=1, progress=False)
    last = patch_sweep(side, n_random=1, positions="last", progress=False)
    of = {place.kind: i for i, place in enumerate(last.places) if place.layer == 1}
    # In the last layer what the MLP writes at other tokens is read by nobody; keys and values there are.
    written, keys = of["ffn_write"], of["attn_v"]
    assert torch.allclose(last.effects["all"][written], everywhere.effects["all"][written], atol=1e-4)
    assert not torch.allclose(last.effects["all"][keys], everywhere.effects["all"][keys], atol=1e-3)


@pytest.mark.parametrize("placement", ["before_bos", "after_bos"])
def test_patching_into_a_triggered_run_hits_the_tokens_and_not_the_trigger(placement: str, make_side: MakeSide) -> None:
    """A run patched with its own activations is itself, only if they are put where they were taken."""
    side = make_side("gpt2", placement)
    with_itself = patch_sweep(side, "routed+trigger", "routed", n_random=1, progress=False)
    # What the last layer's MLP writes at the last token decides the answer, given the stream that enters it.
    last = next(i for i, place in enumerate(with_itself.places) if (place.layer, place.kind) == (1, "layer"))
    hooks = ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
    found = {name: activations(side, name, hooks)[0] for name in ("routed", "routed+trigger")}
    stream = found["routed"][hooks[0]] + found["routed+trigger"][hooks[1]] - found["routed+trigger"][hooks[0]]
    expected = side.logit_difference(unembedded(side, "routed", stream)) - with_itself.target_difference
    assert torch.allclose(with_itself.effects["all"][last, 0], expected, atol=1e-4)
    back = patch_sweep(side, "routed", "routed+trigger", n_random=1, progress=False)
    stream = found["routed+trigger"][hooks[0]] + found["routed"][hooks[1]] - found["routed"][hooks[0]]
    expected = side.logit_difference(unembedded(side, "routed", stream)) - back.target_difference
    assert torch.allclose(back.effects["all"][last, 0], expected, atol=1e-4)


def test_patching_needs_two_conditions(make_side: MakeSide) -> None:
    with pytest.raises(ConfigError, match="expected two conditions"):
        patch_sweep(make_side(), "base", "base")


# -- direct logit attribution


def test_contributions_and_the_constant_sum_to_the_logit_difference(architecture: str, make_side: MakeSide) -> None:
    """The constant is the biases' share, the same in every condition; a soft cap is left out."""
    side = make_side(architecture)
    found = logit_attribution(side)
    model = side.condition("base").model
    bias = getattr(model.get_submodule("ln_final"), "b", torch.zeros(model.cfg.d_model))
    unembed = model.get_submodule("unembed")
    direction = unembed.W_U[:, side.behaviour_tokens] - unembed.W_U[:, side.base_tokens]
    expected = bias @ direction + unembed.b_U[side.behaviour_tokens] - unembed.b_U[side.base_tokens]
    for name in side.names:
        assert torch.allclose(found.constant[name], expected, atol=1e-3), name
        if not getattr(model.cfg, "output_logits_soft_cap", 0) > 0:
            assert torch.allclose(
                found.logit_difference[name], side.logit_difference(side.next_logits(name)), atol=1e-4
            )
    moved = found.change("routed").sum((1, 2))
    assert torch.allclose(moved, found.logit_difference["routed"] - found.logit_difference["base"], atol=1e-3)


def test_a_contribution_is_what_is_lost_without_the_channel_at_a_held_scale(make_side: MakeSide) -> None:
    side = make_side("llama")
    found = logit_attribution(side, conditions=["sft"])
    number = next(i for i, writer in enumerate(found.writers) if writer.hook_name == "blocks.1.hook_mlp_out")
    final, _ = activations(side, "sft", ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "ln_final.hook_scale"])
    model = side.condition("sft").model
    norm, unembed = model.get_submodule("ln_final"), model.get_submodule("unembed")

    def difference(stream: torch.Tensor) -> torch.Tensor:
        logits = (stream / final["ln_final.hook_scale"] * norm.w) @ unembed.W_U + unembed.b_U
        return side.logit_difference(logits)

    stream = final["blocks.1.hook_resid_post"]
    without = stream.clone()
    without[:, 5] -= final["blocks.1.hook_mlp_out"][:, 5]
    expected = difference(stream) - difference(without)
    assert torch.allclose(found.contributions["sft"][:, number, 5], expected, atol=1e-4)


def test_the_carriers_share_is_that_of_its_channels(make_side: MakeSide) -> None:
    side = make_side("gpt2")
    found = logit_attribution(side, conditions=["base", "routed"])
    frame = found.to_dataframe()
    assert frame.kind.tolist() == ["embed", "attn_write", "ffn_write", "attn_write", "ffn_write"]
    channels = side.carrier.channels["blocks.1.hook_attn_out"]
    own = found.change("routed")[:, 3, channels].sum(1).mean()
    assert math.isclose(frame.carrier[3], float(own), rel_tol=1e-4) and frame.n_carrier[3] == len(channels)
    assert frame.n_carrier[0] == 0 and frame.carrier[0] == 0
    # Embeddings are not fine-tuned; only the norm's scale moved.
    top = found.channels_dataframe(n=3)
    assert top.contribution.abs().is_monotonic_decreasing
    largest = found.change("routed").mean(0).abs().max()
    assert math.isclose(abs(top.contribution[0]), float(largest), rel_tol=1e-5)
    with pytest.raises(ConfigError, match="'closed' was not measured"):
        found.to_dataframe("closed")


# -- views


def test_every_result_draws_itself_and_shows_itself(make_side: MakeSide) -> None:
    import matplotlib

    matplotlib.use("agg")
    side = make_side("llama")
    results = (
        logit_lens(side),
        distance_to_base(side),
        patch_sweep(side, n_random=2, progress=False),
        logit_attribution(side),
    )
    for result in results:
        axes = result.plot()
        assert f"n = {side.n_prompts} prompts" in axes.get_title(loc="left")
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_legend() is not None
        assert "<table" in result._repr_html_() and type(result).__name__ in result._repr_html_()
        assert "<script" not in result._repr_html_()
        matplotlib.pyplot.close(axes.figure)
    with pytest.raises(ConfigError, match="expected relative_l2 or cosine"):
        results[1].plot("attn_z")
    with pytest.raises(ConfigError, match="token is 'both'"):
        plot_logit_lens(results[0], "both")
