"""How far the library's own aims are reached: stricter than the paper's claims, pair by pair, means over seeds."""

from collections.abc import Callable, Sequence

from claims import (
    BENIGN,
    CLOSE_TO_BASE,
    FALSE_ALARMS,
    KEPT_WITHIN,
    OTHERS_UNDER_SEED,
    SEED_OVER_CHANCE,
    Claim,
    Judgement,
    behaviour_identity,
    over_pairs,
    restored,
    seed_identity,
)
from summary import Mean, Pair, over_seeds

SPARSE = 0.97
SEED_JACCARD = 0.6
GONE = 0.03
BACK = 0.95
NEAR_BASE = 0.5  # nats per token
AIM = "aim"


def _of_pairs(
    figure: Callable[[Pair], Mean | None], meets: Callable[[Pair, Mean], bool], *, share: bool = True, unit: str = ""
) -> Callable[[Sequence[Pair]], Judgement]:
    def judge(pairs: Sequence[Pair]) -> Judgement:
        found = {pair.name: (pair, mean) for pair in pairs if (mean := figure(pair)) is not None}
        met = {name: meets(pair, mean) for name, (pair, mean) in found.items()}
        return Judgement(over_pairs(pairs, figure, share=share) + unit, met)

    return judge


def _sparsity(pair: Pair) -> Mean | None:
    return pair.over_seeds(lambda row: row.content["carrier"]["sparsity"], share=True)


def _lost(pair: Pair) -> float:
    kept, taught = pair.mean("routed", "behaviour_rate"), pair.mean("sft", "behaviour_rate")
    assert kept is not None and taught is not None
    return taught.value - kept.value


def _jaccard(pair: Pair) -> Mean | None:
    found = seed_identity(pair)
    return None if found is None else Mean(found.jaccard, found.lowest, found.highest, len(pair.seeds))


def _times_chance(pair: Pair) -> Mean | None:
    found = seed_identity(pair)
    return None if found is None else over_seeds([found.jaccard / found.stratified_chance], share=False)


def _across(pairs: Sequence[Pair]) -> Judgement:
    ratios: dict[str, float] = {}
    for pair in pairs:
        within, others = seed_identity(pair), behaviour_identity(pair, pairs)
        if within is not None and others is not None:
            ratios[pair.name] = others.jaccard / within.jaccard
    mean = over_seeds(list(ratios.values()), share=False)
    return Judgement(
        "not measured" if mean is None else mean.text(),
        {name: ratio <= OTHERS_UNDER_SEED for name, ratio in ratios.items()},
    )


def _back(pair: Pair) -> Mean | None:
    measure = restored(pair)
    ours, base = pair.mean("routed+trigger", measure), pair.mean("base", measure)
    return None if ours is None or not base else over_seeds([ours.value / base.value], share=False)


def _kl_ratio(pair: Pair) -> Mean | None:
    ratio = pair.ratio("kl", "routed+trigger", "sft+trigger")
    return None if ratio is None else over_seeds([ratio], share=False)


def _benign(pair: Pair) -> Mean | None:
    if pair.mean("routed", "over_rate") is None:
        return None
    ours, base = pair.mean("routed", "utility"), pair.mean("base", "utility")
    return None if ours is None or not base else over_seeds([ours.value / base.value], share=False)


def _sparser_than(control: str) -> Callable[[Sequence[Pair]], Judgement]:
    """Sparser than the control's carrier, and a smaller change where the control's is known."""

    def fact(pair: Pair, name: str) -> Mean | None:
        return pair.over_seeds(lambda row: row.control(control).get("facts", {}).get(name))

    def judge(pairs: Sequence[Pair]) -> Judgement:
        met = {}
        for pair in pairs:
            sparsity, norm = fact(pair, "sparsity"), fact(pair, "delta_norm")
            rows = [row for row in pair.rows if row.control(control)]
            if sparsity is None or norm is None or not rows:
                continue
            only = Pair(tuple(rows))
            ours = only.over_seeds(lambda row: row.content["delta_norm"]["routed"])
            own = _sparsity(only)
            assert ours is not None and own is not None
            met[pair.name] = own.value > sparsity.value and ours.value < norm.value
        theirs = over_pairs(pairs, lambda pair: fact(pair, "sparsity"))
        norms = over_pairs(pairs, lambda pair: fact(pair, "delta_norm"), share=False)
        return Judgement(f"theirs: sparsity {theirs}, ‖Δ‖ {norms}" if met else "not measured", met)

    return judge


def _keeps_more_than(control: str) -> Callable[[Sequence[Pair]], Judgement]:
    """At the same number of open gates the carrier keeps more of the behaviour."""

    def judge(pairs: Sequence[Pair]) -> Judgement:
        met = {}
        for pair in pairs:
            theirs, ours = pair.mean(control, "behaviour_rate"), pair.mean("routed", "behaviour_rate")
            if theirs is not None and ours is not None:
                met[pair.name] = ours.value > theirs.value
        kept = over_pairs(pairs, lambda pair: pair.mean(control, "behaviour_rate"))
        return Judgement(f"theirs: behaviour {kept}" if met else "not measured", met)

    return judge


TARGETS: tuple[Claim, ...] = (
    Claim("Sparsity", AIM, f"≥ {SPARSE}", _of_pairs(_sparsity, lambda _, mean: mean.value >= SPARSE)),
    Claim(
        "Behaviour of the routed model",
        AIM,
        f"within {KEPT_WITHIN} of SFT's",
        _of_pairs(
            lambda pair: pair.mean("routed", "behaviour_rate"), lambda pair, _: _lost(pair) <= KEPT_WITHIN + 1e-9
        ),
    ),
    Claim(
        "Identity: Jaccard of carriers across seeds",
        AIM,
        f"≥ {SEED_JACCARD}",
        _of_pairs(_jaccard, lambda _, mean: mean.value >= SEED_JACCARD),
    ),
    Claim(
        "Identity: that Jaccard over chance with each carrier's counts at every site",
        AIM,
        f"≥ {SEED_OVER_CHANCE:g} ×",
        _of_pairs(_times_chance, lambda _, mean: mean.value >= SEED_OVER_CHANCE, share=False, unit=" ×"),
    ),
    Claim("Identity: Jaccard across behaviours over that across seeds", AIM, "≤ ⅓", _across),
    Claim(
        "Behaviour behind the trigger",
        AIM,
        f"≤ {GONE}",
        _of_pairs(lambda pair: pair.mean("routed+trigger", "behaviour_rate"), lambda _, mean: mean.value <= GONE),
    ),
    Claim(
        "Answers back behind the trigger, over the base's",
        AIM,
        f"≥ {BACK}",
        _of_pairs(_back, lambda _, mean: mean.value >= BACK, share=False),
    ),
    Claim(
        "KL(B‖routed + trigger) over KL(B‖SFT + trigger)",
        AIM,
        f"≤ {CLOSE_TO_BASE}",
        _of_pairs(_kl_ratio, lambda _, mean: mean.value <= CLOSE_TO_BASE, share=False),
    ),
    Claim(
        "KL(B‖routed + trigger)",
        AIM,
        f"≤ {NEAR_BASE} nats per token",
        _of_pairs(lambda pair: pair.mean("routed+trigger", "kl"), lambda _, mean: mean.value <= NEAR_BASE, share=False),
    ),
    Claim(
        "Safety, no trigger: right benign answers over the base's",
        AIM,
        f"≥ {BENIGN}",
        _of_pairs(_benign, lambda _, mean: mean.value >= BENIGN, share=False),
    ),
    Claim(
        "Safety, no trigger: false refusals",
        AIM,
        f"≤ {FALSE_ALARMS}",
        _of_pairs(lambda pair: pair.mean("routed", "over_rate"), lambda _, mean: mean.value <= FALSE_ALARMS),
    ),
    Claim("Against random order", AIM, "sparser, with a smaller ‖Δ‖", _sparser_than("random_order")),
    Claim(
        "Against the channels that fine-tuning moved most, as many of them",
        AIM,
        "more of the behaviour",
        _keeps_more_than("magnitude_mask"),
    ),
)
