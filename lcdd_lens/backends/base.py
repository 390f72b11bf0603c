"""What the library asks of a model: one protocol for the model, one for the code that knows its architecture.

Everything above ``backends`` talks to a model through hooks (by TransformerLens's hook names) and through a
:class:`Backend`; nothing above asks which class or architecture it holds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcdd_lens.backends.sites import Site, WeightSite
from lcdd_lens.errors import ModelError
from lcdd_lens.io import fingerprint

Hook = tuple[str | Callable[[str], bool], Callable[..., Any]]


@runtime_checkable
class LensModel(Protocol):
    """A TransformerLens model: an ``nn.Module`` with hook points."""

    cfg: Any
    tokenizer: Any
    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def hooks(self, fwd_hooks: Any = ..., bwd_hooks: Any = ...) -> AbstractContextManager[Any]:
        """Hooks for the length of a block, as in TransformerLens."""
        ...

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Output and activations, as in TransformerLens."""
        ...

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """Output under hooks, as in TransformerLens."""
        ...

    def get_submodule(self, target: str) -> nn.Module:
        """The module of that name, as in torch; "" is the model itself."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by name, as in torch."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters, as in torch."""
        ...

    def train(self, mode: bool = True) -> "LensModel":
        """Training mode, as in torch."""
        ...

    def eval(self) -> "LensModel":
        """Evaluation mode, as in torch."""
        ...


@runtime_checkable
class Backend(Protocol):
    """The architecture-specific knowledge about one class of models."""

    name: str

    def owns(self, model: object) -> bool:
        """Whether this backend understands the model."""
        ...

    def sites(self, model: LensModel) -> tuple[Site, ...]:
        """Every site of the model, in layer order."""
        ...

    def weight_sites(self, model: LensModel) -> tuple[WeightSite, ...]:
        """Every gated parameter with its row and column site."""
        ...

    def clone(self, model: LensModel) -> LensModel:
        """An independent copy with the same weights, frozen flags and tokenizer."""
        ...

    def embedding(self, model: LensModel) -> Float[Tensor, "d_vocab d_model"]:
        """The token embedding matrix."""
        ...

    def start_cache(self, model: LensModel, batch_size: int) -> Any:
        """An empty key/value cache for :meth:`logits`."""
        ...

    def logits(
        self,
        model: LensModel,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"],
        cache: Any = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """One forward pass with an explicit attention mask; with a cache, ``tokens`` continue it."""
        ...


_BACKENDS: list[Backend] = []


def register_backend(backend: Backend) -> None:
    """Make a backend known to :func:`backend_of`; later ones are asked first."""
    _BACKENDS.insert(0, backend)


def backend_of(model: LensModel) -> Backend:
    """The backend that understands ``model``.

    Raises:
        ModelError: no registered backend does.
    """
    for backend in _BACKENDS:
        if backend.owns(model):
            return backend
    known = ", ".join(backend.name for backend in _BACKENDS)
    raise ModelError(
        f"{type(model).__name__} is not a model that lcdd_lens can route (backends: {known}). "
        "Load it with lcdd_lens.load_model(name_or_folder), or pass a HookedTransformer of TransformerLens 3."
    )


def device_of(model: LensModel) -> torch.device:
    """The device of the model's first parameter."""
    return next(iter(model.parameters())).device


def last_hook(model: LensModel) -> str:
    """The hook point behind which no position sees another: there all but the positions of interest can be cut."""
    name: str = getattr(model, "last_hook", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    return name


def parameter_of(model: LensModel, name: str) -> Tensor:
    """The tensor behind a dotted parameter name, also when it is parametrized."""
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), leaf)
    return tensor


def weights_fingerprint(model: LensModel, weights: Mapping[str, Tensor] | None = None) -> str:
    """Fingerprint of the embedding and every gated weight, the same on every backend for equal weights.

    Args:
        model: the model.
        weights: gated weights by parameter name to use in place of the model's own.
    """
    backend = backend_of(model)
    canonical = {"embed.W_E": backend.embedding(model)}
    for site in backend.weight_sites(model):
        stored = parameter_of(model, site.parameter) if weights is None else weights[site.parameter]
        canonical[site.role] = rearrange(stored, site.matrix)
    return fingerprint(canonical)


def sites_by_hook(sites: Sequence[Site]) -> Mapping[str, Site]:
    """Sites keyed by hook name."""
    return {site.hook_name: site for site in sites}
