"""Sites and weight sites say truly where channels are: sizes, layouts and effects, on every architecture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from lcdd_lens.backends import (
    BACKENDS,
    SITE_KINDS,
    GateAxis,
    LensModel,
    WeightSite,
    backend_of,
    load_model,
    parameter_of,
)
from lcdd_lens.backends.base import sites_by_hook
from lcdd_lens.compatibility import has_hooked_transformer
from lcdd_lens.errors import ModelError

MakeHF = Callable[..., PreTrainedModel]
BIASED: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}),
    ("neox", {}),
    ("neox", {"attention_bias": False}),
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 4}),
    ("mistral", {}),
    ("qwen3", {"attention_bias": True}),
    ("gemma2", {}),
]


AVAILABLE = BACKENDS if has_hooked_transformer() else ("bridge",)
needs_hooked = pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")


@pytest.fixture(params=AVAILABLE)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=BIASED, ids=lambda part: "-".join((part[0], *part[1])))
def model(request: pytest.FixtureRequest, make_hf: MakeHF, backend: str) -> LensModel:
    architecture, overrides = request.param
    return load_model(make_hf(architecture, **overrides), backend=backend)


def weight_sites(model: LensModel) -> tuple[WeightSite, ...]:
    return backend_of(model).weight_sites(model)


def axes_of(model: LensModel) -> list[tuple[Tensor, GateAxis]]:
    return [(parameter_of(model, site.parameter), axis) for site in weight_sites(model) for axis in site.axes]


def test_every_weight_and_real_bias_is_gated_and_nothing_else(model: LensModel) -> None:
    gated = [site.parameter for site in weight_sites(model)]
    assert len(gated) == len(set(gated))
    ungated = {"embed", "unembed", "pos_embed", "ln1", "ln2", "ln1_post", "ln2_post", "ln_final", "q_norm", "k_norm"}
    expected = {
        name
        for name, _ in model.named_parameters()
        if name not in model.origin.absent  # type: ignore[attr-defined]
        and name.replace("._original_component", "").split(".")[-2] not in ungated
    }
    assert set(gated) == expected


def test_weights_have_rows_and_columns_and_biases_rows_only(model: LensModel) -> None:
    for site in weight_sites(model):
        is_bias = site.role.rpartition(".")[2].startswith("b_")
        assert site.row is not None
        assert (site.column is None) is is_bias


def test_there_are_eight_sites_in_each_layer_in_order(model: LensModel) -> None:
    sites = backend_of(model).sites(model)
    assert [(site.layer, site.kind) for site in sites] == [(layer, kind) for layer in (0, 1) for kind in SITE_KINDS]
    assert sites_by_hook(sites).keys() == {site.hook_name for site in sites}
    assert [site.kind for site in sites if site.is_residual_write and site.layer == 0] == ["attn_write", "ffn_write"]


def test_channels_are_the_flattened_last_axes_of_the_hook(model: LensModel, tokens: Tensor) -> None:
    names = {site.hook_name for site in backend_of(model).sites(model)}
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in names)
    for site in backend_of(model).sites(model):
        assert cache[site.hook_name].flatten(2).shape[-1] == site.n_channels


def test_expanding_and_summing_are_adjoint(model: LensModel) -> None:
    generator = torch.Generator().manual_seed(2)
    for parameter, axis in axes_of(model):
        gate = torch.randn(axis.site.n_channels, generator=generator, dtype=torch.float64)
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        expanded = axis.expand_gate(gate).broadcast_to(parameter.shape)
        torch.testing.assert_close((expanded * values).sum(), (gate * axis.sum_to_channels(values)).sum())


def test_every_entry_belongs_to_one_channel_of_each_axis(model: LensModel) -> None:
    for parameter, axis in axes_of(model):
        entries = axis.sum_to_channels(torch.ones(parameter.shape))
        assert torch.all(entries == entries[0])
        assert float(entries.sum()) == parameter.numel()


def test_matrices_have_the_row_channels_first(model: LensModel) -> None:
    generator = torch.Generator().manual_seed(4)
    for site in weight_sites(model):
        values = torch.randn(parameter_of(model, site.parameter).shape, generator=generator)
        matrix = rearrange(values, site.matrix)
        assert site.row is not None
        torch.testing.assert_close(
            matrix.flatten(1).sum(1) if matrix.ndim > 1 else matrix, site.row.sum_to_channels(values)
        )


def closed(model: LensModel, which: Callable[[WeightSite], GateAxis | None], hook_name: str, channel: int) -> None:
    """Zero the part of every weight that belongs to one channel of one site."""
    with torch.no_grad():
        for site in weight_sites(model):
            axis = which(site)
            if axis is not None and axis.site.hook_name == hook_name:
                keep = torch.ones(axis.site.n_channels)
                keep[channel] = 0
                parameter_of(model, site.parameter).mul_(axis.expand_gate(keep))


@pytest.mark.parametrize("kind", ["attn_q", "attn_k", "attn_v", "ffn_hidden"])
def test_zeroed_rows_silence_the_hook_channel_and_no_other(kind: str, model: LensModel, tokens: Tensor) -> None:
    site = next(site for site in backend_of(model).sites(model) if site.kind == kind and site.layer == 1)
    channel = site.n_channels - 2
    with torch.no_grad():
        before = model.run_with_cache(tokens, names_filter=site.hook_name)[1][site.hook_name].flatten(2)
    closed(model, lambda weight_site: weight_site.row, site.hook_name, channel)
    with torch.no_grad():
        after = model.run_with_cache(tokens, names_filter=site.hook_name)[1][site.hook_name].flatten(2)
    others = [index for index in range(site.n_channels) if index != channel]
    assert not torch.any(after[..., channel])
    assert torch.all(before[..., channel].abs().amax() > 0)
    torch.testing.assert_close(after[..., others], before[..., others])


@pytest.mark.parametrize("kind", ["attn_write", "ffn_write"])
def test_zeroed_rows_silence_a_residual_write(kind: str, model: LensModel, tokens: Tensor) -> None:
    # Where a norm follows the branch the write channel is named before it; a zero stays a zero through an RMS norm.
    site = next(site for site in backend_of(model).sites(model) if site.kind == kind and site.layer == 0)
    closed(model, lambda weight_site: weight_site.row, site.hook_name, 3)
    with torch.no_grad():
        written = model.run_with_cache(tokens, names_filter=site.hook_name)[1][site.hook_name]
    assert not torch.any(written[..., 3])
    assert torch.all(written[..., :3].abs().amax((0, 1)) > 0)


@pytest.mark.parametrize("kind", ["attn_read", "attn_v", "ffn_read", "ffn_hidden"])
def test_zeroed_columns_make_the_channel_unread(kind: str, model: LensModel, tokens: Tensor) -> None:
    sites = [site for site in backend_of(model).sites(model) if site.layer == 1]
    site = next(site for site in sites if site.kind == kind)
    channel = 2
    # A channel of normalised activations passes the norm's bias on to the reader, which an ablation cannot remove.
    for name in ("ln1", "ln2"):
        if (bias := getattr(model.get_submodule(f"blocks.1.{name}"), "b", None)) is not None:
            bias.data[channel] = 0
    closed(model, lambda weight_site: weight_site.column, site.hook_name, channel)

    def disturb(values: Tensor, hook: Any) -> Tensor:
        disturbed = values.clone()
        disturbed.flatten(2)[..., channel] += 7.0
        return disturbed

    with torch.no_grad():
        plain = model.run_with_hooks(tokens)
        disturbed = model.run_with_hooks(tokens, fwd_hooks=[(site.hook_name, disturb)])
    torch.testing.assert_close(disturbed, plain, atol=1e-5, rtol=0)


def test_a_clone_is_independent_and_keeps_flags_and_tokenizer(
    model: LensModel, tokens: Tensor, make_tokenizer: Callable[..., Any]
) -> None:
    model.tokenizer = make_tokenizer()
    twin = backend_of(model).clone(model)
    assert twin.tokenizer is model.tokenizer
    pairs = list(zip(model.named_parameters(), twin.named_parameters(), strict=True))
    assert all(torch.equal(a, b) and a.requires_grad == b.requires_grad for (_, a), (_, b) in pairs)
    assert weight_sites(twin) == weight_sites(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(torch.any(parameter_of(model, site.parameter)) for site in weight_sites(model) if ".W_" in site.role)


def test_a_parametrized_model_has_the_same_weight_sites_and_no_clone(model: LensModel) -> None:
    plain = weight_sites(model)
    owner, _, leaf = plain[-1].parameter.rpartition(".")
    parametrize.register_parametrization(model.get_submodule(owner), leaf, nn.Identity())
    assert weight_sites(model) == plain
    with pytest.raises(ModelError, match=r"RoutedModel\.merged\(\)"):
        backend_of(model).clone(model)


@needs_hooked
def test_models_of_unknown_origin_gate_every_bias_that_is_not_a_frozen_zero() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = {"d_model": 8, "d_head": 4, "n_layers": 1, "n_ctx": 9, "d_vocab": 5, "act_fn": "relu", "device": "cpu"}
    model = HookedTransformer(HookedTransformerConfig(**cfg))
    model.get_parameter("blocks.0.attn.b_Q").requires_grad_(False)
    model.get_parameter("blocks.0.attn.b_O").requires_grad_(False).fill_(0.5)
    gated = {site.parameter for site in weight_sites(model)}
    assert "blocks.0.attn.b_Q" not in gated
    assert {"blocks.0.attn.b_O", "blocks.0.attn.b_K", "blocks.0.mlp.b_in"} <= gated


@needs_hooked
def test_attention_only_models_are_refused() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(d_model=8, d_head=4, n_layers=1, n_ctx=9, d_vocab=5, attn_only=True, device="cpu")
    with pytest.raises(ModelError, match="no MLP sites"):
        weight_sites(HookedTransformer(cfg))


@needs_hooked
def test_other_models_have_no_backend() -> None:
    from transformer_lens import HookedEncoder, HookedTransformerConfig

    encoder = HookedEncoder(
        HookedTransformerConfig(d_model=8, d_head=4, n_layers=1, n_ctx=9, d_vocab=5, act_fn="gelu", device="cpu")
    )
    with pytest.raises(ModelError, match=r"HookedEncoder is not .*Load it with lcdd_lens\.load_model"):
        backend_of(encoder)
