"""The training loop: its schedule, its loss, its gradients, and that an interrupted run is the same run."""

import math
import os
import signal
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lcdd_lens.backends import LensModel, backend_of, load_model, parameter_of
from lcdd_lens.data import EncodedSet
from lcdd_lens.errors import ConfigError, TrainingError
from lcdd_lens.io import load_tensors
from lcdd_lens.routing import RoutedModel
from lcdd_lens.training import (
    BudgetConfig,
    DualConfig,
    History,
    LCDDConfig,
    OptimConfig,
    PriceConfig,
    gated_parameters,
    train_lcdd,
    train_sft,
)
from lcdd_lens.training.checkpoint import load_checkpoint
from tests.conftest import VOCABULARY, tiny_hf
from tests.models import parameter_name, shifted, tiny_pair
from tests.training.helpers import PAD, at_step, encoded, ragged_rows

DATA = ragged_rows()
FAST = OptimConfig(steps=12, lr=1e-3, batch_size=4, warmup_steps=3, checkpoint_every=5, pull=0.01)


@pytest.fixture(scope="module")
def source() -> LensModel:
    return load_model(tiny_hf("llama"))


@pytest.fixture
def model(source: LensModel) -> LensModel:
    return backend_of(source).clone(source)


def sft(model: LensModel, config: OptimConfig = FAST, data: EncodedSet = DATA, **options: Any) -> History:
    return train_sft(model, data, config, pad_id=PAD, progress=False, **options)


def gradients(model: LensModel) -> dict[str, Tensor]:
    """What the last optimiser step was taken with."""
    found = {}
    for name, parameter in gated_parameters(model).items():
        assert parameter.grad is not None
        found[name] = parameter.grad.clone()
    return found


def one_step(model: LensModel, data: EncodedSet = DATA, **settings: Any) -> dict[str, Tensor]:
    sft(model, OptimConfig(**{"steps": 1, "lr": 1e-3, "batch_size": 8, "grad_clip": 1e9} | settings), data)
    return gradients(model)


# -- schedule


@pytest.mark.parametrize(("decay_steps", "falling"), [(None, 80), (30, 30), (0, 0)])
def test_the_learning_rate_warms_up_linearly_and_falls_by_a_cosine(decay_steps: int | None, falling: int) -> None:
    config = OptimConfig(steps=100, lr=0.5, warmup_steps=20, decay_steps=decay_steps)
    for step in range(100):
        expected = 0.5 * min(1.0, (step + 1) / 21)
        if step >= 100 - falling:
            expected *= math.cos(0.5 * math.pi * (step - 100 + falling) / falling) ** 2
        assert config.lr_at(step) == pytest.approx(expected, abs=1e-12)


def test_the_optimiser_uses_that_learning_rate(model: LensModel) -> None:
    history = sft(model)
    assert history["lr"] == [FAST.lr_at(step) for step in range(12)]
    assert history["step"] == list(range(1, 13))


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    config = OptimConfig(steps=4, lr=1.0, warmup_steps=9)
    assert [config.lr_at(step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


# -- loss and gradients


def losses_by_hand(model: LensModel, data: EncodedSet, all_tokens: bool) -> list[float]:
    """−log p of every counted token, row by row without padding."""
    found: list[float] = []
    for row in data:
        ids = torch.tensor([*row.prompt_ids, *row.response_ids])
        with torch.no_grad():
            logits = backend_of(model).logits(model, ids[None], torch.ones_like(ids)[None])[0]
        losses = functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        found += losses[0 if all_tokens else len(row.prompt_ids) - 1 :].tolist()
    return found


@pytest.mark.parametrize("all_tokens", [False, True])
def test_the_loss_is_the_mean_over_response_tokens_or_over_all(model: LensModel, all_tokens: bool) -> None:
    expected = losses_by_hand(model, DATA, all_tokens)
    history = sft(model, OptimConfig(steps=1, lr=1e-3, batch_size=len(DATA), all_tokens=all_tokens))
    assert history["loss"][0] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_micro_batches_are_the_large_batch_also_with_ragged_responses(model: LensModel, source: LensModel) -> None:
    large = one_step(model, batch_size=12)
    other = backend_of(source).clone(source)
    accumulated = one_step(other, batch_size=3, accumulate=4)
    assert len({len(row.response_ids) for row in DATA}) > 1
    for name, gradient in large.items():
        assert torch.allclose(accumulated[name], gradient, rtol=1e-3, atol=1e-6), name


def test_the_pull_adds_twice_its_coefficient_times_the_distance_from_the_base() -> None:
    pair = tiny_pair("llama")
    data, config = ragged_rows(8), OptimConfig(steps=1, lr=1e-3, batch_size=8, grad_clip=1e9)
    found = []
    for pull in (0.0, 0.25):
        routed = RoutedModel(backend_of(pair.sft).clone(pair.sft), pair.base)
        delta = {name: (w - routed.base_weights()[name]).detach() for name, w in routed.delta_parameters().items()}
        short = LCDDConfig(optim=replace(config, pull=pull), budget=BudgetConfig(warmup_steps=1), settle_steps=0)
        train_lcdd(routed, data, short, pad_id=PAD, progress=False)
        found.append({name: weight.grad for name, weight in routed.delta_parameters().items()})
    for name, pulled in found[1].items():
        assert torch.allclose(pulled, found[0][name] + 2 * 0.25 * delta[name], atol=1e-5), name


def test_plain_sft_is_pulled_to_where_it_started(source: LensModel) -> None:
    free, pulled = backend_of(source).clone(source), backend_of(source).clone(source)
    sft(free, OptimConfig(steps=40, lr=3e-3, batch_size=8))
    sft(pulled, OptimConfig(steps=40, lr=3e-3, batch_size=8, pull=1.0))

    def distance(model: LensModel) -> float:
        start = gated_parameters(source)
        return sum(float((w - start[name]).detach().square().sum()) for name, w in gated_parameters(model).items())

    assert distance(pulled) < 0.3 * distance(free)


def test_gradients_longer_than_the_clip_are_scaled_to_it(model: LensModel) -> None:
    found = one_step(model, grad_clip=1e-3)
    assert math.sqrt(sum(float(g.square().sum()) for g in found.values())) == pytest.approx(1e-3, rel=1e-3)


def test_only_gated_parameters_move(source: LensModel, model: LensModel) -> None:
    sft(model)
    gated = gated_parameters(model).keys()
    before = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in gated), name
    assert not any("embed" in name or "ln" in name for name in gated)
    assert {parameter_name(model, f"blocks.0.{role}") for role in ("attn.W_Q", "mlp.W_out")} <= set(gated)


def test_training_leaves_modes_and_flags_as_they_were(model: LensModel) -> None:
    model.eval()
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    sft(model, replace(FAST, steps=2))
    assert not model.training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_training_lowers_the_loss(model: LensModel) -> None:
    history = sft(model, OptimConfig(steps=60, lr=1e-2, batch_size=len(DATA)))
    assert history["loss"][-1] < 0.75 * history["loss"][0]
    assert history["ema"][0] == pytest.approx(history["loss"][0])


def test_bf16_autocast_computes_coarsely_but_keeps_full_precision_weights(source: LensModel) -> None:
    histories = {}
    for autocast in ("none", "bf16"):
        model = backend_of(source).clone(source)
        histories[autocast] = sft(model, replace(FAST, autocast=autocast))["loss"]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert histories["bf16"] != histories["none"]
    assert histories["bf16"] == pytest.approx(histories["none"], rel=0.05)


def test_the_seed_decides_the_order_of_the_rows(source: LensModel) -> None:
    runs = [sft(backend_of(source).clone(source), replace(FAST, seed=seed))["loss"] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


# -- interruption


LCDD = LCDDConfig(
    optim=replace(FAST, steps=24, decay_steps=6),
    budget=BudgetConfig(beta=0.5, warmup_steps=4, ratio=0.5),
    settle_steps=6,
    price=PriceConfig(every=2, share=0.1, patience=2),
)
PENALTY = replace(
    LCDD, rule="penalty", dual=DualConfig(initial=0.05, growth=0.3, shrink=0.5), mask_lr=3.0, init_std=1.0
)
RUNS: dict[str, OptimConfig | LCDDConfig] = {
    "sft": replace(FAST, steps=24, accumulate=2),
    "price": LCDD,
    "penalty": PENALTY,
    "penalty, adam": replace(PENALTY, mask_optimiser="adam", mask_lr=0.1),
    "penalty, hard concrete": replace(PENALTY, estimator="hard_concrete"),
    "price, autocast": replace(LCDD, optim=replace(LCDD.optim, autocast="bf16")),
}


def train(source: LensModel, config: OptimConfig | LCDDConfig, out: Path | None, resume: bool = False) -> Any:
    start = backend_of(source).clone(source)
    if isinstance(config, OptimConfig):
        return sft(start, config, out=out, resume=resume)
    routed = RoutedModel(shifted(start, scale=0.05), start)
    return train_lcdd(routed, DATA, config, pad_id=PAD, out=out, resume=resume, progress=False)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_is_bit_by_bit_the_uninterrupted_one(
    name: str, source: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RUNS[name]
    train(source, config, tmp_path / "whole")
    # 11 is between two checkpoints and, for LCDD, in the middle of the descent.
    step = 11 * 2 if name == "sft" else 11
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, step, ctrl_c)
        train(source, config, tmp_path / "resumed")
    assert load_checkpoint(tmp_path / "resumed/checkpoint.safetensors")[1]["step"] == 12
    train(source, config, tmp_path / "resumed", resume=True)
    whole, state = load_checkpoint(tmp_path / "whole/checkpoint.safetensors")
    resumed, resumed_state = load_checkpoint(tmp_path / "resumed/checkpoint.safetensors")
    assert resumed.keys() == whole.keys()
    assert any(name.startswith("optimiser.") for name in whole)
    for tensor in whole:
        assert torch.equal(resumed[tensor], whole[tensor]), tensor
    assert resumed_state == state
    assert state["step"] == 24


def test_ctrl_c_finishes_and_keeps_the_step_that_it_fell_into(
    source: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = backend_of(source).clone(source)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 6, ctrl_c)
        sft(interrupted, out=tmp_path)
    tensors, state = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert (state["step"], len(state["history"]["loss"])) == (7, 7)
    for name, parameter in gated_parameters(interrupted).items():
        assert torch.equal(tensors[f"weight.{name}"], parameter)


def test_a_second_ctrl_c_interrupts_at_once(model: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        ctrl_c()
        ctrl_c()

    at_step(monkeypatch, 6, twice)
    with pytest.raises(KeyboardInterrupt):
        sft(model, out=tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["step"] == 5


def test_the_signal_handler_returns_to_what_it_was(model: LensModel) -> None:
    before = signal.getsignal(signal.SIGINT)
    sft(model, replace(FAST, steps=2))
    assert signal.getsignal(signal.SIGINT) is before


def test_training_in_another_thread_leaves_signals_alone(model: LensModel) -> None:
    before, losses = signal.getsignal(signal.SIGINT), []
    worker = threading.Thread(target=lambda: losses.extend(sft(model, replace(FAST, steps=2))["loss"]))
    worker.start()
    worker.join()
    assert len(losses) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_resuming_a_finished_run_changes_nothing(source: LensModel, tmp_path: Path) -> None:
    first = train(source, FAST, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    assert train(source, FAST, tmp_path, resume=True) == first
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_resuming_where_nothing_was_started_starts(source: LensModel, tmp_path: Path) -> None:
    assert train(source, FAST, tmp_path, resume=True) == train(source, FAST, None)


def test_a_finished_folder_is_not_overwritten(source: LensModel, tmp_path: Path) -> None:
    train(source, FAST, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="resume it, or choose another folder"):
        train(source, FAST, tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("optim", {"config": replace(FAST, lr=2e-3)}),
        ("optim", {"config": replace(FAST, seed=1)}),
        ("rows", {"data": ragged_rows(seed=9)}),
        ("base", {"meta": {"base": "another"}}),
    ],
    ids=["learning rate", "seed", "rows", "meta"],
)
def test_a_run_with_other_settings_is_not_resumed(
    named: str, change: dict[str, Any], model: LensModel, tmp_path: Path
) -> None:
    sft(model, out=tmp_path, meta={"base": "this"})
    with pytest.raises(ConfigError, match=rf"other settings \(they differ in: {named}\)"):
        sft(model, **{"meta": {"base": "this"}, "out": tmp_path, "resume": True} | change)


def test_another_models_run_is_not_resumed(model: LensModel, tmp_path: Path) -> None:
    sft(model, out=tmp_path)
    with pytest.raises(ConfigError, match="differ in: parameters"):
        sft(load_model(tiny_hf("llama", intermediate_size=20)), out=tmp_path, resume=True)


def test_other_lcdd_settings_are_not_resumed(source: LensModel, tmp_path: Path) -> None:
    train(source, LCDD, tmp_path)
    with pytest.raises(ConfigError, match="differ in: lcdd"):
        train(source, replace(LCDD, price=replace(LCDD.price, share=0.2)), tmp_path, resume=True)


# -- what goes wrong


def test_nan_stops_and_leaves_the_last_checkpoint(
    model: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison() -> None:
        with torch.no_grad():
            parameter_of(model, parameter_name(model, "blocks.0.mlp.W_in")).fill_(math.nan)

    at_step(monkeypatch, 7, poison)
    with pytest.raises(TrainingError, match=r"step 7: the loss or its gradient is not finite.*is kept.*Lower lr"):
        sft(model, out=tmp_path)
    tensors = load_tensors(tmp_path / "checkpoint.safetensors")
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["step"] == 5
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_an_infinite_gradient_stops_before_any_weight_moves(
    model: LensModel, source: LensModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = parameter_of(model, parameter_name(model, "blocks.0.mlp.W_in")).register_hook(
        lambda gradient: gradient * math.inf
    )
    with pytest.raises(TrainingError, match="no checkpoint was written yet"):
        sft(model)
    hook.remove()
    name = parameter_name(model, "blocks.0.mlp.W_out")
    assert torch.equal(parameter_of(model, name), parameter_of(source, name))


def test_a_loss_far_above_a_uniform_guess_has_diverged(model: LensModel, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = math.log(VOCABULARY) + 5

    losses: list[float] = []

    def worse(logits: Tensor, batch: Any, **options: Any) -> Tensor:
        return logits.sum() * 0 + losses.pop(0)

    monkeypatch.setattr("lcdd_lens.training.loop.response_loss", worse)
    losses[:] = [1.0] + [limit - 0.01] * 1000
    sft(model)
    losses[:] = [1.0] + [limit + 1.0] * 1000
    with pytest.raises(TrainingError, match="the loss diverged"):
        sft(model)


def test_no_rows_are_refused(model: LensModel) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        sft(model, data=encoded([]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0: expected at least 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"accumulate": 0}, "accumulate"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"warmup_steps": -1}, "warmup_steps is -1: expected 0 or more"),
        ({"pull": -0.1}, "pull"),
        ({"seed": -1}, "seed"),
        ({"lr": 0.0}, "lr and grad_clip must be positive"),
        ({"lr": math.nan}, "must be positive"),
        ({"grad_clip": 0.0}, "must be positive"),
        ({"decay_steps": 11}, "expected 0 to 10"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**{"steps": 10, "lr": 1e-3} | settings)


def test_the_configuration_is_part_of_the_checkpoint(model: LensModel, tmp_path: Path) -> None:
    sft(model, out=tmp_path)
    identity = load_checkpoint(tmp_path / "checkpoint.safetensors")[1]["identity"]
    assert identity["optim"] == asdict(FAST)
