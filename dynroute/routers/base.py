"""What all routers share: a logit for each edge, computed in float32 or wider."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import check_tensor
from ..topology import Topology

__all__ = ["EdgeParameter", "Router", "full_precision"]


class EdgeParameter(NamedTuple):
    """A parameter with a slice for each edge; the logit of an edge is linear in the slices that are the edge's own."""

    owner: nn.Module
    """The module that holds it."""

    name: str
    """Its name in that module."""

    dim: int
    """The dimension of the edges."""

    shifts: bool
    """Whether a number that is added to a slice is added to the logit of its edge, as it is to a bias."""


class Router(nn.Module, ABC):
    """Scores every edge of a topology for a context.

    A router of your own overrides :meth:`score`. The maths is done in float32 or wider, whatever the parameters' type
    and also under autocast: routing is a choice, and a choice must not hang on the rounding of 16 bits.

    Args:
        topology: The graph whose edges are scored.

    Example:
        >>> class Even(Router):
        ...     def score(self, context):
        ...         return context.new_zeros(*context.shape[:-1], self.topology.num_edges)
        >>> Even(Topology.dag(3))(torch.randn(5))
        tensor([[0., -inf],
                [0., 0.]])
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        if not isinstance(topology, Topology):
            raise TypeError(
                f"`topology` must be a Topology, got {type(topology).__name__}; for instance Topology.dag(8)."
            )
        self.topology = topology

    def forward(self, context: Tensor) -> Tensor:
        """Returns the logits, with shape ``[*, T, S]`` and -inf in slots that do not exist.

        Args:
            context: What the router looks at, with shape ``[*, context_features]``.
        """
        check_tensor("context", context)
        with full_precision(context):
            scores = self.score(context)
        return self.topology.from_edges(scores, fill=-torch.inf)

    @abstractmethod
    def score(self, context: Tensor) -> Tensor:
        """Returns one logit for each edge, with shape ``[*, num_edges]``, ordered by destination, then by slot."""

    def edge_parameters(self) -> list[EdgeParameter]:
        """The parameters that grow and shrink with the edges; all others serve any topology.

        A router of your own overrides it to be grown, pruned or extracted. Without it, its graph keeps its size.

        Example:
            >>> [(name, dim) for _, name, dim, _ in LinearRouter(5, Topology.dag(3)).edge_parameters()]
            [('weight', 0), ('bias', 0)]
        """
        return []


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Suspends autocast on the device of a tensor."""
    device = like.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if autocast else nullcontext()
