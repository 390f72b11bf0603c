"""A folder written by export_hf is, for transformers, the model that was exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lcdd_lens.backends import LensModel, backend_of, export_hf, load_model
from lcdd_lens.errors import ArtefactError, ModelError

MakeHF = Callable[..., PreTrainedModel]
RunHF = Callable[[PreTrainedModel, Tensor], Tensor]
BIASES = {"attention_bias": True}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"tie_word_embeddings": True}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("neox", {}),
    ("neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"mlp_bias": True} | BIASES),
    ("mistral", {"sliding_window": 5}),
    ("mistral", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3", BIASES),
    ("gemma2", {"tie_word_embeddings": True} | BIASES),
    ("gemma2", {"tie_word_embeddings": False}),
]


def train_like(model: LensModel) -> None:
    """Move every gated weight, as fine-tuning would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for site in backend_of(model).weight_sites(model):
            parameter = model.get_parameter(site.parameter)  # type: ignore[attr-defined]
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def logits_of(model: LensModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return backend_of(model).logits(model, tokens, torch.ones_like(tokens))


@pytest.mark.parametrize(("architecture", "overrides"), VARIANTS, ids=lambda part: str(part).replace(" ", ""))
def test_transformers_reads_back_the_same_model(
    architecture: str,
    overrides: dict[str, Any],
    make_hf: MakeHF,
    run_hf: RunHF,
    make_tokenizer: Callable[..., Any],
    tokens: Tensor,
    tmp_path: Path,
) -> None:
    hf = make_hf(architecture, **overrides)
    model = load_model(hf, tokenizer=make_tokenizer())
    train_like(model)
    folder = export_hf(model, tmp_path / "out")
    again, report = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(again) is type(hf)
    torch.testing.assert_close(run_hf(again.eval(), tokens), logits_of(model, tokens), atol=1e-5, rtol=0)
    tied = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert tied is bool(hf.config.tie_word_embeddings)
    torch.testing.assert_close(logits_of(load_model(folder), tokens), logits_of(model, tokens), atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(folder).encode("w5 w9") == [5, 9]


def test_an_untouched_model_comes_back_bit_for_bit(architecture: str, make_hf: MakeHF, tmp_path: Path) -> None:
    hf = make_hf(architecture)
    again = AutoModelForCausalLM.from_pretrained(export_hf(load_model(hf), tmp_path / "out"))
    for (name, parameter), (_, other) in zip(hf.named_parameters(), again.named_parameters(), strict=True):
        # Gemma's norms go through +1 and -1, which costs a rounding.
        tolerance = 1e-6 if architecture == "gemma2" else 0.0
        torch.testing.assert_close(other, parameter, atol=tolerance, rtol=0, msg=name)


def test_configuration_and_generation_settings_are_kept(make_hf: MakeHF, tmp_path: Path) -> None:
    hf = make_hf("llama", rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0})
    hf.generation_config.eos_token_id = [2, 7]
    again = AutoModelForCausalLM.from_pretrained(export_hf(load_model(hf), tmp_path / "out"))
    incidental = ("architectures", "transformers_version", "_name_or_path", "dtype")
    ours, theirs = hf.config.to_dict(), again.config.to_dict()
    assert {key: ours[key] for key in ours if key not in incidental} == {
        key: theirs[key] for key in theirs if key not in incidental
    }
    assert again.generation_config.eos_token_id == [2, 7]


def test_bfloat16_is_written_as_bfloat16(make_hf: MakeHF, run_hf: RunHF, tokens: Tensor, tmp_path: Path) -> None:
    model = load_model(make_hf("qwen3"), dtype=torch.bfloat16)
    again = AutoModelForCausalLM.from_pretrained(export_hf(model, tmp_path / "out"))
    assert again.dtype == torch.bfloat16
    for name, parameter in load_model(again, dtype=torch.bfloat16).named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["tinystories656k_llama", "tinystories_char_gpt2"])
def test_real_checkpoints_come_back(name: str, shared_dir: Path, run_hf: RunHF, tmp_path: Path) -> None:
    source = shared_dir / "models" / name
    if not source.is_dir():
        pytest.skip(f"{name} is not present")
    folder = export_hf(load_model(source), tmp_path / "out")
    ids = torch.arange(3, 30)[None]
    first, again = (AutoModelForCausalLM.from_pretrained(place).eval() for place in (source, folder))
    assert torch.equal(run_hf(first, ids), run_hf(again, ids))
    text = "Once upon a time"
    assert AutoTokenizer.from_pretrained(folder).encode(text) == AutoTokenizer.from_pretrained(source).encode(text)


class TestRefusals:
    @pytest.fixture
    def model(self, make_hf: MakeHF) -> LensModel:
        return load_model(make_hf("llama"))

    def test_a_routed_model_is_sent_to_merged(self, model: LensModel, tmp_path: Path) -> None:
        class Half(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return weight / 2

        parametrize.register_parametrization(model.get_submodule("blocks.0.attn"), "W_Q", Half())
        with pytest.raises(ModelError, match=r"routed\.merged\(\)"):
            export_hf(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["blocks.1.attn.b_O", "unembed.b_U", "blocks.0.mlp.b_in"])
    def test_a_bias_without_a_place_is_not_dropped(self, name: str, model: LensModel, tmp_path: Path) -> None:
        with torch.no_grad():
            model.get_parameter(name)[0] = 0.25  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match=rf"{name} is not zero \(largest value 0\.25\)"):
            export_hf(model, tmp_path / "out")

    def test_nan_is_named(self, model: LensModel, tmp_path: Path) -> None:
        with torch.no_grad():
            model.get_parameter("blocks.1.mlp.W_out")[0, 0] = float("nan")  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match=r"blocks\.1\.mlp\.W_out holds NaN"):
            export_hf(model, tmp_path / "out")

    def test_embeddings_that_came_apart(self, make_hf: MakeHF, tmp_path: Path) -> None:
        model = load_model(make_hf("gemma2"))
        with torch.no_grad():
            model.get_parameter("unembed.W_U")[0, 0] += 0.01  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match="ties embedding and unembedding"):
            export_hf(model, tmp_path / "out")

    def test_a_model_of_unknown_origin_needs_a_configuration(
        self, model: LensModel, make_hf: MakeHF, run_hf: RunHF, tokens: Tensor, tmp_path: Path
    ) -> None:
        assert isinstance(model, HookedTransformer)
        bare = HookedTransformer(model.cfg)
        bare.load_state_dict(model.state_dict())
        with pytest.raises(ModelError, match="pass hf_config="):
            export_hf(bare, tmp_path / "out")
        folder = export_hf(bare, tmp_path / "out", hf_config=make_hf("llama").config)
        logits = run_hf(AutoModelForCausalLM.from_pretrained(folder).eval(), tokens)
        torch.testing.assert_close(logits, logits_of(model, tokens), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        ("overrides", "reason"),
        [
            ({"intermediate_size": 28}, "belongs to another model"),
            ({"mlp_bias": True}, r"has no blocks\.0\.mlp\.b_gate"),
        ],
    )
    def test_a_configuration_of_another_model(
        self, overrides: dict[str, Any], reason: str, model: LensModel, make_hf: MakeHF, tmp_path: Path
    ) -> None:
        with pytest.raises(ModelError, match=reason):
            export_hf(model, tmp_path / "out", hf_config=make_hf("llama", **overrides).config)

    def test_folded_norms(self, model: LensModel, tmp_path: Path) -> None:
        model.cfg.normalization_type = "RMSPre"
        with pytest.raises(ModelError, match="folded"):
            export_hf(model, tmp_path / "out")

    def test_an_existing_folder_is_kept_unless_told(self, model: LensModel, tmp_path: Path) -> None:
        folder = export_hf(model, tmp_path / "out")
        (folder / "note.txt").write_text("mine")
        with pytest.raises(ArtefactError, match="overwrite=True"):
            export_hf(model, folder)
        assert (folder / "note.txt").exists()
        export_hf(model, folder, overwrite=True)
        assert not (folder / "note.txt").exists()
        assert (folder / "model.safetensors").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_folder_of_something_else_is_never_replaced(self, model: LensModel, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(ArtefactError, match="not a model folder"):
            export_hf(model, tmp_path, overwrite=True)
        with pytest.raises(ArtefactError, match="is a file"):
            export_hf(model, tmp_path / "thesis.txt", overwrite=True)
        assert (tmp_path / "thesis.txt").read_text() == "years of work"

    def test_an_empty_folder_is_used(self, model: LensModel, tmp_path: Path) -> None:
        assert (export_hf(model, tmp_path) / "model.safetensors").exists()

    def test_a_place_that_cannot_be_written(self, model: LensModel, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ArtefactError, match="choose a folder with space and permission"):
            export_hf(model, tmp_path / "file" / "out")

    def test_a_failed_swap_puts_the_old_folder_back(
        self, model: LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = export_hf(model, tmp_path / "out")
        before = (folder / "model.safetensors").read_bytes()
        rename = Path.rename

        def fail_on_new(self: Path, target: Path) -> Path:
            if target == folder and not self.name.endswith(".old"):
                raise PermissionError(13, "Permission denied")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail_on_new)
        with pytest.raises(ArtefactError, match="Permission denied"):
            export_hf(model, folder, overwrite=True)
        assert (folder / "model.safetensors").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_failed_write_leaves_the_old_folder(
        self, model: LensModel, make_tokenizer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = export_hf(model, tmp_path / "out")
        before = (folder / "model.safetensors").read_bytes()
        model.tokenizer = make_tokenizer()

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(type(model.tokenizer), "save_pretrained", full)
        with torch.no_grad():
            model.get_parameter("blocks.1.mlp.W_out").zero_()  # type: ignore[attr-defined]
        with pytest.raises(ArtefactError, match="No space left"):
            export_hf(model, folder, overwrite=True)
        assert (folder / "model.safetensors").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
