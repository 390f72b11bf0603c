"""Carriers: sets of channels that know their model, on paper and on disk."""

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcdd_lens import __version__
from lcdd_lens.backends import LensModel, Site, backend_of, load_model, weights_fingerprint
from lcdd_lens.carrier import Carrier, channels_from_flags, model_dimensions, pairwise_jaccard
from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.io import load_tensors, record_digest, save_tensors_atomic
from lcdd_lens.routing import RoutedModel, RoutingMasks
from tests.conftest import tiny_hf
from tests.models import Pair, random_flags, shifted, tiny_pair, tokens

READ, WRITE = "blocks.0.ln1.hook_normalized", "blocks.0.hook_attn_out"
MLP, LATER = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"
SITES = (
    Site(0, "attn_read", READ, 4),
    Site(0, "attn_write", WRITE, 4),
    Site(0, "ffn_write", MLP, 4),
    Site(1, "ffn_write", LATER, 4),
)


def carrier(**channels: list[int]) -> Carrier:
    names = {"read": READ, "write": WRITE, "mlp": MLP, "later": LATER}
    return Carrier(SITES, {names[key]: torch.tensor(value, dtype=torch.long) for key, value in channels.items()})


flags = st.lists(st.booleans(), min_size=16, max_size=16).map(torch.tensor)
carriers = flags.map(lambda given_: Carrier(SITES, channels_from_flags(SITES, given_)))
EMPTY, FULL = carrier(), carrier().complement()

# -- set algebra


@given(carriers, carriers, carriers)
@settings(deadline=None, max_examples=12)
def test_carriers_obey_the_laws_of_sets(a: Carrier, b: Carrier, c: Carrier) -> None:
    assert a | b == b | a and a & b == b & a
    assert (a | b) | c == a | (b | c) and (a & b) & c == a & (b & c)
    assert a & (b | c) == (a & b) | (a & c) and a | (b & c) == (a | b) & (a | c)
    assert a | (a & b) == a == a & (a | b)
    assert (a | b).complement() == a.complement() & b.complement()
    assert a.complement().complement() == a
    assert a | a.complement() == FULL and a & a.complement() == EMPTY
    assert a - b == a & b.complement()
    assert (a | b).n_open == a.n_open + b.n_open - (a & b).n_open


@given(carriers, carriers)
@settings(deadline=None, max_examples=25)
def test_jaccard_is_a_similarity(a: Carrier, b: Carrier) -> None:
    assert a.jaccard(b) == b.jaccard(a)
    assert 0 <= a.jaccard(b) <= 1
    assert (a.jaccard(b) == 1) == (a == b)
    union = (a | b).n_open
    assert a.jaccard(b) == pytest.approx((a & b).n_open / union if union else 1.0)


def test_jaccard_by_hand() -> None:
    a, b = carrier(read=[0, 1], mlp=[3]), carrier(read=[1, 2], mlp=[3], later=[0])
    assert a.jaccard(b) == 2 / 5
    assert EMPTY.jaccard(EMPTY) == 1.0
    assert EMPTY.jaccard(a) == 0.0
    assert pairwise_jaccard([a, b, a, EMPTY]) == [2 / 5, 1.0, 0.0, 2 / 5, 0.0, 0.0]


def test_equality_and_hash_are_those_of_the_open_channels() -> None:
    one, other = carrier(read=[2, 0]), replace(carrier(read=[0, 2]), config={"seed": 1})
    assert one == other and hash(one) == hash(other)
    assert one != carrier(read=[0]) and one != "a carrier"
    assert len({one, other, EMPTY}) == 2


def test_algebra_keeps_the_base_that_both_share_and_no_scores() -> None:
    a = replace(carrier(read=[0]), base_fingerprint="base", routed_fingerprint="one", dimensions={"d_model": 4})
    b = replace(carrier(read=[1]), base_fingerprint="base", routed_fingerprint="two")
    assert (a | b).base_fingerprint == "base" and (a | b).routed_fingerprint == ""
    assert (a | b).dimensions == {"d_model": 4}
    assert (a | replace(b, base_fingerprint="other")).base_fingerprint == ""
    scored = replace(a, scores={name: torch.zeros(4) for name in (READ, WRITE, MLP, LATER)})
    assert scored.complement().scores == {} == (scored | b).scores


def test_carriers_of_different_models_are_not_combined() -> None:
    other = Carrier(SITES[:2], {})
    for combine in (Carrier.__or__, Carrier.__and__, Carrier.__sub__, Carrier.jaccard):
        with pytest.raises(ArtefactError, match="different sites"):
            combine(EMPTY, other)
    assert other != EMPTY


# -- what there is


def test_channels_are_sorted_without_repeats_and_complete() -> None:
    made = carrier(read=[3, 1, 3])
    assert {name: index.tolist() for name, index in made.channels.items()} == {
        READ: [1, 3],
        WRITE: [],
        MLP: [],
        LATER: [],
    }
    assert (made.n_open, made.n_gates, made.sparsity) == (2, 16, 0.875)


def test_channels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"channels 0\.\.3"):
        carrier(read=[4])
    with pytest.raises(ConfigError, match=r"channels 0\.\.3"):
        carrier(read=[-1])
    with pytest.raises(ConfigError, match="not a site"):
        Carrier(SITES, {"blocks.7.hook_mlp_out": torch.tensor([0])})


def test_residual_write_channels_are_the_union_of_what_both_branches_write() -> None:
    made = carrier(read=[0, 1, 2, 3], write=[0, 2], mlp=[2, 3])
    assert {layer: index.tolist() for layer, index in made.residual_write_channels().items()} == {0: [0, 2, 3]}
    both = carrier(write=[1], later=[3, 0])
    assert {layer: index.tolist() for layer, index in both.residual_write_channels().items()} == {0: [1], 1: [0, 3]}
    assert carrier(read=[1]).residual_write_channels() == {}


def test_sparsity_by_layer_and_by_kind() -> None:
    made = carrier(read=[0], write=[0, 1], later=[0, 1, 2, 3])
    assert made.sparsity_by("layer") == {0: 1 - 3 / 12, 1: 0.0}
    assert made.sparsity_by("kind") == {"attn_read": 0.75, "attn_write": 0.5, "ffn_write": 0.5}


def test_the_table_has_one_row_a_site() -> None:
    frame = carrier(read=[0], mlp=[1, 2]).to_dataframe()
    assert list(frame.columns) == ["layer", "kind", "hook_name", "n_channels", "n_open", "density"]
    assert frame["hook_name"].tolist() == [READ, WRITE, MLP, LATER]
    assert frame["n_open"].tolist() == [1, 0, 2, 0]
    assert frame["density"].tolist() == [0.25, 0.0, 0.5, 0.0]


def test_the_repr_says_how_much_is_open_and_where() -> None:
    assert repr(carrier(write=[0], later=[1])) == "Carrier(2 of 16 channels open, sparsity 0.875, layers 0-1)"
    assert repr(EMPTY) == "Carrier(0 of 16 channels open, sparsity 1.000, no layer)"


def test_html_is_a_table_and_escapes_what_it_is_given() -> None:
    shown = carrier(write=[0])._repr_html_()
    assert "<table" in shown and html.escape(repr(carrier(write=[0]))) in shown

    class Named(str):
        pass

    hostile = Site(0, Named("attn_read"), "<script>alert(1)</script>", 2)  # type: ignore[arg-type]
    assert "<script>" not in Carrier((hostile,), {})._repr_html_()


# -- with a model


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair("llama")


@pytest.fixture(scope="module")
def found(pair: Pair) -> Carrier:
    """A carrier as LCDD leaves it, on a random model."""
    routed = RoutedModel(backend_of(pair.sft).clone(pair.sft), pair.base)
    masks = RoutingMasks(routed.sites, init_mean=0.0, init_std=1.0, seed=4)
    routed.route_by(masks)
    return Carrier.from_masks(
        masks,
        routed.model,
        base_fingerprint=weights_fingerprint(pair.base),
        routed_fingerprint=weights_fingerprint(routed.merged()),
        config={"rule": "price", "share": 0.08, "label": "naïve"},
    )


@pytest.fixture
def saved(found: Carrier, tmp_path: Path) -> Path:
    return found.save(tmp_path / "carrier")


def test_hooks_name_places_that_a_cache_has(found: Carrier, pair: Pair) -> None:
    with torch.no_grad():
        _, cache = pair.base.run_with_cache(tokens())
    hooks = found.to_hooks()
    assert sum(len(index) for _, index in hooks) == found.n_open
    for name, index in hooks:
        values = cache[name]
        values = values.flatten(-2) if name.endswith(("hook_q", "hook_k", "hook_v")) else values
        assert values.shape[-1] == len(found.scores[name])
        assert values[..., index].shape[-1] == len(index) > 0
    closed_site = replace(
        found, channels={name: index for name, index in found.channels.items() if name != hooks[0][0]}
    )
    assert hooks[0][0] not in dict(closed_site.to_hooks())


def test_from_masks_takes_the_open_gates_and_their_scores(found: Carrier, pair: Pair) -> None:
    masks = RoutingMasks(found.sites, init_mean=0.0, init_std=1.0, seed=4)
    assert torch.equal(found.flags(), masks.logits > 0)
    assert torch.equal(found.layout.join(found.scores), masks.logits.detach())
    assert found.dimensions == model_dimensions(pair.base)
    assert found.dimensions["n_key_value_heads"] == 2 and found.dimensions["d_vocab"] == 61


def test_a_saved_carrier_comes_back_bit_by_bit(found: Carrier, saved: Path, pair: Pair) -> None:
    loaded = Carrier.load(saved, pair.base)
    assert loaded == found
    assert all(torch.equal(loaded.scores[name], found.scores[name]) for name in found.scores)
    assert (loaded.dimensions, loaded.config) == (found.dimensions, found.config)
    assert (loaded.base_fingerprint, loaded.routed_fingerprint) == (found.base_fingerprint, found.routed_fingerprint)
    assert sorted(file.name for file in saved.iterdir()) == ["carrier.json", "carrier.safetensors"]
    assert json.loads((saved / "carrier.json").read_text())["library_version"] == __version__


def test_a_carrier_without_scores_or_open_channels_can_be_saved(tmp_path: Path) -> None:
    assert Carrier.load(EMPTY.save(tmp_path / "a")) == EMPTY
    assert Carrier.load(FULL.save(tmp_path / "b")).scores == {}


def test_saving_again_replaces(found: Carrier, saved: Path) -> None:
    found.complement().save(saved)
    assert Carrier.load(saved) == found.complement()


# -- damage


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        record = json.loads((folder / "carrier.json").read_text())
        change(record)
        (folder / "carrier.json").write_text(json.dumps(record))

    return apply


def resealed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def seal(record: dict[str, Any]) -> None:
        change(record)
        record["record_sha256"] = record_digest(record)

    return edit(seal)


def cut(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return apply


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "carrier.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "carrier.safetensors").write_bytes(bytes(content))


def one_more_channel(folder: Path) -> None:
    tensors = load_tensors(folder / "carrier.safetensors")
    name = next(name for name in tensors if name.startswith("open."))
    tensors[name] = torch.cat([tensors[name], torch.tensor([0])])
    save_tensors_atomic(folder / "carrier.safetensors", tensors)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


ALTERED, OTHER_TENSORS = "altered after it was saved", "not the file that carrier.json was written with"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "json missing": (remove("carrier.json"), "does not exist"),
    "tensors missing": (remove("carrier.safetensors"), "does not exist"),
    "json cut off": (cut("carrier.json"), "not valid JSON"),
    "tensors cut off": (cut("carrier.safetensors"), "damaged or cut off"),
    "tensors altered": (flip_a_bit, OTHER_TENSORS),
    "a channel added": (one_more_channel, OTHER_TENSORS),
    "field missing": (edit(lambda record: record.pop("sites")), "fields of _CarrierRecord"),
    "field of another type": (edit(lambda record: record.update(dimensions={"d_model": "16"})), "fields of _Carr"),
    "unknown kind of site": (edit(lambda record: record["sites"][0].update(kind="head")), "fields of _CarrierRecord"),
    "seal missing": (edit(lambda record: record.pop("record_sha256")), ALTERED),
    "fingerprint altered": (edit(lambda record: record.update(base_fingerprint="")), ALTERED),
    "configuration altered": (edit(lambda record: record["config"].update(share=0.5)), ALTERED),
    "site renamed": (edit(lambda record: record["sites"][0].update(hook_name="blocks.9.hook_q")), ALTERED),
    "dimension altered": (edit(lambda record: record["dimensions"].update(d_model=17)), ALTERED),
    "newer version": (edit(lambda record: record.update(schema=99, sites="other")), "schema 99.*update lcdd_lens"),
    "sites that do not fit": (resealed(lambda record: record["sites"].pop()), "do not fit the sites"),
    "channels beyond the site": (resealed(lambda record: record["sites"][0].update(n_channels=1)), "do not fit"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_carrier_is_refused_with_the_reason(saved: Path, damage: str) -> None:
    apply, message = DAMAGE[damage]
    apply(saved)
    with pytest.raises(ArtefactError, match=message):
        Carrier.load(saved)


def narrower() -> LensModel:
    return load_model(tiny_hf("llama", intermediate_size=20))


STRANGERS: dict[str, tuple[Callable[[Pair], LensModel], str]] = {
    "other dimensions": (lambda pair: narrower(), r"other dimensions \(d_mlp: carrier 24, model 20\)"),
    "other weights": (lambda pair: shifted(pair.base, seed=8), "other weights"),
    "the fine-tuned model": (lambda pair: pair.sft, "other weights"),
    "other embeddings": (lambda pair: load_model(tiny_hf("llama", seed=1)), "other weights"),
    "other architecture": (lambda pair: load_model(tiny_hf("gpt2", n_inner=24)), "other dimensions"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_carrier_refuses_models_that_it_does_not_belong_to(saved: Path, pair: Pair, stranger: str) -> None:
    make, message = STRANGERS[stranger]
    with pytest.raises(ArtefactError, match=message):
        Carrier.load(saved, make(pair))


def test_an_architecture_with_the_same_dimensions_but_other_sites_is_refused(found: Carrier) -> None:
    neox = load_model(tiny_hf("neox", intermediate_size=24))
    same_sizes = replace(found, dimensions={}, base_fingerprint="", routed_fingerprint="")
    with pytest.raises(ArtefactError, match="another architecture"):
        same_sizes.check_model(neox)


def test_the_merged_routed_model_is_accepted(found: Carrier, saved: Path, pair: Pair) -> None:
    routed = RoutedModel(backend_of(pair.sft).clone(pair.sft), pair.base)
    routed.open_only(found.channels)
    assert Carrier.load(saved, routed.merge()) == found


def test_without_fingerprints_dimensions_decide(found: Carrier, pair: Pair, tmp_path: Path) -> None:
    anonymous = replace(found, base_fingerprint="", routed_fingerprint="")
    anonymous.save(tmp_path)
    assert Carrier.load(tmp_path, pair.sft) == found


def test_opening_a_loaded_carrier_routes_as_before(found: Carrier, saved: Path, pair: Pair) -> None:
    routed = RoutedModel(backend_of(pair.sft).clone(pair.sft), pair.base)
    routed.open_only(Carrier.load(saved).channels)
    assert torch.equal(routed.layout.join(routed.gates), found.flags().float())
    assert not torch.equal(found.flags(), random_flags(found.n_gates))
