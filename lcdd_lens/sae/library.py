"""SAELens as this room needs it: imported when it is used, and never a pickle loaded."""

import importlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.io import load_tensors, read_json

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"


@runtime_checkable
class SparseAutoencoder(Protocol):
    """Any SAE of SAELens: it encodes activations [… d_in] into features [… feature] and has decoder rows."""

    cfg: Any
    W_dec: Any

    def encode(self, x: Tensor) -> Tensor:
        """Activations [… d_in] to features [… feature]."""
        ...

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Features [… feature] to activations [… d_in]."""
        ...


def sae_lens() -> Any:
    """The package ``sae_lens``.

    Raises:
        ConfigError: it is not installed, or cannot be imported beside the installed TransformerLens.
    """
    try:
        return importlib.import_module("sae_lens")
    except ImportError as error:
        raise ConfigError(
            f"sparse autoencoders need sae-lens, which cannot be imported here ({error}): "
            "pip install 'sae-lens>=6.54' 'transformer-lens>=3.9,<4'."
        ) from error


def hook_of(sae: SparseAutoencoder) -> str:
    """The hook point whose activations the SAE reads.

    Raises:
        ConfigError: its metadata does not name one.
    """
    name = sae.cfg.metadata.hook_name
    if not isinstance(name, str) or not name:
        raise ConfigError("the SAE does not say where it reads: set sae.cfg.metadata.hook_name to a hook name.")
    return name


def decoder_directions(sae: SparseAutoencoder) -> Float[Tensor, "feature d_in"]:
    """Decoder rows of length 1, on the CPU in float32; a row of zeros stays one."""
    rows: Tensor = sae.W_dec.detach().float().cpu()
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit


def load_sae(folder: str | Path, *, device: str = "cpu") -> SparseAutoencoder:
    """An SAE from a local folder with ``cfg.json`` and ``sae_weights.safetensors``, as SAELens saves it.

    Nothing but safetensors is read: SAELens can also load published SAEs that are pickled (``torch.load``), and a
    pickle runs code.

    Raises:
        ArtefactError: the folder holds no such SAE, or a damaged one.
        ConfigError: sae-lens is missing.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise ArtefactError(f"{folder} holds no SAE: expected {CONFIG} and {WEIGHTS}. Pickled SAEs are not loaded.")
    shape = tuple(load_tensors(folder / WEIGHTS).get("W_dec", ()))[:1]
    if not shape or "architecture" not in read_json(folder / CONFIG, dict):
        raise ArtefactError(f"{folder} holds no SAE of SAELens: decoder rows or the architecture's name are missing.")
    library = sae_lens()
    try:
        loaded: SparseAutoencoder = library.SAE.load_from_disk(folder, device=device)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArtefactError(f"{folder} cannot be read as an SAE ({error}): save it again.") from error
    return loaded
