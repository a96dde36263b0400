"""The losses of multi-task SAC, task by task, as pure functions."""

import torch
from torch import Tensor, nn

from dynroute.functional import route_temperature, task_weights

__all__ = [
    "MASK_RULES",
    "TASK_WEIGHTS",
    "TEMPERATURES",
    "actor_loss",
    "cloning_loss",
    "critic_loss",
    "ent_coef_loss",
    "mean_by_task",
    "path_temperature",
    "sample_shares",
    "td_target",
    "weigh_tasks",
]

TASK_WEIGHTS = ("none", "alpha-sum", "alpha-mean", "inverse-alpha-sum", "inverse-alpha-mean")
"""How tasks can be weighed. All are equal, or follow softmax(-alpha) or 1 / alpha, which is softmax(-log alpha), adding
up to 1 or averaging 1."""

MASK_RULES = ("each", "total")
"""How tasks with extreme losses are found. By "each", the loss of the critics decides about critics and actor, that of
the actor about the actor alone, and means are over the tasks that stay. By "total", the sum of the losses of
coefficient, critics and actor, the last two times the task's weight, decides about all of them, and means are over all
tasks."""

TEMPERATURES = ("inverse-alpha-sum", "inverse-alpha-mean")
"""How the temperature of route sampling can follow alpha (Eq. 14). They add up to 1 over the tasks, or average 1."""


def mean_by_task(values: Tensor, tasks: Tensor) -> Tensor:
    """The mean of values over the samples of each task; 0 for a task without any.

    Args:
        values: One value for each sample, with shape ``[batch]``.
        tasks: The one-hots of the tasks, with shape ``[batch, num_tasks]``.

    Example:
        >>> mean_by_task(torch.tensor([1.0, 2.0, 5.0]), torch.eye(2)[[0, 1, 1]])
        tensor([1.0000, 3.5000])
    """
    # Not a product of matrices: there a NaN of one task would reach the means of all.
    members = tasks == 1
    return torch.where(members, values.unsqueeze(-1), 0).sum(dim=0) / members.sum(dim=0).clamp(min=1)


def sample_shares(weights: Tensor, kept: Tensor, tasks: Tensor, counted: Tensor | None = None) -> Tensor:
    r"""What each sample contributes to the loss: the mean over tasks, weighted, of the means of those that are kept.

    .. math:: J = \frac{1}{|C|} \sum_{\mathcal T \in K} w_{\mathcal T} \,
              \frac{1}{n_{\mathcal T}} \sum_{i \in \mathcal T} J_i

    Args:
        weights: The weight of each task, with shape ``[num_tasks]``.
        kept: Which tasks take part, boolean.
        tasks: The one-hots of the tasks, with shape ``[batch, num_tasks]``.
        counted: The tasks :math:`C` that the mean is over, boolean; those that are kept if None.

    Example:
        >>> sample_shares(torch.ones(2), torch.tensor([True, True]), torch.eye(2)[[0, 1, 1]])
        tensor([0.5000, 0.2500, 0.2500])
    """
    count = (kept if counted is None else counted).sum().clamp(min=1)
    shares = torch.where(kept, weights, 0) / count / tasks.sum(dim=0).clamp(min=1)
    return tasks @ shares


def td_target(
    rewards: Tensor, dones: Tensor, next_values: Tensor, next_log_probs: Tensor, alpha: Tensor, gamma: float
) -> Tensor:
    r"""What a Q-function is to predict, with the entropy of the next action.

    .. math:: y = r + \gamma (1 - d) \Big( \min_i Q_i(s', a') - \alpha \log \pi(a' | s') \Big)

    Args:
        rewards: The rewards, with shape ``[batch]``.
        dones: 1 where the episode ended with that step for good, else 0.
        next_values: The values of the next actions by each target critic, with shape ``[critics, batch]``.
        next_log_probs: Their log-probabilities.
        alpha: The entropy coefficient of each sample's task.
        gamma: The discount factor.
    """
    return rewards + gamma * (1 - dones) * (next_values.amin(dim=0) - alpha * next_log_probs)


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    r"""The loss of the critics for each sample.

    .. math:: \sum_i \big( Q_i(s, a) - y \big)^2

    Args:
        values: What the critics predict, with shape ``[critics, batch]``.
        target: What they are to predict, with shape ``[batch]``.

    Example:
        >>> critic_loss(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0]))
        tensor([5.])
    """
    return (values - target).square().sum(dim=0)


def actor_loss(log_probs: Tensor, values: Tensor, alpha: Tensor) -> Tensor:
    r"""The loss of the actor for each sample (Eq. 1).

    .. math:: \alpha \log \pi(a | s) - \min_i Q_i(s, a)

    Args:
        log_probs: The log-probabilities of actions that the actor drew, with shape ``[batch]``.
        values: The lowest value that a critic gives to them.
        alpha: The entropy coefficient of each sample's task.

    Example:
        >>> actor_loss(torch.tensor([-2.0]), torch.tensor([3.0]), torch.tensor([0.5]))
        tensor([-4.])
    """
    return alpha * log_probs - values


def ent_coef_loss(log_alpha: Tensor, excess: Tensor) -> Tensor:
    r"""The loss of each task's entropy coefficient (Eq. 2, in log alpha).

    .. math:: \log \alpha \, \big( \mathbb E [-\log \pi(a | s)] - \bar{\mathcal H} \big)

    Args:
        log_alpha: The logarithm of the coefficients, with shape ``[num_tasks]``.
        excess: By how much the entropy exceeds its target.

    Example:
        >>> ent_coef_loss(torch.tensor([-1.0]), torch.tensor([0.5]))
        tensor([-0.5000])
    """
    return log_alpha * excess


def cloning_loss(actions: Tensor, wanted: Tensor) -> Tensor:
    r"""The squared distance of actions to those of demonstrations; 0 for the samples behind, which are none.

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
    """The weight of each task's loss (Eq. 15), by a rule of :data:`TASK_WEIGHTS`."""
    by, _, normalize = kind.rpartition("-")
    if by == "alpha":
        return task_weights(alpha, normalize=normalize)
    return _inverse(alpha, normalize) if by == "inverse-alpha" else torch.ones_like(alpha)


def path_temperature(kind: float | str, alpha: Tensor) -> Tensor:
    """The temperature of each task's route sampling: a constant, or Eq. 14 by a rule of :data:`TEMPERATURES`."""
    if isinstance(kind, str):
        return _inverse(alpha, kind.removeprefix("inverse-alpha-"))
    return torch.full_like(alpha, kind)


def _inverse(alpha: Tensor, normalize: str) -> Tensor:
    # A coefficient that is fixed may be zero, for all tasks alike.
    return route_temperature(alpha.clamp(min=torch.finfo(alpha.dtype).tiny), normalize=normalize)
