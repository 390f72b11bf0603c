"""Every method on a model of GPT-2's size: 12 layers, 124 million parameters, random weights, one thread.

    python benchmarks/attribution_scale.py [--prompts 4] [--length 12]

Each method runs over all channels (exact patching over a selection, masks for a few steps), in float32 on the CPU.
Writes benchmarks/results/attribution_scale.json: processor seconds per method and the peak memory of the process.
"""

import argparse
import os
import resource
import time
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import RESULTS, finetuned, random_prompts
from transformers import GPT2Config, GPT2LMHeadModel

from lcdd_lens.attribution import (
    ActivationIntegratedGradients,
    AttributionPatching,
    Contrast,
    ExactPatching,
    Magnitude,
    MaskOnly,
    Method,
    RandomOrder,
    WeightDelta,
    WeightIntegratedGradients,
    attribute,
    select_channels,
)
from lcdd_lens.backends import load_model
from lcdd_lens.data import EncodedExample
from lcdd_lens.io import write_json_atomic
from lcdd_lens.routing import RoutedModel

REPLY, WEIGHT_STEPS, EXACT_CHANNELS, MASK_STEPS, ACTIVATION_STEPS = 4, 4, 16, 10, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--length", type=int, default=12, help="tokens of a prompt with its reply")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = load_model(GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).eval())
    sft = finetuned(base, scale=0.002)
    ids = random_prompts(args.prompts, shortest=args.length, longest=args.length, vocabulary=base.cfg.d_vocab)
    rows = tuple(EncodedExample(tuple(row[:-REPLY]), tuple(row[-REPLY:])) for row in ids)
    contrast = Contrast(RoutedModel(sft, base), rows, batch_size=args.prompts)
    seconds = {}
    for method in methods(contrast):
        started = time.process_time()
        attribute(method, contrast)
        seconds[method.name] = round(time.process_time() - started, 1)
        print(f"{method.name}: {seconds[method.name]} s", flush=True)
    cfg = base.cfg
    settings = {
        "parameters": 124_439_808,
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "prompts": args.prompts,
        "length": args.length,
        "reply": REPLY,
        "weight_steps": WEIGHT_STEPS,
        "exact_channels": EXACT_CHANNELS,
        "mask_steps": MASK_STEPS,
        "activation_steps": ACTIVATION_STEPS,
    }
    found = {
        "settings": settings,
        "n_channels": contrast.routed.n_gates,
        "processor_seconds": seconds,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    write_json_atomic(RESULTS / "attribution_scale.json", found)
    print(f"{found['n_channels']:,} channels, {sum(seconds.values()):.0f} s, at most {found['peak_gb']} GB")


def methods(contrast: Contrast) -> Iterator[Method]:
    """Cheap ones first; what only approximates its full cost says so in its options."""
    yield RandomOrder()
    yield from (Magnitude(variant) for variant in ("delta", "relative", "activation", "activation_change"))
    yield from (AttributionPatching(where, sites_at_once=32) for where in ("sft", "base", "mean"))
    yield WeightDelta()
    yield WeightIntegratedGradients(WEIGHT_STEPS)
    first = attribute(WeightDelta(), contrast, progress=False)
    yield ExactPatching(selection=select_channels(first, EXACT_CHANNELS, 0), rows_at_once=16)
    yield from (MaskOnly(loss).shortened(MASK_STEPS, seed=0) for loss in ("ce", "kl"))
    yield ActivationIntegratedGradients(ACTIVATION_STEPS, sites_at_once=8)


if __name__ == "__main__":
    main()
