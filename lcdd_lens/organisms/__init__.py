"""Embedded chat models and behaviours: everything the demonstrations and tests need, offline.

``tinychat-<family>`` are chat models of about a million parameters that this library's own script pre-trained on a
corpus that it generates (``lcdd_lens.organisms.train``). This module imports neither torch nor transformers.
"""

import hashlib
import json
from pathlib import Path

from lcdd_lens.errors import ArtefactError, ModelError
from lcdd_lens.organisms.corpus import BEHAVIOURS, SPLITS, BehaviourRow, behaviour_rows

__all__ = [
    "BEHAVIOURS",
    "SPLITS",
    "BehaviourRow",
    "behaviour_rows",
    "file_sha256",
    "organism_names",
    "organism_path",
]

WEIGHTS_FILE = "model.safetensors"
RECIPE_FILE = "recipe.json"
PREFIX = "organism:"
_FOLDER = Path(__file__).parent / "weights"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def organism_names() -> tuple[str, ...]:
    """Names of the models in this installation, sorted."""
    return tuple(sorted(folder.parent.name for folder in _FOLDER.glob(f"*/{RECIPE_FILE}")))


def organism_path(name: str) -> Path:
    """Folder of an embedded model in Hugging Face format.

    Args:
        name: ``tinychat-llama`` or ``organism:tinychat-llama``.

    Raises:
        ModelError: no such model; the message lists the known ones.
        ArtefactError: the weights are not those that the recipe records.
    """
    plain = name.removeprefix(PREFIX)
    if plain not in organism_names():
        raise ModelError(
            f"unknown embedded model {name!r}: this installation has {', '.join(organism_names()) or 'none'}."
        )
    return verified_folder(_FOLDER / plain)


def verified_folder(folder: Path) -> Path:
    """Return ``folder`` after comparing its weights with the hash in its recipe.

    Raises:
        ArtefactError: the recipe is unreadable or the weights differ.
    """
    try:
        expected = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))["sha256"]
        found = file_sha256(folder / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError) as error:
        raise ArtefactError(
            f"{folder} is not a complete embedded model ({error}): install the package again."
        ) from error
    if found != expected:
        raise ArtefactError(
            f"{folder / WEIGHTS_FILE} has SHA-256 {found[:12]}…, its recipe records {expected[:12]}…: "
            "the file was altered or cut off; install the package again."
        )
    return folder
