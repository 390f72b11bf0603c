"""Results show themselves in a notebook as tables, shortly, and with every text escaped."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lcdd_lens.backends.pairs import ModelPair, PairReport
from lcdd_lens.backends.sites import Site
from lcdd_lens.carrier import Carrier
from lcdd_lens.controls import CONTROLS
from lcdd_lens.controls.bench import Outcome
from lcdd_lens.controls.registry import ControlResult
from lcdd_lens.data import Behaviour, embedded_behaviour
from lcdd_lens.display import notebook_view
from lcdd_lens.eraser import EraserHistory, EraserResult, Trigger
from lcdd_lens.errors import ArtefactError
from lcdd_lens.evaluation import EvaluationResult
from lcdd_lens.pipeline import Experiment, demo_config
from lcdd_lens.routing import RoutingMasks
from lcdd_lens.training import LCDDResult

ATTACK = "<img src=x onerror=alert(1)>&<script>"


def carrier() -> Carrier:
    sites = (Site(0, "attn_write", "a", 4), Site(0, "ffn_hidden", "b", 8), Site(1, "attn_write", "c", 4))
    return Carrier(sites, {"a": torch.tensor([1, 3]), "b": torch.tensor([0])})


def trigger() -> Trigger:
    return Trigger(torch.eye(2, 4), "before_bos", 16, "", {"kind": ATTACK, "config": {"steps": 3}})


@cache
def behaviour() -> Behaviour:
    return replace(embedded_behaviour("idk"), name=ATTACK)


def evaluation() -> EvaluationResult:
    examples = behaviour().test[:3]
    names = ("base", "sft", "routed+trigger", ATTACK)
    shown = {name: np.array([[float(name == "sft")] * 3]) for name in names}
    back = {name: 1 - value for name, value in shown.items()}
    values = {"shown": shown, "kl": shown, "kl_from_sft": shown}
    values |= {"agreement": back, "agreement_token": back, "accuracy": back}
    answers = {name: ["reply"] * 3 for name in names}
    return EvaluationResult(ATTACK, examples, np.ones(3, dtype=bool), False, values, answers, "base", "sft", 0)


KINDS = ("carrier", "trigger", "lcdd", "eraser", "evaluation", "control", "experiment", "pair", "behaviour")


@cache
def results() -> dict[str, Any]:
    """One of every kind that shows itself."""
    experiment = Experiment.__new__(Experiment)
    experiment.config, experiment.behaviour = demo_config(), behaviour()
    experiment.carrier, experiment.evaluation = carrier(), evaluation()
    sites = RoutingMasks(carrier().sites)
    history: Any = {"step": [1, 2], "loss": [0.5, 0.1], "sparsity": [0.0, 0.9]}
    steps = EraserHistory([1, 2], [2.0, 1.0], [1.0, 1.0], [1.0, 0.5], [0.0, 0.0], [0.1, 0.1], [None, 1.25])
    outcome = Outcome((), {ATTACK: ATTACK})
    report = PairReport({ATTACK: 0.5, "b": 0.0}, {}, (ATTACK,))
    pair = ModelPair.__new__(ModelPair)
    object.__setattr__(pair, "report", report)
    return {
        "carrier": carrier(),
        "trigger": trigger(),
        "lcdd": LCDDResult(carrier(), sites, history, 0.2, 0.1),
        "eraser": EraserResult(trigger(), steps, 2, 1.25, "converged", 3.0),
        "evaluation": evaluation(),
        "control": ControlResult(CONTROLS["kl_only"], outcome, evaluation(), 1.0),
        "experiment": experiment,
        "pair": pair,
        "behaviour": experiment.behaviour,
    }


def test_counts_are_open_channels_by_layer_and_kind() -> None:
    counts = carrier().counts()
    assert counts.loc[0].to_dict() == {"attn_write": 2, "ffn_hidden": 1}
    assert counts.loc[1].to_dict() == {"attn_write": 0, "ffn_hidden": 0}


def test_every_text_is_escaped() -> None:
    frame = pd.DataFrame({ATTACK: [ATTACK]}, index=[ATTACK])
    shown = notebook_view(ATTACK, ATTACK, {ATTACK: ATTACK}, frame)
    assert "<img" not in shown and "<script" not in shown and shown.count("&lt;img") == 7


def test_facts_are_short() -> None:
    shown = notebook_view("t", {"rate": 0.123456, "none": None, "kept": True, "n": 12})
    for text in (">0.1235<", ">–<", ">yes<", ">12<"):
        assert text in shown


@pytest.mark.parametrize("name", KINDS)
def test_results_show_themselves_escaped_and_say_little_in_one_line(name: str) -> None:
    result = results()[name]
    shown = result._repr_html_()
    assert shown.startswith("<p><b>") and "<table" in shown
    assert "<img" not in shown and "<script" not in shown
    assert len(repr(result).splitlines()[0]) < 160


def test_what_a_result_says_in_one_line() -> None:
    found = results()
    assert repr(found["lcdd"]) == (
        "LCDDResult(3 of 16 gates open after 2 steps, loss 0.1 of 0.2 nats per token: budget kept)"
    )
    assert repr(found["eraser"]) == "EraserResult(2 tokens, step 2 of 2 kept, objective 1.25)"
    assert repr(found["control"]) == "ControlResult(kl_only; )"
    assert "3 of 16 gates open, with the trigger reversed" in repr(found["experiment"])


def test_histories_are_data_frames_by_step() -> None:
    found = results()
    assert found["lcdd"].to_dataframe()["loss"].to_dict() == {1: 0.5, 2: 0.1}
    assert list(found["eraser"].to_dataframe().index) == [1, 2]


@pytest.mark.parametrize("artefact", [carrier(), trigger()], ids=["carrier", "trigger"])
def test_artefacts_answer_to_the_names_that_hugging_face_uses(artefact: Any, tmp_path: Path) -> None:
    assert artefact.save_pretrained(tmp_path / "kept") == tmp_path / "kept"
    again = type(artefact).from_pretrained(tmp_path / "kept")
    assert repr(again) == repr(artefact)
    with pytest.raises(ArtefactError):
        type(artefact).from_pretrained(tmp_path / "nothing")
