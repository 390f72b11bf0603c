"""Routing masks: one learnable logit θ per channel of every site (paper, section 3; θ₀ ~ N(1.5, 0.5²)).

The logits are one flat vector, so that a gate's rank among all gates is one comparison; sites are views of it.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lcdd_lens.backends.sites import Site
from lcdd_lens.errors import ConfigError
from lcdd_lens.routing.gates import GateEstimator, StraightThrough

Channels = Mapping[str, Tensor]
"""Hook name -> channel indices."""


class SiteLayout:
    """How channels of many sites lie in one flat vector, in the order of the sites."""

    def __init__(self, sites: Sequence[Site]) -> None:
        if not sites:
            raise ConfigError("no sites were given: expected at least one hook point with channels.")
        self.sites = tuple(sites)
        self.sizes = [site.n_channels for site in self.sites]
        self.n_gates = sum(self.sizes)
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        self.slices = {
            site.hook_name: slice(end - site.n_channels, end) for site, end in zip(self.sites, ends, strict=True)
        }

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Flat vector [n_gates] -> hook name -> view [n_channels]."""
        if flat.shape != (self.n_gates,):
            raise ConfigError(f"expected one value per gate, shape ({self.n_gates},); got {tuple(flat.shape)}.")
        return {site.hook_name: part for site, part in zip(self.sites, torch.split(flat, self.sizes), strict=True)}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Hook name -> [n_channels], complete, to one flat vector [n_gates]."""
        return torch.cat([parts[site.hook_name] for site in self.sites])

    def flags(self, channels: Channels) -> Bool[Tensor, " gate"]:
        """True at the given channels.

        Raises:
            ConfigError: a hook name or an index does not exist.
        """
        flags = torch.zeros(self.n_gates, dtype=torch.bool)
        for hook_name, indices in channels.items():
            if hook_name not in self.slices:
                raise ConfigError(f"{hook_name} is not a site of this model: expected one of {self._some_hooks()}.")
            where = self.slices[hook_name]
            size = where.stop - where.start
            index = torch.as_tensor(indices, dtype=torch.long).cpu()
            if index.numel() and (int(index.min()) < 0 or int(index.max()) >= size):
                raise ConfigError(f"{hook_name} has channels 0..{size - 1}; got {index.min()}..{index.max()}.")
            flags[where.start + index] = True
        return flags

    def channels(self, flags: Bool[Tensor, " gate"]) -> dict[str, Tensor]:
        """Indices of the True channels per hook name; every site is present."""
        return {name: part.nonzero().squeeze(-1) for name, part in self.split(flags.cpu()).items()}

    def groups(self) -> Tensor:
        """Index of the site of every gate [n_gates]: the strata for chance levels."""
        return torch.repeat_interleave(torch.arange(len(self.sites)), torch.tensor(self.sizes))

    def _some_hooks(self) -> str:
        names = list(self.slices)
        return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


class RoutingMasks(nn.Module):
    """The routing logits θ of a model.

    Args:
        sites: the sites that carry masks.
        estimator: how logits become gates.
        init_mean: mean of θ₀.
        init_std: standard deviation of θ₀.
        seed: seed of θ₀.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        estimator: GateEstimator | None = None,
        init_mean: float = 1.5,
        init_std: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.layout = SiteLayout(sites)
        self.estimator: GateEstimator = estimator if estimator is not None else StraightThrough()
        generator = torch.Generator().manual_seed(seed)
        initial = init_mean + init_std * torch.randn(self.layout.n_gates, generator=generator)
        self.logits = nn.Parameter(initial)

    @property
    def n_gates(self) -> int:
        """Number of gates over all sites."""
        return self.layout.n_gates

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, " gate"]:
        """Gates of one training step, differentiable in the logits."""
        return self.estimator.sample(self.logits, generator)

    def is_open(self) -> Bool[Tensor, " gate"]:
        """Which gates are open after rounding."""
        return self.estimator.is_open(self.logits.detach())

    def penalty(self) -> Float[Tensor, ""]:
        """Σ σ(θ): the differentiable number of open gates."""
        return self.estimator.openness(self.logits).sum()

    def sparsity(self) -> float:
        """Share of closed gates."""
        return 1 - float(self.is_open().float().mean())

    def channels(self) -> dict[str, Tensor]:
        """Open channel indices per hook name."""
        return self.layout.channels(self.is_open())

    def extra_repr(self) -> str:
        return f"{self.n_gates} gates at {len(self.layout.sites)} sites, {self.estimator.name}"
