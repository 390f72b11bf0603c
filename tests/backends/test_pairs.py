"""A pair is one architecture, one vocabulary, and differs only where gates can undo the difference."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lcdd_lens.backends import backend_of, load_model, load_pair
from lcdd_lens.errors import ModelError

MakeHF = Callable[..., PreTrainedModel]
UNGATED_IN_HF = ("embed", "wte", "wpe", "lm_head", "norm", "ln_")


def fine_tuned(hf: PreTrainedModel, *, everything: bool = False) -> PreTrainedModel:
    """Move the weights; with ``everything`` also embeddings and norms, as full fine-tuning does."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if everything or not any(part in name for part in UNGATED_IN_HF):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return hf


def test_a_pair_differs_in_gated_weights_only(architecture: str, make_hf: MakeHF) -> None:
    pair = load_pair(make_hf(architecture), fine_tuned(make_hf(architecture)))
    base, sft = dict(pair.base.named_parameters()), dict(pair.sft.named_parameters())
    gated = {site.parameter for site in backend_of(pair.base).weight_sites(pair.base)}
    assert {name for name in base if not torch.equal(base[name], sft[name])} == gated
    assert pair.report.weight_change.keys() == gated
    assert not pair.report.reset


def test_reported_change_is_the_relative_norm(make_hf: MakeHF) -> None:
    base, sft = make_hf("llama"), make_hf("llama")
    with torch.no_grad():
        sft.model.layers[0].mlp.down_proj.weight.mul_(1.25)
    change = load_pair(base, sft).report.weight_change
    assert change.pop("blocks.0.mlp.W_out") == pytest.approx(0.25, rel=1e-5)  # type: ignore[attr-defined]
    assert not any(change.values())


def test_trained_norms_and_embeddings_are_refused_or_reset(architecture: str, make_hf: MakeHF) -> None:
    base, sft = make_hf(architecture), fine_tuned(make_hf(architecture), everything=True)
    with pytest.raises(ModelError, match=r"where no gate reaches: embed\.W_E \(by up to 0\.\d+\).*reset_ungated=True"):
        load_pair(base, sft)
    pair = load_pair(base, sft, reset_ungated=True)
    ours, theirs = dict(pair.base.named_parameters()), dict(pair.sft.named_parameters())
    gated = {site.parameter for site in backend_of(pair.base).weight_sites(pair.base)}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name not in gated)
    assert {"embed.W_E", "unembed.W_U", "blocks.0.ln1.w", "ln_final.w"} <= pair.report.reset.keys()
    assert "unembed.b_U" not in pair.report.reset
    assert "reset to base: ln_final.w" in str(pair.report)


def test_resetting_leaves_a_given_model_alone(make_hf: MakeHF) -> None:
    base, sft = load_model(make_hf("gpt2")), load_model(fine_tuned(make_hf("gpt2"), everything=True))
    before = sft.get_parameter("ln_final.w").detach().clone()  # type: ignore[attr-defined]
    pair = load_pair(base, sft, reset_ungated=True)
    assert pair.base is base
    assert pair.sft is not sft
    assert torch.equal(sft.get_parameter("ln_final.w"), before)  # type: ignore[attr-defined]


def test_an_sft_model_identical_to_base_is_refused(make_hf: MakeHF) -> None:
    with pytest.raises(ModelError, match="equals the base model in every gated weight"):
        load_pair(make_hf("llama"), make_hf("llama"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"num_hidden_layers": 3}, "n_layers: base has 2, SFT has 3"),
        ({"hidden_size": 32}, "d_model: base has 16, SFT has 32"),
        ({"num_key_value_heads": 4}, "n_key_value_heads: base has 2, SFT has None"),
        ({"vocab_size": 67}, "d_vocab: base has 61, SFT has 67"),
        ({"rms_norm_eps": 1e-3}, "eps: base has 1e-06, SFT has 0.001"),
        ({"attention_bias": True}, r"attn\.\w+: base has no such parameter, SFT has shape"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rotary_base: base has 10000.0"),
    ],
    ids=lambda part: str(part)[:24],
)
def test_different_architectures_are_named_with_both_values(
    overrides: dict[str, Any], said: str, make_hf: MakeHF
) -> None:
    with pytest.raises(ModelError, match=said):
        load_pair(make_hf("llama"), make_hf("llama", **overrides))


def test_llama_is_not_mistral(make_hf: MakeHF) -> None:
    with pytest.raises(ModelError, match="base has LlamaForCausalLM, SFT has MistralForCausalLM"):
        load_pair(make_hf("llama"), make_hf("mistral"))


class TestTokenizers:
    @pytest.fixture
    def models(self, make_hf: MakeHF) -> tuple[PreTrainedModel, PreTrainedModel]:
        return make_hf("llama"), fine_tuned(make_hf("llama"))

    def test_other_vocabularies_are_refused(
        self, models: tuple[PreTrainedModel, PreTrainedModel], make_tokenizer: Callable[..., Any]
    ) -> None:
        base = load_model(models[0], tokenizer=make_tokenizer(60))
        sft = load_model(models[1], tokenizer=make_tokenizer(61))
        with pytest.raises(ModelError, match=r"base has 60 tokens, SFT has 61; 1 tokens differ, for example \['w60'\]"):
            load_pair(base, sft)

    def test_one_that_splits_differently_is_refused(
        self, models: tuple[PreTrainedModel, PreTrainedModel], make_tokenizer: Callable[..., Any]
    ) -> None:
        from tokenizers.normalizers import Replace

        other = make_tokenizer()
        other.backend_tokenizer.normalizer = Replace("world", "w7")
        with pytest.raises(ModelError, match="split text differently"):
            load_pair(load_model(models[0], tokenizer=make_tokenizer()), load_model(models[1], tokenizer=other))

    def test_harmless_differences_are_remarks(
        self, models: tuple[PreTrainedModel, PreTrainedModel], make_tokenizer: Callable[..., Any]
    ) -> None:
        other = make_tokenizer(pad_token="w60")
        other.chat_template = "{{ messages }}"
        pair = load_pair(load_model(models[0], tokenizer=make_tokenizer()), load_model(models[1], tokenizer=other))
        assert pair.report.remarks == (
            "tokenizers differ in pad_token: base has 'w0', SFT has 'w60'",
            "tokenizers differ in chat_template: base has None, SFT has '{{ messages }}'",
        )

    @pytest.mark.parametrize("owner", [0, 1])
    def test_the_only_one_serves_both(
        self, owner: int, models: tuple[PreTrainedModel, PreTrainedModel], make_tokenizer: Callable[..., Any]
    ) -> None:
        tokenizer = make_tokenizer()
        loaded = [load_model(hf, tokenizer=tokenizer if index == owner else None) for index, hf in enumerate(models)]
        pair = load_pair(*loaded)
        assert pair.base.tokenizer is pair.sft.tokenizer is tokenizer
        assert "used for both" in pair.report.remarks[0]


def test_an_adapter_is_merged_into_the_given_base(
    make_hf: MakeHF, save_hf: Callable[..., Path], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    base = save_hf(make_hf("llama"), name="base")
    config = peft.LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    named = tmp_path / "adapter" / "adapter_config.json"
    named.write_text(json.dumps(json.loads(named.read_text()) | {"base_model_name_or_path": "lost/name"}))
    pair = load_pair(base, tmp_path / "adapter")
    changed = {name for name, change in pair.report.weight_change.items() if change > 0}
    assert changed == {"blocks.0.attn.W_O", "blocks.1.attn.W_O"}
