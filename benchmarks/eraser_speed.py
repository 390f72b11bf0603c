"""One SFT-Eraser step on 16 prompts: one padded batch against prompt by prompt.

    python benchmarks/eraser_speed.py [--repeats 30]

Same model, prompts and objective (activation matching per prompt and tail KL, so that both ways have one gradient).
"""

import argparse

import torch
from measure import finetuned, llama, median_seconds, random_prompts, report

from lcdd_lens.eraser import ActivationMatching, SoftPrompt, kl_from_base
from lcdd_lens.eraser.rows import BaseTargets, observe
from lcdd_lens.frozen import frozen
from lcdd_lens.routing import RoutedModel

D_MODEL, N_LAYERS, N_PROMPTS = 128, 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    base = llama(D_MODEL, N_LAYERS)
    routed = RoutedModel(finetuned(base), base)
    layers = tuple(range(N_LAYERS))
    matching = ActivationMatching({layer: torch.arange(0, D_MODEL, 5) for layer in layers}, per_prompt=True)
    soft = SoftPrompt(torch.randn(1, D_MODEL), "after_bos")
    prompts = random_prompts(N_PROMPTS, shortest=10, longest=24)
    empty: list[list[int]] = [[] for _ in prompts]
    targets = BaseTargets(base, prompts, empty, layers=layers, tail=8, keep_first=True, batch_size=N_PROMPTS)

    def gradient(chosen: list[int]) -> torch.Tensor:
        rows = targets.rows(chosen)
        seen = observe(routed.model, rows, layers=layers, soft_prompt=soft)
        kl = (kl_from_base(targets.log_probs(chosen, rows), seen.logits) * rows.tail).sum() / rows.tail.sum()
        match = matching(seen.residuals, {layer: kept[chosen] for layer, kept in targets.residuals.items()})
        return torch.autograd.grad(match + 0.7 * kl, soft.embeddings)[0]

    everything = list(range(N_PROMPTS))
    variants = {
        "one padded batch": lambda: gradient(everything),
        "prompt by prompt": lambda: sum(gradient([index]) for index in everything) / N_PROMPTS,
    }
    with frozen(routed.model):
        torch.testing.assert_close(variants["one padded batch"](), variants["prompt by prompt"](), atol=1e-5, rtol=1e-3)
        seconds = median_seconds(variants, repeats=repeats)
    report(
        "eraser_speed",
        {"d_model": D_MODEL, "n_layers": N_LAYERS, "prompts": N_PROMPTS, "lengths": "10-24", "repeats": repeats},
        seconds,
        {"prompt by prompt / batch": seconds["prompt by prompt"] / seconds["one padded batch"]},
    )


if __name__ == "__main__":
    main()
