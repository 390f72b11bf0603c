"""What became of a behaviour, in one word: kept, weakened, suppressed, partly reversed or reversed.

Suppression is not reversal: twenty out-of-distribution tokens can silence a behaviour by breaking the model. A
behaviour counts as reversed only when it is gone *and* the base's answers are back:

    left(c) = (rate_c − rate_base) / (rate_sft − rate_base)        share of the trained behaviour that is left
    back(c) = utility_c / utility_base                             share of the base's right answers that is there
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcdd_lens.report.page import finite

GONE, KEPT = 0.15, 0.85
"""``left`` at most GONE: the behaviour is gone; at least KEPT: it is kept; between: weakened."""

BACK, PARTLY_BACK = 0.75, 0.25
"""``back`` at least BACK: reversed; at least PARTLY_BACK: partly reversed; below: suppressed."""

MEANINGS: dict[str, str] = {
    "kept": "the behaviour is there",
    "weakened": "the behaviour shows less often",
    "suppressed": "the behaviour is gone, and so are the base’s answers",
    "partly reversed": "the behaviour is gone, and some of the base’s answers are back",
    "reversed": "the behaviour is gone, and the base’s answers are back",
    "gone": "the behaviour is gone; utility was not measured",
}


@dataclass(frozen=True)
class Verdict:
    """The word and the two figures behind it; ``back`` is ``None`` where utility was not measured."""

    word: str
    left: float
    back: float | None

    @property
    def meaning(self) -> str:
        """One clause."""
        return MEANINGS[self.word]

    @property
    def css(self) -> str:
        """Class name for badges."""
        return self.word.replace(" ", "-")


def verdict(results: Mapping[str, Any], condition: str) -> Verdict | None:
    """Judge one condition of ``results.json``; ``None`` where it or what it is judged against was not measured.

    An SFT model that hardly differs from its base in behaviour gives no verdict: there is nothing to lose.
    """
    rates, utilities = results.get("behaviour_rate", {}), results.get("utility", {})
    rate, base, sft = (finite(rates.get(name)).get("value") for name in (condition, "base", "sft"))
    if rate is None or base is None or sft is None or sft - base < 0.05:
        return None
    left = (rate - base) / (sft - base)
    here, there = (finite(utilities.get(name)).get("value") for name in (condition, "base"))
    back = here / there if here is not None and there else None
    if left > GONE:
        return Verdict("kept" if left >= KEPT else "weakened", left, back)
    if back is None:
        return Verdict("gone", left, None)
    return Verdict(
        "reversed" if back >= BACK else "partly reversed" if back >= PARTLY_BACK else "suppressed", left, back
    )
