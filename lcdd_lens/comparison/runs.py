"""Comparisons of finished experiments: what lies where in a run's folder, read in one place.

results.json      behaviour, seed, config (base, dtype, device, behaviour source), versions
sft/              the fine-tuned model (Hugging Face folder)
carrier/          the carrier
stages/lcdd/      checkpoint with LCDD's own weights W
routed/           W(m), merged: read where the checkpoint is gone
comparison/       what is written here: comparison.json, comparison.html, scores/METHOD/
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcdd_lens.backends import LensModel, load_pair
from lcdd_lens.carrier import Carrier
from lcdd_lens.comparison.config import ComparisonConfig
from lcdd_lens.comparison.material import LcddWeights, Material
from lcdd_lens.comparison.result import ComparisonResult
from lcdd_lens.comparison.study import compare
from lcdd_lens.configuration import build
from lcdd_lens.data import Behaviour
from lcdd_lens.errors import ArtefactError
from lcdd_lens.io import read_json
from lcdd_lens.pipeline import BehaviourSource, lcdd_weights, make_behaviour, versions

FOLDER = "comparison"


@dataclass(frozen=True)
class RunFiles:
    """Everything of a run that a comparison needs."""

    base_name: str
    seed: int
    behaviour: Behaviour
    base: LensModel
    sft: LensModel
    carrier: Carrier
    lcdd_weights: Mapping[str, Tensor]
    lcdd_kind: LcddWeights


def read_run(folder: str | Path) -> RunFiles:
    """Read a run's models, carrier and settings.

    Raises:
        ArtefactError: the folder holds no finished run, or its parts do not belong together.
    """
    folder = Path(folder)
    results = read_json(folder / "results.json", dict[str, Any])
    config = results.get("config", {})
    if not isinstance(config.get("base"), str) or not isinstance(config.get("behaviour"), dict):
        raise ArtefactError(f"{folder / 'results.json'} names no base model and behaviour: expected a finished run.")
    source = build(BehaviourSource, config["behaviour"], "behaviour")
    seed = int(results.get("seed", 0))
    dtype, device = getattr(torch, config.get("dtype", "float32")), config.get("device", "cpu")
    pair = load_pair(
        config["base"],
        folder / "sft",
        reset_ungated=True,
        dtype=dtype,
        device=device,
        backend=config.get("backend"),
    )
    carrier = Carrier.load(folder / "carrier", pair.base)
    weights, kind = lcdd_weights(folder, pair.base)
    return RunFiles(
        config["base"],
        seed,
        make_behaviour(source, seed),
        pair.base,
        pair.sft,
        carrier,
        weights,
        kind,
    )


def compare_run(
    folder: str | Path,
    config: ComparisonConfig | None = None,
    *,
    out: str | Path | None = None,
    progress: bool = True,
) -> ComparisonResult:
    """Compare the carrier of a finished run with attribution rankings, and write results file and page.

    Args:
        folder: the run's folder.
        config: what to measure; its seed is replaced by the run's.
        out: where to write; None: ``comparison/`` in the run's folder.
        progress: show progress bars.

    Raises:
        ArtefactError: the folder holds no finished run, or its parts do not belong together.
    """
    files = read_run(folder)
    settings = replace(config or ComparisonConfig(), seed=files.seed)
    material = Material.prepare(
        files.base,
        files.sft,
        files.carrier,
        files.behaviour,
        settings,
        lcdd_weights=files.lcdd_weights,
        lcdd_kind=files.lcdd_kind,
    )
    target = Path(folder) / FOLDER if out is None else Path(out)
    try:
        result = compare(
            material,
            settings,
            base_name=files.base_name,
            scores_folder=target / "scores",
            versions=versions(),
            progress=progress,
        )
    finally:
        material.routed.detach()
    result.save(target)
    result.write_report(target / "comparison.html")
    return result
