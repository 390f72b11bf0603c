"""Self-checks: what must hold for the scores to be believed, as functions that run on your own models and prompts.

    linear_closed_forms      every method equals its formula on a linear model worked out by hand
    gradient_identity        weight-delta attribution = the gates' gradient ∂𝓜/∂m at m = 1
    weight_completeness      integrated gradients on weights sum to 𝓜(S) − 𝓜(B)
    activation_completeness  integrated gradients at a site sum to what moving the whole site does
    patching_agreement       attribution patching correlates with exact patching where effects are small
    batching                 a batch gives what one prompt at a time gives
    padding                  left and right padding give the same
    value_rescaling          rescaling value channels, undone in W_O, leaves attribution scores as they were

All compare scores under one sign convention: positive = moving the channel from base to fine-tuned raises 𝓜.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lcdd_lens.attribution.activation_integrated_gradients import ActivationIntegratedGradients
from lcdd_lens.attribution.attribution_patching import AttributionPatching
from lcdd_lens.attribution.contrast import Contrast, contrasting, gates_at
from lcdd_lens.attribution.exact_patching import ExactPatching, select_channels
from lcdd_lens.attribution.magnitude import Magnitude
from lcdd_lens.attribution.registry import Method, attribute
from lcdd_lens.attribution.toy import ToyLinear, reply_logit, toy_pair
from lcdd_lens.attribution.weight_delta import WeightDelta
from lcdd_lens.attribution.weight_integrated_gradients import WeightIntegratedGradients
from lcdd_lens.data.tokens import EncodedExample
from lcdd_lens.routing.routed import RoutedModel


@dataclass(frozen=True)
class Check:
    """One self-check: ``value`` is an error that must stay below ``bound`` (a correlation that must reach it)."""

    name: str
    passed: bool
    value: float
    bound: float
    claim: str

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        return f"{verdict:6} {self.name}: {self.claim} ({self.value:.2e}, bound {self.bound:g})"


def run_checks(contrast: Contrast) -> list[Check]:
    """Every check that ships, on a contrast of your own (a handful of prompts is enough)."""
    cheap: tuple[Method, ...] = (AttributionPatching(), WeightDelta(), Magnitude("activation_change"))
    return [
        linear_closed_forms(),
        gradient_identity(contrast),
        weight_completeness(contrast),
        activation_completeness(contrast),
        patching_agreement(contrast),
        *(batching(contrast, method) for method in cheap),
        *(padding(contrast, method) for method in cheap),
        *(value_rescaling(contrast, method) for method in (AttributionPatching(), WeightDelta())),
    ]


def linear_closed_forms(seed: int = 0, bound: float = 1e-6) -> Check:
    """Scores of every deterministic method on the toy model against formulas that use no autograd."""
    base, sft = toy_pair(seed)
    rows = (EncodedExample((1, 2, 3), (4, 5)), EncodedExample((6,), (0, 2, 2)), EncodedExample((3, 3), (1,)))
    gaps = []
    with contrasting(base, sft, rows, metric=reply_logit, batch_size=2) as contrast:
        for method, expected in _toy_scores(base, sft.W_in.detach(), sft.W_out.detach(), contrast):
            found = attribute(method, contrast, progress=False).scores
            gaps += [float((found[name] - score).abs().max()) for name, score in expected.items()]
    return _below("linear_closed_forms", max(gaps), bound, "scores equal their formulas on a linear model")


def _toy_scores(
    base: ToyLinear, w_in: Tensor, w_out: Tensor, contrast: Contrast
) -> list[tuple[Method, dict[str, Tensor]]]:
    """Formulas, written out per matrix; Σ and mean over prompts and reply tokens as plain sums."""
    embedding, unembedding = base.W_E.detach(), base.W_U.detach()
    b_in, b_out = base.W_in.detach(), base.W_out.detach()
    # Each reply token contributes its predecessor's embedding e and the direction r = U[:, token], with one weight.
    terms = []
    for row in contrast.rows:
        ids = row.prompt_ids + row.response_ids
        share = 1 / (len(row.response_ids) * contrast.n_prompts)
        terms += [(embedding[ids[t - 1]], unembedding[:, ids[t]], share) for t in range(len(row.prompt_ids), len(ids))]

    def summed(function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.stack([share * function(e, r) for e, r, share in terms]).sum(0)

    def patching(out: Tensor) -> dict[str, Tensor]:
        return {
            "hook_read": torch.zeros(len(b_in), dtype=torch.float64),
            "hook_hidden": summed(lambda e, r: (e @ w_in - e @ b_in) * (out @ r)),
            "hook_write": summed(lambda e, r: (e @ w_in @ w_out - e @ b_in @ b_out) * r),
        }

    def weights(mid_in: Tensor, mid_out: Tensor) -> dict[str, Tensor]:
        by_in = summed(lambda e, r: torch.outer(e, mid_out @ r)) * (w_in - b_in)
        by_out = summed(lambda e, r: torch.outer(e @ mid_in, r)) * (w_out - b_out)
        return {"hook_read": by_in.sum(1), "hook_hidden": by_in.sum(0) + by_out.sum(1), "hook_write": by_out.sum(0)}

    d_in, d_out = (w_in - b_in).square(), (w_out - b_out).square()
    norms = {"hook_read": d_in.sum(1), "hook_hidden": d_in.sum(0) + d_out.sum(1), "hook_write": d_out.sum(0)}
    at_sft, at_base = patching(w_out), patching(b_out)
    mean = {name: (at_sft[name] + at_base[name]) / 2 for name in at_sft}
    return [
        (AttributionPatching("sft"), at_sft),
        (AttributionPatching("base"), at_base),
        (AttributionPatching("mean"), mean),
        (ActivationIntegratedGradients(steps=3), at_sft),
        (ActivationIntegratedGradients(steps=3, host="base"), at_base),
        (ExactPatching("necessity"), at_sft),
        (ExactPatching("sufficiency"), at_base),
        (WeightDelta(), weights(w_in, w_out)),
        (WeightIntegratedGradients(steps=3), weights((w_in + b_in) / 2, (w_out + b_out) / 2)),
        (Magnitude(), {name: square.sqrt() for name, square in norms.items()}),
    ]


def gradient_identity(contrast: Contrast, bound: float = 1e-4) -> Check:
    """Weight-delta attribution against autograd through the gates, at all gates open."""
    routed = contrast.routed
    gates = gates_at(routed, 1.0, requires_grad=True)
    expected = torch.zeros_like(gates)
    for batch in contrast.batches():
        with routed.using(gates):
            value = contrast.metric_of(batch.tokens).sum() / contrast.n_prompts
        expected += torch.autograd.grad(value, gates)[0]
    found = attribute(WeightDelta(), contrast, progress=False).flat()
    gap = _relative(found, expected.double().cpu())
    return _below("gradient_identity", gap, bound, "weight-delta attribution is the gates' gradient at all open")


def weight_completeness(contrast: Contrast, steps: int = 64, bound: float = 0.02) -> Check:
    """Σ G·Δ over all weights against 𝓜(S) − 𝓜(B)."""
    details = attribute(WeightIntegratedGradients(steps), contrast, progress=False).details
    gap = abs(details["gap"]) / max(abs(details["change"]), 1e-6)
    return _below("weight_completeness", gap, bound, f"{steps} steps on weights sum to 𝓜(S) − 𝓜(B)")


def activation_completeness(contrast: Contrast, steps: int = 16, bound: float = 0.02) -> Check:
    """Σ over a site's channels against what moving the whole site does; the worst prompt and site."""
    details = attribute(ActivationIntegratedGradients(steps), contrast, progress=False).details
    scale = max([abs(change) for change in details["change"].values()] + [1e-6])
    gap = details["largest_gap"] / scale
    return _below("activation_completeness", gap, bound, f"{steps} steps at a site sum to what moving the site does")


def patching_agreement(contrast: Contrast, *, shrink: float = 0.05, n_channels: int = 64, bound: float = 0.99) -> Check:
    """Correlation of attribution patching with exact patching when the fine-tuning delta is shrunk to a small one."""
    routed = contrast.routed
    base = routed.base_weights()
    nearer = {name: torch.lerp(base[name], w.detach(), shrink) for name, w in routed.delta_parameters().items()}
    with routed.with_weights(nearer):
        estimated = attribute(AttributionPatching(), contrast, progress=False)
        chosen = select_channels(estimated, min(n_channels, estimated.n_gates), 0)
        exact = attribute(ExactPatching("necessity", chosen), contrast, progress=False)
    both = exact.is_scored()
    pairs = torch.stack([estimated.flat()[both], exact.flat()[both]])
    correlation = float(torch.corrcoef(pairs)[0, 1])
    claim = (
        f"attribution patching agrees with exact patching on small effects (correlation, {int(both.sum())} channels)"
    )
    return Check("patching_agreement", correlation >= bound, correlation, bound, claim)


def batching(contrast: Contrast, method: Method, bound: float = 1e-4) -> Check:
    """All prompts in one batch against one prompt at a time."""
    together = attribute(method, replace(contrast, batch_size=contrast.n_prompts), progress=False).flat()
    alone = attribute(method, replace(contrast, batch_size=1), progress=False).flat()
    return _below(f"batching[{method.name}]", _relative(together, alone), bound, "batched equals one by one")


def padding(contrast: Contrast, method: Method, bound: float = 1e-4) -> Check:
    """Short rows padded on the left against padded on the right."""
    sides = [replace(contrast, side=side, batch_size=contrast.n_prompts) for side in ("left", "right")]
    left, right = (attribute(method, side, progress=False).flat() for side in sides)
    return _below(f"padding[{method.name}]", _relative(left, right), bound, "the side of the padding does not matter")


def value_rescaling(contrast: Contrast, method: Method, bound: float = 1e-4) -> Check:
    """Value channels times powers of two, undone in the columns of W_O, in both models: neither function changes."""
    before = attribute(method, contrast, progress=False).flat()
    with _rescaled_values(contrast.routed):
        after = attribute(method, contrast, progress=False).flat()
    claim = "scores do not depend on the scale of value channels"
    return _below(f"value_rescaling[{method.name}]", _relative(after, before), bound, claim)


@contextlib.contextmanager
def _rescaled_values(routed: RoutedModel) -> Iterator[None]:
    scales = {
        site.hook_name: 2.0 ** (torch.arange(site.n_channels) % 4 - 1) for site in routed.sites if site.kind == "attn_v"
    }

    def rescale(power: int) -> None:
        base, weights = routed.base_weights(), routed.delta_parameters()
        with torch.no_grad():
            for weight_site in routed.weight_sites:
                for axis, sign in ((weight_site.row, power), (weight_site.column, -power)):
                    if axis is not None and axis.site.hook_name in scales:
                        factor = axis.expand_gate(scales[axis.site.hook_name] ** sign)
                        for stored in (base[weight_site.parameter], weights[weight_site.parameter]):
                            stored.mul_(factor.to(stored))

    rescale(1)
    try:
        yield
    finally:
        rescale(-1)


def _relative(found: Float[Tensor, " gate"], expected: Float[Tensor, " gate"]) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _below(name: str, value: float, bound: float, claim: str) -> Check:
    return Check(name, value <= bound, value, bound, claim)
