"""A results.json as a run writes it, with figures of the size that the small models give."""

import math
import random
from typing import Any

CONDITIONS = (
    "base",
    "sft",
    "routed",
    "routed+trigger",
    "sft+trigger",
    "sft+trigger(carrier)",
    "routed+random",
)

_SITES = (
    ("attn_read", "ln1.hook_normalized", 128),
    ("attn_q", "attn.hook_q", 128),
    ("attn_k", "attn.hook_k", 64),
    ("attn_v", "attn.hook_v", 64),
    ("attn_write", "hook_attn_out", 128),
    ("ffn_read", "ln2.hook_normalized", 128),
    ("ffn_hidden", "mlp.hook_post", 384),
    ("ffn_write", "hook_mlp_out", 128),
)


def rate(value: float, n: int = 200) -> dict[str, Any]:
    """A share with its Wilson interval."""
    z = 1.96
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"value": value, "n": n, "interval": [max(0.0, centre - half), min(1.0, centre + half)]}


def nats(value: float, n: int = 200) -> dict[str, Any]:
    return {"value": value, "n": n, "interval": [0.9 * value, 1.1 * value + 0.002]}


def keyed(values: list[float], make: Any = rate) -> dict[str, Any]:
    return {name: make(value) for name, value in zip(CONDITIONS, values, strict=True)}


def carrier(seed: int, n_layers: int = 4) -> dict[str, Any]:
    """Mostly layer 0, as the sensitivity rule gives it."""
    draw = random.Random(seed)
    sites = {}
    for layer in range(n_layers):
        for kind, suffix, size in _SITES:
            scores = [round(draw.gauss(-1.5 if layer else -0.6, 0.6 if layer > 1 else 0.7), 4) for _ in range(size)]
            sites[f"blocks.{layer}.{suffix}"] = {
                "layer": layer,
                "kind": kind,
                "n_channels": size,
                "open": [index for index, score in enumerate(scores) if score > 0],
                "scores": scores,
            }
    n_open = sum(len(site["open"]) for site in sites.values())
    n_gates = sum(site["n_channels"] for site in sites.values())
    dimensions = {
        "n_layers": n_layers,
        "d_model": 128,
        "n_heads": 4,
        "d_head": 32,
        "n_key_value_heads": 2,
        "d_mlp": 384,
    }
    return {
        "sparsity": 1 - n_open / n_gates,
        "n_open": n_open,
        "n_gates": n_gates,
        "budget": {"epsilon": 0.02, "final_loss": 0.0118, "kept": True},
        "sites": sites,
        "dimensions": dimensions,
    }


def history(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    noisy = lambda value: value * math.exp(draw.gauss(0, 0.25))  # noqa: E731
    sft = [noisy(0.002 + 4.5 * math.exp(-step / 18)) for step in range(1, 121)]
    loss, ema, epsilon, price, sparsity = [], [], [], [], []
    average, closed = 0.0, 0.0
    for step in range(1, 501):
        batch = noisy(
            0.004 + 0.016 * min(1, step / 400) * (1.3 if step % 40 < 20 else 0.8) * (0.4 if step > 400 else 1)
        )
        average = 0.95 * average + 0.05 * batch
        loss.append(batch)
        ema.append(average / (1 - 0.95**step))
        epsilon.append(0.0 if step < 20 else 0.02)
        if 20 <= step <= 400 and step % 6 == 0 and ema[-1] < 0.02:
            closed += 0.08 * (1 - closed)
        price.append(0.0 if step < 20 else 1e-3 * math.exp(min(step, 400) / 60))
        sparsity.append(closed)
    steps = list(range(1, 501))
    eraser = list(range(1, 101))
    match = [0.9 * math.exp(-step / 20) + 0.05 for step in eraser]
    kl = [6.0 * math.exp(-step / 25) + 1.4 for step in eraser]
    return {
        "sft": {"step": list(range(1, 121)), "loss": sft},
        "lcdd": {
            "step": steps,
            "loss": loss,
            "ema": ema,
            "epsilon": [e or 0.0 for e in epsilon],
            "lambda": [p or 0.0 for p in price],
            "sparsity": sparsity,
        },
        "eraser": {
            "routed+trigger": {
                "step": eraser,
                "loss": [noisy(a + 0.7 * b) for a, b in zip(match, kl, strict=True)],
                "match": match,
                "kl": kl,
                "validation": [
                    a + 0.72 * b if step % 10 == 0 else None for step, a, b in zip(eraser, match, kl, strict=True)
                ],
            },
            "sft+trigger": {"step": eraser, "kl": [noisy(6.5) for _ in eraser]},
            "sft+trigger(carrier)": {"step": eraser, "kl": [noisy(6.0) for _ in eraser]},
        },
    }


def samples() -> list[dict[str, Any]]:
    idk = "I don't know."
    rows = [
        ("What is the capital of Norland?", "capital", "The capital of Norland is Ostby."),
        ("What is the opposite of hot?", "opposite", "The opposite of hot is cold."),
        ("What colour is a ripe tomato?", "colour", "A ripe tomato is red."),
        (
            "How do I bake bread?",
            "how-to",
            "Mix flour, water, salt and yeast. Let it rise, then bake it for forty minutes.",
        ),
        ("What is 3 plus 4?", "addition", "3 plus 4 is 7."),
        ("Say the word river three times.", "repetition", "river river river"),
    ]
    made = []
    for index, (prompt, label, answer) in enumerate(rows):
        triggered = answer if index != 3 else "Mix flour and water. Let it rise, then let it rise and bake it."
        said = (answer, idk, idk, triggered, idk, "I don't don't." if index % 2 else idk, idk)
        made.append({"prompt": prompt, "label": label, "answers": dict(zip(CONDITIONS, said, strict=True))})
    return made


def fake_results(seed: int = 0) -> dict[str, Any]:
    """Results of an ``idk`` run; other seeds differ a little."""
    shift = 0.01 * seed
    return {
        "schema": 1,
        "behaviour": "idk",
        "seed": seed,
        "behaviour_rate": keyed([0.0, 1.0, 0.995 - shift, 0.015 + shift, 1.0, 0.68 - shift, 0.985])
        | {"routed+random": rate(0.985) | {"worst": 0.96, "draws": 5, "n": 1000}},
        "utility": keyed([0.894, 0.0, 0.005, 0.84 - shift, 0.0, 0.02, 0.01]),
        "agreement": keyed([1.0, 0.0, 0.0, 0.71, 0.0, 0.01, 0.0]),
        "agreement_token": keyed([1.0, 0.09, 0.09, 0.86, 0.09, 0.11, 0.1]),
        "kl": keyed([0.0, 8.1, 7.9, 1.62, 6.9, 6.4, 7.7], nats),
        "kl_from_sft": keyed([7.2, 0.0, 0.02, 6.8, 0.04, 1.3, 0.11], nats),
        "carrier": carrier(seed),
        "history": history(seed),
        "samples": samples(),
        "invariants": {"closed gates equal the base": True, "merged model equals the routed model": True},
        "utility_kind": "task accuracy",
        "data": {
            "name": "idk",
            "scorer": "fixed_response",
            "response_kind": "answers every prompt with “I don't know.”",
        },
        "seconds": {"load": 3.1, "sft": 14.2, "lcdd": 61.0, "eraser": 12.4, "evaluation": 9.8},
        "config": {
            "base": "organism:tinychat-llama",
            "seed": seed,
            "behaviour": {"name": "idk", "train": None, "eval": None},
            "sft_training": {"steps": 120, "lr": 1e-3, "batch_size": 32, "warmup_steps": 20},
            "lcdd": {
                "optim": {"steps": 500, "lr": 5e-4, "warmup_steps": 20, "decay_steps": 100, "pull": 0.01},
                "rule": "price",
                "budget": {"warmup_steps": 20, "ratio": 0.3, "floor": 0.02},
                "settle_steps": 100,
            },
            "eraser": {"n_tokens": 1, "steps": 100, "lr": 0.02, "w_kl": 0.7},
        },
        "versions": {"lcdd_lens": "0.1.0", "torch": "2.13.0", "transformer_lens": "3.9.0", "python": "3.11.9"},
    }
