"""The router of Soft Modularization, in which the routing of a layer depends on the layers before it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..arguments import check_choice, check_count, check_dtype, check_flag, check_sizes
from ..functional import mask_softmax
from ..topology import Topology
from .base import Router
from .mlp import chain, linear, real

__all__ = ["CascadeRouter"]


class CascadeRouter(Router):
    r"""The router of Soft Modularization: each layer's logits depend on the routing of the layers before it.

    .. math::
        p^1 = W_d^1(\operatorname{ReLU}(E)), \qquad
        p^{l+1} = W_d^{l+1}(\operatorname{ReLU}(W_u^l\, c^l \cdot E))

    :math:`E` is the context, passed through linear layers of `hidden_sizes` with ReLU between them. The paper (its Eq.
    5, 6) and the released code differ in two ways, which are options:

    1. :math:`c^l` is the previous layer's logits in the paper (`cascade="logits"`), and the concatenated probabilities
       of all earlier layers in the release (`cascade="probabilities"`).
    2. :math:`E` is the context itself in the paper (`hidden_sizes=()`), and in the release the output of two linear
       layers of 256 that read the context's ReLU (`hidden_sizes=(256, 256)`, on a context after ReLU).

    The defaults mix both: `cascade` and `score_output` are the release's, `hidden_sizes` is the paper's. The published
    networks are :class:`~dynroute.networks.SoftModularization`.

    Args:
        context_features: The width of the context.
        topology: The graph whose edges are scored, usually ``Topology.layered``; neighbouring nodes that read the same
            nodes form a layer.
        hidden_sizes: The widths of the layers that compute :math:`E`.
        cascade: "probabilities" or "logits".
        score_output: Whether the last destinations are scored. If False, they weigh all their sources equally, as in
            the paper, which sums the last layer (its Eq. 9).
        jitter: As for :class:`Router`.
        noise: As for :class:`Router`.
        dropout: As for :class:`Router`.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> CascadeRouter(400, Topology.layered([4, 4, 4, 4]), (256, 256))(torch.zeros(3, 400)).shape
        torch.Size([3, 13, 4])
    """

    takes_ids = False

    def __init__(
        self,
        context_features: int,
        topology: Topology,
        hidden_sizes: Sequence[int] = (),
        *,
        cascade: str = "probabilities",
        score_output: bool = True,
        jitter: float = 0.0,
        noise: float = 0.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(topology, jitter=jitter, noise=noise, dropout=dropout)
        check_count("context_features", context_features, at_least=1)
        check_sizes("hidden_sizes", hidden_sizes, at_least=0)
        check_choice("cascade", cascade, ("probabilities", "logits"))
        check_flag("score_output", score_output)
        check_dtype(dtype)
        self.context_features = context_features
        self.hidden_sizes = tuple(hidden_sizes)
        self.cascade = cascade
        self.score_output = score_output
        self.stages = _stages(topology)

        def layer(width: int, following: int) -> nn.Linear:
            return nn.Linear(width, following, device=device, dtype=dtype)

        sizes = (context_features, *hidden_sizes)
        edges = [rows * columns for rows, columns in self.stages]
        self.unscored = 0 if score_output else edges.pop()
        seen = [sum(edges[: i + 1]) if cascade == "probabilities" else edges[i] for i in range(len(edges) - 1)]
        self.embed = nn.ModuleList(layer(width, following) for width, following in pairwise(sizes))
        self.up = nn.ModuleList(layer(width, sizes[-1]) for width in seen)
        self.down = nn.ModuleList(layer(sizes[-1], width) for width in edges)

    def score(self, context: Tensor) -> Tensor:
        embedding = chain(real(context), self.embed)

        logits = [linear(embedding.relu(), self.down[0])] if self.down else []
        for up, down, stage in zip(self.up, self.down[1:], self.stages, strict=False):
            if self.cascade == "logits":
                inputs = logits[-1]
            else:
                previous = logits[-1].reshape(*context.shape[:-1], *stage)
                probabilities = mask_softmax(previous, torch.ones_like(previous, dtype=torch.bool)).flatten(-2)
                inputs = probabilities if len(logits) == 1 else torch.cat([inputs, probabilities], dim=-1)
            logits.append(linear((linear(inputs, up) * embedding).relu(), down))
        if self.unscored:
            logits.append(embedding.new_zeros(*embedding.shape[:-1], self.unscored))
        return torch.cat(logits, dim=-1)

    def extra_repr(self) -> str:
        return f"cascade={self.cascade!r}"


def _stages(topology: Topology) -> list[tuple[int, int]]:
    """The (number of nodes, number of sources) of each run of neighbouring destinations that read the same nodes."""
    stages: list[tuple[int, int]] = []
    previous: tuple[int, ...] = ()
    for node in topology.destinations:
        parents = topology.parents[node]
        rows = stages.pop()[0] if parents == previous else 0
        stages.append((rows + 1, len(parents)))
        previous = parents
    return stages
