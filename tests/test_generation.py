"""Decoding: what the cache, the padding and the batching must not change."""

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from lcdd_lens.backends import LensModel, backend_of, load_model, parameter_of
from lcdd_lens.eraser import SoftPrompt, Trigger, random_token_trigger
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.frozen import frozen
from lcdd_lens.generation import generate, pad_left
from lcdd_lens.routing import RoutedModel
from tests.conftest import ARCHITECTURES, CONTEXT, VOCABULARY, tiny_hf
from tests.models import Pair, parameter_name, tiny_pair

EOS = 2
NEW = 9


def ragged_prompts(n: int = 9, longest: int = 12, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[1, *(draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, longest)))] for _ in range(n)]


def greedy_without_cache(
    model: LensModel, prompt: list[int], new: int, eos: int | None, trigger: Trigger | None
) -> list[int]:
    """One full forward pass per token, no padding, no mask; the trigger's embeddings are concatenated by hand."""
    tokens = list(prompt)
    for _ in range(new):
        embedded = backend_of(model).embedding(model)[torch.tensor(tokens)]
        if trigger is not None:
            first = 0 if trigger.placement == "before_bos" else 1
            embedded = torch.cat([embedded[:first], trigger.embeddings, embedded[first:]])
        dummy = torch.zeros(1, len(embedded), dtype=torch.long)

        def write(_old: torch.Tensor, hook: object, new_value: torch.Tensor = embedded) -> torch.Tensor:
            return new_value[None]

        with torch.no_grad():
            logits = model.run_with_hooks(dummy, fwd_hooks=[("hook_embed", write)])
        chosen = int(logits[0, -1].argmax())
        if chosen == eos:
            break
        tokens.append(chosen)
    return tokens[len(prompt) :]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LensModel:
    return load_model(tiny_hf(request.param))


@pytest.fixture(scope="module")
def llama() -> LensModel:
    return load_model(tiny_hf("llama"))


@pytest.fixture
def pair() -> Pair:
    return tiny_pair("llama")


@pytest.mark.parametrize("placement", [None, "before_bos", "after_bos"])
def test_batched_decoding_with_a_cache_equals_one_forward_pass_per_token(
    model: LensModel, placement: str | None
) -> None:
    trigger = None if placement is None else random_token_trigger(model, 3, seed=5, placement=placement)
    prompts = ragged_prompts()
    expected = [greedy_without_cache(model, prompt, NEW, EOS, trigger) for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=NEW, trigger=trigger, batch_size=4, eos_token_id=EOS) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_gets_the_same_answer_in_any_batch(model: LensModel, temperature: float) -> None:
    prompts = ragged_prompts()
    alone = generate(model, prompts, max_new_tokens=NEW, temperature=temperature, batch_size=1)
    for batch_size in (2, 5, 64):
        assert generate(model, prompts, max_new_tokens=NEW, temperature=temperature, batch_size=batch_size) == alone


def test_a_trigger_after_the_first_token_also_works_on_prompts_of_one_token(model: LensModel) -> None:
    trigger = random_token_trigger(model, 2, placement="after_bos")
    prompts = [[1], [1, 7, 8, 9], [5]]
    expected = [greedy_without_cache(model, prompt, NEW, None, trigger) for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=NEW, trigger=trigger) == expected


def test_samples_follow_from_the_seed(llama: LensModel) -> None:
    def sample(seed: int) -> list[list[int]]:
        return generate(llama, ragged_prompts(), max_new_tokens=NEW, temperature=1.0, seed=seed)

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


def test_samples_have_the_frequencies_of_the_softmax(llama: LensModel) -> None:
    prompt, n = [1, 7, 8], 4000
    drawn = generate(llama, [prompt] * n, max_new_tokens=1, temperature=2.0, batch_size=n)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=VOCABULARY) / n
    with torch.no_grad():
        expected = (llama(torch.tensor([prompt]))[0, -1] / 2.0).softmax(-1)
    # four standard errors of a frequency
    assert bool(((counts - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt() + 1e-3).all())


def test_a_low_temperature_and_top_1_are_both_greedy(llama: LensModel) -> None:
    prompts = ragged_prompts()
    greedy = generate(llama, prompts, max_new_tokens=NEW)
    assert generate(llama, prompts, max_new_tokens=NEW, temperature=1e-6) == greedy
    assert generate(llama, prompts, max_new_tokens=NEW, temperature=5.0, top_k=1) == greedy


def test_top_k_samples_stay_among_the_k_likeliest(llama: LensModel) -> None:
    prompt = [1, 7, 8]
    drawn = {
        row[0] for row in generate(llama, [prompt] * 300, max_new_tokens=1, temperature=50.0, top_k=4, batch_size=300)
    }
    with torch.no_grad():
        likeliest = set(llama(torch.tensor([prompt]))[0, -1].topk(4).indices.tolist())
    assert drawn == likeliest


def test_an_answer_ends_before_the_end_token(llama: LensModel) -> None:
    prompts = ragged_prompts()
    free = generate(llama, prompts, max_new_tokens=NEW)
    end = free[0][3]
    stopped = generate(llama, prompts, max_new_tokens=NEW, eos_token_id=end)
    assert stopped == [row[: row.index(end)] if end in row else row for row in free]
    assert end not in stopped[0]


def test_the_pad_token_does_not_matter(llama: LensModel) -> None:
    prompts = ragged_prompts()
    assert generate(llama, prompts, max_new_tokens=NEW, pad_token_id=33) == generate(llama, prompts, max_new_tokens=NEW)


def test_a_routed_model_decodes_like_its_merged_weights_under_the_gates_of_the_moment(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    prompts = ragged_prompts()
    for gates in (routed.all_open(), routed.all_closed()):
        with gates:
            expected = generate(routed.merged(), prompts, max_new_tokens=NEW)
            assert generate(routed.model, prompts, max_new_tokens=NEW) == expected


def test_an_outer_parametrization_cache_neither_serves_stale_weights_nor_is_disturbed(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    prompts = ragged_prompts()
    base = generate(pair.base, prompts, max_new_tokens=NEW)
    with parametrize.cached():
        name = parameter_name(routed.model, "blocks.0.attn.W_Q")
        before = parameter_of(routed.model, name)
        with routed.all_closed():
            assert generate(routed.model, prompts, max_new_tokens=NEW) == base
        assert parameter_of(routed.model, name) is before


def test_each_gated_weight_is_computed_once_per_call(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    calls = []
    owner, _, leaf = parameter_name(routed.model, "blocks.0.attn.W_Q").rpartition(".")
    gated = routed.model.get_submodule(f"{owner}.parametrizations.{leaf}.0")
    with_hook = gated.register_forward_hook(lambda *_: calls.append(1))
    generate(routed.model, ragged_prompts(), max_new_tokens=NEW, batch_size=3)
    with_hook.remove()
    assert len(calls) == 1


class Interrupted(BaseException):
    pass


@pytest.fixture
def interrupting_trigger(llama: LensModel) -> Iterator[Trigger]:
    trigger = random_token_trigger(llama, 1)
    block = llama.get_submodule("blocks.1")

    def interrupt(*_: object) -> None:
        raise Interrupted

    handle = block.register_forward_pre_hook(interrupt)
    yield trigger
    handle.remove()


def test_an_interrupted_call_leaves_modes_flags_and_methods_as_they_were(
    llama: LensModel, interrupting_trigger: Trigger
) -> None:
    llama.train()
    flags = {name: parameter.requires_grad for name, parameter in llama.named_parameters()}
    with pytest.raises(Interrupted):
        generate(llama, [[1, 5]], max_new_tokens=2, trigger=interrupting_trigger)
    assert llama.training
    llama.eval()
    assert {name: parameter.requires_grad for name, parameter in llama.named_parameters()} == flags
    assert "forward" not in vars(llama)
    assert all(not hook_point.fwd_hooks for hook_point in llama.hook_dict.values())  # type: ignore[attr-defined]


def test_gradients_reach_the_weights_again_after_a_frozen_block(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    tokens = torch.tensor([[1, 5, 6]])
    with frozen(routed.model):
        assert not routed.model(tokens).requires_grad
    routed.model(tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in routed.delta_parameters().values())


def test_no_prompts_give_no_answers(llama: LensModel) -> None:
    assert generate(llama, [], max_new_tokens=3) == []


def test_the_context_may_be_filled_to_the_last_position_and_no_further(llama: LensModel) -> None:
    prompt = [1] * (CONTEXT - 4)
    trigger = random_token_trigger(llama, 2)
    assert len(generate(llama, [prompt], max_new_tokens=3, trigger=trigger)[0]) == 3
    with pytest.raises(ConfigError, match=r"needs 49 positions, and the model has 48"):
        generate(llama, [prompt], max_new_tokens=4, trigger=trigger)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": [[1], []]}, DataError, "prompt 1 is empty"),
        ({"prompts": [[1, VOCABULARY]]}, DataError, "ids outside 0..60"),
        ({"max_new_tokens": 0}, ConfigError, "at least 1"),
        ({"batch_size": 0}, ConfigError, "at least 1"),
        ({"temperature": -1.0}, ConfigError, "temperature"),
        ({"temperature": float("nan")}, ConfigError, "temperature"),
        ({"top_k": 0}, ConfigError, "top_k"),
        ({"seed": -1}, ConfigError, "seed"),
    ],
)
def test_unusable_arguments_are_refused_with_the_reason(
    llama: LensModel, options: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {"prompts": [[1, 5]], "max_new_tokens": 2} | options
    with pytest.raises(error, match=message):
        generate(llama, **arguments)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=9), min_size=1, max_size=6))
def test_padding_on_the_left_can_be_taken_off_again(rows: list[list[int]]) -> None:
    tokens, mask = pad_left(rows, pad_token_id=0)
    assert [row[keep.bool()].tolist() for row, keep in zip(tokens, mask, strict=True)] == rows
    assert bool((mask.diff(dim=1) >= 0).all())


def test_a_soft_prompt_of_real_embeddings_is_those_tokens(model: LensModel) -> None:
    ids = [9, 40]
    embeddings = backend_of(model).embedding(model)[torch.tensor(ids)]
    trigger = Trigger.from_soft_prompt(SoftPrompt(embeddings, "after_bos"), model)
    prompts = ragged_prompts()
    spelled_out = [[prompt[0], *ids, *prompt[1:]] for prompt in prompts]
    expected = generate(model, spelled_out, max_new_tokens=NEW)
    assert generate(model, prompts, max_new_tokens=NEW, trigger=trigger) == expected
