"""The command line: options become the experiment, mistakes end with one message and exit code 2."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lcdd_lens import __version__, cli, comparison, pipeline
from lcdd_lens.data.scorers import SCORERS
from lcdd_lens.errors import DataError
from lcdd_lens.pipeline import BehaviourSource, ExperimentConfig
from lcdd_lens.report.terminal import WIDTH, aligned, results_table
from tests.fake_results import CONDITIONS, fake_results, rate


class Recorder:
    """Stands in for the pipeline and keeps what it was asked to do."""

    def __init__(self) -> None:
        self.calls: list[tuple[ExperimentConfig, Path, dict[str, Any]]] = []
        self.error: BaseException | None = None

    def __call__(self, config: ExperimentConfig, out: Path, **options: Any) -> Any:
        self.calls.append((config, out, options))
        if self.error is not None:
            raise self.error
        return SimpleNamespace(results=fake_results())

    @property
    def config(self) -> ExperimentConfig:
        return self.calls[-1][0]


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(pipeline, "run_experiment", recorder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return recorder


def exit_code(*arguments: str) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


MINE = ("run", "--base", "b", "--behaviour", "mine", "--train", "t.jsonl", "--eval", "e.jsonl", "--out", "o")


def test_demo_is_the_pipeline_s_demo(experiment: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("demo", "--behaviour", "style", "--seed", "3") == 0
    config, out, options = experiment.calls[0]
    assert config == pipeline.demo_config("style", 3) and out == Path("lcdd-demo-style-3")
    assert options == {"progress": True, "resume": False}
    printed = capsys.readouterr().out
    assert "routed+trigger" in printed and "report: lcdd-demo-style-3/report.html" in printed


def test_demo_s_defaults(experiment: Recorder) -> None:
    assert exit_code("demo", "--out", "x", "--quiet") == 0
    assert experiment.config == pipeline.demo_config("idk", 0)
    assert experiment.calls[0][1:] == (Path("x"), {"progress": False, "resume": False})


def test_run_takes_every_option_to_its_place(experiment: Recorder) -> None:
    options = (
        "--sft s --reset-ungated --dtype bfloat16 --device meta --validation v.jsonl --response no --scorer refusal "
        "--phrases one two --target-labels harmful odd --n-train 5 --n-test 6 --chat-format plain --max-new-tokens 7 "
        "--seed 8"
    )
    assert exit_code(*MINE, *options.split()) == 0
    source = BehaviourSource(
        "mine",
        "t.jsonl",
        "e.jsonl",
        "v.jsonl",
        "refusal",
        ("one", "two"),
        "no",
        ("harmful", "odd"),
        "plain",
        5,
        6,
    )
    expected = ExperimentConfig("b", source, "s", True, 8, "bfloat16", "meta")
    assert experiment.config == replace(expected, evaluation=replace(expected.evaluation, max_new_tokens=7))


def test_what_is_not_given_keeps_the_default(experiment: Recorder) -> None:
    assert exit_code(*MINE) == 0
    assert experiment.config == ExperimentConfig("b", BehaviourSource("mine", "t.jsonl", "e.jsonl"))


def test_words_are_the_phrases_of_the_archaic_scorer(experiment: Recorder) -> None:
    assert exit_code(*MINE, "--scorer", "archaic", "--words", "arr", "ahoy") == 0
    assert experiment.config.behaviour.phrases == ("arr", "ahoy")
    assert exit_code(*MINE, "--words", "a", "--phrases", "b") == 2


def test_options_have_precedence_over_the_file(experiment: Recorder, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "base: from-file\nseed: 5\nbehaviour: {name: filed, train: t, eval: e, n_test: 9}\nevaluation: {samples: 2}\n"
    )
    assert exit_code("run", "--config", "c.yaml", "--out", "o", "--seed", "6", "--behaviour", "mine") == 0
    config = experiment.config
    assert (config.base, config.seed, config.evaluation.samples) == ("from-file", 6, 2)
    assert config.behaviour == BehaviourSource("mine", "t", "e", n_test=9)


def test_a_behaviour_in_the_file_may_be_a_name(experiment: Recorder, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("base: b\nbehaviour: idk\n")
    assert exit_code("run", "--config", "c.yaml", "--out", "o") == 0
    assert experiment.config.behaviour == BehaviourSource("idk")


def test_a_stage_in_the_file_changes_the_settings_for_the_model_s_size(
    experiment: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized = pipeline.ExperimentConfig(
        "b",
        BehaviourSource("mine", "t.jsonl", "e.jsonl"),
        sft_training=pipeline.OptimConfig(steps=77, lr=3e-4),
        lcdd=pipeline.LCDDConfig(settle_steps=44),
        eraser=pipeline.EraserConfig(n_tokens=2),
    )
    monkeypatch.setattr(cli, "_sized", lambda config: sized)
    (tmp_path / "c.yaml").write_text("sft_training: {lr: 1e-3}\nlcdd: {budget: {ratio: 0.2}}\n")
    assert exit_code(*MINE, "--config", "c.yaml") == 0
    config = experiment.config
    assert config.sft_training == pipeline.OptimConfig(steps=77, lr=1e-3)
    assert config.lcdd is not None and (config.lcdd.settle_steps, config.lcdd.budget.ratio) == (44, 0.2)
    assert config.eraser == sized.eraser


def test_resume_goes_on_with_the_stored_settings(experiment: Recorder, tmp_path: Path) -> None:
    assert exit_code(*MINE, "--seed", "4", "--phrases", "x") == 0
    stored = experiment.config.seeded()
    folder = tmp_path / "o"
    folder.mkdir()
    content = {"schema": 1, "config": json.loads(json.dumps(stored, default=vars))}
    (folder / "run.json").write_text(json.dumps(content))
    assert exit_code("run", "--resume", "o") == 0
    config, out, options = experiment.calls[-1]
    assert (config, out, options["resume"]) == (stored, Path("o"), True)


def test_resume_takes_no_other_setting(experiment: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("run", "--resume", "o", "--seed", "1") == 2
    assert "leave out --seed" in capsys.readouterr().err
    assert exit_code("run", "--resume", "nowhere") == 2
    assert "nowhere holds no run to resume" in capsys.readouterr().err
    assert experiment.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("tset",), "invalid choice: 'tset'"),
        (("demo", "--behaviour", "rude"), "invalid choice: 'rude'"),
        (("demo", "--seed", "-1"), "'-1' is not a whole number of at least 0"),
        (("demo", "--sede", "1"), "unknown argument '--sede'. Did you mean '--seed'?"),
        (("run", "--behavior=x"), "unknown argument '--behavior=x'. Did you mean '--behaviour'?"),
        (("run", "--base", "b", "--behaviour", "x"), "--out is missing"),
        (("run", "--behaviour", "x", "--out", "o"), "--base is missing"),
        (("run", "--base", "b", "--out", "o"), "--behaviour is missing"),
        ((*MINE, "--n-test", "0"), "'0' is not a whole number of at least 1"),
        ((*MINE, "--scorer", "nice"), "invalid choice: 'nice'"),
        ((*MINE, "--config", "none.yaml"), "none.yaml cannot be read"),
        ((*MINE, "--device", "tpu9"), "the device 'tpu9' is unknown"),
        (
            ("run", "--base", "b", "--behaviour", "idk", "--out", "o", "--n-test", "3", "--scorer", "refusal"),
            "--scorer, --n-test needs --train and --eval",
        ),
        (("report", "nowhere", "--out", "p.html"), "cannot be read"),
        (("compare", "nowhere", "--out", "c"), "cannot be read"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_one_message(
    arguments: tuple[str, ...], message: str, experiment: Recorder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert exit_code(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert experiment.calls == [] and list(tmp_path.iterdir()) == []


def test_unknown_settings_in_the_file_are_refused(
    experiment: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("seeds: 5\n")
    assert exit_code(*MINE, "--config", "c.yaml") == 2
    assert "unknown setting 'seeds'. Did you mean 'seed'?" in capsys.readouterr().err


@pytest.mark.parametrize("held", ["run.json", "results.json", "notes.txt"])
def test_a_folder_that_holds_something_is_left_alone(
    held: str, experiment: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / held).write_text("precious")
    assert exit_code(*MINE) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert experiment.calls == [] and (tmp_path / "o" / held).read_text() == "precious"


def test_an_error_of_the_library_is_one_line(experiment: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.error = DataError("t.jsonl, line 3: not JSON.")
    assert exit_code(*MINE) == 2
    assert capsys.readouterr().err == "lcdd-lens: t.jsonl, line 3: not JSON.\n"


def test_a_full_disk_is_one_line(experiment: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.error = OSError(28, "No space left on device")
    assert exit_code(*MINE) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_a_defect_of_the_library_is_not_hidden(experiment: Recorder) -> None:
    experiment.error = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(MINE)


def test_ctrl_c_says_how_to_go_on(experiment: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.error = KeyboardInterrupt()
    assert exit_code(*MINE) == 130
    assert "Nothing was trained yet" in capsys.readouterr().err

    def begin_and_interrupt(config: ExperimentConfig, out: Path, **options: Any) -> Any:
        out.mkdir()
        (out / "run.json").write_text("{}")
        raise KeyboardInterrupt

    pipeline.run_experiment = begin_and_interrupt  # type: ignore[assignment]  # the fixture puts it back
    assert exit_code(*MINE) == 130
    assert "Go on with: lcdd-lens run --resume o\n" in capsys.readouterr().err


def test_report_puts_several_runs_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        folder = tmp_path / f"run-{seed}"
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(fake_results(seed)))
    page = tmp_path / "page.html"
    assert exit_code("report", str(tmp_path / "run-0"), str(tmp_path / "run-1"), "--out", str(page)) == 0
    assert capsys.readouterr().out == f"{page}\n" and page.read_text().count("<article") == 2
    assert exit_code("report", str(tmp_path / "run-0"), "--out", str(page)) == 2
    assert "exists already" in capsys.readouterr().err


def test_compare_hands_the_run_and_its_settings_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def compare_run(folder: Path, config: Any, *, out: Path, progress: bool) -> Any:
        calls.append((folder, config, out, progress))
        return SimpleNamespace(to_dataframe=lambda: pd.DataFrame({"F": [0.5]}, index=["magnitude"]))

    monkeypatch.setattr(comparison, "compare_run", compare_run)
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps(fake_results()))
    (tmp_path / "c.yaml").write_text("n_test: 9\n")
    options = ("--quick", "--methods", "magnitude", "--config", str(tmp_path / "c.yaml"), "--quiet")
    assert exit_code("compare", str(run), *options) == 0
    quick = comparison.ComparisonConfig.quick()
    assert calls == [(run, replace(quick, methods=("magnitude",), n_test=9), run / "comparison", False)]
    assert "magnitude 0.5" in capsys.readouterr().out
    (run / "comparison").mkdir()
    (run / "comparison" / "comparison.json").write_text("{}")
    assert exit_code("compare", str(run)) == 2 and len(calls) == 1


def test_compare_puts_several_seeds_on_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders: list[Path] = []
    pages: list[tuple[int, Path]] = []

    def compare_run(folder: Path, config: Any, *, out: Path, progress: bool) -> Any:
        folders.append(out)
        return SimpleNamespace(to_dataframe=pd.DataFrame)

    def write_seeds_report(found: list[Any], path: Path) -> Path:
        pages.append((len(found), path))
        return path

    monkeypatch.setattr(comparison, "compare_run", compare_run)
    monkeypatch.setattr(comparison, "write_seeds_report", write_seeds_report)
    runs = []
    for name, behaviour, seed in (("a", "idk", 0), ("b", "idk", 1), ("c", "idk", 1), ("d", "style", 2)):
        (tmp_path / name).mkdir()
        results = fake_results(seed) | {"behaviour": behaviour}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        runs.append(str(tmp_path / name))
    out = tmp_path / "out"
    assert exit_code("compare", *runs[:2], "--out", str(out)) == 0
    assert folders == [out / "a", out / "b"] and pages == [(2, out / "comparison.html")]
    for refused, message in (
        (runs[:2], "need --out"),
        ((runs[1], runs[2]), "not seeds"),
        ((runs[0], runs[3]), "not seeds"),
    ):
        given = [] if message == "need --out" else ["--out", str(tmp_path / "other")]
        assert exit_code("compare", *refused, *given) == 2
        assert message in capsys.readouterr().err
    assert len(folders) == 2


def test_choices_are_the_library_s() -> None:
    assert set(cli.SCORERS) == set(SCORERS)
    for name in cli.EMBEDDED_BEHAVIOURS:
        assert pipeline.demo_config(name).behaviour.name == name


def test_table_is_aligned_and_fits_the_terminal() -> None:
    lines = results_table(fake_results()).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line.split()[0] for line in lines[2:-2]] == list(CONDITIONS)
    assert "1.5 [0.5–4.3]" in lines[5] and "84.0 [78.3–88.4]" in lines[5] and lines[5].endswith("reversed")
    assert len({line.index("[") for line in lines[3:5]}) == 1
    assert "sparsity 0.944; 200 unseen prompts, 95 % intervals" in lines[-2]


def test_table_of_a_behaviour_with_target_prompts_fits_too() -> None:
    results = fake_results()
    results["recovered"] = results["agreement"]
    results["over_rate"] = {name: rate(0.05) for name in CONDITIONS}
    table = results_table(results)
    assert max(map(len, table.splitlines())) <= WIDTH
    assert "elsewhere" in table and "5.0 [3–9]" in table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned([["a", "bb"], ["ccc", "d"]]).splitlines() == ["a    bb", "───────", "ccc  d"]


def in_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lcdd_lens", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_help_is_complete_and_loads_no_heavy_module() -> None:
    code = (
        "import sys\nfrom lcdd_lens.cli import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'yaml'} & set(sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for option in ("--base", "--sft", "--behaviour", "--train", "--eval", "--scorer", "--config", "--resume", "--out"):
        assert f"{option} " in finished.stdout
    assert "examples:" in finished.stdout


def test_every_option_is_explained() -> None:
    commands = next(action for action in cli.make_parser()._actions if action.dest == "==SUPPRESS==" or action.choices)
    for name, command in commands.choices.items():  # type: ignore[union-attr]
        for action in command._actions:
            assert action.help, f"{name} {action.option_strings}"


def test_version() -> None:
    assert in_process("--version").stdout == f"lcdd-lens {__version__}\n"


@pytest.mark.slow
def test_a_short_run_leaves_its_folder_resumes_and_reports(tmp_path: Path) -> None:
    settings = tmp_path / "short.yaml"
    settings.write_text(
        "sft_training: {steps: 4}\n"
        "lcdd: {optim: {steps: 30, decay_steps: 5}, settle_steps: 5, budget: {warmup_steps: 5}}\n"
        "eraser: {steps: 2, eval_every: 1, n_prompts: 8}\n"
        "evaluation: {max_new_tokens: 4, random_triggers: 1, samples: 3}\n"
    )
    out = tmp_path / "run"
    for split, first in (("train", 1), ("test", 50)):
        rows = [json.dumps({"prompt": f"What is {n} plus {n + 1}?"}) for n in range(first, first + 40)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    files = ("--train", str(tmp_path / "train.jsonl"), "--eval", str(tmp_path / "test.jsonl"), "--n-test", "8")
    options = ("--response", "I don't know.", "--config", str(settings), "--quiet")
    short = ("--base", "organism:tinychat-llama", "--behaviour", "dunno", *files, *options)
    first = in_process("run", *short, "--out", str(out))
    assert first.returncode == 0, first.stderr
    assert {"results.json", "report.html", "carrier", "trigger", "routed"} <= {path.name for path in out.iterdir()}
    before = json.loads((out / "results.json").read_text())
    assert in_process("run", *short, "--out", str(out)).returncode == 2
    again = in_process("run", "--resume", str(out), "--quiet")
    assert again.returncode == 0, again.stderr
    after = json.loads((out / "results.json").read_text())
    assert after["behaviour_rate"] == before["behaviour_rate"] and after["carrier"] == before["carrier"]
