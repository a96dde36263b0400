"""The policy's distribution: a Gaussian squashed into (-1, 1) by tanh."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LOG_STD_MAX", "LOG_STD_MIN", "sample_action", "split_output"]

LOG_STD_MIN = -20.0
"""The smallest logarithm of a standard deviation."""

LOG_STD_MAX = 2.0
"""The largest."""


def split_output(output: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the logarithm of the standard deviation, which is clamped to [-20, 2], of an actor's output."""
    mean, log_std = output.chunk(2, dim=-1)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor, *, epsilon: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""Draws actions and their log-probabilities from the noise of a standard Gaussian.

    .. math:: a = \tanh u, \quad u = \mu + \sigma \xi, \qquad
              \log \pi(a) = \sum_i \log \mathcal N(u_i) - \log(1 - \tanh^2 u_i + \epsilon)

    Without :math:`\epsilon` the logarithm is written as :math:`2 (\log 2 - u - \operatorname{softplus}(-2u))`, which is
    exact where :math:`\tanh u` rounds to one.

    Args:
        mean: The mean before squashing, with shape ``[*, n]``.
        log_std: The logarithm of the standard deviation, with the same shape.
        noise: Draws :math:`\xi` from N(0, 1), with the same shape.
        epsilon: What is added inside the logarithm; released code has 1e-6.

    Returns:
        The actions with shape ``[*, n]`` and their log-probabilities with shape ``[*]``.
    """
    raw = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    action = torch.tanh(raw)
    exact = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    squashing = torch.log(1 - action.square() + epsilon) if epsilon else exact
    return action, (gaussian - squashing).sum(dim=-1)
