"""Training a trigger: it finds what was planted, keeps the best step, and touches nothing but the trigger."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lcdd_lens.backends import LensModel, load_model, parameter_of
from lcdd_lens.compatibility import has_hooked_transformer
from lcdd_lens.eraser import EraserConfig, EraserResult, SoftPrompt, mean_embedding_norm, train_eraser
from lcdd_lens.eraser import eraser as eraser_module
from lcdd_lens.errors import ConfigError, DataError, LensError, ModelError, TrainingError
from lcdd_lens.generation import generate
from lcdd_lens.routing import RoutedModel
from lcdd_lens.routing.routed import GatedDelta
from tests.conftest import CONTEXT, tiny_hf
from tests.eraser.helpers import concatenated_logits, prompts, words
from tests.models import Pair, logits, shifted, tiny_pair

needs_hooked = pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
QUICK = EraserConfig(
    n_tokens=2, steps=12, lr=0.05, batch_size=8, n_prompts=24, n_validation=9, tail=3, w_norm=0.0, eval_every=4
)
CHANNELS = {0: torch.tensor([1, 5, 9]), 1: torch.tensor([0, 2])}


def train(pair: Pair, config: EraserConfig = QUICK, channels: dict[int, Tensor] | None = CHANNELS) -> EraserResult:
    return train_eraser(pair.sft, pair.base, channels, prompts(24, seed=1), prompts(9, seed=2), config, progress=False)


# -- a solution planted by construction


def averaging_model(shift: Tensor) -> LensModel:
    """One head that attends evenly and reads coordinates 0-3, which no real token has, into coordinates 4-7.

    Without a soft prompt the head gives 0. At position t a soft token e adds e[0:4] / (t + 1) to coordinates 4-7;
    the attention bias adds ``shift`` there. So ``e[0:4] = (t + 1) · shift`` makes a model with bias 0 act, at position
    t, as one with bias ``shift``.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=16, d_head=8, n_heads=1, d_mlp=4, d_vocab=11, act_fn="relu", device="cpu",
        normalization_type=None, positional_embedding_type="rotary", rotary_dim=2,
    )  # fmt: skip
    model = HookedTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, 4:] = torch.randn(11, 4)
        model.unembed.W_U[:] = torch.randn(8, 11)
        block = model.blocks[0]
        block.attn.W_V[0, :4, :4] = torch.eye(4)
        block.attn.W_O[0, :4, 4:] = torch.eye(4)
        block.attn.b_O[4:] = shift
    return model.eval()


@needs_hooked
def test_the_optimiser_finds_a_planted_prompt() -> None:
    shift = torch.tensor([0.3, -0.2, 0.1, 0.25])
    model, base = averaging_model(torch.zeros(4)), averaging_model(shift)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(0, 11, (40, 5), generator=generator).tolist()
    config = EraserConfig(
        n_tokens=1, steps=150, lr=0.1, batch_size=16, tail=1, w_match=0.0, w_norm=0.0, max_norm=5.0, eval_every=10
    )
    result = train_eraser(model, base, None, rows[:30], rows[30:], config, progress=False)
    # 5 prompt tokens and the soft token are averaged at the prompt's last position
    torch.testing.assert_close(result.trigger.embeddings[0, :4] / 6, shift, atol=0.01, rtol=0.0)
    assert result.best_validation < 1e-4


@needs_hooked
def test_matching_alone_finds_the_planted_prompt_too() -> None:
    shift = torch.tensor([0.3, -0.2, 0.1, 0.25])
    model, base = averaging_model(torch.zeros(4)), averaging_model(shift)
    rows = torch.randint(0, 11, (40, 5), generator=torch.Generator().manual_seed(3)).tolist()
    for per_prompt in (False, True):
        config = EraserConfig(
            n_tokens=1, steps=100, lr=0.1, batch_size=40, channels="all", w_kl=0.0, w_norm=0.0, max_norm=5.0,
            per_prompt=per_prompt, eval_every=10,
        )  # fmt: skip
        result = train_eraser(model, base, None, rows, rows, config, progress=False)
        torch.testing.assert_close(result.trigger.embeddings[0, :4] / 6, shift, atol=0.01, rtol=0.0)


# -- the objective is what it says


def kl_by_hand(pair: Pair, row: Tensor, soft: Tensor, placement: Any) -> Tensor:
    with torch.no_grad():
        log_q = concatenated_logits(pair.sft, row, soft, placement).log_softmax(-1)
        log_p = pair.base(row[None])[0].log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize(
    ("architecture", "placement", "answers_of"),
    [("gpt2", "after_bos", "base"), ("neox", "before_bos", "model"), ("llama", "after_bos", "both")],
)
def test_the_validation_objective_is_the_formula_computed_prompt_by_prompt(
    architecture: str, placement: Any, answers_of: Any
) -> None:
    pair = tiny_pair(architecture)
    config = replace(QUICK, placement=placement, w_norm=0.1, w_answer=0.3, answer_tokens=4, answers_of=answers_of)
    result = train(pair, config)
    soft = result.trigger.embeddings
    tails, answered, residuals, base_residuals = [], [], [], []
    for prompt in prompts(9, seed=2):
        row, end = torch.tensor(prompt), len(prompt)
        for source in {"base": [pair.base], "model": [pair.sft], "both": [pair.base, pair.sft]}[answers_of]:
            [answer] = generate(source, [prompt], max_new_tokens=4)
            answered.append(kl_by_hand(pair, torch.tensor(prompt + answer[:-1]), soft, placement)[end - 1 :])
        with torch.no_grad():
            _, base_cache = pair.base.run_with_cache(row[None])
            with SoftPrompt(soft, placement).on(pair.sft):
                longer, mask = SoftPrompt(soft, placement).insert(row[None], torch.ones(1, end).long())
                _, cache = pair.sft.run_with_cache(longer, attention_mask=mask)
        tails.append(kl_by_hand(pair, row, soft, placement)[max(end - 3, int(placement == "after_bos")) :])
        residuals.append([cache[f"blocks.{layer}.hook_resid_post"][0, -1] for layer in (0, 1)])
        base_residuals.append([base_cache[f"blocks.{layer}.hook_resid_post"][0, end - 1] for layer in (0, 1)])
    match = 0.0
    for layer, channels in CHANNELS.items():
        ours = torch.stack([row[layer] for row in residuals]).mean(0)[channels]
        theirs = torch.stack([row[layer] for row in base_residuals]).mean(0)[channels]
        match += float((ours - theirs).square().mean()) / 2
    norm = float(soft.square().sum(1).mean())
    expected = match + 0.7 * float(torch.cat(tails).mean()) + 0.3 * float(torch.cat(answered).mean()) + 0.1 * norm
    assert result.best_validation == pytest.approx(expected, rel=1e-4)


def test_a_large_validation_set_is_one_set_not_many(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(pair, replace(QUICK, batch_size=2))
    monkeypatch.setattr(eraser_module, "VALIDATION_BATCH", 2)
    in_chunks = train(pair, replace(QUICK, batch_size=2))
    assert in_chunks.best_validation == pytest.approx(whole.best_validation, rel=1e-4)


def test_answers_end_with_the_end_token_where_the_base_stopped() -> None:
    model = load_model(tiny_hf("llama"), tokenizer=words())
    rows = prompts(12)
    free = generate(model, rows, max_new_tokens=6, eos_token_id=-1)
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(free[0][2])
    answers = eraser_module._greedy_answers(model, rows, replace(QUICK, w_answer=1.0, answer_tokens=6))
    end = model.tokenizer.eos_token_id
    assert answers == [row[: row.index(end) + 1] if end in row else row for row in free]
    assert answers[0][-1] == end


# -- what training does


def test_training_lowers_the_objective_and_keeps_the_best_validated_step(pair: Pair) -> None:
    result = train(pair, replace(QUICK, steps=60))
    validated = {s: v for s, v in zip(result.history.step, result.history.validation, strict=True) if v is not None}
    start = train(pair, replace(QUICK, steps=1, lr=1e-12)).best_validation
    assert sorted(validated) == list(range(4, 61, 4))
    assert result.best_validation == min(validated.values()) == validated[result.best_step]
    assert result.best_validation < 0.8 * start


def test_the_kept_step_is_the_lowest_on_the_validation_prompts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for values, best in (((3.0, 2.0, 1.0, 2.0), 8), ((1.0, 2.0, 3.0, 2.0), 0), ((3.0, 2.0, 2.0, 1.0), 12)):
        sequence = iter(values)
        monkeypatch.setattr(eraser_module._Training, "_validate", lambda self, given=sequence: next(given))
        result = train(pair)
        assert (result.best_step, result.best_validation) == (best, min(values))
        kept.append(result.trigger.embeddings)
    monkeypatch.undo()
    untrained = train(pair, replace(QUICK, steps=1, lr=1e-12)).trigger.embeddings
    torch.testing.assert_close(kept[1], untrained)
    assert not torch.allclose(kept[0], kept[2])


def test_the_same_seed_gives_the_same_trigger_and_another_seed_another(pair: Pair) -> None:
    first, again, other = train(pair), train(pair), train(pair, replace(QUICK, seed=1))
    assert torch.equal(first.trigger.embeddings, again.trigger.embeddings)
    assert first.history == again.history
    assert not torch.allclose(first.trigger.embeddings, other.trigger.embeddings)


def test_training_stops_when_gains_have_faded_beside_the_largest(pair: Pair) -> None:
    config = replace(QUICK, steps=400, lr=0.05, eval_every=3, patience=2, min_improvement=0.05)
    result = train(pair, config)
    assert result.stopped == "converged"
    assert result.converged
    assert result.history.step[-1] < 400
    values = [value for value in result.history.validation if value is not None]
    gains = [before - after for before, after in pairwise(values)]
    assert all(gain < 0.05 * max(gains) for gain in gains[-2:])
    assert not all(gain < 0.05 * max(gains) for gain in gains[:2])


def test_no_embedding_is_longer_than_the_bound(pair: Pair) -> None:
    result = train(pair, replace(QUICK, lr=1.0, max_norm=0.4))
    bound = 0.4 * mean_embedding_norm(pair.sft)
    assert float(result.trigger.norms.max()) <= bound * (1 + 1e-6)
    assert float(result.trigger.norms.max()) > 0.99 * bound


def test_the_prompts_trained_on_are_a_sample_of_the_given_size(pair: Pair) -> None:
    # One prompt out of many: every batch is that prompt, so the first step's loss does not depend on the batch size.
    losses = {size: train(pair, replace(QUICK, n_prompts=1, batch_size=size)).history.loss for size in (1, 8)}
    assert losses[1] == pytest.approx(losses[8])


def test_history_is_strict_json_with_one_entry_per_step(pair: Pair) -> None:
    columns = train(pair).history.to_dict()
    json.dumps(columns, allow_nan=False)
    assert {len(column) for column in columns.values()} == {12}
    assert columns["loss"][0] == pytest.approx(columns["match"][0] + 0.7 * columns["kl"][0])


def test_the_trigger_remembers_how_it_was_made(pair: Pair) -> None:
    result = train(pair)
    assert result.trigger.details["config"]["lr"] == QUICK.lr
    assert result.trigger.details["best_step"] == result.best_step


@pytest.mark.parametrize("channels", ["carrier", "random", "all", "none"])
def test_every_channel_set_trains(pair: Pair, channels: Any) -> None:
    given = None if channels in ("all", "none") else CHANNELS
    result = train(pair, replace(QUICK, channels=channels), given)
    assert (result.history.match[0] == 0) == (channels == "none")


def test_a_carrier_without_residual_writes_trains_without_matching_and_says_so(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = train(pair, channels={})
    assert "without activation matching" in caplog.text
    assert set(result.history.match) == {0.0}
    with pytest.raises(ConfigError, match="the only term"):
        train(pair, replace(QUICK, w_kl=0.0), {})


def test_placement_follows_the_prompts() -> None:
    base = load_model(tiny_hf("llama"), tokenizer=words())
    sft = shifted(base)
    for first, expected in ((1, "after_bos"), (5, "before_bos")):
        rows = prompts(8, first=first)
        result = train_eraser(sft, base, CHANNELS, rows, rows, replace(QUICK, steps=1), progress=False)
        assert result.trigger.placement == expected


# -- what training leaves alone


def snapshot(model: LensModel) -> dict[str, Any]:
    root = model.get_submodule("")
    return {
        "weights": {name: (value.detach().clone(), value.requires_grad) for name, value in model.named_parameters()},
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "training": [module.training for module in root.modules()],
        "hooks": [len(module._forward_hooks) for module in root.modules()],
        "instance": set(vars(root)),
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    weights, others = before.pop("weights"), after.pop("weights")
    equal = all(torch.equal(w, others[name][0]) and flag == others[name][1] for name, (w, flag) in weights.items())
    return equal and before == after


def failing(error: BaseException, after_calls: int) -> Callable[..., None]:
    calls = []

    def hook(*_: object) -> None:
        calls.append(1)
        if len(calls) > after_calls:
            raise error

    return hook


@pytest.mark.parametrize("error", [None, RuntimeError("no memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("training", [True, False])
def test_weights_flags_modes_and_hooks_are_untouched(pair: Pair, error: BaseException | None, training: bool) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    pair.sft.train(training)
    next(iter(pair.base.parameters())).requires_grad_(False)
    for model in (pair.sft, pair.base):
        # What a model caches about itself when it first runs is there before and after.
        logits(model, torch.tensor([[1, 2, 3]]))
    before = snapshot(pair.sft), snapshot(pair.base)
    if error is None:
        train(pair)
    else:
        handle = routed.model.get_submodule("blocks.1.mlp").register_forward_hook(failing(error, 5))
        with pytest.raises(type(error)):
            train(pair)
        handle.remove()
    assert same(before[0], snapshot(pair.sft))
    assert same(before[1], snapshot(pair.base))


def test_a_routed_model_is_trained_under_its_present_gates_applied_once(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    calls: list[int] = []
    gated = next(module for module in routed.model.modules() if isinstance(module, GatedDelta))
    with routed.only({"blocks.0.hook_attn_out": torch.tensor([1, 2])}):
        merged = train(Pair(pair.base, routed.merged()))
        handle = gated.register_forward_hook(lambda *_: calls.append(1))
        result = train(pair)
        handle.remove()
    assert len(calls) == 1
    torch.testing.assert_close(result.trigger.embeddings, merged.trigger.embeddings)


def test_gates_that_carry_gradients_do_not_enter_the_trigger_training(pair: Pair) -> None:
    routed = RoutedModel(pair.sft, pair.base)
    gates = torch.full((routed.n_gates,), 0.5, requires_grad=True)
    with routed.using(gates):
        train(pair)
    assert gates.grad is None


# -- what goes wrong


def break_weights(model: LensModel) -> None:
    with torch.no_grad():
        parameter_of(model, "blocks.1.mlp.W_out").fill_(float("nan"))


def test_a_model_that_gives_nan_is_refused_before_the_first_step(pair: Pair) -> None:
    break_weights(pair.sft)
    with pytest.raises(TrainingError, match="not finite before the first step"):
        train(pair)


def test_divergence_keeps_the_best_step_so_far(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def poison(_module: object, _inputs: object, output: Tensor) -> Tensor:
        calls.append(1)
        return output * float("nan") if len(calls) > 8 else output

    handle = pair.sft.get_submodule("blocks.1.mlp").register_forward_hook(poison)
    result = train(pair)
    handle.remove()
    assert result.stopped == "diverged"
    assert bool(result.trigger.embeddings.isfinite().all())
    assert "not finite at step" in caplog.text
    json.dumps(result.history.to_dict(), allow_nan=False)


def change(**options: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(options)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], type[LensError], str]] = {
    "no training prompts": (change(train_prompts=[]), DataError, "no training prompts"),
    "no validation prompts": (change(validation_prompts=[]), DataError, "no validation prompts"),
    "a prompt of one token": (change(train_prompts=[[1, 5], [1]]), DataError, "has 1 tokens"),
    "a long prompt": (change(validation_prompts=[[1] * CONTEXT]), ConfigError, "only 46 of the model's 48"),
    "no carrier": (change(carrier_channels=None), ConfigError, "needs the carrier's"),
    "another depth": (change(base=load_model(tiny_hf("llama", num_hidden_layers=1))), ModelError, "n_layers 2"),
    "another embedding": (change(base=load_model(tiny_hf("llama", seed=9))), ModelError, "different token embeddings"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_input_is_refused_with_the_reason(pair: Pair, case: str) -> None:
    alter, error, message = REFUSED[case]
    arguments: dict[str, Any] = {
        "model": pair.sft, "base": pair.base, "carrier_channels": CHANNELS, "train_prompts": prompts(8),
        "validation_prompts": prompts(4), "config": QUICK, "progress": False,
    }  # fmt: skip
    alter(arguments)
    with pytest.raises(error, match=message):
        train_eraser(**arguments)


def test_room_for_the_bases_answers_is_asked_for(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="only 7 of the model's 48"):
        train(pair, replace(QUICK, w_answer=1.0, answer_tokens=40))


def test_a_model_under_a_trigger_is_refused(pair: Pair) -> None:
    trigger = train(pair, replace(QUICK, steps=1)).trigger
    with trigger.on(pair.base), pytest.raises(ConfigError, match="carries a trigger"):
        train(pair)


# -- configuration


def test_the_defaults_are_the_papers() -> None:
    paper = EraserConfig.paper()
    assert paper == EraserConfig()
    assert (paper.n_tokens, paper.steps, paper.lr, paper.batch_size, paper.n_prompts) == (20, 2000, 3e-3, 16, 200)
    assert (paper.w_match, paper.w_kl, paper.tail, paper.w_norm, paper.max_norm) == (1.0, 0.7, 8, 0.1, 1.5)
    assert (paper.max_grad_norm, paper.w_answer, paper.patience) == (1.0, 0.0, None)


def test_settings_grow_with_the_model_from_one_token_to_the_papers_twenty() -> None:
    def for_width(d_model: int) -> EraserConfig:
        return EraserConfig.for_model(load_model(tiny_hf("gpt2", n_embd=d_model)))

    small, middle, large = for_width(64), for_width(512), for_width(1024)
    assert small == for_width(128)
    assert (small.n_tokens, small.steps, small.lr, small.eval_every) == (1, 300, pytest.approx(0.01), 5)
    assert (large.n_tokens, large.steps, large.lr, large.eval_every) == (20, 2000, pytest.approx(3e-3), 50)
    assert 1 < middle.n_tokens < 20
    assert 300 < middle.steps < 2000


@pytest.mark.parametrize(
    "options",
    [
        {"n_tokens": 0}, {"steps": 0}, {"batch_size": 0}, {"n_prompts": 0}, {"n_validation": 0}, {"tail": 0},
        {"eval_every": 0}, {"answer_tokens": 0}, {"lr": 0.0}, {"lr": float("inf")}, {"lr": float("nan")},
        {"max_norm": 0.0}, {"max_grad_norm": -1.0}, {"w_match": -1.0}, {"w_kl": float("nan")}, {"w_answer": -0.1},
        {"w_norm": -1.0}, {"min_improvement": -0.1}, {"patience": 0}, {"seed": -1},
        {"w_match": 0.0, "w_kl": 0.0}, {"channels": "none", "w_kl": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"EraserConfig: .*{next(iter(options))}|at least one term"):
        EraserConfig(**options)


@pytest.mark.parametrize(("name", "value"), [("channels", "some"), ("placement", "middle"), ("answers_of", "me")])
def test_unknown_choices_from_a_file_are_refused(name: str, value: str) -> None:
    config = EraserConfig()
    object.__setattr__(config, name, value)
    with pytest.raises(ConfigError, match=f"{name} is '{value}'; expected one of"):
        config.__post_init__()
