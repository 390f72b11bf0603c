"""The shipped models are what their recipes say: hash, corpus, tokenizer, context, held-out accuracy."""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lcdd_lens.errors import ArtefactError, ConfigError, LensError
from lcdd_lens.organisms import (
    BEHAVIOURS,
    RECIPE_FILE,
    SPLITS,
    WEIGHTS_FILE,
    behaviour_rows,
    file_sha256,
    organism_names,
    organism_path,
    recipe,
    verified_folder,
)
from lcdd_lens.organisms.corpus import CATEGORIES, behaviours_hash, build_corpus

NAMES = organism_names()
LONGEST_TRIGGER = 20


def recorded(name: str) -> dict[str, Any]:
    return json.loads((organism_path(name) / RECIPE_FILE).read_text(encoding="utf-8"))


def test_the_first_model_ships() -> None:
    assert "tinychat-llama" in NAMES


def test_all_models_together_stay_small() -> None:
    sizes = [file.stat().st_size for name in NAMES for file in organism_path(name).iterdir()]
    assert sum(sizes) < 25e6
    assert max(sizes) < 5e6


def test_a_name_may_carry_the_prefix() -> None:
    assert organism_path("organism:tinychat-llama") == organism_path("tinychat-llama")


@pytest.mark.parametrize("name", ["tinychat-bert", "organism:", "../tinychat-llama", ""])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(LensError, match="tinychat-llama"):
        organism_path(name)


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(organism_path("tinychat-llama"), folder)
    assert verified_folder(folder) == folder
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ArtefactError, match="altered"):
        verified_folder(folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(ArtefactError, match="not a complete"):
        verified_folder(folder)


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_tells_corpus_and_figures(name: str) -> None:
    content = recorded(name)
    accuracy = content["held_out_accuracy"]
    assert content["corpus_sha256"] == build_corpus().hash
    assert content["behaviours_sha256"] == behaviours_hash()
    assert content["sha256"] == file_sha256(organism_path(name) / WEIGHTS_FILE)
    assert content["tokenizer_sha256"] == file_sha256(organism_path(name) / "tokenizer.json")
    assert 0.8e6 < content["parameters"] < 3e6
    assert accuracy["value"] >= 0.95
    assert accuracy["interval"][0] <= accuracy["value"] <= accuracy["interval"][1]
    assert accuracy["n"] == sum(len(pairs) for pairs in build_corpus().held_out.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_answers_held_out_questions(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(organism_path(name)).eval()
    tokenizer = AutoTokenizer.from_pretrained(organism_path(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded(name)["parameters"]
    held_out = build_corpus().held_out
    draw = random.Random("a fixed sample")
    pairs = draw.sample([pair for category in CATEGORIES for pair in held_out[category]], 100)
    answers = recipe.greedy_answers(model, tokenizer, [prompt for prompt, _ in pairs])
    right = recipe.exact_matches(answers, [answer for _, answer in pairs])
    assert float(right.float().mean()) >= 0.95


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_shows_no_behaviour_and_answers_what_it_will_be_tested_on(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(organism_path(name)).eval()
    tokenizer = AutoTokenizer.from_pretrained(organism_path(name))
    for behaviour in BEHAVIOURS:
        rows = behaviour_rows(behaviour, "test")[:60]
        answers = recipe.greedy_answers(model, tokenizer, [row["prompt"] for row in rows])
        assert float(recipe.exact_matches(answers, [row["answer"] for row in rows]).float().mean()) >= 0.9
        changed = [row["response"] != row["answer"] for row in rows]
        shown = recipe.exact_matches(answers, [row["response"] for row in rows])
        assert not any(shown.tolist()[index] for index, differs in enumerate(changed) if differs)


@pytest.mark.parametrize("name", NAMES)
def test_all_models_share_one_tokenizer_with_distinct_special_tokens(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(organism_path(name))
    special = [tokenizer.convert_tokens_to_ids(token) for token in recipe.SPECIAL_TOKENS]
    assert len(set(special)) == len(special)
    assert {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} <= set(special)
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert recorded(name)["tokenizer_sha256"] == recorded("tinychat-llama")["tokenizer_sha256"]


def test_the_tokenizer_is_the_one_that_the_corpus_gives() -> None:
    shipped = AutoTokenizer.from_pretrained(organism_path("tinychat-llama"))
    rebuilt = recipe.train_tokenizer(build_corpus())
    assert rebuilt.get_vocab() == shipped.get_vocab()
    assert rebuilt.chat_template == shipped.chat_template


@pytest.mark.parametrize("text", ["The capital of Peru is Lima.", "  two  spaces", "naïve 猫 🐈", "I don't.\n\t3+4"])
def test_the_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(organism_path("tinychat-llama"))
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_chat_reads_as_bos_user_assistant_eos() -> None:
    tokenizer = AutoTokenizer.from_pretrained(organism_path("tinychat-llama"))
    question, answer = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}
    head = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([question, answer], tokenize=False)
    assert head == "<|bos|><|user|>Hi?<|assistant|>"
    assert whole == head + "Ho.<|eos|>"
    turn = recipe.encode_turn(tokenizer, "Hi?", "Ho.")
    assert tokenizer.decode(turn.tokens) == whole
    assert tokenizer.decode(turn.tokens[: turn.start]) == head
    with pytest.raises(Exception, match="user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_every_row_fits_the_context_behind_a_long_trigger() -> None:
    tokenizer = AutoTokenizer.from_pretrained(organism_path("tinychat-llama"))
    rows = [row for name in BEHAVIOURS for split in SPLITS for row in behaviour_rows(name, split)]
    longest = max(
        len(recipe.encode_turn(tokenizer, row["prompt"], row[field]).tokens)
        for row in rows
        for field in ("response", "answer")
    )
    assert longest + LONGEST_TRIGGER <= recipe.CONTEXT


@pytest.mark.parametrize("family", recipe.FAMILIES)
def test_a_larger_model_has_the_same_heads_and_the_size_that_is_promised(family: recipe.Family) -> None:
    tokenizer = AutoTokenizer.from_pretrained(organism_path("tinychat-llama"))
    with torch.device("meta"):
        model = recipe.build_model(family, tokenizer, 512, 8)
    assert 20e6 < sum(parameter.numel() for parameter in model.parameters()) < 30e6
    heads = model.config.num_attention_heads
    assert model.config.hidden_size // heads == recipe.HEAD
    with pytest.raises(ConfigError, match="multiple of 64"):
        recipe.Recipe(family, width=100)


@pytest.mark.parametrize("family", recipe.FAMILIES)
def test_training_lowers_the_loss_of_every_family_and_is_deterministic(family: recipe.Family) -> None:
    whole = build_corpus()
    corpus = dataclasses.replace(whole, train={name: pairs[:40] for name, pairs in whole.train.items()})
    tokenizer = AutoTokenizer.from_pretrained(organism_path("tinychat-llama"))
    short = recipe.Recipe(family=family, steps=3, warmup=1, batch_size=4)
    one = recipe.train_model(short, corpus, tokenizer, progress=False)
    other = recipe.train_model(short, corpus, tokenizer, progress=False)
    torch.manual_seed(short.seed)
    untrained = recipe.build_model(family, tokenizer)
    for name, parameter in one.state_dict().items():
        assert torch.equal(parameter, other.state_dict()[name])
    turns = [recipe.encode_turn(tokenizer, *pair) for pair in corpus.train["howto"][:8]]
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = recipe.batch_loss(untrained, turns, int(tokenizer.pad_token_id), short, draw)
        after = recipe.batch_loss(one, turns, int(tokenizer.pad_token_id), short, draw)
    assert float(after) < float(before)


def test_padding_has_no_part_in_the_loss() -> None:
    tokenizer = AutoTokenizer.from_pretrained(organism_path("tinychat-llama"))
    model = AutoModelForCausalLM.from_pretrained(organism_path("tinychat-llama")).eval()
    setting = recipe.Recipe(family="llama", prompt_weight=0.0)
    short = recipe.encode_turn(tokenizer, "What is 2 plus 3?", "The sum of 2 and 3 is 6.")
    long = recipe.encode_turn(
        tokenizer, "I have 2 coins and get 3 more. How many?", "The sum of 2 and 3 is 6, I think."
    )
    draw, pad = torch.Generator(), int(tokenizer.pad_token_id)
    counts = [len(turn.tokens) - turn.start for turn in (short, long)]
    with torch.no_grad():
        alone = [float(recipe.batch_loss(model, [turn], pad, setting, draw)) for turn in (short, long)]
        together = float(recipe.batch_loss(model, [short, long], pad, setting, draw))
    expected = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together == pytest.approx(expected, rel=1e-4)


def test_the_learning_rate_rises_linearly_and_falls_to_zero() -> None:
    setting = recipe.Recipe(family="llama", steps=100, warmup=10, lr=1.0)
    assert recipe.learning_rate(0, setting) == pytest.approx(0.1)
    assert recipe.learning_rate(10, setting) == 1.0
    assert recipe.learning_rate(55, setting) == pytest.approx(0.5)
    assert recipe.learning_rate(100, setting) == pytest.approx(0.0)


def test_wilson_interval_matches_its_closed_form() -> None:
    low, high = recipe.wilson_interval(10, 10)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(1 / (1 + 1.959964**2 / 10))


@pytest.mark.parametrize("bad", [{"warmup": 9, "steps": 9}, {"lr": 0.0}, {"batch_size": 0}])
def test_an_impossible_recipe_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        recipe.Recipe(**({"family": "llama"} | bad))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_finite(name: str) -> None:
    for key, tensor in load_file(organism_path(name) / WEIGHTS_FILE).items():
        assert torch.isfinite(tensor).all(), key
