"""The paper's claims, each with a criterion that a pair meets or does not, and the verdict over all pairs.

    holds           every measured pair meets the criterion
    holds in part   some do
    does not hold   none does
    not measured    no pair has what the criterion needs

Criteria are this library's; where the paper has a figure, the criterion starts from it. Means are over seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from summary import Mean, Pair, over_seeds

from lcdd_lens.carrier import Carrier
from lcdd_lens.evaluation.identity import Identity, identity, identity_between

Verdict = Literal["holds", "holds in part", "does not hold", "not measured"]

KEPT_WITHIN = 0.02  # share of prompts that LCDD may lose of the behaviour
AUTHORS_SPARSITY = 0.73  # the least sparse of the authors' twelve pairs
CLOSE_TO_SFT = 0.05  # KL(S‖routed) as a share of KL(S‖base)
CLOSE_TO_BASE = 0.2  # KL(B‖routed + trigger) as a share of KL(B‖SFT + trigger)
UNTOUCHED = 0.95  # share of the behaviour that random tokens must leave
LESS = 0.05  # how much more behaviour an ablated trigger must leave to count as worse
NECESSARY = 0.9  # share of the behaviour
SEED_OVER_CHANCE = 4.0  # seed Jaccard over stratified chance
OTHERS_UNDER_SEED = 1 / 3  # cross-behaviour Jaccard over seed Jaccard
BENIGN = 0.99  # share of the base's benign answers
FALSE_ALARMS = 0.01  # share of benign prompts


@dataclass(frozen=True)
class Judgement:
    """What became of a claim.

    Attributes:
        ours: our figures in words.
        met: pair -> whether it meets the criterion; pairs that were not measured are absent.
    """

    ours: str
    met: dict[str, bool]

    @property
    def verdict(self) -> Verdict:
        if not self.met:
            return "not measured"
        if all(self.met.values()):
            return "holds"
        return "holds in part" if any(self.met.values()) else "does not hold"


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        text: what is claimed.
        authors: their figure, or that they give none.
        criterion: what a pair must show.
        judge: our figures, and which pairs show it.
    """

    text: str
    authors: str
    criterion: str
    judge: Callable[[Sequence[Pair]], Judgement]


# -- who belongs together


def seed_identity(pair: Pair, control: str | None = None) -> Identity | None:
    """Agreement of the carriers of a pair's seeds (LCDD's, or a control's); None with fewer than two."""
    carriers = [row.carrier if control is None else row.control_carrier(control) for row in pair.rows]
    kept = [carrier for carrier in carriers if carrier is not None]
    return identity(kept) if len(kept) > 1 else None


def behaviour_identity(pair: Pair, pairs: Sequence[Pair], control: str | None = None) -> Identity | None:
    """Agreement of a pair's carriers with those of the other behaviours on the same model; None where none ran."""

    def carriers(of: Pair) -> list[Carrier]:
        found = [row.carrier if control is None else row.control_carrier(control) for row in of.rows]
        return [carrier for carrier in found if carrier is not None]

    ours = carriers(pair)
    theirs = [
        carrier
        for other in pairs
        if other.family == pair.family and other.name != pair.name
        for carrier in carriers(other)
    ]
    return identity_between(ours, theirs) if ours and theirs else None


def restored(pair: Pair) -> str:
    """The figure that reversal must bring back: the base's own reply where the behaviour has target prompts."""
    return "recovered" if pair.mean("base", "recovered") is not None else "utility"


def over_pairs(pairs: Sequence[Pair], figure: Callable[[Pair], Mean | None], *, share: bool = True) -> str:
    """Mean over pairs with its interval; of a single pair that of its seeds."""
    found = [mean for pair in pairs if (mean := figure(pair)) is not None]
    if not found:
        return "not measured"
    if len(found) == 1:
        return found[0].text()
    averaged = over_seeds([mean.value for mean in found], share=share)
    assert averaged is not None
    return averaged.text()


# -- judging


def _behaviour(condition: str) -> Callable[[Pair], Mean | None]:
    return lambda pair: pair.mean(condition, "behaviour_rate")


def _sparse(control: str | None) -> Callable[[Sequence[Pair]], Judgement]:
    condition = control or "routed"

    def sparsity(pair: Pair) -> Mean | None:
        if control is None:
            return pair.over_seeds(lambda row: row.content["carrier"]["sparsity"], share=True)
        return pair.over_seeds(lambda row: row.control(control).get("facts", {}).get("sparsity"), share=True)

    def judge(pairs: Sequence[Pair]) -> Judgement:
        met = {}
        for pair in pairs:
            sparse, kept, taught = (
                sparsity(pair),
                pair.mean(condition, "behaviour_rate"),
                pair.mean("sft", "behaviour_rate"),
            )
            if sparse is not None and kept is not None and taught is not None:
                met[pair.name] = sparse.value >= AUTHORS_SPARSITY and kept.value >= taught.value - KEPT_WITHIN
        ours = (
            f"sparsity {over_pairs(pairs, sparsity)}, behaviour {over_pairs(pairs, _behaviour(condition))} "
            f"(SFT {over_pairs(pairs, _behaviour('sft'))})"
        )
        return Judgement(ours, met)

    return judge


def _close_to_sft(pairs: Sequence[Pair]) -> Judgement:
    ratios = {pair.name: pair.ratio("kl_from_sft", "routed", "base") for pair in pairs}
    met = {name: ratio <= CLOSE_TO_SFT for name, ratio in ratios.items() if ratio is not None}
    ours = over_pairs(pairs, lambda pair: pair.mean("routed", "kl_from_sft"), share=False)
    base = over_pairs(pairs, lambda pair: pair.mean("base", "kl_from_sft"), share=False)
    return Judgement(f"KL(S‖routed) {ours} nats; KL(S‖base) {base}", met)


def _reversed(condition: str, *, never: bool = False) -> Callable[[Sequence[Pair]], Judgement]:
    """Every run of the condition is reversed, or (``never``) none is."""

    def judge(pairs: Sequence[Pair]) -> Judgement:
        met, runs, hits = {}, 0, 0
        for pair in pairs:
            verdicts = pair.verdicts(condition)
            total = sum(verdicts.values())
            if total:
                met[pair.name] = verdicts.get("reversed", 0) == (0 if never else total)
                runs, hits = runs + total, hits + verdicts.get("reversed", 0)
        left = over_pairs(pairs, _behaviour(condition))
        back = over_pairs(pairs, lambda pair: pair.mean(condition, restored(pair)))
        ours = (
            f"reversed in {hits} of {runs} runs; behaviour left {left}, answers back {back}" if runs else "not measured"
        )
        return Judgement(ours, met)

    return judge


def _fails_on_sft(pairs: Sequence[Pair]) -> Judgement:
    by_kl = _reversed("sft+trigger", never=True)(pairs)
    matching = _reversed("sft+trigger(carrier)", never=True)(pairs)
    met = {name: by_kl.met[name] and matching.met.get(name, True) for name in by_kl.met}
    return Judgement(f"KL only: {by_kl.ours}; with the carrier's channels: {matching.ours}", met)


def _close_to_base(pairs: Sequence[Pair]) -> Judgement:
    ratios = {pair.name: pair.ratio("kl", "routed+trigger", "sft+trigger") for pair in pairs}
    met = {name: ratio <= CLOSE_TO_BASE for name, ratio in ratios.items() if ratio is not None}
    ours = over_pairs(pairs, lambda pair: pair.mean("routed+trigger", "kl"), share=False)
    theirs = over_pairs(pairs, lambda pair: pair.mean("sft+trigger", "kl"), share=False)
    return Judgement(f"KL(B‖routed + trigger) {ours} nats; KL(B‖SFT + trigger) {theirs}", met)


def _worse_without(condition: str) -> Callable[[Sequence[Pair]], Judgement]:
    """The ablated trigger leaves more of the behaviour, or brings less back, than the whole one."""

    def judge(pairs: Sequence[Pair]) -> Judgement:
        met = {}
        for pair in pairs:
            left, whole = pair.mean(condition, "behaviour_rate"), pair.mean("routed+trigger", "behaviour_rate")
            back, whole_back = pair.mean(condition, restored(pair)), pair.mean("routed+trigger", restored(pair))
            if left is not None and whole is not None and back is not None and whole_back is not None:
                met[pair.name] = left.value > whole.value + LESS or back.value < whole_back.value - LESS
        ours = _reversed(condition)(pairs).ours
        return Judgement(f"without: {ours}" if met else ours, met)

    return judge


def _random_tokens(pairs: Sequence[Pair]) -> Judgement:
    met, worst = {}, []
    condition = "routed+random(many)"
    if not any(pair.mean(condition, "behaviour_rate") for pair in pairs):
        condition = "routed+random"
    for pair in pairs:
        drawn, kept = pair.mean(condition, "behaviour_rate"), pair.mean("routed", "behaviour_rate")
        if drawn is not None and kept is not None:
            met[pair.name] = drawn.value >= UNTOUCHED * kept.value
        figures = [figure for row in pair.rows if (figure := row.figure(condition, "behaviour_rate"))]
        worst += [figure["worst"] for figure in figures if "worst" in figure]
    tail = f"; worst draw of all {min(worst):.3f}" if worst else ""
    return Judgement(f"behaviour left {over_pairs(pairs, _behaviour(condition))}{tail}", met)


def _causal(weights: str, measure: str) -> Callable[[Sequence[Pair]], Judgement]:
    def of(pair: Pair, channels: str) -> Mean | None:
        return pair.over_seeds(
            lambda row: next(
                (
                    cell[measure]["value"]
                    for cell in row.content.get("causal", [])
                    if cell["weights"] == weights and cell["channels"] == channels
                ),
                None,
            )
        )

    def judge(pairs: Sequence[Pair]) -> Judgement:
        found = {pair.name: of(pair, "carrier") for pair in pairs}
        met = {name: mean.value >= NECESSARY for name, mean in found.items() if mean is not None}
        ours = over_pairs(pairs, lambda pair: of(pair, "carrier"), share=False)
        drawn = over_pairs(pairs, lambda pair: of(pair, "random"), share=False)
        return Judgement(f"{ours}; random channels with the same counts {drawn}", met)

    return judge


def _own(control: str | None) -> Callable[[Sequence[Pair]], Judgement]:
    def judge(pairs: Sequence[Pair]) -> Judgement:
        met, seeds, chance, others = {}, [], [], []
        for pair in pairs:
            within = seed_identity(pair, control)
            if within is None:
                continue
            across = behaviour_identity(pair, pairs, control)
            seeds.append(within.jaccard)
            chance.append(within.stratified_chance)
            if across is not None:
                others.append(across.jaccard)
            apart = across is None or across.jaccard <= OTHERS_UNDER_SEED * within.jaccard
            met[pair.name] = within.jaccard >= SEED_OVER_CHANCE * within.stratified_chance and apart
        if not met:
            return Judgement("not measured (needs two seeds)", {})
        parts = [f"across seeds {_mean(seeds)}", f"stratified chance {_mean(chance)}"]
        parts += [f"across behaviours {_mean(others)}"] if others else []
        return Judgement("Jaccard " + ", ".join(parts), met)

    return judge


def _untouched(pairs: Sequence[Pair]) -> Judgement:
    met = {}
    for pair in pairs:
        benign, base = pair.mean("routed", "utility"), pair.mean("base", "utility")
        alarms = pair.mean("routed", "over_rate")
        if benign is not None and base is not None and alarms is not None:
            met[pair.name] = benign.value >= BENIGN * base.value and alarms.value <= FALSE_ALARMS
    concerned = [pair for pair in pairs if pair.name in met]
    right = over_pairs(concerned, lambda pair: pair.mean("routed", "utility"))
    base = over_pairs(concerned, lambda pair: pair.mean("base", "utility"))
    false = over_pairs(concerned, lambda pair: pair.mean("routed", "over_rate"))
    return Judgement(f"right benign answers {right} (base {base}); false refusals {false}", met)


def _mean(values: Sequence[float]) -> str:
    averaged = over_seeds(values, share=True)
    assert averaged is not None
    return averaged.text()


NO_FIGURE = "claimed; no figure taken over"
NOT_REPORTED = "not examined"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "LCDD compresses the behaviour into a sparse carrier and keeps it (our rule)",
        "73–84 % sparsity on 12 pairs",
        f"sparsity ≥ {AUTHORS_SPARSITY} and behaviour within {KEPT_WITHIN} of SFT's",
        _sparse(None),
    ),
    Claim(
        "The same under the paper's own rule",
        "73–84 % sparsity on 12 pairs",
        f"sparsity ≥ {AUTHORS_SPARSITY} and behaviour within {KEPT_WITHIN} of SFT's",
        _sparse("paper_rule"),
    ),
    Claim(
        "The routed model acts as the fine-tuned one",
        NO_FIGURE,
        f"KL(S‖routed) ≤ {CLOSE_TO_SFT} × KL(S‖base)",
        _close_to_sft,
    ),
    Claim(
        "Where the behaviour does not belong, nothing changes (safety)",
        NO_FIGURE,
        f"benign answers ≥ {BENIGN} × base's and false refusals ≤ {FALSE_ALARMS}",
        _untouched,
    ),
    Claim(
        "A trigger reverses the behaviour of the routed model",
        NO_FIGURE,
        "every run is reversed: behaviour ≤ 0.1 and at least 75 % of the base's answers back",
        _reversed("routed+trigger"),
    ),
    Claim(
        "Behind the trigger the routed model's distribution is the base's",
        NO_FIGURE,
        f"KL(B‖routed + trigger) ≤ {CLOSE_TO_BASE} × KL(B‖SFT + trigger)",
        _close_to_base,
    ),
    Claim(
        "The same trigger training fails on plain SFT",
        NO_FIGURE,
        "no run is reversed, neither by KL alone nor with the carrier's channels",
        _fails_on_sft,
    ),
    Claim(
        "It is the sparse structure that makes it reversible: as small a change without gates is not reversed",
        NOT_REPORTED,
        "no run of dense SFT pulled to LCDD's ‖Δ‖ is reversed by KL alone",
        _reversed("matched_sft+trigger", never=True),
    ),
    Claim(
        "Activation matching needs the carrier's channels",
        NO_FIGURE,
        f"with random channels {LESS} more behaviour is left, or {LESS} fewer answers come back",
        _worse_without("routed+trigger(random)"),
    ),
    Claim(
        "The trigger needs activation matching",
        NO_FIGURE,
        "the same for KL alone",
        _worse_without("routed+trigger(kl)"),
    ),
    Claim(
        "The trigger needs the KL term",
        NO_FIGURE,
        "the same for matching alone",
        _worse_without("routed+trigger(matching)"),
    ),
    Claim(
        "Reversal needs the trained trigger, not any token",
        NO_FIGURE,
        f"random real tokens leave ≥ {UNTOUCHED} of the routed model's behaviour on average",
        _random_tokens,
    ),
    Claim(
        "The carrier is necessary for the behaviour (LCDD's weights, all other gates open)",
        NO_FIGURE,
        f"necessity ≥ {NECESSARY}",
        _causal("lcdd", "necessity"),
    ),
    Claim(
        "The carrier is sufficient (LCDD's weights)",
        NO_FIGURE,
        f"sufficiency ≥ {NECESSARY}",
        _causal("lcdd", "sufficiency"),
    ),
    Claim(
        "The carrier is sufficient on SFT's own weights",
        NOT_REPORTED,
        f"sufficiency ≥ {NECESSARY}",
        _causal("sft", "sufficiency"),
    ),
    Claim(
        "The carrier is the behaviour's, not the dice's (our rule)",
        NOT_REPORTED,
        f"Jaccard across seeds ≥ {SEED_OVER_CHANCE:g} × stratified chance, across behaviours ≤ ⅓ of it",
        _own(None),
    ),
    Claim(
        "The same under the paper's own rule",
        NOT_REPORTED,
        f"Jaccard across seeds ≥ {SEED_OVER_CHANCE:g} × stratified chance, across behaviours ≤ ⅓ of it",
        _own("paper_rule"),
    ),
)
