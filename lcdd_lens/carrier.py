"""The carrier: which channels of which hook points carry a behaviour (paper, section 3, "hook-level specification").

A carrier is data, not a model: hook name -> open channels (key/value sites in key/value-head coordinates), the
scores θ that chose them, the dimensions they refer to, and fingerprints of the models they belong to. It is stored
as JSON beside safetensors and checked before it is believed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcdd_lens import __version__
from lcdd_lens.backends.base import LensModel, backend_of, weights_fingerprint
from lcdd_lens.backends.sites import Site, SiteKind
from lcdd_lens.display import notebook_view
from lcdd_lens.errors import ArtefactError
from lcdd_lens.io import fingerprint, load_tensors, read_sealed_json, save_tensors_atomic, write_sealed_json
from lcdd_lens.routing.masks import Channels, RoutingMasks, SiteLayout

SCHEMA = 1


class _SiteRecord(TypedDict):
    hook_name: str
    layer: int
    kind: SiteKind
    n_channels: int


class _CarrierRecord(TypedDict):
    schema: int
    library_version: str
    sites: list[_SiteRecord]
    dimensions: dict[str, int]
    base_fingerprint: str
    routed_fingerprint: str
    tensors_sha256: str
    config: dict[str, Any]
    record_sha256: NotRequired[str]


@dataclass(frozen=True, eq=False)
class Carrier:
    """Open channels per site.

    Attributes:
        sites: every site of the model, open or not, in layer order.
        channels: hook name -> sorted open channel indices [n_open_at_site]; every site is present.
        scores: hook name -> score θ of every channel [n_channels]; empty when the carrier was made by set algebra.
        dimensions: the architecture's sizes (n_layers, d_model, n_heads, d_head, n_key_value_heads, d_mlp).
        base_fingerprint: SHA-256 of the base's embedding and gated weights, "" when unknown.
        routed_fingerprint: the same of the merged model that the carrier was found with, "" when unknown.
        config: how it was found.
    """

    sites: tuple[Site, ...]
    channels: Mapping[str, Int[Tensor, " open"]]
    scores: Mapping[str, Float[Tensor, " channel"]] = field(default_factory=dict)
    dimensions: Mapping[str, int] = field(default_factory=dict)
    base_fingerprint: str = ""
    routed_fingerprint: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Through the layout and back: checks names and ranges, sorts, removes repeats, fills in absent sites.
        object.__setattr__(self, "channels", self.layout.channels(self.layout.flags(self.channels)))

    @classmethod
    def from_masks(
        cls,
        masks: RoutingMasks,
        model: LensModel,
        *,
        base_fingerprint: str = "",
        routed_fingerprint: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> "Carrier":
        """The open gates of trained masks."""
        return cls(
            masks.layout.sites,
            masks.channels(),
            {name: part.clone() for name, part in masks.layout.split(masks.logits.detach().cpu()).items()},
            model_dimensions(model),
            base_fingerprint,
            routed_fingerprint,
            dict(config or {}),
        )

    # -- what there is

    @property
    def layout(self) -> SiteLayout:
        """How the channels of all sites lie in one flat vector."""
        return SiteLayout(self.sites)

    @property
    def n_gates(self) -> int:
        """Number of channels over all sites."""
        return sum(site.n_channels for site in self.sites)

    @property
    def n_open(self) -> int:
        """Number of open channels."""
        return sum(len(index) for index in self.channels.values())

    @property
    def sparsity(self) -> float:
        """Share of closed channels, in [0, 1]."""
        return 1 - self.n_open / self.n_gates

    def flags(self) -> Tensor:
        """True at open channels, flat [n_gates] in the order of the sites."""
        return self.layout.flags(self.channels)

    def residual_write_channels(self) -> dict[int, Int[Tensor, " open"]]:
        """Layer -> open residual coordinates that the block writes (attn_write ∪ ffn_write), empty layers left out."""
        union: dict[int, set[int]] = {}
        for site in self.sites:
            if site.is_residual_write:
                union.setdefault(site.layer, set()).update(self.channels[site.hook_name].tolist())
        return {layer: torch.tensor(sorted(open_), dtype=torch.long) for layer, open_ in union.items() if open_}

    def sparsity_by(self, key: str) -> dict[Any, float]:
        """Share of closed channels per ``"layer"`` or per ``"kind"``."""
        totals: dict[Any, list[int]] = {}
        for site in self.sites:
            count = totals.setdefault(getattr(site, key), [0, 0])
            count[0] += len(self.channels[site.hook_name])
            count[1] += site.n_channels
        return {group: 1 - open_ / all_ for group, (open_, all_) in totals.items()}

    def to_hooks(self) -> list[tuple[str, Int[Tensor, " open"]]]:
        """(hook name, open channel indices) of every site with an open channel, for caches and ``run_with_hooks``.

        Per-head hooks (``hook_q``, ``hook_k``, ``hook_v``) hold [batch pos head d_head]: flatten the last two axes
        before indexing.
        """
        return [(site.hook_name, self.channels[site.hook_name]) for site in self.sites if self._count(site)]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per site: layer, kind, hook name, channels, open, density."""
        return pd.DataFrame(
            {
                "layer": site.layer,
                "kind": site.kind,
                "hook_name": site.hook_name,
                "n_channels": site.n_channels,
                "n_open": self._count(site),
                "density": self._count(site) / site.n_channels,
            }
            for site in self.sites
        )

    def counts(self) -> pd.DataFrame:
        """Open channels, layers × kinds of site."""
        frame = self.to_dataframe().pivot_table(index="layer", columns="kind", values="n_open", sort=False)
        return frame.fillna(0).astype(int)

    # -- set algebra

    def __or__(self, other: "Carrier") -> "Carrier":
        return self._combine(other, self.flags() | self._flags_of(other))

    def __and__(self, other: "Carrier") -> "Carrier":
        return self._combine(other, self.flags() & self._flags_of(other))

    def __sub__(self, other: "Carrier") -> "Carrier":
        return self._combine(other, self.flags() & ~self._flags_of(other))

    def complement(self) -> "Carrier":
        """Every channel that this carrier has closed."""
        return replace(self, channels=self.layout.channels(~self.flags()), scores={})

    def jaccard(self, other: "Carrier") -> float:
        """|A ∩ B| / |A ∪ B|; 1 for two empty carriers."""
        ours, theirs = self.flags(), self._flags_of(other)
        union = int((ours | theirs).sum())
        return int((ours & theirs).sum()) / union if union else 1.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Carrier) and self.sites == other.sites and bool((self.flags() == other.flags()).all())

    def __hash__(self) -> int:
        return hash((self.sites, tuple(self.flags().tolist())))

    # -- files

    def save(self, folder: str | Path) -> Path:
        """Write ``carrier.json`` and ``carrier.safetensors`` into ``folder``, each atomically."""
        folder = Path(folder)
        tensors = {f"open.{name}": index for name, index in self.channels.items()}
        tensors |= {f"score.{name}": score for name, score in self.scores.items()}
        record = _CarrierRecord(
            schema=SCHEMA,
            library_version=__version__,
            sites=[
                _SiteRecord(hook_name=s.hook_name, layer=s.layer, kind=s.kind, n_channels=s.n_channels)
                for s in self.sites
            ],
            dimensions=dict(self.dimensions),
            base_fingerprint=self.base_fingerprint,
            routed_fingerprint=self.routed_fingerprint,
            tensors_sha256=fingerprint(tensors),
            config=dict(self.config),
        )
        save_tensors_atomic(folder / "carrier.safetensors", tensors)
        write_sealed_json(folder / "carrier.json", record)
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: LensModel | None = None) -> "Carrier":
        """Read a carrier and, given a model, check that it belongs to it (as base or as merged routed model).

        Raises:
            ArtefactError: a file is missing, damaged, altered, of a newer version, or of another model.
        """
        folder = Path(folder)
        record = read_sealed_json(folder / "carrier.json", _CarrierRecord, SCHEMA)
        tensors = load_tensors(folder / "carrier.safetensors")
        if fingerprint(tensors) != record["tensors_sha256"]:
            raise ArtefactError(f"{folder}: carrier.safetensors is not the file that carrier.json was written with.")
        try:
            carrier = cls(
                tuple(Site(s["layer"], s["kind"], s["hook_name"], s["n_channels"]) for s in record["sites"]),
                {name.removeprefix("open."): index for name, index in tensors.items() if name.startswith("open.")},
                {name.removeprefix("score."): score for name, score in tensors.items() if name.startswith("score.")},
                record["dimensions"],
                record["base_fingerprint"],
                record["routed_fingerprint"],
                record["config"],
            )
        except ValueError as error:
            raise ArtefactError(f"{folder}: channels do not fit the sites named in carrier.json ({error}).") from error
        if model is not None:
            carrier.check_model(model)
        return carrier

    def save_pretrained(self, folder: str | Path) -> Path:
        """:meth:`save` under the name that Hugging Face libraries use; a local folder."""
        return self.save(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: LensModel | None = None) -> "Carrier":
        """:meth:`load` under the name that Hugging Face libraries use; a local folder.

        Raises:
            ArtefactError: as for :meth:`load`.
        """
        return cls.load(folder, model)

    def check_model(self, model: LensModel) -> None:
        """Refuse a model of other dimensions or other weights.

        Raises:
            ArtefactError: names what differs.
        """
        sizes = model_dimensions(model)
        differing = {key: (value, sizes.get(key)) for key, value in self.dimensions.items() if sizes.get(key) != value}
        if differing:
            listed = ", ".join(f"{key}: carrier {ours}, model {theirs}" for key, (ours, theirs) in differing.items())
            raise ArtefactError(f"the carrier belongs to a model of other dimensions ({listed}).")
        if not set(self.sites) <= set(backend_of(model).sites(model)):
            raise ArtefactError("the carrier has sites that the model lacks: it belongs to another architecture.")
        known = {self.base_fingerprint, self.routed_fingerprint} - {""}
        if known and weights_fingerprint(model) not in known:
            raise ArtefactError(
                "the model has other weights than the base and the routed model that this carrier was found with: load "
                "one of those, or skip the check with Carrier.load(folder) without a model."
            )

    # -- views

    def __repr__(self) -> str:
        layers = sorted({site.layer for site in self.sites if self._count(site)})
        where = f"layers {layers[0]}-{layers[-1]}" if layers else "no layer"
        return f"Carrier({self.n_open} of {self.n_gates} channels open, sparsity {self.sparsity:.3f}, {where})"

    def _repr_html_(self) -> str:
        return notebook_view(repr(self), self.counts())

    def _count(self, site: Site) -> int:
        return len(self.channels[site.hook_name])

    def _flags_of(self, other: "Carrier") -> Tensor:
        if other.sites != self.sites:
            raise ArtefactError("the two carriers belong to models with different sites and cannot be combined.")
        return other.flags()

    def _combine(self, other: "Carrier", flags: Tensor) -> "Carrier":
        shared = self.base_fingerprint if self.base_fingerprint == other.base_fingerprint else ""
        return Carrier(self.sites, self.layout.channels(flags), {}, self.dimensions, shared)


def model_dimensions(model: LensModel) -> dict[str, int]:
    """The sizes that a carrier refers to."""
    cfg = model.cfg
    names = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab")
    sizes = {name: int(getattr(cfg, name)) for name in names}
    return sizes | {"n_key_value_heads": int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)}


def channels_from_flags(sites: Sequence[Site], flags: Tensor) -> Channels:
    """Open channels per hook name from a flat vector [n_gates]."""
    return SiteLayout(sites).channels(flags)


def pairwise_jaccard(carriers: Iterable[Carrier]) -> list[float]:
    """Jaccard of every pair, in the order (0, 1), (0, 2), …"""
    listed = list(carriers)
    return [a.jaccard(b) for i, a in enumerate(listed) for b in listed[i + 1 :]]
