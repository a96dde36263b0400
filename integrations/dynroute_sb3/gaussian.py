"""The distribution of actions: a Gaussian squashed into (-1, 1) by tanh."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LOG_STD_LIMITS", "LOG_STD_RANGE", "sample_action", "split_output"]

LOG_STD_RANGE = (-20.0, 2.0)
"""The usual range of a log-standard deviation."""

LOG_STD_LIMITS = ("clamp", "tanh")
"""The ways to keep an output in that range, by clamping, without a gradient outside, or by tanh."""


def split_output(
    output: Tensor, *, limit: str = "clamp", log_std_range: tuple[float, float] = LOG_STD_RANGE
) -> tuple[Tensor, Tensor]:
    r"""Splits an actor's output into the mean and the log-standard deviation.

    With "tanh", :math:`\log \sigma = l + \frac{h - l}{2} (1 + \tanh x)` for a range :math:`[l, h]`.

    Args:
        output: The output, with shape ``[*, 2 n]``.
        limit: The way to keep the logarithm in its range, one of :data:`LOG_STD_LIMITS`.
        log_std_range: The range.

    Example:
        >>> from dynroute_sb3.gaussian import split_output
        >>> split_output(torch.tensor([0.5, 0.0]), limit="tanh", log_std_range=(-10, 2))
        (tensor([0.5000]), tensor([-4.]))
    """
    mean, log_std = output.chunk(2, dim=-1)
    low, high = log_std_range
    if limit == "tanh":
        return mean, low + 0.5 * (high - low) * (1 + torch.tanh(log_std))
    return mean, log_std.clamp(low, high)


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor, *, epsilon: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""Computes actions and their log-probabilities from standard Gaussian noise.

    .. math:: a = \tanh u, \quad u = \mu + \sigma \xi, \qquad
              \log \pi(a) = \sum_i \log \mathcal N(u_i) - \log(1 - \tanh^2 u_i + \epsilon)

    If :math:`\epsilon = 0`, the logarithm is computed as :math:`2 (\log 2 - u - \operatorname{softplus}(-2u))`, which
    is exact even if :math:`\tanh u` rounds to one.

    Args:
        mean: The mean before squashing, with shape ``[*, n]``.
        log_std: The logarithm of the standard deviation, with the same shape.
        noise: Draws :math:`\xi` from N(0, 1), with the same shape.
        epsilon: The :math:`\epsilon` inside the logarithm; released code has 1e-6.

    Returns:
        The actions with shape ``[*, n]`` and their log-probabilities with shape ``[*]``.
    """
    raw = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    action = torch.tanh(raw)
    exact = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    squashing = torch.log(1 - action.square() + epsilon) if epsilon else exact
    return action, (gaussian - squashing).sum(dim=-1)
