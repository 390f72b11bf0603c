"""Tokenizers made on the spot: one character a token, with the special tokens that a test asks for."""

import string
from collections.abc import Callable

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHARACTERS = string.ascii_lowercase + string.ascii_uppercase[:20] + " \n.'?"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}S {{ m['content'] }}\n{% else %}"
    "U {{ m['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A {% endif %}"
)


def character_tokenizer(special: bool = True, template: str | None = None) -> PreTrainedTokenizerBase:
    """Ids: pad 0, bos 1, eos 2 (where ``special``), unknown 3, then the characters."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    vocabulary |= {character: index + 4 for index, character in enumerate(CHARACTERS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"} if special else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **names)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerBase]:
    return character_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return character_tokenizer()


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerBase:
    return character_tokenizer(template=TEMPLATE)
