r"""Transitions of several steps: the critics then learn from the rewards of n steps and the value behind them.

.. math:: y = \sum_{i < k} \gamma^i r_i + \gamma^k (1 - d) \Big( Q(s_k, a') - \alpha \log \pi(a' | s_k) \Big),
          \qquad k \le n

An episode that ends earlier has a smaller k, and so has one whose later steps are not stored yet. As in SB3, the
entropy of the actions in between is left out, and nothing corrects that an earlier policy chose them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["look_ahead"]


def look_ahead(
    read: Callable[[Tensor], Tensor],
    places: Tensor,
    newer: Tensor,
    *,
    state_features: int,
    capacity: int,
    reach: int,
    n_steps: int,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """Extends transitions along their episodes.

    A transition follows another if it begins with the state that the other ended with, and the other ended no episode.
    So environments of the same task may write to one ring in turn. No value is read on the host.

    Args:
        read: Returns the rows at places of the rings, with shape ``[batch, width]``: state, next state, action, reward,
            and whether the episode ended there, 0 if not.
        places: The places of the transitions in the rings of their tasks, with shape ``[batch]``.
        newer: The number of transitions of the same task that are newer.
        state_features: The width of a state.
        capacity: The size of a ring.
        reach: The largest distance of the places of two transitions that follow one another.
        n_steps: The largest number of steps.
        gamma: The discount factor.

    Returns:
        Rows with the state and the action of the first step, the discounted sum of rewards, and the next state and the
        end of the last step; and the discounts of the values behind them, with shape ``[batch, 1]``.

    Example:
        >>> from dynroute_sb3.multi_step import look_ahead
        >>> ring = torch.tensor([[0.0, 1.0, 0.5, 8.0, 0.0], [1.0, 2.0, 0.5, 4.0, 0.0]])  # from state 0 to 1, and to 2
        >>> look_ahead(
        ...     lambda places: ring[places],
        ...     torch.tensor([0, 1]),
        ...     torch.tensor([1, 0]),
        ...     state_features=1,
        ...     capacity=2,
        ...     reach=1,
        ...     n_steps=3,
        ...     gamma=0.5,
        ... )
        (tensor([[ 0.0000,  2.0000,  0.5000, 10.0000,  0.0000],
                [ 1.0000,  2.0000,  0.5000,  4.0000,  0.0000]]), tensor([[0.2500],
                [0.5000]]))
    """
    n = state_features
    first = last = read(places)
    rewards, discounts = first[:, -2], first.new_ones(len(first))
    going = first[:, -1] == 0
    for _ in range(n_steps - 1):
        following, moved, found = last, torch.zeros_like(places), torch.zeros_like(going)
        for distance in range(1, reach + 1):
            candidate = read((places + distance) % capacity)
            follows = (candidate[:, :n] == last[:, n : 2 * n]).all(dim=1)
            takes = going & ~found & (newer >= distance) & follows
            following = torch.where(takes.unsqueeze(1), candidate, following)
            moved, found = torch.where(takes, distance, moved), found | takes
        discounts = torch.where(found, gamma * discounts, discounts)
        rewards = torch.where(found, rewards + discounts * following[:, -2], rewards)
        places, newer = (places + moved) % capacity, newer - moved
        last, going = following, found & (following[:, -1] == 0)
    rows = torch.cat([first[:, :n], last[:, n : 2 * n], first[:, 2 * n : -2], rewards[:, None], last[:, -1:]], dim=1)
    return rows, (gamma * discounts).unsqueeze(1)
