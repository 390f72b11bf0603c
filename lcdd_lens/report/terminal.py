"""The result of a run as plain text: conditions × figures with 95 % intervals, at most 100 columns wide."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcdd_lens.plotting.palette import in_order
from lcdd_lens.report.page import finite, interval
from lcdd_lens.report.story import sparsity
from lcdd_lens.report.verdict import restored_quantity, verdict

WIDTH = 100

_RESTORED = {"utility": "right answers", "recovered": "recovered", "agreement": "as the base"}


def results_table(results: Mapping[str, Any]) -> str:
    """Behaviour, what must come back, and KL to the base for every condition, then how sparse the carrier is."""
    measure = restored_quantity(results)
    wanted = (
        ("behaviour_rate", "behaviour", True),
        (measure, _RESTORED[measure], True),
        ("over_rate", "elsewhere", True),
        ("kl", "KL(base‖·)", False),
    )
    columns = [column for column in wanted if results.get(column[0])]
    head = ["condition", *(title for _, title, _ in columns), "verdict"]

    def table(digits: int) -> str:
        rows = [
            [
                condition,
                *(_cell(finite(results[quantity].get(condition)), share, digits) for quantity, _, share in columns),
                verdict(results, condition) or "",
            ]
            for condition in in_order(list(results["behaviour_rate"]))
        ]
        return aligned([head, *rows])

    found = table(1)
    if max(map(len, found.splitlines())) > WIDTH:
        found = table(0)
    n = finite(results["behaviour_rate"].get("routed")).get("n")
    carrier = results["carrier"]
    counted = f"{carrier['n_open']:,} of {carrier['n_gates']:,} gates open, " if "n_open" in carrier else ""
    prompts = f"{n} unseen prompts, " if n else ""
    note = f"{counted}sparsity {sparsity(results):.3f}; {prompts}95 % intervals"
    return f"{found}\n{note}\nshares in %, KL in nats per token"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of equal width, with a rule under the first row."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _cell(estimate: Mapping[str, Any], share: bool, digits: int) -> str:
    """Value and interval; ``digits`` decimals in the interval of a share, two in nats."""
    if not estimate:
        return "–"
    value = f"{100 * estimate['value']:5.1f}" if share else f"{estimate['value']:5.2f}"
    bounds = interval(estimate)
    if bounds is None:
        return value
    low, high = (f"{100 * bound:.{digits}f}" if share else f"{bound:.2f}" for bound in bounds)
    return f"{value} [{low}–{high}]"
