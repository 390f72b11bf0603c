"""The whole experiment on each backend, a few steps of everything."""

from pathlib import Path

import pytest
import torch

from lcdd_lens.backends import BACKENDS, backend_of
from lcdd_lens.compatibility import has_hooked_transformer
from lcdd_lens.errors import ConfigError
from lcdd_lens.pipeline import BehaviourSource, Experiment, ExperimentConfig, load_experiment
from lcdd_lens.pipeline import run_experiment as run
from tests.models import logits, tokens
from tests.test_pipeline import CONDITIONS, Files, config, files

__all__ = ["files"]
AVAILABLE = BACKENDS if has_hooked_transformer() else ("bridge",)


@pytest.fixture(scope="module")
def runs(files: Files, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Experiment]]:
    torch.set_num_threads(1)
    folders = {name: tmp_path_factory.mktemp(name) / "out" for name in AVAILABLE}
    return {name: (out, run(config(files, backend=name), out, progress=False)) for name, out in folders.items()}


def test_a_run_stays_on_its_backend_and_opens_on_it(runs: dict[str, tuple[Path, Experiment]]) -> None:
    for name, (out, experiment) in runs.items():
        assert set(experiment.results["kl"]) == CONDITIONS
        again = load_experiment(out)
        for model in (experiment.base, experiment.sft, experiment.routed.model, again.base, again.routed.model):
            assert backend_of(model).name == name
        assert torch.equal(logits(again.routed.model, tokens()), logits(experiment.routed.model, tokens()))


def test_the_base_says_the_same_on_both(runs: dict[str, tuple[Path, Experiment]]) -> None:
    samples = [experiment.results["samples"] for _, experiment in runs.values()]
    said = [[(sample["prompt"], sample["answers"]["base"]) for sample in each] for each in samples]
    rates = [experiment.results["behaviour_rate"]["base"] for _, experiment in runs.values()]
    assert all(each == said[0] for each in said)
    assert all(each == rates[0] for each in rates)


def test_an_unknown_backend_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="backend is 'jax': expected 'hooked' or 'bridge'"):
        ExperimentConfig("organism:tinychat-llama", BehaviourSource("idk"), backend="jax")
