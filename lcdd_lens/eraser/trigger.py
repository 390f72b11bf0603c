"""The trigger: a trained soft prompt as an artefact (paper, section 5).

A trigger lives in the embedding space of one model, and so belongs to every model with that embedding matrix: the
base, its fine-tuned and its routed versions. It is stored as JSON beside safetensors and checked before it is used.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from lcdd_lens import __version__
from lcdd_lens.backends.base import LensModel, backend_of, device_of
from lcdd_lens.display import notebook_view
from lcdd_lens.eraser.attach import prepended
from lcdd_lens.eraser.soft_prompt import PLACEMENTS, Placement, SoftPrompt, random_token_ids
from lcdd_lens.errors import ArtefactError
from lcdd_lens.io import fingerprint, load_tensors, read_sealed_json, save_tensors_atomic, write_sealed_json

SCHEMA = 1


class _TriggerRecord(TypedDict):
    schema: int
    library_version: str
    placement: str
    n_tokens: int
    d_model: int
    d_vocab: int
    embedding_fingerprint: str
    tensors_sha256: str
    details: dict[str, Any]
    record_sha256: NotRequired[str]


@dataclass(frozen=True, eq=False)
class Trigger:
    """Embeddings that, placed before a prompt, make a routed model answer as its base does.

    Attributes:
        embeddings: [n d_model], float32, on the CPU.
        placement: before the prompt, or after its first token.
        d_vocab: vocabulary size of the model that it belongs to.
        embedding_fingerprint: SHA-256 of that model's embedding matrix.
        details: how it was made (configuration, steps, token ids); JSON values only.
    """

    embeddings: Float[Tensor, "n d_model"]
    placement: Placement
    d_vocab: int
    embedding_fingerprint: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "embeddings", self.embeddings.detach().cpu().float().clone())

    @classmethod
    def from_soft_prompt(
        cls, soft_prompt: SoftPrompt, model: LensModel, details: Mapping[str, Any] | None = None
    ) -> "Trigger":
        """Freeze a soft prompt that was trained on ``model``."""
        embedding = backend_of(model).embedding(model)
        return cls(
            soft_prompt.embeddings,
            soft_prompt.placement,
            len(embedding),
            fingerprint({"embedding": embedding}),
            dict(details or {}),
        )

    @property
    def n_tokens(self) -> int:
        """Number of soft tokens."""
        return len(self.embeddings)

    @property
    def d_model(self) -> int:
        """Width of an embedding."""
        return self.embeddings.shape[1]

    @property
    def norms(self) -> Float[Tensor, " n"]:
        """Euclidean norm of every embedding."""
        norms: Tensor = self.embeddings.norm(dim=-1)
        return norms

    def soft_prompt(self) -> SoftPrompt:
        """A trainable copy, for example to go on training or to insert by hand."""
        return SoftPrompt(self.embeddings, self.placement)

    def on(self, model: LensModel) -> contextlib.AbstractContextManager[None]:
        """Within the block ``model(...)``, ``run_with_cache``, ``run_with_hooks`` and ``generate`` see the trigger.

        Outputs line up with the tokens given; cached activations hold n more positions, at
        ``trigger.soft_prompt().columns``. Leaving the block, also by an exception, restores the model.

        Raises:
            ArtefactError: the model's embeddings have another size.
        """
        self._check_size(model)
        return prepended(model, self.soft_prompt().to(device_of(model)).requires_grad_(False))

    def check_model(self, model: LensModel) -> None:
        """Refuse a model with another embedding matrix.

        Raises:
            ArtefactError: names what differs.
        """
        self._check_size(model)
        if fingerprint({"embedding": backend_of(model).embedding(model)}) != self.embedding_fingerprint:
            raise ArtefactError(
                "the trigger was trained in another embedding space: the model's token embeddings differ from those of "
                "the model it belongs to. Load that model, or skip the check with Trigger.load(folder) without a model."
            )

    def save(self, folder: str | Path) -> Path:
        """Write ``trigger.json`` and ``trigger.safetensors`` into ``folder``, each atomically."""
        folder = Path(folder)
        tensors = {"embeddings": self.embeddings}
        record = _TriggerRecord(
            schema=SCHEMA,
            library_version=__version__,
            placement=self.placement,
            n_tokens=self.n_tokens,
            d_model=self.d_model,
            d_vocab=self.d_vocab,
            embedding_fingerprint=self.embedding_fingerprint,
            tensors_sha256=fingerprint(tensors),
            details=dict(self.details),
        )
        save_tensors_atomic(folder / "trigger.safetensors", tensors)
        write_sealed_json(folder / "trigger.json", record)
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: LensModel | None = None) -> "Trigger":
        """Read a trigger and, given a model, check that it belongs to it.

        Raises:
            ArtefactError: a file is missing, damaged, altered, of a newer version, or of another model.
        """
        folder = Path(folder)
        record = read_sealed_json(folder / "trigger.json", _TriggerRecord, SCHEMA)
        tensors = load_tensors(folder / "trigger.safetensors")
        if fingerprint(tensors) != record["tensors_sha256"]:
            raise ArtefactError(f"{folder}: trigger.safetensors is not the file that trigger.json was written with.")
        placement = next((known for known in PLACEMENTS if known == record["placement"]), None)
        if placement is None or tensors["embeddings"].shape != (record["n_tokens"], record["d_model"]):
            raise ArtefactError(f"{folder}: trigger.json does not describe the embeddings beside it.")
        trigger = cls(
            tensors["embeddings"], placement, record["d_vocab"], record["embedding_fingerprint"], record["details"]
        )
        if model is not None:
            trigger.check_model(model)
        return trigger

    def save_pretrained(self, folder: str | Path) -> Path:
        """:meth:`save` under the name that Hugging Face libraries use; a local folder."""
        return self.save(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: LensModel | None = None) -> "Trigger":
        """:meth:`load` under the name that Hugging Face libraries use; a local folder.

        Raises:
            ArtefactError: as for :meth:`load`.
        """
        return cls.load(folder, model)

    def __repr__(self) -> str:
        norms = ", ".join(f"{norm:.2f}" for norm in self.norms[:4].tolist()) + (", …" if self.n_tokens > 4 else "")
        tokens = "1 token" if self.n_tokens == 1 else f"{self.n_tokens} tokens"
        return f"Trigger({tokens} x {self.d_model}, {self.placement}, norms {norms})"

    def _repr_html_(self) -> str:
        details = {name: value for name, value in self.details.items() if isinstance(value, str | int | float | bool)}
        return notebook_view(repr(self), details)

    def _check_size(self, model: LensModel) -> None:
        embedding = backend_of(model).embedding(model)
        if embedding.shape != (self.d_vocab, self.d_model):
            raise ArtefactError(
                f"the trigger belongs to a model with {self.d_vocab} tokens x {self.d_model}; this model's embedding "
                f"is {len(embedding)} x {embedding.shape[1]}."
            )


def random_token_trigger(
    model: LensModel, n_tokens: int, *, seed: int = 0, placement: Placement = "before_bos"
) -> Trigger:
    """The control: the embeddings of n random real tokens in the trigger's place.

    Raises:
        ConfigError: the model has no n such tokens.
    """
    ids = random_token_ids(model, n_tokens, seed)
    embedding = backend_of(model).embedding(model)
    return Trigger.from_soft_prompt(
        SoftPrompt(embedding[torch.tensor(ids, device=embedding.device)], placement),
        model,
        {"kind": "random tokens", "token_ids": ids, "seed": seed},
    )
