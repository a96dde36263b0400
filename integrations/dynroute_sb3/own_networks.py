"""The interface of networks, including your own, and calls of it.

A network is a module whose ``forward(state, task)`` returns a tensor of shape ``[batch, out_features]``; `state` has
shape ``[batch, state_features]`` and `task` holds one-hots of shape ``[batch, num_tasks]``. A network with routes also
takes the keywords `path`, `temperature`, `sample`, `generator` and `return_route` of
:meth:`dynroute.networks.Network.forward`, and returns output and route if `return_route` is True.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynroute import Route
from dynroute.arguments import shown
from dynroute.networks import Network

__all__ = ["check_apart", "check_factory", "run_network", "samples_routes", "takes_routing", "try_network"]

ROUTING = ("path", "temperature", "sample", "generator", "return_route")
"""The routing keywords that actor and critics pass to a network."""


def check_factory(network: Any) -> None:
    """Raises an error unless a value is the name of a network or a function that makes networks."""
    if isinstance(network, nn.Module):
        raise TypeError(
            f"`network` must make networks, got a {type(network).__name__} that is made: actor and critics are "
            "networks of their own; pass the class, or a function of (state_features, num_tasks, out_features, "
            "**network_kwargs)."
        )
    if not isinstance(network, str) and not callable(network):
        raise TypeError(
            "`network` must be a name of dynroute.networks.available(), or a class or function of (state_features, "
            f"num_tasks, out_features, **network_kwargs), got {shown(network)}."
        )


def check_apart(nets: Sequence[nn.Module]) -> None:
    """Raises an error unless actor and critics are networks of their own."""
    if len({id(net) for net in nets}) < len(nets):
        raise ValueError(
            f"`network` must make a new network at each call, it made the same {type(nets[0]).__name__} again: actor "
            "and critics are networks of their own."
        )


def takes_routing(net: nn.Module) -> bool:
    """Whether a network takes the routing keywords; raises an error if it takes only some of them.

    Example:
        >>> from dynroute_sb3.own_networks import takes_routing
        >>> takes_routing(torch.nn.Bilinear(4, 2, 1))
        False
    """
    parameters = inspect.signature(net.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return True
    taken = [name for name in ROUTING if name in parameters]
    if taken and len(taken) < len(ROUTING):
        missing = [name for name in ROUTING if name not in taken]
        raise TypeError(
            f"`forward` of a {type(net).__name__} must take (state, task) alone, or all keywords of routing, got "
            f"{', '.join(taken)} without {', '.join(missing)}; add these, or **kwargs."
        )
    return bool(taken)


def samples_routes(net: nn.Module) -> bool:
    """Whether a network samples paths, at a temperature; a network of a user does if it takes the routing keywords.

    Example:
        >>> from dynroute import networks
        >>> from dynroute_sb3.own_networks import samples_routes
        >>> samples_routes(networks.build("d2r", 4, 2, 1)), samples_routes(networks.build("sm", 4, 2, 1))
        (True, False)
    """
    if not isinstance(net, Network):
        return takes_routing(net)
    return net.routed is not None and "temperature" in inspect.signature(net.routed.gate.choose).parameters


def run_network(
    net: nn.Module, state: Tensor, task: Tensor, *, routing: bool, **keywords: Any
) -> tuple[Tensor, Route | None]:
    """Runs a network and returns its output and its route, which is None for a network without routes.

    Args:
        net: The network.
        state: States with shape ``[batch, state_features]``.
        task: One-hots with shape ``[batch, num_tasks]``.
        routing: The result of :func:`takes_routing` for the network.
        keywords: The routing keywords, which are dropped if the network does not take them.
    """
    output = net(state, task, return_route=True, **keywords) if routing else net(state, task)
    return output if isinstance(output, tuple) else (output, None)


def try_network(net: Any, state_features: int, num_tasks: int, out_features: int) -> None:
    """Raises an error unless a user's network computes outputs of the right shape.

    It runs on two states of zeros in evaluation mode and does not change the state of random generators.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"`network` must make modules of torch, it made {shown(net)}.")
    parameter = next(net.parameters(), None)
    if parameter is None:
        raise ValueError(f"`network` must make networks with parameters to learn, got a {type(net).__name__} without.")
    state, task = torch.zeros(2, state_features), torch.eye(num_tasks)[[0, num_tasks - 1]]
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            output, _ = run_network(net, *(part.to(parameter) for part in (state, task)), routing=takes_routing(net))
    except Exception as error:
        error.add_note(
            f"`network` made a {type(net).__name__}, which was tried on a state with shape {tuple(state.shape)} and a "
            f"task with shape {tuple(task.shape)}."
        )
        raise
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(output, Tensor) or output.shape != (2, out_features):
        raise ValueError(
            f"`network` must make networks whose forward(state, task) returns a tensor with shape (batch, "
            f"{out_features}), as out_features={out_features} asks for, got {shown(output)} of a {type(net).__name__} "
            "for a batch of 2."
        )
