"""Fine-tuning without gates: is it the carrier that makes a behaviour reversible, or the size of the change?

The paper compares LCDD with plain SFT. LCDD's weights also move less, fit less closely and train longer; each function
here grants one of these to a model without gates and asks whether a trigger reverses it too. (The prototype found a
dense model at ‖Δ‖ 0.8 reversed as well as LCDD's: sparsity is confounded with small weight change.)
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from lcdd_lens.controls.bench import Bench, Outcome, delta_norm, dense_outcome
from lcdd_lens.routing import RoutedModel
from lcdd_lens.training import History, OptimConfig, train_sft, train_under_mask

SMOOTHING = 9  # steps over which a batch loss is averaged to find where it meets a target


def matched_sft(bench: Bench, tolerance: float = 0.25, max_runs: int = 3) -> Outcome:
    """Is a small weight change enough, without any gate?

    LCDD's own training with every gate held open,  min_W L(W) + c·‖W − W_B‖²,  and the pull c moved by
    c ← c·(‖Δ‖/‖Δ_LCDD‖)² until ‖Δ‖ is LCDD's within the tolerance; the closest run is kept. (Ours.)

    Args:
        bench: the experiment.
        tolerance: accepted relative deviation from LCDD's ‖Δ‖.
        max_runs: trainings at most.
    """
    target = delta_norm(bench.routed.model, bench.base)
    pull = bench.lcdd.optim.pull or 0.01
    runs: list[tuple[float, float, RoutedModel, History]] = []
    for _ in range(max_runs):
        routed, history = _without_gates(bench, replace(bench.lcdd.optim, pull=pull))
        ratio = delta_norm(routed.model, bench.base) / target
        runs.append((abs(math.log(ratio)), pull, routed, history))
        if runs[-1][0] <= math.log1p(tolerance):
            break
        pull *= min(max(ratio**2, 1 / 30), 30.0)
    _, pull, routed, history = min(runs, key=lambda run: run[0])
    facts = {"pull": pull, "lcdd_delta_norm": target, "loss": history["ema"][-1], "runs": len(runs)}
    return dense_outcome(bench, "matched_sft", routed.merged(), facts)


def longer_sft(bench: Bench) -> Outcome:
    """Is it only that LCDD trains on for longer?

    LCDD's optimiser and steps on the fine-tuned weights, every gate open, no pull. (Ours.)
    """
    routed, history = _without_gates(bench, replace(bench.lcdd.optim, pull=0.0))
    return dense_outcome(bench, "longer_sft", routed.merged(), {"loss": history["ema"][-1]})


def early_stopped_sft(bench: Bench) -> Outcome:
    """Is it only that LCDD fits the behaviour less closely than plain fine-tuning does?

    Plain SFT at a constant rate, ended at the first step whose batch loss, averaged over the steps around it, is LCDD's
    final loss or less. (Ours.)
    """
    whole = replace(bench.sft_training, decay_steps=0)
    history = train_sft(bench.new_base(), bench.train, whole, pad_id=bench.pad_id, progress=bench.progress)
    stop = first_at_most(history["loss"], bench.final_loss)
    model = bench.new_base()
    # A step depends on seed and number alone, so the shorter run is the longer one's beginning.
    history = train_sft(model, bench.train, replace(whole, steps=stop), pad_id=bench.pad_id, progress=bench.progress)
    facts = {"steps": stop, "lcdd_loss": bench.final_loss, "loss": history["loss"][-1]}
    return dense_outcome(bench, "early_stopped_sft", model, facts)


def gentle_sft(bench: Bench, slower: float = 0.1, longer: int = 4) -> Outcome:
    """Does a low learning rate alone make fine-tuning reversible?

    Plain SFT at a tenth of the rate for four times the steps. (Ours.)

    Args:
        bench: the experiment.
        slower: factor on the learning rate.
        longer: factor on the steps.
    """
    plain = bench.sft_training
    config = replace(plain, lr=slower * plain.lr, steps=longer * plain.steps)
    model = bench.new_base()
    history = train_sft(model, bench.train, config, pad_id=bench.pad_id, progress=bench.progress)
    facts = {"lr": config.lr, "steps": config.steps, "loss": history["ema"][-1]}
    return dense_outcome(bench, "gentle_sft", model, facts)


def first_at_most(losses: Sequence[float | int], target: float, window: int = SMOOTHING) -> int:
    """The first step, counted from 1, whose loss averaged over the window around it is at most the target; the last
    step where none is."""
    for step in range(1, len(losses) + 1):
        around = losses[max(0, step - 1 - window // 2) : step + window // 2]
        if sum(around) / len(around) <= target:
            return step
    return len(losses)


def _without_gates(bench: Bench, config: OptimConfig) -> tuple[RoutedModel, History]:
    routed = bench.routed_sft()
    everything = torch.ones(routed.n_gates, dtype=torch.bool)
    history = train_under_mask(routed, everything, bench.train, config, pad_id=bench.pad_id, progress=bench.progress)
    return routed, history
