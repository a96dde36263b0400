"""Freezing modules while routers learn to use them, for instance for a new task."""

from types import TracebackType
from typing import Self

from torch import nn

from .arguments import check_flag, shown
from .levels import ModelRouting, OutputRouting, RoutedGraph

__all__ = ["Frozen", "freeze_modules"]


class Frozen:
    """The parameters that :func:`freeze_modules` froze; a ``with`` block undoes it at its end.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 4, 2)
        >>> frozen: dynroute.Frozen = dynroute.freeze_modules(net)
        >>> frozen.undo()
        >>> all(parameter.requires_grad for parameter in net.parameters())
        True
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        """The parameters by name, without those that were frozen before."""
        for parameter in parameters.values():
            parameter.requires_grad_(False)

    def undo(self) -> None:
        """Lets the parameters learn again."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters.values())
        return f"Frozen({count:,} numbers in {len(self.parameters)} parameters)"


def freeze_modules(net: nn.Module, *, heads: bool = False) -> Frozen:
    """Freezes the modules of routed graphs, shared networks included, so that only their routers learn.

    Optimizers skip parameters without a gradient. Parts outside of routed graphs, such as the embedding of a task, keep
    learning; ``requires_grad_(False)`` freezes those. Batch normalization in frozen modules still moves its running
    statistics in training mode; call ``.eval()`` of those modules after each ``net.train()`` to keep them.

    Args:
        net: A routed graph, or a model that contains some.
        heads: Whether outputs keep learning too: the last module of each graph, and all heads of an
            :class:`OutputRouting`.

    Returns:
        The frozen parameters, with a method to undo it.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 4, 2)
        >>> dynroute.freeze_modules(net, heads=True)
        Frozen(264 numbers in 8 parameters)
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad][:3]
        ['nodes.4.weight', 'nodes.4.bias', 'router.layers.0.weight']
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"`net` must be a routed graph or a model that contains some, got {shown(net)}.")
    check_flag("heads", heads)
    graphs = [part for part in net.modules() if isinstance(part, RoutedGraph)]
    if not graphs:
        raise ValueError(f"`net` must contain a routed graph, a {type(net).__name__} has none.")
    # The router of a graph nested in a module of another graph is among the parameters of that module.
    learning = {id(p) for graph in graphs for p in graph.router.parameters()}
    if heads:
        learning |= {id(p) for graph in graphs for p in _heads(graph).parameters()}
    routed = {id(p) for graph in graphs for part in _modules(graph) for p in part.parameters()} - learning
    if not routed:
        raise ValueError(
            f"`net` must route between modules with parameters to freeze, a {type(net).__name__} has none"
            f"{' beside heads' if heads else ''}; `requires_grad_(False)` freezes other parts."
        )
    return Frozen({name: p for name, p in net.named_parameters() if id(p) in routed and p.requires_grad})


def _modules(graph: RoutedGraph) -> list[nn.Module]:
    """The modules that a graph runs."""
    return [graph.nodes, graph.shared] if isinstance(graph, ModelRouting) else [graph.nodes]


def _heads(graph: RoutedGraph) -> nn.Module:
    """The modules of a graph that give its output."""
    return graph.nodes if isinstance(graph, OutputRouting) else graph.nodes[-1]
