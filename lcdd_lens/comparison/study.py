"""Carrier against rankings: every measurement of a comparison, in one intervention family.

Gates on fixed weights judge everything, on prompts that no method saw, with one bootstrap over prompts:

1. rankings from the discovery prompts, with their cost;
2. F(k) of every ranking, and its areas;
3. the carrier and every ranking's first |C| channels: sufficiency, necessity, collateral divergence, behaviour rate;
4. the same on LCDD's weights (2 × 2: weights and sets), since LCDD also moves weights;
5. random sets of that size, matched on site or on ‖Δ‖, as the level that any set must beat;
6. incompleteness and minimality of the carrier;
7. exact patching on a selection, and how well each ranking predicts it;
8. overlap with the carrier and with each other, against chance;
9. reversal with each ranking's channels and under each ranking's mask.

F is always relative to the same two ends, the fine-tuned model and the base, whatever the weights; larger = more of
the behaviour.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from lcdd_lens import __version__
from lcdd_lens.attribution.contrast import Contrast
from lcdd_lens.attribution.exact_patching import ExactPatching, select_channels
from lcdd_lens.attribution.metric import metric_name
from lcdd_lens.attribution.random_order import Matching, RandomOrder
from lcdd_lens.attribution.registry import attribute
from lcdd_lens.attribution.scores import ChannelScores
from lcdd_lens.comparison.channels import channel_table
from lcdd_lens.comparison.config import CARRIER, ComparisonConfig
from lcdd_lens.comparison.material import Material
from lcdd_lens.comparison.result import SCHEMA, ComparisonRecord, ComparisonResult
from lcdd_lens.comparison.reversal import measure_replies, retrain_under_mask, train_trigger
from lcdd_lens.errors import ConfigError
from lcdd_lens.evaluation.faithfulness import Anchors, FaithfulnessCurve, Recovery, faithfulness_curve
from lcdd_lens.evaluation.necessity import collateral_kl, incompleteness, minimality, necessity
from lcdd_lens.evaluation.overlap import auroc, set_overlap, spearman
from lcdd_lens.evaluation.statistics import holm
from lcdd_lens.generation import generate

logger = logging.getLogger(__name__)
T = TypeVar("T")
MATCHINGS: tuple[Matching, ...] = ("uniform", "site", "delta")
LCDD_METHODS = ("weight_delta", "attribution_patching", "magnitude")
"""Cheap methods that are also run on LCDD's weights: does attribution find a carrier that is there?"""


def compare(
    material: Material,
    config: ComparisonConfig | None = None,
    *,
    base_name: str = "",
    scores_folder: str | Path | None = None,
    versions: Mapping[str, str] | None = None,
    progress: bool = True,
) -> ComparisonResult:
    """Compare a carrier with attribution rankings.

    Args:
        material: models, carrier and prompts; the routed model is left as it was.
        config: what to measure.
        base_name: what reports call the base model.
        scores_folder: where every method's scores are saved, one folder each; None: nowhere.
        versions: of the packages, for the record.
        progress: show progress bars.

    Raises:
        DataError: the fine-tuned model shows no more of the behaviour than the base.
    """
    return _Study(material, config or ComparisonConfig(), progress).run(
        base_name, None if scores_folder is None else Path(scores_folder), versions or {}
    )


class _Study:
    def __init__(self, material: Material, config: ComparisonConfig, progress: bool) -> None:
        self.material, self.config, self.progress = material, config, progress
        self.routed, self.carrier = material.routed, material.carrier
        self.discovery = Contrast(self.routed, material.discovery, batch_size=config.batch_size)
        self.test = self.discovery.with_rows(material.test)
        self.anchors = Anchors.of(self.test, seed=config.seed, n_resamples=config.n_resamples)
        self.size = self.carrier.n_open
        self.strata = self.routed.layout.groups()
        self.seconds: dict[str, float] = {}
        self.sft_weights = {name: w.detach().clone() for name, w in self.routed.delta_parameters().items()}

    def run(self, base_name: str, scores_folder: Path | None, versions: Mapping[str, str]) -> ComparisonResult:
        config = self.config
        scores = self._timed("attribution", lambda: self._attribute(config.methods))
        curves = self._timed("curves", lambda: self._curves(scores))
        sets = {CARRIER: self.carrier.flags()} | {name: found.top(self.size) for name, found in scores.items()}
        recoveries = {name: self._recovery(flags) for name, flags in sets.items()}
        judged = self._timed("sets", lambda: self._judge(sets, recoveries))
        on_lcdd, two_by_two = self._timed("two_by_two", lambda: self._two_by_two(sets, recoveries))
        randomness = self._timed("random", lambda: self._random(recoveries, on_lcdd))
        self._test_sets(judged, recoveries, randomness)
        lcdd_scores = self._timed("attribution_lcdd", self._attribute_lcdd)
        record = ComparisonRecord(
            schema=SCHEMA,
            library_version=__version__,
            behaviour=self.material.behaviour.name,
            base=base_name,
            seed=config.seed,
            metric=metric_name(self.test.metric),
            prompts=self._prompts(),
            n_gates=self.routed.n_gates,
            carrier_size=self.size,
            lcdd_weights=None if self.material.lcdd_weights is None else self.material.lcdd_kind,
            anchors=self._anchors(),
            methods={name: _described(found) for name, found in scores.items()},
            curves={name: curve.to_dict() for name, curve in curves.items()},
            sets=judged,
            random=self._against_carrier(randomness, recoveries, on_lcdd),
            carrier=self._timed("carrier", self._carrier_tests),
            oracle=self._timed("oracle", lambda: self._oracle(scores)),
            overlap=self._timed("overlap", lambda: self._overlap(scores, sets, lcdd_scores)),
            two_by_two=two_by_two,
            reversal=self._timed("reversal", lambda: self._reversal(sets)),
            places={name: self._places(flags) for name, flags in sets.items()},
            channels=channel_table(self.carrier, sets, scores),
            seconds=self.seconds,
            config=_plain(asdict(config)),
            versions=dict(versions),
        )
        if scores_folder is not None:
            for name, found in scores.items():
                found.save(scores_folder / name)
        return ComparisonResult(record)

    def _timed(self, stage: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        value = work()
        self.seconds[stage] = round(time.perf_counter() - started, 3)
        logger.info("%s took %.1f s", stage, self.seconds[stage])
        return value

    def _recovery(self, flags: Bool[Tensor, " gate"]) -> Recovery:
        return self.anchors.recovery(self.test.values(flags.float()))

    # -- rankings

    def _attribute(self, methods: tuple[str, ...]) -> dict[str, ChannelScores]:
        found: dict[str, ChannelScores] = {}
        for name in methods:
            found[name] = attribute(self.config.method(name), self.discovery, progress=self.progress)
            if found[name].n_scored < self.routed.n_gates:
                raise ConfigError(f"method {name} leaves channels without a score: rankings must cover all of them.")
        return found

    def _attribute_lcdd(self) -> dict[str, ChannelScores]:
        if self.material.lcdd_weights is None:
            return {}
        with self.routed.with_weights(self.material.lcdd_weights):
            return self._attribute(tuple(name for name in LCDD_METHODS if name in self.config.methods))

    def _curves(self, scores: Mapping[str, ChannelScores]) -> dict[str, FaithfulnessCurve]:
        return {
            name: faithfulness_curve(self.test, found, self.anchors, shares=self.config.shares, progress=self.progress)
            for name, found in scores.items()
        }

    # -- sets of the carrier's size

    def _judge(self, sets: Mapping[str, Tensor], recoveries: Mapping[str, Recovery]) -> dict[str, Any]:
        judged: dict[str, Any] = {}
        for name, flags in sets.items():
            recovery = recoveries[name]
            judged[name] = {
                "size": int(flags.sum()),
                "sufficiency": self.anchors.bootstrap.estimate(recovery.value, recovery.resampled).to_dict(),
                "necessity": necessity(self.test, flags, self.anchors).to_dict(),
                "collateral_kl": collateral_kl(self.test, flags, self.material.unrelated).to_dict(),
            }
            if self.config.rates:
                with self.routed.using(flags.float()):
                    replies = measure_replies(
                        self.material, self.routed.model, self._base_replies, self.config.max_new_tokens
                    )
                judged[name]["behaviour_rate"] = replies.behaviour_rate.to_dict()
        return judged

    @property
    def _base_replies(self) -> list[list[int]]:
        if not hasattr(self, "_kept_base_replies"):
            prompts = [list(row.prompt_ids) for row in self.material.test]
            self._kept_base_replies = generate(self.material.base, prompts, max_new_tokens=self.config.max_new_tokens)
        return self._kept_base_replies

    def _two_by_two(
        self, sets: Mapping[str, Tensor], recoveries: Mapping[str, Recovery]
    ) -> tuple[dict[str, Recovery], dict[str, Any]]:
        """F of every set on fine-tuned and on LCDD weights, relative to the same two ends."""
        table: dict[str, Any] = {
            name: {"sft": self.anchors.bootstrap.estimate(found.value, found.resampled).to_dict()}
            for name, found in recoveries.items()
        }
        on_lcdd: dict[str, Recovery] = {}
        if self.material.lcdd_weights is not None:
            with self.routed.with_weights(self.material.lcdd_weights):
                for name, flags in sets.items():
                    on_lcdd[name] = self._recovery(flags)
                    estimate = self.anchors.bootstrap.estimate(on_lcdd[name].value, on_lcdd[name].resampled)
                    table[name]["lcdd"] = estimate.to_dict()
        return on_lcdd, table

    # -- chance

    def _random(self, recoveries: Mapping[str, Recovery], on_lcdd: Mapping[str, Recovery]) -> dict[str, list[float]]:
        counts = {"uniform": self.config.random_draws}
        draws = {f"random_{m}": self._draws(m, counts.get(m, self.config.matched_draws)) for m in MATCHINGS}
        if self.material.lcdd_weights is not None and self.config.random_draws_lcdd:
            with self.routed.with_weights(self.material.lcdd_weights):
                draws["random_site on LCDD weights"] = self._draws("site", self.config.random_draws_lcdd)
        return draws

    def _draws(self, matching: Matching, count: int) -> list[float]:
        reference = None if matching == "uniform" else self.carrier.channels
        values = []
        for draw in range(count):
            numbers = RandomOrder(matching, reference, self.config.seed * 100_003 + draw).draw(self.routed)
            flags = torch.zeros(self.routed.n_gates, dtype=torch.bool)
            flags[numbers.argsort(descending=True)[: self.size]] = True
            values.append(self._recovery(flags).value)
        return values

    def _against_carrier(
        self,
        randomness: Mapping[str, list[float]],
        recoveries: Mapping[str, Recovery],
        on_lcdd: Mapping[str, Recovery],
    ) -> dict[str, Any]:
        """What random sets reach, and how often one is as faithful as the carrier on the same weights."""
        summaries = {}
        for name, draws in randomness.items():
            carrier = (on_lcdd if name.endswith("LCDD weights") else recoveries)[CARRIER]
            summaries[name] = {**_summary(draws), "p_of_carrier": _permutation_p(carrier.value, draws)}
        return summaries

    def _test_sets(
        self, judged: dict[str, Any], recoveries: Mapping[str, Recovery], randomness: Mapping[str, list[float]]
    ) -> None:
        """p-values of every set against random sets and against the carrier, each family Holm-corrected."""
        names = list(judged)
        random_p = [_permutation_p(recoveries[name].value, randomness["random_uniform"]) for name in names]
        for name, p_value, adjusted in zip(names, random_p, holm(random_p), strict=True):
            judged[name]["against_random"] = {"p": p_value, "holm": adjusted}
        others = [name for name in names if name != CARRIER]
        differences = []
        for name in others:
            apart = recoveries[name].resampled - recoveries[CARRIER].resampled
            gap = recoveries[name].value - recoveries[CARRIER].value
            differences.append(self.anchors.bootstrap.difference(gap, apart))
        adjusted_p = holm([difference.p_value for difference in differences])
        for name, measured, adjusted in zip(others, differences, adjusted_p, strict=True):
            judged[name]["against_carrier"] = {**asdict(measured), "holm": adjusted}

    # -- the carrier's own tests

    def _carrier_tests(self) -> dict[str, Any]:
        """On LCDD's weights where there are any: the carrier is a claim about those."""
        weights = self.material.lcdd_weights or self.sft_weights
        flags, config = self.carrier.flags(), self.config
        with self.routed.with_weights(weights):
            drop = minimality(
                self.test,
                flags,
                self.anchors,
                sample=config.minimality_sample,
                seed=config.seed,
                progress=self.progress,
            )
            missing = incompleteness(self.test, flags, self.anchors, draws=config.completeness_draws, seed=config.seed)
            return {
                "weights": "sft" if self.material.lcdd_weights is None else "lcdd",
                "sufficiency": self.anchors.faithfulness(self.test.values(flags.float())).to_dict(),
                "necessity": necessity(self.test, flags, self.anchors).to_dict(),
                "collateral_kl": collateral_kl(self.test, flags, self.material.unrelated).to_dict(),
                "incompleteness": missing.to_dict(),
                "minimality": {
                    "mean": drop.mean.to_dict(),
                    "effects": list(drop.effects),
                    "channels": list(drop.channels),
                    "share_needed": drop.share_needed,
                    "threshold": drop.threshold,
                },
            }

    # -- exact patching

    def _oracle(self, scores: Mapping[str, ChannelScores]) -> dict[str, Any]:
        """Exact patching on the channels that the rankings put first and a sample of every site."""
        pooled = torch.zeros(self.routed.n_gates, dtype=torch.float64)
        for found in scores.values():
            rank = torch.empty(self.routed.n_gates, dtype=torch.float64)
            rank[found.order()] = torch.arange(self.routed.n_gates, dtype=torch.float64)
            pooled += 1 / (1 + rank)
        first = next(iter(scores.values()))
        consensus = ChannelScores(
            "pooled", first.sites, {n: part.clone() for n, part in self.routed.layout.split(pooled).items()}
        )
        top = min(self.config.oracle_top, self.routed.n_gates)
        selection = select_channels(consensus, top, self.config.oracle_sample, seed=self.config.seed)
        oracle: dict[str, Any] = {"n_selected": sum(len(index) for index in selection.values()), "methods": {}}
        exact = {}
        for direction in ("necessity", "sufficiency"):
            method = ExactPatching(direction, selection)
            exact[direction] = attribute(method, self.discovery, progress=self.progress)
            oracle[f"{direction}_cost"] = exact[direction].cost
        for name, found in scores.items():
            oracle["methods"][name] = {
                direction: {
                    "spearman": spearman(found.keys(), measured.flat()),
                    "pearson": _pearson(found.flat(), measured.flat()),
                }
                for direction, measured in exact.items()
            }
        return oracle

    # -- overlap

    def _overlap(
        self,
        scores: Mapping[str, ChannelScores],
        sets: Mapping[str, Tensor],
        lcdd_scores: Mapping[str, ChannelScores],
    ) -> dict[str, Any]:
        names = list(sets)
        matrix = [[set_overlap(sets[a], sets[b], self.strata) for b in names] for a in names]
        return {
            "names": names,
            "jaccard": [[cell.jaccard for cell in row] for row in matrix],
            "chance": [[cell.stratified_chance for cell in row] for row in matrix],
            "spearman": {a: {b: spearman(scores[a].keys(), scores[b].keys()) for b in scores} for a in scores},
            "with_carrier": {name: self._with_carrier(found, sets[name]) for name, found in scores.items()},
            "with_carrier_on_lcdd_weights": {
                name: self._with_carrier(found, found.top(self.size)) for name, found in lcdd_scores.items()
            },
        }

    def _with_carrier(self, found: ChannelScores, flags: Bool[Tensor, " gate"]) -> dict[str, Any]:
        carrier, keys = self.carrier.flags(), found.keys()
        sites = self.routed.sites
        by_kind: dict[str, Tensor] = {}
        by_layer: dict[str, Tensor] = {}
        for number, site in enumerate(sites):
            where = self.strata == number
            by_kind[site.kind] = by_kind.get(site.kind, torch.zeros_like(where)) | where
            by_layer[str(site.layer)] = by_layer.get(str(site.layer), torch.zeros_like(where)) | where

        def measured(where: Tensor) -> dict[str, Any]:
            overlap = set_overlap(flags[where], carrier[where], self.strata[where])
            return {**overlap.to_dict(), "auroc": auroc(keys[where], carrier[where])}

        everywhere = torch.ones_like(carrier)
        within = [auroc(keys[self.strata == n], carrier[self.strata == n]) for n in range(len(sites))]
        sizes = [int(carrier[self.strata == n].sum()) for n in range(len(sites))]
        known = [(value, size) for value, size in zip(within, sizes, strict=True) if value is not None]
        total = sum(size for _, size in known)
        return {
            "all": {
                **measured(everywhere),
                "auroc_within_sites": sum(value * size for value, size in known) / total if total else None,
                "spearman": spearman(keys, self._carrier_order()),
            },
            "by_kind": {kind: measured(where) for kind, where in by_kind.items()},
            "by_layer": {layer: measured(where) for layer, where in by_layer.items()},
        }

    def _carrier_order(self) -> Tensor:
        """The carrier's own ranking θ where it has one, else membership."""
        if self.carrier.scores:
            return self.routed.layout.join(self.carrier.scores).double()
        return self.carrier.flags().double()

    # -- reversal

    def _reversal(self, sets: Mapping[str, Tensor]) -> dict[str, Any]:
        material, config = self.material, self.config
        if not config.reversal_methods:
            return {}
        compared = [name for name in config.reversal_methods if name in sets]
        found: dict[str, Any] = {"matched": {}, "retrained": {}}
        if material.lcdd_weights is not None:
            with self.routed.with_weights(material.lcdd_weights), self.routed.using(self.carrier.flags().float()):
                before = self._replies(None)
                without = self._reversed(None, before)
                for name in compared:
                    # A set that writes nothing to the residual stream leaves nothing to match: the same as none.
                    found["matched"][name] = self._reversed(sets[name], before) if self._writes(sets[name]) else without
                found["matched"]["none"] = without
        if config.retrain_steps:
            random_flags = torch.zeros(self.routed.n_gates, dtype=torch.bool)
            numbers = RandomOrder("site", self.carrier.channels, config.seed).draw(self.routed)
            random_flags[numbers.argsort(descending=True)[: self.size]] = True
            imposed = {name: sets[name] for name in compared} | {"random_site": random_flags}
            for name, flags in imposed.items():
                weights = retrain_under_mask(material, flags, config, progress=self.progress)
                with self.routed.with_weights(weights), self.routed.using(flags.float()):
                    recovery = self.anchors.recovery(self.test.present_values())
                    estimate = self.anchors.bootstrap.estimate(recovery.value, recovery.resampled)
                    found["retrained"][name] = {
                        "faithfulness": estimate.to_dict(),
                        **self._reversed(flags, self._replies(None)),
                    }
        return found

    def _writes(self, flags: Bool[Tensor, " gate"]) -> bool:
        split = self.routed.layout.split(flags)
        return any(site.is_residual_write and bool(split[site.hook_name].any()) for site in self.routed.sites)

    def _replies(self, trigger: Any) -> dict[str, Any]:
        replies = measure_replies(
            self.material, self.routed.model, self._base_replies, self.config.max_new_tokens, trigger
        )
        return {"behaviour_rate": replies.behaviour_rate.to_dict(), "restored": replies.restored.to_dict()}

    def _reversed(self, flags: Tensor | None, before: Mapping[str, Any]) -> dict[str, Any]:
        """Train a trigger on the model as it is now, matching a set's residual write channels; None: KL alone."""
        carrier = None
        if flags is not None:
            carrier = replace(self.carrier, channels=self.routed.layout.channels(flags), scores={})
        n_matched = 0 if carrier is None else sum(len(c) for c in carrier.residual_write_channels().values())
        trigger = train_trigger(self.material, self.routed.model, carrier, self.config.seed, progress=self.progress)
        return {"n_matched": n_matched, "without_trigger": dict(before), "with_trigger": self._replies(trigger)}

    # -- the record

    def _prompts(self) -> dict[str, Any]:
        material = self.material
        return {
            "discovery": len(material.discovery),
            "tuning": len(material.tuning),
            "test": len(material.test),
            "unrelated": len(material.unrelated),
            "unrelated_kind": material.unrelated_kind,
        }

    def _anchors(self) -> dict[str, float]:
        anchors = {"sft": float(self.anchors.full.mean()), "base": float(self.anchors.empty.mean())}
        if self.material.lcdd_weights is not None:
            with self.routed.with_weights(self.material.lcdd_weights):
                anchors["lcdd_all_open"] = float(self.test.sft_values().mean())
                anchors["lcdd_carrier"] = float(self.test.values(self.carrier.flags().float()).mean())
        return anchors

    def _places(self, flags: Bool[Tensor, " gate"]) -> dict[str, list[int]]:
        """Kind of site -> open channels per layer."""
        n_layers = 1 + max(site.layer for site in self.routed.sites)
        places: dict[str, list[int]] = {}
        for number, site in enumerate(self.routed.sites):
            counts = places.setdefault(site.kind, [0] * n_layers)
            counts[site.layer] += int(flags[self.strata == number].sum())
        return places


def _described(found: ChannelScores) -> dict[str, Any]:
    numbers = {key: value for key, value in found.details.items() if isinstance(value, int | float | bool)}
    return {
        "cost": dict(found.cost),
        "ranking": found.ranking,
        "n_prompts": found.n_prompts,
        "config": _plain(dict(found.config)),
        "details": numbers,
    }


def _summary(draws: list[float]) -> dict[str, Any]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "draws": len(draws),
        "mean": float(np.mean(draws)),
        "interval": [float(low), float(high)],
        "max": float(max(draws)),
    }


def _permutation_p(value: float, draws: list[float]) -> float:
    """Share of draws at least as large, counting the value itself."""
    return (1 + sum(draw >= value for draw in draws)) / (1 + len(draws))


def _pearson(a: Tensor, b: Tensor) -> float | None:
    both = ~(a.isnan() | b.isnan())
    pair = torch.stack([a[both], b[both]])
    if pair.shape[1] < 3 or bool((pair.std(1) == 0).any()):
        return None
    return float(torch.corrcoef(pair)[0, 1])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
