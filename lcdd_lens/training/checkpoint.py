"""Checkpoints of a training run: one safetensors file, tensors and a JSON header, replaced atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lcdd_lens.errors import ArtefactError
from lcdd_lens.io import save_tensors_atomic

SCHEMA = 1


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-serialisable state as one file; the old one stays until the new one is complete."""
    save_tensors_atomic(path, tensors, {"state": json.dumps({"schema": SCHEMA, **state})})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        ArtefactError: the file is missing, damaged, or of a newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            schema = int(state["schema"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{path} is not a readable checkpoint ({error}): delete it to start the stage anew."
        ) from error
    if schema > SCHEMA:
        raise ArtefactError(f"{path} was written by a newer lcdd_lens (schema {schema}): update to resume it.")
    return tensors, state


def optimiser_tensors(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The state tensors of an optimiser by flat name."""
    return {
        f"{prefix}.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in optimiser.state_dict()["state"].items()
        for key, value in entries.items()
        if value is not None
    }


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`optimiser_tensors` took out."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
