"""A tiny model with a character tokenizer, in versions that differ a little."""

import string
from collections.abc import Callable

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lcdd_lens.backends.base import LensModel
from lcdd_lens.backends.loading import load_model


def characters() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    vocabulary |= {character: index + 4 for index, character in enumerate(string.ascii_letters + " \n.'?")}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


@pytest.fixture
def make_model(make_hf: Callable[..., PreTrainedModel]) -> Callable[..., LensModel]:
    def make(architecture: str = "llama", seed: int = 0) -> LensModel:
        return load_model(make_hf(architecture, seed=seed), tokenizer=characters())

    return make


@pytest.fixture
def versions(make_model: Callable[..., LensModel]) -> Callable[[int], list[LensModel]]:
    """A base and fine-tuned versions of it: the same embeddings, other weights."""

    def make(n: int) -> list[LensModel]:
        made = [make_model() for _ in range(n)]
        for index, model in enumerate(made[1:], start=1):
            generator = torch.Generator().manual_seed(index)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "W_out" in name or "W_O" in name:
                        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return made

    return make
