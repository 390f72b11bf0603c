"""Carriers against attribution rankings: one small JSON file per model, behaviour and seed.

    python benchmarks/compare_seeds.py --pair llama/idk --seeds 0
    python benchmarks/compare_seeds.py --family llama --seeds 0-4
    python benchmarks/make_comparison.py                       # docs/comparison.md from the files

A row fine-tunes and runs LCDD as the demonstration does (``lcdd-lens demo``; its trigger and its evaluation are left
out), then compares (``lcdd-lens compare``) with the settings below. Its seed is that of data order, fine-tuning, LCDD,
prompts and draws. Rows that are there already are skipped, so an interrupted call goes on with the same command. One
process, one thread.

Reversal is the expensive part: it trains a trigger per set of channels and new weights per mask. It is measured for the
seeds below ``--reversal-seeds``.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from reproduce import PREFIX, compact, rounded, seed_numbers
from tqdm.auto import tqdm

from lcdd_lens.io import read_json, write_text_atomic
from lcdd_lens.organisms import BEHAVIOURS, organism_names

SCHEMA = 1
RESULTS = Path(__file__).resolve().parent / "results" / "comparison"
DROPPED = ("schema", "library_version", "channels", "places", "prompts", "metric", "base", "config")
"""What a row leaves out of ``comparison.json``, or has under another name."""


@dataclass(frozen=True)
class Task:
    """One row to make."""

    family: str
    behaviour: str
    seed: int
    reversal: bool
    out: Path
    pages: Path | None = None

    @property
    def pair(self) -> str:
        return f"{self.family}/{self.behaviour}"

    @property
    def path(self) -> Path:
        return self.out / f"{self.family}-{self.behaviour}-{self.seed}.json"

    def is_done(self) -> bool:
        """Whether the file is there, was made with the present settings, and has reversal where it is asked for."""
        if not self.path.is_file():
            return False
        found = read_json(self.path, dict[str, Any])
        config = comparison_config(self)
        present = found.get("schema") == SCHEMA and found["settings"] == {key: getattr(config, key) for key in SETTINGS}
        return present and (bool(found["reversal"]) or not self.reversal)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows that are asked for and not there."""
    tasks = parse(arguments)
    waiting = [task for task in tasks if not task.is_done()]
    if len(waiting) < len(tasks):
        print(f"{len(tasks) - len(waiting)} of {len(tasks)} rows are there already.")
    for task in (bar := tqdm(waiting, desc="rows", unit="row")):
        bar.set_postfix_str(f"{task.pair} seed {task.seed}")
        write_text_atomic(task.path, compact(rounded(row(task))))


def parse(arguments: Sequence[str] | None) -> list[Task]:
    """Tasks in the order of seeds; ends the program with a message where the options make no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", action="append", default=[], metavar="MODEL/BEHAVIOUR", help="repeatable")
    parser.add_argument("--family", action="append", default=[], metavar="MODEL", help="all behaviours; repeatable")
    parser.add_argument("--seeds", default="0", help="0, 0-4, or 0,2,3 (default: 0)")
    parser.add_argument("--reversal-seeds", type=int, default=1, metavar="N", help="seeds below N get it (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--pages", type=Path, metavar="DIR", help="also keep every run's record and page, here")
    options = parser.parse_args(arguments)
    families = [name.removeprefix(PREFIX) for name in organism_names()]
    known = [f"{family}/{behaviour}" for family in families for behaviour in BEHAVIOURS]
    pairs = [*options.pair, *(f"{family}/{behaviour}" for family in options.family for behaviour in BEHAVIOURS)]
    unknown = [pair for pair in pairs if pair not in known]
    if unknown or not pairs:
        parser.error(f"unknown pairs {unknown}: give --family, or --pair with some of {', '.join(known)}")
    try:
        seeds = seed_numbers(options.seeds)
    except ValueError:
        parser.error(f"--seeds {options.seeds}: expected 0, 0-4 or 0,2,3")
    return [
        Task(*pair.split("/"), seed, seed < options.reversal_seeds, options.out, options.pages)
        for seed in seeds
        for pair in dict.fromkeys(pairs)
    ]


def row(task: Task) -> dict[str, Any]:
    """Fine-tune, run LCDD, compare."""
    import torch
    import transformers

    from lcdd_lens.backends import backend_of, load_model
    from lcdd_lens.comparison import Material, compare
    from lcdd_lens.data import pad_id_of
    from lcdd_lens.eraser import EraserConfig
    from lcdd_lens.pipeline import demo_config, encode_splits, make_behaviour, versions
    from lcdd_lens.routing import RoutedModel
    from lcdd_lens.training import lcdd_config_for, train_lcdd, train_sft

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    started = time.process_time()
    config = demo_config(task.behaviour, task.seed, task.family).seeded()
    base, behaviour = load_model(config.base), make_behaviour(config.behaviour, task.seed)
    lcdd = config.lcdd or lcdd_config_for(base, seed=task.seed)
    eraser = config.eraser or replace(EraserConfig.for_model(base), seed=task.seed)
    train = encode_splits(base, behaviour, eraser, config.evaluation)["train"]
    pad_id = pad_id_of(base.tokenizer)
    sft = backend_of(base).clone(base)
    assert config.sft_training is not None
    train_sft(sft, train, config.sft_training, pad_id=pad_id, progress=False)
    routed = RoutedModel(backend_of(sft).clone(sft), base)
    found = train_lcdd(routed, train, lcdd, pad_id=pad_id, progress=False)
    trained = time.process_time() - started
    settings = comparison_config(task)
    weights = {name: weight.detach().clone() for name, weight in routed.delta_parameters().items()}
    material = Material.prepare(base, sft, found.carrier, behaviour, settings, lcdd_weights=weights)
    result = compare(material, settings, base_name=config.base, versions=versions(), progress=False)
    record = result.record
    if task.pages is not None:
        folder = task.pages / task.path.stem
        result.save(folder)
        result.write_report(folder / "comparison.html")
    return row_of(
        task,
        record,
        shared_settings(config, lcdd, record["config"]),
        parameters=sum(parameter.numel() for parameter in base.parameters()),
        open={name: index.tolist() for name, index in found.carrier.channels.items() if len(index)},
        processor_seconds={"training": trained, "all": time.process_time() - started},
    )


def row_of(task: Task, record: Mapping[str, Any], settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What is kept of a comparison."""
    return {
        "schema": SCHEMA,
        "pair": task.pair,
        "family": task.family,
        "command": f"python benchmarks/compare_seeds.py --pair {task.pair} --seeds {task.seed}",
        "n_prompts": {key: value for key, value in record["prompts"].items() if isinstance(value, int)},
        "layers": layers(record["places"]),
        "settings": {key: record["config"][key] for key in SETTINGS},
        "reversal_settings": {key: value for key, value in record["config"].items() if key.startswith("retrain")},
        "config_sha256": digest(settings),
        **{key: slim(key, value) for key, value in record.items() if key not in DROPPED},
        **more,
    }


SETTINGS = ("n_discovery", "n_test", "activation_steps", "weight_steps", "mask_steps", "random_draws", "matched_draws",
            "random_draws_lcdd", "completeness_draws", "minimality_sample", "n_resamples")  # fmt: skip


def shared_settings(config: Any, lcdd: Any, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that the seeds of a pair must share: all but those of reversal, which not every seed has."""
    compared = {key: value for key, value in comparison.items() if not key.startswith(("reversal", "retrain"))}
    return {"sft": asdict(config.sft_training), "lcdd": asdict(lcdd), "comparison": compared}


def digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings without seeds: equal for the seeds of a pair."""

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: kept(entry) for key, entry in value.items() if "seed" not in key}
        return value

    return hashlib.sha256(json.dumps(kept(settings), sort_keys=True).encode()).hexdigest()


def comparison_config(task: Task) -> Any:
    """The default comparison with fewer draws, and reversal where it is asked for."""
    from lcdd_lens.comparison import CARRIER, ComparisonConfig

    config = ComparisonConfig(
        seed=task.seed,
        n_discovery=32,
        n_test=48,
        activation_steps=3,
        random_draws=100,
        matched_draws=50,
        random_draws_lcdd=10,
        oracle_top=16,
        minimality_sample=12,
        completeness_draws=4,
        reversal_methods=(CARRIER, "weight_integrated_gradients", "attribution_patching"),
    )
    return config if task.reversal else replace(config, reversal_methods=())


def slim(key: str, value: Any) -> Any:
    """Overlap by kind and by layer with the AUROC alone; the rest as it is."""
    if key != "overlap":
        return value
    parts = {}
    for name, found in value["with_carrier"].items():
        parts[name] = {
            "all": found["all"],
            **{
                group: {label: entry["auroc"] for label, entry in found[group].items()}
                for group in ("by_kind", "by_layer")
            },
        }
    on_lcdd = {name: found["all"] for name, found in value["with_carrier_on_lcdd_weights"].items()}
    return {**value, "with_carrier": parts, "with_carrier_on_lcdd_weights": on_lcdd}


def layers(places: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    """Set -> channels per layer."""
    return {name: [sum(counts) for counts in zip(*by_kind.values(), strict=True)] for name, by_kind in places.items()}


if __name__ == "__main__":
    main()
