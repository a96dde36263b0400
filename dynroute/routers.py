"""Routers: from a context to the logits of a topology. They hold the parameters of routing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import refuse_where
from .functional import mask_softmax
from .topology import Topology

__all__ = ["CascadeRouter", "LinearRouter", "MLPRouter", "Router", "TableRouter", "TaskRouter"]


class Router(nn.Module, ABC):
    """Scores every edge of a topology for a context.

    A router of your own overrides :meth:`score`. The maths is done in float32 or wider, whatever the parameters' type
    and also under autocast: routing is a choice, and a choice must not hang on the rounding of 16 bits.

    Args:
        topology: The graph whose edges are scored.
    """

    edge_index: Tensor

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        if not isinstance(topology, Topology):
            raise TypeError(
                f"`topology` must be a Topology, got {type(topology).__name__}; for instance Topology.dag(8)."
            )
        self.topology = topology
        self.register_buffer("edge_index", topology.edge_index.clone(), persistent=False)

    def forward(self, context: Tensor) -> Tensor:
        """Returns the logits, with shape ``[*, T, S]`` and -inf in slots that do not exist.

        Args:
            context: What the router looks at, with shape ``[*, context_features]``.
        """
        with full_precision(context):
            scores = self.score(context)
        return self.topology.from_edges(scores, fill=-torch.inf, edge_index=self.edge_index)

    @abstractmethod
    def score(self, context: Tensor) -> Tensor:
        """Returns one logit for each edge, with shape ``[*, num_edges]``, ordered by destination, then by slot."""


class MLPRouter(Router):
    r"""A perceptron with ReLU between its layers and one output for each edge (Eq. 4).

    .. math:: z = G(F(s) \cdot H(\mathcal T))

    The context is :math:`F(s) \cdot H(\mathcal T)` in the paper; here it is whatever the caller passes.

    Args:
        context_features: The width of the context.
        topology: The graph whose edges are scored.
        hidden_sizes: The widths of the hidden layers; D2R uses 256 and 256.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> MLPRouter(10, Topology.dag(17))(torch.zeros(3, 10)).shape
        torch.Size([3, 16, 16])
    """

    def __init__(
        self,
        context_features: int,
        topology: Topology,
        hidden_sizes: Sequence[int] = (256, 256),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(topology)
        sizes = (context_features, *hidden_sizes, topology.num_edges)
        self.layers = nn.ModuleList(
            nn.Linear(width, following, device=device, dtype=dtype) for width, following in pairwise(sizes)
        )

    def score(self, context: Tensor) -> Tensor:
        return _perceptron(context, self.layers)


class LinearRouter(MLPRouter):
    """A single linear layer from the context to the logits.

    Args:
        context_features: The width of the context.
        topology: The graph whose edges are scored.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> LinearRouter(10, Topology.parallel(4))(torch.zeros(3, 10)).shape
        torch.Size([3, 1, 4])
    """

    def __init__(
        self,
        context_features: int,
        topology: Topology,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(context_features, topology, (), device=device, dtype=dtype)


class CascadeRouter(Router):
    r"""The router of Soft Modularization: each layer's logits depend on the routing of the layers before it.

    .. math::
        p^1 = W_d^1(\operatorname{ReLU}(E)), \qquad
        p^{l+1} = W_d^{l+1}(\operatorname{ReLU}(W_u^l\, c^l \cdot E))

    :math:`E` is the context, passed through `hidden_sizes` with ReLU between its layers if there are any. The paper
    (its Eq. 5, 6) and the released code differ in two ways, both of them options:

    1. :math:`c^l` is the previous layer's logits in the paper (`cascade="logits"`), and the concatenated probabilities
       of all earlier layers in the release (`cascade="probabilities"`).
    2. :math:`E` is the context itself in the paper (`hidden_sizes=()`), and the output of two linear layers of 256 in
       the release (`hidden_sizes=(256, 256)`).

    Args:
        context_features: The width of the context.
        topology: The graph whose edges are scored, usually ``Topology.layered``; neighbouring nodes that read the same
            nodes form a layer.
        hidden_sizes: The widths of the layers that make :math:`E`.
        cascade: "probabilities" or "logits".
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> CascadeRouter(400, Topology.layered([4, 4, 4, 4]), (256, 256))(torch.zeros(3, 400)).shape
        torch.Size([3, 13, 4])
    """

    def __init__(
        self,
        context_features: int,
        topology: Topology,
        hidden_sizes: Sequence[int] = (),
        *,
        cascade: str = "probabilities",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(topology)
        if cascade not in ("probabilities", "logits"):
            raise ValueError(f'`cascade` must be "probabilities" or "logits", got {cascade!r}.')
        self.cascade = cascade
        self.stages = _stages(topology)

        def linear(width: int, following: int) -> nn.Linear:
            return nn.Linear(width, following, device=device, dtype=dtype)

        sizes = (context_features, *hidden_sizes)
        edges = [rows * columns for rows, columns in self.stages]
        seen = [sum(edges[: i + 1]) if cascade == "probabilities" else edges[i] for i in range(len(edges) - 1)]
        self.embed = nn.ModuleList(linear(width, following) for width, following in pairwise(sizes))
        self.up = nn.ModuleList(linear(width, sizes[-1]) for width in seen)
        self.down = nn.ModuleList(linear(sizes[-1], width) for width in edges)

    def score(self, context: Tensor) -> Tensor:
        embedding = _perceptron(context, self.embed)

        logits = [_linear(embedding.relu(), self.down[0])]
        for up, down, stage in zip(self.up, self.down[1:], self.stages[:-1], strict=True):
            if self.cascade == "logits":
                seen = logits[-1]
            else:
                previous = logits[-1].reshape(*context.shape[:-1], *stage)
                probabilities = mask_softmax(previous, torch.ones_like(previous, dtype=torch.bool)).flatten(-2)
                seen = probabilities if len(logits) == 1 else torch.cat([seen, probabilities], dim=-1)
            logits.append(_linear((_linear(seen, up) * embedding).relu(), down))
        return torch.cat(logits, dim=-1)

    def extra_repr(self) -> str:
        return f"cascade={self.cascade!r}"


class TableRouter(Router):
    """Routing by the task alone: one learned row of logits for each task.

    Args:
        num_tasks: The number of tasks.
        topology: The graph whose edges are scored.
        device: The device of the parameters.
        dtype: The type of the parameters.

    The context is a tensor of task ids with shape ``[*]`` (any integer type), or of one-hots with shape
    ``[*, num_tasks]`` (any floating or boolean type).

    Example:
        >>> TableRouter(10, Topology.parallel(4))(torch.tensor([0, 9])).shape
        torch.Size([2, 1, 4])
    """

    def __init__(
        self,
        num_tasks: int,
        topology: Topology,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(topology)
        self.num_tasks = num_tasks
        self.table = nn.Parameter(torch.randn(num_tasks, topology.num_edges, device=device, dtype=dtype))

    def score(self, context: Tensor) -> Tensor:
        one_hot = task_one_hot(context, self.num_tasks)
        table = self.table.to(torch.promote_types(self.table.dtype, torch.float32))
        return one_hot.to(table.dtype) @ table

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"


class TaskRouter(Router):
    """The fixed routing of output level (Fig. 2a): task i reads node i, always, and nothing is learned.

    Args:
        num_tasks: The number of tasks and of parallel nodes.

    Example:
        >>> TaskRouter(3)(torch.tensor(1))
        tensor([[-inf, 0., -inf]])
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__(Topology.parallel(num_tasks))
        self.num_tasks = num_tasks

    def score(self, context: Tensor) -> Tensor:
        return task_one_hot(context, self.num_tasks).to(torch.float32).log()

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}"


def task_one_hot(task: Tensor, num_tasks: int) -> Tensor:
    """The boolean one-hot of a task given as ids (integers) or as one-hot (floating or boolean)."""
    ids = torch.arange(num_tasks, device=task.device)
    if task.is_floating_point() or task.dtype == torch.bool:
        if task.shape[-1:] != (num_tasks,):
            raise ValueError(
                f"`task` must have shape (*, {num_tasks}) as a one-hot, got {tuple(task.shape)}; "
                "task ids are integers: convert them with `.long()`."
            )
        one_hot = task == 1
        refuse_where(
            ((task != 0) & ~one_hot).any(dim=-1) | (one_hot.sum(dim=-1) != 1),
            lambda row: f"`task` must have exactly one 1 in every row of a one-hot, row {row} is {task[row].tolist()}.",
        )
        return one_hot
    refuse_where(
        (task < 0) | (task >= num_tasks),
        lambda index: f"`task` must be in 0..{num_tasks - 1}, got {int(task[index])} at index {index}.",
    )
    return task.unsqueeze(-1) == ids


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Suspends autocast on the device of a tensor."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


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


def _linear(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear)
    if x.shape[-1:] != (layer.in_features,):
        raise ValueError(
            f"`context` must have shape (*, {layer.in_features}) for this router, got {tuple(x.shape)}; "
            "a context defaults to the input of the routed layer."
        )
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def _perceptron(x: Tensor, layers: nn.ModuleList) -> Tensor:
    for i, layer in enumerate(layers):
        x = _linear(x.relu() if i > 0 else x, layer)
    return x
