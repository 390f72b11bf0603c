"""Loading models: a hub name, a local folder, a loaded model or an adapter becomes an unprocessed
TransformerLens model.

Unprocessed means that no norm is folded and nothing is centred: weights are the checkpoint's own, so a weight delta
(paper, section 3) means the same in both models and can be written back. Only safetensors are read and no code from a
checkpoint is run.
"""

import contextlib
import copy
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcdd_lens.backends.architectures import ARCHITECTURES, architecture_of
from lcdd_lens.backends.bars import without_library_bars
from lcdd_lens.backends.base import LensModel
from lcdd_lens.compatibility import has_hooked_transformer
from lcdd_lens.errors import ModelError

logger = logging.getLogger(__name__)

ModelSource: TypeAlias = str | Path | PreTrainedModel
_ORGANISM = "organism:"
BACKENDS = ("hooked", "bridge")
"""The names that ``backend=`` takes."""
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load_model(
    source: ModelSource,
    *,
    base: ModelSource | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    backend: str | None = None,
) -> LensModel:
    """Load a model as an unprocessed TransformerLens model in eval mode.

    Biases that a HookedTransformer has but the checkpoint lacks stay at zero and are frozen, and so are tied
    embeddings; ``model.origin`` keeps what :func:`lcdd_lens.export_hf` needs.

    Args:
        source: hub name, local Hugging Face folder, PEFT adapter folder (it is merged), loaded Hugging Face model, or
            ``organism:NAME`` for an embedded model.
        base: for an adapter folder, the model it was trained on; default: the one named in ``adapter_config.json``.
        tokenizer: a tokenizer, its name or its folder; default: the one beside the weights, if there is one.
        dtype: data type of the weights.
        device: where the model goes.
        backend: ``"hooked"``, a HookedTransformer (TransformerLens 3 only), or ``"bridge"``, a TransformerBridge around
            the Hugging Face model; ``None``: hooked where there is one.

    Raises:
        ModelError: the backend is not available; the source is missing, unsafe, damaged or of an unsupported
            architecture; a weight is not finite.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype} is not supported: expected one of {', '.join(map(str, _DTYPES))}.")
    backend = resolved_backend(backend)
    tokenizer_source: Path | str | None
    given = isinstance(source, PreTrainedModel)
    if isinstance(source, PreTrainedModel):
        hf_model, name, tokenizer_source = source, type(source).__name__, _own_folder(source)
    else:
        resolved = _resolve(source)
        name = str(source)
        if isinstance(resolved, Path) and is_adapter(resolved):
            hf_model, tokenizer_source = _merge_adapter(resolved, base, dtype)
        else:
            if base is not None:
                raise ModelError(f"base= is for adapter folders, but {name} has no adapter_config.json: leave it out.")
            hf_model, tokenizer_source = _from_pretrained(resolved, dtype), resolved
    chosen = _load_tokenizer(tokenizer if tokenizer is not None else tokenizer_source)
    loaded: LensModel
    if backend == "hooked":
        from lcdd_lens.backends.build_hooked import build_hooked

        loaded = build_hooked(hf_model, name, dtype, str(device))
    else:
        from lcdd_lens.backends.build_bridge import build_bridge

        # A bridge is built into the Hugging Face model: the caller's own stays as it is.
        loaded = build_bridge(copy.deepcopy(hf_model) if given else hf_model, name, dtype, str(device))
    _attach_tokenizer(loaded, chosen)
    return loaded


def resolved_backend(backend: str | None) -> str:
    """The backend that a name stands for here; ``None``: hooked under TransformerLens 3, bridge under 4.

    Raises:
        ModelError: there is no such backend, or the installed TransformerLens does not have it.
    """
    if backend is None:
        return "hooked" if has_hooked_transformer() else "bridge"
    if backend not in BACKENDS:
        raise ModelError(f"unknown backend {backend!r}: expected {' or '.join(BACKENDS)}.")
    if backend == "hooked" and not has_hooked_transformer():
        raise ModelError(
            "backend='hooked' needs a HookedTransformer, which TransformerLens 4 removed: use backend='bridge', or "
            "pip install 'transformer-lens>=3.9,<4'."
        )
    return backend


def is_adapter(source: ModelSource) -> bool:
    """Whether the source is a PEFT adapter folder."""
    return isinstance(source, str | Path) and (Path(source).expanduser() / "adapter_config.json").is_file()


def _resolve(source: str | Path) -> Path | str:
    """A local folder as a Path, a hub name as a str."""
    if not isinstance(source, str | Path):
        raise ModelError(
            f"a {type(source).__name__} cannot be loaded: expected a name, a folder or a transformers PreTrainedModel "
            "(a PEFT model after merge_and_unload(); a HookedTransformer is loaded already)."
        )
    text = str(source)
    if text.startswith(_ORGANISM):
        from lcdd_lens.organisms import organism_path

        path: Path = organism_path(text.removeprefix(_ORGANISM))
        return path
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"{text} is a file: expected the Hugging Face folder that it lies in (with config.json).")
    if isinstance(source, Path) or path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise ModelError(f"{text} does not exist: expected a Hugging Face folder with config.json and safetensors.")
    return text


def _from_pretrained(source: Path | str, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    if isinstance(source, Path):
        _check_folder(source)
    try:
        architecture_of(_read_config(source))
        with without_library_bars() if isinstance(source, Path) else contextlib.nullcontext():
            model, report = AutoModelForCausalLM.from_pretrained(
                str(source),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{source} cannot be loaded: {_first_line(error)}. {_advice(source)}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(kind, ()))):
            raise ModelError(
                f"{source}: {len(names)} weights are {kind.removesuffix('_keys')} ({', '.join(names[:4])}): expected a "
                "complete causal language model whose config.json fits its weights."
            )
    if names := sorted(report.get("unexpected_keys", ())):
        logger.warning("%s: %d tensors are not part of the model and are ignored: %s", source, len(names), names[:4])
    loaded: PreTrainedModel = model
    return loaded


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"{folder} has no config.json: expected a Hugging Face folder (config.json, *.safetensors) or a PEFT "
            "adapter folder (adapter_config.json)."
        )
    _read_object(config)
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickled:
            raise ModelError(
                f"{folder} has weights only as {', '.join(pickled[:3])}: such files can run code when they are read. "
                "Convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder)"
                ".save_pretrained(new_folder) writes safetensors."
            )
        raise ModelError(f"{folder} has no *.safetensors file: expected the weights beside config.json.")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}): the file is damaged; save it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}: expected a JSON object.")
    return content


def _read_config(source: Path | str) -> Any:
    from transformers import AutoConfig

    if isinstance(source, Path):
        # An unknown model_type deserves our list, not AutoConfig's request to trust its code.
        content = _read_object(source / "config.json")
        if content.get("model_type") not in ARCHITECTURES:
            return SimpleNamespace(model_type=content.get("model_type"))
    return AutoConfig.from_pretrained(str(source), trust_remote_code=False)


def _merge_adapter(
    folder: Path, base: ModelSource | None, dtype: torch.dtype
) -> tuple[PreTrainedModel, Path | str | None]:
    """The adapter's base model with the adapter merged into its weights, and where the tokenizer is."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(
            f"{folder} is a PEFT adapter, but peft is not installed: pip install 'lcdd-lens[lora]'."
        ) from error
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} has no adapter_model.safetensors: save the adapter again with safetensors.")
    named = _read_object(folder / "adapter_config.json")
    base_place: Path | str | None
    source = base if base is not None else named.get("base_model_name_or_path")
    if not source:
        raise ModelError(f"{folder} does not name its base model: pass base=..., the model that it was trained on.")
    if isinstance(source, PreTrainedModel):
        hf_base, base_place = copy.deepcopy(source), _own_folder(source)
    else:
        resolved = _resolve(source)
        hf_base, base_place = _from_pretrained(resolved, dtype), resolved
    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(hf_base, str(folder)).merge_and_unload()
    except Exception as error:
        raise ModelError(
            f"the adapter {folder} cannot be merged into {source if isinstance(source, (str, Path)) else 'its base'}: "
            f"{_first_line(error)}. Expected a LoRA-like adapter of that model."
        ) from error
    own_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return merged, folder if own_tokenizer else base_place


def _own_folder(hf_model: PreTrainedModel) -> Path | None:
    path = Path(str(getattr(hf_model.config, "_name_or_path", "") or " "))
    return path if path.is_dir() else None


def _load_tokenizer(source: PreTrainedTokenizerBase | str | Path | None) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    if source is None or isinstance(source, PreTrainedTokenizerBase):
        return source
    place = _resolve(source)
    if isinstance(place, Path) and not any((place / name).is_file() for name in _TOKENIZER_FILES):
        logger.info("%s has no tokenizer", place)
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(place), trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"the tokenizer of {place} cannot be loaded: {_first_line(error)}.") from error
    return tokenizer


def _attach_tokenizer(model: LensModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Keep the tokenizer as it is: TransformerLens would reload it and lose its pad token."""
    if tokenizer is None:
        return
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= model.cfg.d_vocab:
        raise ModelError(
            f"the tokenizer's largest token id is {largest}, but the model's vocabulary has {model.cfg.d_vocab} "
            "entries: pass the model's own tokenizer, or resize the embeddings before saving the model."
        )
    empty = tokenizer.encode("")
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = bool(empty) and empty[0] == tokenizer.bos_token_id
    model.cfg.default_prepend_bos = tokenizer.bos_token_id is not None


def _advice(source: Path | str) -> str:
    if isinstance(source, Path):
        return "Expected a complete Hugging Face folder with safetensors weights."
    return "Expected a local folder, a model name on the Hugging Face hub (with access to it), or organism:NAME."


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
