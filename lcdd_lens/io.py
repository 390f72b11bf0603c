"""Reading and writing artefacts: JSON and safetensors, written atomically, checked before they are believed.

Nothing is ever pickled. A file appears under its final name only when it is complete, so an interrupted write
leaves the previous version in place.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar

import torch
import typeguard
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcdd_lens.errors import ArtefactError

T = TypeVar("T")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it on success and is removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; the old file stays until the new one is complete."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomic(path: Path, content: Any) -> None:
    """Write strict JSON (no NaN or infinity) with sorted order left as given."""
    write_text_atomic(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, expected: type[T] | GenericAlias) -> T:
    """Read JSON and check it against a type: a ``TypedDict``, or for example ``dict[str, Any]``.

    Raises:
        ArtefactError: the file is missing, is not JSON, or does not have the expected fields.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} does not exist: expected a saved {expected.__name__}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path} is not valid JSON ({error}): the file is damaged; save it again.") from error
    try:
        every_item = typeguard.CollectionCheckStrategy.ALL_ITEMS
        return typeguard.check_type(content, expected, collection_check_strategy=every_item)
    except typeguard.TypeCheckError as error:
        raise ArtefactError(f"{path} does not have the fields of {expected.__name__}: {error}.") from error


def write_sealed_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record with a seal, ``record_sha256``: a digest over all its other fields."""
    write_json_atomic(path, {**record, "record_sha256": record_digest(record)})


def read_sealed_json(path: Path, expected: type[T] | GenericAlias, schema: int) -> T:
    """Read what :func:`write_sealed_json` wrote.

    The version is judged before the fields, because a newer version may have others.

    Args:
        path: the file.
        expected: its ``TypedDict``, with ``schema``, ``library_version`` and ``record_sha256``.
        schema: the newest schema that the caller reads.

    Raises:
        ArtefactError: the file is missing, damaged, of a newer version, or altered after it was written.
    """
    content = read_json(path, dict)
    if isinstance(content.get("schema"), int) and content["schema"] > schema:
        raise ArtefactError(
            f"{path} was written by lcdd_lens {content.get('library_version')} (schema {content['schema']}); this "
            f"version reads schema {schema}: update lcdd_lens."
        )
    record = read_json(path, expected)
    if content.get("record_sha256") != record_digest(content):
        raise ArtefactError(f"{path} was altered after it was saved: restore it, or save it again.")
    return record


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 over a record as JSON would give it back, without its own ``record_sha256``."""
    stored = json.loads(json.dumps(dict(record), allow_nan=False))
    stored.pop("record_sha256", None)
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def save_tensors_atomic(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors (contiguous copies, any device)."""
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata or {}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ArtefactError: the file is missing or damaged.
    """
    if not path.is_file():
        raise ArtefactError(f"{path} does not exist: expected a safetensors file.")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path} is not readable safetensors ({error}): the file is damaged or cut off.") from error
    return tensors


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in name order: equal weights have equal fingerprints."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
