"""The shipped self-checks hold on six architectures, and can fail."""

from collections.abc import Callable

import pytest
import torch

from lcdd_lens.attribution import (
    ActivationIntegratedGradients,
    AttributionPatching,
    Contrast,
    ExactPatching,
    Magnitude,
    WeightDelta,
    WeightIntegratedGradients,
    checks,
    contrasting,
)
from lcdd_lens.attribution.toy import ToyLinear, reply_logit
from lcdd_lens.data import EncodedExample


def test_scores_equal_their_formulas_on_a_linear_model() -> None:
    check = checks.linear_closed_forms(seed=1)
    assert check.passed, check


def test_scores_of_a_model_small_enough_to_do_by_hand() -> None:
    # e = (1, 2); h_B = e·W_in = (1, 2), h_S = (1, 4); r = U[:, 1] = (1, 0); one reply token.
    embedding, unembedding = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    eye = torch.eye(2)
    base = ToyLinear(embedding, eye, torch.tensor([[1.0, 0.0], [3.0, 0.0]]), unembedding)
    sft = ToyLinear(
        embedding, torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([[1.0, 0.0], [5.0, 0.0]]), unembedding
    )
    with contrasting(base, sft, [EncodedExample((0,), (1,))], metric=reply_logit) as contrast:
        # 𝓜_B = 1·1 + 2·3 = 7, 𝓜_S = 1·1 + 4·5 = 21
        assert contrast.base_values().item() == 7 and contrast.sft_values().item() == 21

        def scores(method: object) -> dict[str, list[float]]:
            found = checks.attribute(method, contrast, progress=False)  # type: ignore[arg-type]
            return {name: score.tolist() for name, score in found.scores.items()}

        # (4 − 2)·W_out = 2·5 at S, 2·3 at B
        assert scores(AttributionPatching("sft"))["hook_hidden"] == [0, 10]
        assert scores(AttributionPatching("base"))["hook_hidden"] == [0, 6]
        assert scores(ExactPatching("necessity"))["hook_hidden"] == [0, 10]
        assert scores(ExactPatching("sufficiency"))["hook_write"] == [14, 0]
        # W_in[1,1]: G = e_1·5 = 10, Δ = 1;  W_out[1,0]: G = h_1 = 4, Δ = 2
        assert scores(WeightDelta()) == {"hook_read": [0, 10], "hook_hidden": [0, 18], "hook_write": [8, 0]}
        # half way: G_in = 2·4, G_out = 3; together they make 21 − 7
        assert scores(WeightIntegratedGradients(4)) == {
            "hook_read": [0, 8],
            "hook_hidden": [0, 14],
            "hook_write": [6, 0],
        }
        assert scores(Magnitude())["hook_hidden"] == pytest.approx([0, 5**0.5])


def test_weight_delta_attribution_is_the_gradient_of_the_gates(
    architecture: str, make_contrast: Callable[..., Contrast]
) -> None:
    check = checks.gradient_identity(make_contrast(architecture))
    assert check.passed, check


def test_integrated_gradients_are_complete(architecture: str, make_contrast: Callable[..., Contrast]) -> None:
    one_layer = {"n_layer": 1} if architecture == "gpt2" else {"num_hidden_layers": 1}
    contrast = make_contrast(architecture, n=2, **one_layer)
    for check in (checks.weight_completeness(contrast, 16), checks.activation_completeness(contrast, 12)):
        assert check.passed, check


def test_attribution_patching_agrees_with_exact_patching_on_small_effects(
    architecture: str, make_contrast: Callable[..., Contrast]
) -> None:
    check = checks.patching_agreement(make_contrast(architecture), shrink=0.002, n_channels=48)
    assert check.passed and check.value > 0.9999, check


def test_batched_equals_one_by_one_and_padding_does_not_matter(
    architecture: str, make_contrast: Callable[..., Contrast]
) -> None:
    contrast = make_contrast(architecture)
    for method in (AttributionPatching("mean"), WeightDelta(), Magnitude("activation")):
        for check in (checks.batching(contrast, method, 1e-5), checks.padding(contrast, method, 1e-5)):
            assert check.passed, check


@pytest.mark.parametrize(
    "method",
    [ExactPatching(), ActivationIntegratedGradients(2), WeightIntegratedGradients(2), Magnitude("activation_change")],
    ids=lambda method: method.name,
)
def test_every_method_is_the_same_in_batches_and_alone(method: object, make_contrast: Callable[..., Contrast]) -> None:
    contrast = make_contrast("llama", n=3)
    for check in (checks.batching(contrast, method, 1e-5), checks.padding(contrast, method, 1e-5)):  # type: ignore[arg-type]
        assert check.passed, check


def test_scores_do_not_depend_on_the_scale_of_value_channels(
    architecture: str, make_contrast: Callable[..., Contrast]
) -> None:
    contrast = make_contrast(architecture)
    before = contrast.sft_values()
    for method in (AttributionPatching(), WeightDelta()):
        check = checks.value_rescaling(contrast, method)
        assert check.passed, check
    assert not checks.value_rescaling(contrast, Magnitude()).passed
    assert torch.equal(contrast.sft_values(), before)


def test_a_wrong_score_fails_its_check(contrast: Contrast, monkeypatch: pytest.MonkeyPatch) -> None:
    right = WeightDelta.run

    def without_a_site(self: WeightDelta, contrast: Contrast, progress: bool) -> object:
        found = right(self, contrast, progress)
        found.scores["blocks.0.attn.hook_v"].zero_()
        return found

    monkeypatch.setattr(WeightDelta, "run", without_a_site)
    assert not checks.gradient_identity(contrast).passed


def test_run_checks_covers_everything_at_once(make_contrast: Callable[..., Contrast]) -> None:
    found = checks.run_checks(make_contrast("gpt2", n=2, n_layer=1))
    assert all(check.passed for check in found), [str(check) for check in found if not check.passed]
    assert {"linear_closed_forms", "gradient_identity", "weight_completeness"} <= {check.name for check in found}
