"""A checkpoint is whole, or it is the one before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lcdd_lens.errors import ArtefactError
from lcdd_lens.training.checkpoint import (
    load_checkpoint,
    load_optimiser_tensors,
    optimiser_tensors,
    save_checkpoint,
)

TENSORS = {"weight": torch.tensor([[1.5, -2.0]]), "count": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16)}
STATE = {"step": 7, "history": {"loss": [0.1 + 0.2, 1e-300]}, "nothing": None}


def test_tensors_and_state_come_back_exactly(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.safetensors", TENSORS, STATE)
    tensors, state = load_checkpoint(tmp_path / "c.safetensors")
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert {key: state[key] for key in STATE} == STATE


def test_a_failing_write_keeps_the_old_checkpoint_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    before = path.read_bytes()

    def full_disk(tensors: Any, target: Path, metadata: Any) -> None:
        Path(target).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr("lcdd_lens.io.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"weight": torch.zeros(1)}, {"step": 8})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_or_foreign_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(ArtefactError, match="not a readable checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, TENSORS, STATE)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtefactError, match="delete it to start the stage anew"):
        load_checkpoint(path)
    save_file(TENSORS, path)
    with pytest.raises(ArtefactError, match="not a readable checkpoint"):
        load_checkpoint(path)
    for state in ("{", "[]", "{}", '{"schema": null}'):
        save_file(TENSORS, path, metadata={"state": state})
        with pytest.raises(ArtefactError, match="not a readable checkpoint"):
            load_checkpoint(path)


def test_a_newer_checkpoint_asks_for_an_update(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file(TENSORS, path, metadata={"state": json.dumps({"schema": 99})})
    with pytest.raises(ArtefactError, match="schema 99"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_a_restored_optimiser_takes_the_same_steps(kind: type[torch.optim.Optimizer]) -> None:
    def play(parameters: list[torch.Tensor], optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            for index, parameter in enumerate(parameters):
                generator = torch.Generator().manual_seed(10 * step + index)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimiser.step()

    def fresh() -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
        parameters = [torch.zeros(3, requires_grad=True), torch.zeros(2, 2, requires_grad=True)]
        return parameters, kind(parameters, lr=0.1)  # type: ignore[call-arg]

    whole, optimiser = fresh()
    play(whole, optimiser, 0, 9)
    start, interrupted = fresh()
    play(start, interrupted, 0, 4)
    stored = {name: tensor.clone() for name, tensor in optimiser_tensors(interrupted, "adam").items()}
    resumed, restored = fresh()
    with torch.no_grad():
        for parameter, value in zip(resumed, start, strict=True):
            parameter.copy_(value)
    load_optimiser_tensors(restored, "adam", stored | {"other.0.exp_avg": torch.zeros(1)})
    play(resumed, restored, 4, 9)
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))
