"""Command line of the recipe: ``python -m lcdd_lens.organisms.train --family llama --out DIR --threads 2``.

``--width 512 --layers 8 --lr 1e-3`` makes a model of about 25 million parameters, for a GPU (``--device cuda``).
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from lcdd_lens.organisms.recipe import FAMILIES, LAYERS, WIDTH, Recipe, make_organism


def main(arguments: Sequence[str] | None = None) -> float:
    """Parse the options, train one model, return its held-out accuracy."""
    parser = argparse.ArgumentParser(description="Pre-train one embedded chat model on the generated corpus.")
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the Hugging Face files")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seed", type=int, default=Recipe("llama").seed)
    parser.add_argument("--steps", type=int, default=Recipe("llama").steps)
    parser.add_argument("--batch-size", type=int, default=Recipe("llama").batch_size)
    parser.add_argument("--lr", type=float, default=Recipe("llama").lr, help="peak learning rate")
    parser.add_argument("--width", type=int, default=WIDTH, help=f"d_model (default: {WIDTH})")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"blocks (default: {LAYERS})")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    recipe = Recipe(
        family=options.family,
        seed=options.seed,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        width=options.width,
        layers=options.layers,
    )
    return make_organism(recipe, options.out, progress=not options.quiet, device=options.device)


if __name__ == "__main__":
    main()
