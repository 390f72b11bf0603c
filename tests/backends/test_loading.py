"""A loaded model computes what its checkpoint computes, and a bad checkpoint is refused with the reason."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2Model, OPTConfig, OPTForCausalLM, PreTrainedModel

from lcdd_lens.backends import backend_of, load_model, origin_of
from lcdd_lens.backends.biased_mlp import BiasedGatedMLP
from lcdd_lens.errors import ModelError
from lcdd_lens.organisms import organism_names

ROPE = {"rope_theta": 5000.0}
LLAMA3 = ROPE | {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}),
    ("gpt2", {"tie_word_embeddings": False, "n_inner": 20}),
    ("gpt2", {"activation_function": "relu"}),
    ("gpt2", {"activation_function": "gelu"}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_weights": False}),
    ("neox", {}),
    ("neox", {"use_parallel_residual": False, "tie_word_embeddings": True}),
    ("neox", {"attention_bias": False, "rotary_pct": 1.0}),
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 6}),
    ("llama", {"rope_parameters": ROPE | {"rope_type": "default"}}),
    ("llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 4.0}}),
    ("llama", {"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 4.0}}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("llama", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False}}),
    ("mistral", {}),
    ("mistral", {"sliding_window": 5, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("gemma2", {}),
    ("gemma2", {"sliding_window": 5, "attention_bias": True, "query_pre_attn_scalar": 9}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False}),
    ("gemma2", {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.0}),
]
MakeHF = Callable[..., PreTrainedModel]
RunHF = Callable[[PreTrainedModel, Tensor], Tensor]


def _name(variant: Any) -> str:
    return variant if isinstance(variant, str) else "-".join(variant) or "plain"


@pytest.mark.parametrize(("architecture", "overrides"), VARIANTS, ids=_name)
def test_logits_equal_hugging_face(
    architecture: str, overrides: dict[str, Any], make_hf: MakeHF, run_hf: RunHF, tokens: Tensor
) -> None:
    hf = make_hf(architecture, **overrides)
    model = load_model(hf)
    with torch.no_grad():
        logits = backend_of(model).logits(model, tokens, torch.ones_like(tokens))
    torch.testing.assert_close(logits, run_hf(hf, tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_logits(architecture: str, side: str, make_hf: MakeHF, tokens: Tensor) -> None:
    model = load_model(make_hf(architecture))
    backend, lengths = backend_of(model), [3, 17, 9]
    padded = torch.zeros(3, max(lengths), dtype=torch.long)
    mask = torch.zeros_like(padded)
    where = [slice(-n, None) if side == "left" else slice(0, n) for n in lengths]
    for row, (n, positions) in enumerate(zip(lengths, where, strict=True)):
        padded[row, positions], mask[row, positions] = tokens[row, :n], 1
    with torch.no_grad():
        together = backend.logits(model, padded, mask)
        for row, (n, positions) in enumerate(zip(lengths, where, strict=True)):
            alone = backend.logits(model, tokens[row : row + 1, :n], torch.ones(1, n, dtype=torch.long))
            torch.testing.assert_close(together[row, positions], alone[0], atol=1e-5, rtol=0)


def test_decoding_with_a_cache_equals_one_forward_pass(architecture: str, make_hf: MakeHF, tokens: Tensor) -> None:
    model = load_model(make_hf(architecture))
    backend = backend_of(model)
    with torch.no_grad():
        whole = backend.logits(model, tokens, torch.ones_like(tokens))
        cache = backend.start_cache(model, len(tokens))
        chunks = [tokens[:, :7], *tokens[:, 7:12].split(1, dim=1)]
        pieces = [backend.logits(model, chunk, torch.ones_like(chunk), cache) for chunk in chunks]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole[:, :12], atol=1e-5, rtol=0)


def test_a_local_folder_loads_with_its_tokenizer_and_full_context(
    architecture: str, make_hf: MakeHF, save_hf: Callable[..., Path], run_hf: RunHF, tokens: Tensor
) -> None:
    hf = make_hf(architecture)
    # TransformerLens decides by name; a folder's name must not matter here.
    model = load_model(str(save_hf(hf, name="not-a-llama-or-gpt2")))
    assert not model.training
    assert model.cfg.n_ctx == 48
    assert model.tokenizer.encode("w5 w7") == [5, 7]
    with torch.no_grad():
        logits = backend_of(model).logits(model, tokens, torch.ones_like(tokens))
    torch.testing.assert_close(logits, run_hf(hf, tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["tinystories656k_llama", "tinystories_char_gpt2"])
def test_real_checkpoints_equal_hugging_face(name: str, shared_dir: Path, run_hf: RunHF) -> None:
    folder = shared_dir / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not present")
    hf = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    model = load_model(folder)
    ids = torch.tensor([model.tokenizer.encode("Once upon a time there was")])
    with torch.no_grad():
        logits = backend_of(model).logits(model, ids, torch.ones_like(ids))
    torch.testing.assert_close(logits, run_hf(hf, ids), atol=1e-4, rtol=0)
    assert int(logits[0, -1].argmax()) == int(run_hf(hf, ids)[0, -1].argmax())


def test_bfloat16_is_the_rounded_checkpoint(architecture: str, make_hf: MakeHF, tokens: Tensor) -> None:
    hf = make_hf(architecture)
    exact, rounded = load_model(hf), load_model(hf, dtype=torch.bfloat16)
    for (name, parameter), (_, other) in zip(exact.named_parameters(), rounded.named_parameters(), strict=True):
        assert other.dtype == torch.bfloat16
        torch.testing.assert_close(other.float(), parameter, atol=1e-6, rtol=2**-7, msg=name)
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        gap = backend_of(rounded).logits(rounded, tokens, mask).float() - backend_of(exact).logits(exact, tokens, mask)
    assert float(gap.abs().mean()) < 0.03


def test_biases_that_the_checkpoint_lacks_are_frozen_zeros(architecture: str, make_hf: MakeHF) -> None:
    model = load_model(make_hf(architecture))
    origin = origin_of(model)
    assert origin is not None
    assert "unembed.b_U" in origin.absent
    for name, parameter in model.named_parameters():
        if name in origin.absent:
            assert not parameter.requires_grad
            assert not torch.any(parameter)
        elif name not in ("embed.W_E", "unembed.W_U"):
            assert parameter.requires_grad


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_frozen(tied: bool, make_hf: MakeHF) -> None:
    model = load_model(make_hf("llama", tie_word_embeddings=tied))
    assert origin_of(model).tied is tied  # type: ignore[union-attr]
    assert {model.get_submodule("embed").W_E.requires_grad, model.get_submodule("unembed").W_U.requires_grad} == {
        not tied
    }


def test_real_biases_that_happen_to_be_zero_stay_gated(make_hf: MakeHF) -> None:
    hf = make_hf("gpt2")
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("c_proj.bias"):
                parameter.zero_()
    model = load_model(hf)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    gated = {site.parameter for site in backend_of(model).weight_sites(model)}
    assert {"blocks.0.attn.b_O", "blocks.1.mlp.b_out"} <= gated


def test_loading_leaves_the_given_model_alone(make_hf: MakeHF) -> None:
    hf = make_hf("gemma2")
    before = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    model = load_model(hf)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in hf.state_dict().items())


def test_loading_draws_no_random_numbers(make_hf: MakeHF, save_hf: Callable[..., Path]) -> None:
    folder = save_hf(make_hf("llama"))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(folder)
    assert torch.equal(torch.rand(1), expected)


def test_mlp_biases_act_before_the_product(make_hf: MakeHF) -> None:
    model = load_model(make_hf("llama", mlp_bias=True))
    mlp = model.get_submodule("blocks.0.mlp")
    assert isinstance(mlp, BiasedGatedMLP)
    x = torch.randn(1, 2, 16)
    silu = torch.nn.functional.silu
    with torch.no_grad():
        hidden = silu(x @ mlp.W_gate + mlp.b_gate) * (x @ mlp.W_in + mlp.b_in)
        torch.testing.assert_close(mlp(x), hidden @ mlp.W_out + mlp.b_out)
    assert "blocks.0.mlp.hook_post" in model.hook_dict  # type: ignore[attr-defined]


def test_an_embedded_model_loads_by_its_name() -> None:
    names = organism_names()
    if not names:
        pytest.skip("this installation has no embedded model")
    model = load_model(f"organism:{names[0]}")
    assert model.tokenizer.chat_template
    with pytest.raises(ModelError, match=f"unknown embedded model 'tinychat-none'.*{names[0]}"):
        load_model("organism:tinychat-none")


class TestTokenizer:
    def test_custom_pad_token_is_kept(self, make_hf: MakeHF, make_tokenizer: Callable[..., Any]) -> None:
        tokenizer = make_tokenizer(pad_token="w60")
        model = load_model(make_hf("gpt2"), tokenizer=tokenizer)
        assert model.tokenizer is tokenizer
        assert model.tokenizer.pad_token_id == 60

    def test_a_folder_without_one_gives_none(self, make_hf: MakeHF, save_hf: Callable[..., Path]) -> None:
        assert load_model(save_hf(make_hf("gpt2"), tokenizer=False)).tokenizer is None

    def test_one_from_another_folder_is_used(self, make_hf: MakeHF, save_hf: Callable[..., Path]) -> None:
        folder = save_hf(make_hf("gpt2"))
        assert load_model(make_hf("gpt2"), tokenizer=folder).tokenizer.bos_token_id == 1

    def test_one_with_tokens_beyond_the_vocabulary_is_refused(
        self, make_hf: MakeHF, make_tokenizer: Callable[..., Any]
    ) -> None:
        with pytest.raises(ModelError, match=r"largest token id is 69.*61 entries"):
            load_model(make_hf("gpt2"), tokenizer=make_tokenizer(70))

    def test_text_in_gives_the_tokens_that_the_tokenizer_gives(
        self, make_hf: MakeHF, make_tokenizer: Callable[..., Any]
    ) -> None:
        model = load_model(make_hf("gpt2"), tokenizer=make_tokenizer())
        assert model.to_tokens("w5 w7", prepend_bos=False).tolist() == [[5, 7]]  # type: ignore[attr-defined]


class TestAdapters:
    @pytest.fixture
    def adapter(self, make_hf: MakeHF, save_hf: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
        """A LoRA adapter folder with random factors and its base model's folder."""
        peft = pytest.importorskip("peft")
        base = save_hf(make_hf("llama"), name="base")
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"])
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter", base

    def test_it_is_merged_into_the_base_that_it_names(
        self, adapter: tuple[Path, Path], run_hf: RunHF, tokens: Tensor
    ) -> None:
        from peft import PeftModel

        folder, base = adapter
        merged, plain = load_model(folder), load_model(base)
        reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
        with torch.no_grad():
            logits = backend_of(merged).logits(merged, tokens, torch.ones_like(tokens))
        torch.testing.assert_close(logits, run_hf(reference, tokens), atol=1e-5, rtol=0)
        own, others = dict(merged.named_parameters()), dict(plain.named_parameters())
        changed = {name.rpartition(".")[2] for name in own if not torch.equal(own[name], others[name])}
        assert changed == {"W_Q", "_W_V", "W_out"}
        assert merged.tokenizer.encode("w5") == [5]

    def test_base_can_be_given(self, adapter: tuple[Path, Path]) -> None:
        folder, base = adapter
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
        with pytest.raises(ModelError, match="pass base="):
            load_model(folder)
        hf_base = AutoModelForCausalLM.from_pretrained(base)
        before = {name: tensor.clone() for name, tensor in hf_base.state_dict().items()}
        from_folder, from_model = load_model(folder, base=base), load_model(folder, base=hf_base)
        own, others = dict(from_folder.named_parameters()), dict(from_model.named_parameters())
        assert all(torch.equal(own[name], others[name]) for name in own)
        assert all(torch.equal(tensor, before[name]) for name, tensor in hf_base.state_dict().items())

    def test_of_another_model_is_refused(
        self, adapter: tuple[Path, Path], make_hf: MakeHF, save_hf: Callable[..., Path]
    ) -> None:
        other = save_hf(make_hf("llama", hidden_size=32), name="wider")
        with pytest.raises(ModelError, match="cannot be merged"):
            load_model(adapter[0], base=other)

    def test_without_peft_says_what_to_install(
        self, adapter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ModelError, match=r"pip install 'lcdd-lens\[lora\]'"):
            load_model(adapter[0])

    def test_pickled_adapters_are_refused(self, adapter: tuple[Path, Path]) -> None:
        (adapter[0] / "adapter_model.safetensors").rename(adapter[0] / "adapter_model.bin")
        with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
            load_model(adapter[0])

    def test_base_for_a_plain_folder_is_refused(self, adapter: tuple[Path, Path]) -> None:
        with pytest.raises(ModelError, match=r"no adapter_config\.json: leave it out"):
            load_model(adapter[1], base=adapter[1])


class TestBadCheckpoints:
    @pytest.fixture
    def folder(self, make_hf: MakeHF, save_hf: Callable[..., Path]) -> Path:
        return save_hf(make_hf("llama"))

    @staticmethod
    def _edit(folder: Path, **changes: Any) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    @pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
    def test_missing_folder(self, name: str) -> None:
        with pytest.raises(ModelError, match=r"does not exist: expected a Hugging Face folder"):
            load_model(name)

    def test_a_file_instead_of_its_folder(self, folder: Path) -> None:
        with pytest.raises(ModelError, match="is a file: expected the Hugging Face folder"):
            load_model(folder / "model.safetensors")

    def test_unknown_hub_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match="a model name on the Hugging Face hub"):
            load_model("nobody/no-such-model")

    def test_folder_without_configuration(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"has no config\.json"):
            load_model(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[1]"])
    def test_broken_configuration(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config\.json"):
            load_model(folder)

    def test_only_pickled_weights_are_refused_with_the_way_out(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"pytorch_model\.bin.*writes safetensors"):
            load_model(folder)

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"no \*\.safetensors file"):
            load_model(folder)

    def test_truncated_weights(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(folder)

    def test_missing_weights_are_not_replaced_by_random_ones(self, folder: Path) -> None:
        self._edit(folder, num_hidden_layers=3)
        with pytest.raises(ModelError, match=r"weights are missing.*layers\.2"):
            load_model(folder)

    def test_shapes_that_contradict_the_configuration(self, folder: Path) -> None:
        self._edit(folder, intermediate_size=28)
        with pytest.raises(ModelError, match="mismatch"):
            load_model(folder)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_named(self, value: float, make_hf: MakeHF) -> None:
        hf = make_hf("llama")
        with torch.no_grad():
            hf.model.layers[1].mlp.up_proj.weight[0, 0] = value
        with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds 1 values"):
            load_model(hf)

    def test_unsupported_architecture_lists_the_supported_ones(self, folder: Path) -> None:
        expected = "gpt2, gpt_neox, llama, mistral, qwen3, gemma2"
        small = {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
        with pytest.raises(ModelError, match=expected):
            load_model(OPTForCausalLM(OPTConfig(word_embed_proj_dim=8, **small)))
        self._edit(folder, model_type="something_new", auto_map={"AutoConfig": "evil.Config"})
        with pytest.raises(ModelError, match=f"'something_new' is not supported: expected one of {expected}"):
            load_model(folder)

    def test_model_without_a_language_modelling_head(self) -> None:
        with pytest.raises(ModelError, match="no language-modelling head"):
            load_model(GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)))

    def test_model_with_adapters_inside(self, make_hf: MakeHF) -> None:
        peft = pytest.importorskip("peft")
        hf = make_hf("llama")
        hf.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
        with pytest.raises(ModelError, match=r"q_proj\.weight.*merge_and_unload"):
            load_model(hf)

    @pytest.mark.parametrize(
        ("architecture", "overrides", "reason"),
        [
            ("gpt2", {"add_cross_attention": True}, "cross-attention"),
            ("gpt2", {"activation_function": "mish"}, "'mish' is not supported"),
            ("llama", {"rope_parameters": ROPE | {"rope_type": "longrope"}}, "rotary scaling 'longrope'"),
            ("mistral", {"sliding_window": 5, "rope_parameters": ROPE | {"rope_type": "linear"}}, "sliding-window"),
            ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantized"),
            ("gemma2", {"use_bidirectional_attention": True}, "bidirectional"),
            ("gemma2", {"sliding_window": None}, "need a sliding_window"),
            ("llama", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
            (
                "qwen3",
                {
                    "rope_parameters": {"full_attention": ROPE},
                },
                "differ by layer type",
            ),
            ("llama", {"num_attention_heads": 2, "num_key_value_heads": 2}, "does not divide into.*belong together"),
            ("llama", {"intermediate_size": 28}, r"blocks\.0\.mlp\.W_gate has shape \(16, 24\).*belong together"),
        ],
    )
    def test_options_without_an_equivalent_are_refused(
        self, architecture: str, overrides: dict[str, Any], reason: str, make_hf: MakeHF
    ) -> None:
        hf = make_hf(architecture)
        for key, value in overrides.items():
            setattr(hf.config, key, value)
        with pytest.raises(ModelError, match=reason):
            load_model(hf)

    def test_surplus_weights_are_ignored_with_a_warning(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self._edit(folder, num_hidden_layers=1)
        with caplog.at_level(logging.WARNING, logger="lcdd_lens"):
            assert load_model(folder).cfg.n_layers == 1
        assert "tensors are not part of the model and are ignored: ['model.layers.1" in caplog.text

    def test_offloaded_weights(self, make_hf: MakeHF) -> None:
        with pytest.raises(ModelError, match="not in memory"):
            load_model(make_hf("gpt2").to("meta"))

    def test_broken_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{")
        with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded"):
            load_model(folder)

    def test_other_dtypes(self, make_hf: MakeHF) -> None:
        with pytest.raises(ModelError, match="int8 is not supported"):
            load_model(make_hf("gpt2"), dtype=torch.int8)
