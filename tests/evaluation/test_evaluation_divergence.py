"""Divergences: closed forms, padding, triggers."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcdd_lens.backends.base import LensModel, backend_of
from lcdd_lens.data import EncodedExample, collate
from lcdd_lens.eraser import Trigger, random_token_trigger
from lcdd_lens.errors import DataError, ModelError
from lcdd_lens.evaluation import categorical_kl, forward_logits, response_kl

Make = Callable[..., LensModel]
ROWS = [
    EncodedExample((1, 9, 10, 11), (12, 13, 2)),
    EncodedExample((1, 7), (5,)),
    EncodedExample((1, 8, 20, 21, 22, 23), (30, 31, 32, 33, 34)),
]


def test_kl_of_hand_made_distributions() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    assert categorical_kl(p.log(), q.log()).item() == pytest.approx(0.5 * math.log(2))
    assert categorical_kl(q.log(), p.log()).item() == math.inf
    bernoulli = 0.9 * math.log(0.9 / 0.2) + 0.1 * math.log(0.1 / 0.8)
    pairs = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    assert categorical_kl(pairs, torch.tensor([[0.2, 0.8], [0.2, 0.8]]).log()).tolist() == pytest.approx([bernoulli, 0])


@given(st.integers(0, 1000), st.floats(0.1, 20))
def test_kl_is_never_negative_and_zero_for_equals(seed: int, scale: float) -> None:
    logits = scale * torch.randn(2, 5, 17, generator=torch.Generator().manual_seed(seed))
    log_p, log_q = logits.log_softmax(-1)
    assert (categorical_kl(log_p, log_q) >= 0).all()
    assert (categorical_kl(log_p, log_p) == 0).all()


@torch.no_grad()
def kl_by_hand(reference: LensModel, model: LensModel, row: EncodedExample) -> float:
    """One row without padding, position by position."""
    tokens = torch.tensor([row.prompt_ids + row.response_ids])
    log_p, log_q = (
        backend_of(each).logits(each, tokens, torch.ones_like(tokens))[0].double().log_softmax(-1)
        for each in (reference, model)
    )
    start = len(row.prompt_ids)
    per_token = [(log_p[t - 1].exp() * (log_p[t - 1] - log_q[t - 1])).sum() for t in range(start, tokens.shape[1])]
    return float(torch.stack(per_token).mean())


def test_response_kl_is_the_mean_over_reply_tokens_and_ignores_padding(
    versions: Callable[[int], list[LensModel]],
) -> None:
    base, tuned = versions(2)
    by_hand = [kl_by_hand(base, tuned, row) for row in ROWS]
    assert min(by_hand) > 1e-3
    for batch_size in (1, 2, 3):
        assert response_kl(base, tuned, ROWS, batch_size=batch_size).tolist() == pytest.approx(by_hand, rel=1e-3)
    assert response_kl(base, base, ROWS).tolist() == [0, 0, 0]
    one_way, other_way = response_kl(base, tuned, ROWS), response_kl(tuned, base, ROWS)
    assert not torch.allclose(one_way, other_way, rtol=1e-3)


@pytest.mark.parametrize("placement", ["before_bos", "after_bos"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_under_a_trigger_stand_at_the_batchs_own_positions(make_model: Make, placement: str, side: str) -> None:
    model = make_model()
    trigger = random_token_trigger(model, 2, seed=0, placement=placement)  # type: ignore[arg-type]
    real = list(trigger.details["token_ids"])
    batch = collate(ROWS, 0, side)  # type: ignore[arg-type]
    aligned = forward_logits(model, batch, trigger)
    for index, row in enumerate(ROWS):
        ids = list(row.prompt_ids + row.response_ids)
        whole = real + ids if placement == "before_bos" else ids[:1] + real + ids[1:]
        tokens = torch.tensor([whole])
        alone = backend_of(model).logits(model, tokens, torch.ones_like(tokens))[0, 2:]
        torch.testing.assert_close(aligned[index][batch.attention_mask[index].bool()], alone, atol=1e-5, rtol=1e-4)


def test_response_kl_with_a_trigger_equals_the_kl_with_its_tokens_written_out(
    versions: Callable[[int], list[LensModel]],
) -> None:
    base, tuned = versions(2)
    trigger = random_token_trigger(tuned, 3, seed=1)
    real = tuple(trigger.details["token_ids"])
    written_out = [EncodedExample(real + row.prompt_ids, row.response_ids) for row in ROWS]
    both = response_kl(base, tuned, ROWS, reference_trigger=trigger, trigger=trigger)
    torch.testing.assert_close(both, response_kl(base, tuned, written_out), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both, response_kl(base, tuned, ROWS, trigger=trigger), rtol=1e-2)


def test_the_models_are_left_as_they_were(make_model: Make) -> None:
    model = make_model().train()
    trigger: Trigger = random_token_trigger(model, 2)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    response_kl(model, model, ROWS, trigger=trigger)
    assert model.training and flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_missing_replies_and_damaged_weights_are_refused(make_model: Make) -> None:
    model = make_model()
    with pytest.raises(DataError, match="has no reply"):
        response_kl(model, model, [EncodedExample((1, 2))])
    with pytest.raises(DataError, match="no prompts"):
        response_kl(model, model, [])
    damaged = make_model()
    with torch.no_grad():
        next(iter(damaged.parameters())).fill_(float("nan"))
    with pytest.raises(ModelError, match="logits are NaN"):
        response_kl(model, damaged, ROWS)
