"""How much of a network's capacity is in use: dormant units, the rank of its features, and the load of its modules.

:func:`measure` computes all of them for one batch; the functions that it calls take tensors of your own.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .arguments import check_tensor, shown
from .compositional import CompositionalLinear
from .execution import backend
from .inspect import load
from .levels import RoutedGraph
from .recording import Record, record

__all__ = ["ACTIVATIONS", "Capacity", "dormant_units", "effective_rank", "measure"]

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
"""The modules whose outputs :func:`measure` takes for units."""


class Capacity(NamedTuple):
    """How much of a network is in use on a batch, as :func:`measure` finds it."""

    dormant: float
    """The share of all units that are dormant; NaN in a network without activations that are modules."""

    layers: dict[str, float]
    """The share of dormant units of each activation, by its name."""

    rank: int
    """The effective rank of the features, which the output layers read; 0 in a network without such a layer."""

    features: int
    """The number of these features."""

    load: dict[str, Tensor]
    """The mean :func:`~dynroute.inspect.load` of each node of each routed layer, by the name of the layer."""


def dormant_units(activations: Tensor, *, tau: float = 0.025) -> Tensor:
    r"""Which units of a layer hardly answer to any sample (Sokar et al., 2023).

    .. math:: \frac{\operatorname{mean}_b |h_{bi}|}{\operatorname{mean}_{bk} |h_{bk}|} \le \tau

    Args:
        activations: What the layer puts out, with shape ``[*, units]``.
        tau: The largest score of a dormant unit; 0 for units that are exactly zero.

    Returns:
        The dormant units, boolean with shape ``[units]``; all of them in a layer that is zero everywhere.

    Example:
        >>> dynroute.capacity.dormant_units(torch.tensor([[0.0, 2.0, 0.01], [0.0, 4.0, 0.0]]))
        tensor([ True, False,  True])
    """
    rows = _rows("activations", activations)
    if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not tau >= 0:
        raise ValueError(f"`tau` must be a number of at least 0, got {shown(tau)}.")
    size = rows.abs().mean(dim=0)
    return size <= tau * size.mean()


def effective_rank(features: Tensor, *, share: float = 0.99) -> int:
    r"""How many directions features take up: the srank of Kumar et al. (2021).

    .. math:: \min \Big\{ k : \sum_{i \le k} \sigma_i \ge \texttt{share} \cdot \sum_i \sigma_i \Big\}

    :math:`\sigma_1 \ge \sigma_2 \ge \dots` are the singular values of the matrix of features, a row for each sample,
    whose mean is not subtracted. No more than the number of samples is ever found.

    Args:
        features: The features, with shape ``[*, n]``.
        share: The share of the sum of singular values, in (0, 1].

    Returns:
        The rank; 0 where all features are zero, or where one is not finite.

    Example:
        >>> dynroute.capacity.effective_rank(torch.diag(torch.tensor([5.0, 4.0, 0.01])))
        2
    """
    rows = _rows("features", features)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"`share` must be a number in (0, 1], got {shown(share)}.")
    if not rows.isfinite().all():
        return 0
    values = torch.linalg.svdvals(rows.double())
    # As many as leave less than the rest out; rounding errors of a sum count for nothing.
    rest = values.flip(0).cumsum(0).flip(0)
    total = values.sum()
    return int((rest > ((1 - share) + torch.finfo(values.dtype).eps * values.numel()) * total).sum())


@torch.no_grad()
def measure(net: nn.Module, *inputs: Any, tau: float = 0.025, share: float = 0.99, **keywords: Any) -> Capacity:
    """Runs a network on a batch and tells how much of its capacity is in use.

    Units are the outputs of :data:`ACTIVATIONS` that are modules. Features are what the output layers read, side by
    side where several read different ones: the linear layers that are as wide as `out_features` of the network, or the
    last one that runs where it has no such attribute. Every module of a routed graph sees every sample, on its route or
    not: how much a module is used is its load.

    Args:
        net: The network, in the mode that it is in.
        inputs: What it is called with.
        tau: See :func:`dormant_units`.
        share: See :func:`effective_rank`.
        keywords: The keywords it is called with, for instance ``sample=False`` for the best routes.

    Example:
        >>> net = build("brc", 39, 10, 8, width=32)
        >>> found = dynroute.capacity.measure(net, torch.randn(256, 39), torch.arange(256) % 10)
        >>> found.features, found.rank > 16, found.dormant < 0.1, list(found.layers)
        (32, True, True, ['encoder.layer.2', 'blocks.0.body.2', 'blocks.1.body.2'])
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"`net` must be a module, got {shown(net)}.")
    graphs = any(isinstance(part, RoutedGraph) for part in net.modules())
    recording: AbstractContextManager[Mapping[str, Record]] = record(net) if graphs else nullcontext({})
    with backend("reference"), _watched(net) as (units, read), recording as routes:
        net(*inputs, **keywords)
    masks = {name: dormant_units(outputs, tau=tau) for name, outputs in units.items()}
    total = sum(mask.numel() for mask in masks.values())
    features = _features(read, getattr(net, "out_features", None))
    return Capacity(
        dormant=sum(int(mask.sum()) for mask in masks.values()) / total if total else float("nan"),
        layers={name: float(mask.float().mean()) for name, mask in masks.items()},
        rank=0 if features is None else effective_rank(features, share=share),
        features=0 if features is None else features.shape[-1],
        load={name: load(layer.topology, layer.route).flatten(0, -2).mean(dim=0) for name, layer in routes.items()},
    )


@contextmanager
def _watched(net: nn.Module) -> Iterator[tuple[dict[str, Tensor], list[tuple[Tensor, int]]]]:
    """Collects what activations put out, by name, and what linear layers read, with the width of their output."""
    units: dict[str, Tensor] = {}
    read: list[tuple[Tensor, int]] = []

    def keep_output(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            place, count = name, 1
            while place in units:  # a module that is called again
                count += 1
                place = f"{name} ({count})"
            units[place] = output

        return hook

    def keep_input(module: nn.Module, inputs: Any, output: Tensor) -> None:
        read.append((inputs[0], output.shape[-1]))

    handles = []
    for name, part in net.named_modules():
        if isinstance(part, ACTIVATIONS):
            handles.append(part.register_forward_hook(keep_output(name)))
        elif isinstance(part, (nn.Linear, CompositionalLinear)):
            handles.append(part.register_forward_hook(keep_input))
    try:
        yield units, read
    finally:
        for handle in handles:
            handle.remove()


def _features(read: list[tuple[Tensor, int]], out_features: int | None) -> Tensor | None:
    """The tensors that the output layers read, side by side, each once."""
    inputs = [each for each, width in read if width == out_features] or [each for each, _ in read[-1:]]
    different = list({id(each): each for each in inputs}.values())
    if not different:
        return None
    return torch.cat([each.reshape(-1, each.shape[-1]) for each in different], dim=-1)


def _rows(name: str, values: Tensor) -> Tensor:
    check_tensor(name, values)
    if not values.is_floating_point() or values.dim() < 2 or not values.numel():
        raise ValueError(
            f"`{name}` must be a floating tensor with shape (*, n), a row for each sample and at least one, got "
            f"{values.dtype} with shape {tuple(values.shape)}."
        )
    rows = values.detach().reshape(-1, values.shape[-1])
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
