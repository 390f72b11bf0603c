"""The picture and the table of README and home page, made from a demonstration run.

    lcdd-lens demo --behaviour idk --seed 0
    python docs/make_figures.py lcdd-demo-idk-0

writes ``docs/assets/demo.png``, the figures behind it as ``docs/assets/demo.json``, and the table between the markers
in ``README.md``; a test holds the table to the JSON file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from lcdd_lens.plotting import carrier_map, condition_bars
from lcdd_lens.plotting.palette import CONDITIONS

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
START, END = "<!-- demo table -->", "<!-- end of demo table -->"
QUANTITIES = ("behaviour_rate", "utility", "kl")


def kept(results: dict[str, Any]) -> dict[str, Any]:
    """What README states of a run, and what is needed to repeat it."""
    names = [name for name in CONDITIONS if name in results["behaviour_rate"]]
    return {
        "command": f"lcdd-lens demo --behaviour {results['behaviour']} --seed {results['seed']}",
        "behaviour": results["behaviour"],
        "seed": results["seed"],
        "carrier": {key: results["carrier"][key] for key in ("sparsity", "n_open", "n_gates")},
        "verdict": results["verdict"],
        "versions": results["versions"],
        **{quantity: {name: results[quantity][name] for name in names} for quantity in QUANTITIES},
    }


def table(figures: dict[str, Any]) -> str:
    """One row per condition: value and 95 % interval."""
    lines = [
        "| condition | behaviour | right answers | KL(base ‖ ·), nats per token | verdict |",
        "|---|---|---|---|---|",
    ]
    for name, rate in figures["behaviour_rate"].items():
        utility, kl = figures["utility"][name], figures["kl"][name]
        cells = [f"`{name}`", _share(rate), _share(utility), _nats(kl), figures["verdict"].get(name, "")]
        lines.append("| " + " | ".join(cells) + " |")
    carrier = figures["carrier"]
    n = figures["behaviour_rate"]["base"]["n"]
    caption = (
        f"`{figures['command']}`: {n} unseen prompts, 95 % intervals; "
        f"{carrier['n_open']} of {carrier['n_gates']:,} gates open (sparsity {carrier['sparsity']:.3f})."
    )
    return "\n".join([*lines, "", caption])


def draw(results: dict[str, Any], path: Path) -> None:
    """Carrier map, behaviour and right answers side by side, on white."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 3.9), width_ratios=[1.25, 1, 1], layout="constrained")
    carrier_map(results, axes[0], colorbar=False)
    condition_bars(results, "behaviour_rate", axes[1])
    condition_bars(results, "utility", axes[2])
    axes[2].set_yticklabels([])
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make README's picture and table from a demonstration run.")
    parser.add_argument("run", type=Path, help="output folder of lcdd-lens demo")
    results = json.loads((parser.parse_args().run / "results.json").read_text(encoding="utf-8"))
    figures = kept(results)
    draw(results, DOCS / "assets" / "demo.png")
    (DOCS / "assets" / "demo.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    README.write_text(f"{before}{START}\n{table(figures)}\n{END}{after}", encoding="utf-8")


def _share(estimate: dict[str, Any]) -> str:
    low, high = estimate["interval"]
    return f"{estimate['value']:.1%} [{low:.1%}, {high:.1%}]"


def _nats(estimate: dict[str, Any]) -> str:
    low, high = estimate["interval"]
    return f"{estimate['value']:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
