"""Module-level routing (D2R, Fig. 2d): every module chooses among all earlier ones."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..arguments import check_counts, check_modules
from ..gates import Gate, SampleK
from ..routers import MLPRouter
from ..topology import Topology
from .graph import RoutedGraph
from .perceptron import perceptron
from .proportion import proportioned

__all__ = ["ModuleRouting"]


class ModuleRouting(RoutedGraph):
    r"""Routes through a DAG of modules whose depth depends on the sample.

    Module 0 reads the input, module i the mix of the earlier modules that the route chose, and the last module is the
    output. A module that no later module chose is skipped.

    .. math:: m^i = x^i + M^i(x^i), \qquad x^i = \sum_{j < i} p^i_j \, \hat m^j

    Args:
        modules: At least 2 modules; the second to the last but one keep the width of their input.
        gate: Turns logits into a route.
        router: Turns a context into the logits of ``Topology.dag(len(modules))``; a
            :class:`~dynroute.LinearRouter` if None.
        shortcut: Whether the modules between the first and the last add their input to their output (Eq. 11).
        protect: How training stops the gradient to unsuitable sources: "rsg" (Eq. 11-12), "input" (the released code of
            D2R), "sg" (Eq. 9 if `shortcut` is False) or "none".
        backend: How the graph is executed.
        context_features: The width of the context for the default router; default: the width of the input.

    Example:
        >>> modules = [nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)]
        >>> net = ModuleRouting(modules, SampleK(2), LinearRouter(5, Topology.dag(4)))
        >>> net(torch.zeros(7, 5)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        gate: Gate,
        router: nn.Module | None = None,
        *,
        shortcut: bool = True,
        protect: str = "rsg",
        backend: str = "auto",
        context_features: int | None = None,
    ) -> None:
        modules = check_modules("modules", modules)
        if len(modules) < 2:
            raise ValueError(
                f"`modules` must hold at least 2 modules, a first and an output, got {len(modules)}; "
                "for instance [nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)]."
            )
        super().__init__(
            modules,
            Topology.dag(len(modules)),
            gate,
            router,
            shortcut=shortcut,
            protect=protect,
            backend=backend,
            context_features=context_features,
        )

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments that construct an equal layer; override it in a class with another constructor."""
        arguments = super().constructor_arguments()
        del arguments["topology"]
        return arguments

    @classmethod
    def mlp(
        cls,
        in_features: int,
        width: int,
        num_modules: int,
        out_features: int,
        context_features: int | None = None,
        gate: Gate | None = None,
        *,
        router_sizes: Sequence[int] | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        shortcut: bool = True,
        protect: str = "rsg",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "ModuleRouting":
        """Builds a routed network of linear modules, each followed by an activation, and a linear output.

        Args:
            in_features: The width of the input.
            width: The width of every module.
            num_modules: The number of modules without the output; the graph has one node more.
            out_features: The width of the output.
            context_features: The width of the context; default: the width of the input.
            gate: Turns logits into a route; ``SampleK(2)`` if None.
            router_sizes: The hidden widths of the :class:`~dynroute.MLPRouter`, empty for a linear router; chosen by
                :func:`~dynroute.levels.proportion.proportioned` if None. D2R uses (256, 256).
            activation: Makes the activation of a module.
            shortcut: As for the class.
            protect: As for the class.
            backend: As for the class.
            device: The device of the parameters.
            dtype: The type of the parameters.

        Example:
            >>> net = ModuleRouting.mlp(39, 128, 16, 4, context_features=10)
            >>> net(torch.zeros(7, 39), torch.zeros(7, 10)).shape
            torch.Size([7, 4])
        """
        context_features = in_features if context_features is None else context_features
        check_counts(in_features=in_features, width=width, num_modules=num_modules, out_features=out_features)
        widths = [in_features, *[width] * num_modules]
        modules: list[nn.Module] = [
            perceptron(pair, activation, device=device, dtype=dtype) for pair in pairwise(widths)
        ]
        modules.append(nn.Linear(width, out_features, device=device, dtype=dtype))
        make = partial(MLPRouter, context_features, Topology.dag(len(modules)))
        router = proportioned(make, modules, router_sizes, device=device, dtype=dtype)
        gate = SampleK(2) if gate is None else gate
        return cls(modules, gate, router, shortcut=shortcut, protect=protect, backend=backend)
