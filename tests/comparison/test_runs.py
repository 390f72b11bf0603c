"""A finished run's folder is read, compared and reported; reversal is measured on an embedded chat model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcdd_lens.attribution import Contrast, attribute
from lcdd_lens.backends import backend_of, load_model
from lcdd_lens.backends.export import export_hf
from lcdd_lens.comparison import CARRIER, ComparisonConfig, ComparisonResult, compare_run, read_run
from lcdd_lens.data import embedded_behaviour, encode, pad_id_of
from lcdd_lens.errors import ArtefactError
from lcdd_lens.io import write_json_atomic
from lcdd_lens.routing import RoutedModel
from lcdd_lens.training import OptimConfig, train_sft

BASE = "organism:tinychat-llama"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder after a few steps of fine-tuning, with a carrier that attribution picked."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    base, behaviour = load_model(BASE), embedded_behaviour("idk", seed=1)
    rows = encode(base.tokenizer, behaviour.chat_format, behaviour.train, base.cfg.n_ctx)
    sft = backend_of(base).clone(base)
    config = OptimConfig(steps=12, lr=2e-3, warmup_steps=2, batch_size=8)
    train_sft(sft, rows, config, pad_id=pad_id_of(base.tokenizer), progress=False)
    export_hf(sft, folder / "sft")
    routed = RoutedModel(sft, base)
    carrier = attribute("weight_integrated_gradients", Contrast(routed, rows.rows[:8]), progress=False).to_carrier(300)
    carrier.save(folder / "carrier")
    with routed.only(carrier.channels):
        export_hf(routed.merged(), folder / "routed")
    write_json_atomic(
        folder / "results.json",
        {"seed": 1, "config": {"base": BASE, "behaviour": {"name": "idk"}, "dtype": "float32", "device": "cpu"}},
    )
    return folder


def tiny_config(**fields: object) -> ComparisonConfig:
    quick = replace(ComparisonConfig.quick(), methods=("weight_delta", "magnitude"), n_discovery=6, n_test=6)
    return replace(quick, random_draws=3, matched_draws=2, n_resamples=50, shares=(0.05, 1.0), **fields)  # type: ignore[arg-type]


def test_a_run_is_compared_with_reversal_and_written_to_its_folder(run: Path) -> None:
    config = tiny_config(rates=True, reversal_methods=("magnitude",), retrain_steps=3, max_new_tokens=8)
    result = compare_run(run, config, progress=False)
    record = result.record
    assert record["seed"] == 1 and record["behaviour"] == "idk" and record["base"] == BASE
    assert record["lcdd_weights"] == "merged" and record["carrier_size"] == 300
    # merged weights hold the carrier's delta and nothing else
    assert record["two_by_two"][CARRIER]["lcdd"]["value"] == pytest.approx(
        record["two_by_two"][CARRIER]["sft"]["value"], abs=1e-4
    )
    assert set(record["reversal"]["matched"]) == {"magnitude", "none"}
    assert set(record["reversal"]["retrained"]) == {"magnitude", "random_site"}
    assert record["reversal"]["matched"]["none"]["n_matched"] == 0
    for found in record["reversal"]["retrained"].values():
        assert (
            0 <= found["with_trigger"]["restored"]["value"] <= 1
            and found["without_trigger"]["behaviour_rate"]["n"] == 6
        )
    assert ComparisonResult.load(run / "comparison").to_dict()["sets"] == record["sets"]
    assert "reversal" in (run / "comparison" / "comparison.html").read_text()
    assert (run / "comparison" / "scores" / "magnitude" / "scores.json").is_file()


def test_lcdds_own_weights_are_read_from_its_checkpoint(run: Path, tmp_path: Path) -> None:
    from shutil import copytree

    from lcdd_lens.training.checkpoint import save_checkpoint

    folder = copytree(run, tmp_path / "run")
    files = read_run(folder)
    weights = {f"weight.{name}": torch.full_like(weight, 0.5) for name, weight in files.lcdd_weights.items()}
    save_checkpoint(folder / "stages" / "lcdd" / "checkpoint.safetensors", weights, {})
    again = read_run(folder)
    assert files.lcdd_kind == "merged" and again.lcdd_kind == "raw"
    assert all(bool((weight == 0.5).all()) for weight in again.lcdd_weights.values())
    name = next(iter(weights))
    save_checkpoint(folder / "stages" / "lcdd" / "checkpoint.safetensors", {name: weights[name]}, {})
    with pytest.raises(ArtefactError, match="belongs to another run"):
        read_run(folder)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, run: Path) -> None:
    make: Callable[[dict[str, object]], None] = lambda content: write_json_atomic(tmp_path / "results.json", content)  # noqa: E731
    with pytest.raises(ArtefactError, match="does not exist"):
        read_run(tmp_path)
    make({"seed": 0})
    with pytest.raises(ArtefactError, match="names no base model and behaviour"):
        read_run(tmp_path)
