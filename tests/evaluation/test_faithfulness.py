"""Faithfulness, necessity and their relatives on a model where they can be worked out."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcdd_lens.attribution import ChannelScores, Contrast, attribute, contrasting
from lcdd_lens.attribution.toy import ToyLinear, reply_logit
from lcdd_lens.data import EncodedExample
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.evaluation.faithfulness import (
    Anchors,
    PromptBootstrap,
    area_linear,
    area_log,
    count_at,
    faithfulness_curve,
)
from lcdd_lens.evaluation.necessity import (
    collateral_kl,
    incompleteness,
    minimality,
    necessity,
    prompts_as_replies,
    sufficiency,
)


@pytest.fixture
def additive() -> Iterator[Contrast]:
    """𝓜 = sum of four open hidden channels times 1, 2, 3, 4, given that every other gate is open."""
    embedding = torch.tensor([[1.0], [1.0], [0.0]])
    unembedding = torch.tensor([[0.0, 1.0, 0.0]])
    base = ToyLinear(embedding, torch.ones(1, 4), torch.zeros(4, 1), unembedding)
    sft = ToyLinear(embedding, torch.ones(1, 4), torch.tensor([[1.0], [2.0], [3.0], [4.0]]), unembedding)
    rows = [EncodedExample((0,), (1,)), EncodedExample((1, 0), (1,)), EncodedExample((1,), (1,))]
    with contrasting(base, sft, rows, metric=reply_logit) as contrast:
        yield contrast


def hidden(*channels: int) -> torch.Tensor:
    """hook_read is open (0), the given hidden channels (1-4) are, and hook_write is (5)."""
    flags = torch.zeros(6, dtype=torch.bool)
    flags[[0, 5, *(1 + channel for channel in channels)]] = True
    return flags


def test_faithfulness_is_the_share_of_the_behaviour_that_comes_back(additive: Contrast) -> None:
    anchors = Anchors.of(additive)
    assert anchors.full.tolist() == [10, 10, 10] and anchors.empty.tolist() == [0, 0, 0]
    assert sufficiency(additive, hidden(0, 1, 2, 3), anchors).value == pytest.approx(1.0)
    assert sufficiency(additive, hidden(3), anchors).value == pytest.approx(0.4)
    assert sufficiency(additive, hidden(), anchors).value == pytest.approx(0.0)
    assert anchors.faithfulness(torch.full((3,), 4.0, dtype=torch.float64)).n == 3


def test_necessity_is_what_is_lost_without_the_channels(additive: Contrast) -> None:
    anchors = Anchors.of(additive)
    only_hidden = hidden(2, 3)
    only_hidden[[0, 5]] = False
    assert necessity(additive, only_hidden, anchors).value == pytest.approx(0.7)
    # closing the write gate loses everything
    assert necessity(additive, hidden(0), anchors).value == pytest.approx(1.0)


def test_drop_one_effects_are_each_channels_own(additive: Contrast) -> None:
    found = minimality(additive, hidden(0, 3), Anchors.of(additive), sample=10, threshold=0.2, progress=False)
    effects = dict(zip(found.channels, found.effects, strict=True))
    # hook_read gates columns of W_in, whose delta is zero: closing it changes nothing
    assert effects == pytest.approx({0: 0.0, 1: 0.1, 4: 0.4, 5: 0.5})
    assert found.share_needed == 0.5 and found.mean.value == pytest.approx(0.25)


def test_a_set_that_is_the_whole_is_complete_and_half_of_it_is_not(additive: Contrast) -> None:
    anchors = Anchors.of(additive)
    assert incompleteness(additive, torch.ones(6, dtype=torch.bool), anchors, draws=4).value == pytest.approx(0.0)
    assert incompleteness(additive, hidden(0), anchors, draws=8).value > 0.1


def test_the_curve_of_a_perfect_ranking_rises_and_its_areas_are_trapezoids(additive: Contrast) -> None:
    scores = attribute("magnitude", additive, progress=False)
    best = ChannelScores("best", scores.sites, {n: s + 100 * (n != "hook_hidden") for n, s in scores.scores.items()})
    shares = (2 / 6, 3 / 6, 4 / 6, 1.0)
    curve = faithfulness_curve(additive, best, Anchors.of(additive), shares=shares, progress=False)
    assert [point.value for point in curve.faithfulness] == pytest.approx([0.0, 0.4, 0.7, 1.0])
    assert curve.counts == (2, 3, 4, 6)
    assert curve.area_linear.value == pytest.approx((0.2 + 0.55) / 6 + 0.85 * 2 / 6)
    assert curve.distance_linear.value == pytest.approx(2 / 6 + (0.8 + 0.45) / 6 + 0.15 * 2 / 6)
    assert curve.smallest_share == 1.0
    widths = np.diff(np.log(shares))
    expected = (0.2 * widths[0] + 0.55 * widths[1] + 0.85 * widths[2]) / math.log(3)
    assert curve.area_log.value == pytest.approx(expected)
    assert curve.to_dict()["value"] == pytest.approx([0.0, 0.4, 0.7, 1.0])


def test_areas_of_constant_curves() -> None:
    shares = (0.01, 0.1, 1.0)
    ones = np.ones((2, 3))
    assert area_log(ones, shares).tolist() == pytest.approx([1.0, 1.0])
    assert area_linear(ones, shares).tolist() == pytest.approx([0.995, 0.995])


def test_collateral_divergence_is_zero_for_the_base_and_grows_with_the_channels(additive: Contrast) -> None:
    rows = prompts_as_replies([EncodedExample((0, 1, 0)), EncodedExample((1, 1)), EncodedExample((0,))])
    assert [row.response_ids for row in rows] == [(1, 0), (1,)]
    none = torch.zeros(6, dtype=torch.bool)
    assert collateral_kl(additive, none, rows).value == pytest.approx(0.0, abs=1e-6)
    assert 0 < collateral_kl(additive, hidden(0), rows).value < collateral_kl(additive, hidden(0, 3), rows).value


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=8), st.floats(-2, 2), st.floats(0.1, 3))
def test_faithfulness_does_not_change_when_the_metric_is_shifted_and_scaled(
    values: list[float], shift: float, scale: float
) -> None:
    measured = np.array(values)
    full, empty = measured + 2.0, measured - 1.0
    bootstrap = PromptBootstrap(len(values), n_resamples=20)
    plain = Anchors(full, empty, bootstrap).faithfulness(measured)
    moved = Anchors(scale * full + shift, scale * empty + shift, bootstrap).faithfulness(scale * measured + shift)
    assert moved.value == pytest.approx(plain.value) == pytest.approx(1 / 3)
    assert moved.low == pytest.approx(plain.low, abs=1e-6)


def test_resamples_are_shared_so_differences_are_paired() -> None:
    bootstrap = PromptBootstrap(4, n_resamples=500)
    hard = np.array([0.0, 1.0, 2.0, 3.0])
    apart = bootstrap.means(hard + 0.1) - bootstrap.means(hard)
    assert apart == pytest.approx(np.full(500, 0.1))
    assert bootstrap.difference(0.1, apart).p_value == pytest.approx(2 / 501)
    assert bootstrap.difference(0.0, np.zeros(500)).p_value == 1.0


def test_bad_input_is_named(additive: Contrast) -> None:
    scores = attribute("magnitude", additive, progress=False)
    anchors = Anchors.of(additive)
    with pytest.raises(ConfigError, match=r"share is 1.5"):
        count_at(1.5, 10)
    with pytest.raises(ConfigError, match="rising"):
        faithfulness_curve(additive, scores, anchors, shares=(0.5, 0.2))
    with pytest.raises(DataError, match="no more of the behaviour than the base"):
        Anchors(np.zeros(2), np.ones(2), PromptBootstrap(2))
    with pytest.raises(DataError, match="2 values for 3 prompts"):
        anchors.faithfulness(np.zeros(2))
    with pytest.raises(ConfigError, match="no channel is open"):
        minimality(additive, torch.zeros(6, dtype=torch.bool), anchors)
    with pytest.raises(ConfigError, match="draws"):
        incompleteness(additive, hidden(0), anchors, draws=0)
