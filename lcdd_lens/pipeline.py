"""The whole experiment: base → SFT → LCDD → carrier → SFT-Eraser → evaluation → report, in one folder.

Every stage leaves its result in the folder, so an interrupted experiment goes on where it stopped (``resume=True``),
and every figure comes from prompts that no stage trained or chose on.
"""

import importlib.metadata
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lcdd_lens import __version__
from lcdd_lens.backends import BACKENDS, LensModel, backend_of, load_model, load_pair, parameter_of
from lcdd_lens.backends.export import export_hf
from lcdd_lens.carrier import Carrier
from lcdd_lens.configuration import build
from lcdd_lens.data import Behaviour, EncodedSet, embedded_behaviour, encode, pad_id_of
from lcdd_lens.data.behaviours import Split
from lcdd_lens.display import notebook_view
from lcdd_lens.eraser import EraserConfig, EraserResult, Trigger, train_eraser
from lcdd_lens.errors import ArtefactError, ConfigError
from lcdd_lens.evaluation import Condition, EvaluationResult, evaluate_conditions, random_condition
from lcdd_lens.evaluation.files import load_evaluation, save_evaluation
from lcdd_lens.io import read_json, write_json_atomic
from lcdd_lens.report.run import write_run_report
from lcdd_lens.routing import RoutedModel
from lcdd_lens.training import (
    History,
    LCDDConfig,
    LCDDResult,
    OptimConfig,
    lcdd_config_for,
    sft_config_for,
    train_lcdd,
    train_sft,
)
from lcdd_lens.training.checkpoint import load_checkpoint

logger = logging.getLogger(__name__)

RESULTS = "results.json"
RUN = "run.json"
RESULTS_SCHEMA = 1
TRIGGERS = {
    "routed+trigger": "trigger",
    "sft+trigger": "stages/eraser/sft",
    "sft+trigger(carrier)": "stages/eraser/sft-carrier",
}
"""Condition -> folder of its trigger in the run's folder."""
_MIN_FREE_BYTES = 50_000_000


@dataclass(frozen=True)
class BehaviourSource:
    """Where the prompts come from: an embedded behaviour, or the user's files."""

    name: str
    """``idk``, ``safety``, ``style``, or any name for the user's own."""
    train: str | None = None
    """JSONL with ``prompt`` and ``response``; None: an embedded behaviour."""
    eval: str | None = None
    """JSONL with ``prompt``: the test prompts."""
    validation: str | None = None
    """JSONL with ``prompt``; None: a share of the training prompts is held out."""
    scorer: str = "fixed_response"
    """Scorer of the user's behaviour: ``fixed_response``, ``refusal`` or ``archaic``."""
    phrases: tuple[str, ...] = ()
    """Phrases or words of the scorer; empty: its own."""
    response: str | None = None
    """One response for every training prompt, for files without responses."""
    target_labels: tuple[str, ...] = ()
    """Labels of the prompts on which the behaviour belongs; empty: on all."""
    chat_format: str = "auto"
    """``auto``, ``template`` or ``plain``."""
    n_train: int | None = None
    """Training prompts to draw; None: all."""
    n_test: int | None = None
    """Test prompts to draw; None: all."""

    def __post_init__(self) -> None:
        if (self.train is None) != (self.eval is None):
            raise ConfigError("train and eval belong together: give both files, or neither for an embedded behaviour.")


@dataclass(frozen=True)
class EvaluationConfig:
    """How conditions are compared."""

    max_new_tokens: int = 24
    """Longest reply, in tokens."""
    random_triggers: int = 5
    """Draws of random real tokens in the trigger's place."""
    samples: int = 24
    """Prompts whose replies the report shows."""


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that an experiment needs beside its output folder."""

    base: str
    """Base model: hub name, local folder, or ``organism:NAME``."""
    behaviour: BehaviourSource
    """The behaviour."""
    sft: str | None = None
    """A fine-tuned checkpoint or LoRA adapter to start from; None: fine-tune here."""
    reset_ungated: bool = False
    """Set embedding, unembedding and norms of ``sft`` back to base where they differ."""
    seed: int = 0
    """Seed of data order, masks, trigger and draws."""
    dtype: str = "float32"
    """``float32`` or ``bfloat16``."""
    device: str = "cpu"
    """Torch device."""
    backend: str | None = None
    """``hooked`` or ``bridge``; None: hooked where TransformerLens has it, else bridge."""
    sft_training: OptimConfig | None = None
    """Plain SFT; None: settings for the model's size."""
    lcdd: LCDDConfig | None = None
    """LCDD; None: settings for the model's size."""
    eraser: EraserConfig | None = None
    """SFT-Eraser; None: settings for the model's size."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype is {self.dtype!r}: expected 'float32' or 'bfloat16'.")
        if self.backend not in (None, *BACKENDS):
            raise ConfigError(f"backend is {self.backend!r}: expected {' or '.join(map(repr, BACKENDS))}.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: expected 0 or more.")

    def seeded(self) -> "ExperimentConfig":
        """The same configuration with ``seed`` in every stage."""
        return replace(
            self,
            sft_training=None if self.sft_training is None else replace(self.sft_training, seed=self.seed),
            lcdd=None if self.lcdd is None else self.lcdd.with_seed(self.seed),
            eraser=None if self.eraser is None else replace(self.eraser, seed=self.seed),
        )


def demo_config(
    behaviour: str = "idk", seed: int = 0, family: str = "llama", backend: str | None = None
) -> ExperimentConfig:
    """The demonstration: an embedded model and behaviour, about two minutes on two CPU cores."""
    steps = {"idk": 120, "safety": 200, "style": 250}.get(behaviour, 200)
    return ExperimentConfig(
        base=f"organism:tinychat-{family}",
        behaviour=BehaviourSource(behaviour),
        seed=seed,
        sft_training=OptimConfig(steps=steps, lr=1e-3),
        backend=backend,
    )


@dataclass
class Experiment:
    """What an experiment has in memory when it ends: models, carrier, triggers and results."""

    config: ExperimentConfig
    behaviour: Behaviour
    base: LensModel
    sft: LensModel
    routed: RoutedModel
    carrier: Carrier
    triggers: dict[str, Trigger]
    evaluation: EvaluationResult
    results: dict[str, Any]

    def __repr__(self) -> str:
        carrier = f"{self.carrier.n_open} of {self.carrier.n_gates} gates open"
        verdict = self.evaluation.verdict("routed+trigger")
        return f"Experiment({self.behaviour.name}, seed {self.config.seed}: {carrier}, with the trigger {verdict})"

    def _repr_html_(self) -> str:
        columns = ["behaviour_rate", "utility", "kl", "verdict"]
        return notebook_view(repr(self), self.evaluation.summary()[columns], "Open channels:", self.carrier.counts())


def run_experiment(
    config: ExperimentConfig, out: str | Path, *, progress: bool = True, resume: bool = False
) -> Experiment:
    """Run all stages and write ``results.json``, ``report.html``, ``carrier/``, ``trigger/``, ``routed/`` and ``sft/``.

    Args:
        config: the experiment.
        out: its folder; it must not hold another run.
        progress: show progress bars.
        resume: go on with the run that the folder holds.

    Raises:
        LensError: bad input, found before any training; nothing is overwritten.
        KeyboardInterrupt: after Ctrl-C; the folder can be resumed.
    """
    out = Path(out)
    config = config.seeded()
    prepare_folder(out, config, resume=resume)
    return _Run(config, out, progress, resume).run()


def load_experiment(folder: str | Path) -> Experiment:
    """A finished run as :func:`run_experiment` returned it, read from its folder: models, carrier, triggers, results.

    Args:
        folder: the run's folder.

    Raises:
        ArtefactError: the folder holds no finished run, or its parts are damaged or do not belong together.
    """
    folder = Path(folder)
    if not (folder / RESULTS).is_file():
        raise ArtefactError(f"{folder} holds no finished run: run it first, or resume it.")
    results = read_json(folder / RESULTS, dict[str, Any])
    config = build(ExperimentConfig, read_json(folder / RUN, dict[str, Any]).get("config", {}))
    dtype = getattr(torch, config.dtype)
    pair = load_pair(
        config.base,
        folder / "sft",
        reset_ungated=True,
        dtype=dtype,
        device=config.device,
        backend=config.backend,
    )
    carrier = Carrier.load(folder / "carrier", pair.base)
    routed = RoutedModel(backend_of(pair.sft).clone(pair.sft), pair.base)
    routed.load_delta_weights(lcdd_weights(folder, pair.base)[0])
    routed.open_only(carrier.channels)
    return Experiment(
        config,
        make_behaviour(config.behaviour, config.seed),
        pair.base,
        pair.sft,
        routed,
        carrier,
        {name: Trigger.load(folder / where, pair.base) for name, where in TRIGGERS.items()},
        load_evaluation(folder / "evaluation"),
        results,
    )


def lcdd_weights(folder: str | Path, base: LensModel) -> tuple[dict[str, Tensor], Literal["raw", "merged"]]:
    """The gated weights of a finished run's routed model by parameter name, and which they are.

    ``raw`` are LCDD's own weights W, from its checkpoint; where that is gone or another backend wrote it, ``merged``
    are W(m) of ``routed/``, which equal the base's off the carrier.

    Raises:
        ArtefactError: the files belong to another architecture.
    """
    folder = Path(folder)
    checkpoint = folder / "stages" / "lcdd" / "checkpoint.safetensors"
    gated = [site.parameter for site in backend_of(base).weight_sites(base)]
    if checkpoint.is_file():
        tensors, _ = load_checkpoint(checkpoint)
        weights = {name: tensors[f"weight.{name}"] for name in gated if f"weight.{name}" in tensors}
        if weights and len(weights) < len(gated):
            raise ArtefactError(f"{checkpoint} lacks weights of this architecture: it belongs to another run.")
        if weights:
            return weights, "raw"
    logger.warning(
        "%s is gone or was written on another backend: using the merged weights, which equal the base's off the "
        "carrier.",
        checkpoint,
    )
    merged = load_model(folder / "routed", backend=backend_of(base).name)
    return {name: parameter_of(merged, name).detach().clone() for name in gated}, "merged"


def prepare_folder(out: Path, config: ExperimentConfig, *, resume: bool) -> None:
    """Make the folder, or check that it holds this very run.

    Raises:
        ConfigError: it holds another run, is not a folder, cannot be written, or the disk is full.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: expected a folder for the results.")
    described = _plain(asdict(config))
    if (out / RUN).exists():
        if not resume:
            raise ConfigError(f"{out} holds a run already: choose another folder, or resume it.")
        stored = read_json(out / RUN, dict[str, Any])
        # A setting that an older run did not know had its default.
        earlier = _plain(asdict(build(ExperimentConfig, stored.get("config", {}))))
        if earlier != described:
            changed = sorted(key for key in described if earlier.get(key) != described[key])
            raise ConfigError(f"{out} holds a run with other settings ({', '.join(changed)}): resume it with its own.")
        return
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no run: choose an empty or new folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(f"no permission to write into {out}")
        if shutil.disk_usage(out).free < _MIN_FREE_BYTES:
            raise OSError("less than 50 MB are free on the disk")
    except OSError as error:
        raise ConfigError(f"cannot write the results to {out}: {error}.") from error


@dataclass(frozen=True)
class _Settings:
    sft_training: OptimConfig
    lcdd: LCDDConfig
    eraser: EraserConfig


class _Run:
    def __init__(self, config: ExperimentConfig, out: Path, progress: bool, resume: bool) -> None:
        self.config, self.out, self.progress, self.resume = config, out, progress, resume
        self.seconds: dict[str, float] = {}

    def run(self) -> Experiment:
        config = self.config
        dtype = getattr(torch, config.dtype)
        base = self._timed(
            "load",
            lambda: load_model(
                config.base,
                dtype=dtype,
                device=config.device,
                backend=config.backend,
            ),
        )
        behaviour = make_behaviour(config.behaviour, config.seed)
        settings = self.settings = self._resolve(base)
        data = encode_splits(base, behaviour, settings.eraser, config.evaluation)
        sft = self._given_sft(base, dtype)
        # Only now, with all input read and checked, is the folder marked as this run's.
        write_json_atomic(self.out / RUN, {"schema": RESULTS_SCHEMA, "config": _plain(asdict(config))})
        pad_id = pad_id_of(base.tokenizer)
        history: dict[str, Any] = {}
        if sft is None:
            sft = backend_of(base).clone(base)
            history["sft"] = self._timed("sft", lambda: self._train_sft(sft, data["train"], pad_id))
        routed = RoutedModel(backend_of(sft).clone(sft), base)
        found = self._timed("lcdd", lambda: self._train_lcdd(routed, data["train"], pad_id))
        history["lcdd"] = found.history
        invariants = _invariants(routed, base, data["test"], pad_id)
        found.carrier.save(self.out / "carrier")
        triggers, history["eraser"] = self._timed(
            "eraser", lambda: self._triggers(routed, sft, base, found.carrier, data, settings.eraser)
        )
        evaluation = self._timed("evaluation", lambda: self._evaluate(base, sft, routed, behaviour, data, triggers))
        save_evaluation(evaluation, self.out / "evaluation")
        self._timed("export", lambda: self._export(sft, routed))
        results = {
            "schema": RESULTS_SCHEMA,
            "behaviour": behaviour.name,
            "seed": config.seed,
            **evaluation.to_dict(config.evaluation.samples),
            "carrier": _carrier_results(found),
            "history": history,
            "invariants": invariants,
            "data": behaviour.to_dict(),
            "seconds": self.seconds,
            "config": _plain(asdict(config) | asdict(settings)),
            "versions": versions(),
        }
        write_json_atomic(self.out / RESULTS, results)
        write_run_report(results, self.out / "report.html")
        return Experiment(config, behaviour, base, sft, routed, found.carrier, triggers, evaluation, results)

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = work()
        self.seconds[stage] = round(time.perf_counter() - started, 3)
        logger.info("%s took %.1f s", stage, self.seconds[stage])
        return value

    def _resolve(self, base: LensModel) -> _Settings:
        config = self.config
        return _Settings(
            config.sft_training or sft_config_for(base, seed=config.seed),
            config.lcdd or lcdd_config_for(base, seed=config.seed),
            config.eraser or replace(EraserConfig.for_model(base), seed=config.seed),
        )

    def _given_sft(self, base: LensModel, dtype: torch.dtype) -> LensModel | None:
        config = self.config
        if config.sft is None:
            return None
        pair = load_pair(base, config.sft, reset_ungated=config.reset_ungated, dtype=dtype, device=config.device)
        logger.info("%s", pair.report)
        return pair.sft

    def _train_sft(self, sft: LensModel, train: EncodedSet, pad_id: int) -> History:
        return train_sft(
            sft,
            train,
            self.settings.sft_training,
            pad_id=pad_id,
            out=self.out / "stages" / "sft",
            resume=self.resume,
            progress=self.progress,
        )

    def _train_lcdd(self, routed: RoutedModel, train: EncodedSet, pad_id: int) -> LCDDResult:
        return train_lcdd(
            routed,
            train,
            self.settings.lcdd,
            pad_id=pad_id,
            out=self.out / "stages" / "lcdd",
            resume=self.resume,
            progress=self.progress,
        )

    def _triggers(
        self,
        routed: RoutedModel,
        sft: LensModel,
        base: LensModel,
        carrier: Carrier,
        data: Mapping[str, EncodedSet],
        config: EraserConfig,
    ) -> tuple[dict[str, Trigger], dict[str, Any]]:
        """One trigger for the routed model and two for plain SFT with the same effort: the paper's comparison."""
        channels = carrier.residual_write_channels()

        def train(model: LensModel, settings: EraserConfig) -> EraserResult:
            prompts = data["train"].prompts, data["validation"].prompts
            return train_eraser(model, base, channels, *prompts, settings, progress=self.progress)

        own = train(routed.model, config)
        # Plain SFT gets as many steps as the routed model's trigger needed to converge.
        same_effort = replace(config, steps=max(1, len(own.history.step)), patience=None)
        trained = {
            "routed+trigger": own,
            "sft+trigger": train(sft, replace(same_effort, channels="none", w_match=0.0)),
            "sft+trigger(carrier)": train(sft, same_effort),
        }
        for name, where in TRIGGERS.items():
            trained[name].trigger.save(self.out / where)
        histories = {name: result.history.to_dict() for name, result in trained.items()}
        return {name: result.trigger for name, result in trained.items()}, histories

    def _evaluate(
        self,
        base: LensModel,
        sft: LensModel,
        routed: RoutedModel,
        behaviour: Behaviour,
        data: Mapping[str, EncodedSet],
        triggers: Mapping[str, Trigger],
    ) -> EvaluationResult:
        settings, own = self.config.evaluation, triggers["routed+trigger"]
        conditions = [
            Condition("base", base),
            Condition("sft", sft),
            Condition("routed", routed.model),
            Condition("routed+trigger", routed.model, own),
            Condition("sft+trigger", sft, triggers["sft+trigger"]),
            Condition("sft+trigger(carrier)", sft, triggers["sft+trigger(carrier)"]),
            random_condition("routed+random", routed.model, own, draws=settings.random_triggers, seed=self.config.seed),
        ]
        return evaluate_conditions(
            conditions,
            behaviour,
            data["test"],
            max_new_tokens=settings.max_new_tokens,
            seed=self.config.seed,
            progress=self.progress,
        )

    def _export(self, sft: LensModel, routed: RoutedModel) -> None:
        export_hf(routed.merged(), self.out / "routed", overwrite=True)
        export_hf(sft, self.out / "sft", overwrite=True)


def encode_splits(
    base: LensModel, behaviour: Behaviour, eraser: EraserConfig, evaluation: EvaluationConfig
) -> dict[str, EncodedSet]:
    """Token ids of the splits ``train`` (with replies), ``validation`` and ``test``, with room for trigger and replies.

    Raises:
        DataError: too many prompts are empty or too long for the context.
    """
    # The eraser lets the models answer training and validation prompts, the evaluation the others.
    answer = eraser.answer_tokens if eraser.w_answer else 0

    def encoded(split: Split) -> EncodedSet:
        return encode(
            base.tokenizer,
            behaviour.chat_format,
            behaviour.split(split),
            base.cfg.n_ctx,
            with_responses=split == "train",
            max_new_tokens=evaluation.max_new_tokens if split == "test" else answer,
            reserve=eraser.n_tokens,
            source=f"{split} prompts",
        )

    return {"train": encoded("train"), "validation": encoded("validation"), "test": encoded("test")}


def make_behaviour(source: BehaviourSource, seed: int) -> Behaviour:
    """Read the prompts of a source.

    Raises:
        DataError: unknown behaviour, or unusable files.
        ConfigError: settings that an embedded behaviour would ignore.
    """
    from lcdd_lens.data import ChatFormat, scorer_by_name

    if source.train is None or source.eval is None:
        settings = ("validation", "phrases", "response", "target_labels", "n_train", "n_test")
        given = [name for name in settings if getattr(source, name)]
        if given:
            raise ConfigError(f"{', '.join(given)} need train and eval files: embedded behaviours bring their own.")
        return embedded_behaviour(source.name, seed=seed)
    return Behaviour.from_jsonl(
        source.name,
        source.train,
        source.eval,
        validation=source.validation,
        scorer=scorer_by_name(source.scorer, source.phrases or None),
        response=source.response,
        chat_format=ChatFormat(source.chat_format),
        target_labels=source.target_labels or None,
        n_train=source.n_train,
        n_test=source.n_test,
        seed=seed,
    )


def versions() -> dict[str, str]:
    """Versions that a reader needs to repeat the run."""
    packages = ("torch", "transformers", "transformer-lens", "sae-lens", "datasets")
    found = {name: importlib.metadata.version(name) for name in packages if _installed(name)}
    return {"lcdd-lens": __version__, "python": platform.python_version(), **found}


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _invariants(routed: RoutedModel, base: LensModel, test: EncodedSet, pad_id: int) -> dict[str, bool]:
    """What must hold exactly on this very pair, checked on a batch of test prompts."""
    batch = test.batch(list(range(min(8, len(test)))), pad_id)
    merged = routed.merged()

    def logits(model: LensModel, gates: AbstractContextManager[Any]) -> Tensor:
        with torch.no_grad(), gates:
            device = next(iter(model.parameters())).device
            return backend_of(model).logits(model, batch.tokens.to(device), batch.attention_mask.to(device))

    return {
        "closed gates equal the base": torch.equal(
            logits(routed.model, routed.all_closed()), logits(base, nullcontext())
        ),
        "merged model equals the routed model": torch.equal(
            logits(routed.model, nullcontext()), logits(merged, nullcontext())
        ),
    }


def _carrier_results(found: LCDDResult) -> dict[str, Any]:
    carrier = found.carrier
    return {
        "sparsity": carrier.sparsity,
        "n_open": carrier.n_open,
        "n_gates": carrier.n_gates,
        "dimensions": dict(carrier.dimensions),
        "budget": {"epsilon": found.epsilon, "final_loss": found.final_loss, "kept": found.budget_kept},
        "sites": {
            site.hook_name: {
                "layer": site.layer,
                "kind": site.kind,
                "n_channels": site.n_channels,
                "open": carrier.channels[site.hook_name].tolist(),
                "scores": [round(score, 4) for score in carrier.scores[site.hook_name].tolist()],
            }
            for site in carrier.sites
        },
    }


def _plain(value: Any) -> Any:
    """Tuples to lists, so that a configuration equals itself after JSON."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
