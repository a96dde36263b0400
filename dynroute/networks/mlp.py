"""MT-SAC: one MLP for all tasks."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, Makes, check_flag, check_sizes
from ..levels.perceptron import perceptron
from ..route import Route
from .network import Network, Routing, set_hidden_init, set_output_range

__all__ = ["MultiTaskMLP"]


class MultiTaskMLP(Network):
    """An MLP that reads the state and the one-hot of the task (MT-SAC).

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        hidden_sizes: The widths of the hidden layers.
        activation: Makes the activation behind each hidden layer.
        layer_norm: Whether the output of each hidden layer is normalized before its activation.
        hidden_init: The initialization of the hidden layers: "torch", or "released" for U(-1/sqrt(n), 1/sqrt(n)), where
            n is the width of a layer's output, and biases of 0.1, as in the released code of Soft Modularization.
        output_init: The output layer is drawn from U(-output_init, output_init), 0.003 in that code; torch's
            initialization if None.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> MultiTaskMLP(39, 10, 8).describe()
        'MultiTaskMLP: 664,808 parameters, no learned routes'
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
        check_sizes("hidden_sizes", hidden_sizes, at_least=0)
        check_flag("layer_norm", layer_norm)
        self.hidden_sizes, self.layer_norm = hidden_sizes, layer_norm
        self.hidden_init, self.output_init = hidden_init, output_init
        self.layers = perceptron(
            (state_features + num_tasks, *hidden_sizes),
            activation,
            out_features=out_features,
            layer_norm=layer_norm,
            **factory,
        )
        set_output_range(self.layers, output_init)
        set_hidden_init(self, hidden_init, outputs=[self.layers[-1]])

    def constructor_arguments(self, **others: Any) -> dict[str, Any]:
        activation = self.layers[1 + self.layer_norm] if self.hidden_sizes else nn.ReLU()
        return super().constructor_arguments(activation=Makes(activation), **others)

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        return self.layers(torch.cat([state, task], dim=-1)), None
