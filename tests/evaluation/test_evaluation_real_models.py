"""Evaluation on real checkpoints, with and without special tokens."""

from pathlib import Path

import pytest

from lcdd_lens.backends.loading import load_model
from lcdd_lens.data import Behaviour, ChatFormat, Example, FixedResponse, encode, read_jsonl
from lcdd_lens.eraser import random_token_trigger
from lcdd_lens.evaluation import Condition, evaluate_conditions, random_condition


@pytest.mark.parametrize(
    ("model_name", "longest", "new_tokens", "ends"),
    [("tinystories656k_llama", 200, 8, True), ("tinystories_char_gpt2", 20, 8, False)],
)
def test_a_real_model_agrees_with_itself_and_not_with_itself_under_random_tokens(
    shared_dir: Path, model_name: str, longest: int, new_tokens: int, ends: bool
) -> None:
    model = load_model(shared_dir / "models" / model_name)
    assert (model.tokenizer.eos_token_id is not None) is ends
    rows = read_jsonl(shared_dir / "data/fixed_response/self_instruct_seed_175.jsonl")[0]
    examples = tuple(Example(row.prompt[:longest].strip(), id=row.id) for row in rows)
    behaviour = Behaviour(
        "idk", (Example("train", "I don't know."),), examples[:4], examples[4:20], FixedResponse(), ChatFormat("plain")
    )
    prompts = encode(
        model.tokenizer,
        behaviour.chat_format,
        behaviour.test,
        model.cfg.n_ctx,
        with_responses=False,
        max_new_tokens=new_tokens,
        reserve=2,
        max_dropped_share=0.3,
    )
    control = random_condition("random", model, random_token_trigger(model, 2), draws=2)
    result = evaluate_conditions(
        [Condition("base", model), Condition("sft", model), control],
        behaviour,
        prompts,
        max_new_tokens=new_tokens,
        progress=False,
    )
    assert result.estimate("agreement", "sft").value == 1 and result.estimate("kl", "sft").value == 0
    assert result.estimate("kl", "random").value > 0.01
    assert all(result.answers["base"])
