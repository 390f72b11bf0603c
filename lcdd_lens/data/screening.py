"""Counting unusable rows: dropped rows are reported, and too many of them are refused.

A few empty or over-long rows are normal in collected data; a file in which they are common is the wrong file or has
the wrong format, and training on the rest would silently answer another question.
"""

from collections import Counter
from dataclasses import dataclass, field

from lcdd_lens.errors import DataError

MAX_DROPPED_SHARE = 0.1


@dataclass(frozen=True)
class RowReport:
    """How many rows of a source were used, and why the others were not.

    Attributes:
        source: the file, data set or split that the rows came from.
        n_rows: rows looked at.
        dropped: reason -> number of rows.
        places: the first few dropped rows, as ``"line 3 (empty prompt)"``.
    """

    source: str
    n_rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    @property
    def n_dropped(self) -> int:
        """Number of rows that cannot be used."""
        return sum(self.dropped.values())

    @property
    def n_kept(self) -> int:
        """Number of rows that are used."""
        return self.n_rows - self.n_dropped

    def summary(self) -> str:
        """One line for logs and error messages."""
        if not self.n_dropped:
            return f"{self.source}: all {self.n_rows} rows used"
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        shown = ", ".join(self.places) + (", …" if self.n_dropped > len(self.places) else "")
        return f"{self.source}: {self.n_dropped} of {self.n_rows} rows unusable: {reasons} [{shown}]"

    def to_dict(self) -> dict[str, object]:
        """Source, rows, kept, and the dropped by reason, ready for JSON."""
        return {"source": self.source, "rows": self.n_rows, "kept": self.n_kept, "dropped": dict(self.dropped)}


class RowScreen:
    """Collects the reasons for which rows of one source are dropped, then judges their share."""

    def __init__(self, source: str, max_dropped_share: float = MAX_DROPPED_SHARE, n_places: int = 5) -> None:
        if not 0 <= max_dropped_share <= 1:
            raise DataError(f"max_dropped_share is {max_dropped_share}: expected a share between 0 and 1.")
        self.source = source
        self.max_dropped_share = max_dropped_share
        self._n_places = n_places
        self._n_rows = 0
        self._dropped: Counter[str] = Counter()
        self._places: list[str] = []

    def keep(self) -> None:
        """Count a usable row."""
        self._n_rows += 1

    def drop(self, place: str, reason: str) -> None:
        """Count an unusable row; ``place`` names it, for example ``line 12``."""
        self._n_rows += 1
        self._dropped[reason] += 1
        if len(self._places) < self._n_places:
            self._places.append(f"{place} ({reason})")

    def report(self, hint: str = "") -> RowReport:
        """The counts.

        Raises:
            DataError: no row is usable, or the unusable ones are more than the allowed share.
        """
        report = RowReport(self.source, self._n_rows, dict(self._dropped), tuple(self._places))
        advice = f" {hint}" if hint else ""
        if not report.n_rows:
            raise DataError(f"{self.source} holds no rows: expected at least one.")
        if not report.n_kept:
            raise DataError(f"{report.summary()}: nothing is left.{advice}")
        if report.n_dropped > self.max_dropped_share * report.n_rows:
            raise DataError(
                f"{report.summary()}: more than the allowed share of {self.max_dropped_share:.0%}. "
                f"Correct the rows, or raise max_dropped_share to go on without them.{advice}"
            )
        return report
