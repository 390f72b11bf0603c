"""Random rankings: what any claim about a ranking must beat. Uniform, or matched to a reference set of channels:

    uniform   every order is equally likely
    site      the first |C| channels have as many at every site as the reference C
    delta     the first |C| channels have as many in every decile of ‖Δ_c‖ as the reference C

Channels within a stratum are exchangeable, so a reference that beats its matched draws owes that to *which* channels it
has, not to where they lie or how far they moved. Scores are uniform numbers: larger = drawn earlier, no other meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcdd_lens.attribution.contrast import Contrast
from lcdd_lens.attribution.magnitude import delta_norms
from lcdd_lens.attribution.registry import Attribution, register_method
from lcdd_lens.errors import ConfigError
from lcdd_lens.routing.masks import Channels
from lcdd_lens.routing.routed import RoutedModel

Matching = Literal["uniform", "site", "delta"]


@dataclass(frozen=True, eq=False)
class RandomOrder:
    """A random ranking of all channels."""

    matching: Matching = "uniform"
    """What the draw keeps of the reference."""
    reference: Channels | None = None
    """Hook name -> channels whose counts per stratum are kept; needed unless uniform."""
    seed: int = 0
    """Names the draw."""

    def __post_init__(self) -> None:
        if self.matching not in get_args(Matching):
            raise ConfigError(f"matching is {self.matching!r}: expected one of {', '.join(get_args(Matching))}.")
        if (self.matching == "uniform") != (self.reference is None):
            raise ConfigError("a random order needs a reference carrier if it is matched, and takes none if uniform.")

    @property
    def name(self) -> str:
        return "random" if self.matching == "uniform" else f"random_{self.matching}"

    @property
    def config(self) -> Mapping[str, Any]:
        return {"matching": self.matching, "seed": self.seed}

    def run(self, contrast: Contrast, progress: bool) -> Attribution:
        """Uniform numbers; larger = drawn earlier."""
        return Attribution(contrast.routed.layout.split(self.draw(contrast.routed)))

    def draw(self, routed: RoutedModel) -> Float[Tensor, " gate"]:
        """One random number per gate, in the order of the sites; the largest come first."""
        generator = torch.Generator().manual_seed(self.seed)
        numbers = torch.rand(routed.n_gates, generator=generator, dtype=torch.float64)
        if self.reference is None:
            return numbers
        strata = routed.layout.groups() if self.matching == "site" else delta_deciles(routed)
        return _lift(numbers, strata, routed.layout.flags(self.reference))


def delta_deciles(routed: RoutedModel) -> Int[Tensor, " gate"]:
    """Decile of ‖Δ_c‖ among all channels, 0 = moved least; ties go to the lower channel."""
    norms = routed.layout.join(delta_norms(routed))
    rank = torch.empty(len(norms), dtype=torch.long)
    rank[norms.argsort(stable=True)] = torch.arange(len(norms))
    return rank * 10 // len(norms)


def _lift(
    numbers: Float[Tensor, " gate"], strata: Int[Tensor, " gate"], reference: Bool[Tensor, " gate"]
) -> Float[Tensor, " gate"]:
    """Lift as many channels of each stratum above all others as the reference has there."""
    lifted = numbers.clone()
    for stratum in range(int(strata.max()) + 1):
        members = (strata == stratum).nonzero().squeeze(-1)
        count = int(reference[members].sum())
        lifted[members[numbers[members].argsort(descending=True)[:count]]] += 1
    return lifted


register_method("random", RandomOrder)
