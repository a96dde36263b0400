"""What is asked of a network, one of the user's own included, and how it is called.

A network is a module whose ``forward(state, task)`` returns a tensor of shape ``[batch, out_features]``; `state` has
shape ``[batch, state_features]`` and `task` holds one-hots of shape ``[batch, num_tasks]``. One that has routes also
takes the keywords `path`, `temperature`, `sample`, `generator` and `return_route` of
:meth:`dynroute.networks.Network.forward`, and returns the pair of output and route where `return_route` asks for it.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from dynroute import Route
from dynroute.arguments import shown

__all__ = ["check_factory", "run_network", "takes_routing", "try_network"]

ROUTING = ("path", "temperature", "sample", "generator", "return_route")
"""The keywords of routing that actor and critics give to a network."""


def check_factory(network: Any) -> None:
    """Raises an error unless something is the name of a network, or makes networks."""
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


def takes_routing(net: nn.Module) -> bool:
    """Whether a network takes the keywords of routing; one that takes some of them alone is refused.

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


def run_network(
    net: nn.Module, state: Tensor, task: Tensor, *, routing: bool, **keywords: Any
) -> tuple[Tensor, Route | None]:
    """The output of a network and its route, None from a network without.

    Args:
        net: The network.
        state: States with shape ``[batch, state_features]``.
        task: One-hots with shape ``[batch, num_tasks]``.
        routing: What :func:`takes_routing` says of it.
        keywords: The keywords of routing, which only a network that takes them gets.
    """
    output = net(state, task, return_route=True, **keywords) if routing else net(state, task)
    return output if isinstance(output, tuple) else (output, None)


def try_network(net: Any, state_features: int, num_tasks: int, out_features: int) -> None:
    """Raises an error unless a network of the user computes outputs of the right shape.

    It is tried on two states of zeros in evaluation mode; nothing that is drawn for that is missed later.
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
