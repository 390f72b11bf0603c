"""Training histories as figures need them: columns by name, per stage, and the steps at which a phase ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Columns = Mapping[str, Sequence[float | int | None]]
"""One stage's history: ``step`` and further columns of the same length; None where nothing was measured."""


@dataclass(frozen=True)
class Histories:
    """The histories of one run; a stage that did not run is empty.

    Attributes:
        sft: ``step``, ``loss``.
        lcdd: ``step``, ``loss``, ``ema``, ``epsilon``, ``lambda``, ``sparsity``.
        erasers: condition -> ``step``, ``loss``, ``match``, ``kl``, ``validation``.
        marks: (step of LCDD, what happens there).
    """

    sft: Columns
    lcdd: Columns
    erasers: Mapping[str, Columns]
    marks: tuple[tuple[float, str], ...] = ()


def histories(run: Mapping[str, Any]) -> Histories:
    """From a results dictionary, from its ``history`` entry, or from one stage's columns (taken as LCDD's where they
    hold a budget, as an eraser's where they hold ``match``, else as SFT's)."""
    record = run.get("history", run)
    if "step" in record:
        stage = "lcdd" if "epsilon" in record else "eraser" if "match" in record else "sft"
        record = {stage: record}
    eraser = record.get("eraser") or {}
    erasers = {"routed+trigger": eraser} if "step" in eraser else eraser
    return Histories(record.get("sft") or {}, record.get("lcdd") or {}, erasers, _marks(run))


def column(history: Columns, name: str) -> tuple[list[float], list[float | int | None]]:
    """Steps and values of one column, of equal length; both empty where the history lacks it."""
    values = list(history.get(name) or ())
    steps = [float(step) for step in history.get("step", ()) if step is not None]
    return steps[: len(values)], values[: len(steps)]


def _marks(run: Mapping[str, Any]) -> tuple[tuple[float, str], ...]:
    config = run.get("config")
    lcdd = config.get("lcdd") if isinstance(config, Mapping) else None
    if not isinstance(lcdd, Mapping):
        return ()
    warmup = (lcdd.get("budget") or {}).get("warmup_steps")
    steps, settle = (lcdd.get("optim") or {}).get("steps"), lcdd.get("settle_steps")
    marks = [(float(warmup), "ε fixed")] if warmup else []
    return (*marks, (float(steps - settle), "gates fixed")) if steps and settle else tuple(marks)
