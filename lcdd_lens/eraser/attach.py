"""Prepending a soft prompt to every call of a model, and taking it back.

Inside the block the model's own ``forward`` and ``generate`` are shadowed on the instance; leaving it, also by an
exception, removes the shadows. Callers pass the tokens that they always pass:

- outputs of ``forward`` (logits, loss, the residual of ``stop_at_layer``) line up with the tokens given, one position
  per token, each logit still predicting the next token;
- cached activations and hooks see the longer sequence, with the soft prompt at ``SoftPrompt.columns``;
- calls that continue a filled key/value cache, or that start from a residual stream, pass through unchanged: the soft
  prompt is in the cache already.
"""

import contextlib
import inspect
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcdd_lens.backends.base import LensModel, device_of
from lcdd_lens.eraser.soft_prompt import SoftPrompt
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.generation import generate, pad_left

_carrying: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


class LogitsAndLoss(NamedTuple):
    """What ``return_type="both"`` gives."""

    logits: Float[Tensor, "batch pos d_vocab"]
    loss: Float[Tensor, "..."]


@contextlib.contextmanager
def prepended(model: LensModel, soft_prompt: SoftPrompt) -> Iterator[None]:
    """Within the block every call of the model sees the soft prompt.

    Raises:
        ConfigError: the model carries another soft prompt already.
    """
    root = model.get_submodule("")
    if carries_trigger(model):
        raise ConfigError("the model carries a trigger already: leave its block first, two triggers do not combine.")
    shadowed: dict[str, Any] = {name: vars(root)[name] for name in ("forward", "generate") if name in vars(root)}
    _carrying.add(root)
    try:
        root.forward = _forward(model, root.forward, soft_prompt)
        root.generate = _generate(model)
        yield
    finally:
        for name in ("forward", "generate"):
            vars(root).pop(name, None)
        vars(root).update(shadowed)
        _carrying.discard(root)


def carries_trigger(model: LensModel) -> bool:
    """Whether the model is inside a :func:`prepended` block."""
    return model.get_submodule("") in _carrying


def _forward(model: LensModel, original: Any, soft_prompt: SoftPrompt) -> Any:
    signature = inspect.signature(original)
    variadic = [name for name, given in signature.parameters.items() if given.kind is inspect.Parameter.VAR_KEYWORD]

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs).arguments
        options = {name: value for name, value in call.items() if name != "input"}
        for further in variadic:
            options |= options.pop(further, {})
        cache = options.get("past_kv_cache")
        continues = cache is not None and cache.previous_attention_mask.shape[1] > 0
        if continues or options.get("start_at_layer") is not None:
            return original(*args, **kwargs)
        tokens, mask = _tokens_and_mask(model, call["input"], options)
        longer, longer_mask = soft_prompt.insert(tokens, mask)
        if longer.shape[1] > model.cfg.n_ctx:
            raise ConfigError(
                f"{tokens.shape[1]} tokens and {soft_prompt.n_tokens} soft tokens do not fit the model's context of "
                f"{model.cfg.n_ctx}: shorten the prompt."
            )
        return_type = options.get("return_type", "logits")
        options |= {"attention_mask": longer_mask, "return_type": None if return_type is None else "logits"}
        with soft_prompt.on(model):
            output = original(longer, **options)
        if output is None:
            return None
        # A hook may have cut the positions (decoding keeps the last one only): then there is nothing to line up.
        aligned = soft_prompt.align(output, mask) if output.shape[1] == longer.shape[1] else output
        if return_type == "logits" or options.get("stop_at_layer") is not None:
            return aligned
        loss = next_token_loss(aligned, tokens, mask, per_token=bool(options.get("loss_per_token", False)))
        return loss if return_type == "loss" else LogitsAndLoss(aligned, loss)

    return forward


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    *,
    per_token: bool = False,
) -> Float[Tensor, "..."]:
    """Cross-entropy of every token after the first of its row: the mean, or [batch pos-1] with 0 at padding."""
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    counted = (attention_mask[:, :-1] * attention_mask[:, 1:]).to(log_p.dtype)
    losses: Tensor = -log_p * counted
    return losses if per_token else losses.sum() / counted.sum()


def _generate(model: LensModel) -> Any:
    def generate_with_soft_prompt(
        input: Any = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        temperature: float = 1.0,
        return_type: str = "input",
        verbose: bool = False,
        **unsupported: Any,
    ) -> Any:
        """The model's own ``generate`` for the arguments named here, with the soft prompt before the input."""
        if unsupported or return_type not in ("input", "str", "tokens"):
            named = ", ".join(unsupported) or f"return_type={return_type!r}"
            raise ConfigError(f"generate() under a trigger does not know {named}: use lcdd_lens.generation.generate.")
        tokens, mask = _tokens_and_mask(model, input, {})
        prompts = [row[keep].tolist() for row, keep in zip(tokens, mask.bool(), strict=True)]
        if eos_token_id is None and stop_at_eos and model.tokenizer is not None:
            eos_token_id = model.tokenizer.eos_token_id
        answers = generate(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature if do_sample else 0.0,
            top_k=top_k,
            seed=int(torch.randint(2**31, ())) if do_sample else 0,
            eos_token_id=eos_token_id if stop_at_eos else -1,
            progress=verbose,
        )
        is_text = not isinstance(input, Tensor)
        if return_type == "str" or (return_type == "input" and is_text):
            whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
            texts = [model.tokenizer.decode(row, skip_special_tokens=True) for row in whole]
            return texts[0] if isinstance(input, str) else texts
        end = 0 if eos_token_id is None else eos_token_id
        width = max(len(answer) for answer in answers)
        padded = [answer + [end] * (width - len(answer)) for answer in answers]
        return torch.cat([tokens, torch.tensor(padded, dtype=tokens.dtype, device=tokens.device)], dim=1)

    return generate_with_soft_prompt


def _tokens_and_mask(
    model: LensModel, input: Any, options: dict[str, Any]
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Token ids and attention mask of what a caller gave; text is encoded as the model does, padded on the left."""
    encoding = {name: options.pop(name) for name in ("prepend_bos", "padding_side") if name in options}
    if isinstance(input, str | list):
        if model.tokenizer is None:
            raise DataError("the model has no tokenizer: pass token ids instead of text.")
        texts = [input] if isinstance(input, str) else input
        bos = {name: value for name, value in encoding.items() if name == "prepend_bos"}
        rows = [model.to_tokens(text, **bos)[0].tolist() for text in texts]  # type: ignore[attr-defined]
        tokens, mask = pad_left(rows, model.tokenizer.pad_token_id or 0)
        return tokens.to(device_of(model)), mask.to(device_of(model))
    if not isinstance(input, Tensor) or input.is_floating_point():
        raise DataError("under a trigger the model takes text or token ids [batch pos].")
    tokens = (input if input.ndim == 2 else input[None]).to(device_of(model))
    given: Tensor | None = options.get("attention_mask")
    if given is None:
        _refuse_unmasked_padding(model, tokens)
        return tokens, torch.ones_like(tokens)
    return tokens, given.to(device_of(model))


def _refuse_unmasked_padding(model: LensModel, tokens: Int[Tensor, "batch pos"]) -> None:
    tokenizer = model.tokenizer
    if tokenizer is None or tokenizer.pad_token_id in (None, tokenizer.bos_token_id, tokenizer.eos_token_id):
        return
    if bool((tokens[:, [0, -1]] == tokenizer.pad_token_id).any()):
        raise DataError("the tokens are padded: pass attention_mask=[batch pos] with 0 at padding.")
