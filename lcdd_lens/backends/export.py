"""Writing a model back as a Hugging Face folder: the inverse of loading.

The tensors go the way that :mod:`lcdd_lens.backends.layout` describes, from right to left, into the architecture and
configuration that the model was loaded from. What that checkpoint format cannot hold is refused, never dropped.
"""

import copy
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from lcdd_lens.backends.architectures import architecture_of, layout_config
from lcdd_lens.backends.bars import without_library_bars
from lcdd_lens.backends.base import LensModel, backend_of
from lcdd_lens.backends.bridge import hf_tensors
from lcdd_lens.backends.layout import UNEMBEDDING, Link, axis_sizes, head_name
from lcdd_lens.backends.lens_bridge import LensBridge
from lcdd_lens.backends.loading import BACKENDS
from lcdd_lens.backends.origin import origin_of
from lcdd_lens.errors import ArtefactError, ModelError

logger = logging.getLogger(__name__)


def export_hf(model: LensModel, folder: str | Path, *, hf_config: Any = None, overwrite: bool = False) -> Path:
    """Write a plain model as a Hugging Face folder (configuration, safetensors, tokenizer, generation settings).

    ``AutoModelForCausalLM.from_pretrained(folder)`` gives the same logits. The folder appears only when it is
    complete.

    Args:
        model: a model from :func:`load_model`, or what became of it by training and merging.
        folder: where to write.
        hf_config: the Hugging Face configuration, for a model that :func:`load_model` did not make.
        overwrite: replace an existing model folder.

    Returns:
        The folder.

    Raises:
        ModelError: the model is routed, processed, or holds something that its checkpoint format cannot.
        ArtefactError: the folder exists and is not empty, or cannot be written.
    """
    hf_model = _to_hf(model, hf_config)
    target = Path(folder).expanduser()
    with _new_folder(target, overwrite) as temporary, without_library_bars():
        hf_model.save_pretrained(str(temporary))
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(str(temporary))
        else:
            logger.warning("%s gets no tokenizer: the model has none", target)
    return target


def _to_hf(model: LensModel, hf_config: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    _require_plain(model)
    origin = origin_of(model)
    if hf_config is None:
        if origin is None:
            raise ModelError(
                "the model was not made by load_model, so its Hugging Face configuration is unknown: pass hf_config=."
            )
        hf_config = origin.hf_config
    config = copy.deepcopy(hf_config)
    config.dtype = model.cfg.dtype
    config.name_or_path = ""
    links = architecture_of(config).links(layout_config(config) if isinstance(model, LensBridge) else model.cfg)
    with torch.device("meta"):
        hf_model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.cfg.dtype)
    if origin is not None and origin.generation_config is not None:
        hf_model.generation_config = copy.deepcopy(origin.generation_config)

    tensors = _checkpoint(model, links, _expected_shapes(hf_model), tied=bool(config.tie_word_embeddings))
    tensors[head_name(hf_model)] = tensors.pop(UNEMBEDDING)
    hf_model.load_state_dict(tensors, strict=True, assign=True)
    hf_model.tie_weights()
    return hf_model


def _require_plain(model: LensModel) -> None:
    if backend_of(model).name not in BACKENDS:
        raise ModelError(f"{type(model).__name__} cannot be exported: expected a model from load_model.")
    if any(parametrize.is_parametrized(module) for module in model.get_submodule("").modules()):
        raise ModelError(
            "the model is routed: its weights depend on gates, which a Hugging Face folder cannot hold. "
            "Export routed.merged(), the plain model with the current gates."
        )
    if model.cfg.normalization_type not in ("LN", "RMS"):
        raise ModelError(
            f"the model's norms are folded (normalization_type {model.cfg.normalization_type}): expected an "
            "unprocessed model, as load_model makes it."
        )


def _expected_shapes(hf_model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in hf_model.named_parameters(remove_duplicate=False)}
    shapes[UNEMBEDDING] = shapes.pop(head_name(hf_model))
    return shapes


def _checkpoint(
    model: LensModel, links: list[Link], expected: Mapping[str, tuple[int, ...]], tied: bool
) -> dict[str, Tensor]:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, tensor in parameters.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name} holds NaN or infinite values: the model is not worth exporting.")
    stored = [link for link in links if link.hf in expected]
    tensors = _bridge_tensors(model) if isinstance(model, LensBridge) else _hooked_tensors(model, stored, parameters)
    for name, shape in expected.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise ModelError(
                f"{name}: the Hugging Face configuration expects shape {shape}, the model has {found}: "
                "the configuration belongs to another model."
            )
    if tied:
        embedding = next(link.hf for link in stored if link.lens == ("embed.W_E",))
        gap = float((tensors[embedding] - tensors[UNEMBEDDING]).abs().max())
        # Scaled embeddings (Gemma) come back up to one rounding of the data type.
        if gap > 4 * torch.finfo(model.cfg.dtype).eps * float(tensors[UNEMBEDDING].abs().max()):
            raise ModelError(
                f"the checkpoint ties embedding and unembedding, but they now differ by up to {gap:.3g}: "
                "expected both frozen, or pass an hf_config with tie_word_embeddings=False."
            )
        tensors[embedding] = tensors[UNEMBEDDING]
    return tensors


def _hooked_tensors(model: LensModel, stored: list[Link], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    written = {name for link in stored for name in link.lens}
    for name, tensor in parameters.items():
        if name not in written and bool(torch.any(tensor != 0)):
            raise ModelError(
                f"{name} is not zero (largest value {float(tensor.abs().max()):.3g}), but the checkpoint format has no "
                "place for it. Expected it frozen at zero, as load_model leaves it."
            )
    lacking = sorted(written - parameters.keys())
    if lacking:
        raise ModelError(f"the model has no {', '.join(lacking[:4])}, which its Hugging Face configuration asks for.")
    sizes = axis_sizes(model.cfg)
    return {link.hf: link.to_hf(parameters, sizes) for link in stored}


def _bridge_tensors(model: LensBridge) -> dict[str, Tensor]:
    tensors = hf_tensors(model)
    return tensors | {UNEMBEDDING: tensors.pop(head_name(model.original_model))}


@contextmanager
def _new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling that becomes ``target`` when the block succeeds and vanishes when it fails."""
    _refuse_existing(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except (OSError, SafetensorError) as error:
        raise _unwritable(target, error) from error
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        raise _unwritable(target, error) from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _unwritable(target: Path, error: Exception) -> ArtefactError:
    return ArtefactError(f"{target} cannot be written ({error}): choose a folder with space and permission.")


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtefactError(f"{target} is a file: expected a folder to write the model to.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise ArtefactError(f"{target} is not empty: choose another folder, or pass overwrite=True to replace it.")
    if not (target / "config.json").is_file():
        raise ArtefactError(f"{target} is not a model folder (no config.json): it is not overwritten; choose another.")
