"""How attribution methods are named and drawn: families share a hue, members differ by line and marker.

Importing this module costs nothing: no torch, no matplotlib.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MethodLook:
    """How one method is named and drawn.

    Attributes:
        label: short name.
        family: what it looks at.
        meaning: its score in one clause.
        colour: Okabe-Ito hexadecimal colour.
        line: matplotlib line style.
        marker: matplotlib marker.
        css: class name in the HTML report.
    """

    label: str
    family: str
    meaning: str
    colour: str
    line: str
    marker: str
    css: str


CARRIER = "carrier"
FAMILIES = ("carrier", "weights", "activations", "magnitude", "masks", "chance")
_BLACK, _BLUE, _SKY, _GREEN, _ORANGE, _RED, _PINK = (
    "#000000",
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
)
METHOD_LOOKS: Mapping[str, MethodLook] = {
    CARRIER: MethodLook("carrier", "carrier", "the channels that LCDD left open", _ORANGE, "-", "D", "routed"),
    "weight_delta": MethodLook(
        "weight delta", "weights", "gradient × delta at the fine-tuned weights", _SKY, "--", "s", "routed-random"
    ),
    "weight_integrated_gradients": MethodLook(
        "weight IG",
        "weights",
        "gradient × delta, averaged from base to fine-tuned weights",
        _BLUE,
        "-",
        "o",
        "routed-trigger",
    ),
    "attribution_patching": MethodLook(
        "attribution patching",
        "activations",
        "(a^S − a^B)·∂𝓜/∂a, gradient at S",
        _GREEN,
        "-",
        "^",
        "sft-trigger-carrier",
    ),
    "attribution_patching_base": MethodLook(
        "attribution patching, at base",
        "activations",
        "the same, gradient at the base",
        _GREEN,
        ":",
        "v",
        "sft-trigger",
    ),
    "attribution_patching_mean": MethodLook(
        "attribution patching, mean", "activations", "the same, mean of both gradients", _GREEN, "--", "<", "routed"
    ),
    "activation_integrated_gradients": MethodLook(
        "activation IG",
        "activations",
        "one site moved from base to fine-tuned, gradient averaged",
        _BLACK,
        "-.",
        ">",
        "base",
    ),
    "magnitude": MethodLook("‖Δ‖", "magnitude", "size of the weight change", _RED, "-", "P", "sft"),
    "magnitude_relative": MethodLook(
        "‖Δ‖/‖W‖", "magnitude", "relative to the base's weights", _RED, "--", "X", "routed"
    ),
    "magnitude_activation": MethodLook(
        "‖Δ‖ · rms(a)", "magnitude", "weighted by the activation", _RED, ":", "p", "routed-trigger"
    ),
    "magnitude_activation_change": MethodLook(
        "|a^S − a^B|", "magnitude", "size of the activation change", _RED, "-.", "h", "sft-trigger-carrier"
    ),
    "mask_only_ce": MethodLook(
        "mask only, CE",
        "masks",
        "LCDD's gates learnt on frozen weights, behaviour loss",
        _PINK,
        "-",
        "*",
        "sft-trigger",
    ),
    "mask_only_kl": MethodLook(
        "mask only, KL", "masks", "the same, KL to the fine-tuned model", _PINK, "--", "d", "routed-trigger"
    ),
    "mask_only_ce_hard_concrete": MethodLook(
        "mask only, hard concrete", "masks", "stochastic gates, behaviour loss", _PINK, ":", "8", "sft-trigger-carrier"
    ),
    "random_site": MethodLook(
        "random, same sites", "chance", "as many random channels at every site", "#8C8C8C", ":", "x", "base"
    ),
    "random_uniform": MethodLook("random", "chance", "random channels", "#8C8C8C", ":", "x", "base"),
    "random_delta": MethodLook(
        "random, same ‖Δ‖", "chance", "as many random channels in every decile of ‖Δ‖", "#8C8C8C", ":", "x", "base"
    ),
    "none": MethodLook("no channels (KL alone)", "chance", "no activation is matched", "#8C8C8C", "-", ".", "base"),
}


def method_look(name: str) -> MethodLook:
    """How to draw a method; one of the user's own keeps its name."""
    known = METHOD_LOOKS.get(name)
    return known or MethodLook(name.replace("_", " "), "own", "", _BLACK, "-", ".", "other")


def best_of_each_family(curves: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Of every family the method with the largest area on log k, in the families' order."""
    best: dict[str, str] = {}

    def area(name: str) -> float:
        found = curves[name].get("area_log")
        return float(found["value"]) if isinstance(found, Mapping) else float("-inf")

    for name in curves:
        family = method_look(name).family
        if family not in best or area(name) > area(best[family]):
            best[family] = name
    return sorted(best.values(), key=lambda name: ([*FAMILIES, "own"].index(method_look(name).family), name))
