"""Agreement of carriers against closed forms and against draws."""

import pytest
import torch

from lcdd_lens.backends import Site
from lcdd_lens.carrier import Carrier
from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.evaluation.identity import (
    identity,
    identity_between,
    identity_by_kind,
    layer_shares,
    random_carrier,
    start_correlation,
)

SITES = (
    Site(0, "attn_write", "blocks.0.hook_attn_out", 40),
    Site(0, "ffn_hidden", "blocks.0.mlp.hook_post", 100),
    Site(1, "attn_write", "blocks.1.hook_attn_out", 40),
    Site(1, "ffn_hidden", "blocks.1.mlp.hook_post", 100),
)
N = 280


def carrier(*counts: range) -> Carrier:
    """Open channels at the four sites, in order."""
    return Carrier(SITES, {s.hook_name: torch.tensor(list(c)) for s, c in zip(SITES, counts, strict=False) if len(c)})


def test_jaccard_is_the_mean_over_all_pairs() -> None:
    runs = [carrier(range(10)), carrier(range(5, 15)), carrier(range(10))]
    found = identity(runs)
    assert found.pairs == 3
    assert found.jaccard == pytest.approx((5 / 15 + 1 + 5 / 15) / 3)
    assert (found.lowest, found.highest) == (pytest.approx(1 / 3), 1)


def test_chance_for_equal_sizes_is_k_over_2n_minus_k() -> None:
    k = 30
    runs = [random_carrier(carrier(range(k)), stratified=False, seed=seed) for seed in range(2)]
    assert identity(runs).chance == pytest.approx(k / (2 * N - k))


def test_stratified_chance_adds_the_sites_expected_overlaps() -> None:
    a, b = carrier(range(8), range(50)), carrier(range(20), range(10))
    shared = 8 * 20 / 40 + 50 * 10 / 100
    assert identity([a, b]).stratified_chance == pytest.approx(shared / (58 + 30 - shared))


@pytest.mark.parametrize("stratified", [False, True])
def test_random_carriers_agree_as_chance_says(stratified: bool) -> None:
    like = carrier(range(20), range(60), range(2))
    draws = [random_carrier(like, stratified=stratified, seed=seed) for seed in range(60)]
    found = identity(draws)
    assert found.jaccard == pytest.approx(found.stratified_chance if stratified else found.chance, rel=0.03)


def test_a_stratified_draw_keeps_every_site_s_count_and_a_uniform_one_the_size() -> None:
    like = carrier(range(20), range(60), range(2))
    drawn = random_carrier(like, stratified=True, seed=1)
    assert [len(drawn.channels[s.hook_name]) for s in SITES] == [20, 60, 2, 0]
    uniform = random_carrier(like, stratified=False, seed=1)
    assert uniform.n_open == like.n_open
    assert len(uniform.channels[SITES[3].hook_name]) > 0
    assert drawn == random_carrier(like, stratified=True, seed=1) != random_carrier(like, stratified=True, seed=2)


def test_carriers_in_one_layer_look_alike_until_chance_is_stratified() -> None:
    like = carrier(range(20), range(60))
    found = identity([random_carrier(like, stratified=True, seed=seed) for seed in range(8)])
    assert found.jaccard > 2 * found.chance
    assert found.times_chance == pytest.approx(1, abs=0.15)


def test_groups_are_compared_across_only() -> None:
    idk, style = [carrier(range(10)), carrier(range(10))], [carrier(range(5, 15))]
    found = identity_between(idk, style)
    assert found.pairs == 2
    assert found.jaccard == pytest.approx(1 / 3)


def test_kinds_are_judged_apart() -> None:
    a, b = carrier(range(10), range(20)), carrier(range(10), range(20, 40))
    by_kind = identity_by_kind([a, b])
    assert by_kind["attn_write"].jaccard == 1
    assert by_kind["ffn_hidden"].jaccard == 0
    assert by_kind["attn_write"].chance == pytest.approx(10 / (2 * 80 - 10))
    assert set(identity_by_kind([carrier(range(3)), carrier(range(3))])) == {"attn_write"}


def test_layer_shares_count_open_channels() -> None:
    assert layer_shares(carrier(range(10), range(20), range(10))) == {0: 0.75, 1: 0.25}
    assert layer_shares(carrier()) == {0: 0, 1: 0}


def test_start_correlation_tells_dice_from_learning_and_kinds_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    start, noise = torch.randn(2, N, generator=generator)
    assert start_correlation(start, 3 * start - 1)["all"] == pytest.approx(1)
    assert abs(start_correlation(start, noise)["all"] or 1) < 0.2
    mixed = start.clone()
    mixed[40:140] = -start[40:140]
    mixed[180:] = -start[180:]
    by_kind = start_correlation(start, mixed, SITES)
    assert by_kind["attn_write"] == pytest.approx(1)
    assert by_kind["ffn_hidden"] == pytest.approx(-1)
    assert start_correlation(torch.ones(N), noise)["all"] is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        identity([carrier(range(3))])
    with pytest.raises(ArtefactError, match="different sites"):
        identity([carrier(range(3)), Carrier(SITES[:2], {})])
    with pytest.raises(ConfigError, match="one a channel"):
        start_correlation(torch.ones(N), torch.ones(N), SITES[:2])
