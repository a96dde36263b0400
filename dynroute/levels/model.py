"""Model-level routing (mixture of experts; D2R, Fig. 2b): whole networks side by side."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from ..arguments import check_count, check_counts, check_modules
from ..gates import Gate, Soft
from ..routers import MLPRouter
from ..topology import Topology
from .graph import RoutedGraph
from .perceptron import perceptron

__all__ = ["ModelRouting"]


class ModelRouting(RoutedGraph):
    r"""Mixes the outputs of several networks.

    .. math:: y = \sum_j p_j \, M^j(x)

    Args:
        models: At least one network; all give outputs of one shape.
        gate: Turns logits into a route.
        router: Turns a context into the logits of ``Topology.parallel(len(models))``.
        protect: How the gradient to unsuitable networks is stopped in training: "sg" or "none". No network has a
            shortcut here, so that "rsg" and "input" stop it whole like "sg".
        backend: How the graph is executed.

    Example:
        >>> net = ModelRouting([nn.Linear(5, 2) for _ in range(4)], TopK(2), LinearRouter(5, Topology.parallel(4)))
        >>> net(torch.zeros(7, 5)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        gate: Gate,
        router: nn.Module,
        *,
        protect: str = "none",
        backend: str = "auto",
    ) -> None:
        models = check_modules("models", models)
        if not models:
            raise ValueError("`models` must hold at least one network, got none.")
        super().__init__(
            [*models, nn.Identity()], Topology.parallel(len(models)), gate, router, protect=protect, backend=backend
        )

    @classmethod
    def mlp(
        cls,
        in_features: int,
        width: int,
        num_models: int,
        out_features: int,
        context_features: int | None = None,
        gate: Gate | None = None,
        *,
        depth: int = 2,
        router_sizes: Sequence[int] = (256, 256),
        activation: Callable[[], nn.Module] = nn.ReLU,
        protect: str = "none",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "ModelRouting":
        """Builds a mixture of perceptrons.

        Args:
            in_features: The width of the input.
            width: The width of the hidden layers.
            num_models: The number of networks.
            out_features: The width of the output.
            context_features: The width of the context; that of the input if None.
            gate: Turns logits into a route; ``Soft()`` if None.
            depth: The number of hidden layers of each network.
            router_sizes: The hidden widths of the :class:`~dynroute.MLPRouter`; none for a linear router.
            activation: Makes the activation of a hidden layer.
            protect: As for the class.
            backend: As for the class.
            device: The device of the parameters.
            dtype: The type of the parameters.

        Example:
            >>> net = ModelRouting.mlp(39, 400, 4, 4, context_features=10, gate=TopK(2))
            >>> net(torch.zeros(7, 39), torch.zeros(7, 10)).shape
            torch.Size([7, 4])
        """
        context_features = in_features if context_features is None else context_features
        check_counts(in_features=in_features, width=width, num_models=num_models, out_features=out_features)
        check_count("depth", depth, at_least=0)
        models = [
            perceptron(
                (in_features, *[width] * depth), activation, out_features=out_features, device=device, dtype=dtype
            )
            for _ in range(num_models)
        ]
        router = MLPRouter(
            context_features,
            Topology.parallel(num_models),
            router_sizes,
            device=device,
            dtype=dtype,
        )
        return cls(models, Soft() if gate is None else gate, router, protect=protect, backend=backend)
