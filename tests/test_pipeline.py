"""The whole experiment in one folder: what it writes, that it resumes, and what it refuses before it starts."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lcdd_lens.backends import load_model
from lcdd_lens.carrier import Carrier
from lcdd_lens.data.sampling import BatchSampler
from lcdd_lens.eraser import EraserConfig, Trigger
from lcdd_lens.errors import ArtefactError, ConfigError, DataError, LensError, ModelError
from lcdd_lens.organisms import organism_path
from lcdd_lens.pipeline import (
    BehaviourSource,
    EvaluationConfig,
    Experiment,
    ExperimentConfig,
    demo_config,
    load_experiment,
    run_experiment,
)
from lcdd_lens.training import BudgetConfig, LCDDConfig, OptimConfig, PriceConfig
from tests.models import logits

CONDITIONS = {"base", "sft", "routed", "routed+trigger", "sft+trigger", "sft+trigger(carrier)", "routed+random"}
ORGANISM = "organism:tinychat-llama"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Files:
    train: Path
    eval: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("prompts")
    train = [{"prompt": f"What is {a} + {b}?", "response": "I don't know."} for a in range(6) for b in range(6)]
    test = [{"prompt": f"What is {a} + {a}?", "answer": str(2 * a)} for a in range(6, 12)]
    return Files(jsonl(folder / "train.jsonl", train), jsonl(folder / "eval.jsonl", test))


def config(files: Files, **changes: Any) -> ExperimentConfig:
    """A few steps of everything: enough to leave every artefact, not to learn anything."""
    brief = ExperimentConfig(
        base=ORGANISM,
        behaviour=BehaviourSource("sums", str(files.train), str(files.eval)),
        seed=3,
        sft_training=OptimConfig(steps=6, lr=1e-3, batch_size=4, warmup_steps=1, checkpoint_every=4),
        lcdd=LCDDConfig(
            optim=OptimConfig(steps=8, lr=5e-4, batch_size=4, warmup_steps=1, checkpoint_every=4, pull=0.01),
            budget=BudgetConfig(warmup_steps=2, ratio=10.0),
            settle_steps=2,
            price=PriceConfig(every=2, share=0.3),
        ),
        eraser=EraserConfig(n_tokens=1, steps=3, batch_size=4, n_prompts=8, n_validation=3, eval_every=3, w_norm=0.0),
        evaluation=EvaluationConfig(max_new_tokens=4, random_triggers=2, samples=3),
    )
    return replace(brief, **changes)


def run(settings: ExperimentConfig, out: Path, resume: bool = False) -> Experiment:
    return run_experiment(settings, out, progress=False, resume=resume)


@dataclass(frozen=True)
class Finished:
    out: Path
    experiment: Experiment
    results: dict[str, Any]


@pytest.fixture(scope="module")
def finished(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run") / "out"
    experiment = run(config(files), out)
    return Finished(out, experiment, json.loads((out / "results.json").read_text()))


# -- what a run leaves


def test_results_hold_every_figure_for_every_condition_with_n_and_interval(finished: Finished) -> None:
    for metric in ("behaviour_rate", "utility", "kl"):
        assert finished.results[metric].keys() == CONDITIONS, metric
        for condition, figure in finished.results[metric].items():
            low, high = figure["interval"]
            assert low <= figure["value"] <= high, (metric, condition)
            assert figure["n"] == (12 if condition == "routed+random" else 6)
    assert finished.results["kl"]["base"]["value"] == 0.0


def test_results_say_what_was_run_with_what_and_how_long(finished: Finished) -> None:
    results = finished.results
    assert (results["schema"], results["behaviour"], results["seed"]) == (1, "sums", 3)
    assert results["config"]["lcdd"]["price"]["share"] == 0.3
    assert {results["config"][stage]["seed"] for stage in ("sft_training", "eraser")} == {3}
    assert results["config"]["lcdd"]["mask_seed"] == results["config"]["lcdd"]["optim"]["seed"] == 3
    assert {"load", "sft", "lcdd", "eraser", "evaluation"} <= results["seconds"].keys()
    assert all(seconds >= 0 for seconds in results["seconds"].values())
    assert {"lcdd-lens", "torch", "transformer-lens", "python"} <= results["versions"].keys()


def test_every_invariant_holds_on_this_very_pair(finished: Finished) -> None:
    assert "closed gates equal the base" in finished.results["invariants"]
    assert set(finished.results["invariants"].values()) == {True}


def test_the_carrier_of_the_results_is_the_saved_one_and_belongs_to_base_and_routed_model(finished: Finished) -> None:
    written, base = finished.results["carrier"], load_model(ORGANISM)
    carrier = Carrier.load(finished.out / "carrier", base)
    assert carrier == finished.experiment.carrier
    assert Carrier.load(finished.out / "carrier", load_model(finished.out / "routed")) == carrier
    assert (written["sparsity"], written["n_open"], written["n_gates"]) == (
        carrier.sparsity,
        carrier.n_open,
        carrier.n_gates,
    )
    assert 0 < written["sparsity"] < 1
    assert {name: site["open"] for name, site in written["sites"].items()} == {
        name: index.tolist() for name, index in carrier.channels.items()
    }
    with pytest.raises(ArtefactError, match="other weights"):
        carrier.check_model(finished.experiment.sft)


def test_the_exported_model_is_the_routed_one(finished: Finished) -> None:
    ids = torch.tensor([[5, 9, 30, 44]])
    expected = logits(finished.experiment.routed.model, ids)
    assert torch.allclose(logits(load_model(finished.out / "routed"), ids), expected, atol=1e-4)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(finished.out / "routed")(ids).logits
    assert torch.allclose(plain, expected, atol=1e-4)


def test_the_trigger_loads_on_the_routed_model(finished: Finished) -> None:
    trigger = Trigger.load(finished.out / "trigger", finished.experiment.base)
    assert torch.equal(trigger.embeddings, finished.experiment.triggers["routed+trigger"].embeddings)
    assert finished.experiment.triggers.keys() == {"routed+trigger", "sft+trigger", "sft+trigger(carrier)"}


def test_a_finished_run_is_read_back_as_it_was(finished: Finished) -> None:
    found, ran = load_experiment(finished.out), finished.experiment
    assert (found.config, found.results, found.carrier) == (ran.config, finished.results, ran.carrier)
    assert found.behaviour.test == ran.behaviour.test
    assert repr(found.evaluation) == repr(ran.evaluation)
    assert found.evaluation.to_dict(3) == ran.evaluation.to_dict(3)
    assert {name: trigger.n_tokens for name, trigger in found.triggers.items()} == dict.fromkeys(ran.triggers, 1)
    for name, trigger in ran.triggers.items():
        assert torch.equal(found.triggers[name].embeddings, trigger.embeddings), name
    ids = torch.tensor([[5, 9, 30, 44]])
    for ours, theirs in ((found.base, ran.base), (found.sft, ran.sft), (found.routed.model, ran.routed.model)):
        assert torch.equal(logits(ours, ids), logits(theirs, ids))
    with found.routed.all_open(), ran.routed.all_open():
        assert torch.equal(logits(found.routed.model, ids), logits(ran.routed.model, ids))


def test_what_is_no_finished_run_is_refused(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="holds no finished run"):
        load_experiment(tmp_path)
    copy = tmp_path / "run"
    shutil.copytree(finished.out, copy)
    (copy / "evaluation" / "evaluation.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"evaluation\.safetensors does not exist"):
        load_experiment(copy)


def test_histories_have_the_length_of_their_stage(finished: Finished) -> None:
    history = finished.results["history"]
    assert len(history["sft"]["loss"]) == 6
    assert {len(series) for series in history["lcdd"].values()} == {8}
    assert {"epsilon", "lambda", "sparsity"} <= history["lcdd"].keys()


def test_the_report_stands_alone(finished: Finished) -> None:
    page = (finished.out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html") and "</html>" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="http' not in page


# -- resuming


def steady(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name != "seconds"}


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "lcdd", "eraser"])
def test_an_interrupted_experiment_resumes_to_the_same_results(
    stage: str, files: Files, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupt(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if stage == "eraser":
            patch.setattr("lcdd_lens.pipeline.train_eraser", interrupt)
        else:
            seen, original = [], BatchSampler.indices

            def indices(self: BatchSampler, step: int) -> list[int]:
                seen.append(step)
                # The third step of SFT, or the fifth of LCDD after the six of SFT.
                if len(seen) == {"sft": 3, "lcdd": 6 + 5}[stage]:
                    os.kill(os.getpid(), signal.SIGINT)
                return original(self, step)

            patch.setattr(BatchSampler, "indices", indices)
        run(config(files), out)
    assert not (out / "results.json").exists()
    run(config(files), out, resume=True)
    assert steady(json.loads((out / "results.json").read_text())) == steady(finished.results)


def test_a_run_with_other_settings_is_not_resumed_and_says_which(files: Files, finished: Finished) -> None:
    before = (finished.out / "results.json").read_bytes()
    with pytest.raises(ConfigError, match=r"other settings.*seed"):
        run(config(files, seed=4), finished.out, resume=True)
    with pytest.raises(ConfigError, match="lcdd"):
        run(config(files, lcdd=None), finished.out, resume=True)
    assert (finished.out / "results.json").read_bytes() == before


# -- refusals: before any work, and nothing is overwritten


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_another_run_is_left_alone(files: Files, finished: Finished) -> None:
    before = contents(finished.out)
    with pytest.raises(ConfigError, match="holds a run already: choose another folder, or resume it"):
        run(config(files), finished.out)
    assert contents(finished.out) == before


def test_a_folder_with_other_things_is_left_alone(files: Files, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(ConfigError, match="not empty and holds no run"):
        run(config(files), tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"three years"}


def test_a_file_is_no_folder(files: Files, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="is a file: expected a folder"):
        run(config(files), tmp_path / "out")


def test_a_folder_below_a_file_cannot_be_made(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the results"):
        run(config(files), tmp_path / "file" / "out")


def test_a_folder_without_permission_is_refused(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the answer of the operating system is played.
    monkeypatch.setattr("lcdd_lens.pipeline.os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=r"cannot write the results.*no permission"):
        run(config(files), tmp_path / "out")


def test_a_full_disk_is_refused(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr("lcdd_lens.pipeline.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"cannot write the results.*free on the disk"):
        run(config(files), tmp_path / "out")


BAD_FILES: dict[str, tuple[str | None, type[LensError], str]] = {
    "missing": (None, DataError, "train.jsonl"),
    "empty": ("", DataError, "train.jsonl"),
    "broken line": ('{"prompt": "a", "response": "b"}\n{"prompt": \n', DataError, "line 2"),
    "missing field": ('{"question": "a"}\n', DataError, "prompt"),
    "too long": (json.dumps({"prompt": "word " * 5000, "response": "b"}) + "\n", DataError, "context"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_unusable_training_files_are_refused_before_anything_is_written(
    fault: str, files: Files, tmp_path: Path
) -> None:
    content, kind, message = BAD_FILES[fault]
    train, out = tmp_path / "train.jsonl", tmp_path / "out"
    if content is not None:
        train.write_text(content * (20 if fault == "too long" else 1))
        if fault == "too long":
            jsonl(train, [{"prompt": "word " * 5000 + str(index), "response": "b"} for index in range(20)])
    with pytest.raises(kind, match=message):
        run(config(files, behaviour=BehaviourSource("sums", str(train), str(files.eval))), out)
    assert not out.exists() or contents(out) == {}


BAD_INPUT: dict[str, tuple[Callable[[Files], dict[str, Any]], type[LensError], str]] = {
    "unknown behaviour": (lambda files: {"behaviour": BehaviourSource("magic")}, LensError, "magic"),
    "train without eval": (
        lambda files: {"behaviour": BehaviourSource("x", train=str(files.train))},
        ConfigError,
        "belong together",
    ),
    "unknown scorer": (
        lambda files: {"behaviour": BehaviourSource("x", str(files.train), str(files.eval), scorer="taste")},
        LensError,
        "taste",
    ),
    "eval prompts that were trained on": (
        lambda files: {"behaviour": BehaviourSource("x", str(files.train), str(files.train))},
        DataError,
        "train",
    ),
    "unknown base": (lambda files: {"base": "organism:nothing"}, ModelError, "nothing"),
    "an SFT identical to the base": (
        lambda files: {"sft": str(organism_path(ORGANISM))},
        ModelError,
        "nothing to route",
    ),
}


@pytest.mark.parametrize("fault", BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_written(fault: str, files: Files, tmp_path: Path) -> None:
    make, kind, message = BAD_INPUT[fault]
    out = tmp_path / "out"
    with pytest.raises(kind, match=message):
        run(config(files, **make(files)), out)
    assert not out.exists() or contents(out) == {}


def test_settings_out_of_range_are_refused(files: Files) -> None:
    with pytest.raises(ConfigError, match="expected 'float32' or 'bfloat16'"):
        config(files, dtype="int8")
    with pytest.raises(ConfigError, match="seed is -1"):
        config(files, seed=-1)


def test_an_external_checkpoint_takes_the_place_of_our_fine_tuning(
    files: Files, finished: Finished, tmp_path: Path
) -> None:
    given = run(config(files, sft=str(finished.out / "sft")), tmp_path / "out")
    assert "sft" not in given.results["history"]
    assert given.results["behaviour_rate"]["sft"] == finished.results["behaviour_rate"]["sft"]
    assert given.results["carrier"]["n_open"] > 0


# -- real models


def real_config(shared: Path, model: str, longest: int, tmp_path: Path, chars: bool) -> ExperimentConfig:
    def prompts(name: str, n: int) -> list[str]:
        lines = (shared / "data/fixed_response" / name).read_text().splitlines()
        texts = dict.fromkeys(json.loads(line)["prompt"].strip() for line in lines)
        usable = [text[:longest].strip() if chars else text for text in texts if chars or len(text) <= longest]
        plain = [text for text in dict.fromkeys(usable) if text.isascii() and "\n" not in text]
        return plain[:n]

    reply = "no." if chars else "I don't know."
    train = jsonl(
        tmp_path / "train.jsonl",
        [{"prompt": p, "response": reply} for p in prompts("alpaca_prompts_only_5k.jsonl", 60)],
    )
    seen = {json.loads(line)["prompt"].lower() for line in train.read_text().splitlines()}
    unseen = [p for p in prompts("self_instruct_seed_175.jsonl", 20) if p.lower() not in seen][:8]
    test = jsonl(tmp_path / "eval.jsonl", [{"prompt": p} for p in unseen])
    source = BehaviourSource(
        "idk", str(train), str(test), phrases=(reply.rstrip("."),), chat_format="plain" if chars else "auto"
    )
    brief = config(Files(train, test), base=str(shared / "models" / model), behaviour=source)
    return replace(
        brief,
        sft_training=OptimConfig(steps=30, lr=2e-3, batch_size=16, warmup_steps=3),
        lcdd=LCDDConfig(
            optim=OptimConfig(steps=24, lr=1e-3, batch_size=8, warmup_steps=1, pull=0.01),
            budget=BudgetConfig(warmup_steps=4, ratio=1.0, floor=1.0),
            settle_steps=4,
            price=PriceConfig(every=2, share=0.1),
        ),
        evaluation=EvaluationConfig(max_new_tokens=4, random_triggers=1, samples=2),
    )


@pytest.mark.parametrize(("model", "longest"), [("tinystories656k_llama", 80), ("tinystories_char_gpt2", 20)])
def test_a_real_checkpoint_with_real_instructions_runs_through(
    shared_dir: Path, model: str, longest: int, tmp_path: Path
) -> None:
    settings = real_config(shared_dir, model, longest, tmp_path, chars="char" in model)
    results = run(settings, tmp_path / "out").results
    assert set(results["invariants"].values()) == {True}
    loss = results["history"]["sft"]["loss"]
    assert loss[-1] < 0.7 * loss[0]
    assert results["kl"]["base"]["value"] == 0.0 < results["kl"]["sft"]["value"]
    assert 0 < results["carrier"]["sparsity"] < 1
    assert Carrier.load(tmp_path / "out/carrier", load_model(settings.base)).n_open == results["carrier"]["n_open"]


@pytest.mark.slow
def test_the_demonstration_carries_and_reverses_a_fixed_response(tmp_path: Path) -> None:
    results = run(demo_config("idk", seed=0), tmp_path / "out").results
    rate = {condition: figure["value"] for condition, figure in results["behaviour_rate"].items()}
    assert rate["routed"] >= 0.95
    assert results["carrier"]["sparsity"] >= 0.9
    assert rate["routed+trigger"] <= 0.10
    assert results["utility"]["routed+trigger"]["value"] >= 0.75
    assert rate["sft+trigger"] >= 0.7
    assert rate["routed+random"] >= 0.95
    assert set(results["invariants"].values()) == {True}
