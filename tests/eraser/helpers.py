"""Batches, a tokenizer, and soft prompts spelled out without hooks."""

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lcdd_lens.backends import LensModel, backend_of, parameter_of
from lcdd_lens.eraser.soft_prompt import Placement
from tests.conftest import VOCABULARY

LENGTHS = (5, 2, 8, 3)
FILLER = 7


def words() -> PreTrainedTokenizerFast:
    """Four special tokens (ids 0 to 3), then one token per word w4 … w60."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = special + [f"w{index}" for index in range(len(special), VOCABULARY)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def prompts(n: int = 12, seed: int = 0, first: int = 1) -> list[list[int]]:
    """Token ids of ragged prompts that begin with BOS."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    return [[first, *draw(4, VOCABULARY, length)] for length in draw(2, 9, n)]


def padded(side: str, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A padded batch, its mask, and its rows without padding; padding is filled with an ordinary token."""
    generator = torch.Generator().manual_seed(11)
    rows = [torch.randint(4, VOCABULARY, (length,), generator=generator) for length in lengths]
    width = max(lengths)
    tokens = torch.full((len(rows), width), FILLER)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[index, place], mask[index, place] = row, 1
    return tokens, mask, rows


def concatenated_logits(
    model: LensModel, row: Tensor, soft: Float[Tensor, "n d_model"], placement: Placement
) -> Float[Tensor, "pos d_vocab"]:
    """Next-token logits of one unpadded row, from embeddings put together by hand: no hook, no mask, no padding."""
    embedded = backend_of(model).embedding(model)[row]
    first = 0 if placement == "before_bos" else 1
    residual = torch.cat([embedded[:first], soft, embedded[first:]])
    if backend_of(model).name == "bridge":
        # Floats are embeddings to the Hugging Face model, which adds positions itself.
        out: Tensor = model(residual[None])[0]
        return out[len(soft) :]
    if model.cfg.positional_embedding_type == "standard":
        residual = residual + parameter_of(model, "pos_embed.W_pos")[: len(residual)]
    logits: Tensor = model(residual[None], start_at_layer=0, return_type="logits")[0]
    return logits[len(soft) :]
