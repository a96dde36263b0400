"""Pure functions of a route that can be added to a training loss.

Each but :func:`compute_cost` averages over the samples and over the destinations; all read the slots that exist from
the route's logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_mask, check_tensor, shown
from .checks import refuse_where
from .functional import mask_softmax
from .route import Route
from .topology import Topology

__all__ = ["compute_cost", "importance", "load_balance", "route_entropy", "router_z_loss"]

_NEWTON_STEPS = 40


def compute_cost(route: Route, topology: Topology, costs: Sequence[float] | Tensor | None = None) -> Tensor:
    r"""The expected number of modules that run for each sample, the output among them, or their expected cost.

    .. math:: C = \sum_j c_j r_j, \qquad r_n = 1, \qquad r_j = 1 - \prod_{i > j} (1 - r_i \, q^i_j)

    From the output :math:`n` backwards, :math:`r_j` is the probability that some node that runs reads node j, and
    :math:`q^i_j` that node i reads it: the probability that j is among as many draws without replacement from
    :math:`\operatorname{softmax}(z^i)` as the path has sources. For one draw that is the softmax, and no two nodes read
    j, so that :math:`r_j = \sum_i r_i \, q^i_j`. For more, it is :math:`1 - e^{-\lambda p_j}` with the :math:`\lambda`
    with which all of a node add up to the number of draws (Rosén, 1972), and 1 where every source is drawn.

    The sum is exact where nodes read one source, as for :class:`~dynroute.Hard`, or all. In between it takes the
    readers of a node as independent; on small graphs, of which all paths can be enumerated, it is within a tenth of the
    truth. :class:`~dynroute.Soft` runs all nodes, and no gradient changes that.

    The gradient flows to the router: less cost is longer odds for what few other nodes read.

    Args:
        route: The routes, with batch shape ``*``.
        topology: Their graph.
        costs: What each node costs, its parameters or microseconds for instance, with shape ``[num_nodes]``; 1 if None.

    Returns:
        The expected cost of each sample, with shape ``[*]``; a loss takes its mean, or hands it to a
        :class:`dynroute.Budget`.

    Example:
        >>> topology = Topology.dag(3)
        >>> compute_cost(Hard()(torch.zeros(2, 2), allowed=topology.allowed), topology)  # half skip the second module
        tensor(2.5000)
    """
    _check_route(route)
    if not isinstance(topology, Topology):
        raise TypeError(f"`topology` must be a Topology, got {shown(topology)}; `net.topology` is one.")
    if route.logits.shape[-2:] != topology.path_shape:
        raise ValueError(
            f"`route` must have shape (*, {topology.path_shape[0]}, {topology.path_shape[1]}), got "
            f"{tuple(route.logits.shape)}; was it made by another topology?"
        )
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
    r"""The auxiliary loss of the Switch Transformer: 1 when the sources of a node are used equally, up to n.

    .. math:: n \sum_j f_j P_j

    :math:`f_j` is the share of choices that went to source :math:`j` and :math:`P_j` the mean probability of that
    source, for each destination with its :math:`n` sources. The gradient flows through :math:`P`.

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
    r"""The squared coefficient of variation of the weight that each source receives (Shazeer et al., 2017).

    .. math:: \frac{\operatorname{Var}_j(w_j)}{\operatorname{Mean}_j(w_j)^2}, \qquad w_j = \sum_b p_{bj}

    Example:
        >>> importance(Soft()(torch.zeros(8, 1, 4)))
        tensor(0.)
    """
    _check_route(route)
    exists = _batch_mean(_allowed(route).to(route.weights.dtype))
    number = exists.sum(dim=-1, keepdim=True).clamp(min=1.0)

    weight = _batch_mean(route.weights)
    mean = weight.sum(dim=-1, keepdim=True) / number
    variance = ((weight - mean).square() * exists).sum(dim=-1, keepdim=True) / number

    return (variance / mean.square().clamp(min=torch.finfo(mean.dtype).tiny)).mean()


def router_z_loss(route: Route) -> Tensor:
    r"""Keeps the logits small (ST-MoE): the mean of :math:`\log^2 \sum_j e^{z_j}`.

    Example:
        >>> router_z_loss(Soft()(torch.zeros(8, 1, 1)))
        tensor(0.)
    """
    _check_route(route)
    return _batch_mean(route.logits.logsumexp(dim=-1).square(), feature_dims=1).mean()


def route_entropy(route: Route) -> Tensor:
    r"""The mean entropy, in nats, of the router's distribution over all the sources of a node.

    .. math:: -\sum_j \operatorname{softmax}(z)_j \log \operatorname{softmax}(z)_j

    Subtract it from a loss to keep the router exploring.

    Example:
        >>> route_entropy(Soft()(torch.zeros(8, 1, 4))).exp()
        tensor(4.)
    """
    _check_route(route)
    allowed = _allowed(route)
    log_probability = route.logits.log_softmax(dim=-1).masked_fill(~allowed, 0.0)
    return _batch_mean(-(log_probability.exp() * log_probability).sum(dim=-1), feature_dims=1).mean()


def _draw_probability(probability: Tensor, draws: Tensor) -> Tensor:
    """The probability that each source is among some draws without replacement, in its closed form for many sources."""
    sources = (probability > 0).sum(dim=-1, keepdim=True)
    every, one = draws >= sources, draws == 1
    wanted = torch.where(every, sources.clamp(min=1) / 2, draws).to(probability.dtype)  # else there is no solution

    p = probability.detach()
    most, least = torch.finfo(p.dtype).max / 16, torch.finfo(p.dtype).tiny
    scale = wanted
    for _ in range(_NEWTON_STEPS):  # from below, where the sum of a concave function cannot overshoot
        kept = torch.exp(-scale * p)
        missing = wanted - (1 - kept).sum(dim=-1, keepdim=True)
        scale = (scale + missing / (p * kept).sum(dim=-1, keepdim=True).clamp(min=least)).clamp(min=0.0, max=most)
    # One step more, with the gradient of the implicit function.
    kept = torch.exp(-scale * probability)
    slope = (p * kept.detach()).sum(dim=-1, keepdim=True).clamp(min=least)
    scale = scale + (wanted - (1 - kept).sum(dim=-1, keepdim=True)) / slope

    drawn = 1 - torch.exp(-scale * probability)
    return torch.where(one, probability, torch.where(every, (probability > 0).to(p.dtype), drawn))


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
    return route.logits > -torch.inf


def _batch_mean(values: Tensor, *, feature_dims: int = 2) -> Tensor:
    """The mean over the batch dimensions; zeros for an empty batch."""
    rows = values.reshape(-1, *values.shape[values.dim() - feature_dims :])
    return rows.sum(dim=0) / max(rows.shape[0], 1)


def _check_route(route: Route) -> None:
    """Raises an error unless a value is a route of three tensors with one shape."""
    if not isinstance(route, Route):
        raise TypeError(f"`route` must be a Route, got {shown(route)}; a gate makes one.")
    check_mask("route.path", route.path, route.logits)
    check_tensor("route.weights", route.weights)
    if route.weights.shape != route.logits.shape or route.logits.dim() < 2:
        raise ValueError(
            f"`route` must hold tensors with one shape (*, T, S), got logits {tuple(route.logits.shape)} "
            f"and weights {tuple(route.weights.shape)}."
        )
    if not route.weights.is_floating_point():
        raise TypeError(f"`route.weights` must be a floating tensor, got {route.weights.dtype}.")
