"""Training curves: fine-tuning, LCDD with its budget, price and sparsity, and the trigger."""

from collections.abc import Mapping
from typing import Any

from lcdd_lens.plotting.histories import Columns, column, histories
from lcdd_lens.plotting.palette import look
from lcdd_lens.report.charts import Chart, Series, line_chart
from lcdd_lens.report.page import Html, html, number, section

TERMS: dict[str, str] = {
    "gate": "One channel of one site. Open: its fine-tuned weights count. Closed: it is the base’s.",
    "budget ε": "The largest loss that LCDD accepts, fixed at the end of the warm-up.",
    "EMA": "Moving average of the batch loss. Gates close while it is below ε and wait while it is above.",
    "price λ": "What an open gate costs. It rises while there is slack and falls when the budget is broken.",
    "settling": "The last steps train weights only, so that the run does not stop over its budget.",
    "trigger": "Learned embeddings before the prompt. The weights do not move.",
}


def training_charts(run: Mapping[str, Any], prefix: str) -> dict[str, Chart]:
    """Identifier -> chart, for every stage that the run has a history of."""
    found = histories(run)
    lcdd, eraser = found.lcdd, found.erasers.get("routed+trigger", {})
    wanted = {
        "sft": line_chart(
            f"{prefix}-sft",
            [_series(found.sft, "loss", "loss", "sft")],
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
            marks=found.marks,
        ),
        "sparsity": line_chart(
            f"{prefix}-sparsity",
            [_series(lcdd, "sparsity", "closed gates", "routed-trigger")],
            title="LCDD: sparsity",
            y_label="closed gates",
            y_range=(0.0, 1.0),
            share=True,
            marks=found.marks,
        ),
        "lambda": line_chart(
            f"{prefix}-lambda",
            [_series(lcdd, "lambda", "λ", "sft-trigger")],
            title="LCDD: the price λ of an open gate",
            y_label="λ",
            log=True,
            marks=found.marks,
        ),
        "eraser": line_chart(
            f"{prefix}-eraser",
            [
                _series(eraser, "loss", "batch loss", "faint"),
                _series(eraser, "match", "activation matching", "sft-trigger-carrier", dashed=True),
                _series(eraser, "kl", "KL to the base", "sft-trigger", dashed=True),
                _series(eraser, "validation", "validation", "routed-trigger"),
            ],
            title="Trigger on the routed model",
            y_label="objective",
            log=True,
        ),
        "controls": line_chart(
            f"{prefix}-controls",
            [_series(history, "kl", look(name).label, look(name).css) for name, history in found.erasers.items()],
            title="Triggers compared: can the base’s distribution be reached?",
            y_label="KL(base ‖ model), nats",
            log=True,
        ),
    }
    if len(found.erasers) < 2:
        del wanted["controls"]
    return {f"{prefix}-{name}": chart for name, chart in wanted.items() if chart is not None}


def _series(history: Columns, key: str, label: str, css: str, dashed: bool = False) -> Series:
    return Series(label, *column(history, key), css, dashed)


def training(run: Mapping[str, Any], figures: Mapping[str, Chart], prefix: str) -> Html | None:
    """The section; ``None`` where no stage left a history."""
    if not figures:
        return None
    return section(
        prefix,
        "training",
        "How it trained",
        html("div", (chart.figure for chart in figures.values()), class_="grid-2"),
        html("p", _budget(run), class_="intro") if _budget(run) else None,
        html("dl", (html("div", html("dt", term), html("dd", text)) for term, text in TERMS.items()), class_="terms"),
        intro="LCDD closes gates while the loss stays within its budget ε. Point at a curve, or use the arrow keys.",
    )


def _budget(run: Mapping[str, Any]) -> str | None:
    budget = run["carrier"].get("budget")
    if not isinstance(budget, Mapping):
        return None
    loss, epsilon = number(budget.get("final_loss")), number(budget.get("epsilon"))
    kept = "was kept" if budget.get("kept") else "was broken: the carrier costs more than it should"
    return f"At the end the loss was {loss}, the budget {epsilon} nats per token: it {kept}."
