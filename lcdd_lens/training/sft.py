"""Plain supervised fine-tuning of the weights that gates will cover (paper, section 4: the stage before LCDD).

Embedding, unembedding and norms stay at base, so that closing all gates later gives the base exactly.
"""

from collections.abc import Mapping
from pathlib import Path

from lcdd_lens.backends.base import LensModel
from lcdd_lens.data.tokens import EncodedSet
from lcdd_lens.training.loop import History, Loop, OptimConfig, gated_parameters


def train_sft(
    model: LensModel,
    data: EncodedSet,
    config: OptimConfig,
    *,
    pad_id: int,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    meta: Mapping[str, str] | None = None,
) -> History:
    """Fine-tune ``model`` in place on prompts with responses.

    Args:
        model: a plain (not routed) model at the base's weights.
        data: encoded rows with responses.
        config: how to train.
        pad_id: padding token.
        out: folder of the checkpoint; None keeps none.
        resume: continue from the checkpoint in ``out``.
        progress: show a progress bar.
        meta: what else must agree for a resume (names of model and data).

    Returns:
        Series ``step``, ``loss`` (nats per counted token), ``ema`` and ``lr``.

    Raises:
        TrainingError: the loss became NaN or diverged.
    """
    trained = gated_parameters(model)
    base = {name: parameter.detach().clone() for name, parameter in trained.items()} if config.pull else {}
    loop = Loop(
        model,
        trained,
        base,
        data,
        config,
        pad_id=pad_id,
        out=out,
        resume=resume,
        label="SFT",
        progress=progress,
        identity=dict(meta or {}),
    )
    return loop.run()
