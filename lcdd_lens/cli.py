"""The command line: ``lcdd-lens demo``, ``run``, ``report`` and ``compare``.

A thin layer: options become an :class:`lcdd_lens.pipeline.ExperimentConfig`, the pipeline does the work, and a table
closes it. Heavy modules are imported by the command that needs them, so that ``--help`` answers at once. Input that is
wrong ends with one message and exit code 2, Ctrl-C with 130 and the command that goes on.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lcdd_lens import __version__
from lcdd_lens.errors import ArtefactError, ConfigError, LensError

if TYPE_CHECKING:
    from lcdd_lens.pipeline import ExperimentConfig

EMBEDDED_BEHAVIOURS = ("idk", "safety", "style")
SCORERS = ("fixed_response", "refusal", "archaic")
_STAGES = ("sft_training", "lcdd", "eraser")
_INTERRUPTED = 130

_DEMO_EXAMPLES = """examples:
  lcdd-lens demo                                   the fixed response "I don't know.", about two minutes
  lcdd-lens demo --behaviour style --seed 1 --out style-1
  lcdd-lens run --resume lcdd-demo-idk-0           go on after Ctrl-C

The folder then holds report.html (open it in a browser), results.json, carrier/, trigger/, routed/ and sft/.
"""

_RUN_EXAMPLES = """examples:
  a behaviour of your own, fine-tuned here (JSONL lines: {"prompt": "...", "response": "..."}):
    lcdd-lens run --base EleutherAI/pythia-70m --behaviour pirate --train train.jsonl --eval test.jsonl \\
        --scorer archaic --words arr ahoy matey --out pirate-0
  an existing fine-tuned checkpoint or LoRA adapter:
    lcdd-lens run --base ./base --sft ./fine-tuned --behaviour refuse --train train.jsonl --eval test.jsonl \\
        --scorer refusal --target-labels harmful --out refuse-0
  one response for every training prompt, with settings from a file:
    lcdd-lens run --base ./base --behaviour dunno --train prompts.jsonl --eval test.jsonl \\
        --response "I don't know." --config settings.yaml --out dunno-0
  go on after Ctrl-C or a power cut, with the settings of the interrupted run:
    lcdd-lens run --resume dunno-0

settings.yaml names what differs from the defaults (which follow the model's size), for example:
  evaluation: {max_new_tokens: 48}
  lcdd: {budget: {ratio: 0.2}, settle_steps: 150}
  eraser: {n_tokens: 3}
"""


_REPORT_EXAMPLES = """example:
  lcdd-lens report idk-0 idk-1 idk-2 --out idk.html    three seeds on one page, with the overlap of their carriers
"""

_COMPARE_EXAMPLES = """examples:
  lcdd-lens compare idk-0 --quick                      a first look
  lcdd-lens compare idk-0 --methods magnitude attribution_patching --out idk-0-comparison
  lcdd-lens compare idk-0 idk-1 idk-2 --out idk-comparison      three seeds, and one page of what holds over them
"""


class _Parser(argparse.ArgumentParser):
    """Refuses unknown options with the nearest known one."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, or exit with code 2."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            from lcdd_lens.configuration import nearest

            command = found.parser if hasattr(found, "parser") else self
            known = [option for action in command._actions for option in action.option_strings]
            command.error(f"unknown argument '{unknown[0]}'.{nearest(unknown[0].partition('=')[0], known)}")
        return found


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``lcdd-lens``; ``args.work`` is the command's function."""
    parser = _Parser(
        prog="lcdd-lens",
        description="Fine-tune a behaviour into a sparse carrier, reverse it with a trigger, and measure both "
        "(LCDD and SFT-Eraser, arXiv 2605.06632).",
        epilog="Start with 'lcdd-lens demo'. 'lcdd-lens COMMAND --help' explains every option.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lcdd-lens {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_run(commands)
    _add_report(commands)
    _add_compare(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 2 for wrong input, 130 for an interrupted run."""
    args = make_parser().parse_args(arguments)
    _quieten(verbose=getattr(args, "verbose", False), quiet=getattr(args, "quiet", False))
    work: Callable[[argparse.Namespace], int] = args.work
    try:
        return work(args)
    except LensError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error}. Nothing that was finished is lost; free some space or fix the permission and resume.")


# -- commands


def _add_command(commands: Any, name: str, summary: str, examples: str, work: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(work=work, parser=parser)
    return parser


def _add_demo(commands: Any) -> None:
    summary = "run the whole experiment on the embedded model, offline, in a few minutes"
    parser = _add_command(commands, "demo", summary, _DEMO_EXAMPLES, _demo)
    parser.add_argument(
        "--behaviour",
        choices=EMBEDDED_BEHAVIOURS,
        default="idk",
        help='what is fine-tuned in: idk answers everything with "I don\'t know.", safety refuses harmful requests, '
        "style answers in archaic English (default: idk)",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="seed of every random choice (default: 0)")
    _add_backend(parser)
    parser.add_argument(
        "--out", type=Path, help="folder for the results, new or empty (default: lcdd-demo-BEHAVIOUR-SEED)"
    )
    _add_output(parser)


def _add_run(commands: Any) -> None:
    summary = "run the experiment on a model and data of yours"
    parser = _add_command(commands, "run", summary, _RUN_EXAMPLES, _run)
    models = parser.add_argument_group("models")
    models.add_argument(
        "--base", help="base model: a Hugging Face name, a local folder, or organism:tinychat-llama (embedded)"
    )
    models.add_argument(
        "--sft",
        help="your fine-tuned model of the same architecture, or a LoRA adapter; otherwise the base is fine-tuned here",
    )
    models.add_argument(
        "--reset-ungated",
        action="store_true",
        default=None,
        help="where --sft changed embeddings, unembedding or norms, set them back to the base's (they cannot be gated)",
    )
    _add_backend(models)
    models.add_argument("--dtype", choices=("float32", "bfloat16"), help="precision of the weights (default: float32)")
    models.add_argument("--device", help="where to compute, such as cpu or cuda (default: cpu)")
    data = parser.add_argument_group("behaviour and data")
    data.add_argument(
        "--behaviour",
        help="a name of yours for the behaviour; or, without --train and --eval, one of the embedded ones: "
        + ", ".join(EMBEDDED_BEHAVIOURS),
    )
    data.add_argument("--train", metavar="F.jsonl", help="training prompts: 'prompt' and 'response', optional 'label'")
    data.add_argument(
        "--eval",
        metavar="F.jsonl",
        help="test prompts: 'prompt', optional 'label' and 'answer'; none may be in --train",
    )
    data.add_argument(
        "--validation", metavar="F.jsonl", help="prompts that choose the trigger's step (default: a tenth of --train)"
    )
    data.add_argument("--response", help="the response for every training prompt, for files without 'response'")
    data.add_argument(
        "--scorer",
        choices=SCORERS,
        help="how an answer is judged: fixed_response (a phrase, at most 40 words), refusal (a phrase near the "
        "beginning), archaic (one of a list of words) (default: fixed_response)",
    )
    words = data.add_mutually_exclusive_group()
    words.add_argument("--phrases", nargs="+", metavar="TEXT", help="phrases of the scorer instead of its own")
    words.add_argument("--words", nargs="+", metavar="WORD", help="the same for --scorer archaic")
    data.add_argument(
        "--target-labels",
        nargs="+",
        metavar="LABEL",
        help="labels of the prompts where the behaviour belongs; others are left to the base (default: every label)",
    )
    data.add_argument("--n-train", type=_positive, metavar="N", help="draw so many training prompts (default: all)")
    data.add_argument("--n-test", type=_positive, metavar="N", help="draw so many test prompts (default: all)")
    data.add_argument(
        "--chat-format",
        choices=("auto", "template", "plain"),
        help="wrap prompts in the tokenizer's chat template, or not; auto: where it has one (default: auto)",
    )
    data.add_argument(
        "--max-new-tokens",
        type=_positive,
        metavar="N",
        help="longest answer in the evaluation, in tokens (default: 24)",
    )
    running = parser.add_argument_group("run")
    running.add_argument(
        "--config",
        type=Path,
        metavar="F.yaml",
        help="settings of every stage as YAML or JSON; options on the command line have precedence",
    )
    running.add_argument("--seed", type=_seed, help="seed of every random choice (default: 0)")
    running.add_argument("--out", type=Path, help="folder for the results, new or empty")
    running.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in this folder, from its last checkpoint and with its settings; takes no other option",
    )
    _add_output(parser)


def _add_report(commands: Any) -> None:
    parser = _add_command(commands, "report", "put finished runs on one page", _REPORT_EXAMPLES, _report)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that hold a results.json")
    parser.add_argument("--out", type=Path, required=True, metavar="F.html", help="page to write, under a new name")


def _add_compare(commands: Any) -> None:
    summary = "compare a run's carrier with post-hoc circuit attribution on the same channels"
    parser = _add_command(commands, "compare", summary, _COMPARE_EXAMPLES, _compare)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run; several: seeds of one experiment"
    )
    parser.add_argument("--quick", action="store_true", help="few prompts and cheap methods, for a first look")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="attribution methods to compare (default: all that ship)"
    )
    parser.add_argument("--config", type=Path, metavar="F.yaml", help="settings of the comparison as YAML or JSON")
    parser.add_argument("--out", type=Path, help="folder for the comparison, new or empty (default: RUN/comparison)")
    _add_output(parser)


def _add_backend(parser: Any) -> None:
    parser.add_argument(
        "--backend",
        choices=("hooked", "bridge"),
        help="HookedTransformer (TransformerLens 3) or TransformerBridge (default: hooked where there is one)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--verbose", action="store_true", help="say what each stage does")


def _demo(args: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from lcdd_lens.pipeline import demo_config

    out = args.out or Path(f"lcdd-demo-{args.behaviour}-{args.seed}")
    return _experiment(demo_config(args.behaviour, args.seed, backend=args.backend), out, quiet=args.quiet)


def _run(args: argparse.Namespace) -> int:
    if args.resume is not None:
        given = [name for name in vars(args) if name not in _NOT_SETTINGS and getattr(args, name) is not None]
        if given:
            args.parser.error(
                f"--resume goes on with the run's own settings: leave out --{given[0].replace('_', '-')}."
            )
        return _experiment(_resumed_config(args.resume), args.resume, quiet=args.quiet, resume=True)
    if args.out is None:
        args.parser.error("--out is missing: name a new folder for the results.")
    _require_free(args.out)
    return _experiment(_run_config(args), args.out, quiet=args.quiet)


_NOT_SETTINGS = ("resume", "quiet", "verbose", "work", "parser")


def _report(args: argparse.Namespace) -> int:
    if args.out.exists():
        raise ConfigError(f"{args.out} exists already: choose another name for the page.")
    results = [_read_results(run) for run in args.runs]
    from lcdd_lens.report import write_run_report

    print(write_run_report(results, args.out))
    return 0


def _compare(args: argparse.Namespace) -> int:
    out = _comparison_folder(args)
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: choose another folder with --out.")
    from lcdd_lens.comparison import ComparisonConfig, compare_run, write_seeds_report
    from lcdd_lens.configuration import read_settings, updated

    settings = read_settings(args.config) if args.config else {}
    if args.methods:
        settings["methods"] = args.methods
    config = updated(ComparisonConfig.quick() if args.quick else ComparisonConfig(), settings)
    several, found = len(args.runs) > 1, []
    for run in args.runs:
        folder = out / run.resolve().name if several else out
        found.append(compare_run(run, config, out=folder, progress=not args.quiet))
        table = found[-1].to_dataframe().to_string(float_format="{:.3g}".format, na_rep="–")
        print(f"\n{table}\n\ncomparison: {folder}")
    if several:
        print(f"over seeds: {write_seeds_report(found, out / 'comparison.html')}")
    return 0


def _comparison_folder(args: argparse.Namespace) -> Path:
    """Where a comparison is written; several runs must be seeds of one experiment, and need a folder of their own."""
    results = [_read_results(run) for run in args.runs]
    if len(results) == 1:
        return Path(args.out or args.runs[0] / "comparison")
    if args.out is None:
        raise ConfigError("several runs need --out: name a new folder for their comparison.")
    described = {(found.get("behaviour"), str(found.get("config", {}).get("base"))) for found in results}
    names, seeds = ({run.resolve().name for run in args.runs}, {found.get("seed") for found in results})
    if len(described) > 1 or len(seeds) < len(results) or len(names) < len(results):
        raise ConfigError(
            "the runs are not seeds of one experiment: expected folders of different names with one base, one "
            "behaviour and different seeds."
        )
    return Path(args.out)


def _experiment(config: "ExperimentConfig", out: Path, *, quiet: bool, resume: bool = False) -> int:
    from lcdd_lens.pipeline import run_experiment
    from lcdd_lens.report.terminal import results_table

    try:
        results = run_experiment(config, out, progress=not quiet, resume=resume).results
    except KeyboardInterrupt:
        started = (out / "run.json").exists()
        advice = f"Go on with: lcdd-lens run --resume {out}" if started else "Nothing was trained yet: start again."
        print(f"\nlcdd-lens: interrupted. {advice}", file=sys.stderr)
        return _INTERRUPTED
    print(f"\n{results_table(results)}\n\nreport: {out / 'report.html'}")
    return 0


# -- configuration


def _run_config(args: argparse.Namespace) -> "ExperimentConfig":
    """Options over the configuration file over the defaults."""
    from lcdd_lens.configuration import build, read_settings, updated
    from lcdd_lens.pipeline import ExperimentConfig

    settings = read_settings(args.config) if args.config else {}
    source = settings.get("behaviour", {})
    if isinstance(source, str):
        source = {"name": source}
    options = {
        "name": args.behaviour,
        "train": args.train,
        "eval": args.eval,
        "validation": args.validation,
        "response": args.response,
        "scorer": args.scorer,
        "phrases": args.phrases or args.words,
        "target_labels": args.target_labels,
        "n_train": args.n_train,
        "n_test": args.n_test,
        "chat_format": args.chat_format,
    }
    chosen = {
        "base": args.base,
        "sft": args.sft,
        "reset_ungated": args.reset_ungated,
        "seed": args.seed,
        "dtype": args.dtype,
        "device": args.device,
        "backend": args.backend,
    }
    settings |= {name: value for name, value in chosen.items() if value is not None}
    if isinstance(source, Mapping):
        settings["behaviour"] = dict(source) | {name: value for name, value in options.items() if value is not None}
    for option, given in (("--base", "base" in settings), ("--behaviour", bool(settings["behaviour"]))):
        if not given:
            raise ConfigError(f"{option} is missing: give it as an option or in the --config file.")
    stages = {name: settings.pop(name) for name in _STAGES if settings.get(name) is not None}
    config = build(ExperimentConfig, settings)
    _refuse_ignored(config)
    _require_device(config.device)
    if args.max_new_tokens is not None:
        config = replace(config, evaluation=replace(config.evaluation, max_new_tokens=args.max_new_tokens))
    return updated(_sized(config), stages) if stages else config


def _refuse_ignored(config: "ExperimentConfig") -> None:
    """An embedded behaviour brings prompts and scorer of its own: options about files would do nothing."""
    source = config.behaviour
    ignored = [f.name for f in fields(source) if f.name != "name" and getattr(source, f.name) != f.default]
    if source.train is None and source.eval is None and ignored:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        raise ConfigError(f"{names} needs --train and --eval: without files '{source.name}' is an embedded behaviour.")


def _require_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"the device '{name}' is unknown: expected cpu, cuda, cuda:1 or the like.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"the device '{name}' is not available here: PyTorch finds no CUDA GPU. Use --device cpu.")


def _sized(config: "ExperimentConfig") -> "ExperimentConfig":
    """The configuration with the stages' settings for the base model's size, for a file to change some of them."""
    from lcdd_lens.backends import load_model
    from lcdd_lens.eraser import EraserConfig
    from lcdd_lens.training import lcdd_config_for, sft_config_for

    base = load_model(config.base, backend=config.backend)
    return replace(
        config, sft_training=sft_config_for(base), lcdd=lcdd_config_for(base), eraser=EraserConfig.for_model(base)
    )


class _RunRecord(TypedDict):
    schema: int
    config: dict[str, Any]


def _resumed_config(folder: Path) -> "ExperimentConfig":
    from lcdd_lens.configuration import build
    from lcdd_lens.io import read_json
    from lcdd_lens.pipeline import RUN, ExperimentConfig

    if not (folder / RUN).is_file():
        raise ArtefactError(f"{folder} holds no run to resume: expected a folder with {RUN}.")
    return build(ExperimentConfig, read_json(folder / RUN, _RunRecord)["config"])


# -- checks and messages


def _require_free(out: Path) -> None:
    """Refuse a folder that holds something, before anything is loaded."""
    if out.is_dir() and any(out.iterdir()):
        held = "holds a run already" if (out / "run.json").exists() else "is not empty"
        raise ConfigError(f"{out} {held}: choose another folder, or go on with: lcdd-lens run --resume {out}")


def _read_results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json" if folder.is_dir() else folder
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path} cannot be read ({error}): expected the results of a finished run.") from error
    if not isinstance(results, dict):
        raise ArtefactError(f"{path} is not the results of a run.")
    return results


def _seed(text: str) -> int:
    return _whole(text, least=0)


def _positive(text: str) -> int:
    return _whole(text, least=1)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}")
    return value


def _refuse(message: str) -> int:
    print(f"lcdd-lens: {message}", file=sys.stderr)
    return 2


def _quieten(*, verbose: bool, quiet: bool) -> None:
    """Warnings of libraries that a user cannot act on stay silent; our own are shown. ``quiet``: no bar of theirs."""
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("lcdd_lens").setLevel(logging.INFO if verbose else logging.WARNING)
