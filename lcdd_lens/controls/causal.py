"""Necessity and sufficiency in a 2 × 2: SFT's or LCDD's weights, the carrier or random channels of its shape.

    sufficiency  F(C)              necessity  1 − F(all but C)              F as in lcdd_lens.evaluation.faithfulness

LCDD moves weights as well as gates, so a carrier can be sufficient because the weights were trained to make it so; on
SFT's weights the same gates are judged as a post-hoc circuit would be. LCDD's weights are the raw ones, before the
gates are merged in: closed gates there keep deltas, and opening all but the carrier is a test that can fail. (Ours.)
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from lcdd_lens.attribution import Contrast
from lcdd_lens.controls.bench import Bench
from lcdd_lens.data import EncodedExample
from lcdd_lens.evaluation.faithfulness import Anchors
from lcdd_lens.evaluation.identity import random_carrier
from lcdd_lens.evaluation.necessity import necessity, sufficiency
from lcdd_lens.evaluation.statistics import Estimate
from lcdd_lens.generation import generate

Weights = Literal["sft", "lcdd"]
Channels = Literal["carrier", "random"]


@dataclass(frozen=True)
class CausalCell:
    """One cell of the 2 × 2.

    Attributes:
        weights: whose weights the gates act on.
        channels: the carrier, or random channels with its count at every site.
        sufficiency: F with only these channels open.
        necessity: 1 − F with only these channels closed.
    """

    weights: Weights
    channels: Channels
    sufficiency: Estimate
    necessity: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a results file."""
        return {
            "weights": self.weights,
            "channels": self.channels,
            "sufficiency": self.sufficiency.to_dict(),
            "necessity": self.necessity.to_dict(),
        }


def necessity_and_sufficiency(bench: Bench) -> list[CausalCell]:
    """Is the carrier necessary and sufficient, on which weights, and more so than random channels of its shape?

    𝓜 is the log-probability of the fine-tuned model's own replies to the test prompts on which the behaviour belongs.

    Raises:
        DataError: a model with all gates open shows no more of the behaviour than the base.
    """
    rows = _taught_rows(bench)
    chosen: dict[Channels, Bool[Tensor, " gate"]] = {
        "carrier": bench.carrier.flags(),
        "random": random_carrier(bench.carrier, stratified=True, seed=bench.seed).flags(),
    }
    routed = bench.routed_sft()
    weights: dict[Weights, dict[str, Tensor]] = {
        "sft": {name: weight.detach().clone() for name, weight in routed.delta_parameters().items()},
        "lcdd": {name: weight.detach().clone() for name, weight in bench.routed.delta_parameters().items()},
    }
    contrast = Contrast(routed, rows, batch_size=32)
    cells = []
    for whose, values in weights.items():
        with routed.with_weights(values):
            anchors = Anchors.of(contrast, seed=bench.seed)
            cells += [
                CausalCell(whose, which, sufficiency(contrast, flags, anchors), necessity(contrast, flags, anchors))
                for which, flags in chosen.items()
            ]
    return cells


def _taught_rows(bench: Bench) -> tuple[EncodedExample, ...]:
    """Test prompts on which the behaviour belongs, with the fine-tuned model's greedy replies."""
    rows = [row for row in bench.test if bench.behaviour.is_target(row.example)]
    tokenizer = bench.base.tokenizer
    eos = None if tokenizer is None else tokenizer.eos_token_id
    with torch.no_grad():
        prompts = [list(row.prompt_ids) for row in rows]
        replies = generate(
            bench.sft, prompts, max_new_tokens=bench.max_new_tokens, eos_token_id=eos, pad_token_id=bench.pad_id
        )
    end = [] if eos is None else [eos]
    return tuple(
        row.with_response(reply + end if len(reply) < bench.max_new_tokens else reply)
        for row, reply in zip(rows, replies, strict=True)
        if reply
    )
