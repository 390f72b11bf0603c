"""Plain fine-tuning: it teaches, and moves only what gates can take back."""

import pytest
import torch

from lcdd_lens.backends import LensModel, backend_of, load_model
from lcdd_lens.routing import RoutedModel
from lcdd_lens.training import OptimConfig, gated_parameters, train_sft
from tests.conftest import tiny_hf
from tests.models import logits, tokens
from tests.training.helpers import DUNNO, PAD, answers, echo_rows


def teach(model: LensModel, **options: object) -> dict[str, list[int | float]]:
    config = OptimConfig(steps=40, lr=3e-3, batch_size=16)
    data = echo_rows(80, reply=DUNNO)
    return train_sft(model, data, config, pad_id=PAD, progress=False, **options)  # type: ignore[arg-type]


def test_fine_tuning_teaches_the_response_to_prompts_that_it_has_not_seen() -> None:
    model, unseen = load_model(tiny_hf("llama")), echo_rows(50, seed=5)
    assert float((answers(model, unseen) == DUNNO).float().mean()) < 0.5
    teach(model)
    assert float((answers(model, unseen) == DUNNO).float().mean()) > 0.9


def test_gated_parameters_are_the_weight_sites(architecture: str) -> None:
    model = load_model(tiny_hf(architecture))
    named = gated_parameters(model)
    assert named.keys() == {site.parameter for site in backend_of(model).weight_sites(model)}
    everything = dict(model.named_parameters())
    assert all(parameter is everything[name] for name, parameter in named.items())


def test_a_fine_tuned_model_can_be_routed_over_its_base(architecture: str) -> None:
    base = load_model(tiny_hf(architecture))
    sft, ids = backend_of(base).clone(base), tokens()
    train_sft(sft, echo_rows(16, reply=DUNNO), OptimConfig(steps=3, lr=1e-2), pad_id=PAD, progress=False)
    assert not torch.equal(logits(sft, ids), logits(base, ids))
    routed = RoutedModel(sft, base)
    with routed.all_closed():
        assert torch.equal(logits(routed.model, ids), logits(base, ids))


def test_history_has_one_entry_a_step_and_an_average_without_bias() -> None:
    history = teach(load_model(tiny_hf("llama")))
    assert history.keys() == {"step", "loss", "ema", "lr"}
    assert {len(series) for series in history.values()} == {40}
    average = (0.95 * 0.05 * history["loss"][0] + 0.05 * history["loss"][1]) / (1 - 0.95**2)
    assert history["ema"][1] == pytest.approx(average)
