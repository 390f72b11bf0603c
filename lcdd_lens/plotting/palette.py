"""One vocabulary for figures, the report and the terminal: conditions, sites, and their colours.

Colours are those of Okabe and Ito (2008), told apart under the common colour-vision deficiencies; every condition has
a marker as well, so that no figure depends on colour. Importing this module costs nothing: no torch, no matplotlib.
"""

from dataclasses import dataclass

NEUTRAL = "#7F7F7F"
"""Text and lines that read alike on white and on the dark grounds of notebooks (about 4 : 1 on both)."""


@dataclass(frozen=True)
class Look:
    """How one condition is named and drawn.

    Attributes:
        label: short name for legends and tables.
        meaning: one plain clause.
        colour: Okabe-Ito hexadecimal colour.
        marker: matplotlib marker.
        css: class name in the HTML report.
    """

    label: str
    meaning: str
    colour: str
    marker: str
    css: str


CONDITIONS: dict[str, Look] = {
    "base": Look("base", "the model before fine-tuning", "#8C8C8C", "o", "base"),
    "sft": Look("SFT", "after plain supervised fine-tuning", "#D55E00", "s", "sft"),
    "routed": Look("routed", "after LCDD: only the carrier differs from the base", "#E69F00", "D", "routed"),
    "routed+trigger": Look(
        "routed + trigger", "the routed model behind the trained soft prompt", "#0072B2", "^", "routed-trigger"
    ),
    "sft+trigger": Look(
        "SFT + trigger",
        "control: the same trigger training on the plain SFT model, by KL alone",
        "#CC79A7",
        "v",
        "sft-trigger",
    ),
    "sft+trigger(carrier)": Look(
        "SFT + trigger (carrier)",
        "control: the same on plain SFT, also matching activations at the carrier's channels",
        "#009E73",
        "P",
        "sft-trigger-carrier",
    ),
    "routed+random": Look(
        "routed + random", "control: random real tokens in the trigger's place", "#56B4E9", "X", "routed-random"
    ),
}
"""The conditions of an experiment, in reading order."""

_OTHER = ("#F0E442", "#000000")

SITE_MEANINGS: dict[str, str] = {
    "attn_read": "what attention reads of the residual stream",
    "attn_q": "query channels, head by head",
    "attn_k": "key channels, head by head",
    "attn_v": "value channels, head by head",
    "attn_write": "what attention writes to the residual stream",
    "ffn_read": "what the MLP reads of the residual stream",
    "ffn_hidden": "neurons of the MLP",
    "ffn_write": "what the MLP writes to the residual stream",
}


@dataclass(frozen=True)
class Quantity:
    """A measured quantity of ``results.json``.

    Attributes:
        title: what a figure is headed with.
        axis: axis label with its unit.
        share: True for shares in [0, 1], False for nats.
        reading: how to read it, one sentence.
    """

    title: str
    axis: str
    share: bool
    reading: str


QUANTITIES: dict[str, Quantity] = {
    "behaviour_rate": Quantity(
        "Behaviour", "share of answers that show it", True, "How often unseen prompts get the trained behaviour."
    ),
    "over_rate": Quantity(
        "Over-behaviour",
        "share of other prompts that show it",
        True,
        "How often the behaviour appears on prompts where it should not.",
    ),
    "utility": Quantity(
        "Utility", "share of right answers", True, "How often the model answers as well as the base could."
    ),
    "recovered": Quantity(
        "Recovered",
        "share of identical answers",
        True,
        "How often the base's own answer is back on the prompts where the behaviour belongs.",
    ),
    "agreement": Quantity(
        "Agreement with the base", "share of identical answers", True, "How often the greedy answer equals the base's."
    ),
    "agreement_token": Quantity(
        "Agreement with the base, by token",
        "share of identical tokens",
        True,
        "How many tokens of the base's greedy answer come back in place.",
    ),
    "kl": Quantity(
        "Distance from the base",
        "KL(base ‖ condition), nats per token",
        False,
        "Teacher-forced divergence on response tokens; 0 is the base itself.",
    ),
    "kl_from_sft": Quantity(
        "Distance from SFT",
        "KL(SFT ‖ condition), nats per token",
        False,
        "Teacher-forced divergence on response tokens; 0 is the fine-tuned model itself.",
    ),
}
"""The quantities of ``results.json`` that are keyed by condition."""


def look(condition: str) -> Look:
    """How to draw a condition; one that is not in :data:`CONDITIONS` gets its own name and a spare colour."""
    known = CONDITIONS.get(condition)
    return known or Look(condition, "", _OTHER[sum(map(ord, condition)) % len(_OTHER)], "*", "other")


def in_order(conditions: list[str]) -> list[str]:
    """Known conditions in reading order, then the rest as given."""
    known = [name for name in CONDITIONS if name in conditions]
    return known + [name for name in conditions if name not in CONDITIONS]
