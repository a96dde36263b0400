"""Limits on the number of modules that run: a learned price in training, and a hard limit in inference."""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from .arguments import check_count, check_dtype, check_number, check_task, check_tensor, shown
from .checks import refuse_where
from .functional import best_k
from .route import Route, check_route
from .statistics import flow
from .topology import Topology, check_topology

__all__ = ["Budget", "limit_modules"]


class Budget(nn.Module):
    r"""Keeps the mean cost of a batch, or of each task, at or below a target by a learned multiplier.

    .. math:: J(\theta) = \lambda \, (C_\theta - C^*), \qquad J(\lambda) = - \log \lambda \, (C - C^*)

    The multiplier is the price of a module. It rises while routes cost more than the target :math:`C^*` and falls while
    they cost less, like the entropy coefficient of SAC. Its logarithm is a parameter with a separate optimizer. Let it
    begin small and rise to what is needed within the first half of the training: earlier, it takes modules away before
    the network has learned what they are for, and modules that are no longer sampled do not come back; later, the
    network is too settled to follow. The multiplier is not converted to 16 bits with the module: leave it
    out of ``fully_shard``, which takes parameters of one type.

    Args:
        target: The largest mean cost, in the unit of :func:`dynroute.losses.compute_cost`.
        num_tasks: The number of tasks, for one multiplier per task; default: one for all.
        initial: The initial multiplier.
        device: The device of the multiplier.
        dtype: The type of the multiplier, of at least 32 bits; default: torch's default type, or float32 if that is
            narrower.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 6, 2)
        >>> budget = dynroute.Budget(4.0)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> prices = torch.optim.Adam(budget.parameters(), lr=3e-4)
        >>> for _ in range(3):
        ...     y, route = net(torch.randn(16, 5), return_route=True)
        ...     cost = compute_cost(route, net.topology)
        ...     optimizer.zero_grad()
        ...     (y.square().mean() + budget(cost)).backward()
        ...     optimizer.step()
        ...     prices.zero_grad()
        ...     budget.multiplier_loss(cost).backward()
        ...     prices.step()
        >>> bool(budget.multiplier > 0.01)  # routes cost more than 4 modules so far
        True
    """

    def __init__(
        self,
        target: float,
        num_tasks: int | None = None,
        *,
        initial: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_number("target", target, above=0)
        check_number("initial", initial, above=0)
        if num_tasks is not None:
            check_count("num_tasks", num_tasks, at_least=1)
        self.target = target
        check_dtype(dtype)
        if dtype is None:
            dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        if dtype.itemsize < 4:
            raise TypeError(
                f"`dtype` must have at least 32 bits, got {dtype}, in which small steps of the multiplier are lost; "
                "take torch.float32, or leave it out."
            )
        self.num_tasks = num_tasks
        self.initial = initial
        shape = () if num_tasks is None else (num_tasks,)
        self.log_multiplier = nn.Parameter(torch.full(shape, math.log(initial), device=device, dtype=dtype))

    @property
    def multiplier(self) -> Tensor:
        """The price of a unit of cost, with shape ``[num_tasks]``, or a scalar without tasks."""
        return self.log_multiplier.detach().exp()

    def forward(self, cost: Tensor, task: Tensor | None = None) -> Tensor:
        """Computes the penalty to add to a loss; its gradient flows to the cost only.

        Args:
            cost: The cost of each sample, with shape ``[*]``.
            task: The task id of each sample, integers with shape ``[*]``, if each task has a multiplier.
        """
        return (self._of_samples(self.multiplier, cost, task) * (cost - self.target)).mean()

    def multiplier_loss(self, cost: Tensor, task: Tensor | None = None) -> Tensor:
        """Computes the loss of the multiplier from the arguments of a call; its gradient flows to the multiplier only.

        Costs that are not finite are left out, since they would make the multiplier NaN for good.
        """
        values, finite = self._of_samples(self.log_multiplier, cost, task), cost.isfinite()
        excess = torch.where(finite, cost.detach() - self.target, 0.0)
        return -(values * excess).sum() / finite.sum().clamp(min=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def convert(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype.itemsize >= 4 else tensor.to(moved.device)  # 16 bits lose small steps

        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"target={self.target}" + ("" if self.num_tasks is None else f", num_tasks={self.num_tasks}")

    def _of_samples(self, values: Tensor, cost: Tensor, task: Tensor | None) -> Tensor:
        check_tensor("cost", cost)
        if not cost.is_floating_point() or not cost.numel():
            raise ValueError(f"`cost` must hold the cost of at least one sample, got {shown(cost)}.")
        if self.num_tasks is None:
            if task is not None:
                raise ValueError("`task` must be None where one multiplier serves all; give the budget `num_tasks`.")
            return values.expand(cost.shape)
        if task is None:
            raise ValueError("`task` must name the task of each sample, since each task has a multiplier; got None.")
        check_task(task)
        if task.shape != cost.shape:
            raise ValueError(f"`task` must have the shape of the costs {tuple(cost.shape)}, got {tuple(task.shape)}.")
        refuse_where(
            task,
            lambda task: (task < 0) | (task >= len(self.log_multiplier)),
            lambda index: f"`task` must be in 0..{len(self.log_multiplier) - 1}, got {int(task[index])} at {index}.",
        )
        return values[task.to(values.device)]


def limit_modules(route: Route, topology: Topology, limit: int) -> Tensor:
    """Cuts the paths of a route so that no sample runs more than a number of modules, including the output.

    A sample within the limit keeps its path. For all others, modules are kept in this order:

    1. A chain from the output to the input. Each of its nodes reads its heaviest source from which the rest of the
       limit still leads to the input, or, if its path has no such source, the one with the highest score.
    2. Of the other nodes that the sample runs, those through which most of the output passes
       (:func:`dynroute.inspect.flow`), while there is room and one of their sources is kept.

    A node that is kept reads the kept sources of its path or, if there are none, the kept source with the highest
    score. Ties go to the lowest index. Replay the path, so that the gate computes the weights.

    Args:
        route: The routes, with batch shape ``*``.
        topology: Their graph.
        limit: The largest number of modules, at least the length of the shortest chain: 2 at module and model level.

    Returns:
        The paths, boolean with shape ``[*, T, S]``.

    Example:
        >>> net = ModuleRouting.mlp(5, 8, 8, 2, gate=TopK(3)).eval()
        >>> x = torch.randn(64, 5)
        >>> path = dynroute.limit_modules(net.route(x), net.topology, 4)
        >>> y, route = net(x, path=path, return_route=True)
        >>> net.topology.used(route.path).sum(dim=-1).max()
        tensor(4)
    """
    check_route(route)
    check_topology(topology)
    topology.check_path(route.path)
    heights: list[int] = []
    for parents in topology.parents:
        heights.append(1 + min((heights[j] for j in parents), default=0))
    refuse_where(
        route.logits,
        lambda logits: (logits == -torch.inf) & topology.on(logits.device).allowed,
        lambda index: (
            f"`route` must leave all sources open to be cut, but row {index[:-1]} has a logit of -inf in slot "
            f"{index[-1]}; let the router use a low number instead."
        ),
    )
    check_count("limit", limit, at_least=1)
    if limit < heights[-1]:
        raise ValueError(f"`limit` must be at least {heights[-1]}, the shortest chain to the output, got {limit}.")

    limit = min(limit, topology.num_nodes)
    shape = route.path.shape
    logits, path, weights = (tensor.detach().reshape(-1, *topology.path_shape) for tensor in route)
    used = topology.used(path)
    kept = _chain(logits, path, weights, topology, limit, heights)
    kept = _fill(kept, used, flow(topology, weights), topology, limit, limit - heights[-1])

    padded = torch.cat([kept, kept.new_zeros(kept.shape[0], 1)], dim=-1)  # the index of padding is num_nodes
    stays = padded[:, topology.on(path.device).sources]
    shorter = path & stays
    shorter = torch.where(shorter.any(dim=-1, keepdim=True), shorter, best_k(logits, 1, stays))
    unread = best_k(logits, 1, topology.on(path.device).allowed.expand(path.shape))  # rows of nodes that do not run
    shorter = torch.where(shorter.any(dim=-1, keepdim=True), shorter, unread)
    over = used.sum(dim=-1) > limit
    return torch.where(over[:, None, None], shorter, path).reshape(shape)


def _chain(logits: Tensor, path: Tensor, weights: Tensor, topology: Topology, limit: int, heights: list[int]) -> Tensor:
    """The nodes of one chain of each sample, with shape [samples, num_nodes].

    All samples take a step at a time, so that the work grows with the limit and not with the graph.
    """
    sources = topology.on(path.device).sources
    height = torch.tensor([*heights, limit + 1], device=path.device)[sources]  # no limit leads to padding
    row = torch.zeros(topology.num_nodes + 1, dtype=torch.long, device=path.device)
    row[list(topology.destinations)] = torch.arange(len(topology.destinations), device=path.device)
    ends = torch.tensor([not parents for parents in topology.parents], device=path.device)
    chain = path.new_zeros(path.shape[0], topology.num_nodes + 1)  # len() would make the batch a constant in an export
    node, samples = (
        path.new_full((path.shape[0],), topology.num_nodes - 1, dtype=torch.long),
        torch.arange(path.shape[0], device=path.device),
    )
    chain[:, -2] = True
    for left in range(limit - 1, 0, -1):
        t = row[node]
        reachable = height[t] <= left
        chosen = path[samples, t] & reachable
        follows = chosen.any(dim=-1, keepdim=True)
        scores = torch.where(follows, weights[samples, t], logits[samples, t])
        best = best_k(scores, 1, torch.where(follows, chosen, reachable))
        node = torch.where(ends[node], node, sources[t, best.byte().argmax(dim=-1)])
        chain[samples, node] = True
    return chain[:, :-1]


def _fill(kept: Tensor, used: Tensor, share: Tensor, topology: Topology, limit: int, rounds: int) -> Tensor:
    """Adds the nodes with the largest shares that are used and have a source among those that are kept."""
    reads = kept.new_zeros(topology.num_nodes, topology.num_nodes).float()
    for node, parents in enumerate(topology.parents):
        reads[list(parents), node] = 1.0
    ends = reads.sum(dim=0) == 0
    for _ in range(rounds):
        ready = (kept.float() @ reads > 0) | ends
        room = kept.sum(dim=-1, keepdim=True) < limit
        kept = kept | (best_k(share, 1, used & ready & ~kept) & room)
    return kept
