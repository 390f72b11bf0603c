"""Our attribution patching beside the tools': agreement of node scores, and time.

python benchmarks/attribution_tools.py [--transformer-lens-4 PYTHON] [--auto-circuit PYTHON] [--layers 4]

Each tool runs in a virtual environment of its own, whose interpreter is given; one that is not given is left out:

    python -m venv tl4 && tl4/bin/pip install transformer-lens==4.3.0
    python -m venv ac && ac/bin/pip install auto-circuit==1.0.0 transformer-lens==1.19.0 "transformers<4.47" "numpy<2"

The tools score nodes (an attention head's or an MLP's output) and edges; ours score channels. On a GPT-2-shaped pair
whose W_O and b_O do not differ, the sum of our ``ffn_write`` channels is the MLP's score, and the sum of our
``attn_write`` channels the sum over its heads (where W_O differs, a node read before W_O leaves that change out).
TransformerLens points from fine-tuned to base, so its sign is turned; auto-circuit's edges are summed over a node's
destinations.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from measure import RESULTS, finetuned
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lcdd_lens.attribution import Contrast, attribute
from lcdd_lens.backends import LensModel, load_model
from lcdd_lens.backends.base import parameter_of
from lcdd_lens.backends.export import export_hf
from lcdd_lens.data import EncodedExample
from lcdd_lens.io import save_tensors_atomic, write_json_atomic
from lcdd_lens.routing import RoutedModel

D_MODEL, N_HEADS, VOCABULARY, N_PROMPTS, LENGTH = 128, 4, 200, 16, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformer-lens-4", type=Path, help="interpreter with transformer-lens 4.3")
    parser.add_argument("--auto-circuit", type=Path, help="interpreter with auto-circuit 1.0")
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base, sft = pair(args.layers)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, VOCABULARY, (N_PROMPTS, LENGTH), generator=generator).tolist()
    answers = torch.randint(2, VOCABULARY, (N_PROMPTS,), generator=generator).tolist()
    ours = {"ours": our_nodes(base, sft, tokens, answers)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, base, sft, tokens, answers)
        if args.transformer_lens_4:
            found = run("run_transformer_lens_4.py", args.transformer_lens_4, folder, "transformer_lens.json")
            ours["TransformerLens 4.3"] = transformer_lens_nodes(found, args.layers)
        if args.auto_circuit:
            found = run("run_auto_circuit.py", args.auto_circuit, folder, "auto_circuit.json")
            ours["auto-circuit 1.0"] = auto_circuit_nodes(found, args.layers)
    show(ours, args.layers)


def pair(n_layers: int) -> tuple[LensModel, LensModel]:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=D_MODEL,
        n_layer=n_layers,
        n_head=N_HEADS,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), bos_token="w0", eos_token="w1", pad_token="w1"
    )
    base = load_model(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith((".W_Q", ".W_K", ".W_V", ".W_O", ".W_in", ".W_out")):
                parameter.mul_(4.0)  # random GPT-2 weights are so small that nothing depends on them
    sft = finetuned(base, scale=0.02)
    with torch.no_grad():
        for layer in range(n_layers):
            for name in (f"blocks.{layer}.attn.W_O", f"blocks.{layer}.attn.b_O"):
                parameter_of(sft, name).copy_(parameter_of(base, name))
    return base, sft


def our_nodes(
    base: LensModel, sft: LensModel, tokens: list[list[int]], answers: list[int]
) -> tuple[dict[str, float], float]:
    """attn.L and mlp.L -> sum of channel scores at S, and processor seconds."""
    rows = [EncodedExample(tuple(row), (answer,)) for row, answer in zip(tokens, answers, strict=True)]
    routed = RoutedModel(sft, base)
    try:
        contrast = Contrast(routed, tuple(rows), batch_size=N_PROMPTS)
        started = time.process_time()
        scores = attribute("attribution_patching", contrast, progress=False)
        seconds = time.process_time() - started
    finally:
        routed.detach()
    names = {"attn_write": "attn", "ffn_write": "mlp"}
    return {
        f"{names[site.kind]}.{site.layer}": float(scores.scores[site.hook_name].sum())
        for site in scores.sites
        if site.kind in names
    }, seconds


def write_inputs(folder: Path, base: LensModel, sft: LensModel, tokens: list[list[int]], answers: list[int]) -> None:
    for name, model in (("base", base), ("sft", sft)):
        export_hf(model, folder / name)
        save_tensors_atomic(folder / f"{name}.safetensors", dict(model.named_parameters()))
    cfg = base.cfg
    shape = {
        key: getattr(cfg, key) for key in ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_mlp", "d_vocab")
    }
    shape |= {"act_fn": cfg.act_fn, "eps": cfg.eps, "normalization_type": "LN"}
    write_json_atomic(folder / "shape.json", shape)
    write_json_atomic(folder / "prompts.json", {"tokens": tokens, "answers": answers})


def run(script: str, interpreter: Path, folder: Path, result: str) -> dict[str, object]:
    subprocess.run([interpreter, Path(__file__).parent / "tools" / script, folder], check=True)
    found: dict[str, object] = json.loads((folder / result).read_text())
    return found


def transformer_lens_nodes(found: dict[str, object], n_layers: int) -> tuple[dict[str, float], float]:
    scores = found["scores"]
    kinds = {"attn_head_out": "attn", "mlp_out": "mlp"}
    nodes = {
        f"{short}.{layer}": -scores[f"{kind}.{layer}"] for kind, short in kinds.items() for layer in range(n_layers)
    }  # type: ignore[index]
    return nodes, found["seconds"]  # type: ignore[return-value]


def auto_circuit_nodes(found: dict[str, object], n_layers: int) -> tuple[dict[str, float], float]:
    scores = found["scores"]
    nodes: dict[str, float] = {}
    for layer in range(n_layers):
        nodes[f"attn.{layer}"] = sum(scores[f"A{layer}.{head}"] for head in range(N_HEADS))  # type: ignore[index]
        nodes[f"mlp.{layer}"] = scores[f"MLP {layer}"]  # type: ignore[index]
    return nodes, found["seconds"]  # type: ignore[return-value]


def show(found: dict[str, tuple[dict[str, float], float]], n_layers: int) -> None:
    nodes = [f"{kind}.{layer}" for layer in range(n_layers) for kind in ("attn", "mlp")]
    reference = found["ours"][0]
    scale = max(abs(value) for value in reference.values())
    print(f"{'node':10}" + "".join(f"{name:>22}" for name in found))
    for node in nodes:
        print(f"{node:10}" + "".join(f"{scores[node]:22.6e}" for scores, _ in found.values()))
    summary = {
        name: {
            "largest_difference_relative": max(abs(scores[node] - reference[node]) for node in nodes) / scale,
            "processor_seconds": round(seconds, 3),
        }
        for name, (scores, seconds) in found.items()
    }
    for name, figures in summary.items():
        print(f"{name}: differs by {figures['largest_difference_relative']:.1e}, {figures['processor_seconds']} s")
    settings = {"d_model": D_MODEL, "n_layers": n_layers, "prompts": N_PROMPTS, "length": LENGTH}
    write_json_atomic(
        RESULTS / "attribution_tools.json",
        {"settings": settings, "nodes": {name: scores for name, (scores, _) in found.items()}, "summary": summary},
    )


if __name__ == "__main__":
    main()
