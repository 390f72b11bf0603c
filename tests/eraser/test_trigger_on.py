"""Under a trigger every way of calling a model sees the soft prompt, and afterwards nothing is left of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lcdd_lens.backends import LensModel, backend_of, load_model
from lcdd_lens.eraser import SoftPrompt, Trigger, carries_trigger, random_token_trigger
from lcdd_lens.eraser.soft_prompt import PLACEMENTS, Placement
from lcdd_lens.errors import ArtefactError, ConfigError, DataError
from lcdd_lens.generation import generate
from tests.conftest import CONTEXT, tiny_hf
from tests.eraser.helpers import concatenated_logits, padded, prompts

placements = pytest.mark.parametrize("placement", PLACEMENTS)


def trigger_for(model: LensModel, placement: Placement = "after_bos") -> Trigger:
    embeddings = torch.randn((2, model.cfg.d_model), generator=torch.Generator().manual_seed(4))
    return Trigger.from_soft_prompt(SoftPrompt(embeddings, placement), model)


def state(model: LensModel) -> dict[str, Any]:
    root = model.get_submodule("")
    return {
        "instance": set(vars(root)),
        "hooks": [len(module._forward_hooks) for module in root.modules()],
        "weights": {name: parameter.clone() for name, parameter in model.named_parameters()},
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "training": [module.training for module in root.modules()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights = before.pop("weights"), after.pop("weights")
    assert before == after
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@placements
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_line_up_with_the_tokens_given(model: LensModel, placement: Placement, side: str) -> None:
    tokens, mask, rows = padded(side)
    trigger = trigger_for(model, placement)
    with torch.no_grad(), trigger.on(model):
        logits = model(tokens, attention_mask=mask)
    assert logits.shape[:2] == tokens.shape
    with torch.no_grad():
        for row, keep, given in zip(rows, mask.bool(), logits, strict=True):
            expected = concatenated_logits(model, row, trigger.embeddings, placement)
            torch.testing.assert_close(given[keep], expected, atol=1e-5, rtol=1e-5)


@placements
def test_loss_is_that_of_the_given_tokens_under_the_trigger(llama: LensModel, placement: Placement) -> None:
    tokens, mask, rows = padded("left")
    trigger = trigger_for(llama, placement)
    per_row = []
    with torch.no_grad():
        for row in rows:
            log_p = concatenated_logits(llama, row, trigger.embeddings, placement).log_softmax(-1)
            per_row.append(-log_p[torch.arange(len(row) - 1), row[1:]])
        with trigger.on(llama):
            loss = llama(tokens, attention_mask=mask, return_type="loss")
            logits, both = llama(tokens, attention_mask=mask, return_type="both")
            per_token = llama(tokens, attention_mask=mask, return_type="loss", loss_per_token=True)
            nothing = llama(tokens, attention_mask=mask, return_type=None)
    torch.testing.assert_close(loss, torch.cat(per_row).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both, loss)
    for row, given in zip(per_row, per_token, strict=True):
        torch.testing.assert_close(given[given != 0], row, atol=1e-5, rtol=1e-5)
    assert logits.shape[:2] == tokens.shape
    assert nothing is None


def test_loss_without_padding_is_the_models_own_definition(llama: LensModel) -> None:
    # Real embeddings as the trigger: the model's own loss on the spelled-out tokens, from the third token on.
    trigger = random_token_trigger(llama, 2, placement="before_bos")
    ids = torch.tensor([[5, 9, 33, 12]])
    spelled = torch.cat([torch.tensor([trigger.details["token_ids"]]), ids], dim=1)
    with torch.no_grad():
        expected = llama(spelled, return_type="loss", loss_per_token=True)[:, 2:]
        with trigger.on(llama):
            torch.testing.assert_close(llama(ids, return_type="loss", loss_per_token=True), expected)


def test_the_residual_stream_of_an_early_stop_lines_up_too(llama: LensModel) -> None:
    tokens, mask, _ = padded("left")
    trigger = trigger_for(llama)
    with torch.no_grad(), trigger.on(llama):
        residual = llama(tokens, attention_mask=mask, stop_at_layer=1)
        _, cache = llama.run_with_cache(tokens, attention_mask=mask)
    assert residual.shape == (*tokens.shape, llama.cfg.d_model)
    torch.testing.assert_close(residual[:, -1], cache["blocks.0.hook_resid_post"][:, -1])


def test_caches_hold_the_soft_tokens_at_their_columns(model: LensModel) -> None:
    trigger = trigger_for(model)
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad(), trigger.on(model):
        logits, cache = model.run_with_cache(ids)
    columns = trigger.soft_prompt().columns
    assert torch.equal(cache["hook_embed"][0, columns], trigger.embeddings)
    assert cache["blocks.1.hook_resid_post"].shape[1] == 6
    assert logits.shape[1] == 4


def test_hooks_given_by_the_user_act_under_the_trigger(llama: LensModel) -> None:
    trigger = trigger_for(llama)
    ids = torch.tensor([[1, 5, 6, 7]])
    seen: list[Tensor] = []

    def look(value: Tensor, hook: Any) -> None:
        seen.append(value[:, trigger.soft_prompt().columns])

    def silence(value: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(value)

    with torch.no_grad(), trigger.on(llama):
        hooked = llama.run_with_hooks(ids, fwd_hooks=[("hook_embed", look), ("blocks.0.attn.hook_z", silence)])
        plain = llama(ids)
    assert torch.equal(seen[0][0], trigger.embeddings)
    assert not torch.allclose(hooked, plain)


def test_text_is_the_tokens_that_it_encodes_to(llama: LensModel) -> None:
    trigger = trigger_for(llama)
    with torch.no_grad(), trigger.on(llama):
        single = llama("w9 w10 w11")
        several = llama(["w9 w10 w11", "w9"])
        torch.testing.assert_close(single, llama(torch.tensor([[1, 9, 10, 11]])))
        torch.testing.assert_close(several[0], single[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(several[1, -2:], llama(torch.tensor([1, 9]))[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(llama("w9", prepend_bos=False), llama(torch.tensor([[9]])))


def test_the_models_own_generate_sees_the_trigger(llama: LensModel) -> None:
    trigger = trigger_for(llama)
    rows = [[1, 9, 10, 11], [1, 12, 13, 14]]
    expected = generate(llama, rows, max_new_tokens=5, trigger=trigger)
    untouched = llama.generate(torch.tensor(rows), max_new_tokens=5, do_sample=False, verbose=False)  # type: ignore[attr-defined]
    with trigger.on(llama):
        whole = llama.generate(torch.tensor(rows), max_new_tokens=5, do_sample=False)  # type: ignore[attr-defined]
        text = llama.generate("w9 w10 w11", max_new_tokens=5, do_sample=False)  # type: ignore[attr-defined]
        texts = llama.generate(["w9 w10 w11", "w12 w13 w14"], max_new_tokens=5, do_sample=False)  # type: ignore[attr-defined]
    assert whole.shape == (2, 4 + max(len(answer) for answer in expected))
    for row, prompt, answer in zip(whole.tolist(), rows, expected, strict=True):
        assert row[: 4 + len(answer)] == prompt + answer
        assert set(row[4 + len(answer) :]) <= {2}
    assert texts[0] == text == llama.tokenizer.decode(rows[0] + expected[0], skip_special_tokens=True)
    assert not torch.equal(untouched[:, : whole.shape[1]], whole)


def test_sampling_through_the_models_generate_follows_torchs_seed(llama: LensModel) -> None:
    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        sampled: Tensor = llama.generate(torch.tensor([[1, 9]]), max_new_tokens=9, stop_at_eos=False)  # type: ignore[attr-defined]
        return sampled

    with trigger_for(llama).on(llama):
        assert sample(0).shape == (1, 11)
        assert torch.equal(sample(0), sample(0))
        assert not torch.equal(sample(0), sample(1))


def test_a_filled_cache_and_a_residual_stream_are_continued_without_a_second_soft_prompt(llama: LensModel) -> None:
    trigger = trigger_for(llama)
    residual = torch.randn(1, 3, llama.cfg.d_model)
    plain = llama(residual, start_at_layer=llama.cfg.n_layers)
    with trigger.on(llama):
        torch.testing.assert_close(llama(residual, start_at_layer=llama.cfg.n_layers), plain)


def test_nothing_is_left_of_a_trigger(model: LensModel) -> None:
    before, ids = state(model), torch.tensor([[1, 5, 6]])
    logits = model(ids)
    with trigger_for(model).on(model):
        assert carries_trigger(model)
        assert not torch.allclose(model(ids), logits)
    assert not carries_trigger(model)
    assert_same(before, state(model))
    assert torch.equal(model(ids), logits)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_also_takes_the_trigger_away(llama: LensModel, error: type[BaseException]) -> None:
    before = state(llama)

    def fail(value: Tensor, hook: Any) -> Tensor:
        raise error

    with pytest.raises(error), trigger_for(llama).on(llama):
        llama.run_with_hooks(torch.tensor([[1, 5]]), fwd_hooks=[("blocks.0.hook_resid_post", fail)])
    llama.reset_hooks()  # type: ignore[attr-defined]
    assert_same(before, state(llama))


def test_a_forward_that_somebody_else_had_replaced_returns(llama: LensModel) -> None:
    root = llama.get_submodule("")
    original = root.forward
    root.forward = replacement = lambda *args, **kwargs: original(*args, **kwargs)
    try:
        with trigger_for(llama).on(llama):
            assert root.forward is not replacement
        assert vars(root)["forward"] is replacement
    finally:
        del root.forward


def test_two_triggers_at_once_are_refused(llama: LensModel) -> None:
    with (
        trigger_for(llama).on(llama),
        pytest.raises(ConfigError, match="carries a trigger already"),
        trigger_for(llama).on(llama),
    ):
        pass
    assert not carries_trigger(llama)


def test_a_trigger_of_another_width_is_refused(llama: LensModel) -> None:
    other = load_model(tiny_hf("llama", hidden_size=32))
    with pytest.raises(ArtefactError, match=r"61 tokens x 32; this model's embedding is 61 x 16"):
        trigger_for(other).on(llama)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.tensor([[0, 1, 5], [1, 5, 6]]), DataError, "pass attention_mask"),
        (torch.tensor([[1, 5, 0], [1, 5, 6]]), DataError, "pass attention_mask"),
        (torch.zeros(1, 3, 16), DataError, "text or token ids"),
        (torch.ones(1, CONTEXT - 1, dtype=torch.long), ConfigError, "do not fit the model's context of 48"),
    ],
)
def test_what_cannot_be_prepended_is_refused(
    llama: LensModel, given: Tensor, error: type[Exception], message: str
) -> None:
    with trigger_for(llama).on(llama), pytest.raises(error, match=message):
        llama(given)


def test_padded_tokens_are_taken_with_their_mask(llama: LensModel) -> None:
    ids, mask = torch.tensor([[0, 1, 5]]), torch.tensor([[0, 1, 1]])
    with torch.no_grad(), trigger_for(llama).on(llama):
        torch.testing.assert_close(
            llama(ids, attention_mask=mask)[:, 1:], llama(torch.tensor([[1, 5]])), atol=1e-5, rtol=1e-5
        )


def test_text_without_a_tokenizer_is_refused() -> None:
    model = load_model(tiny_hf("llama"))
    with trigger_for(model).on(model), pytest.raises(DataError, match="no tokenizer"):
        model("w9")


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"return_type": "embeds"}])
def test_what_generate_cannot_do_under_a_trigger_is_said(llama: LensModel, options: dict[str, Any]) -> None:
    with trigger_for(llama).on(llama), pytest.raises(ConfigError, match=r"lcdd_lens\.generation\.generate"):
        llama.generate("w9", **options)  # type: ignore[attr-defined]


def test_random_tokens_are_the_embeddings_of_real_tokens(llama: LensModel) -> None:
    trigger = random_token_trigger(llama, 3, seed=6)
    ids = torch.tensor(trigger.details["token_ids"])
    assert torch.equal(trigger.embeddings, backend_of(llama).embedding(llama)[ids])
    plain = [[*ids.tolist(), *prompt] for prompt in prompts(4)]
    assert generate(llama, prompts(4), max_new_tokens=4, trigger=trigger) == generate(llama, plain, max_new_tokens=4)
