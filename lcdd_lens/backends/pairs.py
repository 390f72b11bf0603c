"""A base model and its fine-tuned version, checked to differ only where gates can undo the difference.

With every gate closed the routed model must be the base model exactly (paper, section 3; the invariant is this
library's). That holds only if both models have one architecture and one vocabulary, and if everything that no gate
covers - embedding, unembedding, norms - is equal in both.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcdd_lens.backends.base import LensModel, backend_of
from lcdd_lens.backends.lens_bridge import LensBridge
from lcdd_lens.backends.loading import ModelSource, is_adapter, load_model
from lcdd_lens.backends.origin import origin_of
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ModelError

logger = logging.getLogger(__name__)

PairSource: TypeAlias = ModelSource | LensModel

# Fields of a configuration that say nothing about what the model computes.
_INCIDENTAL = frozenset(
    {
        "default_prepend_bos",
        "device",
        "init_weights",
        "initializer_range",
        "model_name",
        "seed",
        "tokenizer_name",
        "tokenizer_prepends_bos",
    }
)
_PROBES = ("The quick brown fox, 3.14!", "Hello\n  world", "naïve déjà vu", "def f(x): return x**2")


@dataclass(frozen=True)
class PairReport:
    """What differs between base and SFT model."""

    weight_change: Mapping[str, float]  # gated parameter -> ‖ΔW‖ / ‖W_base‖ (‖ΔW‖ where the base is zero)
    reset: Mapping[str, float]  # ungated parameter set back to base -> largest absolute difference before
    remarks: tuple[str, ...]  # harmless differences in tokenizers and settings

    def __str__(self) -> str:
        changed = [change for change in self.weight_change.values() if change > 0]
        lines = [
            f"{len(changed)} of {len(self.weight_change)} gated parameters differ, "
            f"by up to {max(changed, default=0.0):.3g} of the base's norm"
        ]
        lines += [f"reset to base: {name} (differed by up to {gap:.3g})" for name, gap in self.reset.items()]
        return "\n".join([*lines, *self.remarks])


@dataclass(frozen=True)
class ModelPair:
    """A base model and the fine-tuned model that starts from it, ready for routing."""

    base: LensModel
    sft: LensModel
    report: PairReport

    def __repr__(self) -> str:
        return f"ModelPair({self.report})"

    def _repr_html_(self) -> str:
        changes = pd.Series(self.report.weight_change, name="‖ΔW‖ / ‖W_base‖", dtype=float)
        return notebook_view("ModelPair", *str(self.report).splitlines(), changes.nlargest(8).to_frame())


def load_pair(
    base: PairSource,
    sft: PairSource,
    *,
    reset_ungated: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    backend: str | None = None,
) -> ModelPair:
    """Load base and SFT model and check that they belong together.

    Args:
        base: anything that :func:`load_model` takes, or a loaded model (used as it is).
        sft: likewise; an adapter folder is merged into ``base``.
        reset_ungated: copy what no gate covers from the base where the SFT model differs there.
        dtype: data type of models that are loaded here.
        device: where models that are loaded here go.
        backend: as for :func:`load_model`; ``None``: that of a loaded model given here, else the default.

    Raises:
        ModelError: the models differ in backend, architecture, shape, tokenizer or vocabulary, or where no gate reaches
            (without ``reset_ungated``), or they do not differ at all.
    """
    backend = backend or _backend_among(base, sft)
    base_model = _load(base, None, dtype, device, backend)
    sft_model = _load(sft, base, dtype, device, backend)
    _require_one_architecture(base_model, sft_model)
    remarks = _match_tokenizers(base_model, sft_model)

    base_parameters, sft_parameters = dict(base_model.named_parameters()), dict(sft_model.named_parameters())
    gated = [site.parameter for site in backend_of(base_model).weight_sites(base_model)]
    gaps = {
        name: gap
        for name in base_parameters
        if name not in set(gated) and (gap := _largest_gap(base_parameters[name], sft_parameters[name])) > 0
    }
    if gaps and not reset_ungated:
        shown = ", ".join(f"{name} (by up to {gap:.3g})" for name, gap in list(gaps.items())[:4])
        more = f" and {len(gaps) - 4} more" if len(gaps) > 4 else ""
        raise ModelError(
            f"base and SFT model differ where no gate reaches: {shown}{more}. Expected equal embeddings, unembeddings "
            "and norms, so that closing every gate gives the base model. Train with these frozen, or pass "
            "reset_ungated=True to set them back to the base's values (the SFT model's behaviour may suffer)."
        )
    change = {name: _relative_change(base_parameters[name], sft_parameters[name]) for name in gated}
    if not any(change.values()):
        raise ModelError(
            "the SFT model equals the base model in every gated weight: there is nothing to route. "
            "Expected a fine-tuned version of the base; check the two names."
        )
    if gaps:
        if sft_model is sft:
            sft_model = backend_of(sft_model).clone(sft_model)
            sft_parameters = dict(sft_model.named_parameters())
        with torch.no_grad():
            for name in gaps:
                sft_parameters[name].copy_(base_parameters[name])
        logger.warning("reset %d ungated parameters of the SFT model to the base's: %s", len(gaps), list(gaps)[:4])
    return ModelPair(base_model, sft_model, PairReport(change, gaps, remarks))


def _backend_among(*sources: PairSource) -> str | None:
    """The backend of the first loaded model."""
    for source in sources:
        if not isinstance(source, str | Path | PreTrainedModel):
            return "bridge" if isinstance(source, LensBridge) else "hooked"
    return None


def _load(
    source: PairSource,
    partner: PairSource | None,
    dtype: torch.dtype,
    device: str | torch.device,
    backend: str | None,
) -> LensModel:
    """Load unless loaded; an adapter is merged into its partner's checkpoint, where that is known."""
    if not isinstance(source, str | Path | PreTrainedModel):
        return source
    has_checkpoint = isinstance(partner, str | Path | PreTrainedModel)
    merge_into = partner if has_checkpoint and is_adapter(source) else None
    return load_model(source, base=merge_into, dtype=dtype, device=device, backend=backend)


def _require_one_architecture(base: LensModel, sft: LensModel) -> None:
    if backend_of(base).name != backend_of(sft).name:
        raise ModelError(
            f"the base is on the {backend_of(base).name} backend and the SFT model on {backend_of(sft).name}: "
            "load both with the same backend=."
        )
    ours, theirs = _settings(base), _settings(sft)
    differing = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    if differing:
        # Sizes first: they explain the rest.
        differing.sort(key=lambda key: (not key.startswith(("n_", "d_", "original_architecture")), key))
        shown = "; ".join(f"{key}: base has {ours.get(key)}, SFT has {theirs.get(key)}" for key in differing[:5])
        raise ModelError(f"base and SFT model have different architectures ({shown}): expected one architecture.")
    base_shapes, sft_shapes = _shapes(base), _shapes(sft)
    for name in sorted(base_shapes.keys() | sft_shapes.keys()):
        if base_shapes.get(name) != sft_shapes.get(name):
            raise ModelError(
                f"{name}: base has {_shape_text(base_shapes.get(name))}, SFT has {_shape_text(sft_shapes.get(name))}: "
                "expected the same parameters with the same shapes."
            )


def _settings(model: LensModel) -> dict[str, Any]:
    if isinstance(model, LensBridge):
        return dict(model.settings) | {"dtype": model.cfg.dtype}
    return {key: value for key, value in vars(model.cfg).items() if key not in _INCIDENTAL}


def _shapes(model: LensModel) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that the checkpoint has."""
    origin = origin_of(model)
    absent = frozenset[str]() if origin is None else origin.absent
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters() if name not in absent}


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "no such parameter" if shape is None else f"shape {shape}"


def _match_tokenizers(base: LensModel, sft: LensModel) -> tuple[str, ...]:
    """Refuse different vocabularies; report harmless differences; share a tokenizer that only one model has."""
    ours: PreTrainedTokenizerBase | None = base.tokenizer
    theirs: PreTrainedTokenizerBase | None = sft.tokenizer
    if ours is None and theirs is None:
        return ("neither model has a tokenizer",)
    if ours is None:
        base.tokenizer = theirs
        return ("the base model has no tokenizer: the SFT model's is used for both",)
    if theirs is None:
        sft.tokenizer = ours
        return ("the SFT model has no tokenizer: the base model's is used for both",)
    base_vocabulary, sft_vocabulary = ours.get_vocab(), theirs.get_vocab()
    if base_vocabulary != sft_vocabulary:
        differing = sorted(
            token
            for token in base_vocabulary.keys() | sft_vocabulary.keys()
            if base_vocabulary.get(token) != sft_vocabulary.get(token)
        )
        raise ModelError(
            f"base and SFT model have different vocabularies: base has {len(base_vocabulary)} tokens, SFT has "
            f"{len(sft_vocabulary)}; {len(differing)} tokens differ, for example {differing[:4]}. "
            "Expected one tokenizer for both: pass models with the same one, or fine-tune without adding tokens."
        )
    for probe in _PROBES:
        base_ids, sft_ids = (tokenizer.encode(probe, add_special_tokens=False) for tokenizer in (ours, theirs))
        if base_ids != sft_ids:
            raise ModelError(
                f"base and SFT tokenizers split text differently: {probe!r} is {base_ids} in base, {sft_ids} in SFT. "
                "Expected one tokenizer for both."
            )
    settings = ("bos_token", "eos_token", "pad_token", "chat_template")
    return tuple(
        f"tokenizers differ in {name}: base has {_short(getattr(ours, name, None))}, "
        f"SFT has {_short(getattr(theirs, name, None))}"
        for name in settings
        if getattr(ours, name, None) != getattr(theirs, name, None)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _largest_gap(base: Float[Tensor, "..."], sft: Float[Tensor, "..."]) -> float:
    return float((sft.detach().float() - base.detach().to(sft.device).float()).abs().max())


def _relative_change(base: Float[Tensor, "..."], sft: Float[Tensor, "..."]) -> float:
    delta = float((sft.detach().float() - base.detach().to(sft.device).float()).norm())
    size = float(base.detach().float().norm())
    return delta / size if size > 0 else delta
