"""The rows of ``reproduce.py`` as tables need them: read, checked, grouped, averaged over seeds.

A mean over s ≥ 2 seeds comes with Student's 95 % interval, mean ± t(s − 1)·sd/√s, cut to [0, 1] for shares; a single
seed keeps the interval over its prompts. Nothing here computes a figure that the files do not hold, except means,
intervals, ratios and overlaps of open channels.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lcdd_lens.backends.sites import Site
from lcdd_lens.carrier import Carrier
from lcdd_lens.errors import ArtefactError
from lcdd_lens.evaluation.statistics import student_mean

SCHEMA = 1


@dataclass(frozen=True)
class Mean:
    """A figure over seeds.

    Attributes:
        value: mean over seeds.
        low: lower end of the 95 % interval.
        high: upper end.
        seeds: number of seeds.
        n: prompts (× draws) of one seed; 0 where the figure has none.
    """

    value: float
    low: float
    high: float
    seeds: int
    n: int = 0

    def text(self, digits: int = 3, *, interval: bool = True) -> str:
        """``0.995 [0.990, 1.000]``."""
        if not interval or self.low == self.high == self.value:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True)
class Row:
    """One file: a model, a behaviour and a seed."""

    content: Mapping[str, Any]

    @property
    def pair(self) -> str:
        return str(self.content["pair"])

    @property
    def family(self) -> str:
        return str(self.content["family"])

    @property
    def behaviour(self) -> str:
        return str(self.content["behaviour"])

    @property
    def seed(self) -> int:
        return int(self.content["seed"])

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return tuple(
            Site(site["layer"], site["kind"], name, site["n_channels"]) for name, site in self.content["sites"].items()
        )

    @cached_property
    def carrier(self) -> Carrier:
        """LCDD's open channels."""
        return self._carrier({name: site["open"] for name, site in self.content["sites"].items()})

    def control_carrier(self, control: str) -> Carrier | None:
        """A control's open channels, where its file keeps them."""
        kept = self.control(control).get("open")
        return None if kept is None else self._carrier(kept)

    def control(self, name: str) -> Mapping[str, Any]:
        """A control's entry; empty where it did not run."""
        found: Mapping[str, Any] = self.content.get("controls", {}).get(name, {})
        return found

    def figure(self, condition: str, metric: str) -> Mapping[str, Any] | None:
        """An estimate of a condition, of the main table or of any control."""
        tables = [self.content["conditions"], *(entry["conditions"] for entry in self._controls())]
        return next((table[condition].get(metric) for table in tables if condition in table), None)

    def verdict(self, condition: str) -> str | None:
        """kept, reversed, suppressed or partial."""
        tables = [self.content["conditions"], *(entry["conditions"] for entry in self._controls())]
        return next((table[condition].get("verdict") for table in tables if condition in table), None)

    def _controls(self) -> Iterable[Mapping[str, Any]]:
        return self.content.get("controls", {}).values()

    def _carrier(self, open_channels: Mapping[str, Sequence[int]]) -> Carrier:
        return Carrier(
            self.sites, {name: torch.tensor(index, dtype=torch.long) for name, index in open_channels.items()}
        )


@dataclass(frozen=True)
class Pair:
    """All seeds of a model and a behaviour."""

    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        return self.rows[0].pair

    @property
    def family(self) -> str:
        return self.rows[0].family

    @property
    def behaviour(self) -> str:
        return self.rows[0].behaviour

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(row.seed for row in self.rows)

    def mean(self, condition: str, metric: str) -> Mean | None:
        """A figure over the seeds that have it."""
        found = [figure for row in self.rows if (figure := row.figure(condition, metric)) is not None]
        return mean_of(found, share=not metric.startswith("kl"))

    def over_seeds(self, value: Callable[[Row], float | None], *, share: bool = False) -> Mean | None:
        """Mean of a value that each row has or lacks."""
        found = [number for row in self.rows if (number := value(row)) is not None]
        return over_seeds(found, share=share)

    def ratio(self, metric: str, condition: str, reference: str) -> float | None:
        """Mean of one condition over the mean of another; None where one is missing or the reference is 0."""
        ours, theirs = self.mean(condition, metric), self.mean(reference, metric)
        return ours.value / theirs.value if ours is not None and theirs is not None and theirs.value else None

    def verdicts(self, condition: str) -> dict[str, int]:
        """How many seeds have each verdict."""
        counts: dict[str, int] = {}
        for row in self.rows:
            if (found := row.verdict(condition)) is not None:
                counts[found] = counts.get(found, 0) + 1
        return counts


def read_rows(folder: Path) -> list[Pair]:
    """All complete files of a folder, grouped by pair, seeds in order.

    Raises:
        ArtefactError: a file is damaged or of another schema, or the seeds of a pair ran under different settings.
    """
    rows = [_read(path) for path in sorted(folder.glob("*.json"))]
    grouped: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.family, row.behaviour, row.seed)):
        grouped.setdefault(row.pair, []).append(row)
    for name, group in grouped.items():
        if len({row.content["config_sha256"] for row in group}) > 1:
            seeds = ", ".join(str(row.seed) for row in group)
            raise ArtefactError(
                f"{name}: the seeds {seeds} ran under different settings and cannot be averaged; run the older ones "
                f"again with `python benchmarks/reproduce.py --pair {name} --seeds … --force`."
            )
    return [Pair(tuple(group)) for group in grouped.values()]


def mean_of(figures: Sequence[Mapping[str, Any]], *, share: bool) -> Mean | None:
    """Estimates of several seeds as one; of a single seed as it is; of none None."""
    if not figures:
        return None
    n = int(figures[0]["n"])
    if len(figures) == 1:
        low, high = figures[0]["interval"]
        return Mean(float(figures[0]["value"]), float(low), float(high), 1, n)
    averaged = over_seeds([float(figure["value"]) for figure in figures], share=share)
    assert averaged is not None
    return Mean(averaged.value, averaged.low, averaged.high, averaged.seeds, n)


def over_seeds(values: Sequence[float], *, share: bool) -> Mean | None:
    """Mean of seeds with Student's interval; of one value without one."""
    if not values:
        return None
    found = student_mean([float(value) for value in values])
    low, high = found.low, found.high
    if share and len(values) > 1:
        low, high = max(0.0, low), min(1.0, high)
    return Mean(found.value, low, high, len(values))


def _read(path: Path) -> Row:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ArtefactError(f"{path} has schema {content['schema']}, expected {SCHEMA}: run the row again.")
        row = Row(content)
        _ = row.carrier, row.pair, row.seed, content["config_sha256"], content["conditions"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{path} is no row of reproduce.py ({error!r}): remove it, or run it again.") from error
    return row
