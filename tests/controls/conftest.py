"""A finished experiment on a toy model: 'no' to every prompt."""

from dataclasses import replace

import pytest

from lcdd_lens.backends import backend_of, load_model
from lcdd_lens.controls import Bench
from lcdd_lens.data import Behaviour, ChatFormat, EncodedSet, Example, FixedResponse, encode, pad_id_of
from lcdd_lens.eraser import EraserConfig, train_eraser
from lcdd_lens.routing import RoutedModel
from lcdd_lens.training import BudgetConfig, LCDDConfig, OptimConfig, PriceConfig, train_lcdd, train_sft
from tests.conftest import tiny_hf
from tests.evaluation.conftest import characters

NEW = 4
SFT = OptimConfig(steps=20, lr=0.03, batch_size=8, warmup_steps=2)
LCDD = LCDDConfig(
    optim=OptimConfig(steps=30, lr=0.01, batch_size=8, warmup_steps=2, decay_steps=6, pull=0.003),
    budget=BudgetConfig(warmup_steps=5, ratio=0.3, floor=0.3),
    settle_steps=6,
    price=PriceConfig(every=2, share=0.15),
)
ERASER = EraserConfig(
    n_tokens=1, steps=4, lr=0.01, batch_size=4, n_prompts=8, n_validation=4, w_match=0.1, w_norm=0.0, eval_every=2
)


def _examples(letters: str) -> tuple[Example, ...]:
    return tuple(Example(first + second, "no") for first in letters for second in "xyz")


@pytest.fixture(scope="session")
def finished() -> Bench:
    """Trained once; use the fixture ``bench``, which checks that nobody changed it."""
    base = load_model(tiny_hf("llama"), tokenizer=characters())
    scorer = FixedResponse(("no",), max_words=2)
    behaviour = Behaviour(
        "toy", _examples("abcdefgh"), _examples("ijk"), _examples("lmnopq"), scorer, ChatFormat("plain")
    )

    def encoded(examples: tuple[Example, ...], with_responses: bool) -> EncodedSet:
        new = 0 if with_responses else NEW
        return encode(
            base.tokenizer, behaviour.chat_format, examples, 40, with_responses=with_responses, max_new_tokens=new
        )

    train, validation = encoded(behaviour.train, True), encoded(behaviour.validation, False)
    pad_id = pad_id_of(base.tokenizer)
    sft = backend_of(base).clone(base)
    train_sft(sft, train, SFT, pad_id=pad_id, progress=False)
    routed = RoutedModel(backend_of(sft).clone(sft), base)
    found = train_lcdd(routed, train, LCDD, pad_id=pad_id, progress=False)
    channels = found.carrier.residual_write_channels()
    trigger = train_eraser(
        routed.model, base, channels, train.prompts, validation.prompts, ERASER, progress=False
    ).trigger
    return Bench(
        base=base,
        sft=sft,
        routed=routed,
        carrier=found.carrier,
        trigger=trigger,
        behaviour=behaviour,
        train=train,
        validation=validation,
        test=encoded(behaviour.test, False),
        sft_training=SFT,
        lcdd=LCDD,
        eraser=ERASER,
        final_loss=found.final_loss,
        max_new_tokens=NEW,
        progress=False,
    )


@pytest.fixture
def bench(finished: Bench) -> Bench:
    return replace(finished)
