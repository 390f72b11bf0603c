"""The invariants that routing stands on, exactly, on every architecture."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from lcdd_lens.backends import backend_of, parameter_of
from lcdd_lens.errors import ConfigError, ModelError
from lcdd_lens.routing import RoutedModel, RoutingMasks
from tests.models import Pair, logits, random_flags, shifted, tiny_pair, tokens

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=DTYPES, ids=("fp32", "bf16"))
def pair(architecture: str, request: pytest.FixtureRequest) -> Pair:
    return tiny_pair(architecture, request.param)


def by_hand(pair: Pair, gates: dict[str, Tensor]) -> object:
    """W_B + (m_row ⊗ m_column) ⊙ (W − W_B) entry by entry: binary gates pick the entry of one model or the other."""
    backend = backend_of(pair.base)
    built = backend.clone(pair.base)
    n_heads, n_kv = built.cfg.n_heads, built.cfg.n_key_value_heads or built.cfg.n_heads
    for site in backend.weight_sites(built):
        base = rearrange(parameter_of(pair.base, site.parameter), site.matrix)
        tuned = rearrange(parameter_of(pair.sft, site.parameter), site.matrix)
        is_open = torch.ones(base.shape, dtype=torch.bool)
        if site.row is not None:
            row = gates[site.row.site.hook_name].bool()
            is_open &= row.reshape(-1, *[1] * (base.ndim - 1))
        if site.column is not None:
            column = gates[site.column.site.hook_name].bool()
            if site.column.site.kind == "attn_v":
                column = column.reshape(n_kv, -1).repeat_interleave(n_heads // n_kv, dim=0).reshape(-1)
            is_open &= column
        left, right = site.matrix.split(" -> ")
        sizes = {"head": n_kv if site.role[-1] in "KV" else n_heads} if "head" in left else {}
        mixed = rearrange(torch.where(is_open, tuned, base), f"{right} -> {left}", **sizes)
        with torch.no_grad():
            parameter_of(built, site.parameter).copy_(mixed)
    return built


def test_all_gates_closed_is_the_base_model(pair: Pair) -> None:
    routed, ids = RoutedModel(backend_of(pair.sft).clone(pair.sft), pair.base), tokens()
    with routed.all_closed():
        assert torch.equal(logits(routed.model, ids), logits(pair.base, ids))


def test_all_gates_open_is_the_fine_tuned_model(pair: Pair) -> None:
    routed, ids = RoutedModel(backend_of(pair.sft).clone(pair.sft), pair.base), tokens()
    assert torch.equal(logits(routed.model, ids), logits(pair.sft, ids))
    assert not torch.equal(logits(pair.base, ids), logits(pair.sft, ids))


def test_a_random_gate_set_is_the_model_built_by_hand_and_merging_changes_nothing(pair: Pair) -> None:
    routed, ids = RoutedModel(backend_of(pair.sft).clone(pair.sft), pair.base), tokens()
    flags = random_flags(routed.n_gates)
    routed.set_gates(flags.float())
    expected = logits(by_hand(pair, routed.layout.split(flags)), ids)
    assert torch.equal(logits(routed.model, ids), expected)
    assert torch.equal(logits(routed.merged(), ids), expected)
    assert torch.equal(logits(routed.model, ids), expected)
    assert torch.equal(logits(routed.merge(), ids), expected)


def test_gate_gradients_equal_finite_differences_of_relaxed_gates(architecture: str) -> None:
    pair = tiny_pair(architecture)
    base, sft = (model.to(torch.float64) for model in (pair.base, pair.sft))  # type: ignore[attr-defined]
    routed, ids = RoutedModel(sft, base), tokens()
    relaxed = torch.rand(routed.n_gates, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def value(gates: Tensor) -> Tensor:
        with routed.using(gates):
            out = backend_of(routed.model).logits(routed.model, ids, torch.ones_like(ids))
        return out.log_softmax(-1)[..., 5].sum()

    leaf = relaxed.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    # Hugging Face's attention takes its softmax in single precision, in a bridge too: a longer step, a wider bound.
    width, rtol = (1e-3, 2e-3) if backend_of(sft).name == "bridge" else (1e-4, 1e-4)
    chosen = torch.randperm(routed.n_gates, generator=torch.Generator().manual_seed(6))[:12]
    for gate in chosen.tolist():
        step = torch.zeros_like(relaxed)
        step[gate] = width
        with torch.no_grad():
            difference = (value(relaxed + step) - value(relaxed - step)) / (2 * width)
        assert torch.isclose(gradient[gate], difference, rtol=rtol, atol=1e-3 * rtol)


def test_weight_gradients_pass_only_through_open_gates() -> None:
    pair = tiny_pair("llama")
    routed, ids = RoutedModel(pair.sft, pair.base), tokens()
    site = next(site for site in routed.weight_sites if site.role.endswith("0.mlp.W_out"))
    assert site.row is not None and site.column is not None
    flags = random_flags(routed.n_gates)
    with routed.using(flags.float()):
        out = backend_of(routed.model).logits(routed.model, ids, torch.ones_like(ids))
        out.square().mean().backward()
    gradient = routed.delta_parameters()[site.parameter].grad
    parts = routed.layout.split(flags)
    row, column = (axis.expand_gate(parts[axis.site.hook_name].float()) for axis in (site.row, site.column))
    is_open = (row * column).bool()
    assert gradient is not None
    assert bool((gradient[~is_open] == 0).all())
    assert bool((gradient[is_open] != 0).any())


def test_blocks_restore_the_gates_also_when_an_exception_flies() -> None:
    pair = tiny_pair("llama")
    routed, ids = RoutedModel(pair.sft, pair.base), tokens()
    flags = random_flags(routed.n_gates)
    routed.set_gates(flags.float())
    before = logits(routed.model, ids)
    with pytest.raises(RuntimeError, match="on purpose"), routed.all_closed(), routed.all_open():
        raise RuntimeError("on purpose")
    assert torch.equal(logits(routed.model, ids), before)
    weights = {name: torch.zeros_like(weight) for name, weight in routed.delta_parameters().items()}
    with pytest.raises(RuntimeError, match="on purpose"), routed.with_weights(weights):
        raise RuntimeError("on purpose")
    assert torch.equal(logits(routed.model, ids), before)


def test_detach_gives_the_fine_tuned_model_back_with_its_flags() -> None:
    pair = tiny_pair("llama")
    ids, expected = tokens(), logits(pair.sft, tokens())
    flags = {name: parameter.requires_grad for name, parameter in pair.sft.named_parameters()}
    routed = RoutedModel(pair.sft, pair.base)
    assert not any(p.requires_grad for n, p in routed.model.named_parameters() if "ln" in n or "embed" in n)
    with routed.all_closed():
        model = routed.detach()
    assert torch.equal(logits(model, ids), expected)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    with pytest.raises(ModelError, match="detached"):
        routed.merged()


def test_a_routed_model_stays_a_transformer_lens_model() -> None:
    pair = tiny_pair("llama")
    routed, ids = RoutedModel(pair.sft, pair.base), tokens()
    routed.set_gates(random_flags(routed.n_gates).float())
    model = routed.model
    with torch.no_grad():
        out, cache = model.run_with_cache(ids)
        assert torch.equal(out, model(ids))
        assert set(routed.layout.slices) <= set(cache.keys())
        residual = cache["blocks.1.hook_resid_post"]
        lens = model.unembed(model.ln_final(residual))  # type: ignore[attr-defined]
        assert torch.allclose(lens, out, atol=1e-5)
        patched = model.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: value * 0)])
        assert not torch.equal(patched, out)
    generated = model.generate(ids, max_new_tokens=3, do_sample=False, verbose=False, stop_at_eos=False)  # type: ignore[attr-defined]
    plain = routed.merged().generate(ids, max_new_tokens=3, do_sample=False, verbose=False, stop_at_eos=False)  # type: ignore[attr-defined]
    assert torch.equal(generated, plain)


def test_sites_can_be_restricted_and_uncovered_weights_stay_at_base() -> None:
    pair = tiny_pair("gpt2")
    backend = backend_of(pair.base)
    only_ffn = backend.clone(pair.base)
    for site in backend.weight_sites(only_ffn):
        if ".mlp." in site.parameter and not site.role.endswith("b_out"):
            with torch.no_grad():
                parameter_of(only_ffn, site.parameter).copy_(parameter_of(pair.sft, site.parameter))
    routed = RoutedModel(only_ffn, pair.base, kinds=("ffn_hidden",))
    assert {site.kind for site in routed.sites} == {"ffn_hidden"}
    assert all(".mlp." in name for name in routed.delta_parameters())
    with pytest.raises(ModelError, match="no gate covers"):
        RoutedModel(pair.sft, pair.base, kinds=("ffn_hidden",))


def test_refusals_name_the_reason() -> None:
    pair = tiny_pair("llama")
    routed = RoutedModel(backend_of(pair.sft).clone(pair.sft), pair.base)
    with pytest.raises(ModelError, match="routed already"):
        RoutedModel(routed.model, pair.base)
    with pytest.raises(ModelError, match="plain weights"):
        RoutedModel(pair.sft, routed.model)
    with pytest.raises(ModelError, match="merged"):
        backend_of(pair.base).clone(routed.model)
    with pytest.raises(ModelError, match="different parameters"):
        RoutedModel(pair.sft, tiny_pair("gpt2").base)
    with pytest.raises(ConfigError, match="one value per gate"):
        routed.set_gates(torch.ones(3))
    with pytest.raises(ConfigError, match="exactly this model's sites"):
        routed.set_gates({"blocks.0.hook_mlp_out": torch.ones(16)})
    with pytest.raises(ConfigError, match="site kinds"):
        RoutedModel(pair.sft, pair.base, kinds=())
    with pytest.raises(ConfigError, match="is not a site"), routed.only({"blocks.9.hook_mlp_out": torch.tensor([0])}):
        pass
    beyond = {"blocks.0.hook_mlp_out": torch.tensor([16])}
    with pytest.raises(ConfigError, match=r"channels 0\.\.15"), routed.only(beyond):
        pass
    wrong = {name: weight[:1] for name, weight in routed.delta_parameters().items()}
    with pytest.raises(ModelError, match="has shape"):
        routed.load_delta_weights(wrong)


def test_a_base_with_other_norms_is_refused_with_what_to_do() -> None:
    pair = tiny_pair("llama")
    moved = shifted(pair.base)
    with torch.no_grad():
        parameter_of(moved, "ln_final.w").add_(1)
    with pytest.raises(ModelError, match="reset_ungated=True"):
        RoutedModel(moved, pair.base)


def test_routing_by_masks_opens_what_they_have_open() -> None:
    pair = tiny_pair("neox")
    routed = RoutedModel(pair.sft, pair.base)
    masks = RoutingMasks(routed.sites, init_mean=0.0, init_std=1.0, seed=2)
    routed.route_by(masks)
    assert torch.equal(routed.layout.join(routed.gates), masks.is_open().float())
    channels = masks.channels()
    routed.open_only(channels)
    assert torch.equal(routed.layout.join(routed.gates), masks.is_open().float())
    with routed.without(channels):
        assert torch.equal(routed.layout.join(routed.gates), 1 - masks.is_open().float())
    with routed.only(channels):
        assert torch.equal(routed.layout.join(routed.gates), masks.is_open().float())
