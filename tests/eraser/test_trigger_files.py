"""A trigger on disk is believed only when it is whole, unaltered, readable by this version, and of this model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lcdd_lens.backends import LensModel, load_model
from lcdd_lens.eraser import SoftPrompt, Trigger
from lcdd_lens.errors import ArtefactError
from lcdd_lens.io import record_digest, save_tensors_atomic
from tests.conftest import tiny_hf
from tests.models import Pair


@pytest.fixture
def trigger(llama: LensModel) -> Trigger:
    return Trigger.from_soft_prompt(SoftPrompt(torch.randn(3, 16), "after_bos"), llama, {"steps": 5, "name": "é"})


@pytest.fixture
def saved(trigger: Trigger, tmp_path: Path) -> Path:
    return trigger.save(tmp_path / "trigger")


def test_a_saved_trigger_comes_back_bit_by_bit(trigger: Trigger, saved: Path, llama: LensModel) -> None:
    loaded = Trigger.load(saved, llama)
    assert torch.equal(loaded.embeddings, trigger.embeddings)
    assert (loaded.placement, loaded.details) == (trigger.placement, trigger.details)
    assert (loaded.n_tokens, loaded.d_model, loaded.d_vocab) == (3, 16, 61)
    assert sorted(file.name for file in saved.iterdir()) == ["trigger.json", "trigger.safetensors"]


def test_saving_again_replaces_the_trigger(trigger: Trigger, saved: Path, llama: LensModel) -> None:
    other = Trigger.from_soft_prompt(SoftPrompt(torch.randn(1, 16)), llama)
    other.save(saved)
    assert torch.equal(Trigger.load(saved).embeddings, other.embeddings)


def test_a_trigger_belongs_to_every_model_with_its_embedding_matrix(pair: Pair, tmp_path: Path) -> None:
    folder = Trigger.from_soft_prompt(SoftPrompt(torch.randn(1, 16)), pair.sft).save(tmp_path)
    assert Trigger.load(folder, pair.base).n_tokens == 1


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        record = json.loads((folder / "trigger.json").read_text())
        change(record)
        (folder / "trigger.json").write_text(json.dumps(record))

    return apply


def cut(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return apply


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "trigger.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "trigger.safetensors").write_bytes(bytes(content))


def other_tensors(folder: Path) -> None:
    save_tensors_atomic(folder / "trigger.safetensors", {"weights": torch.zeros(3, 16)})


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "json missing": (lambda folder: (folder / "trigger.json").unlink(), "does not exist"),
    "tensors missing": (lambda folder: (folder / "trigger.safetensors").unlink(), "does not exist"),
    "json cut off": (cut("trigger.json"), "not valid JSON"),
    "tensors cut off": (cut("trigger.safetensors"), "damaged or cut off"),
    "json is a list": (lambda folder: (folder / "trigger.json").write_text("[]") and None, "fields of dict"),
    "field missing": (edit(lambda record: record.pop("placement")), "fields of _TriggerRecord"),
    "field of another type": (edit(lambda record: record.update(d_model="16")), "fields of _TriggerRecord"),
    "placement altered": (edit(lambda record: record.update(placement="before_bos")), "altered after it was saved"),
    "details altered": (edit(lambda record: record["details"].update(steps=6)), "altered after it was saved"),
    "tensors altered": (flip_a_bit, "not the file that trigger.json was written with"),
    "tensors of something else": (other_tensors, "not the file that trigger.json was written with"),
    "newer version": (edit(lambda record: record.update(schema=99, new_field=1)), "schema 99.*update lcdd_lens"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_trigger_is_refused_with_the_reason(saved: Path, damage: str) -> None:
    apply, message = DAMAGE[damage]
    apply(saved)
    with pytest.raises(ArtefactError, match=message):
        Trigger.load(saved)


def test_a_record_that_does_not_describe_its_tensors_is_refused(trigger: Trigger, tmp_path: Path) -> None:
    folder = trigger.save(tmp_path)
    record = json.loads((folder / "trigger.json").read_text()) | {"n_tokens": 4}
    record["record_sha256"] = record_digest(record)
    (folder / "trigger.json").write_text(json.dumps(record))
    with pytest.raises(ArtefactError, match="does not describe the embeddings"):
        Trigger.load(folder)


def test_another_models_trigger_is_refused_with_the_reason(saved: Path) -> None:
    with pytest.raises(ArtefactError, match="another embedding space"):
        Trigger.load(saved, load_model(tiny_hf("llama", seed=1)))
    with pytest.raises(ArtefactError, match="61 tokens x 16; this model's embedding is 61 x 32"):
        Trigger.load(saved, load_model(tiny_hf("llama", hidden_size=32)))


def test_norms_and_repr_say_what_the_trigger_is(llama: LensModel) -> None:
    embeddings = torch.zeros(2, 16)
    embeddings[0, :2], embeddings[1, 5] = torch.tensor([3.0, 4.0]), 0.5
    trigger = Trigger.from_soft_prompt(SoftPrompt(embeddings), llama)
    assert trigger.norms.tolist() == [5.0, 0.5]
    assert repr(trigger) == "Trigger(2 tokens x 16, before_bos, norms 5.00, 0.50)"


def test_a_trigger_does_not_change_with_the_soft_prompt_that_it_was_made_from(llama: LensModel) -> None:
    soft = SoftPrompt(torch.ones(1, 16))
    trigger = Trigger.from_soft_prompt(soft, llama)
    soft.project(0.1)
    trigger.soft_prompt().project(0.1)
    assert torch.equal(trigger.embeddings, torch.ones(1, 16))
    assert not trigger.embeddings.requires_grad
