"""What a loaded model remembers of the checkpoint that it came from, so that it can be written back exactly."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Origin:
    """The checkpoint behind a loaded model; kept as ``model.origin``."""

    source: str  # hub name, folder, or class name of a model given as an object
    hf_config: Any  # the Hugging Face configuration
    generation_config: Any  # the Hugging Face generation configuration, or None
    absent: frozenset[str]  # parameters that the checkpoint lacks: biases frozen at zero
    tied: bool  # whether embedding and unembedding are one matrix in the checkpoint


def origin_of(model: object) -> Origin | None:
    """The model's origin, or None when it was not made by :func:`lcdd_lens.load_model`."""
    origin = getattr(model, "origin", None)
    return origin if isinstance(origin, Origin) else None
