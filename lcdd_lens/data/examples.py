"""The unit of every data set here: one prompt with what fine-tuning teaches as its answer.

Two different answers can belong to a prompt: ``response`` is what supervised fine-tuning teaches (the behaviour), and
``answer`` is a right answer in the base model's own words, where the data has one. The second measures utility: a
behaviour is reversed only when such answers come back (paper, arXiv 2605.06632, section 5).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One prompt and its answers.

    Attributes:
        prompt: what the user says, without any chat template.
        response: what fine-tuning teaches as the reply; None in evaluation sets that hold prompts only.
        label: the kind of prompt, for example ``general``, ``harmful`` or ``benign``.
        answer: a right reply in the base model's words, for task accuracy; None where the data has none.
        id: a name for reports that should not show the prompt.
    """

    prompt: str
    response: str | None = None
    label: str = "general"
    answer: str | None = None
    id: str = ""


def prompt_key(prompt: str) -> str:
    """What makes two prompts the same one: letter case and white space are ignored."""
    return " ".join(prompt.casefold().split())
