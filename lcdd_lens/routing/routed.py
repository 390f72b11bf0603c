"""A routed model: the fine-tuning delta of every gated weight passes through gates.

    W(m) = W_B + (m_row ⊗ m_column) ⊙ (W − W_B)          b(m) = b_B + m_row ⊙ (b − b_B)     (paper, section 3)

``RoutedModel`` attaches to a TransformerLens model in place, by torch parametrizations, and the model stays what it
was: hooks, caches, patching, generation work on it unchanged. There is one intervention primitive, *these gates have
these values*; training, necessity tests and attribution all use it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from lcdd_lens.backends.base import LensModel, backend_of, parameter_of
from lcdd_lens.backends.sites import SITE_KINDS, GateAxis, Site, SiteKind, WeightSite
from lcdd_lens.errors import ConfigError, ModelError
from lcdd_lens.routing.masks import Channels, RoutingMasks, SiteLayout


class _GateDelta(torch.autograd.Function):
    """W_B + (row ⊗ column) ⊙ (W − W_B), exact at gates 0 and 1; keeps no outer product for the backward pass.

    Where all gates of a weight are open, or all of its rows or columns closed (most weights of a sparse carrier), W or
    W_B itself is the result, and the parts of the gradient that are zero are not computed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        base: Tensor,
        row: Tensor | None,
        column: Tensor | None,
        row_axis: GateAxis | None,
        column_axis: GateAxis | None,
    ) -> Tensor:
        ctx.save_for_backward(weight, base, row, column)
        ctx.axes = (row_axis, column_axis)
        gates = (row, column)
        ctx.all_open = all(gate is None or bool((gate == 1).all()) for gate in gates)
        ctx.closed = tuple(gate is not None and not bool(gate.any()) for gate in gates)
        if ctx.all_open:
            return weight.view_as(weight)
        if any(ctx.closed):
            return base.view_as(base)
        row_factor, column_factor = _factors(weight, gates, ctx.axes)
        # lerp gives W_B exactly at 0 and W exactly at 1; W_B + 1·(W − W_B) would not.
        return torch.lerp(base, weight, row_factor * column_factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0]
        weight, base, row, column = ctx.saved_tensors
        row_axis, column_axis = ctx.axes
        row_closed, column_closed = ctx.closed
        row_factor, column_factor = _factors(weight, (row, column), ctx.axes)
        needs_weight, _, needs_row, needs_column, _, _ = ctx.needs_input_grad
        grad_weight = None
        if needs_weight:
            if row_closed or column_closed:
                grad_weight = torch.zeros_like(grad)
            else:
                grad_weight = grad if ctx.all_open else grad.mul(row_factor).mul_(column_factor)
        # A gate's slope passes through the partner gates: with all of those closed it is zero.
        grad_row = torch.zeros_like(row) if needs_row else None
        grad_column = torch.zeros_like(column) if needs_column else None
        moves_row, moves_column = needs_row and not column_closed, needs_column and not row_closed
        if moves_row or moves_column:
            slope = torch.sub(weight, base).mul_(grad)
            if moves_row:
                grad_row = row_axis.sum_to_channels(_weighted_sum(slope, column_factor, row_factor)).to(row.dtype)
            if moves_column:
                weighted = _weighted_sum(slope, row_factor, column_factor)
                grad_column = column_axis.sum_to_channels(weighted).to(column.dtype)
        return grad_weight, None, grad_row, grad_column, None, None


def _factors(
    weight: Tensor, gates: tuple[Tensor | None, Tensor | None], axes: tuple[GateAxis | None, GateAxis | None]
) -> tuple[Tensor, Tensor]:
    one = weight.new_ones(())
    row, column = (
        one if gate is None or axis is None else axis.expand_gate(gate.to(weight.dtype))
        for gate, axis in zip(gates, axes, strict=True)
    )
    return row, column


def _weighted_sum(values: Tensor, factor: Tensor, kept: Tensor) -> Tensor:
    """Σ values · factor over the axes that ``kept`` does not have, as one contraction; summed axes keep length 1."""
    if factor.numel() == 1:
        return values * factor
    letters = "abcdefgh"[: values.ndim]
    summed_with = "".join(letter for letter, size in zip(letters, factor.shape, strict=True) if size != 1)
    result = "".join(letter for letter, size in zip(letters, kept.shape, strict=True) if size != 1)
    contracted = torch.einsum(f"{letters},{summed_with}->{result}", values, factor.squeeze())
    return contracted.reshape(kept.shape)


class GatedDelta(nn.Module):
    """Parametrization of one weight: reads the current gates of its row and column site."""

    base: Tensor

    def __init__(self, base: Tensor, weight_site: WeightSite, gates: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("base", base.detach().clone(), persistent=False)
        self.weight_site = weight_site
        self._gates = gates

    def forward(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        row_axis, column_axis = self.weight_site.row, self.weight_site.column
        row = None if row_axis is None else self._gates[row_axis.site.hook_name]
        column = None if column_axis is None else self._gates[column_axis.site.hook_name]
        gated: Tensor = _GateDelta.apply(  # type: ignore[no-untyped-call]
            weight, self.base, row, column, row_axis, column_axis
        )
        return gated


class RoutedModel:
    """A model whose fine-tuning delta is gated, channel by channel.

    All gates open is the given model exactly, all gates closed is the base exactly (``torch.equal`` on the logits).
    Attaching freezes whatever no gate covers (embedding, unembedding, norms); :meth:`detach` undoes everything.

    Args:
        model: the fine-tuned model; it is changed in place and stays usable as before.
        base: the model before fine-tuning. Its weights are copied. ``None``: the model's present weights.
        kinds: the kinds of site that carry gates; weights at no such site are frozen at base.

    Raises:
        ModelError: the two differ in architecture or in what no gate covers, or the model is routed already.
    """

    def __init__(
        self, model: LensModel, base: LensModel | None = None, *, kinds: tuple[SiteKind, ...] = SITE_KINDS
    ) -> None:
        unknown = set(kinds) - set(SITE_KINDS)
        if unknown or not kinds:
            raise ConfigError(f"unknown site kinds {sorted(unknown)}: expected some of {', '.join(SITE_KINDS)}.")
        backend = backend_of(model)
        self.model = model
        self.weight_sites = tuple(
            restricted for site in backend.weight_sites(model) if (restricted := _restrict(site, kinds)).axes
        )
        used = {axis.site.hook_name for weight_site in self.weight_sites for axis in weight_site.axes}
        self.layout = SiteLayout([site for site in backend.sites(model) if site.hook_name in used])
        _check_pair(model, base, {weight_site.parameter for weight_site in self.weight_sites})
        device = next(iter(model.parameters())).device
        self._gates: dict[str, Tensor] = self.layout.split(torch.ones(self.layout.n_gates, device=device))
        self._flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for weight_site in self.weight_sites:
            source = model if base is None else base
            self._register(GatedDelta(parameter_of(source, weight_site.parameter), weight_site, self._gates))
        for parameter in self.delta_parameters().values():
            parameter.requires_grad_(True)

    # -- what there is

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that carry gates, in layer order."""
        return self.layout.sites

    @property
    def n_gates(self) -> int:
        """Number of gates."""
        return self.layout.n_gates

    @property
    def gates(self) -> Mapping[str, Float[Tensor, " channel"]]:
        """Present gate values per hook name."""
        return dict(self._gates)

    def delta_parameters(self) -> dict[str, nn.Parameter]:
        """The ungated fine-tuned weights W by plain parameter name: what an optimiser trains."""
        return {site.parameter: self._parametrization(site).original for site in self.weight_sites}

    def base_weights(self) -> dict[str, Tensor]:
        """The base's weights W_B by plain parameter name (not copied)."""
        return {site.parameter: self._gated(site).base for site in self.weight_sites}

    def effective_weights(self) -> dict[str, Tensor]:
        """W(m) under the present gates by plain parameter name."""
        with torch.no_grad():
            return {site.parameter: parameter_of(self.model, site.parameter) for site in self.weight_sites}

    # -- the intervention primitive

    def set_gates(self, gates: Mapping[str, Tensor] | Tensor) -> None:
        """Give every gate a value, from a flat vector [n_gates] or per hook name; gradients flow to the tensors given.

        Raises:
            ConfigError: a site is missing or unknown, or a shape is wrong.
        """
        parts = self.layout.split(gates) if isinstance(gates, Tensor) else dict(gates)
        if parts.keys() != self.layout.slices.keys():
            differing = sorted(parts.keys() ^ self.layout.slices.keys())
            raise ConfigError(f"gates must be given for exactly this model's sites; they differ at {differing[:4]}.")
        for site in self.sites:
            if parts[site.hook_name].shape != (site.n_channels,):
                shape = tuple(parts[site.hook_name].shape)
                raise ConfigError(f"{site.hook_name} has {site.n_channels} channels; got gates of shape {shape}.")
        device = next(iter(self.base_weights().values())).device
        for hook_name, value in parts.items():
            self._gates[hook_name] = value.to(device)

    @contextlib.contextmanager
    def using(self, gates: Mapping[str, Tensor] | Tensor) -> Iterator["RoutedModel"]:
        """Within the block the gates have these values; before leaving, also by an exception, the old ones return."""
        previous = dict(self._gates)
        self.set_gates(gates)
        try:
            yield self
        finally:
            self._gates.update(previous)

    def all_open(self) -> contextlib.AbstractContextManager["RoutedModel"]:
        """Within the block: the ungated fine-tuned model."""
        return self.using(torch.ones(self.n_gates))

    def all_closed(self) -> contextlib.AbstractContextManager["RoutedModel"]:
        """Within the block: the base model."""
        return self.using(torch.zeros(self.n_gates))

    def only(self, channels: Channels) -> contextlib.AbstractContextManager["RoutedModel"]:
        """Within the block: these channels open, all others closed (sufficiency)."""
        return self.using(self.layout.flags(channels).float())

    def without(self, channels: Channels) -> contextlib.AbstractContextManager["RoutedModel"]:
        """Within the block: these channels closed, all others open (necessity)."""
        return self.using((~self.layout.flags(channels)).float())

    def open_only(self, channels: Channels) -> None:
        """Leave exactly these channels open from now on."""
        self.set_gates(self.layout.flags(channels).float())

    def route_by(self, masks: RoutingMasks) -> None:
        """Leave exactly the channels open that the masks have open."""
        self.set_gates(masks.is_open().float())

    # -- weights

    def load_delta_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy ungated weights W into the model (all of them, by plain parameter name).

        Raises:
            ModelError: a name or a shape does not fit.
        """
        parameters = self.delta_parameters()
        if weights.keys() != parameters.keys():
            differing = sorted(weights.keys() ^ parameters.keys())
            raise ModelError(f"weights do not fit this model: they differ at {differing[:4]}.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                given, expected = tuple(weights[name].shape), tuple(parameter.shape)
                if given != expected:
                    raise ModelError(f"{name} has shape {expected}; the given weights have {given}.")
                parameter.copy_(weights[name])

    @contextlib.contextmanager
    def with_weights(self, weights: Mapping[str, Tensor]) -> Iterator["RoutedModel"]:
        """Within the block the ungated weights are these (for example SFT weights under a carrier found by LCDD)."""
        previous = {name: parameter.detach().clone() for name, parameter in self.delta_parameters().items()}
        self.load_delta_weights(weights)
        try:
            yield self
        finally:
            self.load_delta_weights(previous)

    def merged(self) -> LensModel:
        """A new plain model with the weights W(m) under the present gates; this one stays routed."""
        effective = self.effective_weights()
        gated = [self._gated(site) for site in self.weight_sites]
        self._unregister()
        try:
            plain = backend_of(self.model).clone(self.model)
        finally:
            for module in gated:
                self._register(module)
        _write_weights(plain, effective)
        return plain

    def merge(self) -> LensModel:
        """Write W(m) into the model, remove the gates, and return the plain model."""
        effective = self.effective_weights()
        model = self.detach()
        _write_weights(model, effective)
        return model

    def detach(self) -> LensModel:
        """Remove the gates; the model is left with its ungated weights W and its former ``requires_grad`` flags."""
        self._unregister()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._flags[name])
        return self.model

    def __repr__(self) -> str:
        open_gates = int(sum(float((gate > 0).sum()) for gate in self._gates.values()))
        return (
            f"RoutedModel({type(self.model).__name__}, {len(self.weight_sites)} gated weights, "
            f"{open_gates} of {self.n_gates} gates open at {len(self.sites)} sites)"
        )

    # -- parametrizations

    def _owner(self, weight_site: WeightSite) -> tuple[nn.Module, str]:
        owner, _, leaf = weight_site.parameter.rpartition(".")
        return self.model.get_submodule(owner), leaf

    def _parametrization(self, weight_site: WeightSite) -> Any:
        module, leaf = self._owner(weight_site)
        if not parametrize.is_parametrized(module, leaf):
            raise ModelError("this RoutedModel was detached or merged: attach a new one to route the model again.")
        return module.parametrizations[leaf]  # type: ignore[index]

    def _gated(self, weight_site: WeightSite) -> GatedDelta:
        gated: GatedDelta = self._parametrization(weight_site)[0]
        return gated

    def _register(self, gated: GatedDelta) -> None:
        module, leaf = self._owner(gated.weight_site)
        parametrize.register_parametrization(module, leaf, gated)

    def _unregister(self) -> None:
        for weight_site in self.weight_sites:
            self._parametrization(weight_site)
            module, leaf = self._owner(weight_site)
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)


def _restrict(weight_site: WeightSite, kinds: tuple[SiteKind, ...]) -> WeightSite:
    def keep(axis: GateAxis | None) -> GateAxis | None:
        return axis if axis is not None and axis.site.kind in kinds else None

    return replace(weight_site, row=keep(weight_site.row), column=keep(weight_site.column))


def _write_weights(model: LensModel, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            parameter_of(model, name).copy_(weight)


def _check_pair(model: LensModel, base: LensModel | None, gated: set[str]) -> None:
    if any(".parametrizations." in name for name, _ in model.named_parameters()):
        raise ModelError("the model is routed already: detach() or merge() the other RoutedModel first.")
    if base is None:
        return
    if any(".parametrizations." in name for name, _ in base.named_parameters()):
        raise ModelError("the base is itself a routed model: pass plain weights, for example RoutedModel.merged().")
    ours, theirs = dict(model.named_parameters()), dict(base.named_parameters())
    if ours.keys() != theirs.keys():
        raise ModelError(f"base and model have different parameters: {sorted(ours.keys() ^ theirs.keys())[:4]}.")
    for name, parameter in ours.items():
        if parameter.shape != theirs[name].shape:
            raise ModelError(
                f"{name} has shape {tuple(theirs[name].shape)} in the base and {tuple(parameter.shape)} in the model: "
                "both must have one architecture."
            )
    moved = [name for name in ours if name not in gated and not torch.equal(ours[name], theirs[name])]
    if moved:
        raise ModelError(
            f"{len(moved)} parameters that no gate covers differ from the base ({', '.join(moved[:3])}): closing "
            "all gates would not give the base. Set them back with load_pair(base, sft, reset_ungated=True)."
        )
