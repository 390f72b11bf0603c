"""An evaluation as files: values per prompt beside the replies, so that a finished run can be looked at again.

evaluation.json          names, prompts and replies, sealed
evaluation.safetensors   measure/condition -> values [draw prompt]
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from lcdd_lens import __version__
from lcdd_lens.data import Example
from lcdd_lens.errors import ArtefactError
from lcdd_lens.evaluation.result import EvaluationResult
from lcdd_lens.io import fingerprint, load_tensors, read_sealed_json, save_tensors_atomic, write_sealed_json

SCHEMA = 1
_RECORD, _VALUES = "evaluation.json", "evaluation.safetensors"


class _EvaluationRecord(TypedDict):
    schema: int
    library_version: str
    behaviour: str
    examples: list[dict[str, Any]]
    is_target: list[bool]
    has_others: bool
    measures: list[str]
    answers: dict[str, list[str]]
    base_name: str
    sft_name: str
    seed: int
    tensors_sha256: str
    record_sha256: NotRequired[str]


def save_evaluation(result: EvaluationResult, folder: str | Path) -> Path:
    """Write ``evaluation.json`` and ``evaluation.safetensors`` into ``folder``, each atomically."""
    folder = Path(folder)
    tensors = {
        f"{measure}/{name}": torch.from_numpy(np.ascontiguousarray(values))
        for measure, by_condition in result.values.items()
        for name, values in by_condition.items()
    }
    record = _EvaluationRecord(
        schema=SCHEMA,
        library_version=__version__,
        behaviour=result.behaviour,
        examples=[asdict(example) for example in result.examples],
        is_target=result.is_target.tolist(),
        has_others=result.has_others,
        measures=list(result.values),
        answers=result.answers,
        base_name=result.base_name,
        sft_name=result.sft_name,
        seed=result.seed,
        tensors_sha256=fingerprint(tensors),
    )
    save_tensors_atomic(folder / _VALUES, tensors)
    write_sealed_json(folder / _RECORD, record)
    return folder


def load_evaluation(folder: str | Path) -> EvaluationResult:
    """Read an evaluation.

    Raises:
        ArtefactError: a file is missing, damaged, altered, or of a newer version.
    """
    folder = Path(folder)
    record = read_sealed_json(folder / _RECORD, _EvaluationRecord, SCHEMA)
    tensors = load_tensors(folder / _VALUES)
    if fingerprint(tensors) != record["tensors_sha256"]:
        raise ArtefactError(f"{folder}: {_VALUES} is not the file that {_RECORD} was written with.")
    return EvaluationResult(
        behaviour=record["behaviour"],
        examples=tuple(Example(**example) for example in record["examples"]),
        is_target=np.array(record["is_target"], dtype=bool),
        has_others=record["has_others"],
        values={
            measure: {name: tensors[f"{measure}/{name}"].numpy() for name in record["answers"]}
            for measure in record["measures"]
        },
        answers=record["answers"],
        base_name=record["base_name"],
        sft_name=record["sft_name"],
        seed=record["seed"],
    )
