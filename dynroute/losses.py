"""Auxiliary losses: pure functions of a route.

Except for :func:`compute_cost` they average over the samples and the destinations. Slots that do not exist have logits
of -inf. A row without an open source counts as 0 in :func:`router_z_loss` and :func:`route_entropy`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_mask, check_tensor, shown
from .checks import refuse_where
from .functional import mask_softmax
from .route import Route, check_route
from .topology import Topology, check_topology

__all__ = ["compute_cost", "importance", "load_balance", "route_entropy", "router_z_loss"]

_NEWTON_STEPS = 40


def compute_cost(route: Route, topology: Topology, costs: Sequence[float] | Tensor | None = None) -> Tensor:
    r"""Computes the expected number of modules that run for each sample, including the output, or their expected cost.

    .. math:: C = \sum_j c_j r_j, \qquad r_n = 1, \qquad r_j = 1 - \prod_{i > j} (1 - r_i \, q^i_j)

    From the output :math:`n` backwards, :math:`r_j` is the probability that node j runs, and :math:`q^i_j` the
    probability that node i reads it: that j is among k draws without replacement from
    :math:`\operatorname{softmax}(z^i)`, where k is the number of sources on the path. For k = 1 it is the softmax, and
    no two nodes read j, so :math:`r_j = \sum_i r_i \, q^i_j`. For larger k it is :math:`1 - e^{-\lambda p_j}`, with
    :math:`\lambda` such that the sum over the sources is k (Rosén, 1972), and 1 if every source is drawn.

    The cost is exact if nodes read one source, as for :class:`~dynroute.Hard`, or all. Otherwise it treats the readers
    of a node as independent; on graphs of up to eight nodes, whose paths the tests enumerate, it is within 12 % of the
    exact value.
    :class:`~dynroute.Soft` runs all nodes, and no gradient changes that.

    The gradient flows to the router and lowers the probability of sources that few other nodes read.

    Args:
        route: The routes, with batch shape ``*``.
        topology: Their graph.
        costs: The cost of each node, for instance its parameters or microseconds, with shape ``[num_nodes]``; 1 if
            None.

    Returns:
        The expected cost of each sample, with shape ``[*]``, to average in a loss or to pass to a
        :class:`dynroute.Budget`.

    Example:
        >>> topology = Topology.dag(3)
        >>> compute_cost(Hard()(torch.zeros(2, 2), allowed=topology.allowed), topology)  # half skip the second module
        tensor(2.5000)
    """
    _check_route(route)
    check_topology(topology)
    topology.check_shape("route", route.logits)
    topology.check_path(route.path)
    price = _prices(costs, route.logits, topology)
    reads = _draw_probability(mask_softmax(route.logits, _allowed(route)), route.path.sum(dim=-1, keepdim=True))
    single = (route.path.sum(dim=-1) <= 1).all(dim=-1)

    demands: list[list[Tensor]] = [[] for _ in range(topology.num_nodes)]
    total = torch.zeros_like(reads[..., 0, 0])
    rows = {node: t for t, node in enumerate(topology.destinations)}
    for node in reversed(range(topology.num_nodes)):
        if node == topology.num_nodes - 1:
            runs = torch.ones_like(total)
        elif demands[node]:
            demand = torch.stack(demands[node], dim=-1)
            runs = torch.where(single, demand.sum(dim=-1), 1 - (1 - demand).prod(dim=-1))
        else:
            continue
        total = total + price[node] * runs
        for s, source in enumerate(topology.parents[node]):
            demands[source].append(runs * reads[..., rows[node], s])
    return total


def load_balance(route: Route) -> Tensor:
    r"""Computes the load-balancing loss of the Switch Transformer, from 1 for an even load to n.

    .. math:: n \sum_j f_j P_j

    For each destination with :math:`n` sources, :math:`f_j` is the share of choices of source :math:`j` and :math:`P_j`
    its mean probability. The gradient flows through :math:`P`.

    Example:
        >>> load_balance(TopK(2)(torch.zeros(8, 1, 4)))
        tensor(1.)
    """
    _check_route(route)
    allowed = _allowed(route)

    chosen = _batch_mean(route.path.to(route.weights.dtype))
    share = chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(chosen.dtype).tiny)
    probability = _batch_mean(mask_softmax(route.logits, allowed))

    return (_batch_mean(allowed.to(share.dtype)).sum(dim=-1) * (share * probability).sum(dim=-1)).mean()


def importance(route: Route) -> Tensor:
    r"""Computes the squared coefficient of variation of the weights of the sources (Shazeer et al., 2017).

    .. math:: \frac{\operatorname{Var}_j(w_j)}{\operatorname{Mean}_j(w_j)^2}, \qquad w_j = \sum_b p_{bj}

    Example:
        >>> importance(Soft()(torch.zeros(8, 1, 4)))
        tensor(0.)
    """
    _check_route(route)
    exists = _batch_mean(_allowed(route).to(route.weights.dtype))
    count = exists.sum(dim=-1, keepdim=True).clamp(min=1.0)

    weight = _batch_mean(route.weights)
    mean = weight.sum(dim=-1, keepdim=True) / count
    variance = ((weight - mean).square() * exists).sum(dim=-1, keepdim=True) / count

    return (variance / mean.square().clamp(min=torch.finfo(mean.dtype).tiny)).mean()


def router_z_loss(route: Route) -> Tensor:
    r"""Penalizes large logits (ST-MoE) by the mean of :math:`\log^2 \sum_j e^{z_j}`.

    Example:
        >>> router_z_loss(Soft()(torch.zeros(8, 1, 1)))
        tensor(0.)
    """
    _check_route(route)
    logits, is_open = _open_rows(route)
    return _batch_mean(logits.logsumexp(dim=-1).square().masked_fill(~is_open, 0.0), feature_dims=1).mean()


def route_entropy(route: Route) -> Tensor:
    r"""Computes the mean entropy, in nats, of the router's distribution over the sources of a node.

    .. math:: -\sum_j \operatorname{softmax}(z)_j \log \operatorname{softmax}(z)_j

    Subtract it from a loss to keep the router exploring.

    Example:
        >>> route_entropy(Soft()(torch.zeros(8, 1, 4))).exp()
        tensor(4.)
    """
    _check_route(route)
    allowed = _allowed(route)
    log_probability = _open_rows(route)[0].log_softmax(dim=-1).masked_fill(~allowed, 0.0)
    return _batch_mean(-(log_probability.exp() * log_probability).sum(dim=-1), feature_dims=1).mean()


def _draw_probability(probability: Tensor, draws: Tensor) -> Tensor:
    """The probability that each source is among some draws without replacement, in its limit for many sources."""
    # The scale of a smaller probability would overflow, and its gradient too.
    least = torch.finfo(probability.dtype).tiny
    probability = torch.where(probability > 4 * probability.shape[-1] * least, probability, 0.0)
    sources = (probability > 0).sum(dim=-1, keepdim=True)
    draws_all, draws_one = draws >= sources, draws == 1
    target = torch.where(draws_all, sources.clamp(min=1) / 2, draws).to(probability.dtype)  # any solvable number

    p = probability.detach()
    most = torch.finfo(p.dtype).max / 16
    scale = target
    for _ in range(_NEWTON_STEPS):  # starts below the root of a concave function, so no step overshoots
        undrawn = torch.exp(-scale * p)
        missing = target - (1 - undrawn).sum(dim=-1, keepdim=True)
        scale = (scale + missing / (p * undrawn).sum(dim=-1, keepdim=True).clamp(min=least)).clamp(min=0.0, max=most)
    # Each more step, with a fixed slope, makes one more derivative that of the implicit function.
    slope = (p * torch.exp(-scale * p)).sum(dim=-1, keepdim=True).clamp(min=least)
    for _ in range(2):
        undrawn = torch.exp(-scale * probability)
        scale = scale + (target - (1 - undrawn).sum(dim=-1, keepdim=True)) / slope

    drawn = 1 - torch.exp(-scale * probability)
    return torch.where(draws_one, probability, torch.where(draws_all, (probability > 0).to(p.dtype), drawn))


def _prices(costs: Sequence[float] | Tensor | None, logits: Tensor, topology: Topology) -> Tensor:
    if costs is None:
        return logits.new_ones(topology.num_nodes)
    try:
        price = torch.as_tensor(costs, dtype=logits.dtype, device=logits.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"`costs` must list a number for each node, got {shown(costs)}.") from error
    if price.shape != (topology.num_nodes,):
        raise ValueError(
            f"`costs` must have shape ({topology.num_nodes},), a number for each node and the output, got "
            f"{tuple(price.shape)}."
        )
    refuse_where(
        price,
        lambda price: ~((price >= 0) & (price < torch.inf)),
        lambda index: f"`costs` must be finite and not negative, got {price[index].item():g} of node {index[0]}.",
    )
    return price


def _allowed(route: Route) -> Tensor:
    return route.logits != -torch.inf  # a NaN stays one, so that divergence shows


def _open_rows(route: Route) -> tuple[Tensor, Tensor]:
    """The logits, with zeros in rows without an open source, whose gradients would be NaN; and a mark of the others."""
    is_open = _allowed(route).any(dim=-1)
    return torch.where(is_open.unsqueeze(-1), route.logits, 0.0), is_open


def _batch_mean(values: Tensor, *, feature_dims: int = 2) -> Tensor:
    """The mean over the batch dimensions; zeros for an empty batch."""
    rows = values.reshape(-1, *values.shape[values.dim() - feature_dims :])
    return rows.sum(dim=0) / max(rows.shape[0], 1)


def _check_route(route: Route) -> None:
    """Raises an error unless a value is a route of three tensors with one shape."""
    check_route(route)
    check_mask("route.path", route.path, route.logits)
    check_tensor("route.weights", route.weights)
    if route.weights.shape != route.logits.shape or route.logits.dim() < 2:
        raise ValueError(
            f"`route` must hold tensors with one shape (*, T, S), got logits {tuple(route.logits.shape)} "
            f"and weights {tuple(route.weights.shape)}."
        )
    if not route.weights.is_floating_point():
        raise TypeError(f"`route.weights` must be a floating tensor, got {route.weights.dtype}.")
