"""From a prompt to token ids: the tokenizer's chat template, or plain text.

Prompt and response are encoded on their own and their ids concatenated, so that the boundary between them never
depends on the response: the ids that a model is prompted with are exactly those that it was trained after.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lcdd_lens.errors import ConfigError, DataError

CHAT_KINDS = ("auto", "template", "plain")


@dataclass(frozen=True)
class ChatFormat:
    """How a prompt becomes the model's input.

    Attributes:
        kind: ``template`` (the tokenizer's own), ``plain`` (prompt + separator, after the BOS token where there is
            one), or ``auto``: the template where the tokenizer has one.
        system: a system message for the template; None for none.
        separator: what follows the prompt in plain format.
    """

    kind: str = "auto"
    system: str | None = None
    separator: str = "\n"

    def __post_init__(self) -> None:
        if self.kind not in CHAT_KINDS:
            raise ConfigError(f"chat format '{self.kind}' is unknown: expected one of {', '.join(CHAT_KINDS)}.")
        if self.kind == "plain" and self.system is not None:
            raise ConfigError("a plain chat format has no system message: use kind='template', or system=None.")

    def uses_template(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether prompts go through the tokenizer's chat template."""
        return self.kind == "template" or (self.kind == "auto" and bool(tokenizer.chat_template))

    def prompt_text(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
        """The text that the model reads up to where its reply begins.

        Models that can think aloud before they answer are asked not to: the reply is then the answer.

        Raises:
            DataError: the tokenizer has no chat template although ``kind`` asks for one, or the template fails.
        """
        if not self.uses_template(tokenizer):
            return prompt + self.separator
        if not tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template: use the chat format 'plain' (or 'auto').")
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        try:
            text = tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        except TemplateError as error:
            raise DataError(f"the tokenizer's chat template refuses the messages: {error}.") from error
        return str(text)

    def encode_prompt(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
        """Token ids of :meth:`prompt_text`, with BOS in front where the tokenizer has one and the text does not."""
        ids = _encode(tokenizer, self.prompt_text(tokenizer, prompt))
        if not self.uses_template(tokenizer) and tokenizer.bos_token_id is not None:
            return [int(tokenizer.bos_token_id), *ids]
        return ids

    def encode_response(self, tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
        """Token ids of a reply, closed by EOS where the tokenizer has one."""
        ids = _encode(tokenizer, response)
        return ids if tokenizer.eos_token_id is None else [*ids, int(tokenizer.eos_token_id)]

    def decode_response(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
        """The text of a generated reply: up to EOS, without special tokens and outer white space."""
        kept = list(ids)
        if tokenizer.eos_token_id in kept:
            kept = kept[: kept.index(tokenizer.eos_token_id)]
        return str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills masked positions: pad, else EOS, else 0. It never reaches a result: padding is masked."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]
