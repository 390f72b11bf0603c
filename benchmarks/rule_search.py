"""What was tried before the default rule was fixed, and where a behaviour can live, on validation prompts.

    python benchmarks/rule_search.py --list
    python benchmarks/rule_search.py --variants default tight pull_0.003 --pairs llama/style llama/safety --seeds 0
    python benchmarks/rule_search.py --variants layer_0 layer_1 layer_2 layer_3 per_layer --pairs llama/idk --seeds 0-1

A variant is the default configuration of LCDD, or of the trigger, with some settings changed. Test prompts are never
read: every figure stands on the validation split. One small JSON file per variant, pair and seed goes to
``benchmarks/results/rules``; files that are there are skipped. ``make_results.py`` shows them as a table.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from reproduce import compact, rounded, seed_numbers
from tqdm.auto import tqdm

from lcdd_lens.io import write_text_atomic

RESULTS = Path(__file__).resolve().parent / "results" / "rules"
MAX_NEW_TOKENS = 24
METRICS = ("behaviour_rate", "over_rate", "utility", "kl")


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the default: section -> field -> value.

    Attributes:
        why: the question, in a few words.
        changes: sections of ``LCDDConfig``; ``lcdd`` for its own fields, ``eraser`` for the trigger's.
    """

    why: str
    changes: Mapping[str, Mapping[str, Any]]


def _layer(index: int) -> Variant:
    return Variant(f"gates of layer {index} alone may stay open", {"price": {"layers": (index,)}})


VARIANTS: dict[str, Variant] = {
    "default": Variant("what ships", {}),
    "share_stays_halved": Variant("the share of a price rise never grows back", {"price": {"regrowth": 1.0}}),
    "fixed_budget_0.0075": Variant(
        "the same smallest ε for every behaviour, in nats", {"budget": {"base_share": 0.0, "floor": 0.0075}}
    ),
    "budget_0.005": Variant("a smaller budget", {"budget": {"base_share": 0.005}}),
    "budget_0.015": Variant("twice the budget", {"budget": {"base_share": 0.015}}),
    "pull_0.003": Variant("a stronger pull of the weights to the base", {"optim": {"pull": 0.003}}),
    "pull_0": Variant("no pull of the weights to the base", {"optim": {"pull": 0.0}}),
    "quick_average": Variant("S averages fewer batches", {"price": {"decay": 0.9}}),
    "lr_0.001": Variant("twice the learning rate", {"optim": {"lr": 1e-3}}),
    "long_decay": Variant(
        "the learning rate falls during the descent already",
        {"optim": {"decay_steps": 250}, "lcdd": {"settle_steps": 60}},
    ),
    "small_shares": Variant("a price rise closes half as much", {"price": {"share": 0.04}}),
    "random_order": Variant("gates close in random order", {"price": {"order": "random"}}),
    "layer_0": _layer(0),
    "layer_1": _layer(1),
    "layer_2": _layer(2),
    "layer_3": _layer(3),
    "per_layer": Variant("every layer keeps the same share of its gates", {"price": {"scope": "layer"}}),
    "trigger_prompt_only": Variant("the trigger's objective sees the prompt alone", {"eraser": {"w_answer": 0.0}}),
    "trigger_base_answers": Variant("and the base's answers", {"eraser": {"answers_of": "base"}}),
    "trigger_own_answers": Variant("and the fine-tuned answers", {"eraser": {"answers_of": "model"}}),
    "trigger_no_matching": Variant("without activation matching", {"eraser": {"w_match": 0.0}}),
    "trigger_per_prompt": Variant("matching each prompt's own activation", {"eraser": {"per_prompt": True}}),
    "trigger_patience_4": Variant("trained longer", {"eraser": {"patience": 4}}),
    "trigger_500_prompts": Variant("on more prompts", {"eraser": {"n_prompts": 500}}),
    "trigger_2_tokens": Variant("two tokens", {"eraser": {"n_tokens": 2}}),
    "trigger_5_tokens": Variant("five tokens", {"eraser": {"n_tokens": 5}}),
    "trigger_norm_1": Variant("embeddings no longer than the mean token's", {"eraser": {"max_norm": 1.0}}),
    "trigger_norm_3": Variant("embeddings up to three times the mean token's", {"eraser": {"max_norm": 3.0}}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["default"], metavar="NAME")
    parser.add_argument("--pairs", nargs="+", default=["llama/idk"], metavar="MODEL/BEHAVIOUR")
    parser.add_argument("--seeds", default="0", help="0, 0-4, or 0,2,3 (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="say what every variant asks, and stop")
    options = parser.parse_args(arguments)
    if options.list:
        for name, variant in VARIANTS.items():
            print(f"{name:<24} {variant.why}: {dict(variant.changes)}")
        return
    unknown = [name for name in options.variants if name not in VARIANTS]
    if unknown:
        parser.error(f"unknown variants {unknown}: --list names those that there are")
    work = [(pair, seed) for seed in seed_numbers(options.seeds) for pair in options.pairs]
    with tqdm(total=len(work) * len(options.variants), unit="row") as bar:
        for pair, seed in work:
            stem = f"{pair.replace('/', '-')}-{seed}"
            missing = [name for name in options.variants if not (options.out / f"{stem}-{name}.json").exists()]
            bar.update(len(options.variants) - len(missing))
            if not missing:
                continue
            bench = Bench(*pair.split("/"), seed)
            for name in missing:
                bar.set_postfix_str(f"{pair} {seed} {name}")
                write_text_atomic(options.out / f"{stem}-{name}.json", compact(rounded(bench.row(name))))
                bar.update()


class Bench:
    """Base and fine-tuned model of one pair and seed, and what variants found on them so far."""

    def __init__(self, family: str, behaviour: str, seed: int) -> None:
        import torch
        import transformers

        from lcdd_lens.backends import backend_of, load_model
        from lcdd_lens.data import embedded_behaviour, encode, pad_id_of
        from lcdd_lens.pipeline import demo_config
        from lcdd_lens.training import train_sft

        torch.set_num_threads(1)
        transformers.logging.disable_progress_bar()
        self.pair, self.seed = f"{family}/{behaviour}", seed
        config = demo_config(behaviour, seed, family).seeded()
        self.base = load_model(config.base)
        self.behaviour = embedded_behaviour(behaviour, seed=seed)
        self.train, self.validation = (
            encode(
                self.base.tokenizer,
                self.behaviour.chat_format,
                self.behaviour.split(split),
                self.base.cfg.n_ctx,
                with_responses=split == "train",
                max_new_tokens=MAX_NEW_TOKENS,
                source=f"{split} prompts",
            )
            for split in ("train", "validation")
        )
        self.pad_id = pad_id_of(self.base.tokenizer)
        self.sft = backend_of(self.base).clone(self.base)
        train_sft(self.sft, self.train, config.sft_training, pad_id=self.pad_id, progress=False)
        self._routed: dict[Any, Any] = {}

    def row(self, name: str) -> dict[str, Any]:
        """Carrier, and routed model and plain SFT with and without triggers of equal effort, on validation prompts."""
        from lcdd_lens.controls import delta_norm
        from lcdd_lens.eraser import EraserConfig, train_eraser
        from lcdd_lens.evaluation import Condition, evaluate_conditions

        changes = dict(VARIANTS[name].changes)
        settings = replace(EraserConfig.for_model(self.base), seed=self.seed, **changes.pop("eraser", {}))
        started = time.process_time()
        routed, found = self._lcdd(changes)
        lcdd_seconds = time.process_time() - started
        prompts = self.train.prompts, self.validation.prompts
        channels = found.carrier.residual_write_channels()
        own = train_eraser(routed.model, self.base, channels, *prompts, settings, progress=False)
        equal = replace(settings, steps=max(1, len(own.history.step)), patience=None, channels="none")
        plain = train_eraser(self.sft, self.base, None, *prompts, equal, progress=False)
        conditions = (
            Condition("base", self.base),
            Condition("sft", self.sft),
            Condition("routed", routed.model),
            Condition("routed+trigger", routed.model, own.trigger),
            Condition("sft+trigger", self.sft, plain.trigger),
        )
        evaluated = evaluate_conditions(
            conditions, self.behaviour, self.validation, max_new_tokens=MAX_NEW_TOKENS, seed=self.seed, progress=False
        )
        carrier = found.carrier
        return {
            "variant": name,
            "pair": self.pair,
            "seed": self.seed,
            "why": VARIANTS[name].why,
            "changes": {key: dict(value) for key, value in VARIANTS[name].changes.items()},
            "carrier": {"sparsity": carrier.sparsity, "n_open": carrier.n_open, "n_gates": carrier.n_gates},
            "budget": {"epsilon": found.epsilon, "final_loss": found.final_loss},
            "delta_norm": {
                "sft": delta_norm(self.sft, self.base),
                "routed": delta_norm(routed.model, self.base),
            },
            "trigger_steps": len(own.history.step),
            "conditions": {
                condition: {
                    metric: evaluated.estimate(metric, condition).value
                    for metric in METRICS
                    if metric in evaluated.metrics()
                }
                for condition in evaluated.conditions
            },
            "open": {hook: index.tolist() for hook, index in carrier.channels.items() if len(index)},
            "lcdd_seconds": lcdd_seconds,
        }

    def _lcdd(self, changes: Mapping[str, Mapping[str, Any]]) -> tuple[Any, Any]:
        """LCDD under changed settings; variants of the trigger share one carrier."""
        from lcdd_lens.backends import backend_of
        from lcdd_lens.routing import RoutedModel
        from lcdd_lens.training import lcdd_config_for, train_lcdd

        key = repr(changes)
        if key not in self._routed:
            config = lcdd_config_for(self.base, seed=self.seed)
            for section, fields in changes.items():
                changed = fields if section == "lcdd" else {section: replace(getattr(config, section), **fields)}
                config = replace(config, **changed)
            routed = RoutedModel(backend_of(self.sft).clone(self.sft), self.base)
            found = train_lcdd(routed, self.train, config, pad_id=self.pad_id, progress=False)
            self._routed = {key: (routed, found)}
        return self._routed[key]


if __name__ == "__main__":
    main()
