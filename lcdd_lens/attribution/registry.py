"""Attribution methods by name, and the one function that runs any of them.

A method is an object with a ``name``, a ``config`` and ``run(contrast, progress) -> Attribution``. Registering a maker
of one makes it known to :func:`attribute` and to comparisons. Scores follow the library's sign convention: positive
means that moving the channel from base to fine-tuned raises 𝓜.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lcdd_lens.attribution.contrast import Contrast, Meter, gates_at
from lcdd_lens.attribution.metric import metric_name
from lcdd_lens.attribution.scores import ChannelScores, CostRecord, Ranking
from lcdd_lens.backends.base import weights_fingerprint
from lcdd_lens.carrier import model_dimensions
from lcdd_lens.errors import ConfigError


@dataclass(frozen=True)
class Attribution:
    """What a method returns: scores [channel] per hook name, and per-prompt scores [prompt channel] if it has them."""

    scores: Mapping[str, Tensor]
    per_prompt: Mapping[str, Tensor] = field(default_factory=dict)
    ranking: Ranking = "signed"
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """Scores every channel of a contrast; positive = moving the channel from base to fine-tuned raises 𝓜."""

    @property
    def name(self) -> str:
        """What it is called in tables and files."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """Options as JSON values."""
        ...

    def run(self, contrast: Contrast, progress: bool) -> Attribution:
        """Score every channel: one value [channel] per hook name, NaN where a channel was not scored."""
        ...


_METHODS: dict[str, Callable[[], Method]] = {}


def register_method(name: str, maker: Callable[[], Method]) -> None:
    """Make a method known by name; ``maker()`` gives it with its default options.

    Raises:
        ConfigError: the name is taken by another maker.
    """
    if _METHODS.get(name, maker) is not maker:
        raise ConfigError(f"an attribution method named {name!r} is registered already: choose another name.")
    _METHODS[name] = maker


def known_methods() -> tuple[str, ...]:
    """Names of all registered methods."""
    return tuple(_METHODS)


def method_by_name(name: str) -> Method:
    """A registered method with its default options.

    Raises:
        ConfigError: there is no such method; the message lists those there are.
    """
    if name not in _METHODS:
        raise ConfigError(f"unknown attribution method {name!r}: expected one of {', '.join(_METHODS)}.")
    return _METHODS[name]()


def attribute(method: Method | str, contrast: Contrast, *, progress: bool = True) -> ChannelScores:
    """Run one method.

    Args:
        method: a registered name, or a method with options of your own.
        contrast: models, prompts and metric.
        progress: show a progress bar.

    Returns:
        Scores of every channel, with their cost; positive = moving the channel from base to fine-tuned raises 𝓜.

    Raises:
        ConfigError: the method is unknown, or the metric returns the wrong shape.
    """
    chosen = method_by_name(method) if isinstance(method, str) else method
    routed = contrast.routed
    with routed.using(gates_at(routed, 0.0)):
        base_fingerprint = weights_fingerprint(routed.model)
    with routed.using(gates_at(routed, 1.0)):
        sft_fingerprint = weights_fingerprint(routed.model)
    metered = replace(contrast, meter=Meter())
    started = time.perf_counter()
    found = chosen.run(metered, progress)
    cost = CostRecord(
        seconds=time.perf_counter() - started,
        forward_passes=metered.meter.forward_passes,
        backward_passes=metered.meter.backward_passes,
    )
    return ChannelScores(
        method=chosen.name,
        sites=routed.sites,
        scores={name: score.detach().to("cpu", torch.float64) for name, score in found.scores.items()},
        per_prompt={name: values.detach().float().cpu() for name, values in found.per_prompt.items()},
        ranking=found.ranking,
        metric=metric_name(contrast.metric),
        n_prompts=contrast.n_prompts,
        config=dict(chosen.config),
        dimensions=model_dimensions(contrast.model),
        base_fingerprint=base_fingerprint,
        sft_fingerprint=sft_fingerprint,
        data_fingerprint=contrast.data_fingerprint(),
        cost=cost,
        details=dict(found.details),
    )
