"""A comparison measures what it says, on disjoint prompts, and leaves the model alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lcdd_lens.attribution import Contrast
from lcdd_lens.comparison import CARRIER, ComparisonConfig, ComparisonResult, Material, compare
from lcdd_lens.errors import ArtefactError, ConfigError, DataError
from lcdd_lens.evaluation.overlap import set_overlap
from lcdd_lens.generation import generate
from tests.comparison.conftest import METHODS, quick_config


def test_everything_is_judged_at_the_carriers_size(comparison: ComparisonResult) -> None:
    record = comparison.record
    assert record["carrier_size"] == 24
    assert list(record["sets"]) == [CARRIER, *METHODS] == record["overlap"]["names"]
    assert all(found["size"] == 24 for found in record["sets"].values())
    assert all(sum(map(sum, places.values())) == 24 for places in record["places"].values())


def test_faithfulness_is_that_of_gates_on_held_out_prompts(comparison: ComparisonResult, material: Material) -> None:
    contrast = Contrast(material.routed, material.test)
    full, empty = contrast.sft_values().mean(), contrast.base_values().mean()
    own = contrast.values(material.carrier.flags().float()).mean()
    record = comparison.record
    assert record["anchors"]["sft"] == pytest.approx(float(full)) and record["anchors"]["base"] == pytest.approx(
        float(empty)
    )
    expected = float((own - empty) / (full - empty))
    assert record["sets"][CARRIER]["sufficiency"]["value"] == pytest.approx(expected)
    assert record["two_by_two"][CARRIER]["sft"]["value"] == pytest.approx(expected)
    assert material.lcdd_weights is not None
    with material.routed.with_weights(material.lcdd_weights):
        on_lcdd = contrast.values(material.carrier.flags().float()).mean()
    assert record["two_by_two"][CARRIER]["lcdd"]["value"] == pytest.approx(float((on_lcdd - empty) / (full - empty)))
    for curve in record["curves"].values():
        assert curve["value"][-1] == pytest.approx(1.0) and curve["smallest_share"] is not None


def test_overlap_is_symmetric_with_ones_on_the_diagonal(comparison: ComparisonResult, material: Material) -> None:
    matrix = np.array(comparison.record["overlap"]["jaccard"])
    assert np.array_equal(matrix, matrix.T) and np.array_equal(np.diag(matrix), np.ones(4))
    with_carrier = comparison.record["overlap"]["with_carrier"]["weight_delta"]
    assert with_carrier["all"]["jaccard"] == pytest.approx(matrix[0, 1])
    assert sum(part["shared"] for part in with_carrier["by_kind"].values()) == with_carrier["all"]["shared"]
    assert sum(part["size_b"] for part in with_carrier["by_layer"].values()) == 24
    n = material.routed.n_gates
    whole = set_overlap(torch.ones(n, dtype=torch.bool), material.carrier.flags(), material.routed.layout.groups())
    assert whole.jaccard == pytest.approx(whole.stratified_chance)


def test_p_values_are_corrected_and_never_zero(comparison: ComparisonResult) -> None:
    for name, found in comparison.record["sets"].items():
        assert 1 / 6 <= found["against_random"]["p"] <= found["against_random"]["holm"] <= 1
        if name != CARRIER:
            assert 0 < found["against_carrier"]["p_value"] <= found["against_carrier"]["holm"] <= 1


def test_the_model_is_left_with_its_weights_and_gates(material: Material) -> None:
    routed = material.routed
    gates = torch.rand(routed.n_gates)
    routed.set_gates(gates)
    before = {name: weight.detach().clone() for name, weight in routed.delta_parameters().items()}
    one = replace(quick_config(), methods=("magnitude",), random_draws=1, minimality_sample=1, completeness_draws=1)
    compare(material, one, progress=False)
    assert torch.equal(routed.layout.join(routed.gates), gates)
    assert all(torch.equal(before[name], weight) for name, weight in routed.delta_parameters().items())


def test_the_results_file_comes_back_and_notices_changes(comparison: ComparisonResult, tmp_path: Path) -> None:
    path = comparison.save(tmp_path)
    loaded = ComparisonResult.load(tmp_path)
    assert loaded.to_dataframe().equals(comparison.to_dataframe())
    content = json.loads(path.read_text())
    content["sets"][CARRIER]["sufficiency"]["value"] = 1.0
    path.write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match="altered"):
        ComparisonResult.load(tmp_path)
    with pytest.raises(ArtefactError, match="does not exist"):
        ComparisonResult.load(tmp_path / "nowhere")


def test_prompts_that_methods_saw_may_not_judge(material: Material) -> None:
    with pytest.raises(DataError, match="both the discovery and the test prompts"):
        replace(material, test=(*material.test, material.discovery[0]))


def test_a_fine_tuned_model_without_the_behaviour_is_refused(material: Material) -> None:
    prompts = [list(row.prompt_ids) for row in material.test]
    replies = generate(material.base, prompts, max_new_tokens=3)
    rows = tuple(row.with_response(reply) for row, reply in zip(material.test, replies, strict=True))
    with pytest.raises(DataError, match="no more of the behaviour than the base"):
        compare(replace(material, test=rows), quick_config(), progress=False)


def test_an_empty_carrier_has_nothing_to_compare(material: Material) -> None:
    empty = replace(material.carrier, channels={}, scores={})
    with pytest.raises(ConfigError, match="no open channel"):
        replace(material, carrier=empty)


def test_settings_out_of_range_are_named() -> None:
    for fields, message in (
        ({"methods": ("eap",)}, r"unknown attribution methods \['eap'\]: expected some of .*weight_delta"),
        ({"n_test": 0}, "n_test is 0"),
        ({"retrain_lr": 0.0}, "retrain_lr"),
        ({"reversal_methods": ("eap",)}, r"unknown reversal_methods \['eap'\]: expected some of carrier, "),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            ComparisonConfig(**fields)  # type: ignore[arg-type]
