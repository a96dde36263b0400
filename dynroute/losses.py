"""Pure functions of a route that can be added to a training loss.

Each averages over the samples and over the destinations, and reads the slots that exist from the route's logits.
"""

import torch
from torch import Tensor

from .arguments import check_mask, check_tensor, shown
from .functional import mask_softmax
from .route import Route

__all__ = ["importance", "load_balance", "route_entropy", "router_z_loss"]


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
