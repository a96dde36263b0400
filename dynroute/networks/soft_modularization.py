"""Soft Modularization: layers of modules, every one of which reads a weighted sum of the layer before.

The paper and the released network differ; `equations` says which is built:

1. E, what the router looks at: f(s) h(z) in the paper; in the release ReLU and two linear layers of 256 behind that.
2. What the modules of the first layer read: f(s) in the paper, ReLU(f(s)) in the release.
3. What the logits of a layer are computed from: the logits of the layer before in the paper (Eq. 5), the probabilities
   of all earlier layers in the release.
4. ReLU: before the weighted sum in the paper (Eq. 8), behind it in the release.
5. The output: the plain sum of the last layer, whose modules are as wide as the output, in the paper (Eq. 9); one more
   weighted sum, ReLU and a linear layer in the release.

The initialization is torch's in both. `hidden_init="released"` is that of the released code, which draws hidden weights
from U(-1/sqrt(n), 1/sqrt(n)) with n the width of the *output*, sets hidden biases to 0.1, and draws every W_d from
U(-0.003, 0.003), so that routing starts uniform.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from ..arguments import check_choice, check_count, check_sizes
from ..banks import LinearBank
from ..gates import Gate, Soft
from ..levels import LayerRouting
from ..levels.perceptron import perceptron
from ..route import Route
from ..routers import CascadeRouter
from ..topology import Topology
from .network import Network, Routing, gate_named, run_routed, set_hidden_init, set_output_range
from .residual import MODULE_KINDS, make_module, normalized_linear

__all__ = ["SoftModularization", "activated_layers"]


class SoftModularization(Network):
    r"""Layers of modules, mixed by soft weights that depend on state and task (Soft Modularization; D2R, Fig. 2c).

    .. math:: g^{l+1}_i = \sum_j \hat p^l_{ij} \, M^l_j(g^l_j), \qquad
              p^{l+1} = W_d(\operatorname{ReLU}(W_u\, c^l \cdot E))

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        equations: "released" for the network that the authors released, "paper" for that of their equations; the five
            differences are listed in :mod:`dynroute.networks.soft_modularization`.
        trunk_sizes: The widths of the perceptron f that embeds the state.
        layer_sizes: The number of modules in each layer.
        width: The width of a module; 128 in the deep form with four layers of four, 256 in the shallow with two of two.
        module_kind: What modules are: "linear", as published; "layer-norm" with LayerNorm behind each linear layer;
            "residual" for the residual blocks of BRC, x + Linear - LayerNorm - ReLU - Linear - LayerNorm, in all layers
            but the first, whose modules are Linear - LayerNorm - ReLU. The sums that residual blocks read have no ReLU
            behind them, that of the output has. Modules with LayerNorm are drawn as BRC draws them. The modules of the
            paper's last layer stay linear.
        router_sizes: The widths of the layers that make E in the released form; the paper's has none.
        gate: Turns logits into a route, a :class:`~dynroute.Gate` or a name of :func:`~dynroute.networks.gate_named`.
        protect: How, in training, the gradient to unsuitable modules is stopped; without shortcuts all modes but "none"
            stop it whole.
        hidden_init: How the other layers are drawn: "torch", or "released" for U(-1/sqrt(n), 1/sqrt(n)), where n is the
            width of a layer's output, biases of 0.1, and :math:`W_d` from U(-0.003, 0.003), as in the released code.
        output_init: The output layer is drawn from U(-output_init, output_init); as torch does it if None.
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
        hidden_init: str = "torch",
        output_init: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        check_choice("equations", equations, ("released", "paper"))
        check_choice("module_kind", module_kind, MODULE_KINDS)
        check_sizes("trunk_sizes", trunk_sizes)
        check_sizes("layer_sizes", layer_sizes, at_least=1 if equations == "released" else 2)
        check_sizes("router_sizes", router_sizes, at_least=0)
        check_count("width", width, at_least=1)
        gate = gate_named(gate)
        released = equations == "released"
        if not released and not isinstance(gate, Soft):
            raise ValueError(
                f'`gate` must be "soft" with equations="paper", whose output is a plain sum, got {gate!r}.'
            )
        self.equations = equations
        self.layer_sizes, self.width = layer_sizes, width
        self.trunk_sizes, self.router_sizes = trunk_sizes, router_sizes
        self.hidden_init, self.output_init = hidden_init, output_init
        self.module_kind = module_kind
        self.variant = f"{equations} equations" + ("" if module_kind == "linear" else f", {module_kind} modules")

        topology = Topology.layered(layer_sizes)
        features = trunk_sizes[-1]
        self.trunk = perceptron(
            (state_features, *trunk_sizes[:-1]), nn.ReLU, out_features=features, device=device, dtype=dtype
        )
        self.task = nn.Linear(num_tasks, features, device=device, dtype=dtype)
        router = CascadeRouter(
            features,
            topology,
            router_sizes if released else (),
            cascade="probabilities" if released else "logits",
            score_output=released,
            device=device,
            dtype=dtype,
        )
        head: nn.Module
        layers: Sequence[Sequence[nn.Module]]
        if released:
            layers = activated_layers(features, width, layer_sizes, module_kind, device=device, dtype=dtype)
            head = nn.Sequential(nn.ReLU(), nn.Linear(width, out_features, device=device, dtype=dtype))
            set_output_range(head, output_init)
        else:
            layers = _summed_layers(features, width, layer_sizes, out_features, module_kind, device=device, dtype=dtype)
            head = _Sum(layer_sizes[-1])
            for module in layers[-1]:
                set_output_range(module, output_init)
        self.modular = LayerRouting(layers, gate, router, head=head, protect=protect, backend=backend)
        set_hidden_init(self, hidden_init, outputs=[head] if released else layers[-1])
        if hidden_init == "released":
            for layer in router.down:
                set_output_range(layer, 3e-3)

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        features = self.trunk(state)
        context = features * self.task(task)
        if self.equations == "released":
            return run_routed(self.modular, features.relu(), context.relu(), routing)
        return run_routed(self.modular, features, context, routing)


def activated_layers(
    in_features: int,
    width: int,
    layer_sizes: Sequence[int],
    module_kind: str = "linear",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> list[list[nn.Module]]:
    """Layers of modules with ReLU behind the sums: every module but those of the first layer begins with it.

    Residual blocks do without: what they add to is a sum as it is.
    """
    if module_kind == "residual":
        return _normalized_layers(in_features, width, layer_sizes, module_kind, device=device, dtype=dtype)
    if module_kind == "layer-norm":
        return [
            [
                nn.Sequential(
                    *([nn.ReLU()] if depth else []),
                    *normalized_linear(
                        width if depth else in_features, width, activation=False, device=device, dtype=dtype
                    ),
                )
                for _ in range(size)
            ]
            for depth, size in enumerate(layer_sizes)
        ]
    banks = [
        LinearBank(size, width if depth else in_features, width, device=device, dtype=dtype)
        for depth, size in enumerate(layer_sizes)
    ]
    return [
        [nn.Sequential(nn.ReLU(), module) if depth else module for module in bank] for depth, bank in enumerate(banks)
    ]


def _summed_layers(
    in_features: int,
    width: int,
    layer_sizes: Sequence[int],
    out_features: int,
    module_kind: str = "linear",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> list[list[nn.Module]]:
    """Layers of modules with ReLU before the sums, the last of them linear and as wide as the output."""
    last = len(layer_sizes) - 1
    if module_kind != "linear":
        hidden = _normalized_layers(in_features, width, layer_sizes[:-1], module_kind, device=device, dtype=dtype)
        return [*hidden, list(LinearBank(layer_sizes[-1], width, out_features, device=device, dtype=dtype))]
    return [
        list(
            LinearBank(
                size,
                width if depth else in_features,
                width if depth < last else out_features,
                nn.ReLU if depth < last else None,
                device=device,
                dtype=dtype,
            )
        )
        for depth, size in enumerate(layer_sizes)
    ]


def _normalized_layers(
    in_features: int,
    width: int,
    layer_sizes: Sequence[int],
    module_kind: str,
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> list[list[nn.Module]]:
    """Layers of modules with layer normalization and ReLU, or of residual blocks."""
    return [
        [
            make_module(
                module_kind,
                width if depth else in_features,
                width,
                first=not depth,
                shortcut=False,
                device=device,
                dtype=dtype,
            )
            for _ in range(size)
        ]
        for depth, size in enumerate(layer_sizes)
    ]


class _Sum(nn.Module):
    """Makes the sum of a mean: the output of Eq. 9 has no weights, while a graph mixes with weights that sum to 1."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, mean: Tensor) -> Tensor:
        return mean * self.count

    def extra_repr(self) -> str:
        return str(self.count)
