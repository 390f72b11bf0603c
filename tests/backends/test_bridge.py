"""The two backends behave as one: same weights, gates and tokens give the same numbers on every architecture."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lcdd_lens.attribution import AttributionPatching, Contrast, WeightDelta, attribute
from lcdd_lens.attribution.activations import site_activations
from lcdd_lens.backends import (
    LensModel,
    backend_of,
    export_hf,
    load_model,
    load_pair,
    parameter_of,
    weights_fingerprint,
)
from lcdd_lens.backends.lens_bridge import LensBridge
from lcdd_lens.backends.loading import resolved_backend
from lcdd_lens.carrier import Carrier
from lcdd_lens.compatibility import has_hooked_transformer
from lcdd_lens.data import EncodedExample
from lcdd_lens.data.tokens import collate
from lcdd_lens.eraser import SoftPrompt, Trigger, random_token_trigger
from lcdd_lens.eraser.rows import make_rows, observe
from lcdd_lens.errors import ModelError
from lcdd_lens.generation import generate, pad_left
from lcdd_lens.routing import RoutedModel, RoutingMasks
from tests.conftest import tiny_hf
from tests.models import logits, random_flags, tokens

needs_hooked = pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
PROMPTS = [[1, 5, 9, 4, 33], [1, 7], [1, 60, 12, 8], [1, 3, 4, 5, 6, 7, 8]]
ROWS = (EncodedExample((1, 5, 9, 4), (33, 8)), EncodedExample((1, 7), (12,)), EncodedExample((1, 60, 12, 8), (5, 4, 3)))


def fine_tuned(base: PreTrainedModel) -> PreTrainedModel:
    """A copy whose weights differ in everything that gates cover, and in nothing else."""
    sft = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sft.named_parameters():
            if not any(part in name for part in ("ln_", "norm", "wte", "wpe", "embed", "lm_head")):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return sft


@dataclass(frozen=True)
class Pair:
    base: LensModel
    sft: LensModel

    def routed(self) -> RoutedModel:
        return RoutedModel(backend_of(self.sft).clone(self.sft), self.base)


MakePair = Callable[[str], Pair]


@pytest.fixture
def make(architecture: str) -> MakePair:
    hf = tiny_hf(architecture)
    sft = fine_tuned(hf)

    def load(backend: str) -> Pair:
        pair = load_pair(hf, sft, backend=backend)
        return Pair(pair.base, pair.sft)

    return load


@pytest.fixture
def bridge(make: MakePair) -> Pair:
    return make("bridge")


# -- parity


@needs_hooked
def test_the_same_gates_give_the_same_logits_and_gate_gradients(make: MakePair) -> None:
    ids, mask = pad_left(PROMPTS)
    found = {}
    for backend in ("hooked", "bridge"):
        routed = make(backend).routed()
        gates = torch.rand(routed.n_gates, generator=torch.Generator().manual_seed(3)).requires_grad_()
        with routed.using(gates):
            out = backend_of(routed.model).logits(routed.model, ids, mask)[mask.bool()]
        (slope,) = torch.autograd.grad(out.log_softmax(-1)[:, 5].mean(), gates)
        found[backend] = (out.detach(), slope, routed.sites, weights_fingerprint(routed.model))
    hooked, bridge = found["hooked"], found["bridge"]
    assert hooked[2] == bridge[2]
    assert hooked[3] == bridge[3]
    torch.testing.assert_close(bridge[0], hooked[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(bridge[1], hooked[1], atol=1e-5, rtol=0)
    assert float(hooked[1].abs().max()) > 1e-3


@needs_hooked
def test_activations_and_attribution_scores_are_the_same(make: MakePair) -> None:
    found = {}
    for backend in ("hooked", "bridge"):
        contrast = Contrast(make(backend).routed(), ROWS, batch_size=2)
        batch = collate(ROWS, 0)
        real = batch.attention_mask.bool()
        seen = {name: a[real] for name, a in site_activations(contrast, batch, contrast.routed.sites).items()}
        scores = [
            attribute(method, contrast, progress=False).scores for method in (AttributionPatching(), WeightDelta())
        ]
        found[backend] = (seen, *scores)
    for hooked, bridge in zip(found["hooked"], found["bridge"], strict=True):
        assert hooked.keys() == bridge.keys()
        for name, values in hooked.items():
            torch.testing.assert_close(bridge[name], values, atol=1e-5, rtol=1e-4)


@needs_hooked
@pytest.mark.parametrize(("made_on", "used_on"), [("hooked", "bridge"), ("bridge", "hooked")])
def test_a_carrier_and_a_trigger_made_on_one_backend_work_on_the_other(
    made_on: str, used_on: str, make: MakePair, tmp_path: Path
) -> None:
    maker, user = make(made_on), make(used_on)
    source = maker.routed()
    masks = RoutingMasks(source.sites)
    with torch.no_grad():
        masks.logits.copy_(random_flags(source.n_gates).float() - 0.5)
    Carrier.from_masks(masks, maker.base).save(tmp_path / "carrier")
    trigger = Trigger.from_soft_prompt(SoftPrompt(torch.randn(2, 16), "after_bos"), maker.base)
    trigger.save(tmp_path / "trigger")

    carrier = Carrier.load(tmp_path / "carrier", user.base)
    loaded = Trigger.load(tmp_path / "trigger", user.base)
    target = user.routed()
    for routed in (source, target):
        routed.open_only(carrier.channels)
    answers = [
        generate(routed.model, PROMPTS, max_new_tokens=6, trigger=each)
        for routed, each in ((source, trigger), (target, loaded))
    ]
    assert answers[0] == answers[1]


@needs_hooked
def test_a_pair_cannot_be_half_on_each_backend(make: MakePair) -> None:
    with pytest.raises(ModelError, match="base is on the hooked backend and the SFT model on bridge"):
        load_pair(make("hooked").base, make("bridge").sft)


# -- a bridge on its own


def test_a_bridge_computes_what_the_hugging_face_model_computes_and_leaves_it_alone(architecture: str) -> None:
    hf, ids = tiny_hf(architecture), tokens()
    before = {name for name, _ in hf.named_modules()}
    model = load_model(hf, backend="bridge")
    assert {name for name, _ in hf.named_modules()} == before
    with torch.no_grad():
        torch.testing.assert_close(logits(model, ids), hf(ids).logits, atol=1e-5, rtol=0)


def test_gates_are_exact_at_both_ends_and_merging_changes_nothing(bridge: Pair) -> None:
    routed, ids = bridge.routed(), tokens()
    assert torch.equal(logits(routed.model, ids), logits(bridge.sft, ids))
    with routed.all_closed():
        assert torch.equal(logits(routed.model, ids), logits(bridge.base, ids))
    routed.set_gates(random_flags(routed.n_gates).float())
    gated = logits(routed.model, ids)
    assert not torch.equal(gated, logits(bridge.sft, ids))
    assert torch.equal(logits(routed.merged(), ids), gated)
    assert torch.equal(logits(routed.merge(), ids), gated)


def test_every_parameter_is_named_once_and_read_by_the_forward_pass(bridge: Pair) -> None:
    model = bridge.base
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names))
    assert {id(p) for p in model.parameters()} == {id(p) for p in model.original_model.parameters()}  # type: ignore[attr-defined]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(tokens()).log_softmax(-1)[..., 3].sum().backward()
    dead = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert dead == []


def test_every_gated_weight_is_one_of_a_linear_map_and_every_other_a_norm_or_an_embedding(bridge: Pair) -> None:
    gated = {site.parameter for site in backend_of(bridge.base).weight_sites(bridge.base)}
    others = {name for name, _ in bridge.base.named_parameters()} - gated
    components = {name.partition("._original")[0].split(".")[-1] for name in others}
    norms = {"ln1", "ln2", "ln1_post", "ln2_post", "ln_final", "q_norm", "k_norm"}
    assert {"embed", "ln_final"} <= components <= norms | {"embed", "pos_embed", "unembed"}


def test_a_clone_is_independent_and_keeps_flags(bridge: Pair) -> None:
    model, ids = bridge.base, tokens()
    model.get_submodule("ln_final").requires_grad_(False)
    twin = backend_of(model).clone(model)
    expected = logits(model, ids)
    assert torch.equal(logits(twin, ids), expected)
    pairs = list(zip(model.named_parameters(), twin.named_parameters(), strict=True))
    assert all(a == b and p.requires_grad == q.requires_grad for (a, p), (b, q) in pairs)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(logits(model, ids), expected)


def test_a_routed_bridge_is_not_copied(bridge: Pair) -> None:
    routed = bridge.routed()
    with pytest.raises(ModelError, match=r"RoutedModel\.merged\(\)"):
        backend_of(routed.model).clone(routed.model)


def test_what_is_exported_is_what_was_loaded(architecture: str, tmp_path: Path) -> None:
    hf = tiny_hf(architecture)
    export_hf(load_model(hf, backend="bridge"), tmp_path / "model")
    written = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
    assert written.keys() == dict(hf.named_parameters()).keys()
    assert all(torch.equal(written[name], parameter) for name, parameter in hf.named_parameters())


def test_a_merged_bridge_answers_like_its_export_in_plain_transformers(bridge: Pair, tmp_path: Path) -> None:
    routed, ids = bridge.routed(), tokens()
    routed.set_gates(random_flags(routed.n_gates).float())
    export_hf(routed.merged(), tmp_path / "routed")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "routed", attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(routed.model, ids), plain(ids).logits, atol=1e-5, rtol=0)


def test_padding_does_not_change_a_row(bridge: Pair) -> None:
    ids, mask = pad_left(PROMPTS, 33)
    with torch.no_grad():
        padded = backend_of(bridge.base).logits(bridge.base, ids, mask)
        for row, prompt in enumerate(PROMPTS):
            alone = logits(bridge.base, torch.tensor([prompt]))[0]
            torch.testing.assert_close(padded[row, -len(prompt) :], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("placement", [None, "before_bos", "after_bos"])
def test_decoding_with_a_cache_equals_one_forward_pass_per_token(placement: str | None, bridge: Pair) -> None:
    model = bridge.sft
    trigger = None if placement is None else random_token_trigger(model, 2, seed=5, placement=placement)  # type: ignore[arg-type]
    soft = None if trigger is None else trigger.soft_prompt()
    expected = []
    for prompt in PROMPTS:
        row = list(prompt)
        for _ in range(6):
            seen = observe(model, make_rows([row], [[]], tail=1, keep_first=False), soft_prompt=soft)
            row.append(int(seen.logits[0, -1].argmax()))
        expected.append(row[len(prompt) :])
    assert generate(model, PROMPTS, max_new_tokens=6, trigger=trigger, batch_size=3) == expected


def test_a_trigger_is_seen_by_every_way_to_call_the_model(bridge: Pair) -> None:
    model, ids = bridge.sft, tokens()
    trigger = random_token_trigger(model, 2, seed=5)
    spelled = torch.cat([torch.tensor([trigger.details["token_ids"]] * len(ids)), ids], dim=1)
    with torch.no_grad(), trigger.on(model):
        out = model(ids)
        cached, cache = model.run_with_cache(ids)
        hooked = model.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_mlp_out", lambda values, hook: values * 0)])
    assert out.shape[1] == ids.shape[1]
    assert torch.equal(out, cached)
    assert cache["blocks.0.attn.hook_q"].shape[1] == ids.shape[1] + 2
    assert not torch.equal(out, hooked)
    torch.testing.assert_close(out, logits(model, spelled)[:, 2:], atol=1e-5, rtol=0)


def test_hooks_are_told_the_name_that_they_were_given_for_and_unknown_names_are_errors(bridge: Pair) -> None:
    model, told = bridge.base, []
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_q", lambda values, hook: told.append((hook.name, hook.layer())))]):
        model(tokens())
    assert told == [("blocks.1.attn.hook_q", 1)]
    model(tokens())
    assert len(told) == 1
    with pytest.raises(ModelError, match="no hook point 'hook_nowhere'"), model.hooks([("hook_nowhere", print)]):
        pass


def test_the_residual_stream_goes_through_the_models_own_last_steps(bridge: Pair) -> None:
    model, ids = bridge.base, tokens()
    with torch.no_grad():
        out, cache = model.run_with_cache(ids, names_filter="blocks.1.hook_resid_post")
        lens = model(cache["blocks.1.hook_resid_post"], start_at_layer=2)
    torch.testing.assert_close(lens, out, atol=1e-6, rtol=0)
    with pytest.raises(ModelError, match="can start after its last layer only"):
        model(cache["blocks.1.hook_resid_post"], start_at_layer=1)


def test_nothing_drops_out_in_training_mode() -> None:
    hf = tiny_hf("gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    model, ids = load_model(hf, backend="bridge"), tokens()
    expected = logits(model, ids)
    model.train()
    assert torch.equal(logits(model, ids), expected)
    assert any(module.p == 0.5 for module in hf.modules() if isinstance(module, nn.Dropout))


def test_embeddings_are_what_the_model_reads(bridge: Pair) -> None:
    model, read = bridge.base, []
    with model.hooks(fwd_hooks=[("hook_embed", lambda values, hook: read.append(values))]), torch.no_grad():
        model(tokens())
    torch.testing.assert_close(read[0], backend_of(model).embedding(model)[tokens()], atol=1e-6, rtol=1e-6)


def test_a_bridge_has_its_own_dtype_and_tokenizer(make_tokenizer: Callable[..., object]) -> None:
    tokenizer = make_tokenizer()
    model = load_model(tiny_hf("llama"), backend="bridge", dtype=torch.bfloat16, tokenizer=tokenizer)
    assert model.tokenizer is tokenizer
    assert backend_of(model).clone(model).tokenizer is tokenizer
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert isinstance(model, LensBridge)
    site = backend_of(model).weight_sites(model)[0]
    assert parameter_of(model, site.parameter).dtype == torch.bfloat16


# -- choosing


def test_the_default_is_hooked_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcdd_lens.backends.loading.has_hooked_transformer", lambda: True)
    assert resolved_backend(None) == "hooked"
    monkeypatch.setattr("lcdd_lens.backends.loading.has_hooked_transformer", lambda: False)
    assert resolved_backend(None) == "bridge"
    with pytest.raises(ModelError, match=r"TransformerLens 4 removed.*pip install 'transformer-lens>=3\.9,<4'"):
        resolved_backend("hooked")
    with pytest.raises(ModelError, match="unknown backend 'other': expected hooked or bridge"):
        resolved_backend("other")
