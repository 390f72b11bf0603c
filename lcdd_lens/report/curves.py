"""Training curves: fine-tuning, LCDD with its budget, price and sparsity, and the trigger."""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.report.charts import Chart, Series, line_chart
from lcdd_lens.report.page import Html, html, section

TERMS: dict[str, str] = {
    "gate": "One channel of one site. Open: its fine-tuned weights count. Closed: it is the base’s.",
    "budget ε": "The largest loss that LCDD accepts, fixed at the end of the warm-up.",
    "EMA": "Moving average of the batch loss. Gates close while it is below ε and wait while it is above.",
    "price λ": "What an open gate costs. It rises while there is slack and falls when the budget is broken.",
    "settling": "The last steps train weights only, so that the run does not stop over its budget.",
    "trigger": "Learned embeddings before the prompt. The weights do not move.",
}


def training_charts(run: Mapping[str, Any], prefix: str) -> dict[str, Chart]:
    history = run.get("history") or {}
    sft, lcdd, eraser = (history.get(stage) or {} for stage in ("sft", "lcdd", "eraser"))
    warmup = _first(run.get("config"), "warmup_steps")
    marks = [(float(warmup), "ε fixed")] if isinstance(warmup, int | float) else []
    wanted = {
        "sft": line_chart(
            f"{prefix}-sft",
            [_series(sft, "loss", "loss", "sft")],
            title="Fine-tuning",
            y_label="loss, nats per token",
            log=True,
        ),
        "loss": line_chart(
            f"{prefix}-loss",
            [
                _series(lcdd, "loss", "batch loss", "faint"),
                _series(lcdd, "ema", "EMA", "routed"),
                _series(lcdd, "epsilon", "budget ε", "base", dashed=True),
            ],
            title="LCDD: loss and its budget",
            y_label="loss, nats per token",
            log=True,
            marks=marks,
        ),
        "sparsity": line_chart(
            f"{prefix}-sparsity",
            [_series(lcdd, "sparsity", "closed gates", "routed-trigger")],
            title="LCDD: sparsity",
            y_label="closed gates",
            y_range=(0.0, 1.0),
            share=True,
            marks=marks,
        ),
        "lambda": line_chart(
            f"{prefix}-lambda",
            [_series(lcdd, "lambda", "λ", "sft-trigger")],
            title="LCDD: the price λ of an open gate",
            y_label="λ",
            log=True,
            marks=marks,
        ),
        "eraser": line_chart(
            f"{prefix}-eraser",
            [
                _series(eraser, "loss", "loss", "routed-trigger"),
                _series(eraser, "match", "activation matching", "sft-trigger-carrier", dashed=True),
                _series(eraser, "kl", "KL to the base", "sft-trigger", dashed=True),
                _series(eraser, "validation", "validation", "sft"),
            ],
            title="Trigger",
            y_label="loss",
            log=True,
        ),
    }
    return {f"{prefix}-{name}": chart for name, chart in wanted.items() if chart is not None}


def _series(history: Mapping[str, Any], key: str, label: str, css: str, dashed: bool = False) -> Series:
    values = list(history.get(key) or ())
    steps = history.get(f"{key}_step") or history.get("step") or range(len(values))
    return Series(label, [float(step) for step in steps], values, css, dashed)


def _first(config: Any, key: str) -> Any:
    """The first value under ``key`` anywhere in a nested configuration."""
    if isinstance(config, Mapping):
        if key in config:
            return config[key]
        for value in config.values():
            found = _first(value, key)
            if found is not None:
                return found
    return None


def training(figures: Mapping[str, Chart], prefix: str) -> Html | None:
    if not figures:
        return None
    return section(
        prefix,
        "training",
        "How it trained",
        html(
            "div", (chart.figure for chart in figures.values()), html("dl", _terms(), class_="terms"), class_="grid-2"
        ),
        intro="LCDD closes gates while the loss stays within its budget ε. Point at a curve, or use the arrow keys.",
    )


def _terms() -> list[Html]:
    return [html("div", html("dt", term), html("dd", meaning)) for term, meaning in TERMS.items()]
