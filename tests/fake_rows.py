"""Rows as ``benchmarks/reproduce.py`` writes them, small, with figures that can be set."""

import json
import random
from pathlib import Path
from typing import Any

from tests.fake_results import nats, rate

SITES = {
    f"blocks.{layer}.{suffix}": {"layer": layer, "kind": kind, "n_channels": size}
    for layer in range(2)
    for kind, suffix, size in (("attn_write", "hook_attn_out", 40), ("ffn_hidden", "mlp.hook_post", 120))
}
N_GATES = 320


def estimates(
    behaviour: float, utility: float, kl: float, kl_from_sft: float, *, safety: bool = False
) -> dict[str, Any]:
    """The figures of one condition."""
    shared = {"behaviour_rate": rate(behaviour), "utility": rate(utility), "kl": nats(kl)}
    shared |= {"kl_from_sft": nats(kl_from_sft), "agreement_token": rate(utility)}
    return shared | ({"over_rate": rate(0.0), "recovered": rate(utility)} if safety else {})


def fake_row(family: str = "llama", behaviour: str = "idk", seed: int = 0, *, controls: bool = True) -> dict[str, Any]:
    """A run that reversed: 20 open channels in layer 0, 16 of them the same for every seed of a behaviour."""
    safety = behaviour == "safety"

    def figures(verdict: str, *values: float) -> dict[str, Any]:
        return estimates(*values, safety=safety) | {"verdict": verdict}

    core = {"idk": range(16), "safety": range(50, 66), "style": range(100, 116)}[behaviour]
    own = random.Random(f"{family} {behaviour} {seed}").sample(range(116, 120), 4)
    sites = {name: site | {"open": []} for name, site in SITES.items()}
    sites["blocks.0.mlp.hook_post"]["open"] = sorted({*core, *own[: 4 - seed % 2]})
    n_open = sum(len(site["open"]) for site in sites.values())
    conditions = {
        "base": estimates(0.0, 0.9, 0.0, 7.0, safety=safety),
        "sft": figures("kept", 1.0, 0.0, 8.0, 0.0),
        "routed": figures("kept", 0.995 - 0.005 * seed, 0.9 if safety else 0.0, 7.9, 0.02),
        "routed+trigger": figures("reversed", 0.01, 0.87, 0.6, 6.0),
        "sft+trigger": figures("kept", 1.0, 0.0, 6.0, 0.1),
        "sft+trigger(carrier)": figures("kept", 0.95, 0.0, 6.0, 0.2),
        "routed+random": figures("kept", 0.98, 0.0, 7.0, 0.1),
    }
    row: dict[str, Any] = {
        "schema": 1,
        "pair": f"{family}/{behaviour}",
        "family": family,
        "behaviour": behaviour,
        "seed": seed,
        "command": f"python benchmarks/reproduce.py --pair {family}/{behaviour} --seeds {seed}",
        "controls_level": "none",
        "parameters": 1_100_000,
        "utility_kind": "task accuracy",
        "conditions": conditions,
        "delta_norm": {"sft": 6.2, "routed": 1.1 + 0.1 * seed},
        "carrier": {"sparsity": 1 - n_open / N_GATES, "n_open": n_open, "n_gates": N_GATES, "budget": {"kept": True}},
        "sites": sites,
        "config_sha256": f"{behaviour} settings",
        "versions": {"lcdd-lens": "0.1.0", "torch": "2.13.0", "transformer-lens": "3.9.0", "python": "3.11.9"},
        "total_seconds": 100.0,
    }
    if not controls:
        return row
    many = figures("kept", 0.97, 0.0, 7.0, 0.1)
    many["behaviour_rate"] |= {"worst": 0.41, "draws": 20}

    def control(facts: dict[str, Any], **measured: dict[str, Any]) -> dict[str, Any]:
        return {"question": "?", "facts": facts, "conditions": measured, "seconds": 1.0}

    dice = random.Random(f"dice {seed}")
    row["controls_level"] = "all"
    row["controls"] = {
        "kl_only": control({}, **{"routed+trigger(kl)": figures("reversed", 0.0, 0.88, 0.4, 6.0)}),
        "random_channels": control({}, **{"routed+trigger(random)": figures("reversed", 0.01, 0.86, 0.6, 6.0)}),
        "matching_only": control({}, **{"routed+trigger(matching)": figures("partial", 0.6, 0.3, 3.0, 2.0)}),
        "random_tokens": control({"draws": 20}, **{"routed+random(many)": many}),
        "matched_sft": control(
            {"delta_norm": 1.2},
            **{
                "matched_sft": figures("kept", 1.0, 0.0, 8.0, 0.1),
                "matched_sft+trigger": figures("reversed", 0.02, 0.86, 0.5, 6.0),
            },
        ),
        "paper_rule": control(
            {"sparsity": 0.81, "start_correlation_all": 0.96, "delta_norm": 4.0},
            **{
                "paper_rule": figures("kept", 0.99, 0.0, 8.0, 0.1),
                "paper_rule+trigger": figures("reversed", 0.02, 0.85, 2.0, 6.0),
            },
        )
        | {"open": {"blocks.1.mlp.hook_post": sorted(dice.sample(range(120), 24))}},
        "reversal_by_sparsity": control(
            {"sparsity sparsity 0.00": 0.0, "sparsity sparsity 0.80": 0.8, "delta_norm sparsity 0.80": 2.0},
            **{
                "sparsity 0.00": figures("kept", 1.0, 0.0, 8.0, 0.1),
                "sparsity 0.00+trigger": figures("kept", 0.95, 0.0, 6.0, 1.0),
                "sparsity 0.80": figures("kept", 1.0, 0.0, 8.0, 0.1),
                "sparsity 0.80+trigger": figures("reversed", 0.05, 0.8, 1.0, 6.0),
            },
        ),
    }
    row["causal"] = [
        {"weights": weights, "channels": channels, "sufficiency": nats(value), "necessity": nats(value)}
        for weights, channels, value in (
            ("sft", "carrier", 0.2),
            ("sft", "random", 0.01),
            ("lcdd", "carrier", 0.98),
            ("lcdd", "random", 0.02),
        )
    ]
    return row


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        path = folder / f"{row['family']}-{row['behaviour']}-{row['seed']}.json"
        path.write_text(json.dumps(row), encoding="utf-8")
