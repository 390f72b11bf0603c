"""A model held still: eval mode, no weight gradients, and every gate applied once instead of at every access.

A routed model computes W(m) each time a weight is read. While neither weights nor gates move (decoding, evaluation,
training a soft prompt) one computation serves the whole block, and it must not carry a graph: gradients then flow
through activations only.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from lcdd_lens.backends.base import LensModel


@contextlib.contextmanager
def frozen(model: LensModel) -> Iterator[None]:
    """Within the block the model's weights and gates are constants; afterwards, also by an exception, all is as before.

    Weights and gates must not be changed inside the block: a change would not be seen. Blocks may be nested, also
    inside ``torch.nn.utils.parametrize.cached()``: each starts from the present weights and leaves the outer cache as
    it was.
    """
    root = model.get_submodule("")
    modes = {module: module.training for module in root.modules()}
    flags = {parameter: parameter.requires_grad for parameter in root.parameters()}
    try:
        root.eval()
        root.requires_grad_(False)
        with _effective_weights_computed_once(root):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in flags.items():
            parameter.requires_grad_(requires_grad)


@contextlib.contextmanager
def _effective_weights_computed_once(root: nn.Module) -> Iterator[None]:
    # torch keeps one cache for all modules; values that an outer block put there may be stale or carry a graph.
    outer = parametrize._cache
    parametrize._cache = {}
    try:
        with parametrize.cached():
            with torch.no_grad():
                for module in root.modules():
                    if parametrize.is_parametrized(module):
                        for name in module.parametrizations:  # type: ignore[union-attr]
                            getattr(module, name)
            yield
    finally:
        parametrize._cache = outer
