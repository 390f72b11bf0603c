"""Sparse, causal, reversible carriers of supervised fine-tuning, for TransformerLens models (arXiv 2605.06632).

    load_model, load_pair, export_hf       models in and out
    Behaviour                              what fine-tuning teaches, and how a reply is judged
    RoutedModel, Carrier                   gates on the fine-tuning delta, and which of them are open
    train_sft, train_lcdd, train_eraser    the three trainings
    Trigger, generate                      the soft prompt that undoes the behaviour, and decoding with it
    run_experiment                         everything above, in one folder

These names are imported when they are first used, so that ``import lcdd_lens`` itself loads neither torch nor
TransformerLens. Everything else lives in the subpackages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lcdd_lens.compatibility import require_transformer_lens

__version__ = "0.1.0"

require_transformer_lens()

if TYPE_CHECKING:
    from lcdd_lens.backends import export_hf, load_model, load_pair
    from lcdd_lens.carrier import Carrier
    from lcdd_lens.data import Behaviour
    from lcdd_lens.eraser import Trigger, train_eraser
    from lcdd_lens.generation import generate
    from lcdd_lens.pipeline import run_experiment
    from lcdd_lens.routing import RoutedModel
    from lcdd_lens.training import train_lcdd, train_sft

__all__ = [
    "Behaviour",
    "Carrier",
    "RoutedModel",
    "Trigger",
    "export_hf",
    "generate",
    "load_model",
    "load_pair",
    "run_experiment",
    "train_eraser",
    "train_lcdd",
    "train_sft",
]

_HOMES = {
    "Behaviour": "lcdd_lens.data",
    "Carrier": "lcdd_lens.carrier",
    "RoutedModel": "lcdd_lens.routing",
    "Trigger": "lcdd_lens.eraser",
    "export_hf": "lcdd_lens.backends",
    "generate": "lcdd_lens.generation",
    "load_model": "lcdd_lens.backends",
    "load_pair": "lcdd_lens.backends",
    "run_experiment": "lcdd_lens.pipeline",
    "train_eraser": "lcdd_lens.eraser",
    "train_lcdd": "lcdd_lens.training",
    "train_sft": "lcdd_lens.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lcdd_lens' has no attribute {name!r}; public names: {', '.join(_HOMES)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
