"""Gradients that can be differentiated again, for the backends that write their own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..topology import Topology
from .linear import LinearNode
from .reference import run_reference

__all__ = ["differentiable_gradients"]


def differentiable_gradients(
    linear: Sequence[LinearNode],
    topology: Topology,
    wanted: Sequence[bool],
    gradient: Tensor,
    x: Tensor,
    weights: Tensor,
    suitable: Tensor | None,
    parameters: Sequence[Tensor | None],
    *,
    shortcuts: Sequence[bool],
    protect: str,
) -> tuple[Tensor | None, ...]:
    """The gradients of the reference, for the inputs of the fused functions.

    Args:
        linear: The nodes but the last.
        topology: The graph.
        wanted: Which inputs need a gradient, the first of them being no tensor.
        gradient: The gradient of what the last node mixes.
        x: The input.
        weights: The weights of the route.
        suitable: Which sources keep their gradient.
        parameters: Weight and bias of each node.
        shortcuts: Whether each node adds its input to its output.
        protect: How the gradient of an unsuitable source is stopped.
    """

    def node(i: int) -> Callable[[Tensor], Tensor]:
        weight, bias = parameters[2 * i : 2 * i + 2]
        before, behind = linear[i].before, linear[i].behind
        assert weight is not None
        return lambda mixed: behind.forward(nn.functional.linear(before.forward(mixed.clone()), weight, bias))

    mixed = run_reference(
        [*map(node, range(len(linear))), nn.Identity()],
        topology,
        x,
        weights,
        suitable,
        shortcuts=shortcuts,
        protect=protect,
    )
    inputs = (None, x, weights, None, *parameters)
    needed = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want and tensor is not None]
    grads = iter(torch.autograd.grad(mixed, needed, gradient, create_graph=True, materialize_grads=True))
    return tuple(
        next(grads) if want and tensor is not None else None for tensor, want in zip(inputs, wanted, strict=True)
    )
