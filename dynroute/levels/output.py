"""Output-level routing (multi-head; D2R, Fig. 2a): one head for each task."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_count, check_counts, check_modules, check_tensor
from ..gates import Hard
from ..route import Route
from ..routers import RouterNoise, TaskRouter
from ..topology import Topology
from .graph import RoutedGraph
from .perceptron import perceptron

__all__ = ["OutputRouting"]


class OutputRouting(RoutedGraph):
    """Gives every task its own head; the routing is fixed and not learned.

    Args:
        heads: One module for each task; all give outputs of one shape.
        backend: How the graph is executed.

    Example:
        >>> net = OutputRouting([nn.Linear(5, 2) for _ in range(10)])
        >>> net(torch.zeros(7, 5), torch.arange(7)).shape
        torch.Size([7, 2])
    """

    _context_name = "task"

    def __init__(self, heads: Iterable[nn.Module], *, backend: str = "auto") -> None:
        heads = check_modules("heads", heads)
        if not heads:
            raise ValueError("`heads` must hold at least one module, got none; give one for each task.")
        router = TaskRouter(len(heads))
        super().__init__([*heads, nn.Identity()], router.topology, Hard(), router, backend=backend)

    def _name_of(self, node: int, topology: Topology) -> str:
        return f"heads[{node}]"

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments that construct an equal layer; override it in a class with another constructor."""
        return {"heads": list(self.nodes)[:-1], "backend": self.backend}

    @classmethod
    def mlp(
        cls,
        in_features: int,
        width: int,
        num_tasks: int,
        out_features: int,
        *,
        depth: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "OutputRouting":
        """Builds one MLP for each task.

        Args:
            in_features: The width of the input.
            width: The width of the hidden layers of a head.
            num_tasks: The number of tasks.
            out_features: The width of the output.
            depth: The number of hidden layers of a head; 0 for linear heads.
            activation: Makes the activation of a hidden layer.
            backend: As for the class.
            device: The device of the parameters.
            dtype: The type of the parameters.

        Example:
            >>> net = OutputRouting.mlp(400, 128, 10, 4)
            >>> net(torch.zeros(7, 400), torch.zeros(7, dtype=torch.long)).shape
            torch.Size([7, 4])
        """
        check_counts(in_features=in_features, width=width, num_tasks=num_tasks, out_features=out_features)
        check_count("depth", depth, at_least=0)
        return cls(
            [
                perceptron(
                    (in_features, *[width] * depth), activation, out_features=out_features, device=device, dtype=dtype
                )
                for _ in range(num_tasks)
            ],
            backend=backend,
        )

    def forward(  # type: ignore[override]  # the context is the task here, and it cannot be left out
        self,
        x: Tensor,
        task: Tensor,
        *,
        path: Tensor | Route | None = None,
        temperature: float | Tensor = 1.0,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
        return_route: bool = False,
        noise: Tensor | None = None,
        router_noise: RouterNoise | None = None,
    ) -> Tensor | tuple[Tensor, Route]:
        """Runs the head of each sample's task.

        Args:
            x: The input of the heads, with shape ``[*, ...]``.
            task: Task ids (integers) with shape ``[*]``, or one-hots (floating or boolean) with shape
                ``[*, num_tasks]``.
            path: A recorded path; it must be the path of the task.
            temperature: Has no effect, since nothing is sampled.
            sample: Has no effect.
            generator: Has no effect.
            return_route: Whether to return the route beside the output.
            noise: Has no effect.
            router_noise: Has no effect.

        Returns:
            The output of the heads, or the output and the :class:`~dynroute.Route`.
        """
        check_tensor("task", task)
        return super().forward(x, task, path=path, return_route=return_route)
