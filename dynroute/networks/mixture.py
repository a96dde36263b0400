"""Mix-Expert: whole networks mixed by a learned gate."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from ..arguments import Factory, check_counts, check_sizes
from ..gates import Gate
from ..levels import ModelRouting
from ..route import Route
from .network import Network, Routing, gate_named

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(Network):
    r"""Mixes the outputs of several MLPs by a learned gate (Mix-Expert of Soft Modularization; D2R, Fig. 2b).

    .. math:: y = \sum_j \operatorname{softmax}(G(s, \mathcal T))_j \, M^j(s, \mathcal T)

    There is no released code. Our reading of "four experts like MT-SAC and a gate": experts and gate are MLPs
    that read the state and the one-hot, and outputs are mixed, not features. The experts have the layers of D2R's
    MT-SAC; ``depth=3`` gives those of the multi-head baseline of Soft Modularization.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        num_experts: The number of MLPs.
        width: The width of their hidden layers.
        depth: The number of their hidden layers.
        router_sizes: The hidden widths of the gate's MLP, which were not published.
        gate: Turns logits into a route, a :class:`~dynroute.Gate` or a name of :func:`~dynroute.networks.gate_named`.
        protect: "sg" stops the gradient to unsuitable experts in training, "none" does not.
        backend: How the graph is executed.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> MixtureOfExperts(39, 10, 8)(torch.zeros(7, 39), torch.arange(7)).shape
        torch.Size([7, 8])
    """

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        out_features: int,
        *,
        num_experts: int = 4,
        width: int = 400,
        depth: int = 5,
        router_sizes: Sequence[int] = (256, 256),
        gate: Gate | str = "soft",
        protect: str = "none",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        factory: Factory = {"device": device, "dtype": dtype}
        check_sizes("router_sizes", router_sizes, at_least=0)
        check_counts(num_experts=num_experts, width=width, depth=depth)
        self.width, self.depth, self.router_sizes = width, depth, router_sizes
        self.experts = ModelRouting.mlp(
            state_features + num_tasks,
            width,
            num_experts,
            out_features,
            gate=gate_named(gate),
            depth=depth,
            router_sizes=router_sizes,
            protect=protect,
            backend=backend,
            **factory,
        )

    @property
    def num_experts(self) -> int:
        """The number of MLPs."""
        return len(self.experts.nodes) - 1

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        return self.experts(torch.cat([state, task], dim=-1), return_route=True, **routing)
