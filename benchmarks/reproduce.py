"""Repeat the paper's experiment on the embedded models: one small JSON file per model, behaviour and seed.

    python benchmarks/reproduce.py --pair llama/idk --seeds 0
    python benchmarks/reproduce.py --all --seeds 0-4 --jobs 2
    python benchmarks/reproduce.py --all --seeds 0-1 --jobs 2 --controls all
    python benchmarks/make_results.py                        # docs/results.md from the files

A row is the demonstration (``lcdd-lens demo``) with its seed in every stage: data order, fine-tuning, LCDD, trigger and
draws. Rows that are there already are skipped, so an interrupted run goes on with the same command; a row whose
controls were asked for at a higher level is run again. Every process uses one thread.

    --controls none    the seven conditions of the main table
    --controls main    and those controls that train no weights, and necessity and sufficiency (the default)
    --controls all     and those that do

``--keep FOLDER`` keeps the runs themselves, models and triggers included: controls can then be added later, and
``compare_seeds.py --runs FOLDER`` compares their carriers, without training anything twice.

``--base NAME=FOLDER`` runs a model of your own (a hub name or a folder) in the place of an embedded one: its pairs are
NAME/idk, NAME/safety and NAME/style. On a GPU, one family at 25 million parameters:

    python -m lcdd_lens.organisms.train --family llama --width 512 --layers 8 --lr 1e-3 --device cuda --out llama-25m
    python benchmarks/reproduce.py --base llama-25m=llama-25m --pair llama-25m/idk --seeds 0-4 --device cuda
"""

import argparse
import concurrent.futures
import hashlib
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tqdm.auto import tqdm

from lcdd_lens.io import write_text_atomic
from lcdd_lens.organisms import BEHAVIOURS, organism_names

SCHEMA = 1
RESULTS = Path(__file__).resolve().parent / "results" / "main"
LEVELS = ("none", "main", "all")
Level = Literal["none", "main", "all"]
PREFIX = "tinychat-"
DIGITS = 5
DIGESTED = ("behaviour", "sft_training", "lcdd", "eraser", "evaluation")
"""Settings that the seeds of a pair must share to be averaged."""
CONTROL_METRICS = ("behaviour_rate", "over_rate", "utility", "recovered", "kl", "kl_from_sft")
SITE_KEYS = ("layer", "kind", "n_channels", "open")
CARRIERS_KEPT = ("paper_rule", "random_order", "no_loss_gradient")
"""Controls whose open channels are kept, to be compared across seeds."""


@dataclass(frozen=True)
class Task:
    """One row to make."""

    family: str
    behaviour: str
    seed: int
    level: Level
    out: Path
    base: str | None = None
    device: str = "cpu"
    keep: Path | None = None

    @property
    def pair(self) -> str:
        return f"{self.family}/{self.behaviour}"

    @property
    def name(self) -> str:
        return f"{self.family}-{self.behaviour}-{self.seed}"

    @property
    def path(self) -> Path:
        return self.out / f"{self.name}.json"

    def __str__(self) -> str:
        return f"{self.pair} seed {self.seed}"

    def is_done(self) -> bool:
        """Whether the file is there, complete, and has at least this level of controls."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return found["schema"] == SCHEMA and LEVELS.index(found["controls_level"]) >= LEVELS.index(self.level)
        except (OSError, ValueError, KeyError, TypeError):
            return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the number of rows that failed."""
    options = parse(arguments)
    tasks = [task for task in options.tasks if options.force or not task.is_done()]
    skipped = len(options.tasks) - len(tasks)
    if skipped:
        print(f"{skipped} of {len(options.tasks)} rows are there already.")
    failed = run(tasks, options.jobs)
    for task, reason in failed:
        print(f"FAILED {task}: {reason}", file=sys.stderr)
    return len(failed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options, with ``tasks`` made of them; ends the program with a message where they make no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", action="append", default=[], metavar="MODEL/BEHAVIOUR", help="repeatable")
    parser.add_argument("--all", action="store_true", help="every model with every behaviour")
    parser.add_argument("--seeds", default="0", help="0, 0-4, or 0,2,3 (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each (default: 1)")
    parser.add_argument("--controls", choices=LEVELS, default="main")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--base", action="append", default=[], metavar="NAME=FOLDER", help="a model of your own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs here, and use those that are here")
    parser.add_argument("--force", action="store_true", help="run again what is there")
    options = parser.parse_args(arguments)
    own = dict(entry.split("=", 1) for entry in options.base if "=" in entry)
    if len(own) < len(options.base):
        parser.error(f"--base {options.base}: expected NAME=FOLDER, each name once")
    families = [*(name.removeprefix(PREFIX) for name in organism_names()), *own]
    known = [f"{family}/{behaviour}" for family in families for behaviour in BEHAVIOURS]
    pairs = known if options.all else list(dict.fromkeys(options.pair))
    unknown = [pair for pair in pairs if pair not in known]
    if unknown or not pairs:
        parser.error(f"unknown pairs {unknown}: give --all, or --pair with one of {', '.join(known)}")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    try:
        seeds = seed_numbers(options.seeds)
    except ValueError:
        parser.error(f"--seeds {options.seeds}: expected 0, 0-4 or 0,2,3")
    options.tasks = [
        Task(
            *pair.split("/"),
            seed,
            options.controls,
            options.out,
            own.get(pair.split("/")[0]),
            options.device,
            options.keep,
        )
        for seed in seeds
        for pair in pairs
    ]
    return options


def seed_numbers(text: str) -> list[int]:
    """``0-2,5`` as [0, 1, 2, 5].

    Raises:
        ValueError: it is no such list, or it is empty.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise ValueError(f"no seeds in {text!r}")
    return list(dict.fromkeys(seeds))


def run(tasks: Sequence[Task], jobs: int) -> list[tuple[Task, str]]:
    """Make rows in order, or several at a time in processes of their own; returns what failed and why."""
    failed: list[tuple[Task, str]] = []
    with tqdm(total=len(tasks), desc="rows", unit="row") as bar:
        if jobs == 1 or len(tasks) < 2:
            for task in tasks:
                bar.set_postfix_str(str(task))
                _attempt(lambda task=task: make_row(task), task, failed)
                bar.update()
            return failed
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
            waiting = {pool.submit(make_row, task): task for task in tasks}
            try:
                for done in concurrent.futures.as_completed(waiting):
                    _attempt(done.result, waiting[done], failed)
                    bar.update()
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return failed


def _attempt(work: Any, task: Task, failed: list[tuple[Task, str]]) -> None:
    try:
        work()
    except Exception as error:  # one row must not take the others with it
        logging.getLogger(__name__).debug("%s", task, exc_info=True)
        failed.append((task, f"{type(error).__name__}: {error}"))


def make_row(task: Task) -> None:
    """Run the experiment and write its row; the controls are added to it when they are done."""
    for row in measure(task):
        write_text_atomic(task.path, compact(rounded(row)))


def measure(task: Task) -> Any:
    """Yield the row of the main table, then the same with controls."""
    import torch
    import transformers

    from lcdd_lens.controls import Bench, controls_of, necessity_and_sufficiency, run_controls

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        experiment = finished_run(task, (task.keep or Path(folder)) / task.name)
        row = main_row(task, experiment, sum(experiment.results["seconds"].values()))
        yield row
        if task.level == "none":
            return
        bench = Bench.of(experiment, progress=False)
        controls = run_controls(bench, controls_of(task.level))
        yield row | {
            "controls_level": task.level,
            "controls": {name: control_entry(name, result) for name, result in controls.items()},
            "causal": [cell.to_dict() for cell in necessity_and_sufficiency(bench)],
            "total_seconds": row["total_seconds"] + time.perf_counter() - started,
        }


def finished_run(task: Task, folder: Path) -> Any:
    """The run in this folder: read if it has ended, gone on with if it was interrupted, begun otherwise."""
    from lcdd_lens.pipeline import RESULTS, demo_config, load_experiment, run_experiment

    if (folder / RESULTS).is_file():
        return load_experiment(folder)
    config = demo_config(task.behaviour, task.seed, "llama" if task.base else task.family)
    if task.base is not None:
        config = replace(config, base=task.base, sft_training=None)
    config = replace(config, device=task.device)
    return run_experiment(config, folder, progress=False, resume=True)


def main_row(task: Task, experiment: Any, seconds: float) -> dict[str, Any]:
    """What is kept of an experiment: every figure with its interval, the carrier, and what it takes to repeat it."""
    from lcdd_lens.controls import delta_norm

    found = experiment.evaluation
    results = experiment.results
    carrier = results["carrier"]
    return {
        "schema": SCHEMA,
        "pair": task.pair,
        "family": task.family,
        "behaviour": task.behaviour,
        "seed": task.seed,
        "command": f"python benchmarks/reproduce.py --pair {task.pair} --seeds {task.seed}",
        "controls_level": "none",
        "parameters": sum(parameter.numel() for parameter in experiment.base.parameters()),
        "utility_kind": found.utility_kind,
        "conditions": {
            name: {metric: found.estimate(metric, name).to_dict() for metric in found.metrics()}
            | ({} if name == found.base_name else {"verdict": found.verdict(name)})
            for name in found.conditions
        },
        "delta_norm": {
            "sft": delta_norm(experiment.sft, experiment.base),
            "routed": delta_norm(experiment.routed.model, experiment.base),
        },
        "carrier": {key: carrier[key] for key in ("sparsity", "n_open", "n_gates", "budget")},
        "sites": {name: {key: site[key] for key in SITE_KEYS} for name, site in carrier["sites"].items()},
        "invariants": results["invariants"],
        "settings": settings(results["config"]),
        "config_sha256": config_digest({key: results["config"][key] for key in DIGESTED}),
        "versions": results["versions"],
        "seconds": results["seconds"],
        "total_seconds": seconds,
    }


def control_entry(name: str, result: Any) -> dict[str, Any]:
    """A control's facts and figures; open channels only where they are compared across seeds."""
    entry: dict[str, Any] = result.to_dict()
    entry["conditions"] = {
        condition: {key: value for key, value in figures.items() if key in (*CONTROL_METRICS, "verdict")}
        for condition, figures in entry["conditions"].items()
    }
    if name in CARRIERS_KEPT and result.carrier is not None:
        entry["open"] = {hook: index.tolist() for hook, index in result.carrier.channels.items() if len(index)}
    return entry


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a reader asks for first."""
    sft, lcdd, eraser = config["sft_training"], config["lcdd"], config["eraser"]
    return {
        "sft": {key: sft[key] for key in ("steps", "lr", "batch_size")},
        "lcdd": {"rule": lcdd["rule"], **{key: lcdd["optim"][key] for key in ("steps", "lr", "pull")}},
        "budget": {key: lcdd["budget"][key] for key in ("ratio", "floor")},
        "eraser": {key: eraser[key] for key in ("n_tokens", "steps", "lr", "channels", "w_match", "w_kl", "w_answer")},
    }


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of settings without seeds and without the model's place: equal for the seeds of a pair."""

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: kept(entry) for key, entry in value.items() if "seed" not in key and key != "base"}
        return value

    return hashlib.sha256(json.dumps(kept(config), sort_keys=True).encode()).hexdigest()


def rounded(value: Any) -> Any:
    """Floats to five significant digits."""
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def compact(row: Mapping[str, Any]) -> str:
    """JSON with one line an entry, and one a condition, site or control."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def entry(value: Any) -> str:
        if isinstance(value, Mapping) and value and all(isinstance(inner, Mapping) for inner in value.values()):
            return "{\n" + ",\n".join(f"  {line(key)}: {line(inner)}" for key, inner in value.items()) + "\n }"
        return line(value)

    return "{\n" + ",\n".join(f" {line(key)}: {entry(value)}" for key, value in row.items()) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
