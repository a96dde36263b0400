"""The linear form of modules that the fast backends support: linear layers with activations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import hooks_everywhere, is_autocast, is_hooked
from ..plan import Pass

__all__ = [
    "IDENTITY",
    "Activation",
    "LinearNode",
    "Perceptron",
    "activation_of",
    "computed_type",
    "entering",
    "lean_modules",
    "linear_node",
    "linear_nodes",
    "perceptrons",
    "row_multiple",
]


@dataclass(frozen=True)
class Activation:
    """An activation and its derivative.

    Attributes:
        name: The name in kernels.
        forward: The activation, which may overwrite its input unless the derivative reads it.
        backward: The gradient of the input, from the gradient of the output and the tensor that the derivative reads;
            written to a third tensor if given, which may be the gradient of the output.
        from_input: Whether the derivative reads the input of the activation, and not its output.
        condense: Turns an output that is stored only for the derivative into a smaller tensor.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    from_input: bool = False
    condense: Callable[[Tensor], Tensor] = lambda output: output


def _relu_backward(gradient: Tensor, output: Tensor, out: Tensor | None) -> Tensor:
    # On a CPU threshold_backward takes a tenth of the time of masked_fill, which branches at each element.
    if out is None:
        result: Tensor = _aten.threshold_backward(gradient, output, 0)
    else:
        result = _aten.threshold_backward.grad_input(gradient, output, 0, grad_input=out)
    return result


def _written(derivative: Any) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The derivative of an operator with and without an output tensor."""

    def backward(gradient: Tensor, read: Tensor, out: Tensor | None) -> Tensor:
        result: Tensor = (
            derivative(gradient, read) if out is None else derivative.grad_input(gradient, read, grad_input=out)
        )
        return result

    return backward


def _gelu(name: str, approximate: str) -> "Activation":
    def backward(gradient: Tensor, read: Tensor, out: Tensor | None) -> Tensor:
        if out is None:
            result: Tensor = _aten.gelu_backward(gradient, read, approximate=approximate)
        else:
            result = _aten.gelu_backward.grad_input(gradient, read, approximate=approximate, grad_input=out)
        return result

    return Activation(name, lambda x: nn.functional.gelu(x, approximate=approximate), backward, from_input=True)


_aten = torch.ops.aten

IDENTITY = Activation(
    "identity", lambda x: x, lambda gradient, output, out: gradient, condense=lambda output: output.new_empty(0)
)
"""No activation."""

_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Identity: IDENTITY,
    nn.ReLU: Activation("relu", torch.relu_, _relu_backward),
    nn.Sigmoid: Activation("sigmoid", torch.sigmoid_, _written(_aten.sigmoid_backward)),
    nn.SiLU: Activation("silu", nn.functional.silu, _written(_aten.silu_backward), from_input=True),
    nn.Tanh: Activation("tanh", torch.tanh_, _written(_aten.tanh_backward)),
}
_GELU = {"none": _gelu("gelu", "none"), "tanh": _gelu("gelu_tanh", "tanh")}


def activation_of(layer: nn.Module) -> Activation | None:
    """Returns the activation of a layer; None if the fast backends do not support it."""
    if type(layer) is nn.GELU:
        return _GELU.get(layer.approximate)
    return _ACTIVATIONS.get(type(layer))


@dataclass(frozen=True, slots=True)
class LinearNode:
    """A node that computes ``behind(linear(before(x)))``."""

    linear: nn.Linear
    before: Activation
    behind: Activation

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Returns weight and bias."""
        return self.linear._parameters["weight"], self.linear._parameters["bias"]  # type: ignore[return-value]

    def __call__(self, x: Tensor) -> Tensor:
        """Computes the output of the module without the cost of calling its parts."""
        entered = x if self.before is IDENTITY else self.before.forward(x.clone())
        parameters = self.linear._parameters
        return self.behind.forward(nn.functional.linear(entered, parameters["weight"], parameters["bias"]))  # type: ignore[arg-type]


Perceptron = tuple[LinearNode, ...]
"""Consecutive linear layers, each followed by an activation or none."""


def linear_nodes(call: Pass) -> list[LinearNode] | str:
    """Returns the linear form of the nodes of a pass without the output node.

    Returns:
        The nodes, or the reason why they are not equal linear modules or do not fit the input.
    """
    nodes: list[LinearNode] = []
    for i, module in enumerate(call.nodes[:-1]):
        node = linear_node(module)
        if node is None:
            return f"module {i} is not a plain nn.Linear with {_SUPPORTED}"
        nodes.append(node)

    x, parents, width = call.x, call.plan.topology.parents, nodes[0].linear.out_features
    if obstacle := _no_vectors(call):
        return obstacle
    computed = computed_type(x)
    for i, node in enumerate(nodes):
        inside, weight = node.linear.in_features == width or not parents[i], node.linear.weight
        if node.linear.out_features != width or not inside:
            return f"module {i} maps {node.linear.in_features} -> {node.linear.out_features}, not {width} -> {width}"
        if not parents[i] and node.linear.in_features != x.shape[-1]:
            return f"module {i} reads {node.linear.in_features} features and the input has {x.shape[-1]}"
        if computed is None or not _fits(weight, computed) or not _fits(node.linear.bias, computed):
            return f"module {i} is {weight.dtype} and the input {x.dtype}, which one product cannot take"
    return nodes


def perceptrons(call: Pass) -> list[Perceptron] | str:
    """Returns the layers of the nodes of a pass that read the input, all but the output node.

    Returns:
        The perceptrons, or the reason why the nodes are not perceptrons or do not fit the input.
    """
    nodes: list[Perceptron] = []
    for i, module in enumerate(call.nodes[:-1]):
        layers = () if hooks_everywhere() else _layers(module)
        if not layers or layers[0].before is not IDENTITY:
            return f"module {i} is not a plain nn.Linear, or a sequence of them, with {_SUPPORTED}"
        nodes.append(layers)

    if obstacle := _no_vectors(call):
        return obstacle
    x, width, computed = call.x, nodes[0][-1].linear.out_features, computed_type(call.x)
    for i, layers in enumerate(nodes):
        widths = [x.shape[-1], *(layer.linear.out_features for layer in layers)]
        if widths[:-1] != [layer.linear.in_features for layer in layers]:
            return f"the layers of module {i} do not fit each other or the {x.shape[-1]} features of the input"
        if widths[-1] != width:
            return f"module {i} gives {widths[-1]} features and module 0 gives {width}"
        for layer in layers:
            if computed is None or not all(_fits(parameter, computed) for parameter in layer.parameters()):
                return (
                    f"module {i} is {layer.linear.weight.dtype} and the input {x.dtype}, which one product cannot take"
                )
    return nodes


_SUPPORTED = (
    f"a known activation (GELU, {', '.join(activation.__name__ for activation in _ACTIVATIONS)}), "
    "or has hooks or a weight that is not a plain parameter"
)


def _no_vectors(call: Pass) -> str | None:
    """The reason why the input is not one plain vector for each sample; None if it is."""
    x = call.x
    if type(x) not in (Tensor, nn.Parameter):
        return f"the input is a {type(x).__name__}, not a plain tensor"
    if x.dim() != len(call.batch) + 1:
        return f"the input {tuple(x.shape)} has more than one feature dimension behind the batch of the context"
    return None


def entering(call: Pass, nodes: Sequence[Perceptron]) -> tuple[Tensor, list[Tensor | None]]:
    """Converts the input and the parameters of each layer of each node to the type of the products."""
    dtype = computed_type(call.x)
    parameters: list[Tensor | None] = []
    for layer in chain.from_iterable(nodes):
        for parameter in layer.parameters():
            parameters.append(parameter if parameter is None or parameter.dtype is dtype else parameter.to(dtype))
    return call.x.to(dtype), parameters


def computed_type(x: Tensor) -> torch.dtype | None:
    """Returns the type of the products; None if it is not supported."""
    if is_autocast(x.device.type) and x.dtype in (torch.float32, torch.bfloat16):
        dtype = torch.get_autocast_dtype(x.device.type)
        return dtype if dtype is torch.bfloat16 or x.device.type != "cpu" else None
    return x.dtype if x.dtype in (torch.float32, torch.float64, torch.bfloat16) else None


def row_multiple(dtype: torch.dtype) -> int:
    """Returns the number to which rows of a product should be rounded up.

    On the CPU a 16-bit kernel is compiled for each number of rows, which takes several times as long as running it.
    """
    return 32 if dtype.itemsize == 2 else 1


def _fits(parameter: Tensor | None, computed: torch.dtype) -> bool:
    """Whether a parameter has the type of the products, or autocast converts it."""
    if parameter is None or parameter.dtype == computed:
        return True
    return is_autocast(parameter.device.type) and parameter.dtype in (torch.float32, torch.bfloat16)


def linear_node(module: Callable[[Tensor], Tensor]) -> LinearNode | None:
    """Returns the linear form of a module; None if it has none, or if a call does more than its forward.

    It is checked at every call, since hooks may be added and removed.
    """
    layers = () if hooks_everywhere() else _layers(module)
    return layers[0] if len(layers) == 1 else None


def lean_modules(modules: Sequence[Callable[[Tensor], Tensor]]) -> list[Callable[[Tensor], Tensor]]:
    """Replaces modules by functions that compute the same at a lower cost per call, if possible."""
    if hooks_everywhere():
        return list(modules)
    return [layers[0] if len(layers := _layers(module)) == 1 else module for module in modules]


def _layers(module: Callable[[Tensor], Tensor]) -> Perceptron:
    """The linear layers of a module, which is ``[activation] (linear [activation])+``.

    It is empty if the module is anything else, or if a call does more than its forward.
    """
    if type(module) is nn.Linear:
        return () if is_hooked(module) or not _is_plain(module) else (LinearNode(module, IDENTITY, IDENTITY),)
    if type(module) is not nn.Sequential or is_hooked(module):
        return ()
    linear: list[nn.Linear] = []
    between = [IDENTITY]  # the activation before the first layer, then the one behind each
    for part in module._modules.values():
        if part is None or is_hooked(part):
            return ()
        if type(part) is nn.Linear and _is_plain(part):
            linear.append(part)
            between.append(IDENTITY)
            continue
        activation = activation_of(part)
        if activation is None or between[-1] is not IDENTITY:
            return ()
        if not linear and getattr(part, "inplace", False):  # it overwrites its input, which the reference shows
            return ()
        between[-1] = activation
    before = [between.pop(0), *[IDENTITY] * (len(linear) - 1)]
    return tuple(map(LinearNode, linear, before, between))


def _is_plain(linear: nn.Linear) -> bool:
    """Whether weight and bias are parameters, plain tensors, and of the sizes of the layer."""
    weight, bias = linear._parameters.get("weight"), linear._parameters.get("bias", ())
    plain = (Tensor, nn.Parameter)
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        return False
    # Compiled code uses other tensor classes.
    if not torch.compiler.is_compiling() and (type(weight) not in plain or type(bias) not in (*plain, type(None))):
        return False
    out = (linear.out_features,)
    return weight.shape == (*out, linear.in_features) and (bias is None or bias.shape == out)
