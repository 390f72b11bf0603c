"""Node attribution patching of TransformerLens 4 on a base/fine-tuned pair. Runs in an environment of its own.

python run_transformer_lens_4.py FOLDER        (written by attribution_tools.py: base/, sft/, prompts.json)

Its ``attribution_patch`` contrasts two prompts in one model. Here both prompts are the same, and the model changes
between the two forward passes instead: "clean" runs with the base's weights, "corrupt" with the fine-tuned ones. Its
scores are (a_clean − a_corrupt)·∂𝓜/∂a at corrupt, so they point from fine-tuned to base: minus our sign.
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    prompts = json.loads((folder / "prompts.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")

    def boot(name: str) -> TransformerBridge:
        model = AutoModelForCausalLM.from_pretrained(folder / name, attn_implementation="eager").eval()
        return TransformerBridge.boot_transformers(str(folder / name), hf_model=model, tokenizer=tokenizer).eval()

    base, bridge = boot("base"), boot("sft")
    states = [{name: w.detach().clone() for name, w in model.named_parameters()} for model in (base, bridge)]
    forward, calls = bridge.forward, [0]

    def alternating(*args: object, **kwargs: object) -> object:
        with torch.no_grad():
            for name, weight in bridge.named_parameters():
                weight.copy_(states[calls[0] % 2][name])
        calls[0] += 1
        return forward(*args, **kwargs)

    bridge.forward = alternating
    scores: dict[str, float] = defaultdict(float)
    started = time.process_time()
    for tokens, answer in zip(prompts["tokens"], prompts["answers"], strict=True):
        row = torch.tensor([tokens])
        result = attribution_patch(
            bridge,
            row,
            row.clone(),
            lambda logits, answer=answer: logits[0, -1].log_softmax(-1)[answer],
            EdgeAttributionConfig(granularity="node"),
        )
        for node, score in result.node_scores.items():
            if node.kind != "embed":
                scores[f"{node.kind}.{node.layer}"] += score / len(prompts["tokens"])
    seconds = time.process_time() - started
    (folder / "transformer_lens.json").write_text(json.dumps({"scores": scores, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
