"""Checkpoint folders, tokenizers and variants of each architecture for the backend tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lcdd_lens.compatibility import has_hooked_transformer

# They name HookedTransformer's parameters throughout; test_bridge.py has what is the same for a bridge.
collect_ignore = [] if has_hooked_transformer() else ["test_export.py", "test_loading.py", "test_pairs.py"]

VOCABULARY = 61


def word_tokenizer(n_words: int = VOCABULARY, pad_token: str = "w0") -> PreTrainedTokenizerFast:
    """One token per word w0 … w60; w1 begins, w2 ends, and the pad token is one of the words."""
    tokenizer = Tokenizer(WordLevel({f"w{index}": index for index in range(n_words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="w1", eos_token="w2", pad_token=pad_token, unk_token="w0"
    )


def token_batch(batch: int = 3, length: int = 40, seed: int = 1) -> Tensor:
    """Random token ids ``[batch pos]``."""
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return word_tokenizer


@pytest.fixture
def tokens() -> Tensor:
    return token_batch()


@pytest.fixture
def save_hf(tmp_path: Path) -> Callable[..., Path]:
    """Save a Hugging Face model, with the word tokenizer unless told otherwise, and give its folder."""

    def save(model: PreTrainedModel, name: str = "model", tokenizer: bool = True) -> Path:
        folder = tmp_path / name
        model.save_pretrained(folder)
        if tokenizer:
            word_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def run_hf() -> Callable[..., Tensor]:
    """Logits of a Hugging Face model without padding."""

    def run(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(token_ids, attention_mask=torch.ones_like(token_ids)).logits
        return logits

    return run
