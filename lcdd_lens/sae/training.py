"""A small SAE on a model's activations at one hook point, trained by SAELens: offline, seeded, in minutes on a CPU.

    x̂ = W_dec · topk(W_enc (x − b_dec) + b_enc) + b_dec            k features active a token (Gao et al., 2024)

The activations are those of whole prompts with their attention mask, one token each, padding left out. SAELens's own
runner packs tokens into full contexts instead; a model that was trained on short chats never sees those.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lcdd_lens.backends.base import LensModel, backend_of, device_of
from lcdd_lens.data.tokens import prompt_batch
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.frozen import frozen
from lcdd_lens.sae.library import SparseAutoencoder, load_sae, sae_lens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SAETrainingConfig:
    """How an SAE is trained.

    Raises:
        ConfigError: a value is out of range.
    """

    hook_name: str
    """Where it reads, for example ``blocks.2.hook_resid_post``."""
    d_sae: int = 512
    """Number of features."""
    k: int = 8
    """Features active per token."""
    n_samples: int = 200_000
    """Activations seen in training; the list is gone through as often as it takes."""
    batch_size: int = 512
    """Activations per step."""
    lr: float = 1e-3
    """Adam's learning rate; it falls to 0 over the last fifth of the steps."""
    seed: int = 0
    """Start weights and order."""

    def __post_init__(self) -> None:
        for name in ("d_sae", "k", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"SAETrainingConfig: {name} is {getattr(self, name)}; expected at least 1.")
        if self.k > self.d_sae or self.n_samples < self.batch_size or not self.lr > 0:
            raise ConfigError(
                f"SAETrainingConfig: k = {self.k} of {self.d_sae} features, {self.n_samples} samples in batches of "
                f"{self.batch_size}, lr {self.lr}: expected k ≤ d_sae, at least one batch, and a positive lr."
            )


def train_sae(
    model: LensModel,
    sequences: Sequence[Sequence[int]],
    config: SAETrainingConfig,
    *,
    out: str | Path | None = None,
    progress: bool = True,
) -> SparseAutoencoder:
    """Train a top-k SAE on the activations of these token lists.

    Args:
        model: whose activations; plain or routed, read under its present gates.
        sequences: token ids, for example prompts with the model's own replies.
        config: size and effort.
        out: a folder to save the SAE in (``cfg.json``, ``sae_weights.safetensors``); None: it is not kept on disk.
        progress: show a progress bar.

    Returns:
        SAELens's inference SAE, frozen, with the hook name in ``cfg.metadata``.

    Raises:
        ConfigError: sae-lens is missing, or the hook point does not exist.
        DataError: there are no tokens.
    """
    library = sae_lens()
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    activations = token_activations(model, sequences, config.hook_name)
    width = activations.shape[1]
    scale = float(width**0.5 / activations.norm(dim=1).mean())
    n_steps = config.n_samples // config.batch_size
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        sae = library.TopKTrainingSAE(
            library.TopKTrainingSAEConfig(
                d_in=width,
                d_sae=config.d_sae,
                k=config.k,
                device=str(activations.device),
                metadata=SAEMetadata(hook_name=config.hook_name, model_name=model.cfg.model_name),
            )
        )
        with torch.no_grad():
            sae.b_dec.copy_(activations.mean(0) * scale)
        trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=n_steps * config.batch_size,
                train_batch_size_samples=config.batch_size,
                lr=config.lr,
                lr_end=config.lr / 10,
                lr_decay_steps=n_steps // 5,
                dead_feature_window=max(1, n_steps // 10),
                device=str(activations.device),
            ),
            sae,
            _endless(activations * scale, config.batch_size, config.seed),
        )
        with tqdm(total=n_steps, desc="SAE", disable=not progress) as bar:
            for step in range(n_steps):
                loss = trainer.step(next(trainer.data_provider)).loss
                trainer.n_training_steps = step + 1
                bar.update()
                if step % 50 == 0:
                    bar.set_postfix_str(f"loss {float(loss):.3g}")
    sae.fold_activation_norm_scaling_factor(scale)
    trainer.set_final_sae_metadata()
    logger.info("SAE of %d features on %d activations, %d steps", config.d_sae, len(activations), n_steps)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if out is None else out)
        sae.save_inference_model(folder)
        trained: Any = load_sae(folder, device=str(activations.device))
    frozen_sae: SparseAutoencoder = trained.eval().requires_grad_(False)
    return frozen_sae


def token_activations(
    model: LensModel, sequences: Sequence[Sequence[int]], hook_name: str, *, batch_size: int = 64
) -> Float[Tensor, "token d_in"]:
    """Activations of every token at a hook point, padding left out; heads are flattened.

    Raises:
        ConfigError: the hook point does not exist.
        DataError: there are no tokens.
    """
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise DataError("there are no tokens to read activations of: expected lists of token ids, none empty.")
    if hook_name not in model.hook_dict:  # type: ignore[attr-defined]
        raise ConfigError(f"the model has no hook point {hook_name}: see model.hook_dict.")
    found: list[Tensor] = []
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    with torch.no_grad(), frozen(model):
        for start in range(0, len(order), batch_size):
            batch = prompt_batch([sequences[row] for row in order[start : start + batch_size]], 0, "right")
            batch = batch.to(device_of(model))
            real = batch.attention_mask.bool()

            def keep(activation: Tensor, hook: Any, real: Tensor = real) -> None:
                found.append(rearrange(activation.detach(), "batch pos ... -> batch pos (...)")[real].float())

            with model.hooks(fwd_hooks=[(hook_name, keep)]):
                backend_of(model).logits(model, batch.tokens, batch.attention_mask)
    return torch.cat(found)


def _endless(values: Float[Tensor, "token d_in"], batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches in a new order every time round."""
    generator = torch.Generator().manual_seed(seed)
    queue = torch.zeros(0, dtype=torch.long)
    while True:
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(len(values), generator=generator)])
        yield values[queue[:batch_size].to(values.device)]
        queue = queue[batch_size:]
