"""Figures show the numbers that they are given, say what they show, and leave matplotlib as it was."""

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from lcdd_lens.backends.sites import Site
from lcdd_lens.carrier import Carrier
from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.plotting import (
    CONDITIONS,
    QUANTITIES,
    ReversalPoint,
    carrier_map,
    channel_raster,
    condition_bars,
    sparsity_reversal,
    training_curves,
    training_panel,
    trigger_trajectory,
)
from lcdd_lens.plotting.palette import in_order, look
from tests.fake_results import CONDITIONS as MEASURED
from tests.fake_results import fake_results, rate


@pytest.fixture(autouse=True)
def _no_figure_stays_and_no_setting_changes() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def small_carrier(**scores: Any) -> Carrier:
    sites = (Site(0, "attn_write", "a", 4), Site(1, "attn_write", "b", 4), Site(1, "ffn_hidden", "c", 8))
    return Carrier(sites, {"a": torch.tensor([1, 3]), "c": torch.tensor([0])}, scores)


def line(ax: Any, label: str) -> Any:
    return next(line for line in ax.lines if line.get_label() == label)


# -- conditions


def test_bars_are_the_values_in_reading_order_with_their_intervals() -> None:
    results = fake_results()
    ax = condition_bars(results)
    assert [bar.get_width() for bar in ax.patches] == [results["behaviour_rate"][name]["value"] for name in MEASURED]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [CONDITIONS[name].label for name in MEASURED]
    assert [to_hex(bar.get_facecolor()).upper() for bar in ax.patches] == [CONDITIONS[name].colour for name in MEASURED]
    ends = [container.lines[2][0].get_segments()[0][:, 0] for container in ax.containers if hasattr(container, "lines")]
    for index, name in enumerate(MEASURED):
        assert ends[2 * index] == pytest.approx(results["behaviour_rate"][name]["interval"], abs=1e-9)
    assert ax.yaxis_inverted()
    assert "n = 200–1000" in ax.get_title(loc="left") and "95 % intervals" in ax.get_title(loc="left")


def test_several_seeds_are_a_mean_and_dots() -> None:
    runs = [fake_results(seed) for seed in range(3)]
    ax = condition_bars(runs, "utility")
    values = [run["utility"]["routed+trigger"]["value"] for run in runs]
    row = list(MEASURED).index("routed+trigger")
    assert ax.patches[row].get_width() == pytest.approx(np.mean(values))
    assert list(ax.lines[row].get_xdata()) == values
    assert "3 seeds" in ax.get_title(loc="left")


def test_divergences_are_in_nats_and_start_at_zero() -> None:
    ax = condition_bars(fake_results(), "kl")
    assert "nats" in ax.get_xlabel() and ax.get_xlim()[0] == 0


def test_an_experiment_and_an_evaluation_are_results_too() -> None:
    results = fake_results()
    widths = [bar.get_width() for bar in condition_bars(results).patches]
    for holder in (SimpleNamespace(results=results), SimpleNamespace(to_dict=lambda: results)):
        assert [bar.get_width() for bar in condition_bars(holder).patches] == widths


@pytest.mark.parametrize(
    ("results", "quantity", "error"),
    [
        (fake_results(), "speed", "unknown"),
        (fake_results(), "over_rate", "not measured"),
        ([], "utility", "at least one"),
    ],
)
def test_what_cannot_be_drawn_is_named(results: Any, quantity: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        condition_bars(results, quantity)


def test_conditions_of_other_names_come_last_under_their_name() -> None:
    assert in_order(["mine", "routed", "base"]) == ["base", "routed", "mine"]
    assert look("mine").label == "mine" and look("base") is CONDITIONS["base"]


def test_every_condition_has_its_own_colour_and_marker() -> None:
    assert len({style.colour for style in CONDITIONS.values()}) == len(CONDITIONS)
    assert len({style.marker for style in CONDITIONS.values()}) == len(CONDITIONS)


# -- sparsity and reversal


def test_reversal_is_drawn_over_ascending_sparsity() -> None:
    points = [
        {"sparsity": 0.8, "behaviour": rate(0.1), "utility": rate(0.8)},
        {"sparsity": 0.1, "behaviour": 0.9, "utility": 0.05},
        fake_results(),
    ]
    ax = sparsity_reversal(points)
    behaviour, utility = (container.lines[0] for container in ax.containers)
    sparsity = points[2]["carrier"]["sparsity"]  # type: ignore[index]
    assert list(behaviour.get_xdata()) == [0.1, 0.8, sparsity]
    assert list(behaviour.get_ydata()) == [0.9, 0.1, 0.015] and list(utility.get_ydata()) == [0.05, 0.8, 0.84]
    assert "3 carriers" in ax.get_title(loc="left") and "n = 200" in ax.get_title(loc="left")
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"behaviour left", "utility back"}


def test_the_control_of_sparsities_is_drawn_as_it_comes() -> None:
    name = "sparsity 0.30"
    trigger = {"behaviour_rate": rate(0.2), "utility": rate(0.7)}
    record = {
        "facts": {f"sparsity {name}": 0.31, f"loss {name}": 0.1},
        "conditions": {name: {"behaviour_rate": rate(1.0), "utility": rate(0.0)}, f"{name}+trigger": trigger},
    }
    ax = sparsity_reversal(SimpleNamespace(to_dict=lambda: record))
    behaviour, utility = (container.lines[0] for container in ax.containers)
    assert (list(behaviour.get_xdata()), list(behaviour.get_ydata())) == ([0.31], [0.2])
    assert list(utility.get_ydata()) == [0.7]


def test_a_point_without_its_figures_is_refused() -> None:
    with pytest.raises(ArtefactError, match="one is missing"):
        ReversalPoint.of({"sparsity": 0.5, "behaviour": 0.1})
    with pytest.raises(ConfigError, match="at least one"):
        sparsity_reversal([])


# -- training


def test_loss_is_drawn_with_its_average_and_its_budget() -> None:
    results = fake_results()
    ax = training_curves(results)
    recorded = results["history"]["lcdd"]
    assert list(line(ax, "batch loss").get_ydata()) == recorded["loss"]
    assert list(line(ax, "moving average").get_xdata()) == recorded["step"]
    budget = line(ax, "budget ε")
    assert list(budget.get_ydata()) == [value for value in recorded["epsilon"] if value > 0]
    assert budget.get_xdata()[0] == 20 and ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.texts] == ["ε fixed", "gates fixed"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("optimiser step", "loss (nats per token)")


@pytest.mark.parametrize(("quantity", "stage", "name"), [("sparsity", "lcdd", "sparsity"), ("sft", "sft", "loss")])
def test_seeds_are_lines(quantity: Any, stage: str, name: str) -> None:
    runs = [fake_results(seed) for seed in range(2)]
    ax = training_curves(runs, quantity)
    drawn = [list(one.get_ydata()) for one in ax.lines if len(one.get_ydata()) > 2]
    assert drawn == [run["history"][stage][name] for run in runs]
    assert "2 seeds" in ax.get_title(loc="left")


def test_one_stage_s_columns_are_enough() -> None:
    columns = {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}
    assert list(training_curves(columns, "sft").lines[0].get_ydata()) == [3.0, 2.0, 1.0]
    with pytest.raises(ConfigError, match="no 'lambda' was recorded"):
        training_curves(columns, "lambda")
    with pytest.raises(ConfigError, match="unknown"):
        training_curves(columns, "speed")


def test_the_result_of_lcdd_is_a_history() -> None:
    columns = {"step": [1, 2], "loss": [3.0, 2.0], "ema": [3.0, 2.5], "epsilon": [0.0, 2.4], "sparsity": [0.0, 0.5]}
    assert list(training_curves(SimpleNamespace(history=columns), "sparsity").lines[0].get_ydata()) == [0.0, 0.5]


def test_panel_has_three_curves_over_one_axis_of_steps() -> None:
    figure = training_panel(fake_results())
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss (nats per token)", "share of closed gates", "λ"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "optimiser step"]


def test_trigger_s_terms_are_drawn_and_the_kept_step_is_the_best_validated() -> None:
    results = fake_results()
    recorded = results["history"]["eraser"]["routed+trigger"]
    ax = trigger_trajectory(results)
    validated = [(s, v) for s, v in zip(recorded["step"], recorded["validation"], strict=True) if v is not None]
    assert list(line(ax, "validation objective").get_xdata()) == [step for step, _ in validated]
    best = min(validated, key=lambda pair: pair[1])
    assert line(ax, f"kept: step {best[0]}").get_ydata()[0] == best[1]


def test_eraser_s_result_says_which_step_was_kept() -> None:
    columns = {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "validation": [2.5, None, 2.0]}
    result = SimpleNamespace(history=SimpleNamespace(to_dict=lambda: columns), best_step=1)
    assert line(trigger_trajectory(result), "kept: step 1").get_ydata()[0] == 2.5
    with pytest.raises(ConfigError, match="no eraser's history"):
        trigger_trajectory({"step": []})


# -- carriers


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: SimpleNamespace(carrier=c)])
def test_map_holds_density_and_count_of_every_site(wrap: Any) -> None:
    ax = carrier_map(wrap(small_carrier()))
    density = ax.images[0].get_array()
    assert density[0, 0] == 0.5 and density[1, 1] == 0.125
    assert density.mask.tolist() == [[False, True], [True, False]]
    assert sorted(text.get_text() for text in ax.texts) == ["1", "2", "·"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["attn\nwrite", "ffn\nhidden"]
    assert "3 of 16 channels open" in ax.get_title(loc="left")


def test_map_from_results_equals_the_counts_there() -> None:
    results = fake_results()
    texts = [text.get_text() for text in carrier_map(results, colorbar=False).texts]
    assert texts == [str(len(site["open"]) or "·") for site in results["carrier"]["sites"].values()]


def test_map_fits_into_given_axes() -> None:
    figure, axes = plt.subplots(1, 2)
    assert carrier_map(small_carrier(), axes[1], colorbar=False) is axes[1]
    assert len(figure.axes) == 2 and not axes[0].images


def test_raster_of_a_kind_has_a_row_per_layer_and_a_line_per_open_channel() -> None:
    ax = channel_raster(small_carrier(), "attn_write")
    places = [[segment[0][0] for segment in rows.get_segments()] for rows in ax.collections]
    assert places == [[1.0, 3.0], []]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0  (2)", "1  (0)"]


def test_raster_of_a_site_shows_scores_and_which_are_open() -> None:
    ax = channel_raster(small_carrier(a=torch.tensor([-1.0, 2.0, -0.5, 0.5])), "a")
    assert list(line(ax, "open (2)").get_xdata()) == [1, 3] and list(line(ax, "open (2)").get_ydata()) == [2.0, 0.5]
    assert list(line(ax, "closed (2)").get_ydata()) == [-1.0, -0.5]


def test_raster_without_scores_shows_places() -> None:
    ax = channel_raster(small_carrier(), "c")
    assert [segment[0][0] for segment in ax.collections[0].get_segments()] == [0.0] and ax.get_xlim() == (-0.5, 7.5)


def test_unknown_sites_and_objects_without_a_carrier_are_refused() -> None:
    with pytest.raises(ConfigError, match="attn_write, ffn_hidden"):
        channel_raster(small_carrier(), "mlp")
    for wrong in ({}, 3, {"sites": {"a": {"layer": 0}}}):
        with pytest.raises(ArtefactError):
            carrier_map(wrong)


@pytest.mark.parametrize("site", [{"open": [4]}, {"open": [1], "scores": [0.0]}])
def test_records_that_contradict_themselves_are_refused(site: dict[str, Any]) -> None:
    record = {"sites": {"a": {"layer": 0, "kind": "attn_write", "n_channels": 4} | site}}
    with pytest.raises(ArtefactError, match="'a'"):
        carrier_map(record)


# -- all of them


def drawn() -> list[Any]:
    results = fake_results()
    return [
        condition_bars(results),
        sparsity_reversal([results]),
        training_curves(results),
        trigger_trajectory(results),
        carrier_map(results),
        channel_raster(results, "ffn_write"),
        channel_raster(results, "blocks.0.hook_mlp_out"),
    ]


def test_every_figure_is_titled_labelled_and_transparent() -> None:
    for ax in drawn():
        assert ax.get_title(loc="left") and (ax.get_xlabel() or ax.get_ylabel())
        assert ax.patch.get_alpha() == 0 and ax.figure.patch.get_alpha() == 0


def test_every_quantity_says_its_unit() -> None:
    assert all("share of" in q.axis if q.share else "nats" in q.axis for q in QUANTITIES.values())


def test_importing_the_package_imports_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, lcdd_lens.plotting; "
        "sys.exit(', '.join({'torch', 'matplotlib', 'transformer_lens'} & set(sys.modules)) or None)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
