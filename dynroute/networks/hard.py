"""Hard Routing: each task uses one module of each layer."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, check_count, check_dtype, check_sizes
from ..gates import Hard
from ..levels import LayerRouting
from ..levels.perceptron import perceptron
from ..route import Route
from ..routers import TableRouter
from ..topology import Topology
from .network import Network, Routing, set_output_range
from .soft_modularization import activated_layers

__all__ = ["HardRouting"]


class HardRouting(Network):
    """Looks up one module of each layer for each task in a table (Hard Routing of Soft Modularization).

    There is no released code. Our reading: layers of modules as in Soft Modularization, with ReLU behind the sums. A
    table holds a logit for each task and edge. Every module reads only its best source, times the probability of that
    source among all, so that the table learns. The state has no influence on the route, and a task uses only the
    modules of its path.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        trunk_sizes: The widths of the MLP that embeds the state.
        layer_sizes: The number of modules in each layer.
        width: The width of a module.
        output_init: The output layer is drawn from U(-output_init, output_init); torch's initialization if None.
        backend: How the graph is executed.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> HardRouting(39, 10, 8)(torch.zeros(7, 39), torch.arange(7)).shape
        torch.Size([7, 8])
    """

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        out_features: int,
        *,
        trunk_sizes: Sequence[int] = (400, 400),
        layer_sizes: Sequence[int] = (4, 4, 4, 4),
        width: int = 128,
        output_init: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        factory: Factory = {"device": device, "dtype": dtype}
        check_sizes("trunk_sizes", trunk_sizes)
        check_sizes("layer_sizes", layer_sizes)
        check_count("width", width, at_least=1)
        check_dtype(dtype)
        self.trunk_sizes, self.layer_sizes, self.width = trunk_sizes, layer_sizes, width
        self.output_init = output_init
        head = nn.Sequential(nn.ReLU(), nn.Linear(width, out_features, **factory))
        set_output_range(head, output_init)
        self.trunk = perceptron((state_features, *trunk_sizes[:-1]), nn.ReLU, out_features=trunk_sizes[-1], **factory)
        self.modular = LayerRouting(
            activated_layers(trunk_sizes[-1], width, layer_sizes, **factory),
            Hard(),
            TableRouter(num_tasks, Topology.layered(layer_sizes), **factory),
            head=head,
            backend=backend,
        )

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        return self.modular(self.trunk(state).relu(), task, return_route=True, **routing)
