"""Several seeds become means with every seed's figure kept."""

import copy

import pytest

from lcdd_lens.comparison import CARRIER, ComparisonResult, across_seeds, seeds_table
from lcdd_lens.comparison.result import ComparisonRecord
from lcdd_lens.errors import ConfigError


def of_seed(comparison: ComparisonResult, seed: int, shift: float = 0.0) -> ComparisonRecord:
    record = copy.deepcopy(comparison.record)
    record["seed"] = seed
    for name, found in record["sets"].items():
        found["sufficiency"]["value"] = shift + (0.5 if name == CARRIER else 0.2)
    return record


def test_means_and_differences_are_taken_over_the_same_seeds(comparison: ComparisonResult) -> None:
    summary = across_seeds([of_seed(comparison, seed, 0.1 * seed) for seed in range(3)])
    own = summary["figures"]["F of |C| channels, SFT weights"]
    assert own[CARRIER]["value"] == pytest.approx(0.6) and own[CARRIER]["n"] == 3
    assert own[CARRIER]["seeds"] == pytest.approx([0.5, 0.6, 0.7])
    against = summary["against_carrier"]["magnitude"]
    # seeds shift both alike, so the paired difference has no spread
    assert against["value"] == pytest.approx(-0.3) and against["interval"] == pytest.approx([-0.3, -0.3])
    assert against["p"] <= against["holm"] <= 1


def test_figures_that_a_set_lacks_are_left_out(comparison: ComparisonResult) -> None:
    summary = across_seeds([comparison])
    assert CARRIER not in summary["figures"]["area, log k"]
    assert set(summary["figures"]["area, log k"]) == set(comparison.methods)
    frame = seeds_table(summary)
    assert list(frame.index) == list(comparison.record["sets"])
    assert frame.loc["magnitude", "Jaccard with the carrier"] == pytest.approx(
        comparison.record["overlap"]["with_carrier"]["magnitude"]["all"]["jaccard"]
    )


def test_comparisons_that_are_not_seeds_of_one_experiment_are_refused(comparison: ComparisonResult) -> None:
    with pytest.raises(ConfigError, match="no comparisons"):
        across_seeds([])
    with pytest.raises(ConfigError, match="every seed once"):
        across_seeds([comparison, comparison])
    other = of_seed(comparison, 7)
    other["behaviour"] = "style"
    with pytest.raises(ConfigError, match="differ in behaviour"):
        across_seeds([comparison, other])
