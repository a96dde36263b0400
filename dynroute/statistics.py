"""Statistics of routes, which :mod:`dynroute.inspect` offers beside their pictures."""

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_count, check_task, check_tensor, shown
from .checks import refuse_where
from .losses import load_balance, route_entropy, router_z_loss
from .route import Route, check_route, path_of
from .topology import Topology, check_topology

__all__ = [
    "Summary",
    "by_task",
    "entropy",
    "flow",
    "live_path",
    "metrics",
    "similarity",
    "summarize",
]


class Summary(NamedTuple):
    """Statistics of the routes of N tasks; the row of a task without samples is NaN."""

    samples: Tensor
    """The number of samples, with shape ``[N]``."""

    used: Tensor
    """The share of the samples for which each node runs, with shape ``[N, num_nodes]``."""

    num_used: Tensor
    """The mean number of nodes that run, including the output, with shape ``[N]``."""

    depth: Tensor
    """The mean number of nodes on the longest chain, with shape ``[N]``."""

    edges: Tensor
    """The share of the samples that take each edge of a :func:`live_path`, with shape ``[N, T, S]``."""

    weights: Tensor
    """The mean weight of each edge of a :func:`live_path`, counting 0 if it is not taken, with shape ``[N, T, S]``."""

    flow: Tensor
    """The mean :func:`flow` of each node, with shape ``[N, num_nodes]``."""

    entropy: Tensor
    """The mean :func:`entropy` of the nodes that run, with shape ``[N]``."""


def summarize(topology: Topology, route: Route, task: Tensor | None = None, *, num_tasks: int | None = None) -> Summary:
    """Summarizes the routes of some samples, task by task.

    Args:
        topology: The graph.
        route: The routes of at least one sample, with batch shape ``*``.
        task: The task id of each sample, integers with shape ``[*]``; all 0 if None.
        num_tasks: The number of tasks; default: the largest id plus one.

    Example:
        >>> net = ModelRouting.mlp(5, 8, 4, 2, gate=TopK(2))
        >>> summary = inspect.summarize(net.topology, net.route(torch.randn(6, 5)), torch.arange(6) % 3)
        >>> summary.num_used, summary.used.shape
        (tensor([3., 3., 3.]), torch.Size([3, 5]))
    """
    check_topology(topology)
    check_route(route)
    used, path = topology.used(route.path), live_path(topology, route.path)
    _check_samples(route)
    if task is None:
        task = torch.zeros(route.path.shape[:-2], dtype=torch.long, device=route.path.device)
    runs = used[..., list(topology.destinations)]

    def mean(values: Tensor) -> Tensor:
        return by_task(values, task, num_tasks=num_tasks)

    frequency = mean(used)
    return Summary(
        samples=torch.bincount(task.flatten().to(used.device), minlength=len(frequency)),
        used=frequency,
        num_used=mean(used.sum(dim=-1)),
        depth=mean(topology.depth(route.path)),
        edges=mean(path),
        weights=mean(route.weights.detach() * path),
        flow=mean(flow(topology, route)),
        entropy=mean((entropy(route) * runs).sum(dim=-1) / runs.sum(dim=-1)),
    )


def by_task(values: Tensor, task: Tensor, *, num_tasks: int | None = None) -> Tensor:
    """Averages values over the samples of each task.

    Args:
        values: Numbers or booleans, with shape ``[*, ...]``.
        task: The task id of each sample, integers with shape ``[*]``.
        num_tasks: The number of tasks; default: the largest id plus one.

    Returns:
        The means, with shape ``[num_tasks, ...]``; NaN for a task without samples.

    Example:
        >>> inspect.by_task(torch.tensor([True, False, True]), torch.tensor([0, 0, 1]))
        tensor([0.5000, 1.0000])
    """
    check_task(task)
    if task.numel() == 0 or values.shape[: task.dim()] != task.shape:
        raise ValueError(
            f"`task` must hold the task id of at least one sample, with the batch shape of the values "
            f"{tuple(values.shape)}, got {tuple(task.shape)}."
        )
    task = task.to(values.device)
    if num_tasks is None:
        num_tasks = int(task.max()) + 1
    check_count("num_tasks", num_tasks, at_least=1)
    refuse_where(
        task,
        lambda task: (task < 0) | (task >= num_tasks),
        lambda index: f"`task` must hold ids from 0 to {num_tasks - 1}, got {task[index].item()} at {index}.",
    )
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    return torch.stack([values[task == i].mean(dim=0) for i in range(num_tasks)])


def live_path(topology: Topology, path: Tensor | Route) -> Tensor:
    """Removes the sources of nodes that do not run from a path.

    Args:
        topology: The graph.
        path: A boolean path, with shape ``[*, T, S]``, or the route that holds it.

    Returns:
        The rest of the path, with the same shape.

    Example:
        >>> inspect.live_path(Topology.dag(3), torch.tensor([[True, False], [True, False]]))
        tensor([[False, False],
                [ True, False]])
    """
    check_topology(topology)
    path = path_of(path)
    return path & topology.used(path)[..., list(topology.destinations), None]


def flow(topology: Topology, weights: Tensor | Route) -> Tensor:
    r"""Computes the share of the output that passes through each node, from the weights.

    .. math:: F_n = 1, \qquad F_j = \sum_{i > j} F_i \, p^i_j

    The flow of the output node :math:`n` is 1, and each node passes its flow on to the nodes that it reads. Shortcuts
    and the magnitude of outputs are ignored. The load, the share of samples for which a node runs, is the mean of
    :meth:`dynroute.Topology.used`.

    Args:
        topology: The graph.
        weights: The weights, with shape ``[*, T, S]``, or the route that holds them.

    Returns:
        The flows, with shape ``[*, num_nodes]``.

    Example:
        >>> inspect.flow(Topology.parallel(2), torch.tensor([[0.25, 0.75]]))
        tensor([0.2500, 0.7500, 1.0000])
    """
    check_topology(topology)
    weights = _read_weights(weights)
    topology.check_shape("weights", weights)
    shares = weights.new_zeros(*weights.shape[:-2], topology.num_nodes)
    shares[..., -1] = 1.0
    for t, node in reversed(list(enumerate(topology.destinations))):
        parents = topology.parents[node]
        shares[..., list(parents)] += shares[..., node, None] * weights[..., t, : len(parents)]
    return shares


def entropy(weights: Tensor | Route) -> Tensor:
    r"""Computes the entropy of the weights of each node, in nats: 0 for one source, :math:`\log k` for k equal ones.

    .. math:: -\sum_j q_j \log q_j, \qquad q_j = p_j / \sum_k p_k

    :func:`dynroute.losses.route_entropy` is the entropy of the router, before the gate chooses.

    Args:
        weights: The weights, with shape ``[*, T, S]``, or the route that holds them.

    Returns:
        The entropies, with shape ``[*, T]``; 0 for a row without a source.

    Example:
        >>> inspect.entropy(torch.tensor([[0.5, 0.5]])).exp()
        tensor([2.])
    """
    weights = _read_weights(weights)
    if not weights.dim():
        raise ValueError("`weights` must have shape (*, T, S), got a tensor without dimensions.")
    total = weights.sum(dim=-1, keepdim=True)
    shares = weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
    return 0.0 - torch.xlogy(shares, shares).sum(dim=-1)  # a difference avoids -0.0


def metrics(
    topology: Topology, route: Route, *, dropped: int | Tensor | None = None, nodes: bool = True
) -> dict[str, float]:
    """Computes statistics of routes as plain numbers for a logger.

    ============== =========================================================================================
    key            meaning
    ============== =========================================================================================
    load/0, ...    the share of the samples for which each node runs, without the output
    load_max       the largest load divided by the mean load: 1 for an even load
    dead           the number of nodes that no sample uses
    router_entropy the mean entropy of the router, in nats (:func:`dynroute.losses.route_entropy`)
    unrouted       the share of destinations without a source, which a gate with a capacity may leave
    dropped        the number of choices that a capacity dropped, if given; with ``ExpertChoice`` the number
                   of samples without a source
    dropped_share  the same as a share of all choices; with ``ExpertChoice`` read `unrouted` instead
    z_loss         :func:`dynroute.losses.router_z_loss`
    balance_loss   :func:`dynroute.losses.load_balance`
    ============== =========================================================================================

    The values are Python numbers, which waits for the device. Pass them to a logger, for instance with
    ``writer.add_scalar(key, value, step)`` for each item, ``wandb.log(figures)`` or Lightning's
    ``self.log_dict(figures)``.

    Args:
        topology: The graph.
        route: The routes of at least one sample.
        dropped: The number of dropped choices, ``gate.dropped`` of a gate with a capacity.
        nodes: Whether to include the load of each node.

    Example:
        >>> net = ModelRouting([nn.Linear(5, 2) for _ in range(3)], TopK(2))
        >>> figures = inspect.metrics(net.topology, net.route(torch.randn(8, 5)))
        >>> list(figures)[:5], figures["unrouted"]
        (['load/0', 'load/1', 'load/2', 'load_max', 'dead'], 0.0)
    """
    check_topology(topology)
    with torch.no_grad():  # these calls also check the route
        z_loss, balance, mean_entropy = router_z_loss(route), load_balance(route), route_entropy(route)
    topology.check_shape("route", route.weights)
    _check_samples(route)
    use = topology.used(route.path)[..., :-1].reshape(-1, topology.num_nodes - 1).double().mean(dim=0)
    figures = {f"load/{node}": share for node, share in enumerate(use.tolist())} if nodes else {}
    figures["load_max"] = float(use.max() / use.mean()) if use.any() else 1.0
    figures["dead"] = float((use == 0).sum())
    figures["router_entropy"] = float(mean_entropy)
    figures["unrouted"] = float((~route.path.any(dim=-1)).double().mean())
    if dropped is not None:
        count = float(dropped)
        figures["dropped"] = count
        figures["dropped_share"] = count / max(count + float(route.path.sum()), 1.0)
    figures["z_loss"] = float(z_loss)
    figures["balance_loss"] = float(balance)
    return figures


def similarity(figures: Tensor) -> Tensor:
    r"""Computes how much of their routes each two tasks share, by the weighted Jaccard index.

    .. math:: J_{ab} = \frac{\sum_e \min(f_{ae}, f_{be})}{\sum_e \max(f_{ae}, f_{be})}

    For rows of 0 and 1 it is the size of the intersection divided by the size of the union. Use the `edges` of a
    :class:`Summary`, its `used` without the output (``used[:, :-1]``), or its `weights`, which differ between tasks
    even if a gate reads every source.

    Args:
        figures: The use of nodes or edges by each task, not negative, with shape ``[N, ...]``.

    Returns:
        The similarities from 0 to 1, with shape ``[N, N]``; NaN for a task without samples.

    Example:
        >>> inspect.similarity(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    if not isinstance(figures, Tensor):
        raise TypeError(
            f"`figures` must be a tensor, a row for each task, got {type(figures).__name__}; for routes it is "
            "summarize(...).edges."
        )
    if figures.dim() < 2:
        raise ValueError(f"`figures` must have shape (N, ...), a row for each task, got {tuple(figures.shape)}.")
    refuse_where(
        figures,
        lambda figures: figures < 0,
        lambda index: f"`figures` must not be negative, got {figures[index].item():g} at {index}; are these logits?",
    )
    rows = figures.detach().flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    shared = torch.minimum(rows[:, None], rows).sum(dim=-1)
    either = torch.maximum(rows[:, None], rows).sum(dim=-1)
    return shared / either


def _check_samples(route: Route) -> None:
    batch = route.path.shape[:-2]
    if not batch.numel():
        raise ValueError(f"`route` must hold at least one sample, got batch shape {tuple(batch)}.")


def _read_weights(weights: Tensor | Route) -> Tensor:
    """The weights of a route, or weights as they are, without their gradient."""
    if isinstance(weights, Route):
        weights = weights.weights
    check_tensor("weights", weights)
    if not weights.is_floating_point():
        raise TypeError(
            f"`weights` must be a floating tensor or a Route, got {shown(weights)}; `net.route(context, path=path)` "
            "makes one of a stored path, with its weights."
        )
    return weights.detach()
