"""Channel scores: ranking, ties, carriers, files, and what they refuse."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcdd_lens.attribution import ChannelScores, Contrast, ExactPatching, attribute, select_channels
from lcdd_lens.backends.sites import Site
from lcdd_lens.errors import ArtefactError, ConfigError

SITES = (Site(0, "attn_q", "blocks.0.attn.hook_q", 3), Site(1, "ffn_write", "blocks.1.hook_mlp_out", 2))


def scores(first: list[float], second: list[float], **fields: object) -> ChannelScores:
    values = {SITES[0].hook_name: torch.tensor(first), SITES[1].hook_name: torch.tensor(second)}
    return ChannelScores("by hand", SITES, values, **fields)  # type: ignore[arg-type]


def test_signed_ranking_puts_the_largest_first_and_absolute_ranking_the_farthest_from_zero() -> None:
    found = scores([0.5, -3.0, 1.0], [2.0, 0.0])
    assert found.order().tolist() == [3, 2, 0, 4, 1]
    assert found.order("absolute").tolist() == [1, 3, 2, 0, 4]


def test_ties_go_to_the_earlier_site_and_the_lower_channel() -> None:
    assert scores([1.0, 1.0, 1.0], [1.0, 1.0]).order().tolist() == [0, 1, 2, 3, 4]
    assert scores([-1.0, 1.0, 0.0], [1.0, -1.0]).order("absolute").tolist() == [0, 1, 3, 4, 2]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=5, max_size=5), st.integers(0, 5))
def test_top_k_has_k_channels_none_worse_than_those_left_out_and_grows_with_k(values: list[int], k: int) -> None:
    found = scores([float(v) for v in values[:3]], [float(v) for v in values[3:]])
    chosen, flat = found.top(k), found.flat()
    assert int(chosen.sum()) == k
    if 0 < k < 5:
        assert float(flat[chosen].min()) >= float(flat[~chosen].max())
        assert bool((found.top(k + 1) | ~chosen).all())


def test_a_carrier_of_the_top_k_keeps_scores_and_says_where_it_comes_from() -> None:
    carrier = scores([0.5, -3.0, 1.0], [2.0, 0.0], config={"steps": 8}).to_carrier(2)
    assert {name: index.tolist() for name, index in carrier.channels.items()} == {
        "blocks.0.attn.hook_q": [2],
        "blocks.1.hook_mlp_out": [0],
    }
    assert carrier.config == {"method": "by hand", "k": 2, "ranking": "signed", "steps": 8}


def test_channels_without_a_score_rank_last_and_cannot_be_chosen() -> None:
    found = scores([float("nan"), -5.0, 1.0], [float("nan"), 0.0])
    assert found.n_scored == 3
    assert found.order().tolist() == [2, 4, 1, 0, 3]
    with pytest.raises(ConfigError, match="scored 3 of 5 channels; expected 0 to 3"):
        found.to_carrier(4)
    with pytest.raises(ConfigError, match="k is -1"):
        found.top(-1)


def test_malformed_scores_are_refused() -> None:
    with pytest.raises(ConfigError, match="wrong at"):
        scores([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ConfigError, match="infinite"):
        scores([1.0, float("inf"), 0.0], [1.0, 2.0])
    with pytest.raises(ConfigError, match="per-prompt"):
        scores([1.0, 1.0, 0.0], [1.0, 2.0], n_prompts=2, per_prompt={SITES[0].hook_name: torch.zeros(3, 3)})


def test_the_standard_error_is_that_of_the_mean_over_prompts() -> None:
    values = {SITES[0].hook_name: torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])}
    found = scores([1.0, 1.0, 1.0], [0.0, 0.0], n_prompts=2, per_prompt=values)
    assert found.standard_error()[SITES[0].hook_name].tolist() == pytest.approx([1.0, 0.0, 1.0])


def test_a_table_has_one_row_per_channel_with_its_rank() -> None:
    frame = scores([0.5, -3.0, 1.0], [2.0, 0.0]).to_dataframe()
    assert frame["rank"].tolist() == [3, 5, 2, 1, 4]
    assert frame["hook_name"].tolist() == [SITES[0].hook_name] * 3 + [SITES[1].hook_name] * 2
    assert "The first 8" in scores([0.5, -3.0, 1.0], [2.0, 0.0])._repr_html_()


def test_scores_come_back_from_disk_with_everything_they_had(contrast: Contrast, tmp_path: Path) -> None:
    found = attribute("attribution_patching", contrast, progress=False)
    found.save(tmp_path / "scores")
    loaded = ChannelScores.load(tmp_path / "scores", contrast.model)
    assert torch.equal(loaded.flat(), found.flat())
    for field in dataclasses.fields(ChannelScores):
        if field.name not in ("scores", "per_prompt"):
            assert getattr(loaded, field.name) == getattr(found, field.name), field.name
    assert all(torch.equal(loaded.per_prompt[name], values) for name, values in found.per_prompt.items())


def test_damaged_altered_or_foreign_scores_are_refused(contrast: Contrast, tmp_path: Path) -> None:
    found = attribute("magnitude", contrast, progress=False)
    found.save(tmp_path)
    with torch.no_grad():
        weight = next(iter(contrast.routed.delta_parameters().values()))
        weight.add_(1.0)
    with pytest.raises(ArtefactError, match="other weights"):
        ChannelScores.load(tmp_path, contrast.model)
    other = dataclasses.replace(found, scores={name: score + 1 for name, score in found.scores.items()})
    other.save(tmp_path / "other")
    (tmp_path / "other" / "scores.safetensors").replace(tmp_path / "scores.safetensors")
    with pytest.raises(ArtefactError, match="not the file"):
        ChannelScores.load(tmp_path)
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(ArtefactError, match="fields"):
        ChannelScores.load(tmp_path)
    with pytest.raises(ArtefactError, match="does not exist"):
        ChannelScores.load(tmp_path / "nowhere")


def test_scores_of_a_model_with_other_dimensions_are_refused(make_contrast: object, tmp_path: Path) -> None:
    small, large = make_contrast("llama"), make_contrast("llama", intermediate_size=32)  # type: ignore[operator]
    attribute("magnitude", small, progress=False).save(tmp_path)
    with pytest.raises(ArtefactError, match="d_mlp: scores 24, model 32"):
        ChannelScores.load(tmp_path, large.model)


def test_a_selection_has_the_top_channels_and_some_of_every_site(contrast: Contrast) -> None:
    found = attribute("magnitude", contrast, progress=False)
    chosen = select_channels(found, 10, 2, seed=1)
    flags = found.layout.flags(chosen)
    assert bool(flags[found.order()[:10]].all())
    assert int(flags.sum()) == 10 + 2 * len(found.sites)
    again = select_channels(found, 10, 2, seed=1)
    assert all(torch.equal(again[name], index) for name, index in chosen.items())
    exact = attribute(ExactPatching(selection=chosen), contrast, progress=False)
    assert torch.equal(exact.is_scored(), flags)
