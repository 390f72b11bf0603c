"""A soft prompt is nothing but embeddings at the right place, in any batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lcdd_lens.backends import LensModel, backend_of
from lcdd_lens.eraser import SoftPrompt, mean_embedding_norm
from lcdd_lens.eraser.soft_prompt import PLACEMENTS, Placement, random_token_ids
from lcdd_lens.errors import ConfigError, DataError
from tests.conftest import VOCABULARY
from tests.eraser.helpers import concatenated_logits, padded

placements = pytest.mark.parametrize("placement", PLACEMENTS)
N = 3


def soft_embeddings(model: LensModel, n: int = N) -> Tensor:
    return torch.randn((n, model.cfg.d_model), generator=torch.Generator().manual_seed(2))


@placements
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_every_row_what_hand_made_embeddings_give_it_alone(
    model: LensModel, placement: Placement, side: str
) -> None:
    tokens, mask, rows = padded(side)
    soft = SoftPrompt(soft_embeddings(model), placement)
    with torch.no_grad(), soft.on(model):
        longer, longer_mask = soft.insert(tokens, mask)
        aligned = soft.align(backend_of(model).logits(model, longer, longer_mask), mask)
    with torch.no_grad():
        for row, keep, logits in zip(rows, mask.bool(), aligned, strict=True):
            expected = concatenated_logits(model, row, soft.embeddings, placement)
            torch.testing.assert_close(logits[keep], expected, atol=1e-5, rtol=1e-5)


@placements
def test_gradients_are_those_of_hand_made_embeddings(model: LensModel, placement: Placement) -> None:
    tokens, mask, rows = padded("left")
    soft = SoftPrompt(soft_embeddings(model), placement)
    with soft.on(model):
        longer, longer_mask = soft.insert(tokens, mask)
        batched = backend_of(model).logits(model, longer, longer_mask)[:, -1].log_softmax(-1)[:, 5].sum()
    by_hand = soft_embeddings(model).requires_grad_()
    alone = torch.stack([concatenated_logits(model, row, by_hand, placement)[-1].log_softmax(-1)[5] for row in rows])
    (expected,) = torch.autograd.grad(alone.sum(), by_hand)
    (actual,) = torch.autograd.grad(batched, soft.embeddings)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_positions_are_counted_with_the_soft_prompt(llama: LensModel) -> None:
    tokens, mask, _ = padded("left")
    before, after = (SoftPrompt(soft_embeddings(llama), placement) for placement in PLACEMENTS)
    assert [before.columns, after.columns] == [slice(0, 3), slice(1, 4)]
    for soft in (before, after):
        _, longer_mask = soft.insert(tokens, mask)
        assert bool(longer_mask[:, soft.columns].all())


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    n=st.integers(1, 4),
    placement=st.sampled_from(PLACEMENTS),
    side=st.sampled_from(("left", "right")),
)
def test_insertion_keeps_every_token_in_order_and_adds_n_columns(
    lengths: list[int], n: int, placement: Placement, side: str
) -> None:
    tokens, mask, rows = padded(side, tuple(lengths))
    soft = SoftPrompt(torch.ones(n, 4), placement)
    longer, longer_mask = soft.insert(tokens, mask)
    assert longer.shape == (len(rows), tokens.shape[1] + n)
    is_soft = torch.zeros(longer.shape[1], dtype=torch.bool)
    is_soft[soft.columns] = True
    first = 0 if placement == "before_bos" else 1
    for row, kept, keep in zip(rows, longer, longer_mask.bool(), strict=True):
        assert kept[keep & ~is_soft].tolist() == row.tolist()
        assert is_soft[keep].nonzero().flatten().tolist() == list(range(first, first + n))


@placements
def test_alignment_reads_the_position_that_predicts_the_next_token(placement: Placement) -> None:
    soft = SoftPrompt(torch.ones(2, 4), placement)
    for side in ("left", "right"):
        tokens, mask, rows = padded(side)
        _, longer_mask = soft.insert(tokens, mask)
        position = (longer_mask.cumsum(1) - 1).float()[..., None]
        aligned = soft.align(position, mask)
        for row, keep, positions in zip(rows, mask.bool(), aligned, strict=True):
            # With two soft tokens before token t+1, token t's prediction is made at position t + 2.
            assert positions[keep].flatten().tolist() == [index + 2 for index in range(len(row))]


def test_the_hook_writes_first_so_that_caches_show_what_the_model_saw(llama: LensModel) -> None:
    tokens, mask, _ = padded("left")
    soft = SoftPrompt(soft_embeddings(llama), "after_bos")
    longer, longer_mask = soft.insert(tokens, mask)
    with torch.no_grad(), soft.on(llama):
        _, cache = llama.run_with_cache(longer, attention_mask=longer_mask)
    seen = cache["hook_embed"][:, soft.columns]
    torch.testing.assert_close(seen, soft.embeddings.detach().expand_as(seen), atol=0, rtol=0)


def test_the_hook_is_gone_after_the_block_also_after_an_exception(llama: LensModel) -> None:
    ids = torch.tensor([[1, 5, 6]])
    before = llama(ids)
    with pytest.raises(KeyboardInterrupt), SoftPrompt(soft_embeddings(llama)).on(llama):
        raise KeyboardInterrupt
    assert torch.equal(llama(ids), before)


def test_projection_shortens_only_what_is_too_long() -> None:
    soft = SoftPrompt(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))
    soft.project(1.0)
    torch.testing.assert_close(soft.embeddings.detach(), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_the_unit_of_norms_is_the_mean_row_norm_of_the_embedding(llama: LensModel) -> None:
    rows = [float(row.square().sum().sqrt()) for row in backend_of(llama).embedding(llama).detach()]
    assert mean_embedding_norm(llama) == pytest.approx(sum(rows) / len(rows))


def test_start_tokens_are_different_ordinary_and_named_by_the_seed(llama: LensModel) -> None:
    everything = random_token_ids(llama, VOCABULARY - 4, seed=0)
    assert sorted(everything) == list(range(4, VOCABULARY))
    assert (
        random_token_ids(llama, 5, seed=1) == random_token_ids(llama, 5, seed=1) != random_token_ids(llama, 5, seed=2)
    )


@pytest.mark.parametrize("n", [0, VOCABULARY])
def test_more_start_tokens_than_there_are_is_refused(llama: LensModel, n: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 57 tokens"):
        random_token_ids(llama, n, seed=0)


@placements
def test_a_row_without_tokens_is_refused(placement: Placement) -> None:
    soft = SoftPrompt(torch.ones(1, 4), placement)
    tokens, mask, _ = padded("left")
    mask[1] = 0
    with pytest.raises(DataError, match="has no token"):
        soft.insert(tokens, mask)


def test_a_soft_prompt_without_embeddings_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one embedding"):
        SoftPrompt(torch.zeros(0, 4))
