"""Mask-gradient edge scores of auto-circuit 1.0 on a base/fine-tuned pair. Runs in an environment of its own.

python run_auto_circuit.py FOLDER        (written by attribution_tools.py: *.safetensors, shape.json, prompts.json)

auto-circuit contrasts two prompts in one model. Here the activations that it patches in come from the base instead, on
the same prompts. Its score of an edge is the gradient of −𝓜 with respect to the mask that moves the edge's source from
the running model (fine-tuned) to the patch (base): our sign. Summed over a node's outgoing edges it is the node's
attribution patching score.
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import auto_circuit.prune_algos.mask_gradient as mask_gradient
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.utils.graph_utils import patchable_model
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig


def load(folder: Path, name: str) -> object:
    shape = json.loads((folder / "shape.json").read_text())
    cfg = HookedTransformerConfig(
        **shape, use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True, device="cpu"
    )
    model = HookedTransformer(cfg)
    missing, unexpected = model.load_state_dict(load_file(folder / f"{name}.safetensors"), strict=False)
    if unexpected or [key for key in missing if not key.endswith(("mask", "IGNORE"))]:
        raise SystemExit(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    prompts = json.loads((folder / "prompts.json").read_text())
    tokens = torch.tensor(prompts["tokens"])
    answers = [torch.tensor([answer]) for answer in prompts["answers"]]
    data = PromptDataset(tokens, tokens.clone(), answers, answers)
    loader = PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=1, shuffle=False)
    base, sft = load(folder, "base"), load(folder, "sft")
    original = mask_gradient.batch_src_ablations
    mask_gradient.batch_src_ablations = lambda model, *args, **kwargs: original(base, *args, **kwargs)
    started = time.process_time()
    edge_scores = mask_gradient.mask_gradient_prune_scores(
        sft, loader, None, grad_function="logprob", answer_function="avg_val", mask_val=0.0, clean_corrupt="clean"
    )
    seconds = time.process_time() - started
    scores: dict[str, float] = defaultdict(float)
    for edge in sft.edges:
        scores[edge.src.name] += float(edge.prune_score(edge_scores)) / len(prompts["tokens"])
    (folder / "auto_circuit.json").write_text(json.dumps({"scores": scores, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
