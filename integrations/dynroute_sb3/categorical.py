"""Distributions of values over evenly spaced bins, as pure functions for categorical critics."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "VALUE_RANGE",
    "combine_distributions",
    "cross_entropy",
    "expectation",
    "outside_share",
    "project",
    "support",
]

VALUE_RANGE = (-10.0, 10.0)
"""The usual values of the first bin and of the last."""


def support(bins: int, value_range: tuple[float, float], *, like: Tensor) -> Tensor:
    """Returns the values of the bins, from one end of the range to the other.

    Args:
        bins: The number of bins.
        value_range: The ends of the range.
        like: A tensor with the type and device of the result.

    Example:
        >>> from dynroute_sb3.categorical import support
        >>> support(5, (-1, 1), like=torch.zeros(()))
        tensor([-1.0000, -0.5000,  0.0000,  0.5000,  1.0000])
    """
    return torch.linspace(*value_range, bins, dtype=like.dtype, device=like.device)


def expectation(logits: Tensor, value_range: tuple[float, float]) -> Tensor:
    r"""Computes the expected value of a distribution.

    .. math:: Q = \sum_k p_k z_k, \qquad p = \operatorname{softmax}(l)

    Args:
        logits: The logits :math:`l` of the bins, with shape ``[*, bins]``.
        value_range: The values :math:`z` of the first bin and of the last.

    Example:
        >>> from dynroute_sb3.categorical import expectation
        >>> expectation(torch.tensor([0.0, 0.0, 0.0, 99.0]), (-1, 5))
        tensor(5.)
    """
    return (logits.softmax(dim=-1) * support(logits.shape[-1], value_range, like=logits)).sum(dim=-1)


def combine_distributions(logits: Tensor, value_range: tuple[float, float], rule: str) -> Tensor:
    """Combines the distributions of several critics.

    Args:
        logits: The logits of the bins, with shape ``[critics, batch, bins]``.
        value_range: The values of the first bin and of the last.
        rule: "mean" for the mean of the probabilities, "min" for the critic with the smallest expectation.

    Returns:
        The probabilities, with shape ``[batch, bins]``.

    Example:
        >>> from dynroute_sb3.categorical import combine_distributions
        >>> sure = torch.tensor([[[999.0, 0.0]], [[0.0, 999.0]]])
        >>> combine_distributions(sure, (0, 1), "mean"), combine_distributions(sure, (0, 1), "min")
        (tensor([[0.5000, 0.5000]]), tensor([[1., 0.]]))
    """
    probabilities = logits.softmax(dim=-1)
    if rule == "mean":
        return probabilities.mean(dim=0)
    lowest = expectation(logits, value_range).argmin(dim=0)
    return probabilities.take_along_dim(lowest[None, :, None], dim=0).squeeze(0)


def project(probabilities: Tensor, values: Tensor, value_range: tuple[float, float], bins: int) -> Tensor:
    r"""Projects a distribution onto the bins, each value onto its two nearest bins, so that the mean is preserved.

    .. math:: q_k = \sum_j p_j \, \Bigl(1 - \Bigl| \frac{\operatorname{clamp}(y_j) - z_k}{\Delta} \Bigr|\Bigr)_+

    Values outside of the range go to the outermost bin; :func:`outside_share` returns their probability.

    Args:
        probabilities: The probabilities :math:`p`, with shape ``[batch, n]``.
        values: The values :math:`y`, with the same shape.
        value_range: The values :math:`z` of the first bin and of the last.
        bins: The number of bins, at a distance :math:`\Delta`.

    Returns:
        The probabilities of the bins, with shape ``[batch, bins]``; some are NaN in a row whose values are NaN.

    Example:
        >>> from dynroute_sb3.categorical import project
        >>> project(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 7.0]]), (0, 2), bins=3)
        tensor([[0.3750, 0.1250, 0.5000]])
    """
    low, high = value_range
    places = ((values.clamp(low, high) - low) * ((bins - 1) / (high - low))).clamp(max=bins - 1)
    # Scattering is not deterministic on a GPU, and on a CPU the product takes a hundred times as long.
    spread = _scatter if values.device.type == "cpu" else _multiply
    return spread(probabilities, places, bins)


def outside_share(probabilities: Tensor, values: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Computes the probability of the values outside of a range, with shape ``[batch]``.

    The arguments are as in :func:`project`.

    Example:
        >>> from dynroute_sb3.categorical import outside_share
        >>> outside_share(torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 7.0]]), (0, 2))
        tensor([0.7500])
    """
    low, high = value_range
    return torch.where((values < low) | (values > high), probabilities, 0).sum(dim=-1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    r"""Computes the loss of the critics for each sample.

    .. math:: -\sum_i \sum_k q_k \log p^i_k

    Args:
        logits: The logits of the bins by each critic, with shape ``[critics, batch, bins]``.
        target: The target probabilities :math:`q`, with shape ``[batch, bins]``.

    Example:
        >>> from dynroute_sb3.categorical import cross_entropy
        >>> cross_entropy(torch.zeros(2, 1, 4), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
        tensor([2.7726])
    """
    return -(target * F.log_softmax(logits, dim=-1)).sum(dim=-1).sum(dim=0)


def _scatter(probabilities: Tensor, places: Tensor, bins: int) -> Tensor:
    below = places.floor().clamp(max=bins - 2)
    share_above = places - below
    first = below.long().clamp(min=0)  # NaN becomes a negative index
    projected = probabilities.new_zeros(*probabilities.shape[:-1], bins)
    projected.scatter_add_(-1, first, probabilities * (1 - share_above))
    return projected.scatter_add_(-1, first + 1, probabilities * share_above)


def _multiply(probabilities: Tensor, places: Tensor, bins: int) -> Tensor:
    numbers = torch.arange(bins, dtype=places.dtype, device=places.device)
    nearness = (places.unsqueeze(-2) - numbers.unsqueeze(-1)).abs_().neg_().add_(1).clamp_(min=0)
    return (nearness @ probabilities.unsqueeze(-1)).squeeze(-1)
