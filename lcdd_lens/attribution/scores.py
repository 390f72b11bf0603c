"""Channel scores: what an attribution method says of every channel, as a checked artefact.

Sign convention, the same for every method: a positive score means that moving this channel from base to fine-tuned
raises 𝓜, so the channel carries the behaviour. NaN means that the method did not score the channel (exact patching on
a selection); such channels rank last and cannot be chosen. Ties go to the earlier site, then to the lower channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcdd_lens import __version__
from lcdd_lens.backends.base import LensModel, backend_of, weights_fingerprint
from lcdd_lens.backends.sites import Site
from lcdd_lens.carrier import Carrier, model_dimensions
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.io import fingerprint, load_tensors, read_sealed_json, save_tensors_atomic, write_sealed_json
from lcdd_lens.routing.masks import SiteLayout

SCHEMA = 1
Ranking = Literal["signed", "absolute"]


class _SiteRecord(TypedDict):
    hook_name: str
    layer: int
    kind: str
    n_channels: int


class CostRecord(TypedDict):
    """Wall time, and prompts that went forward and backward through the model."""

    seconds: float
    forward_passes: int
    backward_passes: int


class _ScoresRecord(TypedDict):
    schema: int
    library_version: str
    method: str
    config: dict[str, Any]
    ranking: Ranking
    metric: str
    n_prompts: int
    sites: list[_SiteRecord]
    dimensions: dict[str, int]
    base_fingerprint: str
    sft_fingerprint: str
    data_fingerprint: str
    cost: CostRecord
    details: dict[str, Any]
    tensors_sha256: str
    record_sha256: NotRequired[str]


@dataclass(frozen=True, eq=False)
class ChannelScores:
    """One number per channel, larger = more of the behaviour depends on the channel.

    Attributes:
        method: the method's name.
        sites: every site with a score.
        scores: hook name -> score [channel]; NaN where the method did not look.
        per_prompt: hook name -> score of every prompt [prompt channel], whose mean over prompts is the score; empty
            where the method has none.
        ranking: whether the method ranks by the score itself or by its size.
        metric: name of 𝓜.
        n_prompts: how many prompts the scores average over.
        config: the method's options.
        dimensions: the architecture's sizes.
        base_fingerprint: of the base's weights.
        sft_fingerprint: of the fine-tuned weights.
        data_fingerprint: of the token ids.
        cost: seconds and passes.
        details: what else the method found, for example its completeness gap.
    """

    method: str
    sites: tuple[Site, ...]
    scores: Mapping[str, Float[Tensor, " channel"]]
    per_prompt: Mapping[str, Float[Tensor, "prompt channel"]] = field(default_factory=dict)
    ranking: Ranking = "signed"
    metric: str = ""
    n_prompts: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    dimensions: Mapping[str, int] = field(default_factory=dict)
    base_fingerprint: str = ""
    sft_fingerprint: str = ""
    data_fingerprint: str = ""
    cost: CostRecord = field(default_factory=lambda: CostRecord(seconds=0.0, forward_passes=0, backward_passes=0))
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ranking not in ("signed", "absolute"):
            raise ConfigError(f"ranking is {self.ranking!r}: expected 'signed' or 'absolute'.")
        expected = {site.hook_name: (site.n_channels,) for site in self.sites}
        given = {name: tuple(score.shape) for name, score in self.scores.items()}
        if expected != given:
            wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
            raise ConfigError(f"{self.method}: scores must be one per channel of every site; wrong at {wrong[:4]}.")
        for name, values in self.per_prompt.items():
            if tuple(values.shape) != (self.n_prompts, *expected.get(name, ())):
                raise ConfigError(f"{self.method}: per-prompt scores at {name} have shape {tuple(values.shape)}.")
        if bool(torch.isinf(self.flat()).any()):
            raise ConfigError(f"{self.method}: some scores are infinite; expected numbers, or NaN for not scored.")

    # -- what there is

    @property
    def layout(self) -> SiteLayout:
        """How the channels of all sites lie in one flat vector."""
        return SiteLayout(self.sites)

    @property
    def n_gates(self) -> int:
        """Number of channels over all sites."""
        return sum(site.n_channels for site in self.sites)

    def flat(self) -> Float[Tensor, " gate"]:
        """All scores in the order of the sites, float64; positive = carries the behaviour."""
        return self.layout.join({name: score.double() for name, score in self.scores.items()})

    def is_scored(self) -> Bool[Tensor, " gate"]:
        """Where the method looked."""
        return ~self.flat().isnan()

    @property
    def n_scored(self) -> int:
        """Number of channels with a score."""
        return int(self.is_scored().sum())

    def keys(self, ranking: Ranking | None = None) -> Float[Tensor, " gate"]:
        """What channels are sorted by, largest first: the score or its absolute value; −∞ where there is none."""
        chosen = ranking or self.ranking
        flat = self.flat().abs() if chosen == "absolute" else self.flat()
        return torch.where(self.is_scored(), flat, -torch.inf)

    def order(self, ranking: Ranking | None = None) -> Int[Tensor, " gate"]:
        """Flat channel numbers, most important first; ties go to the lower number."""
        return torch.argsort(self.keys(ranking), descending=True, stable=True)

    def top(self, k: int, ranking: Ranking | None = None) -> Bool[Tensor, " gate"]:
        """True at the k most important channels.

        Raises:
            ConfigError: k is not between 0 and the number of scored channels.
        """
        if not 0 <= k <= self.n_scored:
            raise ConfigError(
                f"k is {k}: {self.method} scored {self.n_scored} of {self.n_gates} channels; "
                f"expected 0 to {self.n_scored}."
            )
        flags = torch.zeros(self.n_gates, dtype=torch.bool)
        flags[self.order(ranking)[:k]] = True
        return flags

    def to_carrier(self, k: int, ranking: Ranking | None = None) -> Carrier:
        """The k most important channels as a carrier, with the scores (0 where there is none) as its θ.

        Raises:
            ConfigError: k is out of range.
        """
        return Carrier(
            self.sites,
            self.layout.channels(self.top(k, ranking)),
            {name: score.float().nan_to_num(0.0) for name, score in self.scores.items()},
            self.dimensions,
            self.base_fingerprint,
            self.sft_fingerprint,
            {"method": self.method, "k": k, "ranking": ranking or self.ranking, **self.config},
        )

    def standard_error(self) -> dict[str, Float[Tensor, " channel"]]:
        """Standard error of every score over prompts; only where there are per-prompt scores of at least 2 prompts."""
        if self.n_prompts < 2:
            return {}
        return {name: values.double().std(0) / self.n_prompts**0.5 for name, values in self.per_prompt.items()}

    def to_dataframe(self) -> pd.DataFrame:
        """One row per channel: layer, kind, hook name, channel, score, standard error where known, rank (1 = first)."""
        rank = torch.empty(self.n_gates, dtype=torch.long)
        rank[self.order()] = torch.arange(1, self.n_gates + 1)
        columns = [(s.layer, s.kind, s.hook_name, channel) for s in self.sites for channel in range(s.n_channels)]
        frame = pd.DataFrame(columns, columns=["layer", "kind", "hook_name", "channel"])
        frame["score"] = self.flat().numpy()
        if errors := self.standard_error():
            frame["standard_error"] = self.layout.join(errors).numpy()
        frame["rank"] = rank.numpy()
        return frame

    # -- files

    def save(self, folder: str | Path) -> Path:
        """Write ``scores.json`` and ``scores.safetensors`` into ``folder``, each atomically."""
        folder = Path(folder)
        tensors = {f"score.{name}": score.detach().cpu() for name, score in self.scores.items()}
        tensors |= {f"prompts.{name}": values.detach().cpu() for name, values in self.per_prompt.items()}
        record = _ScoresRecord(
            schema=SCHEMA,
            library_version=__version__,
            method=self.method,
            config=dict(self.config),
            ranking=self.ranking,
            metric=self.metric,
            n_prompts=self.n_prompts,
            sites=[
                _SiteRecord(hook_name=s.hook_name, layer=s.layer, kind=s.kind, n_channels=s.n_channels)
                for s in self.sites
            ],
            dimensions=dict(self.dimensions),
            base_fingerprint=self.base_fingerprint,
            sft_fingerprint=self.sft_fingerprint,
            data_fingerprint=self.data_fingerprint,
            cost=self.cost,
            details=dict(self.details),
            tensors_sha256=fingerprint(tensors),
        )
        save_tensors_atomic(folder / "scores.safetensors", tensors)
        write_sealed_json(folder / "scores.json", record)
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: LensModel | None = None) -> "ChannelScores":
        """Read scores and, given a model, check that they belong to it (as base or as fine-tuned model).

        Raises:
            ArtefactError: a file is missing, damaged, altered, of a newer version, or of another model.
        """
        folder = Path(folder)
        record = read_sealed_json(folder / "scores.json", _ScoresRecord, SCHEMA)
        tensors = load_tensors(folder / "scores.safetensors")
        if fingerprint(tensors) != record["tensors_sha256"]:
            raise ArtefactError(f"{folder}: scores.safetensors is not the file that scores.json was written with.")
        try:
            scores = cls(
                method=record["method"],
                sites=tuple(Site(s["layer"], s["kind"], s["hook_name"], s["n_channels"]) for s in record["sites"]),  # type: ignore[arg-type]
                scores={name.removeprefix("score."): t for name, t in tensors.items() if name.startswith("score.")},
                per_prompt={
                    name.removeprefix("prompts."): t for name, t in tensors.items() if name.startswith("prompts.")
                },
                ranking=record["ranking"],
                metric=record["metric"],
                n_prompts=record["n_prompts"],
                config=record["config"],
                dimensions=record["dimensions"],
                base_fingerprint=record["base_fingerprint"],
                sft_fingerprint=record["sft_fingerprint"],
                data_fingerprint=record["data_fingerprint"],
                cost=record["cost"],
                details=record["details"],
            )
        except ConfigError as error:
            raise ArtefactError(f"{folder}: scores do not fit the sites named in scores.json ({error}).") from error
        if model is not None:
            scores.check_model(model)
        return scores

    def check_model(self, model: LensModel) -> None:
        """Refuse a model of other dimensions, sites or weights.

        Raises:
            ArtefactError: names what differs.
        """
        sizes = model_dimensions(model)
        differing = {key: (value, sizes.get(key)) for key, value in self.dimensions.items() if sizes.get(key) != value}
        if differing:
            listed = ", ".join(f"{key}: scores {ours}, model {theirs}" for key, (ours, theirs) in differing.items())
            raise ArtefactError(f"the {self.method} scores belong to a model of other dimensions ({listed}).")
        if not set(self.sites) <= set(backend_of(model).sites(model)):
            raise ArtefactError(f"the {self.method} scores have sites that the model lacks: another architecture's.")
        known = {self.base_fingerprint, self.sft_fingerprint} - {""}
        if known and weights_fingerprint(model) not in known:
            raise ArtefactError(
                f"the model has other weights than the pair that the {self.method} scores were computed on: load that "
                "base or fine-tuned model, or skip the check with ChannelScores.load(folder) without a model."
            )

    # -- views

    def plot(self, k: int | None = None, ax: Any = None) -> Any:
        """Where the k most important channels lie (default: 2 % of all): stacked bars, layers × kinds of site."""
        from lcdd_lens.plotting.comparison import plot_score_stack  # figures stand above scores

        return plot_score_stack(self, k, ax=ax)

    def __repr__(self) -> str:
        return f"ChannelScores({self.method}, {self.n_scored} of {self.n_gates} channels, {self.n_prompts} prompts)"

    def _repr_html_(self) -> str:
        k = min(self.n_scored, max(1, round(0.02 * self.n_gates)))
        first = self.to_dataframe().sort_values("rank").head(8).set_index("rank")
        places = f"Where the {k} most important channels lie:"
        return notebook_view(repr(self), places, self.to_carrier(k).counts(), "The first 8:", first)
