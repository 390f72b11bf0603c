"""The reproduction: rows are made once and go on where they stopped; the page says what the rows say."""

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lcdd_lens.errors import ArtefactError
from tests.fake_rows import fake_row, write_rows

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


MODULES = (
    "reproduce", "make_results", "claims", "summary", "figures", "targets", "tables", "rules", "rule_search",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def reproduce() -> ModuleType:
    import reproduce as module

    return module


class Counted:
    """Stands for the experiment: counts calls, fails or is interrupted where told to."""

    def __init__(self, fails: str = "", interrupted: str = "") -> None:
        self.calls: list[str] = []
        self.fails, self.interrupted = fails, interrupted

    def __call__(self, task: Any) -> Iterator[dict[str, Any]]:
        self.calls.append(str(task))
        if self.interrupted and self.interrupted in str(task):
            raise KeyboardInterrupt
        if self.fails and self.fails in str(task):
            raise RuntimeError("it broke")
        row = fake_row(task.family, task.behaviour, task.seed, controls=False)
        yield row
        if task.level != "none":
            yield fake_row(task.family, task.behaviour, task.seed) | {"controls_level": task.level}


def run(reproduce: ModuleType, monkeypatch: pytest.MonkeyPatch, stub: Counted, out: Path, *arguments: str) -> int:
    monkeypatch.setattr(reproduce, "measure", stub)
    status: int = reproduce.main([*arguments, "--out", str(out)])
    return status


# -- reproduce.py


def test_rows_that_are_there_are_not_made_again(
    reproduce: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = Counted()
    assert run(reproduce, monkeypatch, first, tmp_path, "--pair", "llama/idk", "--seeds", "0-1") == 0
    assert first.calls == ["llama/idk seed 0", "llama/idk seed 1"]
    again = Counted()
    arguments = ("--pair", "llama/idk", "--pair", "llama/style", "--seeds", "0-1")
    assert run(reproduce, monkeypatch, again, tmp_path, *arguments) == 0
    assert again.calls == ["llama/style seed 0", "llama/style seed 1"]
    forced = Counted()
    run(reproduce, monkeypatch, forced, tmp_path, "--pair", "llama/idk", "--force")
    assert forced.calls == ["llama/idk seed 0"]


def test_a_row_is_made_again_for_more_controls_but_not_for_fewer(
    reproduce: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def calls(level: str) -> int:
        stub = Counted()
        run(reproduce, monkeypatch, stub, tmp_path, "--pair", "llama/idk", "--controls", level)
        return len(stub.calls)

    assert [calls(level) for level in ("none", "none", "main", "none", "all", "main")] == [1, 0, 1, 0, 1, 0]


def test_an_interrupted_run_goes_on_with_the_same_command(
    reproduce: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(reproduce, monkeypatch, Counted(interrupted="seed 1"), tmp_path, "--pair", "llama/idk", "--seeds", "0-2")
    rest = Counted()
    assert run(reproduce, monkeypatch, rest, tmp_path, "--pair", "llama/idk", "--seeds", "0-2") == 0
    assert rest.calls == ["llama/idk seed 1", "llama/idk seed 2"]


def test_one_failing_row_takes_no_other_with_it(
    reproduce: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = Counted(fails="seed 0")
    assert run(reproduce, monkeypatch, stub, tmp_path, "--pair", "llama/idk", "--seeds", "0,2") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["llama-idk-2.json"]
    assert "FAILED llama/idk seed 0: RuntimeError: it broke" in capsys.readouterr().err


def test_a_half_written_file_counts_as_none(
    reproduce: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "llama-idk-0.json").write_text('{"schema": 1, "pair"', encoding="utf-8")
    stub = Counted()
    run(reproduce, monkeypatch, stub, tmp_path, "--pair", "llama/idk")
    assert stub.calls == ["llama/idk seed 0"]


def test_all_means_every_model_with_every_behaviour(reproduce: ModuleType, tmp_path: Path) -> None:
    tasks = reproduce.parse(["--all", "--seeds", "3", "--out", str(tmp_path)]).tasks
    families = {name.removeprefix("tinychat-") for name in reproduce.organism_names()}
    assert {task.pair for task in tasks} == {f"{f}/{b}" for f in families for b in ("idk", "safety", "style")}
    assert {task.seed for task in tasks} == {3}
    own = reproduce.parse(["--pair", "big/idk", "--base", "big=some/folder"]).tasks
    assert (own[0].pair, own[0].base) == ("big/idk", "some/folder")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--pair", "llama/none"],
        ["--pair", "llama"],
        ["--pair", "llama/idk", "--seeds", "x"],
        ["--pair", "llama/idk", "--seeds", "3-1"],
        ["--pair", "llama/idk", "--jobs", "0"],
        ["--pair", "llama/idk", "--base", "folder"],
    ],
)
def test_requests_that_make_no_sense_end_before_anything_runs(reproduce: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.main(arguments)
    assert ended.value.code == 2


def test_seeds_are_ranges_and_lists(reproduce: ModuleType) -> None:
    assert reproduce.seed_numbers("0-2,5,1") == [0, 1, 2, 5]


def test_files_are_json_of_five_digits_and_a_line_an_entry(reproduce: ModuleType) -> None:
    row = reproduce.rounded(fake_row() | {"exact": 0.123456789, "nothing": None})
    text = reproduce.compact(row)
    assert json.loads(text) == row
    assert row["exact"] == 0.12346
    assert len(text.splitlines()) < 80
    assert text.count("\n  ") == sum(len(row[key]) for key in ("conditions", "sites", "controls"))


def test_the_digest_of_settings_ignores_seeds_and_places(reproduce: ModuleType) -> None:
    config = {"base": "organism:a", "seed": 0, "lcdd": {"mask_seed": 0, "steps": 5}}
    same = {"base": "elsewhere", "seed": 4, "lcdd": {"mask_seed": 4, "steps": 5}}
    assert reproduce.config_digest(config) == reproduce.config_digest(same)
    assert reproduce.config_digest(config) != reproduce.config_digest({**same, "lcdd": {"steps": 6}})


# -- summary


def test_a_mean_over_seeds_has_student_s_interval() -> None:
    from summary import over_seeds

    found = over_seeds([0.1, 0.2, 0.6], share=False)
    assert found is not None
    assert found.value == pytest.approx(0.3)
    half = 4.303 * 0.2645751 / 3**0.5
    assert (found.low, found.high) == (pytest.approx(0.3 - half, abs=1e-4), pytest.approx(0.3 + half, abs=1e-4))
    bounded = over_seeds([0.1, 0.2, 0.6], share=True)
    assert bounded is not None and bounded.low == 0
    assert over_seeds([], share=True) is None


def test_a_single_seed_keeps_the_interval_over_its_prompts(tmp_path: Path) -> None:
    from summary import read_rows

    write_rows(tmp_path, [fake_row()])
    (pair,) = read_rows(tmp_path)
    found = pair.mean("routed", "behaviour_rate")
    low, high = fake_row()["conditions"]["routed"]["behaviour_rate"]["interval"]
    assert found is not None and (found.low, found.high, found.seeds, found.n) == (low, high, 1, 200)


def test_seeds_of_other_settings_and_damaged_rows_are_refused(tmp_path: Path) -> None:
    from summary import read_rows

    write_rows(tmp_path, [fake_row(), fake_row(seed=1) | {"config_sha256": "others"}])
    with pytest.raises(ArtefactError, match="llama/idk: the seeds 0, 1 ran under different settings"):
        read_rows(tmp_path)
    write_rows(tmp_path, [{**fake_row(seed=1), "schema": 9}])
    with pytest.raises(ArtefactError, match="has schema 9"):
        read_rows(tmp_path)
    (tmp_path / "llama-idk-1.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtefactError, match="is no row"):
        read_rows(tmp_path)


# -- claims


def judged(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from claims import CLAIMS
    from summary import read_rows

    write_rows(tmp_path, rows)
    pairs = read_rows(tmp_path)
    return {claim.text: claim.judge(pairs) for claim in CLAIMS}


def find(judgements: dict[str, Any], words: str) -> Any:
    (found,) = (value for text, value in judgements.items() if words in text)
    return found


def everything(seeds: int = 2) -> list[dict[str, Any]]:
    return [fake_row("llama", behaviour, seed) for behaviour in ("idk", "safety", "style") for seed in range(seeds)]


def test_verdicts_follow_from_the_rows(tmp_path: Path) -> None:
    found = judged(tmp_path, everything())
    expected = {
        "compresses the behaviour": "holds",
        "acts as the fine-tuned one": "holds",
        "reverses the behaviour of the routed": "holds",
        "distribution is the base's": "holds",
        "fails on plain SFT": "holds",
        "as small a change without gates": "does not hold",
        "needs the carrier's channels": "does not hold",
        "needs activation matching": "does not hold",
        "needs the KL term": "holds",
        "not any token": "holds",
        "is necessary for the behaviour": "holds",
        "sufficient on SFT's own": "does not hold",
        "behaviour's, not the dice's": "holds",
    }
    assert {words: find(found, words).verdict for words in expected} == expected
    assert "worst draw of all 0.410" in find(found, "not any token").ours


def test_a_claim_that_one_pair_breaks_holds_in_part(tmp_path: Path) -> None:
    rows = everything()
    rows[0]["conditions"]["routed+trigger"]["verdict"] = "suppressed"
    found = find(judged(tmp_path, rows), "reverses the behaviour of the routed")
    assert found.verdict == "holds in part"
    assert found.met == {"llama/idk": False, "llama/safety": True, "llama/style": True}
    assert "reversed in 5 of 6 runs" in found.ours


def test_what_was_not_measured_has_no_verdict(tmp_path: Path) -> None:
    found = judged(tmp_path, [fake_row(controls=False)])
    for words in ("needs the KL term", "not the dice's", "is necessary", "does not belong", "as small a change"):
        assert find(found, words).verdict == "not measured"


# -- the page


def test_the_page_works_with_whatever_is_there_and_says_how_much(tmp_path: Path) -> None:
    import make_results

    write_rows(tmp_path / "rows", [fake_row(controls=False)])
    options = ["--rows", str(tmp_path / "rows"), "--rules", str(tmp_path / "rules"), "--out", str(tmp_path / "docs")]
    make_results.main(options)
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "1 pairs of a model and a behaviour (llama; fixed response)" in page
    assert "not measured" in page and "## The controls" not in page
    write_rows(tmp_path / "rows", [*everything(3), fake_row("gpt2", "idk", 0)])
    make_results.main(options)
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "4 pairs" in page and "10 runs in all" in page and "1 to 3 seeds each" in page
    assert "million parameters" in page
    for image in re.findall(r"\(assets/([\w.-]+)\)", page):
        assert (tmp_path / "docs" / "assets" / image).stat().st_size > 1000
    assert len(re.findall(r"\(assets/", page)) == 4


def test_every_table_has_as_many_cells_as_its_head_says(tmp_path: Path) -> None:
    import make_results
    from summary import read_rows

    write_rows(tmp_path / "rows", everything())
    write_rules(tmp_path / "rules", {"default": (0.98, 1.0), "layer_0": (0.98, 1.0), "trigger_2_tokens": (0.98, 1.0)})
    tables = re.findall(r"(?:^\|.*\n)+", make_results.page(read_rows(tmp_path / "rows"), (), tmp_path / "rules"), re.M)
    assert len(tables) == 12
    for table in tables:
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table.splitlines()[0]


def write_rules(folder: Path, variants: dict[str, tuple[float, float]], seeds: int = 2) -> None:
    """Rows as ``rule_search.py`` writes them: variant -> (sparsity, behaviour of the routed model)."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for variant, (sparsity, kept) in variants.items():
            row = fake_row("llama", "idk", seed, controls=False)
            row["conditions"]["routed"]["behaviour_rate"]["value"] = kept
            conditions = {
                name: {metric: figure["value"] for metric, figure in figures.items() if metric != "verdict"}
                for name, figures in row["conditions"].items()
            }
            content = {
                "variant": variant,
                "pair": "llama/idk",
                "seed": seed,
                "carrier": {"sparsity": sparsity},
                "delta_norm": row["delta_norm"],
                "trigger_steps": 40,
                "conditions": conditions,
                "open": {"blocks.0.mlp.hook_post": [1, 2, 3 + seed]},
            }
            (folder / f"llama-idk-{seed}-{variant}.json").write_text(json.dumps(content), encoding="utf-8")


def test_the_answer_about_layers_follows_from_the_rows(tmp_path: Path) -> None:
    from rules import layers_section

    write_rules(tmp_path, {"layer_0": (0.98, 1.0), "layer_1": (0.91, 0.99), "layer_2": (0.95, 0.4)})
    section = layers_section(tmp_path)
    assert "layer 0 (sparsity 0.980), 1 (sparsity 0.910); they lose more in layer 2 (sparsity 0.950)" in section
    assert "more than one layer can hold the behaviour alone" in section
    assert "| 0.500 |" in section
    write_rules(tmp_path, {"layer_1": (0.91, 0.9)})
    assert "No behaviour here can be held by more than one layer alone" in layers_section(tmp_path)
    assert layers_section(tmp_path / "nowhere") == ""


def test_aims_name_the_pairs_that_miss_them(tmp_path: Path) -> None:
    import make_results
    from summary import read_rows

    rows = everything()
    for row in rows:
        row["carrier"]["sparsity"] = 0.9 if row["behaviour"] == "style" else 0.98
    write_rows(tmp_path, rows)
    line = next(line for line in make_results.targets_section(read_rows(tmp_path)).splitlines() if "Sparsity" in line)
    assert "| 2 of 3 | **in part** | llama/style |" in line


def test_variants_change_settings_that_exist() -> None:
    from dataclasses import replace

    from rule_search import VARIANTS

    from lcdd_lens.eraser import EraserConfig
    from lcdd_lens.training import LCDDConfig

    for name, variant in VARIANTS.items():
        config, trigger = LCDDConfig(), replace(EraserConfig(), n_tokens=1, w_answer=1.0, answers_of="both")
        for section, fields in variant.changes.items():
            if section == "eraser":
                assert replace(trigger, **fields) != trigger, name
            elif section == "lcdd":
                assert replace(config, **fields) != config, name
            else:
                assert replace(getattr(config, section), **fields) != getattr(config, section), name


def test_the_page_changes_with_the_rows_and_only_with_them(tmp_path: Path) -> None:
    import make_results
    from summary import read_rows

    rows = everything()
    write_rows(tmp_path, rows)
    before = make_results.page(read_rows(tmp_path))
    assert before == make_results.page(read_rows(tmp_path))
    changed = copy.deepcopy(rows)
    changed[0]["conditions"]["routed+trigger"]["kl"]["value"] = 0.7777
    write_rows(tmp_path, changed)
    after = make_results.page(read_rows(tmp_path))
    differing = [b for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert differing and all(re.search(r"0\.6|idk|routed \+ ?trigger|routed\+trigger", line) for line in differing)


def test_suppression_and_reversal_are_counted_apart(tmp_path: Path) -> None:
    import make_results
    from summary import read_rows

    rows = everything()
    rows[0]["conditions"]["sft+trigger"]["verdict"] = "suppressed"
    write_rows(tmp_path, rows)
    page = make_results.page(read_rows(tmp_path))
    (line,) = (
        line for line in page.splitlines() if line.startswith("| main table | sft+trigger |") and "| 1 |" in line
    )
    counts = [cell.strip() for cell in line.split("|")][-5:-1]
    assert counts == ["", "1", "", "1"]


def test_no_committed_row_is_out_of_line_with_the_committed_page() -> None:
    import make_results
    from summary import read_rows

    pairs = read_rows(BENCHMARKS / "results" / "main")
    if not pairs:
        pytest.skip("no rows are committed yet")
    page = (BENCHMARKS.parent / "docs" / "results.md").read_text(encoding="utf-8")
    without_figures = re.sub(r"\n\n!\[.*?\]\(assets/.*?\)\n\n\*.*?\*", "", page)
    assert without_figures == make_results.page(pairs, (), BENCHMARKS / "results" / "rules")
