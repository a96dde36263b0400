"""The reference backend: the equations of a routed graph node by node, for any modules and the tests of others.

The paper and its released code differ in the stopped branch of Eq. 10; `protect` selects one:

====== ================================= =============================
mode   the module reads                  its shortcut adds
====== ================================= =============================
rsg    the protected mix (Eq. 11-12)     the protected mix
input  the protected mix                 the plain mix (released code)
sg     the mix with plain stops (Eq. 9)  that same mix
none   the plain mix (Eq. 3)             the plain mix
====== ================================= =============================
"""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ..functional import rsg
from .plan import Pass

__all__ = ["check_shortcut", "check_sources", "refuse_output", "run_reference"]


def run_reference(call: Pass) -> Tensor:
    """Runs a routed graph and returns the output of its last node."""
    topology, weights, suitable, protect = call.plan.topology, call.weights, call.suitable, call.protect
    shortcuts = call.plan.shortcuts
    outputs: list[Tensor] = []  # m^j
    stopped: list[Tensor] = []  # rsg[m^j], or sg[m^j] without a shortcut

    for node, module in enumerate(call.nodes):
        parents = topology.parents[node]
        if not parents:
            output = module(call.x)
            if not isinstance(output, Tensor):
                refuse_output(f"node {node}", output)
            outputs.append(output)
            if suitable is not None:
                stopped.append(outputs[-1].detach())
            continue

        t, width = topology.destinations.index(node), len(parents)
        sources = _stack(outputs, parents, node, batch_dims=weights.dim() - 2)
        read = sources
        if suitable is not None:
            keep = _spread(suitable[..., t, :width], sources)
            read = torch.where(keep, sources, _stack(stopped, parents, node, batch_dims=weights.dim() - 2))

        mixed = _mix(weights[..., t, :width], read)
        carried = mixed if protect != "input" or suitable is None else _mix(weights[..., t, :width], sources)
        output = module(mixed)
        if not isinstance(output, Tensor):
            refuse_output(f"node {node}", output)
        if shortcuts[node]:
            check_shortcut(node, carried, output)
        outputs.append(carried + output if shortcuts[node] else output)
        if suitable is not None:
            plainly = protect == "sg" or not shortcuts[node]
            stopped.append(outputs[-1].detach() if plainly else rsg(outputs[-1], carried))

    return outputs[-1]


def refuse_output(name: str, output: object) -> NoReturn:
    """Raises the error for a module that does not return a tensor."""
    hint = "; wrap a recurrent layer so that it returns its output alone" if isinstance(output, tuple) else ""
    raise TypeError(f"{name} must return a tensor, got {type(output).__name__}{hint}.")


def check_shortcut(node: int, carried: Tensor, output: Tensor) -> None:
    """Raises an error unless a module with a shortcut keeps the shape of its input."""
    if output.shape != carried.shape:
        raise ValueError(
            f"`modules[{node}]` must keep the shape of its input to have a shortcut, "
            f"got {tuple(carried.shape)} -> {tuple(output.shape)}; pass shortcut=False or equal widths."
        )


def check_sources(sources: Sequence[Tensor], parents: Sequence[int], node: int) -> None:
    """Raises an error unless the modules that a node may read return equal shapes."""
    for j, source in zip(parents, sources, strict=True):
        if source.shape != sources[0].shape:
            raise ValueError(
                f"`modules` that feed one node must give equal shapes: node {node} reads {tuple(sources[0].shape)} "
                f"from module {parents[0]} and {tuple(source.shape)} from module {j}; make their widths equal."
            )


def _stack(outputs: list[Tensor], parents: Sequence[int], node: int, *, batch_dims: int) -> Tensor:
    """The outputs that a node may read, stacked behind the batch dimensions."""
    sources = [outputs[j] for j in parents]
    check_sources(sources, parents, node)
    return torch.stack(sources, dim=batch_dims)


def _mix(weights: Tensor, sources: Tensor) -> Tensor:
    """The weighted sum of Eq. 3, in the type of the sources."""
    batch_dims = weights.dim() - 1
    weights = _spread(weights, sources)
    read = sources.masked_fill(weights == 0, 0.0)  # a NaN of a source without weight must not matter
    return (weights * read).sum(dim=batch_dims).to(sources.dtype)


def _spread(slots: Tensor, sources: Tensor) -> Tensor:
    """Adds a dimension for each feature dimension of the sources."""
    return slots.reshape(slots.shape + (1,) * (sources.dim() - slots.dim()))
