"""What ``rule_search.py`` found, as tables: where a behaviour can live, which rules and which triggers were tried."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from claims import KEPT_WITHIN
from rule_search import VARIANTS
from summary import over_seeds
from tables import BLANK, cell, table_row

Found = Mapping[str, Any]
DEFAULT = "default"


def layers_section(folder: Path) -> str:
    """Carriers that were confined to a layer, or spread over all of them."""
    rows = _rows(folder, lambda name: name.startswith("layer_") or name == "per_layer")
    if not rows:
        return ""
    text = """## Is layer 0 the behaviour's place?

The default rule leaves nearly all open gates in layer 0. Two experiments ask whether the behaviour is there, or whether
a carrier is merely cheapest there: LCDD whose gates may stay open in *one* layer alone, and LCDD that closes the same
share in *every* layer. Validation prompts."""
    return f"{text}\n\n{_table(rows)}\n\n{_layers_verdict(rows)}"


def rules_section(folder: Path) -> str:
    """Variants of LCDD."""
    rows = _rows(folder, lambda name: not name.startswith(("layer_", "per_layer", "trigger_")))
    if not rows:
        return ""
    text = """## What was tried for the rule

One setting changed at a time, on validation prompts."""
    return f"{text}\n\n{_table(rows)}\n\n{_command('default pull_0')}"


def triggers_section(folder: Path) -> str:
    """Variants of the trigger."""
    rows = _rows(folder, lambda name: name.startswith("trigger_"))
    if not rows:
        return ""
    text = """## What was tried for the trigger

The same carriers, the trigger trained otherwise: its objective, its length, the bound of its norm. Validation
prompts."""
    return f"{text}\n\n{_table(rows)}\n\n{_command('trigger_prompt_only')}"


def _command(variants: str) -> str:
    return f"```bash\npython benchmarks/rule_search.py --variants {variants} --pairs llama/idk --seeds 0\n```"


def _rows(folder: Path, wanted: Callable[[str], bool]) -> list[Found]:
    """Rows of the wanted variants and, where one of them ran, those of the default beside it."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    chosen = [row for row in found if wanted(row["variant"]) and row["variant"] != DEFAULT]
    places = {(row["pair"], row["seed"]) for row in chosen}
    return [row for row in found if row["variant"] == DEFAULT and (row["pair"], row["seed"]) in places] + chosen


def _table(rows: Sequence[Found]) -> str:
    lines = [
        "| variant | pair | seeds | sparsity | behaviour: routed | false alarms | ‖Δ‖ | seed Jaccard "
        "| with trigger: behaviour | right answers | KL(B‖·) | KL(B‖SFT + trigger) | steps |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in dict.fromkeys(row["pair"] for row in rows):
        for variant in [name for name in VARIANTS if any(_is(row, name, pair) for row in rows)]:
            group = [row for row in rows if _is(row, variant, pair)]
            lines.append(
                table_row(
                    f"`{variant}`: {VARIANTS[variant].why}",
                    pair,
                    str(len(group)),
                    _mean(group, lambda row: row["carrier"]["sparsity"]),
                    _mean(group, _figure("routed", "behaviour_rate")),
                    _mean(group, _figure("routed", "over_rate")),
                    _mean(group, lambda row: row["delta_norm"]["routed"], 2),
                    _jaccard(group),
                    _mean(group, _figure("routed+trigger", "behaviour_rate")),
                    _mean(group, _figure("routed+trigger", "utility")),
                    _mean(group, _figure("routed+trigger", "kl"), 2),
                    _mean(group, _figure("sft+trigger", "kl"), 2),
                    _mean(group, lambda row: row["trigger_steps"], 0),
                )
            )
    return "\n".join(lines)


def _layers_verdict(rows: Sequence[Found]) -> str:
    """The answer, computed from the rows."""
    parts, homes = [], []
    for pair in dict.fromkeys(row["pair"] for row in rows):
        holding, failing = [], []
        for variant in (name for name in VARIANTS if name.startswith("layer_")):
            group = [row for row in rows if _is(row, variant, pair)]
            if not group:
                continue
            found = [row["conditions"] for row in group]
            lost = [of["sft"]["behaviour_rate"] - of["routed"]["behaviour_rate"] for of in found]
            sparsity = min(row["carrier"]["sparsity"] for row in group)
            named = f"{variant.removeprefix('layer_')} (sparsity {sparsity:.3f})"
            (holding if max(lost) <= KEPT_WITHIN else failing).append(named)
        homes.append(len(holding))
        parts.append(
            f"- **{pair}**: gates in one layer alone keep the behaviour within {KEPT_WITHIN} of SFT's in layer "
            f"{', '.join(holding) or 'none'}; they lose more in layer {', '.join(failing) or 'none'}."
        )
    if min(homes) > 1:
        meaning = """For every pair more than one layer can hold the behaviour alone. Layer 0 is not *the* place of the
behaviour, it is where this rule finds the carrier cheapest: where a carrier lies is part of what constructs it."""
    elif max(homes) > 1:
        meaning = "Some of these behaviours can be held by more than one layer alone, and some by one."
    else:
        meaning = "No behaviour here can be held by more than one layer alone."
    return "\n".join(parts) + "\n\n" + meaning


def _is(row: Found, variant: str, pair: str) -> bool:
    return bool(row["variant"] == variant and row["pair"] == pair)


def _figure(condition: str, metric: str) -> Callable[[Found], float | None]:
    def value(row: Found) -> float | None:
        found: float | None = row["conditions"].get(condition, {}).get(metric)
        return found

    return value


def _mean(rows: Sequence[Found], value: Callable[[Found], float | None], digits: int = 3) -> str:
    found = [number for row in rows if (number := value(row)) is not None]
    return cell(over_seeds(found, share=False), digits) if len(found) != 2 else f"{sum(found) / 2:.{digits}f}"


def _jaccard(rows: Sequence[Found]) -> str:
    """Mean over pairs of seeds."""
    carriers = [{(hook, index) for hook, indices in row["open"].items() for index in indices} for row in rows]
    pairs = [len(one & other) / max(len(one | other), 1) for one, other in combinations(carriers, 2)]
    return f"{sum(pairs) / len(pairs):.3f}" if pairs else BLANK
