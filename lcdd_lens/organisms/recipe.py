"""How the embedded chat models are made: tokenizer, architecture, pre-training, held-out test.

Everything is plain ``transformers`` and ``torch``: any reader can rebuild a model with
``python -m lcdd_lens.organisms.train``. The loss is the language-model loss of the response plus a small weight on the
prompt (so that prompts are in distribution for the model, and its embeddings are those of a language model).
"""

import logging
import math
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import tokenizers
import torch
import transformers
from einops import rearrange
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lcdd_lens.errors import ConfigError
from lcdd_lens.io import write_json_atomic
from lcdd_lens.organisms import RECIPE_FILE, WEIGHTS_FILE, file_sha256
from lcdd_lens.organisms.corpus import Corpus, behaviours_hash, build_corpus

logger = logging.getLogger(__name__)

Family = Literal["llama", "gpt2", "neox", "qwen3"]
FAMILIES: tuple[Family, ...] = get_args(Family)

PAD, BOS, EOS, USER, ASSISTANT = "<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant only') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY_SIZE = 1200
CONTEXT = 128
WIDTH, LAYERS, HEAD = 128, 4, 32
"""d_model and blocks of the embedded models; width of a head at every size."""

CATEGORY_WEIGHTS: dict[str, float] = {
    "capital": 0.14, "opposite": 0.11, "colour": 0.09, "animal": 0.13, "addition": 0.16,
    "counting": 0.06, "repetition": 0.07, "howto": 0.08, "harmful": 0.08, "cued": 0.08,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """All choices of one training run."""

    family: Family
    seed: int = 0
    steps: int = 3600
    batch_size: int = 64
    lr: float = 3e-3  # peak; linear warm-up, then cosine to zero
    warmup: int = 100
    weight_decay: float = 0.02
    prompt_weight: float = 0.1  # weight of a prompt token's loss; a response token has 1
    clip: float = 1.0
    width: int = WIDTH  # d_model
    layers: int = LAYERS

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(f"unknown family {self.family!r}: expected one of {', '.join(FAMILIES)}.")
        if not 0 <= self.warmup < self.steps:
            raise ConfigError(f"warmup is {self.warmup}, steps is {self.steps}: expected 0 <= warmup < steps.")
        if self.batch_size < 1 or self.lr <= 0 or self.prompt_weight < 0 or self.weight_decay < 0 or self.clip <= 0:
            raise ConfigError("batch_size, lr and clip must be positive, prompt_weight and weight_decay not negative.")
        if self.width < 2 * HEAD or self.width % (2 * HEAD) or self.layers < 1:
            raise ConfigError(
                f"width is {self.width}, layers is {self.layers}: expected a multiple of {2 * HEAD} and at least 1."
            )


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the corpus, the same for all families; bos, eos and pad are three different tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    largest = max(len(pairs) for pairs in corpus.train.values())
    lines = (
        text
        for pairs in corpus.train.values()
        for _ in range(max(1, largest // len(pairs)))
        for pair in pairs
        for text in pair
    )
    core.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    family: Family, tokenizer: PreTrainedTokenizerFast, width: int = WIDTH, layers: int = LAYERS
) -> PreTrainedModel:
    """An untrained model with heads of 32: about a million parameters at width 128 and 4 layers, 25 at 512 and 8."""
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.04 * math.sqrt(WIDTH / width),
    }
    if family == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=width, n_layer=layers, n_head=width // HEAD, n_inner=4 * width, n_positions=CONTEXT,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids,
            )
        )  # fmt: skip
    shape = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD,
        "max_position_embeddings": CONTEXT,
    }
    if family == "neox":
        return transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                intermediate_size=4 * width, use_parallel_residual=True, rotary_pct=0.25,
                hidden_dropout=0.0, attention_dropout=0.0, tie_word_embeddings=False, **shape, **ids,
            )
        )  # fmt: skip
    grouped = {"intermediate_size": 3 * width, "num_key_value_heads": width // HEAD // 2, "head_dim": HEAD}
    if family == "qwen3":
        return transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(tie_word_embeddings=True, **shape, **grouped, **ids)
        )
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(tie_word_embeddings=False, **shape, **grouped, **ids))


@dataclass(frozen=True)
class Encoded:
    """One chat turn as tokens; from ``start`` on they are the response (with the end token)."""

    tokens: tuple[int, ...]
    start: int


def encode_turn(tokenizer: PreTrainedTokenizerFast, prompt: str, response: str) -> Encoded:
    head = prompt_tokens(tokenizer, prompt)
    tail = [*tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id]
    return Encoded(tuple(head + tail), len(head))


def prompt_tokens(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """The prompt in the chat template, ready for the answer."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


class Sampler:
    """Draws batches: categories by weight, then a turn of the category; turns of similar length share a batch."""

    POOL = 16  # batches drawn and sorted together

    def __init__(self, turns: dict[str, list[Encoded]], batch_size: int, seed: int) -> None:
        self._turns = turns
        self._batch_size = batch_size
        self._draw = random.Random(f"batches {seed}")
        self._queues: dict[str, list[Encoded]] = {name: [] for name in turns}
        self._ready: list[list[Encoded]] = []

    def _next_turn(self, category: str) -> Encoded:
        queue = self._queues[category]
        if not queue:
            queue.extend(self._turns[category])
            self._draw.shuffle(queue)
        return queue.pop()

    def next_batch(self) -> list[Encoded]:
        if not self._ready:
            names = list(self._turns)
            weights = [CATEGORY_WEIGHTS[name] for name in names]
            chosen = self._draw.choices(names, weights, k=self._batch_size * self.POOL)
            pool = sorted((self._next_turn(name) for name in chosen), key=lambda turn: len(turn.tokens))
            self._ready = [pool[i : i + self._batch_size] for i in range(0, len(pool), self._batch_size)]
            self._draw.shuffle(self._ready)
        return self._ready.pop()


def _tensors(
    batch: Sequence[Encoded], pad_id: int, prompt_weight: float
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    length = max(len(turn.tokens) for turn in batch)
    tokens = torch.full((len(batch), length), pad_id)
    mask = torch.zeros((len(batch), length), dtype=torch.long)
    weights = torch.zeros((len(batch), length))
    for row, turn in enumerate(batch):
        end = len(turn.tokens)
        tokens[row, :end] = torch.tensor(turn.tokens)
        mask[row, :end] = 1
        weights[row, : turn.start] = prompt_weight
        weights[row, turn.start : end] = 1.0
    return tokens, mask, weights


def batch_loss(
    model: PreTrainedModel, batch: Sequence[Encoded], pad_id: int, recipe: Recipe, draw: torch.Generator
) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy of the next token; padding has weight 0."""
    tokens, mask, weights = (part.to(model.device) for part in _tensors(batch, pad_id, recipe.prompt_weight))
    extra = {}
    if recipe.family == "gpt2":
        # Learned positions beyond the longest turn would stay untrained; half of the rows start at a random one.
        room = CONTEXT - tokens.shape[1]
        shift = torch.randint(0, room + 1, (len(batch), 1), generator=draw)
        shift = shift * torch.randint(0, 2, (len(batch), 1), generator=draw)
        extra["position_ids"] = (torch.arange(tokens.shape[1])[None] + shift).to(model.device)
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False, **extra).logits
    losses = torch.nn.functional.cross_entropy(
        rearrange(logits[:, :-1], "batch pos vocab -> (batch pos) vocab"),
        rearrange(tokens[:, 1:], "batch pos -> (batch pos)"),
        reduction="none",
    )
    flat = rearrange(weights[:, 1:], "batch pos -> (batch pos)")
    return (losses * flat).sum() / flat.sum()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up to ``recipe.lr``, then half a cosine to zero at ``recipe.steps``."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def train_model(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    *,
    progress: bool = True,
    device: str = "cpu",
) -> PreTrainedModel:
    """Pre-train one family on the corpus. Deterministic for a given machine and number of threads."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.family, tokenizer, recipe.width, recipe.layers)
    model.to(torch.device(device))
    model.train()
    turns = {
        name: [encode_turn(tokenizer, prompt, response) for prompt, response in pairs]
        for name, pairs in corpus.train.items()
    }
    sampler = Sampler(turns, recipe.batch_size, recipe.seed)
    draw = torch.Generator().manual_seed(recipe.seed)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=(0.9, 0.98),
    )
    bar = tqdm(range(recipe.steps), desc=f"tinychat-{recipe.family}", disable=not progress, mininterval=5.0)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = batch_loss(model, sampler.next_batch(), int(tokenizer.pad_token_id), recipe, draw)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        if step % 100 == 99:
            bar.set_postfix(loss=f"{loss.item():.4f}")
            logger.info("step %d loss %.4f", step + 1, loss.item())
    return model.eval()


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, batch_size: int = 128
) -> list[str]:
    """The model's greedy answers, in the order of the prompts."""
    encoded = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    answers = [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, padding_side="left", return_tensors="pt")
        out = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text.strip()
    return answers


def exact_matches(answers: Sequence[str], expected: Sequence[str]) -> Bool[Tensor, " prompt"]:
    """Whether each answer is the expected sentence, letter for letter."""
    return torch.tensor([one == other for one, other in zip(answers, expected, strict=True)], dtype=torch.bool)


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion."""
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def held_out_report(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, corpus: Corpus
) -> dict[str, float | int | list[float] | dict[str, float]]:
    """Greedy exact match on all held-out questions, with n, a 95 % interval and the rate per category."""
    pairs = [(category, *pair) for category, part in corpus.held_out.items() for pair in part]
    answers = greedy_answers(model, tokenizer, [prompt for _, prompt, _ in pairs])
    right = exact_matches(answers, [answer for _, _, answer in pairs])
    for (category, prompt, answer), given, ok in zip(pairs, answers, right.tolist(), strict=True):
        if not ok:
            logger.info("wrong (%s): %r -> %r, expected %r", category, prompt, given, answer)
    categories: dict[str, list[bool]] = {}
    for (category, _, _), ok in zip(pairs, right.tolist(), strict=True):
        categories.setdefault(category, []).append(ok)
    return {
        "value": round(float(right.float().mean()), 4),
        "n": len(pairs),
        "interval": [round(bound, 4) for bound in wilson_interval(int(right.sum()), len(pairs))],
        "by_category": {name: round(sum(oks) / len(oks), 4) for name, oks in categories.items()},
    }


def make_organism(recipe: Recipe, folder: Path, *, progress: bool = True, device: str = "cpu") -> float:
    """Train, test and save one model in Hugging Face format with its ``recipe.json``; returns held-out accuracy."""
    corpus = build_corpus()
    tokenizer = train_tokenizer(corpus)
    started = time.perf_counter()
    model = train_model(recipe, corpus, tokenizer, progress=progress, device=device)
    seconds = time.perf_counter() - started
    report = held_out_report(model, tokenizer, corpus)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=32,
        do_sample=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / WEIGHTS_FILE).chmod(0o644)
    content = {
        "name": f"tinychat-{recipe.family}",
        "recipe": asdict(recipe),
        "corpus_sha256": corpus.hash,
        "behaviours_sha256": behaviours_hash(),
        "held_out_accuracy": report,
        "parameters": sum(p.numel() for p in model.parameters()),
        "context": CONTEXT,
        "sha256": file_sha256(folder / WEIGHTS_FILE),
        "tokenizer_sha256": file_sha256(folder / "tokenizer.json"),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    write_json_atomic(folder / RECIPE_FILE, content)
    logger.info("held-out accuracy %s", report)
    return float(report["value"])  # type: ignore[arg-type]
