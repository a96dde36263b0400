"""MH-SAC: one trunk for all tasks and one head for each."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, Makes, check_flag, check_sizes
from ..levels import OutputRouting
from ..levels.perceptron import perceptron
from ..route import Route
from .network import Network, Routing, set_hidden_init, set_output_range

__all__ = ["MultiHead"]


class MultiHead(Network):
    """An MLP that all tasks share, with a linear head for each task (MH-SAC; D2R, Fig. 2a).

    The trunk also reads the one-hot. The task selects its head; no routing is learned.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        hidden_sizes: The widths of the layers of the trunk, at least one.
        activation: Makes the activation behind each of these layers.
        layer_norm: Whether the output of each of these layers is normalized before its activation.
        hidden_init: The initialization of the trunk: "torch", or "released" for U(-1/sqrt(n), 1/sqrt(n)), where n is
            the width of a layer's output, and biases of 0.1, as in the released code of Soft Modularization.
        output_init: The heads are drawn from U(-output_init, output_init), 0.003 in that code; torch's initialization
            if None.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> MultiHead(39, 10, 8).describe()
        'MultiHead: 693,680 parameters, no learned routes'
    """

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        out_features: int,
        *,
        hidden_sizes: Sequence[int] = (400,) * 5,
        activation: Callable[[], nn.Module] = nn.ReLU,
        layer_norm: bool = False,
        hidden_init: str = "torch",
        output_init: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        factory: Factory = {"device": device, "dtype": dtype}
        check_sizes("hidden_sizes", hidden_sizes)
        check_flag("layer_norm", layer_norm)
        self.hidden_sizes, self.layer_norm = hidden_sizes, layer_norm
        self.hidden_init, self.output_init = hidden_init, output_init
        self.trunk = perceptron(
            (state_features + num_tasks, *hidden_sizes), activation, layer_norm=layer_norm, **factory
        )
        heads = [nn.Linear(hidden_sizes[-1], out_features, **factory) for _ in range(num_tasks)]
        for head in heads:
            set_output_range(head, output_init)
        self.heads = OutputRouting(heads)
        set_hidden_init(self, hidden_init, outputs=heads)

    @property
    def routed(self) -> None:
        """None, since the task selects the head."""
        return None

    def constructor_arguments(self, **others: Any) -> dict[str, Any]:
        return super().constructor_arguments(activation=Makes(self.trunk[1 + self.layer_norm]), **others)

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        output = self.heads(self.trunk(torch.cat([state, task], dim=-1)), task)
        assert isinstance(output, Tensor)
        return output, None
