"""Each term of the objective against numbers worked out by hand, and the positions that it is taken at."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lcdd_lens.backends import LensModel, backend_of
from lcdd_lens.eraser import ActivationMatching, SoftPrompt, choose_channels, kl_from_base, norm_penalty
from lcdd_lens.eraser import rows as rows_module
from lcdd_lens.eraser.rows import BaseTargets, make_rows, observe
from lcdd_lens.eraser.soft_prompt import PLACEMENTS, Placement
from lcdd_lens.errors import ConfigError
from tests.eraser.helpers import concatenated_logits, prompts

LAYER_0 = torch.tensor([[1.0, 0.0, 9.0], [3.0, 4.0, 9.0]])
BASE_0 = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 3.0, 0.0]])
LAYER_1 = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 7.0]])
BASE_1 = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 3.0]])


def test_matching_compares_the_means_on_the_channels_and_averages_over_layers() -> None:
    matching = ActivationMatching({0: torch.tensor([0, 1]), 1: torch.tensor([2])})
    value = matching({0: LAYER_0, 1: LAYER_1}, {0: BASE_0, 1: BASE_1})
    # layer 0: means (2, 2) against (1, 1): MSE 1; layer 1: mean 6 against 2: MSE 16
    assert float(value) == pytest.approx((1 + 16) / 2)


def test_per_prompt_matching_compares_row_by_row() -> None:
    matching = ActivationMatching({0: torch.tensor([0, 1])}, per_prompt=True)
    # differences (0, 0) and (3, 4) over four entries
    assert float(matching({0: LAYER_0}, {0: BASE_0[:2]})) == pytest.approx(25 / 4)


def test_matching_does_not_see_other_channels() -> None:
    matching = ActivationMatching({0: torch.tensor([0, 1])})
    moved = LAYER_0 + torch.tensor([0.0, 0.0, 100.0])
    assert matching({0: moved}, {0: BASE_0}) == matching({0: LAYER_0}, {0: BASE_0})


@pytest.mark.parametrize("channels", [{}, {0: torch.tensor([], dtype=torch.long)}])
def test_matching_nothing_is_refused(channels: dict[int, Tensor]) -> None:
    with pytest.raises(ConfigError, match="at least one channel"):
        ActivationMatching(channels)


def test_kl_is_from_the_base_to_the_model_in_nats() -> None:
    base = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log()
    logits = torch.tensor([[[0.25, 0.75], [0.25, 0.75]]]).log() + 3.0
    expected = [0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), 0.0]
    assert kl_from_base(base, logits)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_norm_penalty_is_the_mean_squared_norm() -> None:
    assert float(norm_penalty(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))) == pytest.approx(13.0)


CARRIER = {2: torch.tensor([1, 4, 5]), 0: torch.tensor([3]), 1: torch.tensor([], dtype=torch.long)}


def chosen(choice: str, seed: int = 0) -> dict[int, list[int]]:
    channels = choose_channels(choice, CARRIER, n_layers=3, d_model=40, seed=seed)  # type: ignore[arg-type]
    return {layer: index.tolist() for layer, index in channels.items()}


def test_channel_sets_are_what_their_names_say() -> None:
    assert chosen("carrier") == {0: [3], 2: [1, 4, 5]}
    assert chosen("all") == {layer: list(range(40)) for layer in range(3)}
    assert chosen("none") == {}


def test_random_channels_are_as_many_per_layer_as_the_carriers_and_named_by_the_seed() -> None:
    drawn = chosen("random")
    assert {layer: len(set(index)) for layer, index in drawn.items()} == {0: 1, 2: 3}
    assert drawn == chosen("random") != chosen("random", seed=1)


@pytest.mark.parametrize("choice", ["carrier", "random"])
def test_channels_of_a_carrier_that_is_missing_or_of_another_model_are_refused(choice: str) -> None:
    with pytest.raises(ConfigError, match="residual write channels"):
        choose_channels(choice, None, n_layers=3, d_model=40, seed=0)  # type: ignore[arg-type]
    for n_layers, d_model in ((2, 40), (3, 5)):
        with pytest.raises(ConfigError, match=f"{n_layers} layers, d_model {d_model}"):
            choose_channels(choice, CARRIER, n_layers=n_layers, d_model=d_model, seed=0)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(2, 9), st.integers(0, 4)), min_size=1, max_size=5),
    tail=st.integers(1, 6),
    keep_first=st.booleans(),
)
def test_rows_mark_the_prompts_tail_and_what_predicts_the_answer(
    lengths: list[tuple[int, int]], tail: int, keep_first: bool
) -> None:
    # Token values tell their place: prompts count from 100, answers from 200.
    given_prompts = [list(range(100, 100 + n)) for n, _ in lengths]
    answers = [list(range(200, 200 + n)) for _, n in lengths]
    rows = make_rows(given_prompts, answers, tail=tail, keep_first=keep_first)
    columns = rows.tokens[:, -rows.n_columns :]
    for index, (prompt, answer) in enumerate(zip(given_prompts, answers, strict=True)):
        assert rows.tokens[index, rows.last[index]] == prompt[-1]
        assert columns[index][rows.tail[index]].tolist() == prompt[int(keep_first) :][-tail:]
        assert columns[index][rows.answer[index]].tolist() == [prompt[-1], *answer][: len(answer)]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_observation_is_what_each_row_gives_alone(model: LensModel, placement: Placement) -> None:
    given_prompts, answers = prompts(5), [[9, 8, 7], [], [5], [6, 6], [30, 31, 32, 33]]
    soft = SoftPrompt(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), placement)
    rows = make_rows(given_prompts, answers, tail=3, keep_first=placement == "after_bos")
    with torch.no_grad():
        seen = observe(model, rows, layers=(0, 1), soft_prompt=soft)
        for index, (prompt, answer) in enumerate(zip(given_prompts, answers, strict=True)):
            row = torch.tensor(prompt + answer[:-1])
            expected = concatenated_logits(model, row, soft.embeddings, placement)
            end = len(prompt)
            first = max(end - 3, int(placement == "after_bos"))
            tail, answered = expected[first:end], expected[end - 1 : end - 1 + len(answer)]
            torch.testing.assert_close(seen.logits[index][rows.tail[index]], tail, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(seen.logits[index][rows.answer[index]], answered, atol=1e-5, rtol=1e-5)
            alone = make_rows([prompt], [[]], tail=3, keep_first=False)
            residuals = observe(model, alone, layers=(0, 1), soft_prompt=soft).residuals
            for layer in (0, 1):
                torch.testing.assert_close(seen.residuals[layer][index], residuals[layer][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stored", [True, False])
def test_base_targets_are_the_base_on_every_prompt_alone(
    llama: LensModel, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not stored:
        monkeypatch.setattr(rows_module, "MAX_STORED_BYTES", 0)
    given_prompts, answers = prompts(7), [[9, 8, 7], [], [5], [6, 6], [30, 31, 32, 33], [], [4, 5]]
    targets = BaseTargets(llama, given_prompts, answers, layers=(1,), tail=2, keep_first=False, batch_size=3)
    picked = [6, 0, 3]
    rows = targets.rows(picked)
    log_probs = targets.log_probs(picked, rows)
    for place, index in enumerate(picked):
        row = torch.tensor([given_prompts[index] + answers[index][:-1]])
        with torch.no_grad():
            logits, cache = llama.run_with_cache(row)
        end = len(given_prompts[index])
        expected = logits[0].log_softmax(-1)
        torch.testing.assert_close(log_probs[place][rows.tail[place]], expected[end - 2 : end], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(log_probs[place][rows.answer[place]], expected[end - 1 :], atol=1e-5, rtol=1e-5)
        residual = cache["blocks.1.hook_resid_post"][0, end - 1]
        torch.testing.assert_close(targets.residuals[1][index], residual, atol=1e-5, rtol=1e-5)


def test_only_the_columns_that_count_are_unembedded(llama: LensModel) -> None:
    rows = make_rows(prompts(5), [[]] * 5, tail=2, keep_first=False)
    assert observe(llama, rows).logits.shape == (5, 2, 61)
    assert backend_of(llama).logits(llama, rows.tokens, rows.attention_mask).shape == (5, rows.tokens.shape[1], 61)
