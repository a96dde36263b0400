"""Soft Modularization: layers of modules that read weighted sums of the layer before.

The paper and the released network differ in five ways; `equations` selects one of them:

1. The router reads E = f(s) h(z) in the paper; the release adds ReLU and two linear layers of 256.
2. The modules of the first layer read f(s) in the paper, ReLU(f(s)) in the release.
3. The logits of a layer are computed from the logits of the layer before in the paper (Eq. 5), from the probabilities
   of all earlier layers in the release.
4. ReLU comes before the weighted sum in the paper (Eq. 8), behind it in the release.
5. The output is the plain sum of the last layer in the paper (Eq. 9), whose modules are as wide as the output; it is
   one more weighted sum, ReLU and a linear layer in the release.

Both use torch's initialization by default. `hidden_init="released"` is the initialization of the released code: hidden
weights from U(-1/sqrt(n), 1/sqrt(n)) with n the width of the *output*, hidden biases of 0.1, and every W_d from
U(-0.003, 0.003), so that routing starts uniform.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, check_choice, check_count, check_flag, check_sizes
from ..banks import LinearBank
from ..gates import Gate, Soft
from ..levels import LayerRouting
from ..levels.perceptron import perceptron
from ..route import Route
from ..routers import CascadeRouter
from ..topology import Topology
from .network import Network, Routing, gate_named, set_hidden_init, set_output_range
from .residual import MODULE_KINDS, make_module, normalized_linear

__all__ = ["SoftModularization", "activated_layers"]


class SoftModularization(Network):
    r"""Mixes layers of modules by soft weights that depend on state and task (Soft Modularization; D2R, Fig. 2c).

    .. math:: g^{l+1}_i = \sum_j \hat p^l_{ij} \, M^l_j(g^l_j), \qquad
              p^{l+1} = W_d(\operatorname{ReLU}(W_u\, c^l \cdot E))

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        equations: "released" for the released network, "paper" for the paper's equations;
            :mod:`dynroute.networks.soft_modularization` lists the five differences.
        trunk_sizes: The widths of the MLP f that embeds the state.
        layer_sizes: The number of modules in each layer.
        width: The width of a module; 128 in the deep form with four layers of four, 256 in the shallow with two of two.
        module_kind: The kind of modules: "linear", as published; "layer-norm" with LayerNorm behind each linear layer;
            "residual" for the residual blocks of BRC, x + Linear - LayerNorm - ReLU - Linear - LayerNorm, except in the
            first layer, whose modules are Linear - LayerNorm - ReLU. The sums that residual blocks read have no ReLU
            behind them; the sum that the output reads has one. Modules with LayerNorm are initialized as in BRC. The
            modules of the paper's last layer stay linear.
        router_sizes: The widths of the layers that compute E in the released form; the paper has none.
        gate: Turns logits into a route, a :class:`~dynroute.Gate` or a name of :func:`~dynroute.networks.gate_named`.
        protect: How training stops the gradient to unsuitable modules; without shortcuts all modes but "none" are the
            same.
        state_free: Whether the router reads only the task, h(z), as in the paper's ablation "w/o Obs".
        hidden_init: The initialization of the other layers: "torch", or "released" for U(-1/sqrt(n), 1/sqrt(n)), where
            n is the width of a layer's output, biases of 0.1, and :math:`W_d` from U(-0.003, 0.003), as in the released
            code.
        output_init: The output layer is drawn from U(-output_init, output_init); torch's initialization if None.
        backend: How the graph is executed.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> SoftModularization(39, 10, 8).describe()
        'SoftModularization (released equations): 792,444 parameters, 17 nodes, 52 routed edges, Soft()'
    """

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        out_features: int,
        *,
        equations: str = "released",
        trunk_sizes: Sequence[int] = (400, 400),
        layer_sizes: Sequence[int] = (4, 4, 4, 4),
        width: int = 128,
        module_kind: str = "linear",
        router_sizes: Sequence[int] = (256, 256),
        gate: Gate | str = "soft",
        protect: str = "none",
        state_free: bool = False,
        hidden_init: str = "torch",
        output_init: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        factory: Factory = {"device": device, "dtype": dtype}
        check_choice("equations", equations, ("released", "paper"))
        check_choice("module_kind", module_kind, MODULE_KINDS)
        check_sizes("trunk_sizes", trunk_sizes)
        check_sizes("layer_sizes", layer_sizes, at_least=1 if equations == "released" else 2)
        check_sizes("router_sizes", router_sizes, at_least=0)
        check_count("width", width, at_least=1)
        check_flag("state_free", state_free)
        gate = gate_named(gate)
        released = equations == "released"
        if not released and not isinstance(gate, Soft):
            raise ValueError(
                f'`gate` must be "soft" with equations="paper", whose output is a plain sum, got {gate!r}.'
            )
        self.equations = equations
        self.layer_sizes, self.width = layer_sizes, width
        self.trunk_sizes, self.router_sizes = trunk_sizes, router_sizes
        self.state_free = state_free
        self.hidden_init, self.output_init = hidden_init, output_init
        self.module_kind = module_kind
        self.variant = f"{equations} equations" + ("" if module_kind == "linear" else f", {module_kind} modules")

        topology = Topology.layered(layer_sizes)
        features = trunk_sizes[-1]
        self.trunk = perceptron((state_features, *trunk_sizes[:-1]), nn.ReLU, out_features=features, **factory)
        self.task = nn.Linear(num_tasks, features, **factory)
        router = CascadeRouter(
            features,
            topology,
            router_sizes if released else (),  # 1
            cascade="probabilities" if released else "logits",  # 3
            score_output=released,  # 5
            **factory,
        )
        head: nn.Module
        layers: Sequence[Sequence[nn.Module]]
        if released:
            layers = activated_layers(features, width, layer_sizes, module_kind, **factory)  # 4
            head = nn.Sequential(nn.ReLU(), nn.Linear(width, out_features, **factory))
            set_output_range(head, output_init)
        else:
            layers = _summed_layers(features, width, layer_sizes, out_features, module_kind, **factory)
            head = _Sum(layer_sizes[-1])  # 5
            for module in layers[-1]:
                set_output_range(module, output_init)
        self.modular = LayerRouting(layers, gate, router, head=head, protect=protect, backend=backend)
        set_hidden_init(self, hidden_init, outputs=[head] if released else layers[-1])
        if hidden_init == "released":
            for layer in router.down:
                set_output_range(layer, 3e-3)

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        features = self.trunk(state)
        context = self.task(task)
        if not self.state_free:
            context = features * context
        if self.equations == "released":
            return self.modular(features.relu(), context.relu(), return_route=True, **routing)  # 2, 1
        return self.modular(features, context, return_route=True, **routing)


def activated_layers(
    in_features: int,
    width: int,
    layer_sizes: Sequence[int],
    module_kind: str = "linear",
    **factory: Unpack[Factory],
) -> list[list[nn.Module]]:
    """Makes layers of modules with ReLU behind the sums: every module except in the first layer begins with it.

    Residual blocks have no ReLU, since they add to the plain sum.
    """
    if module_kind == "residual":
        return _normalized_layers(in_features, width, layer_sizes, module_kind, **factory)
    layers: list[list[nn.Module]] = []
    for depth, size in enumerate(layer_sizes):
        features = width if depth else in_features
        if module_kind == "layer-norm":
            modules = [normalized_linear(features, width, activation=False, **factory) for _ in range(size)]
            layers.append([nn.Sequential(nn.ReLU(), *module) if depth else module for module in modules])
        else:
            bank = LinearBank(size, features, width, **factory)
            layers.append([nn.Sequential(nn.ReLU(), module) if depth else module for module in bank])
    return layers


def _summed_layers(
    in_features: int,
    width: int,
    layer_sizes: Sequence[int],
    out_features: int,
    module_kind: str = "linear",
    **factory: Unpack[Factory],
) -> list[list[nn.Module]]:
    """Makes layers of modules with ReLU before the sums; the last layer is linear and as wide as the output."""
    *hidden_sizes, last = layer_sizes
    if module_kind == "linear":
        layers = [
            list(LinearBank(size, width if depth else in_features, width, nn.ReLU, **factory))
            for depth, size in enumerate(hidden_sizes)
        ]
    else:
        layers = _normalized_layers(in_features, width, hidden_sizes, module_kind, **factory)
    return [*layers, list(LinearBank(last, width, out_features, **factory))]


def _normalized_layers(
    in_features: int,
    width: int,
    layer_sizes: Sequence[int],
    module_kind: str,
    **factory: Unpack[Factory],
) -> list[list[nn.Module]]:
    """Makes layers of modules with layer normalization and ReLU, or of residual blocks."""
    return [
        [make_module(module_kind, features, width, first=not depth, shortcut=False, **factory) for _ in range(size)]
        for depth, size in enumerate(layer_sizes)
        for features in [width if depth else in_features]
    ]


class _Sum(nn.Module):
    """Turns a mean into a sum: Eq. 9 adds without weights, while a graph mixes with weights that sum to 1."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, mean: Tensor) -> Tensor:
        return mean * self.count

    def extra_repr(self) -> str:
        return str(self.count)
