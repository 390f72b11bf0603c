"""Behaviours, chat formats, tokens: from prompts on disk to batches with response masks."""

from lcdd_lens.data.behaviours import Behaviour, embedded_behaviour, hold_out
from lcdd_lens.data.chat import ChatFormat, pad_id_of
from lcdd_lens.data.examples import Example, prompt_key
from lcdd_lens.data.files import read_jsonl
from lcdd_lens.data.sampling import BatchSampler
from lcdd_lens.data.scorers import (
    SCORERS,
    Archaic,
    FixedResponse,
    FunctionScorer,
    Refusal,
    Scorer,
    as_scorer,
    scorer_by_name,
)
from lcdd_lens.data.screening import RowReport
from lcdd_lens.data.tokens import (
    EncodedExample,
    EncodedSet,
    TokenBatch,
    collate,
    encode,
    prompt_batch,
    response_log_probs,
    response_loss,
)

__all__ = [
    "SCORERS",
    "Archaic",
    "BatchSampler",
    "Behaviour",
    "ChatFormat",
    "EncodedExample",
    "EncodedSet",
    "Example",
    "FixedResponse",
    "FunctionScorer",
    "Refusal",
    "RowReport",
    "Scorer",
    "TokenBatch",
    "as_scorer",
    "collate",
    "embedded_behaviour",
    "encode",
    "hold_out",
    "pad_id_of",
    "prompt_batch",
    "prompt_key",
    "read_jsonl",
    "response_log_probs",
    "response_loss",
    "scorer_by_name",
]
