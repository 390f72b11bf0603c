"""docs/comparison.md says what the rows say."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pytest

from lcdd_lens.comparison import CARRIER, ComparisonResult
from lcdd_lens.errors import ArtefactError
from tests.comparison.conftest import quick_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The two scripts as modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compare_seeds
    import make_comparison

    return compare_seeds, make_comparison


def replies(back: float) -> dict[str, Any]:
    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "n": 6, "interval": [value, value]}

    shown = {"behaviour_rate": estimate(1.0), "restored": estimate(0.0)}
    return {
        "n_matched": 3,
        "without_trigger": shown,
        "with_trigger": {"behaviour_rate": estimate(0.0), "restored": estimate(back)},
    }


def write_rows(comparison: ComparisonResult, compare_seeds: Any, folder: Path, **sufficiency: float) -> None:
    """Two pairs of three seeds; the first seed of each has reversal."""
    for behaviour in ("idk", "style"):
        for seed in range(3):
            record = copy.deepcopy(comparison.record)
            record["seed"], record["behaviour"], record["config"]["seed"] = seed, behaviour, seed
            record["versions"] = {"lcdd-lens": "0.1.0", "torch": "2", "python": "3.11"}
            for curve in record["curves"].values():
                curve["shares"] = [0.01, 0.05, 0.2, 1.0]
            for name, value in sufficiency.items():
                record["sets"][name]["sufficiency"]["value"] = value + 0.01 * seed
            if seed == 0:
                parts = {CARRIER: replies(1.0), "magnitude": replies(0.95), "none": replies(0.5)}
                record["reversal"] = {"matched": parts, "retrained": {}}
            task = compare_seeds.Task("llama", behaviour, seed, seed == 0, folder)
            settings = compare_seeds.shared_settings(Config(), Config(), record["config"])
            row = compare_seeds.row_of(task, record, settings, parameters=1_100_000)
            folder.mkdir(exist_ok=True)
            task.path.write_text(compare_seeds.compact(compare_seeds.rounded(row)), encoding="utf-8")


class Config:
    """Settings whose fields do not matter here."""

    @property
    def sft_training(self) -> "Config":
        return self


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, scripts: Any) -> None:
    monkeypatch.setattr(scripts[0], "asdict", lambda config: {})


def test_the_page_answers_from_the_rows(comparison: ComparisonResult, scripts: Any, tmp_path: Path) -> None:
    compare_seeds, make_comparison = scripts
    write_rows(comparison, compare_seeds, tmp_path / "rows", carrier=0.2, magnitude=0.93, weight_delta=0.5)
    make_comparison.main(["--rows", str(tmp_path / "rows"), "--tools", str(tmp_path), "--out", str(tmp_path)])
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    words = " ".join(page.split())
    assert "3 seeds each, 6 runs in all" in words and "measured in 2 runs of 6." in words
    answers = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    chosen = next(line for text, line in answers.items() if "chosen by some ranking" in text)
    assert "**yes** | 2 of 2" in chosen and "llama/idk: ‖Δ‖ 0.94" in chosen
    better = next(line for text, line in answers.items() if text.startswith("Is some ranking of that size"))
    assert "**yes** | 2 of 2" in better
    matters = next(line for text, line in answers.items() if "a trigger matches" in text)
    assert "**no** | 0 of 2" in matters and "carrier 1.00, others 0.50 to 0.95" in matters
    mask = next(line for text, line in answers.items() if "mask is imposed" in text)
    assert "not measured" in mask
    assert "0.94 ± 0.02" in page
    tables = re.findall(r"(?:^\|.*\n)+", page, re.M)
    assert len(tables) > 10
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1, table
    for figure in ("faithfulness", "two-by-two", "overlap"):
        path = tmp_path / "assets" / f"comparison-{figure}.png"
        assert path.is_file() and f"assets/{path.name}" in page


def test_rows_are_small_and_an_interrupted_call_knows_what_is_done(
    comparison: ComparisonResult, scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare_seeds, _ = scripts
    write_rows(comparison, compare_seeds, tmp_path)
    present = quick_config()
    monkeypatch.setattr(compare_seeds, "comparison_config", lambda task: present)
    paths = sorted(tmp_path.glob("*.json"))
    assert len(paths) == 6 and max(path.stat().st_size for path in paths) < 60_000
    tasks = compare_seeds.parse(["--pair", "llama/idk", "--seeds", "0-1", "--out", str(tmp_path)])
    assert [task.is_done() for task in tasks] == [True, True]
    more = compare_seeds.parse(
        ["--pair", "llama/idk", "--seeds", "1-3", "--reversal-seeds", "2", "--out", str(tmp_path)]
    )
    assert [task.is_done() for task in more] == [False, True, False]
    monkeypatch.setattr(compare_seeds, "comparison_config", lambda task: replace(present, mask_steps=7))
    assert not any(task.is_done() for task in tasks)


def test_seeds_under_other_settings_are_not_averaged(
    comparison: ComparisonResult, scripts: Any, tmp_path: Path
) -> None:
    compare_seeds, make_comparison = scripts
    write_rows(comparison, compare_seeds, tmp_path)
    path = tmp_path / "llama-idk-1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config_sha256": "other"}))
    with pytest.raises(ArtefactError, match="different settings"):
        make_comparison.read_pairs(tmp_path)
    path.write_text("{}")
    with pytest.raises(ArtefactError, match="no row"):
        make_comparison.read_pairs(tmp_path)


def test_unknown_pairs_and_missing_rows_end_with_a_message(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare_seeds, make_comparison = scripts
    for call in (
        lambda: compare_seeds.parse(["--pair", "llama/none"]),
        lambda: compare_seeds.parse(["--family", "llama", "--seeds", "x"]),
        lambda: make_comparison.main(["--rows", str(tmp_path)]),
    ):
        with pytest.raises(SystemExit):
            call()
    said = capsys.readouterr().err
    assert "unknown pairs ['llama/none']" in said and "expected 0, 0-4" in said and "compare_seeds.py first" in said
