"""MH-SAC: one trunk for all tasks, one head for each."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..arguments import check_sizes
from ..levels import OutputRouting
from ..levels.perceptron import perceptron
from ..route import Route
from ..saving import Makes
from .network import Network, Routing

__all__ = ["MultiHead"]


class MultiHead(Network):
    """A perceptron that all tasks share, with a linear head for each task (MH-SAC; D2R, Fig. 2a).

    The trunk reads the one-hot too. The head is that of the task: nothing of the routing is learned.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        hidden_sizes: The widths of the layers of the trunk, at least one.
        activation: What makes the activation behind each of these layers.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        check_sizes("hidden_sizes", hidden_sizes)
        self.hidden_sizes = hidden_sizes
        self.trunk = perceptron((state_features + num_tasks, *hidden_sizes), activation, device=device, dtype=dtype)
        self.heads = OutputRouting(
            nn.Linear(hidden_sizes[-1], out_features, device=device, dtype=dtype) for _ in range(num_tasks)
        )

    @property
    def routed(self) -> None:
        """None: which head runs is given by the task."""
        return None

    def constructor_arguments(self, **others: Any) -> dict[str, Any]:
        return super().constructor_arguments(activation=Makes(self.trunk[1]), **others)

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        output = self.heads(self.trunk(torch.cat([state, task], dim=-1)), task)
        assert isinstance(output, Tensor)
        return output, None
