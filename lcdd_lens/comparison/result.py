"""What a comparison found: one results file, tables, figures, and the page made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pandas as pd

from lcdd_lens.display import notebook_view
from lcdd_lens.io import read_sealed_json, write_sealed_json

SCHEMA = 1
FILE = "comparison.json"


class ComparisonRecord(TypedDict):
    """``comparison.json``. Every figure is ``{"value", "n", "interval"}``; larger 𝓜 = more of the behaviour.

    ``curves``: method -> F(k). ``sets``: carrier and every method's first |C| channels -> sufficiency, necessity and so
    on. ``random``: kind of random set -> F over draws. ``two_by_two``: set -> F on fine-tuned and on LCDD weights.
    ``channels``: what every method says of the channels that any set has (:mod:`lcdd_lens.comparison.channels`).
    """

    schema: int
    library_version: str
    behaviour: str
    base: str
    seed: int
    metric: str
    prompts: dict[str, Any]
    n_gates: int
    carrier_size: int
    lcdd_weights: str | None
    anchors: dict[str, float]
    methods: dict[str, Any]
    curves: dict[str, Any]
    sets: dict[str, Any]
    random: dict[str, Any]
    carrier: dict[str, Any]
    oracle: dict[str, Any]
    overlap: dict[str, Any]
    two_by_two: dict[str, Any]
    reversal: dict[str, Any]
    places: dict[str, Any]
    channels: dict[str, Any]
    seconds: dict[str, float]
    config: dict[str, Any]
    versions: dict[str, str]
    record_sha256: NotRequired[str]


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """A comparison's record, with the views of it that people want."""

    record: ComparisonRecord

    @property
    def methods(self) -> tuple[str, ...]:
        """Compared methods, without the carrier."""
        return tuple(self.record["curves"])

    def to_dict(self) -> Mapping[str, Any]:
        """The content of ``comparison.json``."""
        return self.record

    def to_dataframe(self) -> pd.DataFrame:
        """One row per set of the carrier's size: F, necessity, areas, overlap with the carrier, cost."""
        return pd.DataFrame([self._row(name) for name in self.record["sets"]]).set_index("method")

    def _row(self, name: str) -> dict[str, Any]:
        record = self.record
        found, curve = record["sets"][name], record["curves"].get(name, {})
        overlap = record["overlap"]["with_carrier"].get(name, {}).get("all", {})
        cost = record["methods"].get(name, {}).get("cost", {})
        both = record["two_by_two"].get(name, {})

        def value(estimate: Mapping[str, Any] | None) -> float | None:
            return None if estimate is None else estimate["value"]

        return {
            "method": name,
            "sufficiency": value(found["sufficiency"]),
            "necessity": value(found["necessity"]),
            "sufficiency on LCDD weights": value(both.get("lcdd")),
            "collateral KL": value(found["collateral_kl"]),
            "behaviour rate": value(found.get("behaviour_rate")),
            "area (log k)": value(curve.get("area_log")),
            "area (linear k)": value(curve.get("area_linear")),
            "|1 − F| (log k)": value(curve.get("distance_log")),
            "smallest share with F ≥ 0.9": curve.get("smallest_share"),
            "Jaccard with carrier": overlap.get("jaccard"),
            "stratified chance": overlap.get("stratified_chance"),
            "AUROC": overlap.get("auroc"),
            "seconds": cost.get("seconds"),
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``comparison.json`` into ``folder``, atomically."""
        path = Path(folder) / FILE
        write_sealed_json(path, self.record)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "ComparisonResult":
        """Read ``comparison.json`` from ``folder``.

        Raises:
            ArtefactError: the file is missing, damaged, altered or of a newer version.
        """
        return cls(read_sealed_json(Path(folder) / FILE, ComparisonRecord, SCHEMA))

    def write_report(self, path: str | Path) -> Path:
        """Write the comparison as one self-contained HTML page."""
        from lcdd_lens.report.comparison import write_comparison_report  # pages stand above results

        return write_comparison_report(self.record, path)

    def plot(self, ax: Any = None) -> Any:
        """Faithfulness against the share of open channels."""
        from lcdd_lens.plotting.comparison import plot_faithfulness  # figures stand above results

        return plot_faithfulness(self.record, ax=ax)

    def __repr__(self) -> str:
        record = self.record
        return (
            f"ComparisonResult({record['behaviour']}, {len(self.methods)} methods against a carrier of "
            f"{record['carrier_size']} of {record['n_gates']} channels)"
        )

    def _repr_html_(self) -> str:
        return notebook_view(repr(self), self.to_dataframe())
