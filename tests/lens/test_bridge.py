"""On a TransformerBridge the analyses hold to the same closed forms, with its own hooks and norms."""

import torch

from lcdd_lens.lens import distance_to_base, logit_attribution, logit_lens
from tests.lens.conftest import MakeSide


def test_the_closed_forms_hold_on_a_bridge(architecture: str, make_side: MakeSide) -> None:
    side = make_side(architecture, "after_bos", backend="bridge")
    assert float(distance_to_base(side).relative_l2["closed"].abs().max()) == 0
    lens, attribution = logit_lens(side), logit_attribution(side)
    capped = (getattr(side.condition("base").model.cfg, "output_logits_soft_cap", 0) or 0) > 0
    for name in side.names:
        logits = side.next_logits(name)
        assert torch.equal(lens.top[name][-1], logits.argmax(-1))
        assert torch.allclose(attribution.constant[name], attribution.constant["base"], atol=1e-3)
        if not capped:
            expected = side.logit_difference(logits)
            assert torch.allclose(attribution.logit_difference[name], expected, atol=1e-4)
