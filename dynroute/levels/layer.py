"""Layer-level routing (Soft Modularization; D2R, Fig. 2c): modules in layers, each mixing the layer before."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..arguments import check_counts, check_modules, check_sizes, shown
from ..banks import LinearBank
from ..gates import Gate, Soft
from ..routers import CascadeRouter
from ..topology import Topology
from .graph import RoutedGraph
from .proportion import proportioned

__all__ = ["LayerRouting"]


class LayerRouting(RoutedGraph):
    r"""Routes between the modules of neighbouring layers (Soft Modularization, Eq. 8).

    .. math:: g^{l+1}_i = \sum_j \hat p^l_{ij} \, M^l_j(g^l_j)

    The modules of the first layer read the input, and the head reads a mix of the last layer.

    Args:
        layers: At least one layer, each a sequence of at least one module.
        gate: Turns logits into a route.
        router: Turns a context into the logits of ``Topology.layered(sizes)`` for the sizes of the layers; a
            :class:`~dynroute.LinearRouter` if None.
        head: Computes the output from the mix of the last layer; the mix itself is the output if None.
        shortcut: Whether the modules behind the first layer add their input to their output.
        protect: How training stops the gradient to unsuitable sources: "rsg", "input", "sg" or "none".
        backend: How the graph is executed.
        context_features: The width of the context for the default router; default: the width of the input.

    Example:
        >>> layers = [[nn.Linear(5, 8), nn.Linear(5, 8)], [nn.Linear(8, 2), nn.Linear(8, 2)]]
        >>> net = LayerRouting(layers, Soft(), LinearRouter(5, Topology.layered([2, 2])))
        >>> net(torch.zeros(7, 5)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        layers: Iterable[Iterable[nn.Module]],
        gate: Gate,
        router: nn.Module | None = None,
        *,
        head: nn.Module | None = None,
        shortcut: bool = False,
        protect: str = "none",
        backend: str = "auto",
        context_features: int | None = None,
    ) -> None:
        if not isinstance(layers, Iterable) or hasattr(layers, "shape"):
            raise TypeError(f"`layers` must list layers, each a list of modules, got {shown(layers)}.")
        layers = list(layers)
        for i, layer in enumerate(layers):
            if not isinstance(layer, Iterable):
                raise TypeError(
                    f"`layers[{i}]` must list the modules of a layer, got {type(layer).__name__}; wrap it: [...]."
                )
        stack = [check_modules(f"layers[{i}]", layer) for i, layer in enumerate(layers)]
        if not stack or not all(stack):
            raise ValueError(
                f"`layers` must hold at least one layer of at least one module, got sizes {[len(s) for s in stack]}."
            )
        if head is not None and not isinstance(head, nn.Module):
            raise TypeError(f"`head` must be a module or None, got {shown(head)}; for instance nn.Linear(8, 2).")
        super().__init__(
            [module for layer in stack for module in layer] + [nn.Identity() if head is None else head],
            Topology.layered([len(layer) for layer in stack]),
            gate,
            router,
            shortcut=shortcut,
            protect=protect,
            backend=backend,
            context_features=context_features,
        )

    def _name_of(self, node: int, topology: Topology) -> str:
        if node == topology.num_nodes - 1:
            return "head"
        first = topology.parents.index(topology.parents[node])
        return f"layers[{len({*topology.parents[:first]})}][{node - first}]"

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments that construct an equal layer; override it in a class with another constructor."""
        arguments = super().constructor_arguments()
        *modules, head = arguments.pop("modules")
        del arguments["topology"]
        layers = [modules[slice(*span)] for span in self._plan.groups[:-1]]
        return {"layers": layers, **arguments, "head": head}

    @classmethod
    def mlp(
        cls,
        in_features: int,
        width: int,
        layer_sizes: Sequence[int],
        out_features: int,
        context_features: int | None = None,
        gate: Gate | None = None,
        *,
        router_sizes: Sequence[int] | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        shortcut: bool = False,
        protect: str = "none",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "LayerRouting":
        """Builds a routed network of linear modules, each followed by an activation, and a linear head.

        The defaults are no published network: modules end in ReLU as in the paper of Soft Modularization, and the
        router reads probabilities and scores the output as in its release. The published networks are
        :class:`~dynroute.networks.SoftModularization`.

        Args:
            in_features: The width of the input.
            width: The width of every module.
            layer_sizes: The number of modules of each layer.
            out_features: The width of the output.
            context_features: The width of the context; default: the width of the input.
            gate: Turns logits into a route; ``Soft()`` if None.
            router_sizes: The hidden widths of the :class:`~dynroute.CascadeRouter`; chosen by
                :func:`~dynroute.levels.proportion.proportioned` if None. Soft Modularization uses (256, 256).
            activation: Makes the activation of a module.
            shortcut: As for the class.
            protect: As for the class.
            backend: As for the class.
            device: The device of the parameters.
            dtype: The type of the parameters.

        Example:
            >>> net = LayerRouting.mlp(39, 128, [4, 4, 4, 4], 4, context_features=10)
            >>> net(torch.zeros(7, 39), torch.zeros(7, 10)).shape
            torch.Size([7, 4])
        """
        context_features = in_features if context_features is None else context_features
        check_counts(in_features=in_features, width=width, out_features=out_features)
        check_sizes("layer_sizes", layer_sizes)
        topology = Topology.layered(layer_sizes)
        layers = [
            LinearBank(size, width if depth else in_features, width, activation, device=device, dtype=dtype)
            for depth, size in enumerate(layer_sizes)
        ]
        make = partial(CascadeRouter, context_features, topology)
        router = proportioned(make, layers, router_sizes, device=device, dtype=dtype)
        return cls(
            layers,
            Soft() if gate is None else gate,
            router,
            head=nn.Linear(width, out_features, device=device, dtype=dtype),
            shortcut=shortcut,
            protect=protect,
            backend=backend,
        )
