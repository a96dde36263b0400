"""The losses of multi-task SAC for each task, as pure functions."""

import torch
from torch import Tensor, nn

from dynroute.functional import route_temperature, task_weights

__all__ = [
    "MASK_RULES",
    "Q_TARGETS",
    "TASK_WEIGHTS",
    "TEMPERATURES",
    "actor_loss",
    "cloning_loss",
    "combine_critics",
    "critic_loss",
    "ent_coef_loss",
    "mean_by_task",
    "path_temperature",
    "return_scale",
    "sample_shares",
    "td_target",
    "weigh_tasks",
]

TASK_WEIGHTS = ("none", "alpha-sum", "alpha-mean", "inverse-alpha-sum", "inverse-alpha-mean")
"""The rules for task weights, which are equal, proportional to softmax(-alpha), or proportional to 1 / alpha =
softmax(-log alpha); with a sum or a mean of 1."""

MASK_RULES = ("each", "total")
"""The rules for leaving out tasks with extreme losses. With "each", the loss of the critics decides for critics and
actor, the actor's loss for the actor only, and means are over the remaining tasks. With "total", the sum of the losses
of coefficient, critics and actor, the last two multiplied by the task's weight, decides for all of them, and means are
over all tasks."""

Q_TARGETS = ("min", "mean")
"""The rules for combining the values of several critics."""

TEMPERATURES = ("inverse-alpha-sum", "inverse-alpha-mean")
"""The rules by which the temperature of route sampling follows alpha (Eq. 14), with a sum or a mean of 1 over tasks."""


def mean_by_task(values: Tensor, tasks: Tensor) -> Tensor:
    """Averages values over the samples of each task; 0 for a task without samples.

    Args:
        values: One value for each sample, with shape ``[batch]``.
        tasks: The one-hots of the tasks, with shape ``[batch, num_tasks]``.

    Example:
        >>> mean_by_task(torch.tensor([1.0, 2.0, 5.0]), torch.eye(2)[[0, 1, 1]])
        tensor([1.0000, 3.5000])
    """
    # In a matrix product a NaN of one task would reach the means of all.
    members = tasks == 1
    return torch.where(members, values.unsqueeze(-1), 0).sum(dim=0) / members.sum(dim=0).clamp(min=1)


def sample_shares(weights: Tensor, kept: Tensor, tasks: Tensor, counted: Tensor | None = None) -> Tensor:
    r"""Computes the weight of each sample in the loss, a weighted mean over tasks of the means of the kept tasks.

    .. math:: J = \frac{1}{|C|} \sum_{\mathcal T \in K} w_{\mathcal T} \,
              \frac{1}{n_{\mathcal T}} \sum_{i \in \mathcal T} J_i

    Args:
        weights: The weight of each task, with shape ``[num_tasks]``.
        kept: The tasks :math:`K` to keep, boolean.
        tasks: The one-hots of the tasks, with shape ``[batch, num_tasks]``.
        counted: The tasks :math:`C` to average over, boolean; default: `kept`.

    Example:
        >>> sample_shares(torch.ones(2), torch.tensor([True, True]), torch.eye(2)[[0, 1, 1]])
        tensor([0.5000, 0.2500, 0.2500])
    """
    count = (kept if counted is None else counted).sum().clamp(min=1)
    shares = torch.where(kept, weights, 0) / count / tasks.sum(dim=0).clamp(min=1)
    return tasks @ shares


def td_target(
    rewards: Tensor, dones: Tensor, next_values: Tensor, next_log_probs: Tensor, alpha: Tensor, gamma: float | Tensor
) -> Tensor:
    r"""Computes the target of a Q-function, with the entropy of the next action.

    .. math:: y = r + \gamma (1 - d) \Bigl( Q(s', a') - \alpha \log \pi(a' | s') \Bigr)

    Args:
        rewards: The rewards, with shape ``[batch]``, or ``[batch, 1]`` for several values per sample.
        dones: 1 if the episode terminated with this step, else 0.
        next_values: The values :math:`Q(s', a')` of the next actions by the target critics, see
            :func:`combine_critics`, or all values of a support.
        next_log_probs: Their log-probabilities.
        alpha: The entropy coefficient of each sample's task.
        gamma: The discount of the next value: a number, or a tensor with one for each sample.
    """
    return rewards + gamma * (1 - dones) * (next_values - alpha * next_log_probs)


def combine_critics(values: Tensor, rule: str) -> Tensor:
    """Combines the values of several critics by a rule of :data:`Q_TARGETS`.

    Args:
        values: The values, with shape ``[critics, batch]``.
        rule: "min" for the smallest, "mean" for the mean.

    Example:
        >>> values = torch.tensor([[1.0], [2.0]])
        >>> combine_critics(values, "min"), combine_critics(values, "mean")
        (tensor([1.]), tensor([1.5000]))
    """
    return values.mean(dim=0) if rule == "mean" else values.min(dim=0).values


def return_scale(
    bounds: Tensor, alpha: Tensor, gamma: float, target_entropy: float, value_range: tuple[float, float]
) -> Tensor:
    r"""Computes the divisor of each task's rewards with which values, including the entropy bonus, lie in a range.

    .. math:: \frac{1}{10} \Bigl( \max\bigl(R_{\max}, |R_{\min}|\bigr)
              - \frac{\alpha \bar{\mathcal H}}{2 (1 - \gamma)} \Bigr)

    for the range [-10, 10]; for another range, the smallest divisor that scales returns of either sign into it.

    Args:
        bounds: The smallest return, at most 0, and the largest, at least 0, of each task, with shape
            ``[num_tasks, 2]``.
        alpha: The entropy coefficient of each task.
        gamma: The discount factor.
        target_entropy: The target entropy :math:`\bar{\mathcal H}`, at most 0.
        value_range: The range, with 0 inside.

    Returns:
        A positive number for each task; 1 if all returns and alpha are 0.

    Example:
        >>> return_scale(torch.tensor([[0.0, 900.0]]), torch.tensor([0.5]), 0.99, -4.0, (-10, 10))
        tensor([100.])
    """
    low, high = value_range
    bonus = -alpha * target_entropy / (2 * (1 - gamma))
    scale = torch.maximum((bonus - bounds[:, 0]) / -low, (bonus + bounds[:, 1]) / high)
    return torch.where(scale > 0, scale, 1)


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    r"""Computes the loss of the critics for each sample.

    .. math:: \sum_i \bigl( Q_i(s, a) - y \bigr)^2

    Args:
        values: The predictions of the critics, with shape ``[critics, batch]``.
        target: The targets, with shape ``[batch]``.

    Example:
        >>> critic_loss(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0]))
        tensor([5.])
    """
    return (values - target).square().sum(dim=0)


def actor_loss(log_probs: Tensor, values: Tensor, alpha: Tensor) -> Tensor:
    r"""Computes the loss of the actor for each sample (Eq. 1).

    .. math:: \alpha \log \pi(a | s) - Q(s, a)

    Args:
        log_probs: The log-probabilities of actions drawn by the actor, with shape ``[batch]``.
        values: Their values :math:`Q(s, a)`, see :func:`combine_critics`.
        alpha: The entropy coefficient of each sample's task.

    Example:
        >>> actor_loss(torch.tensor([-2.0]), torch.tensor([3.0]), torch.tensor([0.5]))
        tensor([-4.])
    """
    return alpha * log_probs - values


def ent_coef_loss(log_alpha: Tensor, excess: Tensor) -> Tensor:
    r"""Computes the loss of each task's entropy coefficient (Eq. 2, in log alpha).

    .. math:: \log \alpha \, \bigl( \mathbb E [-\log \pi(a | s)] - \bar{\mathcal H} \bigr)

    Args:
        log_alpha: The logarithm of the coefficients, with shape ``[num_tasks]``.
        excess: The entropy minus its target.

    Example:
        >>> ent_coef_loss(torch.tensor([-1.0]), torch.tensor([0.5]))
        tensor([-0.5000])
    """
    return log_alpha * excess


def cloning_loss(actions: Tensor, wanted: Tensor) -> Tensor:
    r"""Computes the squared distance of actions to the actions of demonstrations; 0 for the other samples.

    Args:
        actions: The actor's mean actions, with shape ``[batch, n]``.
        wanted: The actions of the demonstrations, which come first in the batch, with shape ``[demonstrations, n]``.

    Example:
        >>> cloning_loss(torch.tensor([[1.0], [1.0]]), torch.tensor([[3.0]]))
        tensor([4., 0.])
    """
    errors = (actions[: len(wanted)] - wanted).square().sum(dim=-1)
    return nn.functional.pad(errors, (0, len(actions) - len(errors)))


def weigh_tasks(kind: str, alpha: Tensor) -> Tensor:
    """Computes the weight of each task's loss (Eq. 15) by a rule of :data:`TASK_WEIGHTS`."""
    by, _, normalize = kind.rpartition("-")
    if by == "alpha":
        return task_weights(alpha, normalize=normalize)
    return _inverse(alpha, normalize) if by == "inverse-alpha" else torch.ones_like(alpha)


def path_temperature(kind: float | str, alpha: Tensor) -> Tensor:
    """Computes the temperature of each task's route sampling: a constant or a rule of :data:`TEMPERATURES` (Eq. 14)."""
    if isinstance(kind, str):
        return _inverse(alpha, kind.removeprefix("inverse-alpha-"))
    return torch.full_like(alpha, kind)


def _inverse(alpha: Tensor, normalize: str) -> Tensor:
    # Fixed coefficients may be zero.
    return route_temperature(alpha.clamp(min=torch.finfo(alpha.dtype).tiny), normalize=normalize)
