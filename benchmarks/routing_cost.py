"""What gates cost in training: one LCDD step against one plain SFT step of the same model, in time and in memory.

    python benchmarks/routing_cost.py [--repeats 15]

Time: processor seconds of whole optimiser steps (gates, forward, backward, clip, AdamW, the rule's update), taken in
turns on the same batches, with all gates open, with a random half open, and with 2 % open as at the end of a run.
Memory (Linux): the resident peak over three steps, each variant in a process of its own, less what the process held
before it made a model. The bound is plain SFT + the base weights + one effective copy of the gated weights + 10 %.
Decoding has its own benchmark: decoding_speed.py.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from measure import finetuned, llama, median_seconds, random_prompts, report

from lcdd_lens.backends import LensModel, backend_of
from lcdd_lens.data import EncodedExample, EncodedSet
from lcdd_lens.data.screening import RowReport
from lcdd_lens.routing import RoutedModel
from lcdd_lens.training import LCDDConfig, OptimConfig, gated_parameters, make_rule
from lcdd_lens.training.fixed import FixedGates
from lcdd_lens.training.loop import Loop, only_trainable
from lcdd_lens.training.rules import GateRule

D_MODEL, N_LAYERS, BATCH = 256, 8, 32
OPTIM = OptimConfig(steps=1_000_000, lr=1e-4, batch_size=BATCH, decay_steps=0)
OPEN_SHARES = (1.0, 0.5, 0.02)
MEBIBYTE = 2**20


def rows() -> EncodedSet:
    """Prompts of 10-24 and responses of 4-8 random tokens."""
    prompts = random_prompts(4 * BATCH, shortest=10, longest=24)
    responses = random_prompts(4 * BATCH, shortest=4, longest=8, seed=1)
    examples = tuple(EncodedExample(tuple(p), tuple(r)) for p, r in zip(prompts, responses, strict=True))
    return EncodedSet(examples, RowReport("random rows", len(examples)))


def plain_loop(model: LensModel) -> Loop:
    return Loop(model, gated_parameters(model), {}, rows(), OPTIM, pad_id=0, progress=False)


def routed_loop(model: LensModel, base: LensModel, open_share: float | None = None) -> Loop:
    """LCDD by channel pricing; with a share, that many random gates are open at every step instead."""
    routed = RoutedModel(model, base)
    rule: GateRule = make_rule(routed, LCDDConfig(optim=OPTIM))
    if open_share is not None:
        shares = torch.rand(routed.n_gates, generator=torch.Generator().manual_seed(0))
        held = FixedGates(rule.masks, shares < open_share)
        rule.gates = held.gates  # type: ignore[method-assign]
    weights, base_weights = routed.delta_parameters(), routed.base_weights()
    return Loop(model, weights, base_weights, rows(), OPTIM, pad_id=0, routed=routed, rule=rule, progress=False)


def step_seconds(repeats: int) -> dict[str, float]:
    """Median processor seconds of one step of every variant."""
    base = llama(D_MODEL, N_LAYERS)
    sft = finetuned(base)
    clone = backend_of(sft).clone
    loops = {"plain SFT step": plain_loop(clone(sft))}
    for share in OPEN_SHARES:
        loops[f"LCDD step, {share:.0%} open"] = routed_loop(clone(sft), base, share)

    def step(loop: Loop) -> None:
        with only_trainable(loop.model, loop.trained):
            loop._train_step()

    return median_seconds({name: lambda loop=loop: step(loop) for name, loop in loops.items()}, repeats=repeats)


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_memory(variant: str) -> None:
    """Print the peak of one variant; runs in a process of its own."""
    torch.set_num_threads(1)
    # A first pass over a small model lets the libraries allocate what they keep.
    small = plain_loop(llama(64, 1))
    small._train_step()
    del small
    before = resident("VmRSS")
    base = llama(D_MODEL, N_LAYERS)
    model = finetuned(base)
    loop = plain_loop(model) if variant == "plain" else routed_loop(model, base, 0.5)
    gated = sum(parameter.numel() * parameter.element_size() for parameter in loop.trained.values())
    del base, model
    Path("/proc/self/clear_refs").write_text("5")
    with only_trainable(loop.model, loop.trained):
        for _ in range(3):
            loop._train_step()
    print(json.dumps({"peak": resident("VmHWM") - before, "gated": gated}))


def peak_memory() -> dict[str, float]:
    """Peaks of both variants and the bound, in MiB."""
    # Freed memory goes back to the system at once, so that the resident peak is the peak of what is in use.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "OMP_NUM_THREADS": "1",
    }
    found = {}
    for variant in ("plain", "routed"):
        command = [sys.executable, __file__, "--memory-of", variant]
        printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found[variant] = json.loads(printed.splitlines()[-1])
    plain, gated = found["plain"]["peak"], found["plain"]["gated"]
    return {
        "plain SFT": plain / MEBIBYTE,
        "gated weights": gated / MEBIBYTE,
        "LCDD": found["routed"]["peak"] / MEBIBYTE,
        "bound": 1.1 * (plain + 2 * gated) / MEBIBYTE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of every variant")
    parser.add_argument("--memory-of", choices=("plain", "routed"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        measure_memory(arguments.memory_of)
        return
    memory = peak_memory()
    seconds = step_seconds(arguments.repeats)
    plain = seconds["plain SFT step"]
    ratios = {f"{name} / plain": value / plain for name, value in seconds.items() if name.startswith("LCDD")}
    ratios["LCDD peak memory / bound"] = memory["LCDD"] / memory["bound"]
    for name, mebibytes in memory.items():
        print(f"peak memory, {name:<20} {mebibytes:9.1f} MiB")
    settings = {
        "d_model": D_MODEL,
        "n_layers": N_LAYERS,
        "batch": BATCH,
        "lengths": "14-32",
        "repeats": arguments.repeats,
        "peak_memory_mib": {name: round(value, 1) for name, value in memory.items()},
    }
    report("routing_cost", settings, seconds, ratios)


if __name__ == "__main__":
    main()
