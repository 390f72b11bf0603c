"""What every attribution method is given: S against B, on the same tokens, judged by one metric.

S is a routed model with all gates open, B the same model with all gates closed, and every model between them is a
choice of gates. Prompts run in batches of similar length; a value never depends on
the batch that its prompt was in, and what does not fit the context is refused before anything runs.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from lcdd_lens.attribution.metric import Metric, metric_values, response_log_prob
from lcdd_lens.backends.base import LensModel, backend_of, device_of
from lcdd_lens.data.tokens import EncodedExample, Side, TokenBatch, collate
from lcdd_lens.errors import ConfigError, DataError
from lcdd_lens.frozen import frozen
from lcdd_lens.routing.routed import RoutedModel


@dataclass
class Meter:
    """What a method cost, counted in prompts that went through the model."""

    forward_passes: int = 0
    backward_passes: int = 0


@dataclass(frozen=True)
class PromptBatch:
    """A padded batch and the places of its prompts in ``Contrast.rows``."""

    places: Int[Tensor, " batch"]
    tokens: TokenBatch


@dataclass(frozen=True)
class Contrast:
    """Base and fine-tuned model on the same prompts and replies.

    Attributes:
        routed: all gates open is S, all gates closed is B; the gates it has now do not matter and are left alone.
        rows: encoded prompts with the replies that show the behaviour.
        metric: 𝓜, larger = more of the behaviour.
        batch_size: prompts per forward pass.
        side: where short rows are padded.
        meter: counts passes.
    """

    routed: RoutedModel
    rows: tuple[EncodedExample, ...]
    metric: Metric = response_log_prob
    batch_size: int = 16
    side: Side = "right"
    meter: Meter = field(default_factory=Meter, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}: expected at least 1.")
        if not self.rows:
            raise DataError("there are no prompts: expected encoded prompts with replies (data.encode(...).rows).")
        for number, row in enumerate(self.rows):
            self._check(number, row)

    def _check(self, number: int, row: EncodedExample) -> None:
        cfg = self.model.cfg
        if not row.prompt_ids or not row.response_ids:
            part = "prompt" if not row.prompt_ids else "reply"
            raise DataError(f"row {number} has no {part}: attribution needs a prompt and the reply to it.")
        ids = row.prompt_ids + row.response_ids
        if min(ids) < 0 or max(ids) >= cfg.d_vocab:
            raise DataError(f"row {number} holds ids outside 0..{cfg.d_vocab - 1}: it was encoded for another model.")
        if len(ids) > cfg.n_ctx:
            raise DataError(f"row {number} has {len(ids)} tokens and the model's context {cfg.n_ctx}: shorten it.")

    @property
    def model(self) -> LensModel:
        """The routed TransformerLens model."""
        return self.routed.model

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self.rows)

    def with_rows(self, rows: Sequence[EncodedExample]) -> "Contrast":
        """The same models and metric on other prompts."""
        return replace(self, rows=tuple(rows))

    def data_fingerprint(self) -> str:
        """SHA-256 over the token ids."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(f"{row.prompt_ids}|{row.response_ids};".encode())
        return digest.hexdigest()

    # -- running it

    def batches(self, *, progress: bool = False, description: str = "prompts") -> Iterator[PromptBatch]:
        """All prompts in batches of similar length."""
        order = sorted(range(self.n_prompts), key=lambda place: len(self.rows[place]))
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, desc=description, disable=not progress, leave=False):
            places = order[start : start + self.batch_size]
            tokens = collate([self.rows[place] for place in places], pad_id=0, side=self.side)
            yield PromptBatch(torch.tensor(places), tokens.to(device_of(self.model)))

    def logits(self, tokens: TokenBatch) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits under the present gates; counted."""
        self.meter.forward_passes += len(tokens)
        return backend_of(self.model).logits(self.model, tokens.tokens, tokens.attention_mask)

    def metric_of(self, tokens: TokenBatch) -> Float[Tensor, " batch"]:
        """𝓜 of every prompt of a batch under the present gates, checked."""
        return metric_values(self.metric, self.logits(tokens), tokens)

    def present_values(self) -> Float[Tensor, " prompt"]:
        """𝓜 of every prompt under the present gates and weights, in the order of ``rows`` (float64, on the CPU)."""
        values = torch.empty(self.n_prompts, dtype=torch.float64)
        with torch.no_grad(), frozen(self.model):
            for batch in self.batches():
                values[batch.places] = self.metric_of(batch.tokens).double().cpu()
        return values

    def values(self, gates: Mapping[str, Tensor] | Tensor) -> Float[Tensor, " prompt"]:
        """𝓜 of every prompt under these gates (flat [n_gates] or per hook name)."""
        with self.routed.using(gates):
            return self.present_values()

    def sft_values(self) -> Float[Tensor, " prompt"]:
        """𝓜(S): all gates open."""
        return self.values(torch.ones(self.routed.n_gates))

    def base_values(self) -> Float[Tensor, " prompt"]:
        """𝓜(B): all gates closed."""
        return self.values(torch.zeros(self.routed.n_gates))


@contextlib.contextmanager
def contrasting(
    base: LensModel,
    sft: LensModel,
    rows: Sequence[EncodedExample],
    *,
    metric: Metric = response_log_prob,
    batch_size: int = 16,
) -> Iterator[Contrast]:
    """A contrast of two plain models; ``sft`` is routed within the block and plain again afterwards."""
    routed = RoutedModel(sft, base)
    try:
        yield Contrast(routed, tuple(rows), metric, batch_size)
    finally:
        routed.detach()


@contextlib.contextmanager
def only_weights_learn(routed: RoutedModel) -> Iterator[dict[str, nn.Parameter]]:
    """Within the block the model is in eval mode and gradients flow to gated weights alone; then all is as before."""
    root = routed.model.get_submodule("")
    modes = {module: module.training for module in root.modules()}
    flags = {parameter: parameter.requires_grad for parameter in root.parameters()}
    weights = routed.delta_parameters()
    try:
        root.eval()
        root.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        yield weights
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in flags.items():
            parameter.requires_grad_(requires_grad)


def gates_at(routed: RoutedModel, value: float, *, requires_grad: bool = False) -> Float[Tensor, " gate"]:
    """A flat vector of equal gates on the model's device."""
    return torch.full((routed.n_gates,), value, device=device_of(routed.model), requires_grad=requires_grad)
