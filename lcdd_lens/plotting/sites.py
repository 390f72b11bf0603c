"""A carrier as figures need it: one plain record per site, from a carrier object or from ``results.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcdd_lens.errors import ArtefactError


@dataclass(frozen=True)
class SiteChannels:
    """Open channels of one site.

    Attributes:
        layer, kind, hook_name, n_channels: as in :class:`lcdd_lens.backends.sites.Site`.
        open: open channel indices, ascending.
        scores: score of every channel [n_channels]; empty where unknown.
    """

    layer: int
    kind: str
    hook_name: str
    n_channels: int
    open: tuple[int, ...]
    scores: tuple[float, ...] = ()

    @property
    def density(self) -> float:
        """Share of open channels."""
        return len(self.open) / self.n_channels


def site_channels(carrier: Any) -> list[SiteChannels]:
    """Sites in layer order, from a :class:`lcdd_lens.carrier.Carrier`, a results dictionary or its ``carrier`` entry.

    Raises:
        ArtefactError: the object holds no carrier.
    """
    if isinstance(carrier, Mapping):
        record = carrier.get("carrier", carrier)
        if not isinstance(record, Mapping) or not isinstance(record.get("sites"), Mapping):
            raise ArtefactError(
                "no carrier here: expected a Carrier, results with 'carrier', or its entry with 'sites'."
            )
        return [_from_record(name, site) for name, site in record["sites"].items()]
    scores = getattr(carrier, "scores", {})
    try:
        return [
            SiteChannels(
                site.layer,
                site.kind,
                site.hook_name,
                site.n_channels,
                tuple(carrier.channels[site.hook_name].tolist()),
                tuple(scores[site.hook_name].tolist()) if site.hook_name in scores else (),
            )
            for site in carrier.sites
        ]
    except (AttributeError, TypeError) as error:
        raise ArtefactError(f"no carrier here: got {type(carrier).__name__}, expected a Carrier or results.") from error


def _from_record(hook_name: str, record: Mapping[str, Any]) -> SiteChannels:
    missing = {"layer", "kind", "n_channels", "open"} - set(record)
    if missing:
        raise ArtefactError(
            f"carrier site {hook_name!r} lacks {', '.join(sorted(missing))}: expected results.json's fields."
        )
    n_channels, open_ = int(record["n_channels"]), tuple(int(index) for index in record["open"])
    scores = tuple(float(score) for score in record.get("scores", ()))
    if open_ and not 0 <= min(open_) <= max(open_) < n_channels:
        raise ArtefactError(f"carrier site {hook_name!r} opens channels outside 0..{n_channels - 1}.")
    if scores and len(scores) != n_channels:
        raise ArtefactError(f"carrier site {hook_name!r} has {len(scores)} scores for {n_channels} channels.")
    return SiteChannels(int(record["layer"]), str(record["kind"]), hook_name, n_channels, tuple(sorted(open_)), scores)
