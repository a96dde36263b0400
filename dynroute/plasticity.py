"""Measures of plasticity: dormant units, the rank of features, and the flow through modules.

:func:`measure` computes them for a network and a batch; :func:`dormant_units` and :func:`effective_rank` take tensors.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from .arguments import check_number, check_tensor, shown
from .compositional import CompositionalLinear
from .execution import backend
from .levels import RoutedGraph
from .recording import Record, record
from .routers import Router
from .statistics import flow

__all__ = ["ACTIVATIONS", "Plasticity", "dormant_units", "effective_rank", "measure"]

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ELU,
    nn.GELU,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Tanh,
)
"""The modules whose outputs :func:`measure` counts as units."""


class Plasticity(NamedTuple):
    """The measures of a network on a batch, returned by :func:`measure`."""

    dormant: float
    """The share of dormant units; NaN in a network that diverged or has no activation modules."""

    layers: dict[str, float]
    """The share of dormant units of each activation module, by its name; NaN if an output is not finite."""

    rank: int
    """The effective rank of the features; 0 in a network without linear layers."""

    features: int
    """The number of features."""

    flow: dict[str, Tensor]
    """The mean :func:`~dynroute.inspect.flow` of each node of each routed layer, by the name of the layer."""


def dormant_units(activations: Tensor, *, tau: float = 0.025) -> Tensor:
    r"""Finds the units of a layer that hardly respond to any sample (Sokar et al., 2023).

    .. math:: \frac{\operatorname{mean}_b |h_{bi}|}{\operatorname{mean}_{bk} |h_{bk}|} \le \tau

    Args:
        activations: The outputs of the layer, with shape ``[*, units]``.
        tau: The largest score of a dormant unit; with 0 only units that are always zero are dormant.

    Returns:
        A boolean tensor with shape ``[units]``; all True for a layer that is zero everywhere.

    Example:
        >>> dynroute.plasticity.dormant_units(torch.tensor([[0.0, 2.0, 0.01], [0.0, 4.0, 0.0]]))
        tensor([ True, False,  True])
    """
    rows = _rows("activations", activations)
    check_number("tau", tau, at_least=0)
    if not rows.isfinite().all():
        raise ValueError("`activations` must be finite, but some are not; did the network diverge?")
    size = rows.abs().mean(dim=0)
    return size <= tau * size.mean()


def effective_rank(features: Tensor, *, share: float = 0.99) -> int:
    r"""Computes the effective rank of features, srank (Kumar et al., 2021).

    .. math:: \min \Bigl\{ k : \sum_{i \le k} \sigma_i \ge \mathtt{share} \cdot \sum_i \sigma_i \Bigr\}

    :math:`\sigma_1 \ge \sigma_2 \ge \ldots` are the singular values of the matrix of features, one row per sample. The
    mean is not subtracted. The rank is at most the number of samples.

    Args:
        features: The features, with shape ``[*, n]``.
        share: The share of the sum of singular values, in (0, 1].

    Returns:
        The rank; 0 if all features are zero or one is not finite.

    Example:
        >>> dynroute.plasticity.effective_rank(torch.diag(torch.tensor([5.0, 4.0, 0.01])))
        2
    """
    rows = _rows("features", features)
    check_number("share", share, above=0, at_most=1)
    if not rows.isfinite().all():
        return 0
    values = torch.linalg.svdvals(rows.double())
    # Count the values whose tail sum exceeds the share to leave out, with a margin for the rounding of the sum.
    rest = values.flip(0).cumsum(0).flip(0)
    margin = torch.finfo(values.dtype).eps * values.numel()
    return int((rest > (1 - share + margin) * values.sum()).sum())


@torch.no_grad()
def measure(net: nn.Module, *inputs: Any, tau: float = 0.025, share: float = 0.99, **keywords: Any) -> Plasticity:
    """Runs a network on a batch and measures its plasticity.

    Units are the outputs of the modules in :data:`ACTIVATIONS`: their features, or their channels between a
    convolution and the next linear layer. Features are the inputs of the output layers, which are the linear layers of
    width ``net.out_features`` that read as many rows as the last of them, or the last linear layer that runs if there
    is no such attribute.
    All modules of a routed graph run for every sample, on its route or not; their use shows in the flow.

    Args:
        net: The network; its training mode is kept, and its buffers, such as the statistics of batch normalization.
        inputs: The arguments of the call.
        tau: See :func:`dormant_units`.
        share: See :func:`effective_rank`.
        keywords: The keywords of the call, for instance ``sample=False`` for the best routes.

    Example:
        >>> net = build("brc", 39, 10, 8, width=32)
        >>> measures = dynroute.plasticity.measure(net, torch.randn(256, 39), torch.arange(256) % 10)
        >>> measures.features, measures.rank > 16, measures.dormant < 0.1, list(measures.layers)
        (32, True, True, ['encoder.layer.2', 'blocks.0.body.2', 'blocks.1.body.2'])
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"`net` must be a module, got {shown(net)}.")
    graphs = any(isinstance(part, RoutedGraph) for part in net.modules())
    recording: AbstractContextManager[Mapping[str, Record]] = record(net) if graphs else nullcontext({})
    with backend("reference"), _kept_buffers(net), _watched(net) as (units, layer_inputs), recording as routes:
        net(*inputs, **keywords)
    masks = {
        name: dormant_units(outputs, tau=tau) if outputs.isfinite().all() else outputs.new_full(outputs.shape[-1:], nan)
        for name, outputs in units.items()
    }
    total = sum(mask.numel() for mask in masks.values())
    features = _features(layer_inputs, getattr(net, "out_features", None))
    return Plasticity(
        dormant=sum(float(mask.sum()) for mask in masks.values()) / total if total else nan,
        layers={name: float(mask.float().mean()) for name, mask in masks.items()},
        rank=0 if features is None else effective_rank(features, share=share),
        features=0 if features is None else features.shape[-1],
        flow={name: _mean_flow(layer) for name, layer in routes.items()},
    )


def _mean_flow(layer: Record) -> Tensor:
    """The mean over the samples of all passes, whose batches may differ in shape."""
    return torch.cat([flow(layer.topology, route).flatten(0, -2) for route in layer.passes]).mean(dim=0)


@contextmanager
def _kept_buffers(net: nn.Module) -> Iterator[None]:
    """Runs a network with copies of its buffers, since a pass in training mode moves running statistics."""
    parts = [part for part in net.modules() if isinstance(part._buffers, dict)]  # TorchScript's are of another type
    kept = [(part, {n: b for n, b in part._buffers.items() if b is not None and not is_lazy(b)}) for part in parts]
    copies = {buffer: buffer.clone() for _, buffers in kept for buffer in buffers.values()}
    try:
        for part, buffers in kept:
            part._buffers.update({name: copies[buffer] for name, buffer in buffers.items()})
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)


class _LayerInput(NamedTuple):
    """The input of a linear layer."""

    tensor: Tensor
    """The tensor itself, which tells whether two layers read the same."""

    values: Tensor
    """A copy of its values when the layer ran."""

    width: int
    """The width of the output."""


@contextmanager
def _watched(net: nn.Module) -> Iterator[tuple[dict[str, Tensor], list[_LayerInput]]]:
    """Collects the outputs of activations by name, and the inputs of linear layers.

    They are copies, since the network may change its tensors in place. Units are moved to the last dimension.
    """
    units: dict[str, Tensor] = {}
    layer_inputs: list[_LayerInput] = []
    out_features = getattr(net, "out_features", None)
    behind_channels = 0  # the dimensions behind the channels of the last convolution or linear layer

    def keep_output(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            label, count = name, 1
            while label in units:  # the module was called before
                count += 1
                label = f"{name} ({count})"
            spatial = behind_channels if output.dim() > behind_channels + 1 else 0
            units[label] = output.movedim(-1 - spatial, -1).clone()

        return hook

    def keep_input(module: nn.Module, inputs: Any, keywords: Any, output: Tensor) -> None:
        nonlocal behind_channels
        behind_channels = 0
        layer_inputs[:] = [each for each in layer_inputs if each.width == out_features]  # and the last, see _features
        read = inputs[0] if inputs else keywords["input" if isinstance(module, nn.Linear) else "x"]
        layer_inputs.append(_LayerInput(read, read.clone(), output.shape[-1]))

    def keep_dimensions(module: _ConvNd, inputs: Any, output: Tensor) -> None:
        nonlocal behind_channels
        behind_channels = len(module.kernel_size)

    handles = []
    routers = [part.router for part in net.modules() if isinstance(part, RoutedGraph)]
    routers += [part for part in net.modules() if isinstance(part, Router)]
    named = [(f"{name}." if name else "", part) for name, part in net.named_modules(remove_duplicate=False)]
    places = tuple(name for name, part in named if part in routers)
    elsewhere = {part for name, part in named if not name.startswith(places)}  # such as a trunk that a router shares
    routing = {part for router in routers for part in router.modules()} - elsewhere
    for name, part in net.named_modules():
        if part in routing:
            continue
        if isinstance(part, ACTIVATIONS):
            handles.append(part.register_forward_hook(keep_output(name)))
        elif isinstance(part, (nn.Linear, CompositionalLinear)):
            handles.append(part.register_forward_hook(keep_input, with_kwargs=True))
        elif isinstance(part, _ConvNd):
            handles.append(part.register_forward_hook(keep_dimensions))
    try:
        yield units, layer_inputs
    finally:
        for handle in handles:
            handle.remove()


def _features(layer_inputs: list[_LayerInput], out_features: int | None) -> Tensor | None:
    """The distinct inputs of the output layers, concatenated; a layer of tokens reads other rows than the last."""
    last = [each for each in layer_inputs if each.width == out_features] or layer_inputs[-1:]
    distinct = {id(each.tensor): each.values.reshape(-1, each.values.shape[-1]) for each in last}
    alike = [rows for rows in distinct.values() if len(rows) == len(distinct[id(last[-1].tensor)])]
    return torch.cat(alike, dim=-1) if alike else None


def _rows(name: str, values: Tensor) -> Tensor:
    check_tensor(name, values)
    if not values.is_floating_point() or values.dim() < 2 or not values.numel():
        raise ValueError(
            f"`{name}` must be a floating tensor with shape (*, n), a row for each sample and at least one, got "
            f"{values.dtype} with shape {tuple(values.shape)}."
        )
    rows = values.detach().reshape(-1, values.shape[-1])
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
