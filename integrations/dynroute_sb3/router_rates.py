"""A learning rate for routers alone."""

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from dynroute import RoutedGraph

__all__ = ["router_parameters", "separate_routers", "set_router_rate"]


def router_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of the routers of all routed graphs in a network.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), ModelRouting.ffn(8, 16, 4))
        >>> [tuple(parameter.shape) for parameter in router_parameters(net)]
        [(4, 8), (4,)]
    """
    graphs = [module for module in net.modules() if isinstance(module, RoutedGraph)]
    return list(dict.fromkeys(parameter for graph in graphs for parameter in graph.router.parameters()))


def separate_routers(optimizer: Optimizer, nets: Iterable[nn.Module], rate: float) -> None:
    """Moves the parameters of routers to a second group of an optimizer, which must have one group."""
    routers = {parameter for net in nets for parameter in router_parameters(net)}
    (group,) = optimizer.param_groups
    parameters = group["params"]
    group["params"] = [parameter for parameter in parameters if parameter not in routers]
    chosen = [parameter for parameter in parameters if parameter in routers]
    optimizer.add_param_group({**group, "params": chosen, "lr": rate})


def set_router_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of the group that :func:`separate_routers` made."""
    optimizer.param_groups[1]["lr"] = rate  # more groups may have been added behind it
