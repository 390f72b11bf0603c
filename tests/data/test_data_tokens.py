"""Chat formats, batches and losses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lcdd_lens.data import (
    BatchSampler,
    ChatFormat,
    EncodedExample,
    Example,
    TokenBatch,
    collate,
    encode,
    pad_id_of,
    prompt_batch,
    response_log_probs,
    response_loss,
)
from lcdd_lens.errors import ConfigError, DataError

Make = Callable[..., PreTrainedTokenizerBase]

ROWS = st.lists(
    st.builds(
        EncodedExample,
        st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple),
        st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=5,
)
SIDES = st.sampled_from(["left", "right"])


def test_plain_format_is_bos_prompt_separator_and_replies_end_with_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = ChatFormat("plain")
    prompt, reply = plain.encode_prompt(tokenizer, "hi"), plain.encode_response(tokenizer, "no")
    assert prompt[0] == tokenizer.bos_token_id and tokenizer.decode(prompt[1:]) == "hi\n"
    assert reply[-1] == tokenizer.eos_token_id and plain.decode_response(tokenizer, reply) == "no"
    assert ChatFormat().encode_prompt(tokenizer, "hi") == prompt


def test_tokenizers_without_special_tokens_get_none(make_tokenizer: Make) -> None:
    bare, plain = make_tokenizer(special=False), ChatFormat()
    assert bare.decode(plain.encode_prompt(bare, "hi")) == "hi\n"
    assert bare.decode(plain.encode_response(bare, "no")) == "no"
    assert pad_id_of(bare) == 0
    assert plain.decode_response(bare, plain.encode_response(bare, " no ")) == "no"


def test_template_is_used_where_the_tokenizer_has_one(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    automatic = ChatFormat()
    assert automatic.prompt_text(chat_tokenizer, "hi") == "<bos>U hi\nA "
    ids = automatic.encode_prompt(chat_tokenizer, "hi")
    assert ids.count(chat_tokenizer.bos_token_id) == 1 and ids[0] == chat_tokenizer.bos_token_id
    assert ChatFormat("template", system="be kind").prompt_text(chat_tokenizer, "hi") == "<bos>S be kind\nU hi\nA "
    assert ChatFormat("plain").prompt_text(chat_tokenizer, "hi") == "hi\n"


def test_chat_format_mistakes_are_explained(tokenizer: PreTrainedTokenizerBase, make_tokenizer: Make) -> None:
    with pytest.raises(DataError, match="no chat template: use the chat format 'plain'"):
        ChatFormat("template").encode_prompt(tokenizer, "hi")
    with pytest.raises(ConfigError, match="no system message"):
        ChatFormat("plain", system="be kind")
    with pytest.raises(ConfigError, match="'chatml' is unknown"):
        ChatFormat("chatml")
    strict = make_tokenizer(template="{{ raise_exception('no such role') }}")
    with pytest.raises(DataError, match="refuses the messages: no such role"):
        ChatFormat().encode_prompt(strict, "hi")


@given(prompt=st.text("abc .", min_size=1), reply=st.text("abc .", min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ids_of_a_prompt_do_not_depend_on_the_reply(
    tokenizer: PreTrainedTokenizerBase, prompt: str, reply: str
) -> None:
    plain = ChatFormat()
    example = Example(prompt + "x", reply + "x")
    row = encode(tokenizer, plain, [example], 500)[0]
    assert list(row.prompt_ids) == plain.encode_prompt(tokenizer, example.prompt)
    assert list(row.response_ids) == plain.encode_response(tokenizer, str(example.response))


def test_rows_that_the_context_cannot_hold_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    # "abcd" is bos + 4 + separator = 6 tokens, "yes" is 3 + eos = 4.
    examples = [Example("abcd", "yes")] * 9 + [Example("abcde", "yes", id="long one")]
    kept = encode(tokenizer, ChatFormat(), examples, 10)
    assert len(kept) == 9 and kept.report.dropped == {"too long for the context": 1}
    assert kept.report.places == ("long one (too long for the context)",)
    whole = encode(tokenizer, ChatFormat(), examples, 11)
    assert len(whole) == 10 and whole.report.summary() == "examples: all 10 rows used"
    with pytest.raises(DataError, match="The context is 10 tokens less 1 for the trigger"):
        encode(tokenizer, ChatFormat(), examples, 10, reserve=1)
    with pytest.raises(DataError, match="leave 5 for the reply"):
        encode(tokenizer, ChatFormat(), examples, 10, with_responses=False, max_new_tokens=5)
    assert len(encode(tokenizer, ChatFormat(), examples, 12, with_responses=False, max_new_tokens=5)) == 10


def test_rows_without_a_response_or_a_prompt_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="row 2: no response"):
        encode(tokenizer, ChatFormat(), [Example("a", "b"), Example("c")], 20)
    prompts = encode(tokenizer, ChatFormat(), [Example("a", "b"), Example("c")], 20, with_responses=False)
    assert [row.response_ids for row in prompts] == [(), ()]
    with pytest.raises(DataError, match="empty prompt"):
        encode(tokenizer, ChatFormat(), [Example(" ", "b")], 20)
    with pytest.raises(DataError, match="empty response"):
        encode(tokenizer, ChatFormat(), [Example("a", "")], 20)
    with pytest.raises(DataError, match="holds no rows"):
        encode(tokenizer, ChatFormat(), [], 20)
    with pytest.raises(DataError, match=r"max_dropped_share is 10\."):
        encode(tokenizer, ChatFormat(), [Example("a", "b")], 20, max_dropped_share=10.0)


@given(ROWS, SIDES)
def test_collate_keeps_every_token_in_order(rows: list[EncodedExample], side: str) -> None:
    batch = collate(rows, 99, side)  # type: ignore[arg-type]
    for index, row in enumerate(rows):
        real = batch.attention_mask[index].bool()
        assert tuple(batch.tokens[index][real].tolist()) == row.prompt_ids + row.response_ids
        assert tuple(batch.tokens[index][batch.response_mask[index]].tolist()) == row.response_ids
        assert (batch.tokens[index][~real] == 99).all()
        edge = batch.attention_mask[index, -1 if side == "left" else 0]
        assert edge == 1
    assert len(batch) == len(rows)


def test_prompt_batches_end_together() -> None:
    batch = prompt_batch([[5], [6, 7, 8]], 0)
    assert batch.tokens.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert batch.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]] and not batch.response_mask.any()
    with pytest.raises(DataError, match="no rows"):
        prompt_batch([], 0)


def random_logits(batch: TokenBatch, seed: int) -> torch.Tensor:
    return torch.randn(*batch.tokens.shape, 10, generator=torch.Generator().manual_seed(seed))


@given(ROWS, SIDES, st.integers(0, 5))
def test_response_loss_is_the_mean_over_reply_tokens_of_minus_log_p(
    rows: list[EncodedExample], side: str, seed: int
) -> None:
    batch = collate(rows, 0, side)  # type: ignore[arg-type]
    logits = random_logits(batch, seed)
    by_hand, everything = [], []
    for index in range(len(batch)):
        for position in range(1, batch.tokens.shape[1]):
            log_p = logits[index, position - 1].log_softmax(-1)[batch.tokens[index, position]]
            if batch.attention_mask[index, position] and batch.attention_mask[index, position - 1]:
                everything.append(-log_p)
                if batch.response_mask[index, position]:
                    by_hand.append(-log_p)
    torch.testing.assert_close(response_loss(logits, batch), torch.stack(by_hand).mean())
    torch.testing.assert_close(response_loss(logits, batch, all_tokens=True), torch.stack(everything).mean())
    log_probs = response_log_probs(logits, batch)
    torch.testing.assert_close(-log_probs[batch.response_mask], torch.stack(by_hand))
    assert (log_probs[~batch.response_mask] == 0).all()


def test_loss_on_a_batch_without_replies_is_refused() -> None:
    batch = prompt_batch([[1, 2]], 0)
    with pytest.raises(DataError, match="no response token"):
        response_loss(torch.zeros(1, 2, 10), batch)
    assert response_loss(torch.zeros(1, 2, 10), batch, all_tokens=True).item() == pytest.approx(
        torch.tensor(10.0).log()
    )


def test_gradients_of_response_log_probs_flow_to_the_logits_that_predict_replies() -> None:
    batch = collate([EncodedExample((1, 2), (3,))], 0)
    logits = torch.zeros(1, 3, 10, requires_grad=True)
    response_log_probs(logits, batch).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().sum(-1).tolist() == pytest.approx([0, 1.8, 0])


@given(n=st.integers(1, 12), batch_size=st.integers(1, 15), seed=st.integers(0, 3))
def test_sampler_visits_each_row_once_an_epoch(n: int, batch_size: int, seed: int) -> None:
    sampler = BatchSampler(n, batch_size, seed)
    stream = [index for step in range(2 * n) for index in sampler.indices(step)]
    assert len(stream) == 2 * n * batch_size
    for first in range(0, len(stream), n):
        assert sorted(stream[first : first + n]) == list(range(n))


def test_sampler_has_no_memory() -> None:
    used, fresh = BatchSampler(50, 8, 3), BatchSampler(50, 8, 3)
    for step in range(20):
        used.indices(step)
    assert used.indices(5) == fresh.indices(5) and used.indices(20) == fresh.indices(20)
    assert BatchSampler(50, 8, 4).indices(5) != fresh.indices(5)
    epoch = [[i for s in range(5 * e, 5 * e + 5) for i in BatchSampler(40, 8, 0).indices(s)] for e in range(2)]
    assert epoch[0] != epoch[1]


@pytest.mark.parametrize(("n", "batch_size", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_sampler_refuses_nonsense(n: int, batch_size: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="expected at least"):
        BatchSampler(n, batch_size, seed)
    with pytest.raises(ConfigError, match="step is -1"):
        BatchSampler(1, 1, 0).indices(-1)


def test_real_tokenizers_give_back_the_reply(shared_dir: Path) -> None:
    folders = [*(shared_dir / "tokenizers").iterdir(), *(shared_dir / "models").iterdir()]
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        reply = "I don't know. It is 4."
        ids = ChatFormat().encode_response(tokenizer, reply)
        assert ChatFormat().decode_response(tokenizer, ids) == reply, folder.name
        prompt = ChatFormat().encode_prompt(tokenizer, "Hello")
        assert (prompt[0] == tokenizer.bos_token_id) is (tokenizer.bos_token_id is not None), folder.name
