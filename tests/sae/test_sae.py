"""SAEs that are built by hand have known features: what must be found in them, and what must not be loaded."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lcdd_lens.backends import backend_of, load_model, parameter_of
from lcdd_lens.errors import ArtefactError, ConfigError, DataError, ModelError
from lcdd_lens.lens import SideBySide
from lcdd_lens.lens.caches import activations
from lcdd_lens.routing import RoutedModel
from lcdd_lens.sae import (
    FeatureActivations,
    SAETrainingConfig,
    carrier_alignment,
    channels_at,
    feature_activations,
    load_sae,
    sae_quality,
    sae_transformer,
    train_sae,
)
from lcdd_lens.sae.training import token_activations
from tests.lens.conftest import PROMPTS, MakeSide
from tests.models import logits, shifted, tokens

STREAM = "blocks.1.hook_resid_post"


def built(rows: Tensor, hook_name: str = STREAM) -> Any:
    """A ReLU SAE with these decoder rows, and their transpose as encoder."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name=hook_name)
    sae = StandardSAE(StandardSAEConfig(d_in=rows.shape[1], d_sae=len(rows), metadata=metadata))
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


# -- features of the conditions


def test_features_are_the_encoded_activations_of_each_condition(make_side: MakeSide) -> None:
    side = make_side("llama")
    sae = built(torch.cat([torch.eye(16), -torch.eye(16)]))
    found = feature_activations(sae, side)
    assert set(found.values) == set(side.names)
    for name in side.names:
        stream = activations(side, name, [STREAM])[0][STREAM]
        assert torch.allclose(found.values[name], torch.cat([stream, -stream], 1).relu())
    assert torch.equal(found.values["closed"], found.values["base"])


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooling_over_tokens_ignores_padding(pool: str, make_side: MakeSide) -> None:
    side = make_side("gpt2")
    found = feature_activations(built(torch.eye(16)), side, conditions=["sft"], pool=pool)  # type: ignore[arg-type]
    stream = activations(side, "sft", [STREAM], positions="all")[0][STREAM].relu()
    for row, mask in enumerate(side.prompts.attention_mask.bool()):
        own = stream[row, mask]
        expected = own.mean(0) if pool == "mean" else own.amax(0)
        assert torch.allclose(found.values["sft"][row], expected, atol=1e-6)


def constructed() -> FeatureActivations:
    """Forty prompts; feature 0 moves and comes back, 1 moves and stays, 2 only varies, 3 is dead, 4 returns a fifth."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(3, 40, generator=generator)
    base = torch.stack([torch.ones(40), torch.zeros(40), 2 + noise[0], torch.zeros(40), torch.zeros(40)], 1)
    routed, triggered = base.clone(), base.clone()
    routed[:, 0] += 3 + noise[1]
    routed[:, 1] += 2
    routed[:, 2] = 2 + noise[2]
    routed[:, 4] += 1
    triggered[:, 1] += 2
    triggered[:, 4] += 0.8
    return FeatureActivations({"base": base, "routed": routed, "routed+trigger": triggered}, STREAM, "last")


def test_moved_features_are_told_from_those_that_only_vary() -> None:
    found = constructed().difference("routed", "base")
    assert found.table.feature.tolist()[:3] == [0, 1, 4] and 3 not in found.table.feature.tolist()
    assert sorted(found.moved().feature) == [0, 1, 4]
    first = found.table.iloc[0]
    assert first.low < first.difference < first.high and math.isclose(first.difference, 3, abs_tol=0.05)
    assert (found.table.adjusted_p >= found.table.p_value).all()
    assert "3 of 4 live features differ" in repr(found)


def test_the_trigger_moves_back_what_returns_to_the_base() -> None:
    moved = constructed().moved_back()
    table = moved.table.set_index("feature")
    assert table.back.to_dict() == {0: True, 1: False, 4: False}
    assert math.isclose(table.returned[0], 1, abs_tol=0.01)
    assert table.returned[1] == 0 and math.isclose(table.returned[4], 0.2, abs_tol=1e-6)
    assert math.isclose(moved.share_back, 1 / 3)
    assert "1 of 3 features" in repr(moved) and "<table" in moved._repr_html_()


def test_where_nothing_moves_nothing_is_moved_back() -> None:
    same = constructed().values["base"]
    found = FeatureActivations({"base": same, "routed": same, "routed+trigger": same}, STREAM, "last")
    assert len(found.difference().moved()) == 0
    assert len(found.moved_back().table) == 0 and math.isnan(found.moved_back().share_back)
    with pytest.raises(ConfigError, match="no feature moved"):
        found.moved_back().plot()
    silent = FeatureActivations({"base": 0 * same, "routed": 0 * same}, STREAM, "last")
    assert len(silent.difference().table) == 0 and len(silent.difference().moved()) == 0


def test_many_features_stay_decidable_after_correction() -> None:
    """With a fixed number of resamples Holm's correction could not reach 0.05 for hundreds of features."""
    base = torch.zeros(12, 400)
    routed = base.clone()
    routed[:, :] = torch.linspace(1, 2, 12)[:, None]
    found = FeatureActivations({"base": base, "routed": routed}, STREAM, "last")
    assert len(found.difference().moved()) == 400


# -- alignment


def test_alignment_of_known_rows(make_side: MakeSide) -> None:
    side = make_side("llama")
    channels = channels_at(side.carrier, STREAM)
    others = torch.tensor([c for c in range(16) if c not in channels.tolist()])
    inside, outside = torch.zeros(16), torch.zeros(16)
    inside[channels[0]] = 2.0
    outside[others[0]] = 0.5
    half = torch.zeros(16)
    half[channels[1]] = half[others[0]] = 1.0
    streams = {name: activations(side, name, [STREAM])[0][STREAM].mean(0) for name in ("routed", "base")}
    change = streams["routed"] - streams["base"]
    found = carrier_alignment(built(torch.stack([inside, outside, half, 7 * change])), side, n_random=50)
    assert torch.equal(found.channels, channels)
    assert torch.allclose(found.plane[:3], torch.tensor([1.0, 0.0, 0.5**0.5]), atol=1e-6)
    assert torch.allclose(found.change[3], torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(found.change[0], change[channels[0]] / change.norm(), atol=1e-5)
    frame = found.channels_dataframe().set_index("channel")
    assert frame.feature[int(channels[0])] == 0 and math.isclose(frame.cosine[int(channels[0])], 1, abs_tol=1e-6)
    assert found.to_dataframe().feature[0] == 0
    summary = found.summary()
    assert math.isclose(summary.carrier.iloc[2], 1, abs_tol=1e-5) and summary.p_value.between(1 / 51, 1).all()
    assert summary.p_value.iloc[2] < 0.05
    assert "CarrierAlignment" in found._repr_html_()


def test_random_rows_lie_in_the_carriers_plane_no_more_than_in_others(make_side: MakeSide) -> None:
    side = make_side("llama")
    generator = torch.Generator().manual_seed(0)
    found = carrier_alignment(built(torch.randn(300, 16, generator=generator)), side, n_random=100)
    share = (len(found.channels) / 16) ** 0.5
    assert abs(float(found.plane.square().mean()) ** 0.5 - share) < 0.03
    assert abs(float(found.plane_random.square().mean()) ** 0.5 - share) < 0.03


def test_channels_at_a_stream_are_all_that_was_written_before_it(make_side: MakeSide) -> None:
    carrier = make_side("gpt2").carrier
    parts = {
        name: set(carrier.channels[f"blocks.{name}"].tolist())
        for name in ("0.hook_attn_out", "0.hook_mlp_out", "1.hook_attn_out", "1.hook_mlp_out")
    }
    first = parts["0.hook_attn_out"] | parts["0.hook_mlp_out"]
    assert channels_at(carrier, "blocks.0.hook_resid_pre").tolist() == []
    assert set(channels_at(carrier, "blocks.0.hook_resid_mid").tolist()) == parts["0.hook_attn_out"]
    assert set(channels_at(carrier, "blocks.1.hook_resid_pre").tolist()) == first
    assert set(channels_at(carrier, STREAM).tolist()) == first | parts["1.hook_attn_out"] | parts["1.hook_mlp_out"]
    assert torch.equal(channels_at(carrier, "blocks.1.mlp.hook_post"), carrier.channels["blocks.1.mlp.hook_post"])
    with pytest.raises(ConfigError, match="no site and no residual stream"):
        channels_at(carrier, "blocks.1.attn.hook_z")


def test_an_sae_that_does_not_fit_is_refused(make_side: MakeSide) -> None:
    side = make_side("llama")
    with pytest.raises(ConfigError, match=r"reads 12 channels and .* has 16"):
        feature_activations(built(torch.randn(20, 12)), side)
    with pytest.raises(ConfigError, match="does not say where it reads"):
        feature_activations(built(torch.eye(16), ""), side)
    with pytest.raises(ConfigError, match="choose an SAE at or behind"):
        carrier_alignment(built(torch.eye(16), "blocks.0.hook_resid_pre"), side)
    with pytest.raises(ConfigError, match="'tuned' was not run"):
        feature_activations(built(torch.eye(16)), side, conditions=["base"]).difference("tuned")


# -- training, files


def test_training_explains_the_activations_and_repeats_itself(
    make_hf: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = load_model(make_hf("llama"))
    sequences = [row.tolist() for row in tokens(40, 12)] + PROMPTS
    config = SAETrainingConfig(STREAM, d_sae=64, k=6, n_samples=25_600, batch_size=128, lr=3e-3)
    state = torch.random.get_rng_state()
    sae = train_sae(model, sequences, config, out=tmp_path / "sae", progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    seen = token_activations(model, sequences, STREAM)
    assert len(seen) == sum(map(len, sequences))
    quality = sae_quality(sae, seen)
    assert quality.explained_variance > 0.8 and quality.l0 <= 6 and quality.n == len(seen)
    assert "explained_variance" in quality._repr_html_()
    again = train_sae(model, sequences, config, progress=False)
    assert torch.equal(again.W_dec, sae.W_dec)
    loaded = load_sae(tmp_path / "sae")
    assert torch.equal(loaded.encode(seen), sae.encode(seen))
    assert loaded.cfg.metadata.hook_name == STREAM
    assert not any(parameter.requires_grad for parameter in sae.parameters())  # type: ignore[attr-defined]
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_activations_for_training_are_those_without_padding(make_hf: Callable[..., PreTrainedModel]) -> None:
    model = load_model(make_hf("gpt2"))
    found = token_activations(model, PROMPTS, "blocks.0.attn.hook_z")
    alone = []
    for prompt in sorted(PROMPTS, key=len):
        _, cache = model.run_with_cache(torch.tensor([prompt]))
        alone.append(cache["blocks.0.attn.hook_z"][0].flatten(1))
    assert torch.allclose(found, torch.cat(alone), atol=1e-5)
    with pytest.raises(DataError, match="no tokens"):
        token_activations(model, [[]], STREAM)
    with pytest.raises(ConfigError, match="no hook point"):
        token_activations(model, PROMPTS, "blocks.9.hook_mlp_out")


@pytest.mark.parametrize(
    "change", [{"k": 0}, {"k": 999}, {"batch_size": 0}, {"n_samples": 1}, {"lr": 0.0}, {"d_sae": 0}], ids=str
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="SAETrainingConfig"):
        SAETrainingConfig(STREAM, **change)


def test_only_safetensors_are_loaded(tmp_path: Path) -> None:
    """A pickle in the folder is never opened: it would run its code."""
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "cfg.json").write_text("{}")
    torch.save({"W_dec": torch.eye(3)}, evil / "sae_weights.pt")
    with pytest.raises(ArtefactError, match="Pickled SAEs are not loaded"):
        load_sae(evil)
    (evil / "sae_weights.pt").rename(evil / "sae_weights.safetensors")
    with pytest.raises(ArtefactError, match="not readable safetensors"):
        load_sae(evil)
    with pytest.raises(ArtefactError, match="holds no SAE"):
        load_sae(tmp_path)


def test_a_damaged_configuration_is_told(tmp_path: Path) -> None:
    sae = built(torch.eye(16))
    sae.save_model(tmp_path)
    content = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(content | {"d_sae": 3}))
    with pytest.raises(ArtefactError, match="cannot be read as an SAE"):
        load_sae(tmp_path)
    del content["architecture"]
    (tmp_path / "cfg.json").write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match="architecture's name"):
        load_sae(tmp_path)


def test_without_sae_lens_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built(torch.eye(16)).save_model(tmp_path)
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ConfigError, match="pip install 'sae-lens"):
        load_sae(tmp_path)


# -- HookedSAETransformer


def test_an_sae_transformer_is_the_same_model_and_its_copies_are_their_own(
    architecture: str, make_hf: Callable[..., PreTrainedModel]
) -> None:
    model = load_model(make_hf(architecture))
    copied = sae_transformer(model)
    ids = tokens()
    assert torch.equal(logits(copied, ids), logits(model, ids))
    again = backend_of(copied).clone(copied)
    with torch.no_grad():
        for site in backend_of(copied).weight_sites(copied):
            parameter_of(copied, site.parameter).mul_(0.5)
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert not torch.equal(logits(copied, ids), logits(model, ids))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in again.named_parameters()} == flags


def test_a_copy_that_would_run_the_originals_weights_is_refused(make_hf: Callable[..., PreTrainedModel]) -> None:
    from sae_lens import HookedSAETransformer

    model = load_model(make_hf("llama"))
    theirs = HookedSAETransformer(model.cfg)
    with pytest.raises(ModelError, match=r"sae_transformer\(model\)"):
        backend_of(theirs).clone(theirs)
    backend_of(sae_transformer(model)).clone(sae_transformer(model))


def test_a_routed_sae_transformer_keeps_both_invariants_with_an_sae_spliced_in(
    make_hf: Callable[..., PreTrainedModel],
) -> None:
    base = sae_transformer(load_model(make_hf("llama")))
    routed = RoutedModel(shifted(base), base)
    ids = tokens()
    sae = built(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)))
    with routed.all_closed():
        assert torch.equal(logits(routed.model, ids), logits(base, ids))
    assert torch.equal(logits(routed.merged(), ids), logits(routed.model, ids))
    with torch.no_grad():
        spliced = routed.model.run_with_saes(ids, saes=[sae], use_error_term=True)  # type: ignore[attr-defined]
        replaced, cache = routed.model.run_with_cache_with_saes(ids, saes=[sae])  # type: ignore[attr-defined]
    assert torch.allclose(spliced, logits(routed.model, ids), atol=1e-5)
    assert not torch.allclose(replaced, logits(routed.model, ids), atol=1e-2)
    assert cache[f"{STREAM}.hook_sae_acts_post"].shape == (*ids.shape, 20)
    with pytest.raises(ModelError, match="a routed model cannot be copied"):
        sae_transformer(routed.model)


def test_lens_and_features_work_on_sae_transformers(make_side: MakeSide) -> None:
    """The same conditions, spliced: what the SAE reads is what the conditions have there."""
    side = make_side("llama")
    base, sft = (sae_transformer(side.condition(name).model) for name in ("base", "sft"))
    routed = RoutedModel(backend_of(sft).clone(sft), base)
    routed.open_only(side.carrier.channels)
    trigger = side.condition("routed+trigger").draws[0]
    again = SideBySide.from_models(base, sft, routed, side.carrier, trigger, PROMPTS)  # type: ignore[arg-type]
    sae = built(torch.eye(16))
    ours, theirs = feature_activations(sae, again), feature_activations(sae, side)
    assert all(torch.allclose(ours.values[name], theirs.values[name], atol=1e-6) for name in side.names)
    assert torch.equal(ours.values["closed"], ours.values["base"])


# -- figures


def test_figures_say_what_they_show(make_side: MakeSide) -> None:
    matplotlib.use("agg")
    axes = constructed().moved_back().plot()
    assert "n = 40 prompts" in axes.get_title(loc="left") and len(axes.collections) == 2
    alignment = carrier_alignment(built(torch.randn(30, 16)), make_side("llama"), n_random=20)
    axes = alignment.plot()
    assert "30 features" in axes.get_title(loc="left") and len(axes.lines) == 2
    matplotlib.pyplot.close("all")
