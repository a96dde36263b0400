"""Which modules the fast backends understand: a linear layer with an activation before or behind it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..topology import Topology

__all__ = ["ACTIVATIONS", "IDENTITY", "Activation", "LinearNode", "linear_nodes"]


@dataclass(frozen=True)
class Activation:
    """An activation and its derivative.

    Attributes:
        forward: The activation, which may overwrite its input unless the derivative reads it.
        backward: The gradient of the input, from the gradient of the output and what the derivative reads.
        from_input: Whether the derivative reads the input of the activation; its output otherwise.
        condense: Makes of the output, where it would be kept for the derivative alone, something smaller that does.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    from_input: bool = False
    condense: Callable[[Tensor], Tensor] = lambda output: output


def _relu_backward(gradient: Tensor, output: Tensor) -> Tensor:
    if output.dtype == torch.bool:
        return gradient.masked_fill(output, 0.0)
    backward: Tensor = _aten.threshold_backward(gradient, output, 0)
    return backward


_aten = torch.ops.aten

IDENTITY = Activation(lambda x: x, lambda gradient, output: gradient, condense=lambda output: output.new_empty(0))
"""No activation."""

ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Identity: IDENTITY,
    nn.ReLU: Activation(torch.relu_, _relu_backward, condense=lambda output: output <= 0),
    nn.Sigmoid: Activation(torch.sigmoid_, lambda gradient, output: _aten.sigmoid_backward(gradient, output)),
    nn.SiLU: Activation(
        nn.functional.silu, lambda gradient, entered: _aten.silu_backward(gradient, entered), from_input=True
    ),
    nn.Tanh: Activation(torch.tanh_, lambda gradient, output: _aten.tanh_backward(gradient, output)),
}
"""The activations that the fast backends know."""


@dataclass(frozen=True)
class LinearNode:
    """A node that computes ``behind(linear(before(x)))``."""

    linear: nn.Linear
    before: Activation
    behind: Activation


def linear_nodes(nodes: Sequence[nn.Module], topology: Topology) -> list[LinearNode] | str:
    """Reads the nodes of a graph, the output node left out, as equal linear modules.

    Returns:
        The nodes, or a sentence that says why they are not equal linear modules.
    """
    found: list[LinearNode] = []
    for i, module in enumerate(nodes[:-1]):
        node = _linear_node(module)
        if node is None:
            known = ", ".join(activation.__name__ for activation in ACTIVATIONS)
            return f"module {i} is no plain nn.Linear with a known activation ({known}), or has hooks"
        found.append(node)

    width = found[0].linear.out_features
    for i, node in enumerate(found):
        inside = node.linear.in_features == width or not topology.parents[i]
        if node.linear.out_features != width or not inside:
            return f"module {i} maps {node.linear.in_features} -> {node.linear.out_features}, not {width} -> {width}"
    return found


def _linear_node(module: nn.Module) -> LinearNode | None:
    layers = list(module) if type(module) is nn.Sequential else [module]
    position = next((i for i, layer in enumerate(layers) if type(layer) is nn.Linear), None)
    if position is None or len(layers) > 3 or any(map(_is_hooked, [module, *layers])):
        return None
    before, behind = layers[:position], layers[position + 1 :]
    if before and getattr(before[0], "inplace", False):  # overwrites the mix that a shortcut adds
        return None
    if len(before) > 1 or len(behind) > 1 or any(type(layer) not in ACTIVATIONS for layer in before + behind):
        return None
    linear = layers[position]
    assert isinstance(linear, nn.Linear)
    known = [ACTIVATIONS[type(side[0])] if side else IDENTITY for side in (before, behind)]
    return LinearNode(linear, *known)


def _is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    everywhere = torch.nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
        or everywhere._global_backward_hooks
        or everywhere._global_backward_pre_hooks
    )
