"""Greedy decoding of 32 prompts: a routed model against the plain model, with and without a trigger.

python benchmarks/decoding_speed.py [--repeats 15]
"""

import argparse

from measure import finetuned, llama, median_seconds, random_prompts, report

from lcdd_lens.backends import LensModel, backend_of
from lcdd_lens.eraser import random_token_trigger
from lcdd_lens.generation import generate
from lcdd_lens.routing import RoutedModel

D_MODEL, N_LAYERS, N_PROMPTS, NEW_TOKENS = 256, 8, 32, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    base = llama(D_MODEL, N_LAYERS)
    plain = finetuned(base)
    routed = RoutedModel(backend_of(plain).clone(plain), base)
    prompts = random_prompts(N_PROMPTS, shortest=10, longest=24)
    trigger = random_token_trigger(base, 1)

    def decode(model: LensModel, with_trigger: bool) -> list[list[int]]:
        return generate(model, prompts, max_new_tokens=NEW_TOKENS, trigger=trigger if with_trigger else None)

    variants = {
        "plain": lambda: decode(plain, False),
        "routed": lambda: decode(routed.model, False),
        "plain + trigger": lambda: decode(plain, True),
        "routed + trigger": lambda: decode(routed.model, True),
    }
    if variants["plain"]() != variants["routed"]():
        raise SystemExit("routed and plain model decode differently with all gates open")
    seconds = median_seconds(variants, repeats=repeats)
    report(
        "decoding_speed",
        {
            "d_model": D_MODEL,
            "n_layers": N_LAYERS,
            "prompts": N_PROMPTS,
            "lengths": "10-24",
            "new_tokens": NEW_TOKENS,
            "repeats": repeats,
        },
        seconds,
        {
            "routed / plain": seconds["routed"] / seconds["plain"],
            "routed + trigger / plain + trigger": seconds["routed + trigger"] / seconds["plain + trigger"],
        },
    )


if __name__ == "__main__":
    main()
