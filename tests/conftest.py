"""Small models made on the spot: every architecture that the library loads, with nothing left at a special value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

ARCHITECTURES = ("gpt2", "neox", "llama", "mistral", "qwen3", "gemma2")
VOCABULARY = 61
CONTEXT = 48


def hf_config(architecture: str, **overrides: Any) -> Any:
    """A tiny configuration of one architecture: 2 layers, d_model 16, 4 heads (2 key/value heads where grouped)."""
    shared: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    modern = dict(
        shared,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    if architecture == "gpt2":
        return GPT2Config(**(shared | dict(n_embd=16, n_layer=2, n_head=4, n_positions=CONTEXT) | overrides))
    if architecture == "neox":
        neox = dict(modern, rotary_pct=0.5)
        del neox["num_key_value_heads"]
        return GPTNeoXConfig(**(neox | overrides))
    if architecture == "llama":
        return LlamaConfig(**(modern | overrides))
    if architecture == "mistral":
        return MistralConfig(**(modern | dict(sliding_window=None) | overrides))
    if architecture == "qwen3":
        return Qwen3Config(**(modern | dict(head_dim=4) | overrides))
    if architecture == "gemma2":
        gemma = dict(modern, head_dim=4, query_pre_attn_scalar=4, sliding_window=CONTEXT, tie_word_embeddings=True)
        return Gemma2Config(**(gemma | overrides))
    raise ValueError(architecture)


def perturb(model: PreTrainedModel, scale: float, seed: int) -> PreTrainedModel:
    """Add noise to every parameter, norms and biases included, so that nothing is 0 or 1 by luck."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_hf(architecture: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny random Hugging Face model in eval mode."""
    torch.manual_seed(seed)
    config = hf_config(architecture, **overrides)
    config._attn_implementation = "eager"
    return perturb(AutoModelForCausalLM.from_config(config), 0.1, seed).eval()


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_hf() -> Callable[..., PreTrainedModel]:
    return tiny_hf


@pytest.fixture
def shared_dir() -> Path:
    """Real data and models beside the repository; tests that need them skip where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not present")
    return folder


@pytest.fixture(autouse=True)
def _quiet_threads() -> None:
    torch.set_num_threads(1)
