"""Timing for the benchmarks: variants take turns, medians are compared, one table and one JSON file come out."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from lcdd_lens.backends import LensModel, backend_of, load_model, parameter_of
from lcdd_lens.io import write_json_atomic

RESULTS = Path(__file__).parent / "results"


def llama(d_model: int, n_layers: int, *, vocabulary: int = 1200, context: int = 256, seed: int = 0) -> LensModel:
    """A random Llama with 32-wide heads, half as many key/value heads, and d_mlp = 3 · d_model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=d_model,
        intermediate_size=3 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=d_model // 32,
        num_key_value_heads=d_model // 64,
        max_position_embeddings=context,
        tie_word_embeddings=False,
    )
    return load_model(LlamaForCausalLM(config))


def finetuned(base: LensModel, *, scale: float = 0.01, seed: int = 1) -> LensModel:
    """A copy of ``base`` whose gated weights are moved by noise."""
    backend = backend_of(base)
    model = backend.clone(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for site in backend.weight_sites(model):
            weight = parameter_of(model, site.parameter)
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return model


def random_prompts(n: int, *, shortest: int, longest: int, vocabulary: int = 1200, seed: int = 0) -> list[list[int]]:
    """Token ids of n prompts with lengths from ``shortest`` to ``longest``."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (n,), generator=generator).tolist()
    return [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def median_seconds(variants: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median processor seconds of every variant, on one thread.

    Processor time does not count what other processes on the machine take, and variants take turns, so that what is
    left of their influence meets all alike.
    """
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for work in variants.values():
        work()
    for _ in tqdm(range(repeats), desc="timing"):
        for name, work in variants.items():
            started = time.process_time()
            work()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def report(
    name: str, settings: Mapping[str, object], seconds: Mapping[str, float], ratios: Mapping[str, float]
) -> None:
    """Print medians and ratios, and write them to ``benchmarks/results/<name>.json``."""
    width = max(map(len, [*seconds, *ratios]))
    for variant, value in seconds.items():
        print(f"{variant:<{width}}  {1000 * value:9.2f} ms")
    for ratio, value in ratios.items():
        print(f"{ratio:<{width}}  {value:9.2f} x")
    content = {
        "settings": dict(settings),
        "median_processor_seconds": {variant: round(value, 6) for variant, value in seconds.items()},
        "ratios": {ratio: round(value, 3) for ratio, value in ratios.items()},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    write_json_atomic(RESULTS / f"{name}.json", content)
