"""The decision of a gate: the logits, the chosen sources and the weights that mix them."""

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .arguments import check_count, shown

__all__ = ["Route", "check_route", "listeners", "path_of", "report"]


class Route(NamedTuple):
    """The decision of a gate for a batch of samples.

    All three tensors have shape ``[*, T, S]``: a row for each node that reads other nodes, a column for each of its
    sources. Slots that do not exist hold a logit of -inf, a path of False and a weight of exactly 0.

    Example:
        >>> route = Soft()(torch.zeros(7, 2, 2))
        >>> Route(*(tensor[:3] for tensor in route)).weights.shape  # of the first three samples
        torch.Size([3, 2, 2])
    """

    logits: Tensor
    """The router's clean scores, z in the paper, in float32 or wider."""

    path: Tensor
    """The chosen sources, d in the paper, boolean."""

    weights: Tensor
    """The weights that mix the chosen sources, p in the paper."""

    def sample(self, *index: int) -> "Route":
        """The route of one sample; ``route[i]`` is a field of the tuple, not a sample.

        Args:
            index: The position of the sample in each batch dimension.

        Example:
            >>> Soft()(torch.zeros(7, 2, 2)).sample(3).path.shape
            torch.Size([2, 2])
        """
        batch = self.path.shape[:-2]
        if len(index) > len(batch):
            raise ValueError(f"`index` must not be longer than the batch shape {tuple(batch)}, got {index}.")
        for i, (place, size) in enumerate(zip(index, batch, strict=False)):
            check_count(f"index[{i}]", place, at_least=-size)
            if place >= size:
                raise ValueError(f"`index[{i}]` must be less than {size}, the size of the batch, got {place}.")
        return Route(self.logits[index], self.path[index], self.weights[index])


def check_route(route: Route) -> None:
    """Raises an error unless a value is a route."""
    if not isinstance(route, Route):
        raise TypeError(
            f"`route` must be a Route, got {shown(route)}; `net.route(context)` makes one; "
            "`net.route(context, path=path)` makes one of a stored path."
        )


def path_of(path: Tensor | Route) -> Tensor:
    """Returns the path of a route, or a path as it is."""
    return path.path if isinstance(path, Route) else path


Listener = Callable[[nn.Module, Route], None]


class _ThreadListeners(threading.local):
    """The listeners of the current thread."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []


_thread_listeners = _ThreadListeners()


def listeners() -> list[Listener]:
    """The functions that :func:`report` calls in this thread, with the graph and its route, at every pass.

    :func:`dynroute.record` adds one while its block runs.

    Example:
        >>> dynroute.route.listeners()
        []
    """
    return _thread_listeners.listeners


def report(graph: nn.Module, route: Route) -> None:
    """Passes a graph and its route to all :func:`listeners`; does nothing in compiled code.

    Every forward pass of a :class:`dynroute.RoutedGraph` calls it.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 4, 2)
        >>> dynroute.route.report(net, net.route(torch.randn(3, 5)))
    """
    if not torch.compiler.is_compiling():
        for listener in _thread_listeners.listeners:
            listener(graph, route)
